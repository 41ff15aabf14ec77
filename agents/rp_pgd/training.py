"""Adversarial training of a segmenter (docs/rp-pgd.md, Method 23 and 24).

segmenter/                   the run's only stage: curves, pictures, checkpoints
segmenter/victim.safetensors the trained network with its normalisation and its classes, as attacks read it
"""

import io
from dataclasses import fields
from pathlib import Path

import torch
from torch import Generator, Tensor

from ...attacks.methods import ATTACKS
from ...attacks.victim import Normalized
from ...attacks.victims import NETWORKS, load_victim, save_victim
from ...common.checkpoints import load_weights
from ...common.device import forked_rng
from ...common.finite import NotFiniteError
from ...common.fitting import Scalars, descend, fit
from ...common.networks import Network
from ...common.progress import Progress
from ...common.runs import Run
from ...common.workers import ONE_PROCESS, Workers
from ...datasets.images import IMAGENET_MEAN, IMAGENET_STD, ImagePool
from ...datasets.scenes.augmentation import AugmentationConfig
from ...datasets.scenes.images import Scenes
from ...evaluation.attack_panels import attack_panel
from ...segmenters.dilated import DilatedSegmenter
from ...segmenters.norms import synchronise
from ...segmenters.pretrained import load_imagenet
from ..context import StageContext
from ..robust_segmenters import SEGMENTER, VICTIM
from .batches import Drawn, batches_of, draw_epoch, steps_of
from .config import NetworkConfig, RPPGDExperiment, TrainingConfig, feature_arguments
from .images import load_images
from .trainers import PolySchedule, Trainer, make_optimizer
from .validation import Judged, judge

NAMED = 8
"""Images that an error names, at most."""
GREY_MEAN, GREY_STD = 0.5, 0.25
"""By which networks of images that are not RGB normalise."""
SMALL = 33
"""Sides of the image on which a configuration is tried out."""
SHOWN = 2
"""Validation images in TensorBoard's picture."""
KEYS = (
    *("seed", "data", "train_split", "val_split", "augmentation", "network"),
    *(f"training.{field.name}" for field in fields(TrainingConfig) if field.name != "loaders"),
)
"""Keys of the configuration that decide the trained network and its curves."""


def check(experiment: RPPGDExperiment) -> None:
    """Raises whatever can be known to be wrong before anything is written."""
    scenes, config = load_images(experiment, experiment.train_split, "--train_"), experiment.training
    load_images(experiment, experiment.val_split, "--val_")
    steps_of(len(scenes), config.drawn)
    if scenes[0].label is None:
        raise ValueError(
            f"{scenes.ids[0]} of train_split {experiment.train_split!r} has no labels to learn from; take another"
        )
    victim = build_victim(experiment.network, config, len(scenes.classes), experiment.seed, scenes.channels).eval()
    if config.method != "none":  # a feature layer that there is not, sides that the network refuses
        image = torch.full((1, scenes.channels, SMALL, SMALL), 0.5)
        label = torch.zeros(1, SMALL, SMALL, dtype=torch.uint8)
        Trainer(victim, config).attack(image, label)


def train(experiment: RPPGDExperiment, run: Run) -> None:
    """Train the segmenter, unless that is done."""
    run.progress = Progress({SEGMENTER: 1.0}, out=None if run.workers.is_main else io.StringIO())
    segmenter(StageContext(experiment, run, trains=True))


def segmenter(context: StageContext[RPPGDExperiment]) -> Path:
    """The folder of the finished segmenter."""
    experiment, config, workers = context.experiment, context.experiment.training, context.run.workers

    def make(stage: Run) -> list[str]:
        scenes = load_images(experiment, experiment.train_split, "--train_")
        val = load_images(experiment, experiment.val_split, "--val_").pool()
        seed = context.seed("network")
        victim = build_victim(experiment.network, config, len(scenes.classes), seed, scenes.channels)
        victim = victim.to(context.device)
        if context.device.type == "cuda":
            victim = victim.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        train_adversarial(
            victim,
            scenes,
            val,
            experiment.augmentation,
            config,
            stage,
            context.seed("training"),
            workers=workers,
        )
        if workers.is_main:
            about = {"training": config.method if config.method != "at" else f"at {config.attack}"}
            save_victim(stage.folder / VICTIM, victim.cpu(), scenes.classes, about)
        return [VICTIM]

    return context.complete(SEGMENTER, make, KEYS if experiment.liver is None else (*KEYS, "liver"))


def build_victim(
    network: NetworkConfig, config: TrainingConfig, classes: int, seed: int, channels: int = 3
) -> Normalized:
    """The network as its training begins, behind ImageNet's normalisation, or that of grey images, on the CPU.

    Args:
        network: its kind, and the file that it begins with.
        config: decides whether it has DDC-AT's heads.
        classes: K.
        seed: of the random weights.
        channels: C.

    Raises:
        FileNotFoundError: there is no file `network.pretrained`.
        ValueError: it does not fit the network, or a victim in it has other classes or another normalisation.
    """
    net: Network
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(seed)
        if network.kind == "unet":
            net = NETWORKS["unet"](channels, classes, init_channels=network.init_channels)
        else:
            net = NETWORKS[network.kind](
                channels,
                classes,
                backbone=network.backbone,
                deep_stem=network.deep_stem,
                ddc_at=config.method == "ddc_at",
            )
    normal = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ([GREY_MEAN] * channels, [GREY_STD] * channels)
    if network.pretrained is None:
        return Normalized(net, *normal)
    path = Path(network.pretrained)
    if path.suffix == ".safetensors" and "kind" in load_weights(path)[1]:
        victim, _ = load_victim(path, classes)
        begun = victim.model
        assert isinstance(begun, Network)
        if (type(begun), begun.description) != (type(net), net.description):
            raise ValueError(
                f"network.pretrained {str(path)!r} holds a {type(begun).__name__} with {begun.description} but "
                f"{type(net).__name__} with {net.description} is needed; change `network`, or take another file"
            )
        return victim.train()
    if not isinstance(net, DilatedSegmenter):
        raise ValueError(f"network.pretrained is {str(path)!r}, no victim file, but unet has no backbone for others")
    load_imagenet(net, path)
    return Normalized(net, *normal)


