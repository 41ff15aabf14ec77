"""The joint loop of agent and classifier, for every method of the table (docs/apga.md, Method 17).

A step of a loop is an epoch. Each looks at the validation images once, whatever the method.
"""

import json
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.optim import Adam

from ...classifiers.masked_images import enlarge, erased, fill_of, kept
from ...classifiers.train_xray import CURVES, classifier_loss
from ...classifiers.xray import XrayClassifier, probabilities
from ...common.files import write_text
from ...common.finite import NotFiniteError
from ...common.fitting import Scalars, fit, shuffled_rows
from ...common.runs import Run
from ...datasets.xray.images import XrayPool
from ...evaluation.classification import image_metrics
from ...evaluation.drawing import Bytes
from ...evaluation.mask_panels import mask_panel
from .config import APGAExperiment
from .game import Game, Players, look
from .methods import Method, Step, views
from .updates import threshold

NAME = "classifier"
"""Prefix of the curves that do not name theirs."""
SHOWN = 4
"""Validation images in TensorBoard's picture."""
BAD = "not_finite.json"
"""File with the images of the first batch whose reward was not finite."""
AT_ONCE = 64


def train_jointly(
    players: Players,
    row: Method,
    pool: XrayPool,
    val: XrayPool,
    experiment: APGAExperiment,
    run: Run,
    seed: int,
    *,
    start: XrayClassifier | None = None,
) -> dict[str, float]:
    """Train both networks, which then are those of the epoch of the highest validation accuracy, in eval mode.

    A run that was killed and resumed ends, on the CPU, with the same weights, bit for bit, as one that was not.

    Args:
        players: are changed; on the device of the images.
        row: the method.
        pool: training images.
        val: validation images, of at least two classes, which choose the epoch.
        experiment: see there.
        run: the stage: receives curves, pictures and checkpoints.
        seed: of masks and the order of the images.
        start: the classifier as it was before the loop, for a method that looks back.

    Returns:
        The scalars of that epoch, and its number as "epoch".

    Raises:
        NotFiniteError: a reward, loss or weight is NaN or infinite; the images of the batch stand in not_finite.json.
    """
    training = experiment.training
    groups = [{"params": players.classifier.parameters(), "lr": training.learning_rate}]
    if players.agent is not None:
        groups.append({"params": players.agent.parameters(), "lr": experiment.agent_rate})
    game = Game(players, Adam(groups), pool, experiment, start)
    loop = Loop(game, row, row.groups(joint=training.joint_step), val, run)
    return loop.fit(training.epochs, seed, patience=training.patience + 1)


def warm_up(
    players: Players, row: Method, pool: XrayPool, val: XrayPool, experiment: APGAExperiment, run: Run, seed: int
) -> dict[str, float]:
    """Train the agent alone, while the classifier is frozen; the last epoch stays. Arguments as `train_jointly`."""
    config = experiment.warm_up
    assert players.agent is not None
    rate = config.learning_rate or experiment.agent_rate
    game = Game(players, Adam(players.agent.parameters(), lr=rate), pool, experiment)
    players.requires_grad_(True).classifier.requires_grad_(False)
    game.remember_plain()
    try:
        return Loop(game, row, [("agent",)], val, run).fit(config.epochs, seed, patience=None)
    finally:
        players.requires_grad_(True)


