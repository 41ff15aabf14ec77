"""The evaluation protocol of RL4Seg: every method on unseen target images (paper: RL4Seg, sections 7 and 10).

u = uncertainty map in [0, 1]. All methods are scored on one path: most probable labels, then the largest heart. The
uncertainty of a method is judged on its own most probable labels, before that.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ...common.runs import Run, plain, slug
from ...datasets.echo.images import load_echo
from ...datasets.images import ImagePool
from ...datasets.sample import BadSample
from ...envs.core import Frame
from ...envs.rl4seg import DICE, EchoEnv
from ...envs.rl4seg_config import OF_TRUTH
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
from ...evaluation.report import mean_metrics
from ...evaluation.results import Case, Result, count_origins
from ...rewards.echo_validity import valid_masks
from ...segmenters.inference import probabilities, segment
from ...segmenters.uncertainty import augmented, ensemble, entropy_map, mc_dropout
from .baselines import ADABN, AUGMENTED, CORRECTOR, METHODS, OTHERS, SOURCE_BOUND, SOURCE_ONLY, TITLES, supervision
from .config import RL4SegExperiment
from .context import AT_ONCE, Context
from .stages import adabn_net, corrector, loop, policy_folder, reward_function, source_net

log = logging.getLogger(__name__)

COLUMNS = tuple(
    METRICS[name] for name in ("dice_avg", "dice_endo", "dice_myo", "dice_epi", "hd_endo_mm", "hd_epi_mm", "valid")
)
"""The table of results."""
UNCERTAINTY_COLUMNS = ("error_auroc", "ece", METRICS["dice_avg"])
"""The table of the results that say how sure they are."""


@dataclass(frozen=True)
class Answer:
    """What a method says of all test images."""

    method: str
    masks: Tensor
    """uint8 [N, H, W], the most probable labels."""
    uncertainty: Tensor | None = None
    """u, float32 [N, H, W]."""
    supervision: str = "source"


def evaluate(
    runs: Sequence[tuple[Run, RL4SegExperiment]],
    *,
    command: str,
    split: str | None = None,
    cases: list[str] | None = None,
    skip_bad: bool = False,
) -> tuple[list[Result], list[str]]:
    """Results of every method of every run, and the files left out. Writes results and figures into each run's folder.

    Of runs with one seed, what is not a policy of PPO comes from the first that has it.

    split: another split of the target than "test". cases: test patients instead of a split, as patterns. skip_bad:
    leave bad files out, and say so, instead of raising.

    Raises:
        ValueError: a run that is not finished, whose files were changed, or that does not go with the others.
    """
    _check_together([experiment for _, experiment in runs])
    results: list[Result] = []
    skipped: list[str] = []
    for run, experiment in runs:
        context, bad = _finished(run, experiment), list[BadSample]()
        target = context.experiment.target
        if cases is not None:
            split = ", ".join(cases) if len(cases) < 4 else f"{cases[0]} ... {cases[-1]}"
            target = replace(target, patients={split: cases})
        images = load_echo(target, split or "test", bad.append if skip_bad else None).to(context.device)
        if known := sorted(set(context.source.groups) & set(images.groups)):
            raise ValueError(f"patients {', '.join(known[:5])} were learned from with labels; evaluate others")
        skipped += [f"{image.id}: {image.reason}" for image in bad]
        reliable: dict[str, Calibration] = {}
        risky: dict[str, RiskCoverage] = {}
        for answer in tqdm(_answers(context, images), desc=f"seed {experiment.seed}", unit="method"):
            if (answer.method, experiment.seed) in {(result.method, result.seed) for result in results}:
                continue
            result = _result(context, images, split or "test", answer, command)
            if answer.uncertainty is not None and images.labels is not None:
                dice = torch.tensor([case["dice"] for case in result.cases], dtype=torch.float64)
                report = uncertainty_report(answer.uncertainty, answer.masks, images.labels, dice)
                result.metrics.update({f"all_{name}": value for name, value in report.metrics.items()})
                reliable[answer.method], risky[answer.method] = report.calibration, report.pixels
            result.write(run.folder / "evaluation" / f"{result.id}.json")
            results.append(result)
            _figure(context, images, answer)
        if reliable:
            title = f"Uncertainty of each method on its own masks, {len(images)} images"
            save_reliability_figure(run.media / "uncertainty.png", reliable, title=title, risk=risky, risk_name="wrong")
    return results, skipped


def _check_together(experiments: Sequence[RL4SegExperiment]) -> None:
    """Say before the work what would keep the results out of one table."""
    keys = [(experiment.name, experiment.seed) for experiment in experiments if experiment.iterations]
    if twice := sorted({f"{name!r} with seed {seed}" for name, seed in keys if keys.count((name, seed)) > 1}):
        raise ValueError(f"two runs are called {', '.join(twice)}; train one with another --name, or evaluate apart")
    of_others = {(name, e.seed) for e in experiments for name in (*OTHERS, *(TITLES[method] for method in e.methods))}
    if clash := sorted({name for name, seed in keys if (name, seed) in of_others}):
        raise ValueError(f"{', '.join(clash)} is the name of a run and of another run's method; evaluate them apart")
    if len({repr(experiment.target) for experiment in experiments}) > 1:
        raise ValueError("the runs have different targets; evaluate them apart")


def _finished(run: Run, experiment: RL4SegExperiment) -> Context:
    """What the stages of a run share, after checking that all are finished and nobody changed them since."""
    context = Context(experiment.resolved(), run, trains=False)
    loop(context)
    for method in experiment.methods:
        METHODS[method](context)
    return context


# -- what each method answers --------------------------------------------------------------------------------------


def _answers(context: Context, images: ImagePool) -> Iterator[Answer]:
    """Every method of a run, the policy last."""
    experiment, protocol = context.experiment, context.experiment.evaluation
    source = context.load(source_net(context))
    yield Answer(SOURCE_ONLY, segment(source, images.images))
    if "mc_dropout" in experiment.methods or "ensemble" in experiment.methods:
        views = augmented(source, images.images, protocol.tta_passes, context.seed("tta"))
        yield Answer(AUGMENTED, views.argmax(dim=1).byte(), entropy_map(views))
    if experiment.iterations:
        if experiment.network.norm_mode != "group":
            yield Answer(ADABN, segment(context.load(adabn_net(context)), images.images))
        if (context.run.stage("shape_prior").folder / "manifest.json").is_file():
            yield Answer(CORRECTOR, corrector(context)(segment(source, images.images)))
    for name in experiment.methods:
        nets = METHODS[name](context)
        if isinstance(nets, list):
            mean = ensemble(nets, images.images)
        elif name == "mc_dropout":
            mean = mc_dropout(nets, images.images, protocol.mc_passes, context.seed("mc_dropout"))
        else:
            yield Answer(TITLES[name], segment(nets, images.images), supervision=supervision(name))
            continue
        yield Answer(TITLES[name], mean.argmax(dim=1).byte(), entropy_map(mean))
    if experiment.iterations:
        yield from _policy(context, images)


def _policy(context: Context, images: ImagePool) -> Iterator[Answer]:
    """The last policy: with the reward network's doubt, and with the entropy of its own probabilities."""
    experiment = context.experiment
    net = context.load(policy_folder(context, experiment.iterations))
    masks = segment(net, images.images)
    labels = experiment.gold.source == "gt" or experiment.reward in OF_TRUTH
    supervision = "source and target" if labels else "source"
    if experiment.reward != "reward_net":
        yield Answer(experiment.name, masks, supervision=supervision)
        return
    judge = context.reward_net(experiment.iterations)
    with torch.no_grad():
        rows = torch.arange(len(images), device=context.device)
        trust = [judge(images.at(part), masks[part], calibrated=True) for part in torch.split(rows, AT_ONCE)]
    own = entropy_map(probabilities(net, images.images))
    yield Answer(f"{experiment.name}, softmax", masks, own, supervision)
    yield Answer(experiment.name, masks, 1 - torch.cat(trust), supervision)


