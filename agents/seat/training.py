"""Training of a segmenter of patches against attacks (docs/seat.md, Method 11 to 14).

segmenter/                   the run's only stage: curves, pictures, checkpoints
segmenter/victim.safetensors the kept network and the names of its classes, as attacks read it
segmenter/constants.json     by which its volumes are prepared, so that `predict` needs no training case
"""

import io
import logging
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ...attacks.budget import Bounds, Epsilon, LinfBall, image_range
from ...attacks.replays import Replays
from ...attacks.victim import Normalized
from ...attacks.victims import NETWORKS, load_victim, save_victim
from ...common.checkpoints import load_weights
from ...common.device import bfloat16_on_cuda, forked_rng
from ...common.fitting import Scalars, fit
from ...common.networks import Network
from ...common.overlap import ClassCounts, class_counts, dice_global
from ...common.progress import Progress
from ...common.runs import Run
from ...common.workers import ONE_PROCESS, Workers
from ...datasets.decathlon.cases import constants_of, load_decathlon
from ...datasets.decathlon.plan import Plan, Triple
from ...datasets.decathlon.sampling import PatchSampler, centre_corners
from ...datasets.decathlon.tasks import Task
from ...datasets.volumes import VolumePool
from ...evaluation.attack_panels import volume_panel
from ...rewards.lipschitz import magnitude, relative_magnitude
from ...segmenters.dice_ce import dice_ce_of_images
from ...segmenters.pretrained import load_rog
from ...segmenters.rog import ROG
from ...segmenters.volume_networks import TASK_PATCHES
from ..context import StageContext
from ..robust_segmenters import SEGMENTER, VICTIM
from .config import NetworkConfig, SEATExperiment, TrainingConfig
from .controller import make_schedule
from .trainers import NoiseBuffer, Trainer

log = logging.getLogger(__name__)
CONSTANTS = "constants.json"
"""Name of the file of the constants (`Fingerprint`)."""
SHOWN = 2
"""Probe patches in TensorBoard's picture."""
PROBE_SHARE = 0.5
"""Step size of the attack on the probe, as a share of the radius."""
AT_ONCE = 4
"""Validation patches that are passed together."""
MAGNITUDES = {"raw": "grad_l1_raw", "relative": "grad_l1_rel"}
"""Names of the magnitudes in the curves, by their units."""
KEYS = (
    *("seed", "data", "augmentation", "network"),
    *(f"training.{field.name}" for field in fields(TrainingConfig)),
)
"""Keys of the configuration that decide the trained network and its curves."""


def check(experiment: SEATExperiment) -> None:
    """Raises whatever can be known to be wrong before anything is written."""
    config = experiment.data
    task, plan = config.resolved_task, config.resolved_plan()
    for split in ("train", "select"):
        load_decathlon(config, f"{split}[:1]", "--data.")
    net = build_network(experiment.network, task, plan, experiment.seed)
    smallest = getattr(net, "unit", (1, 1, 1))
    for name, size in (("in_size", plan.in_size), ("val_size", plan.val_size)):
        if any(side % of for side, of in zip(size, smallest, strict=True)):
            raise ValueError(
                f"the plan's {name} is {size} but {experiment.network.kind} needs sides that are multiples of "
                f"{smallest}; choose another network.kind, or a plan by data.plan"
            )


def train(experiment: SEATExperiment, run: Run) -> None:
    """Train the segmenter, unless that is done."""
    run.progress = Progress({SEGMENTER: 1.0}, out=None if run.workers.is_main else io.StringIO())
    segmenter(StageContext(experiment, run, trains=True))


