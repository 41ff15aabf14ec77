"""A trained segmenter on whole volumes, and on patches under attack (docs/seat.md, Method 15 and 17)."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...attacks.budget import Epsilon, image_range
from ...attacks.core import AttackCore
from ...attacks.methods import ATTACKS
from ...attacks.named import NamedAttack
from ...attacks.victim import Normalized
from ...common.checks import check_choice
from ...common.device import bfloat16_on_cuda
from ...common.names import slug
from ...common.overlap import class_counts, dice_case, recall_and_precision
from ...common.runs import Run, plain
from ...datasets.decathlon.cases import constants_of, load_decathlon, recorded_labels
from ...datasets.decathlon.preparation import restored
from ...datasets.decathlon.sampling import mass_corners
from ...datasets.sample import BadSample
from ...datasets.volumes import Patches, VolumePool
from ...evaluation.attack_panels import class_legend, save_picture, volume_panel
from ...evaluation.drawing import Bytes
from ...evaluation.films import Shot
from ...evaluation.metrics import dice, hd95_mm, nsd
from ...evaluation.report import Column, mean_metrics
from ...evaluation.results import Case, Result, count_origins
from ...evaluation.robustness import robustness_report
from ...evaluation.robustness_metrics import Counts, Floats
from ...evaluation.robustness_report import RobustnessReport
from ...evaluation.robustness_results import AttackResult
from ...segmenters.volume_windows import VolumeWindows
from .. import robust_segmenters
from ..context import StageContext
from ..experiment import Episode, EvaluateOptions, RenderOptions, check_names, method_name, write_result
from ..robust_segmenters import REPORT, SEGMENTER, WORST, check_options, metric_of
from .config import SEATExperiment
from .training import build_network, segmenter

log = logging.getLogger(__name__)
COLUMNS = (
    Column(f"{WORST}_dice", "Worst attack, Dice", "%", 100, 1),
    Column("dice", "Clean volume, Dice", "%", 100, 1),
    Column("native_dice", "Clean volume in its file's voxels, Dice", "%", 100, 1),
    Column("hd95_mm", "HD95", "mm", 1, 1),
    Column("nsd", "NSD", "%", 100, 1),
    Column("clean_dice", "Clean patch, Dice", "%", 100, 1),
)
"""The first columns of the table of results; those of each attack follow."""
PANEL = 4
"""Patches of the figure."""


def evaluate(runs: Sequence[tuple[Run, SEATExperiment]], options: EvaluateOptions) -> tuple[list[Result], list[str]]:
    """Results of every run's segmenter, and the volumes left out; written into each run's folder, with a figure.

    Raises:
        ValueError: a run that is not finished, whose files were changed, or that does not go with the others; options
            that are of agents; a volume without labels.
    """
    check_options("seat", options)
    check_names([experiment for _, experiment in runs], [])
    results, skipped, found, left_out = list[Result](), list[str](), list[AttackResult](), list[str]()
    for run, experiment in runs:
        victim, classes, epoch = trained_victim(run, experiment, unfinished=options.unfinished)
        victim.to(StageContext(experiment, run, trains=False).device)
        bad = list[BadSample]()
        pool, split = _volumes(experiment, options, bad)
        pool = pool.to(victim.mean.device)
        skipped += [f"{one.id}: {one.reason}" for one in bad]
        folder, plan = options.folder(run), experiment.data.resolved_plan()
        patches = pool.patches(
            torch.arange(len(pool), device=pool.device), mass_corners(pool, plan.val_size), plan.val_size
        )
        report = _report(victim, classes, pool, patches, experiment, epoch, folder / REPORT)
        result = _result(experiment, victim, pool, split, report, epoch, options.command)
        result.settings.update(_spent(run, epoch))
        found, left_out = found + report.results, report.left_out
        results.append(write_result(folder, result))
        _figure(folder / f"{result.id}.png", victim, classes, patches, experiment)
    RobustnessReport(found, left_out=left_out).write(options.folder(runs[0][0]) / REPORT)
    return results, skipped


def trained_victim(
    run: Run, experiment: SEATExperiment, *, unfinished: bool = False
) -> tuple[Normalized, tuple[str, ...], int]:
    """As `robust_segmenters.trained_victim`."""
    experiment = experiment.resolved()

    def begun() -> tuple[Normalized, tuple[str, ...]]:
        task, plan = experiment.data.resolved_task, experiment.data.resolved_plan()
        net, channels = build_network(experiment.network, task, plan, experiment.seed), len(task.channels)
        return Normalized(net, [0.0] * channels, [1.0] * channels), task.classes

    return robust_segmenters.trained_victim(
        StageContext(experiment, run, trains=False),
        segmenter,
        begun,
        experiment.training.epochs,
        unfinished=unfinished,
    )


def victim_of(run: Run, experiment: SEATExperiment) -> tuple[Normalized, tuple[str, ...]]:
    """The network of a finished run, and the names of its classes; raises as `trained_victim`."""
    return trained_victim(run, experiment)[:2]


def _volumes(experiment: SEATExperiment, options: EvaluateOptions, bad: list[BadSample]) -> tuple[VolumePool, str]:
    split = options.split or experiment.test_split
    pool = load_decathlon(experiment.data, split, "--", bad.append if options.skip_bad else None)
    if options.cases is not None:
        rows = [row for row, name in enumerate(pool.ids) if any(fnmatchcase(name, case) for case in options.cases)]
        if not rows:
            raise ValueError(f"split {split!r} has no case {', '.join(options.cases)}; choose others by --cases")
        pool = pool.take(rows)
    if pool.labels is None:
        raise ValueError(f"the cases of split {split!r} have no labels, by which Dice is counted; choose another split")
    return (_with_foreground(pool, bad) if options.skip_bad else pool), split


def _with_foreground(pool: VolumePool, bad: list[BadSample]) -> VolumePool:
    """The volumes with something to attack; the others are told, and put to those that are left out."""
    labels = [pool[row].label for row in range(len(pool))]
    kept = [row for row, label in enumerate(labels) if label is not None and bool(label.any())]
    if not kept:
        raise ValueError(f"none of the {len(pool)} cases has any foreground, about which a patch is cut")
    for row in sorted({*range(len(pool))} - {*kept}):
        bad.append(BadSample(pool.ids[row], "it has no foreground, about which a patch is cut"))
        log.warning("skipping %s: %s", pool.ids[row], bad[-1].reason)
    return pool if len(kept) == len(pool) else pool.take(kept)


def _report(
    victim: Normalized,
    classes: Sequence[str],
    pool: VolumePool,
    patches: Patches,
    experiment: SEATExperiment,
    epoch: int,
    out: Path,
) -> RobustnessReport:
    """What the attacks leave of the victim on a patch of each volume, kept in the folder `out`."""
    settings = experiment.evaluation
    attacks: str | list[str | NamedAttack] = (
        settings.attacks if isinstance(settings.attacks, str) else [*settings.attacks]
    )
    return robustness_report(
        victim,
        patches.images.cpu(),
        patches.labels.cpu(),
        eps=settings.eps,
        attacks=attacks,
        name=f"{method_name(experiment, epoch, experiment.training.epochs)}, seed {experiment.seed}",
        classes=classes,
        ids=pool.ids,
        batch_size=settings.batch_size,
        bounds=_window(experiment, patches.images.cpu()) or "image",
        sanity=settings.sanity,
        out=out,
    )


def _window(experiment: SEATExperiment, images: Tensor) -> tuple[Tensor, Tensor] | None:
    """Bounds [1, C, 1, 1, 1] of the task's window where epsilon is a share of it, for patches [N, C, *spatial]."""
    if experiment.training.eps_range == "patch":
        return None
    low, high = (end.to(images.device) for end in constants_of(experiment.data).z_bounds())
    least, most = (end(images.transpose(0, 1).flatten(1), dim=1).view_as(low) for end in (torch.amin, torch.amax))
    return torch.minimum(low, least), torch.maximum(high, most)  # by its last digit a patch may lie outside


