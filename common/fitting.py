"""Training of one network by epochs in a stage of a run: log, keep the best, resume exactly, alone or with others."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from .checkpoints import check_like, load_into, load_optimizer, restore_torch_state, restoring, torch_state
from .device import forked_rng
from .finite import NotFiniteError, not_finite, not_finite_tensor
from .runs import Run
from .stopping import stop_asked, stop_if_asked
from .workers import ONE_PROCESS, Workers

CHECKPOINT_SECONDS = 20.0
"""Time between two checkpoints; when they are taken changes no number."""

STEPS = "gradient_steps"
"""Name of the scalar that counts the steps of the optimiser."""

Net = TypeVar("Net", bound=nn.Module)
Scalars = Mapping[str, float | Tensor]


class Stateful(Protocol):
    """Whatever a training changes beside weights: schedulers, controllers, moving averages."""

    def state_dict(self) -> Mapping[str, Any]:
        """All of its state: tensors, numbers and text, nested."""

    def load_state_dict(self, state_dict: Any, /) -> object:
        """Take over a state that `state_dict` gave."""


def fit(
    run: Run,
    net: Net,
    optimizer: Optimizer,
    *,
    name: str,
    epochs: int,
    seed: int,
    train_epoch: Callable[[Net, Generator], Scalars],
    validate: Callable[[Net], tuple[float | None, Scalars]],
    state: Mapping[str, Stateful] | None = None,
    patience: int | None = None,
    above: float = -math.inf,
    stop: Callable[[Mapping[str, float]], bool] | None = None,
    workers: Workers = ONE_PROCESS,
) -> dict[str, float]:
    """Train `net`, which then holds the weights of its best epoch, in eval mode; returns that epoch's scalars.

    A run that was killed and resumed ends, on the CPU, with the same weights, bit for bit, as one that was not.

    Args:
        run: the stage: receives `<name>/<scalar>` per epoch, a scalar with a / by its own name, the number of gradient
            steps so far as `<name>/gradient_steps` where the optimiser counts them, and checkpoints.
        net: the network in training; what `optimizer` moves is part of it.
        optimizer: its optimiser.
        name: prefix of the scalars, and of the progress bar.
        epochs: at most so many; 0 leaves the network as it is.
        seed: of the generator that `train_epoch` is given and, within the stage, of PyTorch's own.
        train_epoch: one epoch in train mode; returns what is to be logged: with several workers, each one's part of
            the sum.
        validate: in eval mode, without gradients; returns the score that decides which epoch is best (higher is better;
            None: the last one, where nothing may choose) and what is to be logged: with several workers, the mean
            counts. Each of them validates with all data.
        state: by name, what else the two functions change and a checkpoint must hold.
        patience: stop after so many epochs without a better score; None: never.
        above: the score that the first best epoch must exceed; where none does, the last one stays.
        stop: stop after an epoch with these scalars.
        workers: the processes that train together.

    Raises:
        NotFiniteError: a logged scalar, the score or a weight is NaN or infinite; the checkpoint of an earlier epoch
            stays as it is.
        Stopped: a signal asked for it; the last epoch is kept.
    """
    device, state = next(net.parameters()).device, state or {}
    best: dict[str, Any] = {"score": above, "epoch": 0, "scalars": {}}
    generator, done, scalars = Generator().manual_seed(seed + workers.rank), 0, dict[str, float]()
    workers.share_weights(net)
    with forked_rng(device):
        torch.manual_seed(seed + workers.rank)
        if checkpoint := workers.broadcast(run.resume() if workers.is_main else None):
            load_into(net, checkpoint.weights, f"the checkpoint of {run.folder}")
            kept = checkpoint.state
            with restoring(checkpoint):
                load_optimizer(optimizer, kept["optimizer"])
                for key, part in state.items():
                    part.load_state_dict(kept["state"][key])
                check_like(kept["best"], best, "best")
                best, done, scalars = kept["best"], checkpoint.step, {k: float(v) for k, v in kept["scalars"].items()}
                if workers.rank < len(kept["random"]):  # a worker more than before begins with its seed
                    random = kept["random"][workers.rank]
                    generator.set_state(random["generator"])
                    restore_torch_state(random["torch"], device)
        saved = time.monotonic()
        with run.progress.bar(epochs, initial=done, title=name, unit="epoch", silent=not workers.is_main) as bar:
            for epoch in range(done + 1, epochs + 1):
                if patience is not None and epoch - 1 - best["epoch"] >= patience:
                    break
                if stop and scalars and stop(scalars):
                    break
                net.train()
                trained = workers.sum(_numbers(train_epoch(net, generator)))
                workers.share_weights(net)  # running statistics of batch normalisation
                _check(trained, net, name, epoch)
                net.eval()
                with torch.no_grad():
                    judge, judged = validate(net)
                score = float(epoch) if judge is None else judge
                validated = workers.mean(_numbers({**judged, "score": score}))
                _check(validated, net, name, epoch)
                score = validated.pop("score")
                scalars = {**trained, **validated}
                if workers.is_main:
                    steps = steps_done(optimizer)
                    logged = {**scalars, **({STEPS: steps} if steps else {})}
                    run.log(epoch, {key if "/" in key else f"{name}/{key}": value for key, value in logged.items()})
                if score > best["score"]:
                    weights = {key: value.detach().clone() for key, value in net.state_dict().items()}
                    best = {"score": score, "epoch": epoch, "scalars": scalars, "weights": weights}
                if workers.broadcast(stop_asked() or time.monotonic() - saved > CHECKPOINT_SECONDS):
                    saved = time.monotonic()
                    random = {"generator": generator.get_state(), "torch": torch_state(device)}
                    kept = {
                        "optimizer": optimizer.state_dict(),
                        "state": {key: part.state_dict() for key, part in state.items()},
                        "random": workers.gather(random),
                        "best": best,
                        "scalars": scalars,
                    }
                    if workers.is_main:
                        run.save(epoch, net.state_dict(), kept)
                own = {key: value for key, value in scalars.items() if "/" not in key}
                bar.reach(epoch, own or scalars)  # of many curves those that are the stage's own
                stop_if_asked()
    if "weights" in best:
        net.load_state_dict(best["weights"])
    net.eval()
    return {"epoch": best["epoch"], **best["scalars"]}


def shuffled_rows(
    number: int, batch_size: int, generator: Generator, device: torch.device, workers: Workers = ONE_PROCESS
) -> Sequence[Tensor]:
    """This worker's rows of each batch: 0..number-1 in random order, in as few batches as `batch_size` permits.

    The batches are of nearly equal sizes, because a last one of one image of 32 x 32 has one value per map at the
    lowest level, and no variance. Rank 0's generator decides the order.

    Args:
        number: of rows.
        batch_size: rows per batch and worker, at most.
        generator: of the order.
        device: where the rows are wanted.
        workers: among whom each batch is divided.
    """
    order = workers.broadcast(torch.randperm(number, generator=generator)).to(device)
    batches = order.tensor_split(math.ceil(number / (batch_size * workers.world_size)))
    return [workers.shard(rows) for rows in batches]


def descend(optimizer: Optimizer, loss: Tensor, workers: Workers = ONE_PROCESS, rows: int = 1) -> None:
    """One step down the gradient of `loss`, the mean over this worker's `rows`, or of all workers' together."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    workers.average_gradients((p for group in optimizer.param_groups for p in group["params"]), rows)
    optimizer.step()


def steps_done(optimizer: Optimizer) -> int:
    """Steps so far of an optimiser that counts them, as Adam does, also those before a resumed run was stopped; 0 of
    one that does not, such as SGD."""
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)


def _numbers(scalars: Scalars) -> dict[str, float]:
    return {key: float(value) for key, value in scalars.items()}


def _check(scalars: Mapping[str, float], net: nn.Module, name: str, epoch: int) -> None:
    """Raises NotFiniteError: a scalar, or a weight of the network, is not finite; waits for the device once."""
    wrong = not_finite(scalars) or [text for text in [not_finite_tensor(net.state_dict())] if text]
    if wrong:
        raise NotFiniteError(
            f"{name}: {', '.join(wrong)} in epoch {epoch}; lower the learning rate, or look for bad values in the "
            f"training data"
        )
