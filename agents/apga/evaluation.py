"""A trained classifier on test radiographs, and its agent's masks (docs/apga.md, Method 9 and 19)."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from ...classifiers.gradcam import gradcam
from ...classifiers.masked_images import enlarge, erased, fill_of, kept
from ...classifiers.xray import probabilities
from ...common.checks import check_choice
from ...common.files import write_text
from ...common.names import slug
from ...common.runs import Run
from ...datasets.xray.images import XrayPool, load_xrays
from ...evaluation.attack_panels import save_picture
from ...evaluation.classification import METRICS, level_metrics, metric_intervals, predicted_classes
from ...evaluation.deletion import deletion_curves
from ...evaluation.films import Shot
from ...evaluation.mask_panels import LEGEND
from ...evaluation.report import Column, mean_metrics
from ...evaluation.results import Case, Result, count_origins
from ..experiment import Episode, EvaluateOptions, RenderOptions, check_names, write_result
from .config import APGAExperiment, Way
from .game import Players, look
from .joint import AT_ONCE, draw_panel, iou_of, select_all
from .masks import same_area
from .report import Judged, classification_page
from .training import Context, settings_of, trained
from .updates import entropy, threshold

ENV = "APGA-MURA-v0"
COLUMNS = (
    Column("accuracy", "Accuracy", "%", 100, 1),
    Column("accuracy_masked", "Accuracy, masked", "%", 100, 1),
    Column("accuracy_averaged", "Accuracy, averaged", "%", 100, 1),
    Column("mask_area", "Area of the mask", "%", 100, 1),
    Column("roi_iou", "IoU with the lesion"),
    Column("roi_iou_random", "IoU, random mask of equal area"),
)
"""The table of results; each case is an image, and intervals are over patients."""
PAGE = "classification.md"
"""File of the metrics of all runs, beside the results of the first."""
STEPS = 16
"""Shares of the pixels at which deletion and insertion are looked at."""


def evaluate(runs: Sequence[tuple[Run, APGAExperiment]], options: EvaluateOptions) -> tuple[list[Result], list[str]]:
    """Results of every run's classifier, written into each run's folder, with a figure.

    Raises:
        ValueError: a run that is not finished, or was changed since; options that this paper has no use for; cases or a
            split that there are not.
    """
    _check_options(options)
    check_names([experiment for _, experiment in runs], [])
    results, judged = list[Result](), list[Judged]()
    for run, experiment in runs:
        context, players = trained(experiment, run)
        pool, split = test_images(context, options)
        ways, masks = predicted(context, players, pool)
        judged.append(Judged(experiment.name, ways, pool.labels, pool.ids, pool.studies))
        result = _result(context, players, pool, split, ways, masks, options.command)
        folder = options.folder(run)
        results.append(write_result(folder, result))
        if masks is not None and (number := min(context.experiment.evaluation.pictures, len(pool))):
            rows = torch.arange(number, device=masks.device)
            save_picture(folder / f"{result.id}.png", draw_panel(pool, rows, masks[rows], context.experiment))
    write_text(options.folder(runs[0][0]) / PAGE, classification_page(judged))
    return results, []


def _check_options(options: EvaluateOptions) -> None:
    """Raises ValueError: an option that this paper has no use for."""
    given = {
        "policies": options.policies,
        "unfinished": options.unfinished,
        "save_masks": options.save_masks,
        "html": options.html,
    }
    for name, value in given.items():
        if value:
            raise ValueError(
                f"--{name} is not for paper 'apga': evaluate judges finished classifiers, predict writes masks, play "
                f"plays reference policies; leave it out"
            )


def test_images(context: Context, options: EvaluateOptions | RenderOptions) -> tuple[XrayPool, str]:
    """The test images on the device, and the name of their split."""
    split = options.split or context.experiment.test_split
    pool = load_xrays(context.experiment.data, split, "--").to(context.device)
    cases = options.cases if isinstance(options, EvaluateOptions) else None
    if cases is not None:
        rows = [row for row, name in enumerate(pool.ids) if any(fnmatchcase(name, case) for case in cases)]
        if not rows:
            raise ValueError(f"split {split!r} has no image {', '.join(cases)}; choose others by --cases")
        pool = pool.take(rows)
    return pool, split


def predicted(context: Context, players: Players, pool: XrayPool) -> tuple[dict[Way, Tensor], Tensor | None]:
    """Probabilities [N, K] of each way to predict, and the agent's masks [N, 1, S, S]; None where there is no agent."""
    net, experiment = players.classifier, context.experiment
    found: dict[Way, Tensor] = {"plain": probabilities(net, pool.images)}
    if players.agent is None:
        return found, None
    masks = select_all(players, pool)
    wanted = set(experiment.evaluation.ways) - {"plain"}
    if wanted:
        parts = []
        for rows in torch.split(torch.arange(len(pool), device=pool.labels.device), AT_ONCE):
            x = pool.at(rows)
            parts.append(probabilities(net, kept(x, masks[rows], fill_of(x, experiment.training.fill)), masked=True))
        found["masked"] = torch.cat(parts)
        found["averaged"] = (found["plain"] + found["masked"]) / 2
    return {way: found[way] for way in experiment.evaluation.ways}, masks