# -- what is kept of it ----------------------------------------------------------------------------------------------


def _result(context: Context, images: ImagePool, split: str, answer: Answer, command: str) -> Result:
    experiment = context.experiment
    seen = set() if answer.method in SOURCE_BOUND else set(context.target.groups)
    cases = _cases(images, answer)
    metrics: dict[str, float | None] = dict(mean_metrics(cases))
    metrics["subject_valid"] = subject_validity(cases)
    if images.labels is not None:
        metrics |= dice_batch32(largest_heart(answer.masks), images.labels)
    target = experiment.target
    return Result(
        id=f"{slug(answer.method)}_seed{experiment.seed}",
        paper="RL4Seg",
        env="RL4Seg-Echo-v0",
        method=answer.method,
        seed=experiment.seed,
        data=f"echo phantom, vendor {target.vendor}" if target.data == "phantom" else Path(target.data).name,
        split=split,
        supervision=answer.supervision,
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
        },
        command=command,
    )


def _cases(images: ImagePool, answer: Answer) -> list[Case]:
    """Metrics of each image; where the truth is unknown, validity only."""
    if images.labels is None:
        valid = valid_masks(largest_heart(answer.masks)).tolist()
        names = zip(images.ids, images.groups, valid, strict=True)
        return [
            {"case_id": name, "origin": images.origin, "patient": patient, "valid": float(ok)}
            for name, patient, ok in names
        ]
    cases = echo_cases(images, answer.masks)
    if answer.uncertainty is not None:
        for n, case in enumerate(cases):
            heart = (answer.masks[n] | images.labels[n]) != 0
            u, wrong = answer.uncertainty[n][heart], (answer.masks[n] != images.labels[n])[heart]
            case["ece"] = calibration(1 - u, ~wrong).ece
            case["error_auroc"] = error_detection(u, wrong)[0]
    return cases


