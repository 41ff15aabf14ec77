"""A trained segmenter on test images, clean and attacked (docs/rp-pgd.md, Method 27), and the film of one attack."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from ...attacks.budget import Epsilon
from ...attacks.core import AttackCore
from ...attacks.named import NamedAttack, named_attack
from ...attacks.victim import Normalized, frozen
from ...attacks.victims import feature_layer_of
from ...common.checks import check_choice
from ...common.finite import known
from ...common.names import slug
from ...common.runs import Run, plain
from ...datasets.images import IGNORED
from ...datasets.sample import BadSample, Origin
from ...datasets.scenes import ade20k, cityscapes, voc
from ...datasets.scenes.images import Scenes
from ...evaluation.attack_panels import attack_panel, class_legend, save_picture
from ...evaluation.films import Shot
from ...evaluation.report import Column, mean_metrics
from ...evaluation.results import Case, Result, count_origins
from ...evaluation.robustness import robustness_report
from ...evaluation.robustness_metrics import image_miou
from ...evaluation.robustness_report import RobustnessReport
from ...evaluation.robustness_results import AttackResult
from ...segmenters.sliding import REFERENCE, Protocol, ProtocolNet
from .. import robust_segmenters
from ..context import StageContext
from ..experiment import Episode, EvaluateOptions, RenderOptions, check_names, method_name, write_result
from ..predictor import PredictOptions
from ..robust_segmenters import REPORT, SEGMENTER, VICTIM, WORST, check_options, metric_of
from .config import RPPGDExperiment, feature_arguments
from .images import load_images
from .learned_attack import open_attack
from .training import build_victim, segmenter

WINDOWS = {
    voc.CLASSES: REFERENCE["voc"],
    cityscapes.CLASSES: REFERENCE["cityscapes"],
    ade20k.CLASSES: REFERENCE["ade20k"],
}
"""The released program's protocol of each data set, which is known by its classes."""
KINDS = {"nmiou": "NmIoU", "acc": "accuracy of an image"}
"""Metrics of the table of results, means over images."""
COLUMNS = tuple(
    Column(f"{name}_{kind}", f"{title}, {about}", "%", 100, 1)
    for name, title in ((WORST, "Worst attack"), ("clean", "Clean"))
    for kind, about in KINDS.items()
)
"""The first columns of the table of results; those of each attack follow."""


class Images(NamedTuple):
    """Photographs of their own sizes, or slices, with labels."""

    ids: list[str]
    groups: list[str]
    pixels: list[Tensor]
    """float32 [C, H, W] in [0, 1]."""
    labels: list[Tensor]
    """uint8 [H, W]."""
    origin: Origin


def evaluate(runs: Sequence[tuple[Run, RPPGDExperiment]], options: EvaluateOptions) -> tuple[list[Result], list[str]]:
    """Results of every run's segmenter, and the files left out; written into each run's folder, with a figure.

    Raises:
        ValueError: a run that is not finished, whose files were changed, or that does not go with the others; options
            that are of agents.
    """
    check_options("rp_pgd", options)
    check_names([experiment for _, experiment in runs], [])
    results, skipped, found, left_out = list[Result](), list[str](), list[AttackResult](), list[str]()
    for run, experiment in runs:
        victim, classes, epoch = trained_victim(run, experiment, unfinished=options.unfinished)
        victim.to(StageContext(experiment, run, trains=False).device)
        bad = list[BadSample]()
        images, split = _test_images(experiment, options, bad)
        skipped += [f"{one.id}: {one.reason}" for one in bad]
        folder = options.folder(run)
        attacks = _attacks(experiment)
        report = _report(victim, classes, images, experiment, attacks, epoch, folder / REPORT)
        result = _result(experiment, images, split, report, epoch, options.command)
        found, left_out = found + report.results, report.left_out
        results.append(write_result(folder, result))
        _figure(folder / f"{result.id}.png", victim, classes, images, report, experiment, attacks)
    RobustnessReport(found, left_out=left_out).write(options.folder(runs[0][0]) / REPORT)
    return results, skipped


def trained_victim(
    run: Run, experiment: RPPGDExperiment, *, unfinished: bool = False
) -> tuple[Normalized, tuple[str, ...], int]:
    """As `robust_segmenters.trained_victim`."""
    experiment = experiment.resolved()

    def begun() -> tuple[Normalized, tuple[str, ...]]:
        scenes = load_images(experiment, experiment.train_split, "--train_")
        number, seed = len(scenes.classes), experiment.seed
        return build_victim(experiment.network, experiment.training, number, seed, scenes.channels), scenes.classes

    return robust_segmenters.trained_victim(
        StageContext(experiment, run, trains=False),
        segmenter,
        begun,
        experiment.training.epochs,
        unfinished=unfinished,
    )