def _result(
    context: Context,
    players: Players,
    pool: XrayPool,
    split: str,
    ways: dict[Way, Tensor],
    masks: Tensor | None,
    command: str,
) -> Result:
    experiment = context.experiment
    cases = _cases(pool, ways)
    if masks is not None:
        _add(cases, _mask_metrics(context, players, pool, masks))
    _leave_out(cases, pool.roi)
    metrics: dict[str, float | None] = dict(mean_metrics(cases))
    intervals = dict[str, list[float]]()
    both = len(torch.unique(pool.labels)) > 1
    for way, p in ways.items():
        end = "" if way == "plain" else f"_{way}"
        known = level_metrics(p, pool.labels, pool.studies)
        metrics |= {f"{name}{end}": None if value != value else value for name, value in known.items()}
        if both:
            found = metric_intervals(p, pool.labels, pool.studies)
            intervals |= {f"{name}{end}": [one.low, one.high] for name, one in found.items()}
    data = experiment.data
    return Result(
        id=f"{slug(experiment.name)}_seed{experiment.seed}",
        paper="APGA",
        env=ENV,
        method=experiment.name,
        seed=experiment.seed,
        data="limb phantom" if pool.origin == "phantom" else Path(data.csv or data.data).name,
        split=split,
        supervision="image",
        mode="inductive",
        origins=count_origins(cases),
        metrics=metrics,
        cases=cases,
        settings={**settings_of(experiment), "intervals": intervals, "metrics": list(METRICS)},
        command=command,
    )


def _cases(pool: XrayPool, ways: dict[Way, Tensor]) -> list[Case]:
    """One case of each image: study, label, and of each way whether it is right and how probable class 1 is."""
    cases: list[Case] = [
        {"case_id": name, "origin": pool.origin, "patient": patient, "study": study, "part": part, "label": label}
        for name, patient, study, part, label in zip(
            pool.ids, pool.patients, pool.studies, pool.parts, pool.labels.tolist(), strict=True
        )
    ]
    for way, p in ways.items():
        end = "" if way == "plain" else f"_{way}"
        right = predicted_classes(p) == pool.labels
        _add(cases, {f"accuracy{end}": right.double(), f"p{end}": p[:, 1].double()})
    return cases


def _leave_out(cases: Sequence[Case], regions: Tensor | None) -> None:
    """Take the overlap out of images without a lesion: its mean is that over the others."""
    if regions is not None:
        for case, there in zip(cases, regions.flatten(1).any(dim=1).tolist(), strict=True):
            case["labelled"] = int(there)
            if not there:
                for name in ("roi_iou", "roi_iou_random"):
                    case.pop(name, None)


