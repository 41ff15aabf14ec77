"""The evaluation protocol of SPARS: policies, rules and the score map on unseen cases (docs/spars.md, Method 12-13).

A = painted map, θ = mask threshold, K = rollouts per case, f = presence score, B = score map. Every method sees the
same cases; rules and score maps use classifier, τ and starts of the first run of their seed. What gives a case its θ
comes from the validation cases (`thresholds`); Dice at θ = 0.5 is reported beside.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ...classifiers.presence import supervision_of
from ...common.device import forked_rng, resolve_device
from ...common.names import slug
from ...common.runs import Run, plain
from ...datasets.liver.cases import LiverCase, iter_liver_cases, liver_case_ids
from ...datasets.liver.lesions import TUMOUR
from ...datasets.selection import patient_of
from ...envs.spars_config import SparsConfig
from ...evaluation.films import Shot
from ...evaluation.froc import Detections, detections, froc, levels_of
from ...evaluation.metrics import dice, hd95_mm, iou, nsd, segmentation_metrics
from ...evaluation.report import Column, mean_metrics
from ...evaluation.results import Case, Result, count_origins
from ...evaluation.volume_figures import CaseView, save_case_figure
from ...evaluation.volume_html import save_case_html
from ..experiment import (
    Episode,
    EvaluateOptions,
    RenderOptions,
    baselines_of,
    check_names,
    method_name,
    write_result,
)
from ..policy import TrainedPolicy, play_and_draw, reference
from ..predictor import POLICY
from . import thresholds
from .baselines import BASELINES, MapBaseline
from .config import TRAIN, CaseChoice, SparsExperiment
from .cost import ClassifierCost
from .methods import Cases, Methods
from .patch_rules import PATCH_POLICIES
from .prediction import save_masks
from .rollouts import PAPER_THRESHOLD, Maps, mask_of
from .rules import LABELS_OF_RULES, POLICIES
from .search_rules import SEARCH_POLICIES
from .thresholds import Threshold
from .training import env_of, load_policies, trained_baselines, trained_steps

log = logging.getLogger(__name__)
METRICS = {
    one.name: one
    for one in (
        Column("dice_at_0.5", "Dice, θ = 0.5", "%", 100, 1, needs_target=True),
        Column("success", "Tumour touched", "%", 100, 1, needs_target=True),
        Column("terminal_hit", "Episodes ended on tumour", "%", 100, 1, needs_target=True),
        Column("best_block_dice", "Best Dice of blocks", "%", 100, 1, needs_target=True),
        Column("native_dice", "Dice, native", "%", 100, 1, needs_target=True),
        Column("native_iou", "IoU, native", "%", 100, 1, needs_target=True),
        Column("native_hd95_mm", "HD95, native", "mm", 1, 1, needs_target=True),
        Column("native_nsd", "NSD, native", "%", 100, 1, needs_target=True),
        Column("steps", "Steps", "", 1, 1),
        Column("windows", "Windows", "", 1, 0),
        Column("found", "Map found", "%", 100, 1),
    )
}
"""Columns of the metrics that `report.STANDARD` lacks, by name."""
COLUMNS: tuple[Column | str, ...] = (
    *("dice", METRICS["dice_at_0.5"], METRICS["native_dice"], "hd95_mm", "lesion_recall"),
    *(METRICS[name] for name in ("terminal_hit", "steps", "windows", "found")),
)
"""The table of results; a game that lacks a metric leaves it out."""
GAME, SEARCH = ("random", "constant0", "greedy", "blind_walk", "bfs_to_tau"), tuple(SEARCH_POLICIES)
POLICIES_SHOWN = {"default": GAME, "paper": GAME, "search": SEARCH, "patch": tuple(PATCH_POLICIES)}
"""Reference policies that `evaluate` plays by default, by profile."""


def evaluate(runs: Sequence[tuple[Run, SparsExperiment]], options: EvaluateOptions) -> tuple[list[Result], list[str]]:
    """Results of every run's policy and, once per seed, of reference policies and baselines; and the cases left out.

    Writes results and figures into each run's folder.

    Raises:
        ValueError: a case, split or policy that there is not, or runs that do not go together.
    """
    choice = CaseChoice(options.split or "test", options.cases) if options.split or options.cases else None
    profile = runs[0][1].env.profile
    policies = POLICIES_SHOWN[profile] if options.policies is None else options.policies
    _check_together([experiment for _, experiment in runs], policies)
    steps = [trained_steps(experiment, run, unfinished=options.unfinished) for run, experiment in runs]
    results: list[Result] = []
    skipped: list[str] = []
    seeds: set[int] = set()
    for (run, experiment), step in zip(runs, steps, strict=True):
        if choice:
            liver_case_ids(choice.of(experiment.env), "--")
        test, bad = _readable((choice or experiment.test).of(experiment.env), options.skip_bad)
        _warn_of_known_cases(experiment, test)
        validation, _ = _readable(experiment.validation.of(experiment.env), options.skip_bad)
        skipped += bad
        with forked_rng(resolve_device(experiment.device)):
            torch.manual_seed(experiment.seed)
            others = None if experiment.seed in seeds else policies
            methods, chosen, cost = Methods(experiment, run), dict[str, Threshold](), None
            for name, maps, of_validation in _maps(methods, (test, validation), others):
                rule, empty = thresholds.mask_rule(experiment), experiment.evaluation.may_be_empty
                chosen[name] = Threshold.of(of_validation, rule, may_be_empty=empty)
                title, trained = methods.titles[name], name == POLICY
                if trained:
                    title = method_name(experiment, step, experiment.ppo.total_timesteps)
                theta, row = chosen[name], BASELINES.get(name)
                cost = cost or ClassifierCost.measured(maps.env)
                result, views = _result(
                    experiment, title, row, maps, theta, cost, trained=trained, step=step, options=options
                )
                results.append(write_result(options.folder(run), result))
                log.info("seed %d: %s is evaluated", experiment.seed, result.method)
                picture = options.folder(run) / f"{result.id}.png"
                save_case_figure(picture, views, title=f"{title}, {theta}", heat_name="map")
                if options.html:
                    save_case_html(picture.with_suffix(".html"), views, title=f"{title}, {theta}")
                if options.save_masks:
                    folder, postprocess = options.folder(run) / "masks" / slug(title), experiment.evaluation.postprocess
                    save_masks(maps, theta, title, folder, postprocess)
            thresholds.keep(experiment, run, chosen)
        seeds.add(experiment.seed)
    return results, skipped


def _check_together(experiments: Sequence[SparsExperiment], policies: Sequence[str]) -> None:
    """Check, before the work, that the results can stand in one table."""
    for name in policies:
        reference(POLICIES, name)
    taken = [(name, e.seed) for e in experiments for name in policies]
    taken += [(row.title, e.seed) for e in experiments for row in baselines_of(BASELINES, e.baselines, e).values()]
    check_names([e for e in experiments if e.ppo.total_timesteps], taken)
    if len(profiles := {experiment.env.profile for experiment in experiments}) > 1:
        raise ValueError(f"the runs play different games, profiles {', '.join(sorted(profiles))}; evaluate them apart")
    if len(data := {experiment.env.data for experiment in experiments}) > 1:
        raise ValueError(f"the runs have different data, {', '.join(sorted(data))}; evaluate them apart")


def _readable(config: SparsConfig, skip_bad: bool) -> tuple[SparsConfig, list[str]]:
    if not skip_bad:
        return config, []
    bad: list[str] = []
    good = [case.id for case in iter_liver_cases(config, lambda case: bad.append(f"{case.id}: {case.reason}"))]
    if not good:
        raise ValueError(f"no readable case in {config.data!r}: {'; '.join(bad)}")
    return replace(config, cases=good), bad


def base(case_id: str) -> str:
    """The CT behind a case: versions with other implanted lesions share it."""
    return case_id.split("#")[0]


def _known(experiment: SparsExperiment, *, agent: bool, taught: bool = False) -> set[str]:
    """Cases known to classifier (the run's own or the packaged one), thresholds, with `agent` to the policy, and with
    `taught` to a baseline that is trained."""
    configs = [experiment.validation.of(experiment.env)]
    if experiment.env.classifier == TRAIN or taught:
        configs.append(experiment.classifier_train.of(experiment.env))
    elif experiment.env.classifier == "packaged" and experiment.env.data == "phantom":
        configs.append(CaseChoice(split="classifier_train").of(experiment.env))
    if agent:
        configs.append(experiment.env)
    return {case_id for config in configs for case_id in liver_case_ids(config)}


def _of_prior(experiment: SparsExperiment) -> list[str]:
    """Cases from whose scores, without labels, is known what is likely of unseen windows."""
    choices = {TRAIN: experiment.prior_train, "packaged": CaseChoice(cases=["phantom_20000-20255"])}
    choice = choices.get(str(experiment.env.fill))
    return liver_case_ids(choice.of(experiment.env)) if choice else []


def _warn_of_known_cases(experiment: SparsExperiment, test: SparsConfig) -> None:
    taught = bool(trained_baselines(experiment))
    if seen := sorted(_known(experiment, agent=False, taught=taught) & set(liver_case_ids(test))):
        log.warning("the labels of test cases %s were used for training or choosing: scores flatter", ", ".join(seen))


def _maps(
    methods: Methods, configs: tuple[SparsConfig, SparsConfig], policies: Sequence[str] | None
) -> Iterator[tuple[str, Maps, Maps]]:
    """Name of each method, and its maps of the test and of the validation cases.

    policies: reference policies to play, followed by the baselines; None: neither.
    """
    experiment = methods.experiment
    test, validation = (Cases(experiment, methods.run, config) for config in configs)
    names = [POLICY] if experiment.ppo.total_timesteps else []
    if policies is not None:
        names += [*policies, *baselines_of(BASELINES, experiment.baselines, experiment)]
    for name in names:
        maps = methods.maps(name, test)
        if name in BASELINES:
            windows = float(BASELINES[name].windows * maps.env.lattice.size)
            maps = replace(maps, facts=[{**facts, "windows": windows} for facts in maps.facts])
        yield name, maps, methods.maps(name, validation)


def native_metrics(case: LiverCase, mask: Tensor, *, tolerance_mm: float) -> dict[str, float]:
    """native_dice, native_iou, native_hd95_mm and native_nsd of a mask on the grid, bool [X, Y, Z]: on the voxels of
    the case's own file, of the mask that `predict` writes there, against the label before it was resampled.

    Nothing where the case has no such label, as a phantom, whose voxels are the grid's.
    """
    if case.native_label is None:
        return {}
    pred, label = torch.from_numpy(case.to_native(mask)) > 0, torch.from_numpy(case.native_label()) == TUMOUR
    spacing_mm = case.frame.file.spacing_mm
    return {
        "native_dice": dice(pred, label),
        "native_iou": iou(pred, label),
        "native_hd95_mm": hd95_mm(pred, label, spacing_mm),
        "native_nsd": nsd(pred, label, spacing_mm, tolerance_mm=tolerance_mm),
    }


def _result(
    experiment: SparsExperiment,
    method: str,
    row: MapBaseline | None,
    test: Maps,
    theta: Threshold,
    cost: ClassifierCost | None,
    *,
    trained: bool,
    step: int,
    options: EvaluateOptions,
) -> tuple[Result, list[CaseView]]:
    """The result of one method, and its pictures. trained: it is the run's policy, of environment step `step`."""
    protocol, pattern = experiment.evaluation, experiment.env.patient_pattern
    of_patients = pattern is not None or experiment.env.implant_lesions is not None  # copies of a CT are alike
    cases: list[Case] = []
    views: list[CaseView] = []
    scans: list[Detections] = []
    levels = levels_of(test.blocks.cpu().numpy())
    for number, case in enumerate(tqdm(test.env.cases, desc=method, unit="case", disable=None)):
        if case.label is None:
            log.warning("%s has no label and is left out of the metrics", case.id)
            continue
        values = test.values(number)
        masks = [mask_of(values, level, protocol.postprocess) for level in (theta.of_case(values), PAPER_THRESHOLD)]
        truth = case.label == TUMOUR
        metrics = segmentation_metrics(masks[0], truth, case.spacing_mm, tolerance_mm=protocol.tolerance_mm)
        scans.append(detections(values, truth, levels))
        metrics["dice_at_0.5"] = dice(masks[1], truth)
        metrics["best_block_dice"] = test.env.lattice.best_block_dice(test.env.painting.tumour_blocks(number))
        metrics["success"] = float(bool((masks[0] & truth).any()))
        metrics |= native_metrics(case, masks[0], tolerance_mm=protocol.tolerance_mm)
        patient = {"patient": patient_of(base(case.id), pattern)} if of_patients else {}
        cases.append({"case_id": case.id, "origin": case.origin, **patient, **metrics, **test.facts[number]})
        if len(views) < protocol.pictures:
            heat = (values / values.max().clamp(min=1e-9)).numpy()
            organ, shown = (case.label > 0).numpy(), (case.image.numpy(), truth.numpy(), masks[0].numpy(), heat)
            views.append(CaseView(case.id, *shown, case.spacing_mm, organ))
    learned = row.sees_target if row else trained
    known = _known(experiment, agent=learned, taught=row is not None and row.networks is not None)
    seen = {base(case_id) for case_id in [*known, *_of_prior(experiment)]}
    classifier = test.env.config.classifier
    of_scores = (
        "voxel" if experiment.env.score_source == "oracle_fraction" else supervision_of(classifier or "packaged")
    )
    own = row.supervision if row else LABELS_OF_RULES.get(method)
    total = experiment.ppo.total_timesteps
    means = mean_metrics(cases, METRICS.values())
    seconds = None
    if cost and "windows" in means:
        seconds = cost.of(means["windows"], all_of_them=means["windows"] == test.env.lattice.size)
    result = Result(
        id=f"{slug(method)}_seed{experiment.seed}",
        paper="SPARS",
        env="SPARS-LiverCT-v0",
        method=method,
        seed=experiment.seed,
        data="liver phantom" if experiment.env.data == "phantom" else Path(experiment.env.data).name,
        split=test.env.config.split if test.env.config.cases is None else ", ".join(test.env.config.cases),
        supervision=own or of_scores,
        mode="transductive" if seen & {base(case["case_id"]) for case in cases} else "inductive",
        origins=count_origins(cases),
        metrics={**means, **froc(scans)},
        cases=cases,
        settings={
            "mask_threshold": theta.value,
            "mask_threshold_from": thresholds.ORIGIN[thresholds.mask_rule(experiment)],
            "calibration": theta.written()["calibration"],
            "presence": theta.written()["presence"],
            "protocol": plain(asdict(protocol)),
            "window_size": plain(test.env.config.window_size),
            "threshold": test.env.config.threshold,
            "classifier_seconds": seconds,
            "total_timesteps": step,
            **({"unfinished": f"step {step} of {total}"} if step < total else {}),
        },
        command=options.command,
    )
    return result, views


def render(run: Run, experiment: SparsExperiment, options: RenderOptions) -> Episode:
    """One episode of the trained policy on a case (default: the first test case), with its opponent.

    Raises:
        ValueError: a case or split that there is not, or a run that is not finished.
    """
    experiment = experiment.resolved()
    total = experiment.ppo.total_timesteps
    if not total:
        raise ValueError("this run trains a classifier only: ppo.total_timesteps is 0, there is no agent to play")
    step = trained_steps(experiment, run, unfinished=options.unfinished)
    choice = CaseChoice(options.split) if options.split else experiment.test
    cases = choice.of(experiment.env)
    one = replace(cases, cases=[options.case or liver_case_ids(cases)[0]])
    env = env_of(experiment, run, one, num_envs=1, render_mode="rgb_array")
    env.shows_truth = options.truth
    learner, opponent = load_policies(experiment, run, env)
    env.set_opponent(opponent)
    env.seed([options.seed])
    torch.manual_seed(options.seed)
    shots, played = play_and_draw(env, TrainedPolicy(learner.policy))
    if step < total:
        shots = [Shot(shot.picture, [*shot.lines, method_name(experiment, step, total)]) for shot in shots]
    info = played.infos[0]
    dice = f", Dice {info['dice']:.3f}" if "dice" in info else ""
    return Episode(shots, env.legend(), f"{len(shots) - 1} steps, ended by {info['reason']}{dice}")
