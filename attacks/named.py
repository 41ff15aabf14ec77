"""Attacks by a name that says how they are used: "pgd_20", "apgd_masked_ce_300", "sea", "clean"; presets of them.

A name is that of a family, with its number of steps behind it where it may be chosen (docs/rp-pgd.md, Method 26).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..common.checks import check_choice, closest_choice
from .apgd import OBJECTIVES, ONE_RADIUS, SEA_LOSSES_V1, apgd, sea
from .budget import Bounds, Epsilon, LinfBall, per_image, signed_noise
from .dag import dag
from .fab import fab
from .methods import ATTACKS, PROTOTYPICAL
from .padam import padam
from .restarts import pgd_restarts, trades
from .square import square
from .transfer import transfer
from .vafa import vafa

Kind = Literal["none", "noise", "white", "black", "free"]
"""What an attack knows: nothing is done; nothing; the model's gradients; its outputs, or other models, alone. "free":
its gradients, and it has a radius of its own, so that it stands beside no other attack."""
Need = Literal["feature_layer", "class_counts", "surrogates", "three_classes"]
"""What only some attacks need beside the budget."""
GRID_STEPS = (3, 5, 7, 10, 20, 40, 100)
"""Steps of the preset `grid`."""


class AttackFunction(Protocol):
    """What every attack can be called as; contract as that of `Attack`."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        eps: Epsilon,
        bounds: Bounds,
        ignore_index: int,
        generator: torch.Generator | None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Family:
    """Attacks of one name but for their number of steps."""

    title: str
    function: Any
    kind: Kind = "white"
    steps: int | None = 10
    """Where the name has none; None: the name may have none."""
    needs: tuple[Need, ...] = ()
    eps: str | None = None
    """Its own radius, whatever was asked for."""


@dataclass(frozen=True)
class NamedAttack:
    """An attack with all that its name says; `named_attack` makes it, or a user of a function of their own."""

    name: str
    """As it was asked for, and in results."""
    title: str
    """For tables and figures."""
    function: AttackFunction
    kind: Kind = "white"
    family: str = ""
    """Attacks of one family differ in the number of steps alone."""
    steps: int | None = None
    needs: tuple[Need, ...] = ()
    eps: Epsilon | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        eps: Epsilon,
        bounds: Bounds = (0.0, 1.0),
        ignore_index: int = 255,
        generator: torch.Generator | None = None,
        feature_layer: str | None = None,
        class_counts: Tensor | None = None,
        surrogates: Sequence[nn.Module] = (),
    ) -> Tensor:
        """Adversarial images; of the last three, the function is handed what it needs."""
        known = {"feature_layer": feature_layer, "class_counts": class_counts, "surrogates": surrogates}
        return self.function(
            model,
            images,
            labels,
            eps=self.eps or eps,
            bounds=bounds,
            ignore_index=ignore_index,
            generator=generator,
            **{name: known[name] for name in self.needs if name in known},
            **self.arguments,
        )


def clean(model: nn.Module, images: Tensor, labels: Tensor, **_: object) -> Tensor:
    """The images as they are."""
    return images


