"""The evaluation protocol of SPARS: policies, rules and the score map on unseen cases (paper: SPARS sections 7, 10).

A = painted map, θ = mask threshold, K = rollouts per case, f = presence score, B = score map. Every method sees the
same cases; rules and score maps use classifier, τ and starts of the first run of their seed. θ is chosen on the
validation cases by mean Dice, and reported beside θ = 0.5.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...common.runs import Run, plain, slug
from ...datasets.liver.cases import iter_liver_cases, liver_case_ids
from ...datasets.liver.lesions import TUMOUR
from ...envs.core import Frame
from ...envs.spars import RULES, SparsEnv
from ...envs.spars_config import SparsConfig
from ...evaluation.metrics import dice, segmentation_metrics
from ...evaluation.report import Column, mean_metrics
from ...evaluation.results import Case, Result, count_origins
from ...evaluation.volume_figures import CaseView, save_case_figure
from .rollouts import PAPER_THRESHOLD, Maps, choose_threshold, roll_out, score_map
from .rules import BfsToTau
from .training import TRAIN, CaseChoice, EvaluationConfig, SparsExperiment, env_of, load_policies

log = logging.getLogger(__name__)

METRICS = {
    one.name: one
    for one in (
        Column("dice_at_0.5", "Dice, θ = 0.5", "%", 100, 1, needs_target=True),
        Column("success", "Tumour touched", "%", 100, 1, needs_target=True),
        Column("terminal_hit", "Episodes ended on tumour", "%", 100, 1, needs_target=True),
        Column("steps", "Steps", "", 1, 1),
    )
}
"""Columns of the metrics that `report.STANDARD` lacks, by name."""
COLUMNS = ("dice", METRICS["dice_at_0.5"], "hd95_mm", "lesion_recall", METRICS["terminal_hit"], METRICS["steps"])
"""The table of results."""


def evaluate(
    runs: Sequence[tuple[Run, SparsExperiment]],
    *,
    command: str,
    split: str | None = None,
    cases: list[str] | None = None,
    skip_bad: bool = False,
) -> tuple[list[Result], list[str]]:
    """Results of every run's policy, and, once per seed, of the rules and the score maps; and the cases left out.

    Writes results and figures into each run's folder. split, cases: other test cases than the run's own. skip_bad:
    leave bad files out, and say so, instead of raising.
    """
    choice = CaseChoice(split or "test", cases) if split or cases else None
    _check_together([experiment for _, experiment in runs])
    results: list[Result] = []
    skipped: list[str] = []
    seeds: set[int] = set()
    for run, experiment in runs:
        test, bad = _readable((choice or experiment.test).of(experiment.env), skip_bad)
        _warn_of_known_cases(experiment, test)
        validation, _ = _readable(experiment.validation.of(experiment.env), skip_bad)
        skipped += bad
        with torch.random.fork_rng():
            torch.manual_seed(experiment.seed)
            for method, maps in _methods(experiment, run, (test, validation), baselines=experiment.seed not in seeds):
                learned = method == experiment.name
                result = _result(experiment, run, method, *maps, learned=learned, command=command)
                result.write(run.folder / "evaluation" / f"{result.id}.json")
                results.append(result)
        seeds.add(experiment.seed)
    return results, skipped


def _check_together(experiments: Sequence[SparsExperiment]) -> None:
    """Say before the work what would keep the results out of one table."""
    methods = [(experiment.name, experiment.seed) for experiment in experiments]
    if twice := sorted({f"{name!r} with seed {seed}" for name, seed in methods if methods.count((name, seed)) > 1}):
        raise ValueError(
            f"two runs are called {', '.join(twice)}; train one with another --name, or evaluate them apart"
        )
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


def _known(experiment: SparsExperiment, *, agent: bool) -> set[str]:
    """Cases known to classifier (the run's own or the packaged one), thresholds and, with `agent`, policy."""
    configs = [experiment.validation.of(experiment.env)]
    if experiment.env.classifier == TRAIN:
        configs.append(experiment.classifier_train.of(experiment.env))
    elif experiment.env.classifier == "packaged" and experiment.env.data == "phantom":
        configs.append(CaseChoice(split="classifier_train").of(experiment.env))
    if agent:
        configs.append(experiment.env)
    return {case_id for config in configs for case_id in liver_case_ids(config)}


def _warn_of_known_cases(experiment: SparsExperiment, test: SparsConfig) -> None:
    if seen := sorted(_known(experiment, agent=False) & set(liver_case_ids(test))):
        log.warning("the labels of test cases %s were used for training or choosing: scores flatter", ", ".join(seen))


def _methods(
    experiment: SparsExperiment, run: Run, configs: tuple[SparsConfig, SparsConfig], *, baselines: bool
) -> Iterator[tuple[str, tuple[Maps, Maps]]]:
    """Name of each method, and its maps of the test and of the validation cases."""
    protocol, seed = experiment.evaluation, experiment.seed

    def both(maps_of: Callable[[SparsEnv], Maps], envs: Sequence[SparsEnv]) -> tuple[Maps, Maps]:
        return maps_of(envs[0]), maps_of(envs[1])

    def envs(**changes: Any) -> list[SparsEnv]:
        """One slot for every rollout of every case."""
        slots = [len(liver_case_ids(config)) * protocol.rollouts for config in configs]
        changed = [replace(config, eval_dice=False, **changes) for config in configs]
        return [env_of(experiment, run, config, num_envs=n) for config, n in zip(changed, slots, strict=True)]

    def by_policy(env: SparsEnv) -> Maps:
        learner, opponent = load_policies(experiment, run, env)
        env.set_opponent(opponent)
        return roll_out(
            env,
            lambda env: learner.act(env.observe(), protocol.deterministic),
            jitter_cells=protocol.jitter_cells,
            seed=seed,
        )

    if experiment.ppo.total_timesteps:
        yield experiment.name, both(by_policy, envs())
    if baselines:  # nobody competes, so that nobody else ends an episode
        alone = envs(n_agents=1, reward=None, obs_mode="own_window")
        for name in (*RULES, "bfs_to_tau"):
            yield name, both(partial(_by_rule, name=name, protocol=protocol, seed=seed), alone)
        for reduce in ("mean", "max"):
            yield f"score map ({reduce})", both(partial(score_map, reduce=reduce), alone)


def _by_rule(env: SparsEnv, name: str, protocol: EvaluationConfig, seed: int) -> Maps:
    rule = BfsToTau(env) if name == "bfs_to_tau" else RULES[name]
    return roll_out(env, lambda env: rule(env, 0), jitter_cells=protocol.jitter_cells, seed=seed)


def _result(
    experiment: SparsExperiment, run: Run, method: str, test: Maps, validation: Maps, *, learned: bool, command: str
) -> Result:
    theta = choose_threshold(validation)
    protocol = experiment.evaluation
    cases: list[Case] = []
    views: list[CaseView] = []
    for number, case in enumerate(tqdm(test.env.cases, desc=method, unit="case")):
        if case.label is None:
            log.warning("%s has no label and is left out of the metrics", case.id)
            continue
        blocks = test.blocks[number]
        masks = [test.inside(number, level) for level in (theta, PAPER_THRESHOLD)]
        truth = case.label == TUMOUR
        metrics = segmentation_metrics(masks[0], truth, case.spacing_mm, tolerance_mm=protocol.tolerance_mm)
        metrics["dice_at_0.5"] = dice(masks[1], truth)
        metrics["success"] = float(bool((masks[0] & truth).any()))
        cases.append({"case_id": case.id, "origin": case.origin, **metrics, **test.said[number]})
        if len(views) < protocol.pictures:
            heat = test.env.lattice.expand(blocks / blocks.max().clamp(min=1e-9)).float().cpu().numpy()
            views.append(CaseView(case.id, case.image.numpy(), truth.numpy(), masks[0].numpy(), heat, case.spacing_mm))
    save_case_figure(run.media / f"{slug(method)}.png", views, title=f"{method}, θ = {theta:.3g}", heat_name="map")
    seen = {base(case_id) for case_id in _known(experiment, agent=learned)}
    return Result(
        id=f"{slug(method)}_seed{experiment.seed}",
        paper="SPARS",
        env="SPARS-LiverCT-v0",
        method=method,
        seed=experiment.seed,
        data="liver phantom" if experiment.env.data == "phantom" else Path(experiment.env.data).name,
        split=test.env.config.split if test.env.config.cases is None else ", ".join(test.env.config.cases),
        supervision="voxel" if experiment.env.score_source == "oracle_fraction" else "window",
        mode="transductive" if seen & {base(case["case_id"]) for case in cases} else "inductive",
        origins=count_origins(cases),
        metrics=dict(mean_metrics(cases, METRICS.values())),
        cases=cases,
        settings={
            "mask_threshold": theta,
            "mask_threshold_from": "validation cases, highest mean Dice",
            "protocol": plain(asdict(protocol)),
            "window_size": plain(test.env.config.window_size),
            "threshold": test.env.config.threshold,
            "total_timesteps": experiment.ppo.total_timesteps,
        },
        command=command,
    )


def render(run: Run, experiment: SparsExperiment, *, case: str | None, seed: int) -> tuple[list[Frame], str]:
    """The pictures of one episode of the trained policy on a case (default: the first test case), and how it ended."""
    experiment = experiment.resolved()
    cases = experiment.test.of(experiment.env)
    one = replace(cases, cases=[case or liver_case_ids(cases)[0]])
    env = env_of(experiment, run, one, num_envs=1, render_mode="rgb_array")
    learner, opponent = load_policies(experiment, run, env)
    env.set_opponent(opponent)
    env.seed([seed])
    torch.manual_seed(seed)
    env.reset()
    frames = [env.render()]
    over = False
    while not over:
        _, terminated, truncated = env.step(learner.act(env.observe(), deterministic=False))
        frames.append(env.render())
        over = bool(terminated | truncated)
    said = env.episode_info(torch.tensor([0], device=env.device))[0]
    ending = f"{len(frames) - 1} steps, ended by {said['reason']}, Dice {said.get('dice', float('nan')):.3f}"
    return [frame for frame in frames if frame is not None], ending