def _figure(context: Context, images: ImagePool, answer: Answer) -> None:
    shown = range(min(context.experiment.evaluation.pictures, len(images)))
    hearts = largest_heart(answer.masks[: len(shown)])
    views = [
        EchoView(
            images.ids[n],
            images.images[n, 0].cpu().numpy(),
            None if images.labels is None else images.labels[n].cpu().numpy(),
            hearts[n].cpu().numpy(),
            None if answer.uncertainty is None else answer.uncertainty[n].clamp(0, 1).cpu().numpy(),
            (float(images.spacing_mm[n, 0]), float(images.spacing_mm[n, 1])),
        )
        for n in shown
    ]
    save_echo_figure(context.run.media / f"{slug(answer.method)}.png", views, title=answer.method)


def render(run: Run, experiment: RL4SegExperiment, *, case: str | None, seed: int) -> tuple[list[Frame], str]:
    """One image as every policy of the run masks it, π_0 first, with the last reward; and the last one's Dice.

    case: id of a test image; None: the first.
    """
    last = experiment.iterations
    if last == 0:
        raise ValueError("there is no policy of PPO in a run with iterations = 0")
    context = _finished(run, experiment)
    images = load_echo(context.experiment.target, "test").to(context.device)
    if case is not None and case not in images.ids:
        raise ValueError(f"case is {case!r} but the test images are {images.ids[0]}, ... {images.ids[-1]}")
    index = images.ids.index(case) if case else 0
    reward = reward_function(context, last)
    settings = {"reward": reward} if isinstance(reward, str) else {"reward_function": reward}
    env = EchoEnv(images=images, device=context.device, render_mode="rgb_array", **settings)
    env.seed([seed])
    frames: list[Frame | None] = []
    for i in range(last + 1):
        env.reset(options={"index": index})
        if not frames:
            frames.append(env.render())
        env.step(segment(context.load(policy_folder(context, i)), images.images[[index]]))
        frames.append(env.render())
    said = env.episode_info(torch.tensor([0], device=env.device))[0]
    dice = ", ".join(f"{name[5:]} {said[name]:.3f}" for name in DICE if name in said)
    text = f"{images.ids[index]}, policies 0 to {last}" + (f"; Dice {dice}" if dice else "")
    return [frame for frame in frames if frame is not None], text
