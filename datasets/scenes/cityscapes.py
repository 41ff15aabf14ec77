"""Cityscapes on disk (docs/rp-pgd.md, Method 14).

leftImg8bit/{train,val,test}/CITY/NAME_leftImg8bit.png
gtFine/{train,val}/CITY/NAME_gtFine_labelTrainIds.png     0..18 and 255, or
gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png          0..33, as they come: mapped here
"""

from pathlib import Path

from ..images import IGNORED
from .files import SceneFiles, SceneFolder, class_table, unique_ids, value_table

CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label id of each class, as the data set counts them."""
LABEL_IDS = value_table(dict.fromkeys((*range(34), 255), IGNORED) | {label: k for k, label in enumerate(IDS)})
"""255 is the licence plate, -1."""
TRAIN_IDS = class_table(len(CLASSES))
SPLITS = ("train", "val", "test")
IMAGE_END = "_leftImg8bit.png"


def find_cityscapes(root: Path) -> SceneFolder:
    """The splits of Cityscapes whose images are there; the group is the city. Images of test have no labels.

    root: the folder that has leftImg8bit.

    Raises:
        FileNotFoundError: no image.
        ValueError: two images of one name.
    """
    splits = dict[str, list[SceneFiles]]()
    for split in SPLITS:
        if images := sorted((root / "leftImg8bit" / split).glob(f"*/*{IMAGE_END}")):
            splits[split] = unique_ids([_files(image, root, split) for image in images], f"split {split}")
    if not splits:
        raise FileNotFoundError(f"no image in {root / 'leftImg8bit'}: expected {{train,val,test}}/CITY/NAME{IMAGE_END}")
    return SceneFolder(CLASSES, splits)


def _files(image: Path, root: Path, split: str) -> SceneFiles:
    name, city = image.name.removesuffix(IMAGE_END), image.parent.name
    if split == "test":  # its masks hold nothing
        return SceneFiles(name, city, image, None, TRAIN_IDS)
    labels = root / "gtFine" / split / city
    mapped = labels / f"{name}_gtFine_labelTrainIds.png"
    if not mapped.is_file() and (raw := labels / f"{name}_gtFine_labelIds.png").is_file():
        return SceneFiles(name, city, image, raw, LABEL_IDS)
    return SceneFiles(name, city, image, mapped, TRAIN_IDS)
