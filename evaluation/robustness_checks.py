"""Checks that an evaluation of robustness can be believed: each says whether it holds, and what it means where it does
not (docs/rp-pgd.md, Method 28)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from .robustness_metrics import Absent, metrics
from .robustness_results import AttackResult

TOLERANCE = 0.01
"""Of mIoU: what chance may do."""
BROKEN = 0.1
"""Share of the clean pixel accuracy that an attack without a bound may leave."""
ZEROS = 0.5
"""Share of values without any gradient from which it counts as masked."""
PLAIN = ("fgsm", "bim2", "bim", "pgd", "unbounded")
"""Families that raise the cross-entropy of every pixel, whose gradient should be 0 nowhere."""


class Check(NamedTuple):
    """One check of one model."""

    name: str
    model: str
    passed: bool
    text: str
    """What was found and, where it did not pass, what that means."""


def checks(results: Sequence[AttackResult], absent: Absent = "skip") -> list[Check]:
    """All checks that the results of the models allow, those that did not pass first."""
    found = []
    miou = {id(one): metrics(one.counts, absent).miou for one in results}
    for model in dict.fromkeys(one.model for one in results):
        of_model = [one for one in results if one.model == model]
        for name, rule in RULES.items():
            complaints = [*rule(of_model, lambda one: miou[id(one)])]
            if complaints:
                failed = [text for text in complaints if text]
                found.append(Check(name, model, not failed, " ".join(failed) or "as it should be"))
    return sorted(found, key=lambda one: one.passed)


MeanIoU = Callable[[AttackResult], float]
Complaints = Iterator[str]
"""For each comparison that can be made a text, "" where it turned out as it should."""


def _harm(results: Sequence[AttackResult], miou: MeanIoU) -> Complaints:
    clean = [one for one in results if one.kind == "none"]
    for one in results:
        if clean and one.kind == "white":
            yield (
                f"{_named(one)} raises the mIoU of clean images: do labels and classes of the model belong together?"
                if miou(one) > miou(clean[0]) + TOLERANCE
                else ""
            )


def _more_steps(results: Sequence[AttackResult], miou: MeanIoU) -> Complaints:
    for family, eps in dict.fromkeys((one.family, one.eps) for one in results if one.kind == "white"):
        line = [one for one in results if (one.family, one.eps) == (family, eps) and one.steps is not None]
        line.sort(key=lambda one: one.steps or 0)
        for few, many in pairwise(line):
            yield (
                f"{_named(many)} is weaker than {few.attack}: its steps do not add up; try other step sizes and starts."
                if miou(many) > miou(few) + TOLERANCE
                else ""
            )


def _larger_eps(results: Sequence[AttackResult], miou: MeanIoU) -> Complaints:
    for attack in dict.fromkeys(one.attack for one in results if one.kind in ("white", "black")):
        line = sorted((one for one in results if one.attack == attack), key=lambda one: one.radius)
        for small, large in pairwise(line):
            yield (
                f"{_named(large)} is weaker than with eps {small.eps}: the attack gets stuck; gradients may be masked."
                if miou(large) > miou(small) + TOLERANCE
                else ""
            )


def _unbounded(results: Sequence[AttackResult], miou: MeanIoU) -> Complaints:
    clean = [one for one in results if one.kind == "none"]
    for one in results:
        if one.family == "unbounded" and clean:
            left, whole = (metrics(result.counts).aacc for result in (one, clean[0]))
            yield (
                f"Without a bound {100 * left:.1f} % of the pixels are still right, of {100 * whole:.1f} %, and nearly "
                "none should be: gradients are masked, or the model hardly looks at its input."
                if left > BROKEN * whole
                else ""
            )


def _noise(results: Sequence[AttackResult], miou: MeanIoU) -> Complaints:
    for noise in (one for one in results if one.kind == "noise"):
        strongest = _strongest(results, noise.eps, "white", miou)
        if strongest is not None:
            yield (
                f"Random signs of eps {noise.eps} do as much harm as {strongest.attack}, the strongest attack with "
                "gradients: these lead nowhere."
                if miou(noise) <= miou(strongest)
                else ""
            )


def _gradient(results: Sequence[AttackResult], miou: MeanIoU) -> Complaints:
    for one in results:
        if one.family in PLAIN and one.zero_gradient is not None:
            yield (
                f"{_named(one)}: {100 * one.zero_gradient:.0f} % of the first gradient is exactly 0; it is masked, or "
                "runs out of the precision of its numbers; look at a loss of logits (cw_linf) and at black-box ones."
                if one.zero_gradient > ZEROS
                else ""
            )


def _black_box(results: Sequence[AttackResult], miou: MeanIoU) -> Complaints:
    for eps in dict.fromkeys(one.eps for one in results if one.kind == "black"):
        black, white = (_strongest(results, eps, kind, miou) for kind in ("black", "white"))
        if black is not None and white is not None:
            yield (
                f"{_named(black)}, without gradients, is stronger than {white.attack}, the strongest attack that has "
                "them: gradients are masked."
                if miou(black) < miou(white) - TOLERANCE
                else ""
            )


def _one_step(results: Sequence[AttackResult], miou: MeanIoU) -> Complaints:
    for single in (one for one in results if one.family == "fgsm"):
        several = [one for one in results if one.family not in ("fgsm", "bim2")]  # bim2 may not reach the radius
        strongest = _strongest(several, single.eps, "white", miou)
        if strongest is not None:
            yield (
                f"{_named(single)}, one step, is stronger than {strongest.attack}, the strongest with several: these "
                "have too few, or too small ones, or gradients mislead."
                if miou(single) < miou(strongest) - TOLERANCE
                else ""
            )


RULES: dict[str, Callable[[Sequence[AttackResult], MeanIoU], Complaints]] = {
    "an attack does harm": _harm,
    "more steps do no less": _more_steps,
    "a larger radius does no less": _larger_eps,
    "nothing is left without a bound": _unbounded,
    "chance does less than gradients": _noise,
    "there is a gradient": _gradient,
    "black-box attacks do less than white-box ones": _black_box,
    "one step does less than several": _one_step,
}
"""Checks by name; a report lists those that its attacks allow."""


def _strongest(results: Iterable[AttackResult], eps: str, kind: str, miou: MeanIoU) -> AttackResult | None:
    there = [one for one in results if (one.eps, one.kind) == (eps, kind)]
    return min(there, key=miou, default=None)


def _named(one: AttackResult) -> str:
    return f"{one.attack} (eps {one.eps})"