class Loop:
    """What an epoch is, and how it is judged.

    Args:
        game: networks, images, optimiser.
        row: the method.
        groups: its steps with a batch, those of one group together.
        val: validation images.
        run: the stage.
    """

    def __init__(self, game: Game, row: Method, groups: Sequence[Sequence[Step]], val: XrayPool, run: Run) -> None:
        self.game, self.row, self.groups, self.val, self.run = game, row, groups, val, run
        self.teaches = any(tuple(group) != ("agent",) for group in groups)

    def fit(self, epochs: int, seed: int, *, patience: int | None) -> dict[str, float]:
        """Train; see `train_jointly`. Without a step that teaches, no epoch is better than the last."""
        game = self.game
        return fit(
            self.run,
            game.players,
            game.optimizer,
            name=NAME,
            epochs=epochs,
            seed=seed,
            train_epoch=self.train_epoch,
            validate=self.validate,
            state={"counters": game.counters, "mean": game.mean},
            patience=patience,
            above=0.0,
        )

    def train_epoch(self, players: nn.Module, generator: Generator) -> Scalars:
        """Every training image once."""
        game, device = self.game, self.game.pool.labels.device
        game.forget()
        game.counters.epoch += 1
        rows = shuffled_rows(len(game.pool), game.experiment.training.batch_size, generator, device)
        for part in rows:
            batch = game.batch(part)
            for group in self.groups:
                if tuple(group) == ("agent",):
                    assert self.row.learner is not None
                    self.row.learner(game, batch)
                else:
                    game.teach(views(game, batch, self.row, group), batch.y)
        self._check(rows)
        found: dict[str, float | Tensor] = dict(game.means())
        if self.row.learner is not None:
            found["apga/queries"] = float(game.counters.queries)
        return found | {"passes": float(game.counters.passes)}

    @torch.no_grad()
    def validate(self, players: nn.Module) -> tuple[float | None, Scalars]:
        """Accuracy, and what is logged beside it; what masks are worth decides nothing."""
        game, val = self.game, self.val
        found = dict[str, float | Tensor]()
        accuracy = None
        if self.teaches:
            judged = image_metrics(probabilities(game.players.classifier, val.images), val.labels)
            accuracy = judged["accuracy"]
            found |= {curve: judged[name] for name, curve in CURVES.items()}
        if self.row.learner is not None:
            masks = select_all(game.players, val)
            found["apga/loss_aid"] = self._aid_loss(masks)
            found["apga/val_area"] = masks.mean()
            if (overlap := mean_iou(masks, val.roi)) is not None:
                found["apga/roi_iou"] = overlap
            shown = torch.arange(min(SHOWN, len(val)), device=masks.device)
            picture = draw_panel(val, shown, masks[shown], game.experiment)
            self.run.log_image("apga/panel", picture, game.counters.epoch)
        return accuracy, found

    def _aid_loss(self, masks: Tensor) -> Tensor:
        """Cross-entropy of the validation images of which nothing but the mask is kept."""
        game, total = self.game, torch.zeros((), device=masks.device)
        rows = torch.arange(len(masks), device=masks.device)
        for part in torch.split(rows, AT_ONCE):
            x = self.val.at(part)
            keep = kept(x, masks[part], fill_of(x, game.experiment.training.fill))
            total += classifier_loss(game.players.classifier, keep, self.val.labels[part], masked=True) * len(part)
        return total / len(masks)

    def _check(self, rows: Sequence[Tensor]) -> None:
        """Raises NotFiniteError: a reward was not finite; waits for the device once an epoch."""
        number = int(self.game.first_bad)
        if number < 0:
            return
        ids = [self.game.pool.ids[row] for row in rows[number].tolist()]
        self.run.folder.mkdir(parents=True, exist_ok=True)
        file = self.run.folder / BAD
        write_text(
            file, json.dumps({"epoch": self.game.counters.epoch, "batch": number, "images": ids}, indent=1) + "\n"
        )
        raise NotFiniteError(
            f"a reward in batch {number} of epoch {self.game.counters.epoch} is NaN or infinite; its images stand in "
            f"{file}; look at them, or lower the learning rates"
        )


@torch.no_grad()
def select_all(players: Players, pool: XrayPool) -> Tensor:
    """The masks p > 0.5 of the agent of all images of a pool, float [N, 1, S, S]."""
    assert players.agent is not None
    size, rows = pool.images.shape[-1], torch.arange(len(pool), device=pool.labels.device)
    parts = [threshold(look(players.agent, pool.at(part))[0]) for part in torch.split(rows, AT_ONCE)]
    return enlarge(torch.cat(parts), size)


def iou_of(masks: Tensor, regions: Tensor) -> Tensor:
    """Intersection over union of masks [N, 1, S, S] and regions bool [N, S, S], [N]; 1 where both are empty."""
    selected = masks[:, 0] > 0.5
    both = (selected & regions).flatten(1).sum(dim=1)
    either = (selected | regions).flatten(1).sum(dim=1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def mean_iou(masks: Tensor, regions: Tensor | None) -> float | None:
    """Mean of `iou_of` over the images that have a region; None where none is known."""
    if regions is None or not bool((there := regions.flatten(1).any(dim=1)).any()):
        return None
    return float(iou_of(masks[there], regions[there]).mean())


def draw_panel(pool: XrayPool, rows: Tensor, masks: Tensor, experiment: APGAExperiment) -> Bytes:
    """Images of a pool with their masks [n, 1, S, S], erased and kept."""
    x = pool.at(rows)
    fill = fill_of(x, experiment.training.fill)
    regions = None if pool.roi is None else pool.roi[rows]
    return mask_panel(x, masks, erased(x, masks, fill), kept(x, masks, fill), regions)
