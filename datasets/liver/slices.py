"""Axial slices of liver CTs as a pool of images, for what works in two dimensions (docs/rp-pgd.md, Method 14)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...common.checks import check_choice
from ..images import ImagePool
from ..sample import BadSample
from .cases import CLASSES, LiverCase, LiverDataConfig, iter_liver_cases
from .lesions import LIVER, TUMOUR

NAMES = ("background", "liver", "tumour")
"""Name of each class."""
Slices = Literal["liver", "tumour", "all"]


@dataclass(frozen=True)
class LiverSliceConfig(LiverDataConfig):
    """Which axial slices of which liver CTs are used.

    Raises:
        ValueError: a value outside its range.
    """

    slices: Slices = "tumour"
    """Slices of each volume: those with liver, with tumour, or all."""


def load_slices(
    config: LiverDataConfig, which: Slices = "liver", on_bad: Callable[[BadSample], object] | None = None
) -> ImagePool:
    """Axial slices of all cases that the configuration names, their intensity window as [0, 1].

    Rows grow to the back and columns to the patient's left, as radiologists look at them. A group is a case.

    Args:
        config: data, cases, working grid and intensity window.
        which: liver: slices with liver or tumour; tumour: those with tumour; all: every slice.
        on_bad: by default a bad CT raises. Otherwise it is logged, handed to `on_bad` and left out.

    Raises:
        FileNotFoundError: a missing folder or file.
        ValueError: an unknown split or case, a bad file, a case without labels where these choose the slices, or no
            slice at all.

    >>> from segarena.datasets.liver.cases import LiverDataConfig
    >>> from segarena.datasets.liver.slices import load_slices
    >>> pool = load_slices(LiverDataConfig(cases=["phantom_3000"]), "tumour")
    >>> pool.images.shape[1:], pool.groups[0], pool.labels.unique().tolist()
    (torch.Size([1, 64, 64]), 'phantom_03000', [0, 1, 2])
    """
    check_choice("slices", which, get_args(Slices))
    parts = [part for case in iter_liver_cases(config, on_bad) if (part := _slices_of(case, which)) is not None]
    if not parts:
        raise ValueError(f"no slice of the chosen cases shows {which}; name other cases, or choose slices='all'")
    return ImagePool.concatenate(parts)


def _slices_of(case: LiverCase, which: Slices) -> ImagePool | None:
    """The slices of one case; None: there is none."""
    if case.label is None and which != "all":
        raise ValueError(f"{case.id} has no labels, by which slices with {which} are found; choose slices='all'")
    shown = torch.ones(case.image.shape[2], dtype=torch.bool)
    if case.label is not None and which != "all":
        shown = (case.label >= (LIVER if which == "liver" else TUMOUR)).any(dim=0).any(dim=0)
    numbers = shown.nonzero().flatten().tolist()
    if not numbers:
        return None
    x_mm, y_mm, _ = case.spacing_mm
    return ImagePool(
        images=_displayed(case.image)[numbers][:, None],
        labels=None if case.label is None else _displayed(case.label)[numbers],
        ids=[f"{case.id}_z{number:03d}" for number in numbers],
        groups=[case.id] * len(numbers),
        tags={},
        spacing_mm=torch.tensor([[y_mm, x_mm]] * len(numbers), dtype=torch.float64),
        classes=NAMES[:CLASSES],
        origin=case.origin,
    )


def _displayed(volume: Tensor) -> Tensor:
    """Slices [Z, Y, X] of a volume [X, Y, Z] in RAS+, front and the patient's right first."""
    return volume.permute(2, 1, 0).flip(1, 2).contiguous()
