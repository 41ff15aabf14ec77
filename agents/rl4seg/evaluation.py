"""The evaluation protocol of RL4Seg: every method on unseen target images (docs/rl4seg.md, Method 11-12).

u = uncertainty map in [0, 1]. All methods are scored on one path: most probable labels, then the largest heart. The
uncertainty of a method is judged on its own most probable labels, before that.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from ...common.checks import check_choice
from ...common.names import slug
from ...common.runs import Run, plain
from ...datasets.echo.images import echo_splits, load_echo
from ...datasets.images import ImagePool
from ...datasets.sample import BadSample
from ...datasets.selection import SelectionError
from ...envs.rl4seg import DICE, EchoEnv
from ...evaluation import report as reports
from ...evaluation.calibration import (
    Calibration,
    RiskCoverage,
    calibration,
    error_detection,
    uncertainty_report,
)
from ...evaluation.calibration_figures import save_reliability_figure
from ...evaluation.echo import METRICS, dice_batch32, echo_cases, largest_heart, subject_validity
from ...evaluation.echo_figures import EchoView, save_echo_figure
from ...evaluation.films import Shot
from ...evaluation.report import Column, mean_metrics
from ...evaluation.results import Case, Result, count_origins
from ...rewards.ranking import truth_preferred
from ..experiment import Episode, EvaluateOptions, RenderOptions, baselines_of, check_names, write_result
from ..policy import play, reference
from ..predictor import POLICY
from .baselines import BASELINES, SOURCE_ONLY
from .budget import spent
from .config import RL4SegExperiment
from .context import AT_ONCE, Context
from .methods import OWN_ENTROPY, MethodPrediction, Methods
from .prediction import save_masks
from .rules import POLICIES, NetworkPolicy
from .stages import policy_folder, reward_function
from .training import everything

log = logging.getLogger(__name__)
COLUMNS = (
    METRICS["dice_avg"],
    Column("dice", "Dice, LV and MYO", "%", 100, 1),
    *(METRICS[name] for name in ("dice_endo", "dice_myo", "dice_epi", "hd_endo_mm", "hd_epi_mm", "valid")),
)
"""The table of results."""
SPENT = (
    Column("gradient_steps", "Gradient steps", digits=0),
    Column("gradient_steps_others", "Gradient steps, other networks", digits=0),
    Column("gold_fraction", "Gold", "%", 100, 0),
)
"""What each method has spent in training, in that table: see `budget.spent`."""
UNCERTAINTY_COLUMNS = (
    *("error_auroc", "ece", METRICS["dice_avg"]),
    Column("truth_preferred", "Truth preferred", "%", 100, 1),
    Column("truth_preferred_regions", "Truth preferred, regions", "%", 100, 1),
)
"""The table of the results that say how sure they are."""


def evaluate(runs: Sequence[tuple[Run, RL4SegExperiment]], options: EvaluateOptions) -> tuple[list[Result], list[str]]:
    """Results of every method of every run, and the files left out. Writes results and figures into each run's folder.

    Of runs with one seed, what is not a policy of PPO comes from the first that has it. `cases` are test patients,
    `split` is one of the target's.

    Raises:
        ValueError: a run that is not finished, whose files were changed, or that does not go with the others.
    """
    policies = options.policies or []
    _check_together([experiment for _, experiment in runs], policies)
    results: list[Result] = []
    skipped: list[str] = []
    for run, experiment in runs:
        context, folder = _finished(run, experiment), options.folder(run)
        images, split, bad = _test_images(context, options)
        skipped += bad
        known = images.known_labels
        if known is None:
            log.warning("none of the %d test images has labels: their masks are judged by validity only", len(images))
        elif len(known.rows) < len(images):
            text = "%d of the %d test images have labels: what needs labels is the mean over these, validity over all"
            log.warning(text, len(known.rows), len(images))
        reliable: dict[str, Calibration] = {}
        risky: dict[str, RiskCoverage] = {}
        predictions = _predictions(context, images, policies)
        for prediction, cost in tqdm(predictions, desc=f"seed {experiment.seed}", unit="method", disable=None):
            if (prediction.method, experiment.seed) in {(result.method, result.seed) for result in results}:
                continue
            result = _result(context, images, split, prediction, cost, options.command)
            if prediction.uncertainty is not None and known is not None and len(known.rows) > 1:  # it ranks images
                dice = torch.tensor([result.cases[row]["dice"] for row in known.rows], dtype=torch.float64)
                u, masks = prediction.uncertainty[known.rows], prediction.masks[known.rows]
                report = uncertainty_report(u, masks, known.labels, dice)
                result.metrics.update({f"all_{name}": value for name, value in report.metrics.items()})
                reliable[prediction.method], risky[prediction.method] = report.calibration, report.pixels
            results.append(write_result(folder, result))
            log.info("seed %d: %s is evaluated", experiment.seed, result.method)
            _figure(context, images, prediction, folder / f"{result.id}.png")
            if options.save_masks:
                save_masks(context, images, prediction, folder / "masks" / slug(prediction.method))
        if reliable:
            labelled = len(images) if known is None else len(known.rows)
            title = f"Uncertainty of each method on its own masks, {labelled} images"
            path = folder / f"uncertainty_seed{experiment.seed}.png"
            save_reliability_figure(path, reliable, title=title, risk=risky, risk_name="wrong")
    return results, skipped


def _check_together(experiments: Sequence[RL4SegExperiment], policies: Sequence[str]) -> None:
    """Check, before the work, that the results can stand in one table."""
    for name in policies:
        reference(POLICIES, name)
    taken = [(name, e.seed) for e in experiments for name in policies]
    taken += [(row.title, e.seed) for e in experiments for row in baselines_of(BASELINES, e.baselines, e).values()]
    looped = [e for e in experiments if e.iterations]
    check_names(looped, taken + [(f"{e.name}{OWN_ENTROPY}", e.seed) for e in looped if e.reward == "reward_net"])
    if len({repr(experiment.target) for experiment in experiments}) > 1:
        raise ValueError("the runs have different targets; evaluate them apart")


def _finished(run: Run, experiment: RL4SegExperiment) -> Context:
    """Context of a run, after checking that all stages are finished and unchanged since."""
    context = Context(experiment.resolved(), run, trains=False)
    everything(context)
    return context


def test_split(experiment: RL4SegExperiment) -> str:
    """The split of the target that is evaluated where none is named: see `RL4SegExperiment.test_split`."""
    if experiment.test_split is not None:
        return experiment.test_split
    target = experiment.target
    if "test" in echo_splits(target):
        return "test"
    adapted = (experiment.pool or ["train"])[0]
    log.warning(
        "%r has no split 'test': taking %r, the images that were adapted to, without their labels; choose another with "
        "--split, or by the key test_split",
        target.data,
        adapted,
    )
    return adapted


def _test_images(context: Context, options: EvaluateOptions) -> tuple[ImagePool, str, list[str]]:
    """The test images, the name of their split, and a line for each bad file that was left out."""
    target, split, bad = context.experiment.target, options.split or test_split(context.experiment), list[BadSample]()
    if options.cases is not None:
        cases = options.cases
        split = ", ".join(cases) if len(cases) < 4 else f"{cases[0]} ... {cases[-1]}"
        target = replace(target, patients={split: cases})
    try:
        images = load_echo(target, split, bad.append if options.skip_bad else None).to(context.device)
    except SelectionError as error:
        option = "--split" if options.cases is None else "--cases"
        raise ValueError(f"{error.reason}; choose others by {option}") from error
    if known := sorted(set(context.source.groups) & set(images.groups)):
        raise ValueError(f"patients {', '.join(known[:5])} were learned from with labels; evaluate others")
    return images, split, [f"{image.id}: {image.reason}" for image in bad]


def _predictions(
    context: Context, images: ImagePool, policies: Sequence[str]
) -> Iterator[tuple[MethodPrediction, dict[str, float | None]]]:
    """Reference policies, baselines, and the trained policy last; and what each has spent in training."""
    methods, experiment = Methods(context), context.experiment
    names = [*policies, *baselines_of(BASELINES, experiment.baselines, experiment)]
    for name in [*names, *([POLICY] if experiment.iterations else [])]:
        context.asked.clear()
        predictions = methods.load(name)(images)
        helpers = BASELINES[name].helpers if name in BASELINES else ()
        cost = {} if name in POLICIES else spent(context, name, context.asked, helpers)
        yield from ((prediction, cost) for prediction in predictions)


# -- what is kept of it ----------------------------------------------------------------------------------------------


def _result(
    context: Context,
    images: ImagePool,
    split: str,
    prediction: MethodPrediction,
    cost: dict[str, float | None],
    command: str,
) -> Result:
    experiment = context.experiment
    seen = set(context.target.groups) if prediction.sees_target else set()
    cases = _cases(images, prediction)
    metrics: dict[str, float | None] = dict(mean_metrics(cases))
    metrics["subject_valid"] = subject_validity(cases)
    if (known := images.known_labels) is not None:
        metrics |= dice_batch32(largest_heart(prediction.masks[known.rows]), known.labels)
    target = experiment.target
    return Result(
        id=f"{slug(prediction.method)}_seed{experiment.seed}",
        paper="RL4Seg",
        env="RL4Seg-Echo-v0",
        method=prediction.method,
        seed=experiment.seed,
        data=f"echo phantom, vendor {target.vendor}" if target.data == "phantom" else Path(target.data).name,
        split=split,
        supervision=prediction.supervision,
        mode="transductive" if seen & set(images.groups) else "inductive",
        origins=count_origins(cases),
        metrics=metrics,
        cases=cases,
        settings={
            "post_processing": "largest 4-connected component of LV and MYO",
            "acquisition": plain(asdict(target.acquisition)),
            "size": target.size,
            "source_images": len(context.source),
            "target_images": len(context.target),
            "iterations": experiment.iterations,
            "init_channels": experiment.network.init_channels,
            "norm_mode": experiment.network.norm_mode,
            **cost,
        },
        command=command,
    )


def _cases(images: ImagePool, prediction: MethodPrediction) -> list[Case]:
    """Metrics of each image; where the truth is unknown, those that need none."""
    cases, known = echo_cases(images, prediction.masks), images.known_labels
    if prediction.uncertainty is not None and known is not None:
        for n, labels in zip(*known, strict=True):
            heart = (prediction.masks[n] | labels) != 0
            u, wrong = prediction.uncertainty[n][heart], (prediction.masks[n] != labels)[heart]
            cases[n]["ece"] = calibration(1 - u, ~wrong).ece
            cases[n]["error_auroc"] = error_detection(u, wrong)[0]
    if prediction.judge is not None and known is not None:
        found = truth_preferred(prediction.judge, images, prediction.masks, AT_ONCE)
        for n, whole, regions in zip(known.rows, found.image.tolist(), found.regions.tolist(), strict=True):
            cases[n] |= {"truth_preferred": whole, "truth_preferred_regions": regions}
    return cases


def differences(results: Sequence[Result]) -> str | None:
    """The table of differences from AdaBN with the corrector, or without it from AdaBN, or without both from the source
    network; None where there is nothing else."""
    methods = {result.method for result in results}
    references = (BASELINES["adabn_corrector"].title, BASELINES["adabn"].title, SOURCE_ONLY)
    reference = next((name for name in references if name in methods), None)
    if reference is None or len(methods) == 1:
        return None
    shown = (*COLUMNS[:2], METRICS["hd_epi_mm"], METRICS["valid"])
    return reports.differences(results, reference, shown)


def _figure(context: Context, images: ImagePool, prediction: MethodPrediction, path: Path) -> None:
    known = images.known_labels
    shown = range(min(context.experiment.evaluation.pictures, len(images)))
    hearts = largest_heart(prediction.masks[: len(shown)])
    truths = dict(zip(*known, strict=True)) if known else {}
    views = [
        EchoView(
            images.ids[n],
            images.images[n, 0].cpu().numpy(),
            truths[n].cpu().numpy() if n in truths else None,
            hearts[n].cpu().numpy(),
            None if prediction.uncertainty is None else prediction.uncertainty[n].clamp(0, 1).cpu().numpy(),
            (float(images.spacing_mm[n, 0]), float(images.spacing_mm[n, 1])),
        )
        for n in shown
    ]
    save_echo_figure(path, views, title=prediction.method)


def lines(experiment: RL4SegExperiment, run: Run) -> list[dict[str, float]]:
    """What the PPO of every iteration logged, one after the other; steps are counted through all of them."""
    found, before = list[dict[str, float]](), 0.0
    for i in range(1, experiment.iterations + 1):
        found += [{**line, "step": before + line["step"]} for line in run.stage(f"iteration_{i}/ppo").metrics()]
        before = max((line["step"] for line in found), default=0.0)
    return found


def render(run: Run, experiment: RL4SegExperiment, options: RenderOptions) -> Episode:
    """One image as every policy of the run masks it, π_0 first, with the last reward.

    Raises:
        ValueError: a run without a policy or that is not finished, or an image or split that there is not.
    """
    last = experiment.iterations
    if last == 0:
        raise ValueError("there is no policy of PPO in a run with iterations = 0")
    context = _finished(run, experiment)
    split = options.split or test_split(context.experiment)
    images = load_echo(context.experiment.target, split).to(context.device)
    if options.case is not None:
        check_choice("case", options.case, images.ids)
    index = images.ids.index(options.case) if options.case else 0
    reward = reward_function(context, last)
    settings = {"reward": reward} if isinstance(reward, str) else {"reward_function": reward}
    env = EchoEnv(images=images, device=context.device, render_mode="rgb_array", **settings)
    env.shows_truth = options.truth
    env.seed([options.seed])
    shots: list[Shot] = []

    def draw(line: str) -> None:
        picture = env.render()
        assert picture is not None
        shots.append(Shot(picture, [line, env.caption(0)]))

    env.reset(options={"index": index})
    draw("before the first policy")
    for i in range(last + 1):
        env.reset(options={"index": index})
        (info,) = play(env, NetworkPolicy(context.load(policy_folder(context, i)))).infos
        dice = ", ".join(f"{name[5:]} {info[name]:.3f}" for name in DICE if name in info)
        draw(f"policy {i} of {last}, reward {float(env.pixel_reward.mean()):.3f}{f', Dice {dice}' if dice else ''}")
    text = f"{images.ids[index]}, policies 0 to {last}" + (f"; Dice {dice}" if dice else "")
    return Episode(shots, env.legend(), text)