def _spent(run: Run, epoch: int) -> dict[str, int]:
    """What the training took up to an epoch at most: epochs, and passes of a batch, forward and backward together."""
    lines = run.stage(SEGMENTER).metrics()[:epoch]
    return {"epochs": len(lines), "passes": round(lines[-1][f"{SEGMENTER}/passes"]) if lines else 0}


def _dice(counts: Counts) -> Floats:
    """Mean `dice_case` of the foreground classes of each patch, [N]."""
    sizes = (counts.predicted + counts.true)[:, 1:]
    return np.asarray(np.where(sizes > 0, 2 * counts.both[:, 1:] / np.maximum(sizes, 1), 1.0).mean(axis=1))


def _result(
    experiment: SEATExperiment,
    victim: Normalized,
    pool: VolumePool,
    split: str,
    report: RobustnessReport,
    epoch: int,
    command: str,
) -> Result:
    cases: list[Case] = [
        {"case_id": name, "origin": pool.origin, "patient": group}
        for name, group in zip(pool.ids, pool.groups, strict=True)
    ]
    for case, metrics in zip(cases, _whole(experiment, victim, pool), strict=True):
        case.update(metrics)
    titles = dict[str, str]()
    for one in report.results:
        if one.kind not in ("none", "white", "black"):
            continue
        radius = f"{WORST}_{slug(f'eps {one.eps}')}"
        for case, value in zip(cases, _dice(one.counts).tolist(), strict=True):
            case[f"{metric_of(one)}_dice"] = value
            if one.kind != "none":
                for name in (WORST, radius):
                    case[f"{name}_dice"] = min(case.get(f"{name}_dice", value), value)
        if one.kind != "none":
            titles |= {radius: f"Worst, ε = {one.eps}", metric_of(one): f"{one.title}, ε = {one.eps}"}
    name = method_name(experiment, epoch, experiment.training.epochs)
    return Result(
        id=f"{slug(name)}_seed{experiment.seed}",
        paper="SEAT",
        env="none",
        method=name,
        seed=experiment.seed,
        data=f"{experiment.data.resolved_task.title} phantom"
        if experiment.data.phantom
        else Path(experiment.data.data).name,
        split=split,
        supervision="voxel",
        mode="inductive",
        origins=count_origins(cases),
        metrics=dict(mean_metrics(cases)),
        cases=cases,
        settings={
            **plain(asdict(experiment.evaluation)),
            "titles": titles,
            "fold": experiment.data.fold,
        },
        command=command,
    )


