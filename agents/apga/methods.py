"""What a classifier learns from, as rows of one table (docs/apga.md, Method 17 and 18).

A method is the steps that it takes with each batch, the masks that its masked images are made with, and how its agent
learns. Everything about it stands in its row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...classifiers.gradcam import SELECTED, gradcam
from ...classifiers.masked_images import enlarge, erased, kept
from . import masks
from .config import APGAExperiment, MethodName, TrainOn
from .game import Batch, Game, look
from .learners import LEARNERS, Learner
from .updates import threshold

Step = Literal["plain", "agent", "masked", "cutout"]
"""Teach the classifier plain images; let the agent learn; teach masked images, or some with a random box erased."""
Select = Callable[[Game, Batch], Tensor]
"""The masks of a batch, a [B, 1, S, S]."""


def learned(game: Game, batch: Batch) -> Tensor:
    """The agent's mask: its threshold, or drawn, as `training.mask` says."""
    return enlarge(_cells(game, batch), game.size)


def program(game: Game, batch: Batch) -> Tensor:
    """The program's mask for the classifier: after the agent's step, and p = 0.5 selects, too."""
    return enlarge(threshold(_logits(game, batch, fresh=True), ties=True), game.size)


def of_others(game: Game, batch: Batch) -> Tensor:
    """The agent's masks of other images."""
    return enlarge(masks.others(_cells(game, batch)), game.size)


def elsewhere(game: Game, batch: Batch) -> Tensor:
    """As many cells as the agent selects in each image, anywhere."""
    cells = _cells(game, batch)
    return enlarge(masks.same_area(cells, torch.rand_like(cells)), game.size)


def share(game: Game, batch: Batch) -> Tensor:
    """Each cell with the chance `training.area`."""
    side = round(game.experiment.cells**0.5)
    drawn = torch.rand(len(batch.x), 1, side, side, device=batch.x.device) < (game.experiment.training.area or 0.0)
    return enlarge(drawn.float(), game.size)


def box(game: Game, batch: Batch) -> Tensor:
    """A random box."""
    return masks.boxes(batch.x)


def dropout(game: Game, batch: Batch) -> Tensor:
    """Each pixel by itself."""
    return masks.pixels(batch.x)


def cam(game: Game, batch: Batch) -> Tensor:
    """Where the class activation map of the classifier before the loop is above half of its range."""
    assert game.start is not None
    return (gradcam(game.start, batch.x) > SELECTED)[:, None].float()


def bright(game: Game, batch: Batch) -> Tensor:
    """What is brighter than Otsu's threshold."""
    return masks.foreground(batch.x)


@dataclass(frozen=True)
class Method:
    """One row."""

    steps: tuple[Step, ...]
    """With each batch, in this order."""
    select: Select | None = None
    """Makes the masks of the step "masked"."""
    train_on: TrainOn = "aid"
    """Masked images that teach, unless the experiment says otherwise."""
    learner: Learner | None = None
    """How the agent learns; None: there is none."""
    looks_back: bool = False
    """Whether it needs the classifier as it was before the loop."""

    def groups(self, *, joint: bool) -> list[tuple[Step, ...]]:
        """The steps; those that teach one after the other as one, if `joint`."""
        found = list[tuple[Step, ...]]()
        for step in self.steps:
            if joint and found and "agent" not in (step, *found[-1]):
                found[-1] = (*found[-1], step)
            else:
                found.append((step,))
        return found