def train_adversarial(
    victim: Normalized,
    scenes: Scenes,
    val: ImagePool | None,
    augmentation: AugmentationConfig,
    config: TrainingConfig,
    run: Run,
    seed: int,
    *,
    workers: Workers = ONE_PROCESS,
) -> dict[str, float]:
    """Train `victim`, which then holds the weights of the last epoch, in eval mode; returns that epoch's scalars.

    A run that was killed and resumed ends, on the CPU, with the same weights, bit for bit, as one that was not.

    Args:
        victim: is changed; stays on its device. Its network gives logits of images of `augmentation.crop` pixels.
        scenes: labelled images.
        val: labelled images of other scenes, for the curves; None: no validation.
        augmentation: of the training images.
        config: see there.
        run: the stage: receives `segmenter/<scalar>` per epoch, pictures and checkpoints.
        seed: of batches, crops, dropout and random starts.
        workers: the processes that train together, batch normalisation by the statistics of all.

    Raises:
        ValueError: images without labels, labels that the network has no class for, or what else the inner attack
            refuses (logits that are not finite, too); names the images.
        NotFiniteError: logits, a loss or a weight is NaN or infinite.
    """
    net, device = victim.model, victim.mean.device
    synchronise(net, workers)
    trainer = Trainer(victim, config, workers)
    optimizer = make_optimizer(net, config)
    batches = batches_of(scenes, augmentation, device, config.loaders)
    if val is not None and val.labels is None:
        raise ValueError(f"{val.unlabelled[0]} has no labels, which the validation needs; take another val_split")
    steps = steps_of(len(scenes), config.drawn, workers)
    schedule = PolySchedule(optimizer, config.epochs * steps, config.power, config.warmup_epochs * steps)

    def train_epoch(_: torch.nn.Module, generator: Generator) -> Scalars:
        drawn, sums, finite = draw_epoch(len(scenes), config.drawn, generator, workers), dict[str, Tensor](), []
        trainer.forget()
        rate = 0.0
        for one, batch in zip(drawn, batches(drawn), strict=True):
            rate = schedule.advance()
            try:
                mixed = trainer.mix(batch)
            except ValueError as error:  # it counts the images of the batch, and does not know their names
                raise ValueError(f"{error}; the batch is {_named(scenes, one)}") from error
            outputs = trainer.outputs(mixed.images)
            losses = trainer.losses(outputs, mixed)
            descend(optimizer, trainer.weighted(losses), workers)
            finite.append(outputs.logits.detach().isfinite().all())
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() / len(drawn)
        if not bool((whole := torch.stack(finite)).all()):
            first = drawn[int((~whole).int().argmax())]
            raise NotFiniteError(
                f"logits are not finite in the batch of {_named(scenes, first)}; lower the learning rate, or look for "
                f"bad values in these images"
            )
        found = {**sums, **trainer.look(), "lr": torch.tensor(rate)}
        return {name: value / workers.world_size for name, value in found.items()}

    def validate(_: torch.nn.Module) -> tuple[float | None, Scalars]:
        epoch = schedule.made // steps
        if val is None or (epoch % config.validate_every and epoch != config.epochs):
            return None, {}
        attack = ATTACKS[config.val_attack]
        arguments = {"eps": config.eps, "steps": config.val_steps, **feature_arguments(attack, config, victim)}
        judged = {
            "clean": judge(victim, val, None, batch_size=config.batch_size),
            "adv": judge(victim, val, attack, arguments, batch_size=config.batch_size),
        }
        if workers.is_main:
            _show(run, val, judged, epoch)
        return None, {f"{kind}_{name}": value for kind, one in judged.items() for name, value in one.means.items()}

    return fit(
        run,
        net,
        optimizer,
        name=SEGMENTER,
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        state={"schedule": schedule},
        workers=workers,
    )


def _named(scenes: Scenes, drawn: Drawn) -> str:
    """The images of a batch, the first ones of many."""
    ids = [scenes.ids[row] for row in drawn.rows]
    return ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")


def _show(run: Run, val: ImagePool, judged: dict[str, Judged], epoch: int) -> None:
    """The first validation images, what was added to them, and what is predicted of both."""
    assert val.labels is not None
    clean, adversarial = judged["clean"], judged["adv"]
    number = min(SHOWN, len(val))
    panel = attack_panel(
        val.images[:number].float() / 255,
        adversarial.images[:number],
        [val.labels[:number], clean.predicted[:number], adversarial.predicted[:number]],
        len(val.classes),
    )
    run.log_image("segmenter/attack", panel, epoch)