def _add(cases: Sequence[Case], values: dict[str, Tensor]) -> None:
    """Put metrics [N] into the cases; NaN as undefined."""
    for name, of_all in values.items():
        for case, value in zip(cases, of_all.tolist(), strict=True):
            case[name] = None if value != value else value


@torch.no_grad()
def _mask_metrics(context: Context, players: Players, pool: XrayPool, masks: Tensor) -> dict[str, Tensor]:
    """Area and entropy of each mask, what erasing it does to the loss, its overlap with the lesion, and the areas under
    its deletion and insertion curves; beside random masks of equal area and GradCAM."""
    experiment, found = context.experiment, dict[str, list[Tensor]]()
    assert players.agent is not None
    generator = Generator().manual_seed(context.seed("random masks"))
    for rows in torch.split(torch.arange(len(pool), device=pool.labels.device), AT_ONCE):
        x, y, mask = pool.at(rows), pool.labels[rows], masks[rows]
        fill = fill_of(x, experiment.training.fill)
        deleted = 0.0 if fill is None else fill
        logits = look(players.agent, x)[0]
        cells = threshold(logits)
        random = enlarge(same_area(cells, torch.rand(cells.shape, generator=generator).to(cells.device)), x.shape[-1])
        one = {"mask_area": mask.mean(dim=(1, 2, 3)), "mask_entropy": entropy(logits).mean(dim=(1, 2, 3))}
        both = (
            probabilities(players.classifier, x),
            probabilities(players.classifier, erased(x, mask, fill), masked=True),
        )
        before, after = (p.gather(1, y[:, None])[:, 0].clamp(min=1e-12).log() for p in both)
        one["gap"] = before - after
        if pool.roi is not None:
            one["roi_iou"], one["roi_iou_random"] = (iou_of(part, pool.roi[rows]) for part in (mask, random))
        if experiment.evaluation.saliency:
            maps = {"": mask[:, 0], "_random": random[:, 0], "_gradcam": gradcam(players.classifier, x)}
            for name, saliency in maps.items():
                judge = partial(probabilities, players.classifier)
                curves = deletion_curves(judge, x, saliency, steps=STEPS, fill=deleted)
                one |= {f"deletion{name}": curves.deletion_auc, f"insertion{name}": curves.insertion_auc}
        for name, values in one.items():
            found.setdefault(name, []).append(values.double())
    return {name: torch.cat(parts) for name, parts in found.items()}


def render(run: Run, experiment: APGAExperiment, options: RenderOptions) -> Episode:
    """One test image, or the first four, as the agent of a run masks them.

    Raises:
        ValueError: a run without an agent or that is not finished, an image or split that there is not.
    """
    context, players = trained(experiment, run)
    if players.agent is None:
        raise ValueError(
            f"method {experiment.training.method!r} has no agent whose masks could be drawn; render a run that has one"
        )
    pool, split = test_images(context, options)
    if options.case is not None:
        check_choice("case", options.case, pool.ids)
        pool = pool.take([pool.ids.index(options.case)])
    pool = pool.take(range(min(context.experiment.evaluation.pictures or 1, len(pool))))
    ways, masks = predicted(context, players, pool)
    assert masks is not None
    shown = pool if options.truth else _without_truth(pool)
    lines = []
    for row, name in enumerate(pool.ids):
        says = ", ".join(f"{way} {float(p[row, 1]):.2f}" for way, p in ways.items())
        truth = f" ({pool.classes[int(pool.labels[row])]})" if options.truth else ""
        lines.append(f"{name}{truth}: abnormal {says}; {100 * float(masks[row].mean()):.0f} % selected")
    picture = draw_panel(shown, torch.arange(len(pool), device=masks.device), masks, context.experiment)
    legend = LEGEND if options.truth and pool.roi is not None else LEGEND[:1]
    return Episode([Shot(np.asarray(picture), lines)], legend, f"{len(pool)} images of {split}; {lines[0]}")


def _without_truth(pool: XrayPool) -> XrayPool:
    return replace(pool, pool=replace(pool.pool, labels=None))
