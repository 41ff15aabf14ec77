"""Metrics of segmented hearts (docs/rl4seg.md, Method 12).

Structures: ENDO = LV (the cavity), MYO = the myocardium, EPI = LV and MYO together. All methods are scored on one path:
`largest_heart` of the most probable labels. Masks without a structure follow the table of `metrics`: where it is in
neither mask Dice is 1 and the distance 0; where it is in one, Dice is 0 and the distance the image's diagonal.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..datasets.echo.images import LV, MYO
from ..datasets.images import ImagePool
from ..rewards.echo_validity import valid_masks
from ..rewards.morphology import biggest_components
from .hausdorff import hausdorff_mm
from .report import Column
from .results import Case

STRUCTURES = ("endo", "myo", "epi")
PAPER_BATCH = 32
METRICS = {
    one.name: one
    for one in (
        Column("dice_endo", "Dice ENDO", "%", 100, 1),
        Column("dice_myo", "Dice MYO", "%", 100, 1),
        Column("dice_epi", "Dice EPI", "%", 100, 1),
        Column("dice_avg", "Dice, ENDO and EPI", "%", 100, 1),
        Column("hd_endo_mm", "HD ENDO", "mm", 1, 1),
        Column("hd_myo_mm", "HD MYO", "mm", 1, 1),
        Column("hd_epi_mm", "HD EPI", "mm", 1, 1),
        Column("valid", "Anatomically valid", "%", 100, 1),
        Column("empty", "LV or MYO missing", "%", 100, 1),
    )
}
"""Columns of `echo_metrics` that `report.STANDARD` lacks, by name."""


def largest_heart(masks: Tensor) -> Tensor:
    """The masks without what is not joined by sides to the largest part of LV∪MYO; uint8 [N, H, W], labels 0..2.

    Of parts of one size the first, row by row, stays. A mask without a heart stays empty.

    Raises:
        ValueError: masks that are not uint8 [N, H, W], or labels above 2.
    """
    _check(masks)
    return masks * torch.from_numpy(biggest_components(masks.cpu().numpy() > 0)).to(masks.device)


def echo_metrics(preds: Tensor, truths: Tensor, spacing_mm: Tensor) -> dict[str, Tensor]:
    """Every metric of each of N images by name, float64 [N], on the CPU; the predictions are taken as they are.

    dice_endo, dice_myo, dice_epi; dice, mean of LV and MYO; dice_avg, mean of ENDO and EPI; hd_endo_mm, hd_myo_mm,
    hd_epi_mm, the largest distance between the boundaries; valid, 1 where the prediction obeys the anatomical rules;
    empty, 1 where it lacks LV or MYO; pixel_accuracy.

    preds, truths: uint8 [N, H, W] with labels 0..2 on one device; spacing_mm: [N, 2], (y, x) of a pixel.

    Raises:
        ValueError: masks that are not uint8 or not of one shape, labels above 2, spacings that are not positive.
    """
    _check(preds, truths)
    values = {}
    for name, p, g in zip(STRUCTURES, _structures(preds), _structures(truths), strict=True):
        values[f"dice_{name}"] = _dice(*(mask.flatten(1).sum(1) for mask in (p & g, p, g))).cpu()
        values[f"hd_{name}_mm"] = hausdorff_mm(p, g, spacing_mm)
    values["dice"] = (values["dice_endo"] + values["dice_myo"]) / 2
    values["dice_avg"] = (values["dice_endo"] + values["dice_epi"]) / 2
    values["valid"] = valid_masks(preds).double()
    lacks = [~(preds == label).flatten(1).any(dim=1) for label in (LV, MYO)]
    values["empty"] = (lacks[0] | lacks[1]).double().cpu()
    values["pixel_accuracy"] = (preds == truths).double().mean(dim=(1, 2)).cpu()
    return values


def echo_case_metrics(pred: Tensor, truth: Tensor, spacing_mm: Sequence[float]) -> dict[str, float]:
    """`echo_metrics` of one image: uint8 [H, W] with labels 0..2; spacing_mm: (y, x).

    Raises:
        ValueError: as there.
    """
    values = echo_metrics(pred[None], truth[None], torch.tensor([list(spacing_mm)], dtype=torch.float64))
    return {name: float(value) for name, value in values.items()}


def echo_cases(images: ImagePool, preds: Tensor) -> list[Case]:
    """The cases of a result: metrics of the `largest_heart` of each prediction, in the order of the images.

    An image without labels has `valid` only. Where some images have labels and others not, each case says
    so as `labelled`, 1 or 0: `report` then takes the means of what it lacks over the others.

    preds: uint8 [N, H, W] with labels 0..2, on any device.

    Raises:
        ValueError: predictions that do not match the images.
    """
    hearts = largest_heart(preds.to(images.images.device))
    _check(hearts, torch.zeros_like(images.images[:, 0]))
    cases: list[Case] = [
        {
            "case_id": images.ids[n],
            "origin": images.origin,
            "patient": images.groups[n],
            **{name: values[n] for name, values in images.tags.items()},
            "valid": float(valid),
        }
        for n, valid in enumerate(valid_masks(hearts).tolist())
    ]
    if (known := images.known_labels) is not None:
        metrics = echo_metrics(hearts[known.rows], known.labels, images.spacing_mm[known.rows])
        values = {name: of_images.tolist() for name, of_images in metrics.items()}
        for k, row in enumerate(known.rows):
            cases[row] |= {name: of_images[k] for name, of_images in values.items()}
        if len(known.rows) < len(images):
            cases = [{**case, "labelled": float(row in known.rows)} for row, case in enumerate(cases)]
    return cases


def subject_validity(cases: Sequence[Case]) -> float:
    """Share of the patients all of whose images (ED and ES, in every view) are valid, in [0, 1].

    Raises:
        ValueError: no cases.
    """
    if not cases:
        raise ValueError("no cases of which patients could be valid")
    valid: dict[str, bool] = {}
    for case in cases:
        valid[case["patient"]] = valid.get(case["patient"], True) and case["valid"] == 1
    return sum(valid.values()) / len(valid)


def dice_batch32(preds: Tensor, truths: Tensor) -> dict[str, float]:
    """Dice as the paper's program has it: pixels of 32 images in their order pooled, then the mean over these batches.

    Large hearts count more and empty masks hardly at all, so these are for comparison with the paper only. By name:
    dice_batch32 (mean of LV and MYO), dice_batch32_endo, dice_batch32_myo, dice_batch32_epi.

    Raises:
        ValueError: masks that are not uint8 [N, H, W] of one shape, or labels above 2.
    """
    _check(preds, truths)
    batch_of = torch.arange(len(preds), device=preds.device) // PAPER_BATCH
    batches = -(-len(preds) // PAPER_BATCH)
    values = {}
    for name, p, g in zip(STRUCTURES, _structures(preds), _structures(truths), strict=True):
        counts = (mask.flatten(1).sum(1) for mask in (p & g, p, g))
        pooled = (torch.zeros(batches, dtype=torch.int64, device=n.device).index_add(0, batch_of, n) for n in counts)
        values[f"dice_batch32_{name}"] = float(_dice(*pooled).mean())
    mean = (values["dice_batch32_endo"] + values["dice_batch32_myo"]) / 2
    return {"dice_batch32": mean, **values}


# -- helpers -------------------------------------------------------------------------------------------------------


def _structures(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ENDO, MYO, EPI: bool, of the shape of the masks."""
    return masks == LV, masks == MYO, masks != 0


def _dice(both: Tensor, in_pred: Tensor, in_truth: Tensor) -> Tensor:
    """Dice from numbers of pixels, float64."""
    total = in_pred + in_truth
    return torch.where(total > 0, 2 * both.double() / total.clamp(min=1), 1.0)


def _check(*masks: Tensor) -> None:
    shapes = [list(mask.shape) for mask in masks]
    if any(mask.dtype != torch.uint8 or mask.ndim != 3 or mask.shape != masks[0].shape for mask in masks):
        raise ValueError(f"masks must be uint8 [N, H, W] of one shape, got {[m.dtype for m in masks]} {shapes}")
    if 0 in masks[0].shape:
        raise ValueError(f"masks must not be empty arrays, got {shapes}")
    if (highest := max(int(mask.max()) for mask in masks)) > MYO:
        raise ValueError(f"masks hold the label {highest} but allowed are 0 background, 1 LV, 2 MYO")
