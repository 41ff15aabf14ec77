"""Body parts of MURA: their folders, and the published numbers of images and studies (docs/apga.md, Method 2)."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from .files import XrayFile

BodyPart = Literal["elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist"]
PARTS = {part: f"XR_{part.upper()}" for part in get_args(BodyPart)}
"""Folder of each part."""


class Counts(NamedTuple):
    """Numbers of one part: negative, positive."""

    train_images: tuple[int, int]
    valid_images: tuple[int, int]
    train_studies: tuple[int, int]
    valid_studies: tuple[int, int]


PUBLISHED = {
    "elbow": Counts((2925, 2006), (235, 230), (1094, 660), (92, 66)),
    "finger": Counts((3138, 1968), (214, 247), (1280, 655), (92, 83)),
    "forearm": Counts((1164, 661), (150, 151), (590, 287), (69, 64)),
    "hand": Counts((4059, 1484), (271, 189), (1497, 521), (101, 66)),
    "humerus": Counts((673, 599), (148, 140), (321, 271), (68, 67)),
    "shoulder": Counts((4211, 4168), (285, 278), (1364, 1457), (99, 95)),
    "wrist": Counts((5765, 3987), (364, 295), (2134, 1326), (140, 97)),
}
"""Of MURA v1.1."""


def counts_of(files: Iterable[XrayFile]) -> dict[str, Counts]:
    """The numbers of each part of which there are files, in the order of `PARTS`."""
    listed = list(files)
    images = Counter((one.part, one.split, one.label) for one in listed)
    studies = Counter((part, split, label) for _, part, split, label in {_study(one) for one in listed})
    return {
        part: Counts(
            *(
                (count[part, split, 0], count[part, split, 1])
                for count in (images, studies)
                for split in ("train", "valid")
            )
        )
        for part in PARTS
        if any((part, split, label) in images for split in ("train", "valid") for label in (0, 1))
    }


def differences(files: Iterable[XrayFile]) -> list[str]:
    """What differs between these files of MURA and what was published, in words; empty where nothing does."""
    found = counts_of(files)
    return [
        f"{part}: {one} {name.replace('_', ' ')} (negative, positive) instead of {published}"
        for part, known in PUBLISHED.items()
        for name, one, published in zip(Counts._fields, found.get(part, Counts(*((0, 0),) * 4)), known, strict=True)
        if one != published
    ]


def _study(one: XrayFile) -> tuple[str, str, str, int]:
    return one.study, one.part, one.split, one.label