ORDER: tuple[Step, ...] = ("agent", "plain", "masked")
TAUGHT: tuple[Step, ...] = ("plain", "masked")
REINFORCE = LEARNERS["reinforce"]
METHODS: dict[MethodName, Method] = {
    "none": Method(()),
    "none_2x": Method(("plain", "plain")),
    "cutout": Method(TAUGHT, box, "adv"),
    "gradcam": Method(("masked", "plain"), cam, looks_back=True),
    "foreground": Method(TAUGHT, bright),
    "pixel_dropout": Method(TAUGHT, dropout, "adv"),
    "random": Method(ORDER, elsewhere, learner=REINFORCE),
    "shuffled": Method(ORDER, of_others, learner=REINFORCE),
    "end2end": Method(("agent", "masked"), learned, learner=LEARNERS["end2end"]),
    "relaxed": Method(ORDER, learned, learner=LEARNERS["relaxed"]),
    "legacy": Method(("plain", "agent", "masked"), program, learner=LEARNERS["legacy"]),
    "reinforce": Method(ORDER, learned, learner=REINFORCE),
    "arm": Method(ORDER, learned, learner=LEARNERS["arm"]),
    "disarm": Method(ORDER, learned, learner=LEARNERS["disarm"]),
    "ppo": Method(ORDER, learned, learner=LEARNERS["ppo"]),
}


def method_of(experiment: APGAExperiment) -> Method:
    """The row of an experiment, as its options change it.

    Raises:
        ValueError: options that its method has no use for.
    """
    training = experiment.training
    row = METHODS[training.method]
    if training.area is not None:
        row = replace(row, steps=TAUGHT, select=share, learner=None)
    if training.train_on is not None:
        if row.select is None:
            raise ValueError(
                f"training.train_on is {training.train_on!r} but {training.method!r} masks nothing; leave it null"
            )
        steps = tuple(one for one in row.steps if one != "masked") if training.train_on == "none" else row.steps
        if "plain" not in steps and training.train_on == "none":
            raise ValueError(
                f"training.train_on is 'none' but method {training.method!r} has no step of plain images, from which "
                f"alone the classifier would learn; leave it null"
            )
        row = replace(row, steps=steps, train_on=training.train_on)
    if training.extra_cutout:
        row = replace(row, steps=(*row.steps, "cutout"))
    if training.joint_step and row.groups(joint=True) == row.groups(joint=False):
        raise ValueError(
            f"training.joint_step is true but method {training.method!r} has no two steps to join; leave it false"
        )
    if experiment.warm_up.epochs and (row.learner is None or training.method in ("legacy", "end2end")):
        raise ValueError(
            f"warm_up.epochs is {experiment.warm_up.epochs} but in method {training.method!r} no agent learns from a "
            f"frozen classifier; set it to 0, or take another method"
        )
    return row


def view(game: Game, batch: Batch, row: Method, step: Step) -> tuple[str, Tensor]:
    """The view that a step teaches: its name in the curves, and images [B, 1, S, S]."""
    if step == "plain":
        return step, batch.x
    if step == "cutout":
        return step, erased(batch.x, box(game, batch), batch.fill)
    assert row.select is not None
    mask = row.select(game, batch)
    keep, erase = kept(batch.x, mask, batch.fill), erased(batch.x, mask, batch.fill)
    if row.train_on == "both":
        chance = torch.rand(len(batch.x), 1, 1, 1, device=batch.x.device) < 0.5
        return "masked", torch.where(chance, keep, erase)
    return row.train_on, keep if row.train_on == "aid" else erase


def views(game: Game, batch: Batch, row: Method, steps: Sequence[Step]) -> list[tuple[str, Tensor]]:
    """The views of steps that are taken as one."""
    return [view(game, batch, row, step) for step in steps]


@torch.no_grad()
def _logits(game: Game, batch: Batch, *, fresh: bool) -> Tensor:
    if fresh or batch.logits is None:
        return look(game.agent, batch.x)[0]
    return batch.logits.detach()


def _cells(game: Game, batch: Batch) -> Tensor:
    """The agent's mask [B, 1, h, w]."""
    training = game.experiment.training
    logits = _logits(game, batch, fresh=training.fresh_aid)
    if training.mask == "sample":
        return (torch.rand_like(logits) < logits.sigmoid()).to(logits.dtype)
    return threshold(logits)