@torch.no_grad()
def _whole(experiment: SEATExperiment, victim: Normalized, pool: VolumePool) -> list[dict[str, float | None]]:
    """Dice, recall and precision of each class of every whole volume, and the mean Dice; and by the voxels of its file
    the mean Dice, and Dice, HD95 and NSD of each class."""
    plan = experiment.data.resolved_plan()
    net, found = VolumeWindows(victim, plan.val_size, experiment.evaluation.windows), list[dict[str, float | None]]()
    for row, (recorded, frame) in enumerate(recorded_labels(experiment.data, pool.ids)):
        sample = pool[row]
        assert sample.label is not None
        with bfloat16_on_cuda(pool.device):
            scores = net(sample.image[None]).softmax(dim=1)
        counts = class_counts(scores.argmax(dim=1), sample.label[None].long(), len(pool.classes), 255)
        of_classes, (recall, precision) = dice_case(counts)[0], recall_and_precision(counts)
        metrics: dict[str, float | None] = {"dice": float(of_classes.mean())}
        for name, values in (("dice", of_classes), ("recall", recall[0]), ("precision", precision[0])):
            for cls, value in zip(pool.classes[1:], values.tolist(), strict=True):
                metrics[f"{name}_{slug(cls)}"] = None if value != value else value
        native = restored(scores[0], sample, frame).cpu()
        metrics |= _native(native, recorded, pool.classes, frame.ras_spacing_mm, experiment.evaluation.tolerance_mm)
        found.append(metrics)
    return found