def random_signs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Epsilon,
    bounds: Bounds = (0.0, 1.0),
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Each value moved by the radius, up or down by chance: what damage of this size costs without looking."""
    ball = LinfBall.around(images, eps.value, bounds)
    moved = ball.project(ball.images + ball.radius * signed_noise(ball.images, generator).sign())
    active = (labels != ignore_index).flatten(1).any(dim=1)
    return torch.where(per_image(active, images), moved, ball.images)


PLAIN_APGD = partial(apgd, radii=ONE_RADIUS, keep="dice")
"""APGD in one ball, of whose images the lowest Dice is kept."""
FAMILIES: Mapping[str, Family] = {
    "clean": Family("Clean", clean, "none", None),
    "random": Family("Random signs", random_signs, "noise", None),
    "fgsm": Family("FGSM", ATTACKS["fgsm"], steps=None),
    "bim2": Family("BIM, 2 steps of 0.01", partial(ATTACKS["bim"], steps=2, step_size=0.01), steps=None),
    "unbounded": Family(
        "Unbounded PGD", partial(ATTACKS["pgd"], steps=20, step_size=0.1, random_start=False), "free", None, eps="1"
    ),
    **{
        name: Family(attack.title, attack, needs=("feature_layer",) if name in PROTOTYPICAL else ())
        for name, attack in ATTACKS.items()
        if not attack.single
    },
    **{
        f"apgd_{loss}": Family(
            f"APGD {loss.replace('_', ' ')}",
            partial(apgd, loss=loss),
            steps=300,
            needs=("class_counts",) if OBJECTIVES[loss].balanced else (),
        )
        for loss in OBJECTIVES
    },
    "sea": Family("SEA", sea, steps=300, needs=("class_counts",)),
    "padam_ce": Family("PAdam CE", partial(padam, loss="ce"), steps=200),
    "padam_cos": Family("PAdam cos", partial(padam, loss="cos"), steps=200),
    "dag": Family("DAG", dag, steps=200),
    "dag_free": Family("DAG, any radius", dag, "free", 200, eps="1"),
    "square": Family("Square", square, "black", 1000),
    "transfer": Family("Transfer", transfer, "black", 10, needs=("surrogates",)),
    "trades": Family("TRADES KL", trades),
    "seat_pgd": Family("PGD, 5 restarts", pgd_restarts, steps=5),
    "seat_apgd": Family("APGD, 5 restarts", partial(PLAIN_APGD, loss="ce", restarts=5), steps=5),
    "seat_apgd_dlr": Family(
        "APGD dlr, 5 restarts", partial(PLAIN_APGD, loss="dlr", restarts=5), steps=5, needs=("three_classes",)
    ),
    "seat_square": Family("Square of Dice, few windows", partial(square, objective="dice", shrink=False), "black", 5),
    **{
        f"{name}_by_dice": Family(f"{title}, lowest Dice", partial(pgd_restarts, loss=loss, restarts=1), steps=20)
        for name, title, loss in (("pgd", "PGD", "ce"), ("segpgd", "SegPGD", "segpgd"), ("cospgd", "CosPGD", "cospgd"))
    },
    **{
        f"apgd_{loss}_by_dice": Family(
            f"APGD {loss}, lowest Dice".replace("_", " "), partial(PLAIN_APGD, loss=loss), steps=50
        )
        for loss in ("ce", "dlr", "dice_ce")
    },
    "sea_by_dice": Family("SEA, lowest Dice", partial(sea, losses=SEA_LOSSES_V1, keep="dice"), steps=60),
    "square_by_dice": Family("Square of Dice", partial(square, objective="dice"), "black", 1000),
    "fab": Family("FAB, lowest Dice", fab, steps=20),
    "vafa_q20": Family("VAFA, q to 20", partial(vafa, q_max=20), "free", 20, eps="1"),
    "vafa_q30": Family("VAFA, q to 30", partial(vafa, q_max=30), "free", 20, eps="1"),
}
"""Families by name."""
PRESETS: Mapping[str, tuple[str, ...]] = {
    "reference": ("clean", "fgsm", "bim2"),
    "grid": ("clean", "fgsm", "pgd_N", "segpgd_N", "cospgd_N", "cw_linf_N", "rp_global_N", "rp_pgd_N", "rp_pgd_pp_N"),
    "sea": ("clean", "apgd_masked_ce", "apgd_masked_balanced_ce", "apgd_js"),
    "battery": (
        "clean", "fgsm", "bim2", "pgd_40", "mi_fgsm_40", "segpgd_40", "cospgd_40", "masked_ce_40", "js_40",
        "cw_linf_40", "rp_global_40", "rp_pgd_40", "rp_pgd_pp_40",
        "apgd_masked_ce", "apgd_masked_balanced_ce", "apgd_js", "padam_ce", "padam_cos", "dag", "dag_free", "square",
        "transfer",
    ),
    "seat": ("clean", "seat_pgd", "seat_apgd", "seat_square"),
    "rog": ("clean", "seat_apgd", "seat_pgd", "fab_5", "seat_square", "seat_apgd_dlr"),
    "strict": (
        "clean", "pgd_by_dice", "apgd_ce_by_dice", "apgd_dice_ce_by_dice", "square_by_dice", "segpgd_by_dice",
        "cospgd_by_dice", "sea_by_dice",
    ),
}  # fmt: skip
"""Presets by name; N stands for each of the given numbers of steps."""


def named_attack(name: str) -> NamedAttack:
    """The attack that has this name: a family's, or one with a number of steps behind it, such as "pgd_20".

    Raises:
        ValueError: no family of that name, or steps that are 0 or that it has not.
    """
    match = re.fullmatch(r"(.+)_(\d+)", name)
    own, steps = (match[1], int(match[2])) if match and name not in FAMILIES else (name, None)
    if own not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"there is no attack {name!r}; there are {known}{closest_choice(own, FAMILIES)}")
    family = FAMILIES[own]
    if steps is not None and (family.steps is None or steps < 1):
        rule = "takes no number of steps" if family.steps is None else "needs at least 1 step"
        raise ValueError(f"attack {name!r}: {own} {rule}")
    count = family.steps if steps is None else steps
    return NamedAttack(
        name, family.title if count is None else f"{family.title}, {count} steps", family.function, family.kind, own,
        count, family.needs, None if family.eps is None else Epsilon.parse(family.eps),
        {} if count is None else {"steps": count},
    )  # fmt: skip


def preset(name: str, steps: Sequence[int] = GRID_STEPS) -> list[NamedAttack]:
    """The attacks of a preset; `steps` are those that stand for N.

    Raises:
        ValueError: no preset of that name, or no steps.
    """
    check_choice("attacks", name, PRESETS)
    if not steps:
        raise ValueError("steps is empty but must name at least one number of steps")
    names = [one for one in PRESETS[name] if not one.endswith("_N")]
    names += [f"{one[:-1]}{count}" for one in PRESETS[name] if one.endswith("_N") for count in steps]
    return [named_attack(one) for one in names]
