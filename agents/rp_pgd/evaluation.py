"""A trained segmenter on test images, clean and attacked (docs/rp-pgd.md, Method 25), and the film of one attack."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

import torch

from ...attacks.core import AttackCore
from ...attacks.methods import ATTACKS
from ...attacks.victim import Normalized
from ...attacks.victims import load_victim
from ...common.checkpoints import load_into
from ...common.checks import check_choice
from ...common.files import replacing
from ...common.names import slug
from ...common.runs import Run, plain
from ...datasets.images import IGNORED, ImagePool
from ...datasets.sample import BadSample
from ...datasets.scenes.images import Scenes, load_scenes
from ...evaluation.films import Shot
from ...evaluation.report import Column
from ...evaluation.results import Case, Result, count_origins
from ..context import StageContext
from ..experiment import Episode, EvaluateOptions, RenderOptions, check_names, method_name, write_result
from ..predictor import PredictOptions, Predictor
from .config import RPPGDExperiment, feature_arguments
from .judging import Judged, judge
from .pictures import attack_panel, class_legend
from .training import SEGMENTER, VICTIM, build_victim, segmenter, victim_file

log = logging.getLogger(__name__)
CLEAN = "clean"
COLUMNS = tuple(
    Column(f"{name}_miou", f"{title}, mIoU of an image", "%", 100, 1)
    for name, title in [(CLEAN, "Clean"), *((name, attack.title) for name, attack in ATTACKS.items())]
)
"""The table of results."""


def evaluate(runs: Sequence[tuple[Run, RPPGDExperiment]], options: EvaluateOptions) -> tuple[list[Result], list[str]]:
    """Results of every run's segmenter, and the files left out; written into each run's folder, with a figure.

    Raises:
        ValueError: a run that is not finished, whose files were changed, or that does not go with the others; options
            that are of agents.
    """
    if options.policies or options.save_masks:
        given = "policies" if options.policies else "save_masks"
        raise ValueError(f"--{given} is of runs that have an agent, but paper 'rp_pgd' trains segmenters; leave it out")
    check_names([experiment for _, experiment in runs], [])
    results, skipped = list[Result](), list[str]()
    for run, experiment in runs:
        victim, classes, step = trained_victim(run, experiment, unfinished=options.unfinished)
        bad = list[BadSample]()
        images, split = _test_images(experiment, options, bad)
        skipped += [f"{one.id}: {one.reason}" for one in bad]
        judged = _judged(victim.to(StageContext(experiment, run, trains=False).device), images, experiment)
        result = _result(experiment, images, split, judged, step, options.command)
        folder = options.folder(run)
        results.append(write_result(folder, result))
        _figure(folder / f"{result.id}.png", images, judged, experiment, len(classes))
    return results, skipped


def trained_victim(
    run: Run, experiment: RPPGDExperiment, *, unfinished: bool = False
) -> tuple[Normalized, tuple[str, ...], int]:
    """The trained network of a run, the names of its classes, and the epoch that it reached.

    Raises:
        ValueError: it is not trained to its end, and `unfinished` is False; or its file was changed since.
    """
    experiment = experiment.resolved()
    if unfinished and not victim_file(run).is_file():
        classes = load_scenes(experiment.data, experiment.train_split, "--train_").classes
        victim = build_victim(experiment.network, experiment.training, len(classes), experiment.seed)
        checkpoint = run.stage(SEGMENTER).checkpoint()
        load_into(victim.model, checkpoint.weights, f"{run.folder} at epoch {checkpoint.step}")
        return victim.eval(), classes, checkpoint.step
    segmenter(StageContext(experiment, run, trains=False))
    return *load_victim(victim_file(run)), experiment.training.epochs


def _test_images(experiment: RPPGDExperiment, options: EvaluateOptions, bad: list[BadSample]) -> tuple[ImagePool, str]:
    split = options.split or experiment.test_split
    scenes = load_scenes(experiment.data, split, "--")
    if options.cases is not None:
        found = [name for name in scenes.ids if any(fnmatchcase(name, case) for case in options.cases)]
        if not found:
            raise ValueError(f"split {split!r} has no image {', '.join(options.cases)}; choose others by --cases")
        scenes = _chosen(scenes, found)
    pool = scenes.pool(bad.append if options.skip_bad else None)
    if pool.labels is None:
        raise ValueError(f"{pool.unlabelled[0]} has no labels, by which robustness is judged; choose others by --split")
    return pool, split


def _chosen(scenes: Scenes, ids: list[str]) -> Scenes:
    """Those of the scenes that have these ids."""
    groups = dict(zip(scenes.ids, scenes.groups, strict=True))
    return replace(scenes, ids=ids, groups=[groups[name] for name in ids])


def _judged(victim: Normalized, images: ImagePool, experiment: RPPGDExperiment) -> dict[str, Judged]:
    """What the victim makes of the images, clean and under each attack, by name."""
    settings, found = experiment.evaluation, dict[str, Judged]()
    for name in (CLEAN, *settings.attacks):
        attack = ATTACKS.get(name)
        arguments: dict[str, Any] = {}
        if attack is not None:
            steps = None if attack.single else settings.steps
            arguments = {"eps": settings.eps, "steps": steps}
            arguments |= feature_arguments(attack, experiment.training, experiment.network.kind)
        found[name] = judge(victim, images, attack, arguments, batch_size=settings.batch_size)
        log.info("%s, %s: mIoU %.3f", experiment.name, name, found[name].means["miou"])
    return found


def _result(
    experiment: RPPGDExperiment,
    images: ImagePool,
    split: str,
    judged: dict[str, Judged],
    epoch: int,
    command: str,
) -> Result:
    cases: list[Case] = [
        {"case_id": name, "origin": images.origin, "patient": group}
        for name, group in zip(images.ids, images.groups, strict=True)
    ]
    metrics = dict[str, float | None]()
    for name, one in judged.items():
        for case, values in zip(cases, one.of_each, strict=True):
            case |= {f"{name}_{key}": None if math.isnan(value) else value for key, value in values.items()}
        metrics |= {f"{name}_{key}": value for key, value in one.means.items()}
    data, epochs = experiment.data, experiment.training.epochs
    return Result(
        id=f"{slug(method_name(experiment, epoch, epochs))}_seed{experiment.seed}",
        paper="RP-PGD",
        env="none",
        method=method_name(experiment, epoch, epochs),
        seed=experiment.seed,
        data="scene phantom" if data.data == "phantom" else Path(data.data).name,
        split=split,
        supervision="voxel",
        mode="inductive",
        origins=count_origins(cases),
        metrics=metrics,
        cases=cases,
        settings={**plain(asdict(experiment.evaluation)), "size": data.size, "epochs": epoch},
        command=command,
    )


def _figure(
    path: Path, images: ImagePool, judged: dict[str, Judged], experiment: RPPGDExperiment, classes: int
) -> None:
    """The first images under the last attack, and what is predicted of them clean and under every attack."""
    number = min(experiment.evaluation.pictures, len(images))
    assert images.labels is not None
    panel = attack_panel(
        images.images[:number].float() / 255,
        [*judged.values()][-1].images[:number],
        images.labels[:number],
        [one.predicted[:number] for one in judged.values()],
        classes,
    )
    with replacing(path) as unfinished:
        from PIL import Image

        Image.fromarray(panel).save(unfinished, format="PNG")


# -- one attack ----------------------------------------------------------------------------------------------------


def render(run: Run, experiment: RPPGDExperiment, options: RenderOptions) -> Episode:
    """The inner attack of the training (BIM where there is none) on one test image, step by step."""
    victim, classes, _ = trained_victim(run, experiment, unfinished=options.unfinished)
    split = options.split or experiment.test_split
    scenes = load_scenes(experiment.data, split, "--")
    if options.case is not None:
        check_choice("case", options.case, scenes.ids)
    pool, config = _chosen(scenes, [options.case or scenes.ids[0]]).pool(), experiment.training
    if pool.labels is None:
        raise ValueError(f"{pool.ids[0]} has no labels, which the attack needs; choose another by --case or --split")
    image, labels = pool.at(torch.tensor([0])), pool.labels
    shots = list[Shot]()

    def draw(adversarial: torch.Tensor) -> None:
        with torch.no_grad():
            found = victim(adversarial).argmax(dim=1).to(torch.uint8)
        shown = labels if options.truth else torch.zeros_like(labels)
        picture = attack_panel(image, adversarial, shown, [found], len(classes))
        right = 100 * (found == labels)[labels != IGNORED].float().mean().item()
        line = f"{pool.ids[0]}, {attack.title}, step {len(shots)} of {config.steps}: {right:.1f} % of the pixels right"
        shots.append(Shot(picture, [line]))

    def watch(core: AttackCore) -> None:
        draw(core.adversarial.detach())

    attack = config.inner_attack
    arguments: dict[str, Any] = {"eps": config.eps, "steps": config.steps}
    arguments |= feature_arguments(attack, config, experiment.network.kind)
    arguments["generator"] = torch.Generator().manual_seed(options.seed)
    draw(attack(victim, image, labels, watch=watch, **arguments))
    return Episode(shots, class_legend(classes), shots[-1].lines[0])


def check_export(experiment: RPPGDExperiment) -> NoReturn:
    """Raises ValueError: there is no agent to export."""
    raise ValueError(
        "export_sb3 writes an agent, but paper 'rp_pgd' trains a segmenter: its file is "
        f"{SEGMENTER}/{VICTIM} in the run's folder"
    )


def learner(experiment: RPPGDExperiment, run: Run) -> NoReturn:
    """Raises ValueError: as `check_export`."""
    check_export(experiment)


def no_masks(run: Run, experiment: RPPGDExperiment, options: PredictOptions) -> Predictor:
    """Raises ValueError: the network is for Python."""
    raise ValueError(
        f"predict does not take runs of paper 'rp_pgd', such as {str(run.folder)!r}; attacks.victims.load_victim reads "
        f"its network, {SEGMENTER}/{VICTIM}, in Python, and segmenters.sliding applies it to whole photographs"
    )


def lines(experiment: RPPGDExperiment, run: Run) -> list[dict[str, float]]:
    """The curves of the training; a step is an epoch."""
    return run.stage(SEGMENTER).metrics()
