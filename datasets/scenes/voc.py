"""PASCAL VOC 2012 on disk, with the masks of SBD where they are there (docs/rp-pgd.md, Method 14).

JPEGImages/NAME.jpg
SegmentationClass/NAME.png           VOC's own masks: palette PNG, 0..20, 255 at borders
SegmentationClassAug/NAME.png        VOC's and SBD's in one folder, the same values (may be absent)
ImageSets/Segmentation/SPLIT.txt     train, val, trainval, train_aug: a name in each line, or image and label path
"""

from pathlib import Path

from .files import SceneFiles, SceneFolder, class_table, list_lines, read_list, unique_ids

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
TABLE = class_table(len(CLASSES))
IMAGES, MASKS, AUGMENTED = "JPEGImages", "SegmentationClass", "SegmentationClassAug"
AUGMENTED_LISTS = ("train_aug", "trainaug")
"""Names that the list of SBD's images goes by; the split is called by the first."""
LISTS = ("train", *AUGMENTED_LISTS, "val", "trainval")
"""Lists that are looked for; there may be others, whose images have no masks (test)."""


def find_voc(root: Path) -> SceneFolder:
    """The splits of VOC 2012: those whose list is there.

    Split train_aug is its list or, where there is only the folder SegmentationClassAug, every mask in it that is not in
    val: 10,582 images. No other split has a mask of SBD.

    root: the folder that has JPEGImages.

    Raises:
        FileNotFoundError: no list, or files of it that do not exist.
        ValueError: a list that cannot be used, or an image of val that is in a training list too.
    """
    folder = root / "ImageSets" / "Segmentation"
    lists = {name: path for name in LISTS if (path := folder / f"{name}.txt").is_file()}
    if not lists:
        raise FileNotFoundError(f"{folder} has no list such as train.txt; unpack ImageSets of VOC 2012 there")
    splits = dict[str, list[SceneFiles]]()
    for name, path in lists.items():
        split = AUGMENTED_LISTS[0] if name in AUGMENTED_LISTS else name
        splits[split] = _listed(path, root, AUGMENTED if split == AUGMENTED_LISTS[0] else MASKS)
    in_val = {files.id for files in splits.get("val", [])}
    if AUGMENTED_LISTS[0] not in splits and "val" in splits and (root / AUGMENTED).is_dir():
        names = sorted(path.stem for path in (root / AUGMENTED).glob("*.png"))
        if names := [name for name in names if name not in in_val]:
            splits[AUGMENTED_LISTS[0]] = [_named(name, root, AUGMENTED) for name in names]
    for split in ("train", AUGMENTED_LISTS[0]):
        if both := [files.id for files in splits.get(split, []) if files.id in in_val]:
            raise ValueError(f"{both[0]} is in {split} and in val of {folder} ({len(both)} such); take them from one")
    return SceneFolder(CLASSES, splits)


def _listed(path: Path, root: Path, masks: str) -> list[SceneFiles]:
    """The files of a list of names or of paths."""
    lines = list_lines(path)
    if "/" in lines[0][1]:
        found = [SceneFiles(image.stem, image.stem, image, label, TABLE) for image, label in read_list(path, root)]
        return unique_ids(found, str(path))
    for number, name in lines:
        if name != Path(name).name or len(name.split()) > 1:
            raise ValueError(f"line {number} of {path} is {name[:60]!r} but must be a name such as 2007_000032")
    files = [_named(name, root, masks) for _, name in lines]
    lost = [(number, one) for (number, _), one in zip(lines, files, strict=True) if not one.image.is_file()]
    if lost:
        raise FileNotFoundError(
            f"line {lost[0][0]} of {path} names {lost[0][1].id!r} but {lost[0][1].image} does not exist ({len(lost)} "
            f"such, the last in line {lost[-1][0]}); unpack JPEGImages again"
        )
    return unique_ids(files, str(path))


def _named(name: str, root: Path, masks: str) -> SceneFiles:
    """The files of a name; a mask that is not there is met where the image is loaded."""
    if masks == AUGMENTED and not (root / AUGMENTED / f"{name}.png").is_file():
        masks = MASKS
    return SceneFiles(name, name, root / IMAGES / f"{name}.jpg", root / masks / f"{name}.png", TABLE)
