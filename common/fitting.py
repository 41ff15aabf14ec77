"""Training of one network by epochs inside a run's stage: log, keep the best, resume exactly, finish once."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

from .checkpoints import load_into
from .runs import Run

log = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 20.0
"""Time between two checkpoints; when they are taken changes no number."""

Scalars = Mapping[str, float | Tensor]


def fit(
    run: Run,
    net: nn.Module,
    optimizer: Optimizer,
    *,
    name: str,
    epochs: int,
    seed: int,
    train_epoch: Callable[[Generator], Scalars],
    validate: Callable[[], tuple[float | None, Scalars]],
    plateau: ReduceLROnPlateau | None = None,
    patience: int | None = None,
    stop: Callable[[Mapping[str, float]], bool] | None = None,
) -> dict[str, float]:
    """Train `net`, which then holds the weights of its best epoch, in eval mode; returns that epoch's scalars.

    A run that was killed and resumed ends, on the CPU, with the same weights, bit for bit, as one that was not.

    Args:
        run: the stage: receives `<name>/<scalar>` per epoch and checkpoints.
        net: the network in training; what `optimizer` moves is part of it.
        optimizer: its optimiser.
        name: prefix of the scalars, and of the progress bar.
        epochs: at most so many; 0 leaves the network as it is.
        seed: of the generator that `train_epoch` is given and, within the stage, of PyTorch's own.
        train_epoch: one epoch in train mode; returns what is to be logged.
        validate: in eval mode; returns the score that decides which epoch is best (higher is better; None: the last
            one, where nothing may choose) and what is to be logged.
        plateau: a schedule that is stepped with the score.
        patience: stop after so many epochs without a better score; None: never.
        stop: stop after an epoch with these scalars.

    Raises:
        ValueError: a logged scalar is not finite.
    """
    best: dict[str, Any] = {"score": -math.inf, "epoch": 0, "scalars": {}}
    generator, done, scalars = Generator().manual_seed(seed), 0, dict[str, float]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if checkpoint := run.resume():
            load_into(net, checkpoint.weights, f"the checkpoint of {run.folder}")
            state = checkpoint.state
            optimizer.load_state_dict(state["optimizer"])
            if plateau:
                plateau.load_state_dict(state["plateau"])
            generator.set_state(state["generator"])
            torch.set_rng_state(state["torch"])
            best, done, scalars = state["best"], checkpoint.step, state["scalars"]
        saved = time.monotonic()
        with tqdm(total=epochs, initial=done, desc=name, unit="epoch") as bar:
            for epoch in range(done + 1, epochs + 1):
                if patience is not None and epoch - 1 - best["epoch"] >= patience:
                    break
                if stop and scalars and stop(scalars):
                    break
                net.train()
                trained = train_epoch(generator)
                net.eval()
                with torch.no_grad():
                    judge, judged = validate()
                score = float(epoch) if judge is None else judge
                scalars = {key: float(value) for key, value in {**trained, **judged}.items()}
                if bad := sorted(key for key, value in {**scalars, "score": score}.items() if not math.isfinite(value)):
                    raise ValueError(f"{name}: {', '.join(bad)} is no longer finite in epoch {epoch}; lower the lr")
                run.log(epoch, {f"{name}/{key}": value for key, value in scalars.items()})
                if plateau:
                    plateau.step(score)
                if score > best["score"]:
                    weights = {key: value.detach().cpu().clone() for key, value in net.state_dict().items()}
                    best = {"score": score, "epoch": epoch, "scalars": scalars, "weights": weights}
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    saved = time.monotonic()
                    state = {
                        "optimizer": optimizer.state_dict(),
                        "plateau": plateau.state_dict() if plateau else {},
                        "generator": generator.get_state(),
                        "torch": torch.get_rng_state(),
                        "best": best,
                        "scalars": scalars,
                    }
                    run.save(epoch, net.state_dict(), state)
                bar.set_postfix({key: f"{value:.3g}" for key, value in scalars.items()})
                bar.update()
    if "weights" in best:
        net.load_state_dict(best["weights"])
    net.eval()
    return {"epoch": best["epoch"], **best["scalars"]}