def segmenter(context: StageContext[SEATExperiment]) -> Path:
    """The folder of the finished segmenter."""
    experiment, workers = context.experiment, context.run.workers

    def make(stage: Run) -> list[str]:
        data, plan, device = experiment.data, experiment.data.resolved_plan(), context.device
        pool, val = (load_decathlon(data, split, "--data.").to(device) for split in ("train", "select"))
        network = experiment.network
        net = build_network(network, data.resolved_task, plan, context.seed("network")).to(device)
        if device.type == "cuda":
            net = net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        sampler = PatchSampler(pool, plan, experiment.augmentation, seed=context.seed("patches"))
        constants = constants_of(data)
        bounds = constants.z_bounds() if experiment.training.eps_range == "window" else None
        train_network(
            net, sampler, val, experiment.training, stage, context.seed("training"), bounds=bounds, workers=workers
        )
        if workers.is_main:
            about = {"task": data.resolved_task.name, "training": experiment.training.method}
            channels = len(pool.channels)
            save_victim(
                stage.folder / VICTIM, Normalized(net.cpu(), [0.0] * channels, [1.0] * channels), pool.classes, about
            )
            constants.save(stage.folder / CONSTANTS)
        return [VICTIM, CONSTANTS]

    return context.complete(SEGMENTER, make, KEYS)


def build_network(config: NetworkConfig, task: Task, plan: Plan, seed: int) -> Network:
    """The network as its training begins, on the CPU.

    Args:
        config: its kind, and the file that it begins with.
        task: has channels and classes, and a patch of the tutorial on dynunet; a phantom of no task has that of task 4.
        plan: has the strides of rog.
        seed: of the random weights.

    Raises:
        FileNotFoundError: there is no file `network.pretrained`.
        ValueError: it does not fit the network, or is of another task.
    """
    known: dict[str, Any] = {}
    if config.kind == "rog":
        known = dict(zip(("s0", "s1", "s2"), plan.strides, strict=True))
    elif config.kind == "dynunet":
        known = dict(zip(("patch_size", "spacing"), TASK_PATCHES[task.number or 4], strict=True))
    elif config.kind == "small3d":
        known = {"width": config.width}
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(seed)
        net = NETWORKS[config.kind](len(task.channels), len(task.classes), **known)
    if config.pretrained is None:
        return net
    path = Path(config.pretrained)
    if isinstance(net, ROG) and not (path.suffix == ".safetensors" and "kind" in load_weights(path)[1]):
        load_rog(net, path)
        return net
    victim, classes = load_victim(path, len(task.classes))
    if classes != task.classes:
        raise ValueError(
            f"network.pretrained {str(path)!r} was trained on the classes {', '.join(classes)} but {task.name} has "
            f"{', '.join(task.classes)}; take the weights of this task"
        )
    begun = victim.model
    assert isinstance(begun, Network)
    if (type(begun), begun.description) != (type(net), net.description):
        raise ValueError(
            f"network.pretrained {str(path)!r} holds a {type(begun).__name__} with {begun.description} but "
            f"{type(net).__name__} with {net.description} is needed; change `network`, or take another file"
        )
    return begun.train()


class Counters:
    """What a training has come to: epochs, passes of a batch, and the moving means of loss and magnitude."""

    def __init__(self) -> None:
        self.epoch = self.passes = 0
        self.val_loss = self.magnitude = math.nan

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state)


def smoothed(mean: float, value: float, share: float = 0.5) -> float:
    """share * mean + (1 - share) * value; the value itself where there is no mean yet, NaN."""
    return value if math.isnan(mean) else share * mean + (1 - share) * value