def victim_of(run: Run, experiment: RPPGDExperiment) -> tuple[Normalized, tuple[str, ...]]:
    """The network of a finished run, and the names of its classes; raises as `trained_victim`."""
    return trained_victim(run, experiment)[:2]


def no_masks(run: Run, experiment: RPPGDExperiment, options: PredictOptions) -> NoReturn:
    """Raises ValueError: the network is for Python."""
    raise ValueError(
        f"predict does not take runs of paper {experiment.paper!r}, such as {str(run.folder)!r}; "
        f"attacks.victims.load_victim reads its network, {SEGMENTER}/{VICTIM}, in Python, and segmenters.sliding "
        "applies it to whole photographs"
    )


def _test_images(experiment: RPPGDExperiment, options: EvaluateOptions, bad: list[BadSample]) -> tuple[Images, str]:
    split = options.split or experiment.test_split
    on_bad = bad.append if options.skip_bad else None
    scenes = load_images(experiment, split, "--", on_bad)
    if options.cases is not None:
        found = [name for name in scenes.ids if any(fnmatchcase(name, case) for case in options.cases)]
        if not found:
            raise ValueError(f"split {split!r} has no image {', '.join(options.cases)}; choose others by --cases")
        scenes = _chosen(scenes, found)
    whole = scenes.whole(on_bad)
    groups = dict(zip(scenes.ids, scenes.groups, strict=True))
    labels = [scene.label for scene in whole.values() if scene.label is not None]
    if len(labels) < len(whole):
        bare = next(name for name, scene in whole.items() if scene.label is None)
        raise ValueError(f"{bare} has no labels, by which robustness is judged; choose others by --split")
    pixels = [scene.image.float() / 255 for scene in whole.values()]
    return Images([*whole], [groups[name] for name in whole], pixels, labels, scenes.origin), split


def _chosen(scenes: Scenes, ids: list[str]) -> Scenes:
    """Those of the scenes that have these ids."""
    groups = dict(zip(scenes.ids, scenes.groups, strict=True))
    return replace(scenes, ids=ids, groups=[groups[name] for name in ids])


def _report(
    victim: Normalized,
    classes: Sequence[str],
    images: Images,
    experiment: RPPGDExperiment,
    attacks: str | list[NamedAttack],
    epoch: int,
    out: Path,
) -> RobustnessReport:
    """What the attacks leave of the victim, kept in the folder `out`."""
    settings = experiment.evaluation
    return robustness_report(
        _attacked(victim, classes, experiment),
        images.pixels,
        images.labels,
        eps=settings.radii,
        attacks=attacks,
        steps=settings.steps,
        name=_model_name(experiment, epoch),
        classes=classes,
        ids=images.ids,
        batch_size=settings.batch_size,
        ignore_index=IGNORED,
        feature_layer=_feature_layer(victim, experiment),
        out=out,
    )


def _attacks(experiment: RPPGDExperiment) -> str | list[NamedAttack]:
    """The preset, or the attacks that are named."""
    attacks = experiment.evaluation.attacks
    return attacks if isinstance(attacks, str) else [open_attack(name) for name in attacks]


def _attacked(victim: Normalized, classes: Sequence[str], experiment: RPPGDExperiment) -> nn.Module:
    """The victim, behind the protocol of the evaluation."""
    if experiment.evaluation.protocol == "whole":
        return victim
    settings, windows = experiment.evaluation, WINDOWS.get(tuple(classes), Protocol(base_size=None))
    return ProtocolNet(
        victim,
        replace(
            windows,
            crop=experiment.augmentation.crop,
            base_size=settings.base_size or windows.base_size,
            scales=tuple(settings.scales),
            flip=settings.flip,
        ),
    )


def _model_name(experiment: RPPGDExperiment, epoch: int) -> str:
    """Name of the attacked model in the report, another one for each protocol, as its results are kept by that name."""
    settings = experiment.evaluation
    parts = [method_name(experiment, epoch, experiment.training.epochs), f"seed {experiment.seed}"]
    if settings.protocol == "reference":
        parts.append(f"windows {experiment.augmentation.crop}")
        parts += [] if settings.base_size is None else [f"side {settings.base_size}"]
        parts += [] if settings.scales == [1.0] else [f"x {' '.join(f'{x:g}' for x in settings.scales)}"]
        parts += ["flip"] if settings.flip else []
    return ", ".join(parts)


def _feature_layer(victim: Normalized, experiment: RPPGDExperiment) -> str | None:
    if experiment.evaluation.protocol == "reference":
        return None
    return experiment.training.feature_layer or feature_layer_of(victim)