def _native(
    predicted: Tensor, label: Tensor, classes: Sequence[str], spacing_mm: tuple[float, float, float], tolerance: float
) -> dict[str, float]:
    """Metrics of class numbers [X, Y, Z] in the space of a case's file; a class that is in neither has Dice 1."""
    metrics = dict[str, float]()
    for number, cls in enumerate(classes[1:], 1):
        one, true = predicted == number, label == number
        metrics[f"native_dice_{slug(cls)}"] = dice(one, true)
        metrics[f"hd95_mm_{slug(cls)}"] = hd95_mm(one, true, spacing_mm)
        metrics[f"nsd_{slug(cls)}"] = nsd(one, true, spacing_mm, tolerance_mm=tolerance)
    means = {
        name: sum(value for key, value in metrics.items() if key.startswith(name)) / (len(classes) - 1)
        for name in ("native_dice", "hd95_mm", "nsd")
    }
    return {**means, **metrics}


def _figure(
    path: Path, victim: Normalized, classes: Sequence[str], patches: Patches, experiment: SEATExperiment
) -> None:
    """The middle slices of the first patches, attacked by PGD at the largest radius, and what is predicted of both."""
    images, labels = patches.images[:PANEL], patches.labels[:PANEL]
    eps = max(experiment.evaluation.radii, key=lambda one: Epsilon.parse(one).value)
    adversarial = ATTACKS["pgd"](
        victim, images, labels, eps=eps, steps=20, bounds=_window(experiment, images) or image_range(images)
    )
    save_picture(path, _panel(victim, images, adversarial, [labels], len(classes)))


@torch.no_grad()
def _panel(victim: Normalized, images: Tensor, adversarial: Tensor, maps: Sequence[Tensor], classes: int) -> Bytes:
    found = [torch.cat([victim(x).argmax(dim=1) for x in torch.split(part, 1)]) for part in (images, adversarial)]
    return volume_panel(images, adversarial, [*maps, *found], classes)


# -- one attack ----------------------------------------------------------------------------------------------------


def render(run: Run, experiment: SEATExperiment, options: RenderOptions) -> Episode:
    """PGD with the training's radius and number of steps on the middle patch of one test volume, step by step."""
    victim, classes, _ = trained_victim(run, experiment, unfinished=options.unfinished)
    pool, _ = _volumes(experiment, EvaluateOptions(split=options.split), [])
    if options.case is not None:
        check_choice("case", options.case, pool.ids)
    row = 0 if options.case is None else pool.ids.index(options.case)
    size, config = experiment.data.resolved_plan().val_size, experiment.training
    images, labels = pool.patches(torch.tensor([row]), mass_corners(pool.take([row]), size), size)
    shots = list[Shot]()

    def draw(adversarial: Tensor) -> None:
        with torch.no_grad():
            dice = float(dice_case(class_counts(victim(adversarial).argmax(dim=1), labels, len(classes), 255)).mean())
        shown = labels if options.truth else torch.zeros_like(labels)
        line = f"{pool.ids[row]}, PGD, step {len(shots)} of {config.most_iterations}: Dice {100 * dice:.1f} %"
        shots.append(Shot(_panel(victim, images, adversarial, [shown], len(classes)), [line]))

    def watch(core: AttackCore) -> None:
        draw(core.adversarial.detach())

    draw(
        ATTACKS["pgd"](
            victim,
            images,
            labels,
            eps=config.eps,
            steps=config.most_iterations,
            step_size=Epsilon.parse(config.eps).value * config.step(config.most_iterations),
            random_start=False,
            bounds=_window(experiment, images) or image_range(images),
            watch=watch,
        )
    )
    return Episode(shots, class_legend(classes), shots[-1].lines[0])