def train_network(
    net: nn.Module,
    sampler: PatchSampler,
    val: VolumePool,
    config: TrainingConfig,
    run: Run,
    seed: int,
    *,
    bounds: Bounds | None = None,
    workers: Workers = ONE_PROCESS,
) -> dict[str, float]:
    """Train `net`, which then holds its best epoch, in eval mode; returns that epoch's scalars.

    A run that was killed and resumed ends, on the CPU, with the same weights, bit for bit, as one that was not.

    Args:
        net: gives logits of patches of the plan's `in_size` and `val_size`; is changed; stays on its device.
        sampler: of the training patches, on that device.
        val: labelled volumes that choose the epoch.
        config: see there.
        run: the stage: receives `segmenter/<scalar>` per epoch, pictures and checkpoints.
        seed: of dropout and random starts.
        bounds: what epsilon is a share of; None: the range of each patch.
        workers: the processes that train together.

    Raises:
        NotFiniteError: a loss or a weight is NaN or infinite.
        ValueError: the workers have different cases.
    """
    lists = workers.gather((sampler.pool.ids, val.ids))
    if any(one != lists[0] for one in lists):
        counts = ", ".join(f"{len(ids)} and {len(held)}" for ids, held in lists)
        raise ValueError(
            f"the workers have different cases to learn from and to choose by ({counts} of them, by rank); give all of "
            "them the same data folder and lists"
        )
    optimizer = Adam(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, amsgrad=True)
    plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=config.patience)
    schedule = make_schedule(config.schedule, config.most_iterations, config.period, config.gamma, config.epochs)
    counters, buffer = Counters(), NoiseBuffer(workers)
    trainer = Trainer(net, optimizer, config, buffer, workers)
    judge = Judge(net, val, sampler.plan.val_size, config, bounds)

    def train_epoch(_: nn.Module, generator: Generator) -> Scalars:
        counters.epoch += 1
        order = workers.broadcast(sampler.order(counters.epoch).cpu()).to(sampler.pool.device)
        size = (config.batch_size or sampler.plan.batch) * workers.world_size
        iterations = schedule.iterations
        trainer.forget()
        for rows in order.tensor_split(math.ceil(len(order) / size)):
            patches = sampler.batch(workers.shard(rows), counters.epoch)
            trainer.batch(patches.images, patches.labels, iterations, bounds)
        counters.passes += trainer.passes
        sums = workers.sum({"images": float(trainer.images), **{k: float(v) for k, v in trainer.sums.items()}})
        found = means(sums)
        if config.magnitude == "probe":
            net.eval()
            found |= workers.mean(judge.magnitudes())  # K is the same for all, whatever their running statistics are
            net.train()
        measured = found[MAGNITUDES[config.units]]
        if math.isfinite(measured):
            measured = counters.magnitude = smoothed(counters.magnitude, measured, config.smoothing)
        elif workers.is_main:
            log.warning("the magnitude of epoch %d is %s: the schedule leaves it out", counters.epoch, measured)
        found = {
            name: value for name, value in found.items() if name not in MAGNITUDES.values() or math.isfinite(value)
        }
        found |= {"iterations": float(iterations), "passes": float(counters.passes)}
        schedule.update(counters.epoch, measured)
        found |= {"threshold": float(getattr(schedule, "threshold", 0.0)), "skipped": float(schedule.skipped)}
        found["lr"] = float(optimizer.param_groups[0]["lr"])
        return {name: value / workers.world_size for name, value in found.items()}

    def validate(_: nn.Module) -> tuple[float | None, Scalars]:
        found = workers.mean(judge())  # so that all have one learning rate, however a device rounds
        counters.val_loss = smoothed(counters.val_loss, found["val_loss"])
        plateau.step(counters.val_loss)
        if workers.is_main:
            judge.show(run, counters.epoch)
        clean, robust = found["dice_clean"], found["dice_robust"]
        return clean if config.select == "clean" else 0.5 * (clean + robust), found

    def stop(_: Mapping[str, float]) -> bool:  # by what is exact: means over workers are rounded
        spent = config.budget and counters.passes >= config.budget
        return bool(spent or optimizer.param_groups[0]["lr"] <= config.stop_below * config.learning_rate)

    return fit(
        run,
        net,
        optimizer,
        name=SEGMENTER,
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        state={"plateau": plateau, "schedule": schedule, "counters": counters, "noise": buffer},
        stop=stop,
        workers=workers,
    )


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over the images of an epoch of what a trainer summed up; magnitudes over those that were measured."""
    measured = sums.get("measured", 0.0)
    found = {}
    for name, value in sums.items():
        if name.startswith("grad_l1"):
            found[name] = value / measured
        elif name not in ("images", "measured"):
            found[name] = value / sums["images"]
    if "first_loss" in found:
        found["loss_gain"] = found["loss"] - found["first_loss"]
    return found


class Judge:
    """The validation on the way: Dice of the middle patch of each volume, and of a probe of them under attack.

    Args:
        net: the network in training.
        val: labelled volumes.
        size: voxels of the patches.
        config: of attack and probe.
        bounds: what epsilon is a share of; None: the range of each patch.
    """

    def __init__(self, net: nn.Module, val: VolumePool, size: Triple, config: TrainingConfig, bounds: Bounds | None):
        rows = torch.arange(len(val), device=val.device)
        self.net, self.config, self.classes = net, config, val.classes
        self.patches = val.patches(rows, centre_corners(val, size), size)
        images = self.patches.images[: config.probe]
        self.ball = LinfBall.of_range(images, Epsilon.parse(config.eps).value, bounds)
        self.adversarial, self.predicted = images, self.patches.labels[: config.probe]

    def __call__(self) -> dict[str, float]:
        """val_loss; dice_clean and dice_robust, means over the classes, and dice_clean_<class>, ...; in eval mode."""
        logits = self._logits(self.patches.images)
        losses = self._loss(logits, self.patches.labels)
        clean = self._counts(logits, self.patches.labels)
        replays, labels = Replays(self.net, self._loss), self.patches.labels[: self.config.probe]
        replays.begin(self.ball, labels)
        for _ in range(self.config.probe_steps - 1):
            replays.advance(PROBE_SHARE)
        replays.move(PROBE_SHARE)
        attacked = self._logits(replays.adversarial)
        self.adversarial, self.predicted = replays.adversarial, attacked.argmax(dim=1)
        found = {"val_loss": float(losses.mean())}
        for name, counts in (("clean", clean), ("robust", self._counts(attacked, labels))):
            dice = dice_global(counts).nan_to_num(1.0).tolist()  # nothing of a class, and nothing predicted
            found[f"dice_{name}"] = sum(dice) / len(dice)
            found |= {f"dice_{name}_{cls}": one for cls, one in zip(self.classes[1:], dice, strict=True)}
        return found

    def magnitudes(self) -> dict[str, float]:
        """The magnitudes of the clean probe, means over its patches; in eval mode."""
        replays = Replays(self.net, self._loss)
        replays.begin(self.ball, self.patches.labels[: self.config.probe])
        images = self.ball.images
        relative = relative_magnitude(replays.gradient, *image_range(images))
        return {"grad_l1_raw": float(magnitude(replays.gradient).mean()), "grad_l1_rel": float(relative.mean())}

    def show(self, run: Run, epoch: int) -> None:
        """The middle slices of the first probe patches, what the attack adds to them, and what is predicted of both."""
        number = min(SHOWN, len(self.adversarial))
        images, adversarial = self.ball.images[:number], self.adversarial[:number]
        clean = self._logits(images).argmax(dim=1)
        maps = [self.patches.labels[:number], clean, self.predicted[:number]]
        run.log_image(f"{SEGMENTER}/attack", volume_panel(images, adversarial, maps, len(self.classes)), epoch)

    @torch.no_grad()
    def _logits(self, images: Tensor) -> Tensor:
        with bfloat16_on_cuda(images.device):
            return torch.cat([self.net(part).float() for part in torch.split(images, AT_ONCE)])

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return dice_ce_of_images(logits, labels, ignore_absent=self.config.ignore_absent)

    def _counts(self, logits: Tensor, labels: Tensor) -> ClassCounts:
        return class_counts(logits.argmax(dim=1), labels, len(self.classes), ignore_index=255)
