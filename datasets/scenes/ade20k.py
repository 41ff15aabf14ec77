"""ADE20K (SceneParsing, 150 classes) on disk (docs/rp-pgd.md, Method 14).

images/{training,validation}/NAME.jpg
annotations/{training,validation}/NAME.png     0 = none of the classes, 1..150; or converted: 0..149 and 255
"""

from pathlib import Path

from ..images import IGNORED
from .files import SceneFiles, SceneFolder, class_table, unique_ids, value_table

NAMES = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, "
    "door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, "
    "field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, "
    "signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, "
    "stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, "
    "coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, "
    "swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, "
    "streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, "
    "ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, "
    "swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, "
    "trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, "
    "vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, "
    "glass, clock, flag"
)
CLASSES = tuple(NAMES.split(", "))
RAW = value_table({0: IGNORED} | {k + 1: k for k in range(len(CLASSES))})
"""Values of the annotations as they come."""
CONVERTED = class_table(len(CLASSES))
"""Values of the released program's annotations: one less, modulo 256."""
SPLITS = {"train": "training", "val": "validation"}


def find_ade20k(root: Path, *, converted: bool = False) -> SceneFolder:
    """The splits of ADE20K whose images are there.

    Args:
        root: the folder that has images and annotations.
        converted: annotations are 0..149 and 255. Nothing in a file says it for sure, so that it has to be known.

    Raises:
        FileNotFoundError: no image.
        ValueError: two images of one name.
    """
    table, splits = CONVERTED if converted else RAW, dict[str, list[SceneFiles]]()
    for split, folder in SPLITS.items():
        labels = root / "annotations" / folder
        found = [
            SceneFiles(image.stem, image.stem, image, labels / f"{image.stem}.png", table)
            for image in sorted((root / "images" / folder).glob("*.jpg"))
        ]
        if found:
            splits[split] = unique_ids(found, f"split {split}")
    if not splits:
        raise FileNotFoundError(f"no image in {root / 'images'}: expected {{training,validation}}/NAME.jpg")
    return SceneFolder(CLASSES, splits)