def _result(
    experiment: RPPGDExperiment, images: Images, split: str, report: RobustnessReport, epoch: int, command: str
) -> Result:
    epochs, data = experiment.training.epochs, (experiment.liver or experiment.data).data
    phantom = "scene phantom" if experiment.liver is None else "liver slice phantom"
    cases: list[Case] = [
        {"case_id": name, "origin": images.origin, "patient": group}
        for name, group in zip(images.ids, images.groups, strict=True)
    ]
    judged = {metric_of(one): one for one in report.results if one.kind in ("none", "white", "black")}
    of_all = dict[str, float | None]()
    for key, one in judged.items():
        values = {"nmiou": image_miou(one.counts), "acc": one.counts.accuracy}
        for row, case in enumerate(cases):
            for kind, of_each in values.items():
                value = known(of_each[row])
                case[f"{key}_{kind}"] = value
                case[f"{WORST}_{kind}"] = None if value is None else min(case.get(f"{WORST}_{kind}", value), value)
        whole = report.metrics(one.attack, one.eps)
        of_all |= {f"{key}_{name}": getattr(whole, name) for name in ("miou", "macc", "aacc")}
    name = method_name(experiment, epoch, epochs)
    titles = {key: f"{one.title}, ε = {one.eps}" for key, one in judged.items() if one.kind != "none"}
    return Result(
        id=f"{slug(name)}_seed{experiment.seed}",
        paper="RP-PGD",
        env="none",
        method=name,
        seed=experiment.seed,
        data=phantom if data == "phantom" else Path(data).name,
        split=split,
        supervision="voxel",
        mode="inductive",
        origins=count_origins(cases),
        metrics={**mean_metrics(cases), **of_all},
        cases=cases,
        settings={**plain(asdict(experiment.evaluation)), "titles": titles, "epochs": epoch},
        command=command,
    )


def _figure(
    path: Path,
    victim: Normalized,
    classes: Sequence[str],
    images: Images,
    report: RobustnessReport,
    experiment: RPPGDExperiment,
    attacks: str | list[NamedAttack],
) -> None:
    """The first images of one size under the white-box attack that left the lowest mIoU, and what is predicted of them
    before and after."""
    rivals = [one for one in report.results if one.kind == "white"]
    strongest = min(rivals, key=lambda one: report.metrics(one.attack, one.eps).miou, default=report.of("clean"))
    model, device = _attacked(victim, classes, experiment), victim.mean.device
    alike = [n for n, one in enumerate(images.pixels) if one.shape == images.pixels[0].shape]
    rows = alike[: experiment.evaluation.pictures]
    x, y = (torch.stack([part[n] for n in rows]).to(device) for part in (images.pixels, images.labels))
    valid = [one[one != IGNORED].long() for one in images.labels]
    with frozen(model):
        own = {} if isinstance(attacks, str) else {one.name: one for one in attacks}
        adversarial = (own.get(strongest.attack) or named_attack(strongest.attack))(
            model,
            x,
            y,
            eps=Epsilon.parse(strongest.eps if strongest.radius else 1.0),
            ignore_index=IGNORED,
            generator=torch.Generator().manual_seed(0),
            feature_layer=_feature_layer(victim, experiment),
            class_counts=torch.bincount(torch.cat(valid), minlength=len(classes)),
        )
        with torch.no_grad():
            before, after = (model(one).argmax(dim=1) for one in (x, adversarial))
    save_picture(path, attack_panel(x, adversarial, [y, before, after], len(classes)))


# -- one attack ----------------------------------------------------------------------------------------------------


def render(run: Run, experiment: RPPGDExperiment, options: RenderOptions) -> Episode:
    """The inner attack of the training (BIM where there is none) on one test image, step by step."""
    victim, classes, _ = trained_victim(run, experiment, unfinished=options.unfinished)
    split = options.split or experiment.test_split
    scenes = load_images(experiment, split, "--")
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
        picture = attack_panel(image, adversarial, [shown, found], len(classes))
        right = 100 * (found == labels)[labels != IGNORED].float().mean().item()
        line = f"{pool.ids[0]}, {attack.title}, step {len(shots)} of {config.steps}: {right:.1f} % of the pixels right"
        shots.append(Shot(picture, [line]))

    def watch(core: AttackCore) -> None:
        draw(core.adversarial.detach())

    attack = config.inner_attack
    arguments: dict[str, Any] = {"eps": config.eps, "steps": config.steps}
    arguments |= feature_arguments(attack, config, victim)
    arguments["generator"] = torch.Generator().manual_seed(options.seed)
    draw(attack(victim, image, labels, watch=watch, **arguments))
    return Episode(shots, class_legend(classes), shots[-1].lines[0])
