"""Robustness of a segmentation model: attacks on labelled images, and what they leave of its metrics, in one call.

    report = robustness_report(model, images, labels, eps="8/255", attacks=["clean", "pgd_20"], out="robustness")
    print(report)

Each attack leaves one JSON file in `out`, written when it is whole, so that the same call goes on where it was killed
(docs/rp-pgd.md, Method 26 and 27).
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..attacks.budget import Bounds, Epsilon
from ..attacks.named import GRID_STEPS, NamedAttack, Need, named_attack, preset
from ..attacks.victim import frozen
from ..common.checks import AT_LEAST_1, check_choice, check_range
from ..common.names import check_name
from ..common.progress import Bar, Progress
from .robustness_metrics import Absent
from .robustness_report import RobustnessReport
from .robustness_results import read_attack_results
from .robustness_run import Evaluation, Needs, logits_of

Budget = float | str | Fraction | Epsilon
SANITY = ("random", "unbounded")
"""Attacks that only check the others."""


def robustness_report(
    model: nn.Module,
    images: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    *,
    eps: Budget | Sequence[Budget] = "8/255",
    attacks: str | Sequence[str | NamedAttack] = "reference",
    steps: Sequence[int] = GRID_STEPS,
    name: str = "model",
    classes: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    batch_size: int = 8,
    bounds: Bounds | Literal["image"] = (0.0, 1.0),
    ignore_index: int = 255,
    feature_layer: str | None = None,
    class_counts: Tensor | None = None,
    surrogates: Sequence[nn.Module] = (),
    absent: Absent = "skip",
    sanity: bool = True,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> RobustnessReport:
    """Attack a model on labelled images and report what is left of its segmentation.

    The model is used in evaluation mode, on the device of its parameters, and left as it was.

    Args:
        model: gives logits [B, K, *spatial] of images [B, C, *spatial] in their own units, with two or three spatial
            axes; what normalises them belongs into it (`Normalized`).
        images: floating point [N, C, *spatial], or a list of [C, *spatial] of any sizes.
        labels: integers [N, *spatial] in 0 .. K - 1, or `ignore_index`; or a list.
        eps: radius or radii as a share of high - low, in (0, 1]: 0.03, "8/255", ["2/255", "4/255"].
        attacks: a preset (reference, grid, sea, battery; seat, rog, strict for volumes), or names such as ["clean",
            "pgd_20", "sea_60"], or attacks of your own (`NamedAttack`). Clean images are always looked at.
        steps: of the preset `grid`.
        name: of the model, in tables and files.
        classes: name of each class; numbers by default.
        ids: name of each image; numbers by default.
        batch_size: images that go through the model at once; those of one batch have one size.
        bounds: (low, high) of all images, numbers or tensors that broadcast to a batch; or "image": the range of each
            image and channel.
        ignore_index: label of pixels that count for nothing.
        feature_layer: submodule whose output RP-PGD and RP-PGD++ make prototypes of. Without it a preset leaves them
            out.
        class_counts: pixels of each class in the training set, [K], for SEA; those of `labels` by default.
        surrogates: other models, for attacks by transfer. Without them a preset leaves these out.
        absent: how mIoU and mAcc take a class that is in no image: "skip", or "zero".
        sanity: attack with random signs and without a bound too, so that the checks of the report can be made.
        seed: of random starts, and of the search for the worst case.
        out: folder for the JSON files, and for a page (index.md) with figures of all results on these images there.
            Results that lie there are not computed again.
        progress: show it.

    Raises:
        ValueError: names what was given, what is allowed, and the way out; results in `out` of other data, weights or
            settings; an attack that leaves its ball; logits that are not finite.
    """
    budgets = [Epsilon.parse(one) for one in ([eps] if isinstance(eps, str) or not isinstance(eps, Sequence) else eps)]
    if not budgets:
        raise ValueError("eps is empty but must name at least one radius")
    check_name(name)
    check_range("batch_size", batch_size, AT_LEAST_1)
    check_choice("absent", absent, get_args(Absent))
    have: set[Need] = {"class_counts"}
    have |= {"feature_layer"} if feature_layer is not None else set()
    have |= {"surrogates"} if surrogates else set()
    pairs = _pairs(images, labels)
    known = [*map(str, range(len(pairs)))] if ids is None else [*ids]
    if len(known) != len(pairs) or len({*known}) < len(known):
        raise ValueError(f"ids are {len(known)} names but there are {len(pairs)} images, each with a name of its own")
    parameter = next(model.parameters(), None)
    device = pairs[0][0].device if parameter is None else parameter.device
    with frozen(model):
        number = logits_of(model, pairs[0][0][None].to(device)).shape[1]
        have |= {"three_classes"} if number > 2 else set()
        chosen, left_out = _chosen(attacks, steps, have, sanity)
        _check_labels(pairs, number, ignore_index)
        if classes is not None and len(classes) != number:
            raise ValueError(f"classes are {len(classes)} names but the model gives logits of {number} classes")
        evaluation = Evaluation(
            model=model,
            name=name,
            pairs=pairs,
            ids=known,
            classes=[*map(str, range(number))] if classes is None else [*classes],
            device=device,
            batch_size=batch_size,
            bounds=bounds,
            ignore_index=ignore_index,
            needs=Needs(feature_layer, _counts(class_counts, pairs, number, ignore_index), tuple(surrogates)),
            seed=seed,
            out=None if out is None else Path(out),
        )
        depends = evaluation.depends()
        jobs = [(one, budget) for one in chosen for budget in _budgets(one, budgets)]
        results = []
        with Progress().bar(len(jobs) * len(pairs), title=name, unit="image", silent=not progress) as bar:
            for done, (one, budget) in enumerate(jobs):
                results.append(evaluation.result(one, budget, depends, partial(_reach, bar, done * len(pairs))))
                bar.reach((done + 1) * len(pairs))
    if out is not None:
        there = [one for one in read_attack_results(out) if one.depends.get("data") == depends["data"]]
        RobustnessReport(there, absent, left_out, seed).write(out)
    return RobustnessReport(results, absent, left_out, seed)


def _reach(bar: Bar, before: int, number: int) -> None:
    bar.reach(before + number)


def _chosen(
    attacks: str | Sequence[str | NamedAttack], steps: Sequence[int], have: set[Need], sanity: bool
) -> tuple[list[NamedAttack], list[str]]:
    """The attacks to make, clean images first, and the names of those that a preset has to leave out."""
    if isinstance(attacks, str):
        asked = preset(attacks, steps)
        left_out = [one.name for one in asked if {*one.needs} - have]
        found = [one for one in asked if one.name not in left_out]
    else:
        found = [named_attack(one) if isinstance(one, str) else one for one in attacks]
        left_out = []
        for one in found:
            if lacking := {*one.needs} - have:
                raise ValueError(f"attack {one.name!r} needs {' and '.join(sorted(lacking))}: give it, or leave it out")
    names = [one.name for one in found]
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise ValueError(f"attacks name {twice} more than once")
    others = [one for one in found if one.name != "clean"]
    checks = [named_attack(one) for one in SANITY if sanity and one not in names]
    return [named_attack("clean"), *others, *checks], left_out


def _budgets(attack: NamedAttack, budgets: Sequence[Epsilon]) -> list[Epsilon | None]:
    if attack.kind == "none":
        return [None]
    return [attack.eps] if attack.eps is not None else [*budgets]


def _pairs(images: Tensor | Sequence[Tensor], labels: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"there are {len(images)} images and {len(labels)} labels but there must be as many of both, at least one"
        )
    pairs = [*zip(images, labels, strict=True)]
    for number, (image, label) in enumerate(pairs):
        if image.dim() not in (3, 4) or not image.is_floating_point() or image.numel() == 0:
            raise ValueError(
                f"image {number} is {image.dtype} {[*image.shape]} but must be floating point [C, *spatial] with two "
                "or three spatial axes"
            )
        if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
            raise ValueError(f"label {number} is {label.dtype} but must be integers")
        if label.shape != image.shape[1:]:
            raise ValueError(
                f"label {number} is {[*label.shape]} but its image of {[*image.shape]} needs {[*image.shape[1:]]}, one "
                "label for each pixel"
            )
    return pairs


def _check_labels(pairs: Sequence[tuple[Tensor, Tensor]], classes: int, ignore_index: int) -> None:
    for number, (_, label) in enumerate(pairs):
        wrong = (label != ignore_index) & ((label < 0) | (label >= classes))
        if bool(wrong.any()):
            raise ValueError(
                f"label {number} has values {sorted({*label[wrong].tolist()})} but the model has classes 0 .. "
                f"{classes - 1}, and ignore_index is {ignore_index}"
            )


def _counts(given: Tensor | None, pairs: Sequence[tuple[Tensor, Tensor]], classes: int, ignore_index: int) -> Tensor:
    """Pixels of each class, [K], as given or of the labels."""
    if given is not None and given.shape != (classes,):
        raise ValueError(f"class_counts are {[*given.shape]} but must be [{classes}], one for each class")
    found = torch.zeros(classes, dtype=torch.int64)
    for _, label in pairs:
        found += torch.bincount(label[label != ignore_index].long().cpu(), minlength=classes)
    return found if given is None else given
