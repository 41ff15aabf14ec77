"""Plain PPO on any environment: the experiment of a new environment that has no paper of its own yet, and of a learned
attacker (docs/rp-pgd.md).

`paper: ppo` in a configuration chooses it; `env` is the id of the environment and `settings` its arguments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from ..common import checks
from ..common.checkpoints import load_weights, save_weights
from ..common.device import forked_rng
from ..common.names import slug
from ..common.progress import Progress
from ..common.runs import Run
from ..envs.core import BatchedEnv
from ..envs.learner_env import LearnerEnv
from ..evaluation.curve_figures import Curve
from ..evaluation.films import Shot
from ..evaluation.report import mean_metrics
from ..evaluation.results import Case, Result, count_origins
from .cloning import CloneConfig, clone, cloned_policy
from .context import StageContext
from .dense_ppo.plain import check_dense, dense_learner
from .experiment import (
    Episode,
    EvaluateOptions,
    Experiment,
    Paper,
    RenderOptions,
    check_names,
    method_name,
    reached,
    write_result,
)
from .grid_policy import GridPolicy, MaskableGridPolicy, grid_of
from .learning import learn, restore
from .open_loop import OpenLoop, OpenLoopConfig, evolution_strategy, schedule_shape, tune_schedule
from .papers import POLICIES
from .policy import Episodes, Policy, TrainedPolicy, make_env, play, play_and_draw, reference
from .ppo import LEARNERS, AnyLearner, PPOConfig, policy_alias

COLUMNS = ("return", "steps")
"""Metrics of the table of results."""
OPEN_LOOP, OPEN_LOOP_TITLE = "open_loop", "open-loop schedule"
"""Name of the stage that tunes the schedule, and of its row in tables of results."""
SCHEDULE = "schedule.safetensors"
"""Its file."""
MOST_AT_ONCE = 64
"""Episodes that a schedule plays at once while it is tuned."""
FILES = ("data", "csv", "model", "classifier")
"""Settings that may name a file or folder."""
NEW_EPISODES = 2**33
"""Seed of the first episode of an evaluation: above the seeds of all trainings, which begin below 2^32."""


@dataclass(frozen=True)
class PPOExperiment(Experiment):
    """One run of PPO on a registered environment."""

    paper: str = "ppo"
    name: str = "PPO"
    env: str = ""
    """Id of the environment; `list` names them."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment by name, e.g. '{horizon: 64}'."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of PPO."""
    network: Literal["mlp", "grid", "dense"] = "mlp"
    """Network of the policy. mlp: layers of neurons, SB3's; grid: convolutions down to one logit for each cell of a
    grid of actions over a square image, for which net_arch has no meaning; dense: U-Nets with an action for each pixel,
    which learn by a ratio of each (DensePPO), from advantages that are not normalised."""
    clone: CloneConfig = field(default_factory=CloneConfig)
    """Reference policy as which the policy begins; by default there is none."""
    open_loop: OpenLoopConfig = field(default_factory=OpenLoopConfig)
    """An open-loop schedule as the control of a policy with continuous actions; by default there is none."""
    episodes: int = 100
    """Number of episodes that `evaluate` plays with each policy."""
    evaluate_settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment that are others where `evaluate` plays, e.g. '{split: test}'."""
    deterministic: bool = False
    """Evaluate the likeliest action instead of a drawn one."""
    checkpoint_every: int = 20_480
    """Environment steps between checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check(self, episodes=checks.AT_LEAST_1, checkpoint_every=checks.AT_LEAST_1)

    def resolved(self) -> "PPOExperiment":
        """The same with whole paths where settings name one of `FILES` that exists."""
        return replace(
            self, settings=_with_whole_paths(self.settings), evaluate_settings=_with_whole_paths(self.evaluate_settings)
        )


def _with_whole_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    paths = {key: Path(str(settings[key])) for key in FILES if key in settings}
    return {**settings, **{key: str(path.resolve()) for key, path in paths.items() if path.exists()}}


def env_of(experiment: PPOExperiment, num_envs: int, **settings: Any) -> BatchedEnv:
    """The environment of an experiment."""
    return make_env(experiment.env, experiment.settings, num_envs=num_envs, device=experiment.device, **settings)


def check(experiment: PPOExperiment) -> None:
    """Raises whatever can be known to be wrong before anything is written."""
    if not experiment.ppo.total_timesteps:
        raise ValueError("nothing to train: ppo.total_timesteps is 0")
    env = env_of(experiment, 1)
    if experiment.evaluate_settings:
        env_of(_evaluated(experiment), 1)
    if experiment.open_loop.generations:
        schedule_shape(env)
        evolution_strategy()
        check_names([experiment], [(OPEN_LOOP_TITLE, experiment.seed)])
    if experiment.clone.policy is not None:
        if experiment.ppo.algorithm == "recurrent":
            raise ValueError(
                f"clone.policy is {experiment.clone.policy!r} but ppo.algorithm is 'recurrent', whose memory single "
                f"steps do not teach; leave out one of the two"
            )
        cloned_policy(experiment.env, env, experiment.clone, experiment.seed)
        if experiment.ppo.normalize_observations:
            raise ValueError(
                f"clone.policy is {experiment.clone.policy!r}, whose observations are not normalised; leave out "
                "ppo.normalize_observations"
            )
    if experiment.network == "grid":
        if experiment.ppo.algorithm == "recurrent":
            raise ValueError("network is 'grid', which remembers nothing, but ppo.algorithm is 'recurrent'; use 'mlp'")
        grid_of(env.single_observation_space, env.single_action_space)
    if experiment.network == "dense":
        check_dense(experiment.ppo, env)
    experiment.ppo.check_memory(env)
    experiment.ppo.wrap(LearnerEnv(env))
    if experiment.ppo.algorithm == "maskable":
        env.action_masks()
    env.reset()


def check_export(experiment: PPOExperiment) -> None:
    """Raises where the policy is nothing without statistics of the observations, which a zip of SB3 does not hold."""
    if experiment.ppo.normalize_observations:
        raise ValueError(
            "export_sb3 writes no statistics of observations, without which a policy trained with "
            "ppo.normalize_observations is of no use; leave out one of the two"
        )


def _fresh(experiment: PPOExperiment) -> AnyLearner:
    env, ppo = env_of(experiment, experiment.ppo.num_envs), experiment.ppo
    if experiment.network == "dense":
        return dense_learner(ppo, env, experiment.seed)
    policy: Any = policy_alias(env.single_observation_space, ppo.algorithm)
    if experiment.network == "grid":
        policy = GridPolicy if ppo.algorithm == "ppo" else MaskableGridPolicy
    return LEARNERS[ppo.algorithm](
        policy,
        ppo.wrap(LearnerEnv(env)),
        policy_kwargs=ppo.policy_kwargs(),
        seed=experiment.seed,
        device=env.device,
        **ppo.ppo_kwargs(),
    )


def train(experiment: PPOExperiment, run: Run) -> None:
    """Tune the open-loop schedule, if there is one, then train the policy; each from its last checkpoint on."""
    if experiment.open_loop.generations:
        work = experiment.open_loop.steps(env_of(experiment, 1))
        run.progress = Progress({OPEN_LOOP: float(work), "agent": float(experiment.ppo.total_timesteps)})
        open_loop(StageContext(experiment, run, trains=True))
    with run.progress.stage("agent"):
        _train_agent(experiment, run)


def _train_agent(experiment: PPOExperiment, run: Run) -> None:
    model, ppo = _fresh(experiment), asdict(experiment.ppo)
    cloned = {} if experiment.clone.policy is None else {"clone": asdict(experiment.clone)}
    network = {} if experiment.network == "mlp" else {"network": experiment.network}
    run.depend_on(
        {
            "seed": experiment.seed,
            "env": experiment.env,
            "settings": experiment.settings,
            "ppo": ppo,
            **cloned,
            **network,
        }
    )
    if checkpoint := run.resume():
        restore(model, checkpoint)
    elif cloned:
        env = env_of(experiment, experiment.ppo.num_envs)
        env.seed([experiment.seed + number for number in range(env.num_envs)])
        policy = cloned_policy(experiment.env, env, experiment.clone, experiment.seed)
        run.log(0, {"clone/agreement": clone(model, env, policy, experiment.clone)})
    learn(
        model,
        run,
        experiment.ppo.total_timesteps,
        [],
        checkpoint_every=experiment.checkpoint_every,
        extra_state=dict,
        checkpoint=checkpoint,
    )


def open_loop(context: StageContext[PPOExperiment]) -> OpenLoop:
    """The open-loop schedule of a run, tuned first unless that is done."""
    experiment = context.experiment

    def make(stage: Run) -> list[str]:
        env = env_of(experiment, min(experiment.open_loop.episodes, MOST_AT_ONCE))
        schedule = tune_schedule(env, experiment.open_loop, context.seed(OPEN_LOOP), stage)
        save_weights(stage.folder / SCHEDULE, {"schedule": schedule})
        return [SCHEDULE]

    folder = context.complete(OPEN_LOOP, make, keys=("seed", "env", "settings", "open_loop"))
    return OpenLoop(load_weights(folder / SCHEDULE)[0]["schedule"].to(context.device))


def learner(experiment: PPOExperiment, run: Run) -> AnyLearner:
    """The trained policy as a learner of Stable-Baselines3."""
    model = _fresh(experiment)
    restore(model, run.checkpoint())
    return model


def _policy(model: AnyLearner, experiment: PPOExperiment) -> TrainedPolicy:
    return TrainedPolicy(model.policy, experiment.deterministic, normalize=model.get_vec_normalize_env())


def _evaluated(experiment: PPOExperiment) -> PPOExperiment:
    """The experiment with the settings of the environment in which `evaluate` plays."""
    return replace(experiment, settings={**experiment.settings, **experiment.evaluate_settings})


def evaluate(runs: Sequence[tuple[Run, PPOExperiment]], options: EvaluateOptions) -> tuple[list[Result], list[str]]:
    """Results of every run's policy, and of every reference policy once per seed, on the same new episodes.

    Reference policies that are named may need other arguments of the environment than the runs have, such as another
    meaning of its actions: they play in one that has them, from the same seeds.

    Raises:
        ValueError: cases or splits, which there are not; runs on different environments or numbers of episodes.
    """
    if options.split or options.cases:
        raise ValueError("split and cases choose among cases, but the episodes of paper 'ppo' are drawn by the seed")
    experiments = [experiment for _, experiment in runs]
    if len({(one.env, repr(_evaluated(one).settings), one.episodes) for one in experiments}) > 1:
        raise ValueError("the runs have different environments, settings or numbers of episodes; evaluate them apart")
    table = POLICIES.get(experiments[0].env, {})
    example = env_of(_evaluated(experiments[0]), 1)
    fitting = [name for name, row in table.items() if row.fits(example)]
    names = fitting if options.policies is None else options.policies
    policies = {name: reference(table, name) for name in names}
    tuned = [(OPEN_LOOP_TITLE, one.seed) for one in experiments if one.open_loop.generations]
    check_names(experiments, [*product(policies, {one.seed for one in experiments}), *tuned])
    steps = [reached(run, one.ppo.total_timesteps, unfinished=options.unfinished) for run, one in runs]
    results: list[Result] = []
    for (run, experiment), step in zip(runs, steps, strict=True):
        model = learner(experiment, run)
        env = env_of(_evaluated(experiment), experiment.episodes)
        players: dict[str, Policy[Any]] = {experiment.name: _policy(model, experiment)}
        places = dict[str, tuple[BatchedEnv, PPOExperiment]]()
        if experiment.open_loop.generations:
            players[OPEN_LOOP_TITLE] = open_loop(StageContext(experiment, run, trains=False))
        if experiment.seed not in {result.seed for result in results}:
            for name, row in policies.items():
                if lacking := row.lacking(env):
                    other = replace(experiment, evaluate_settings={**experiment.evaluate_settings, **lacking})
                    places[name] = env_of(_evaluated(other), experiment.episodes), other
                players[name] = row.policy(places.get(name, (env, experiment))[0], experiment.seed)
        for method, policy in players.items():
            place, settings = places.get(method, (env, experiment))
            played = _new_episodes(place, policy, experiment.seed)
            supervision = policies[method].supervision if method in policies else "none"
            name = method_name(experiment, step, experiment.ppo.total_timesteps)
            shown = name if method == experiment.name else method
            result = _result(settings, place, shown, played, supervision, step, options.command)
            results.append(write_result(options.folder(run), result))
    return results, []


def _new_episodes(env: BatchedEnv, policy: Policy[Any], seed: int) -> Episodes:
    """An episode of every environment: the same ones for all policies and seeds, and none of a training.

    seed: of what the policy draws.
    """
    env.seed([NEW_EPISODES + number for number in range(env.num_envs)])
    env.reset()
    with forked_rng(env.device):
        torch.manual_seed(seed)
        return play(env, policy)


def _result(
    experiment: PPOExperiment,
    env: BatchedEnv,
    method: str,
    played: Episodes,
    supervision: str,
    step: int,
    command: str,
) -> Result:
    planned = experiment.ppo.total_timesteps
    numbers = zip(played.returns.tolist(), played.lengths.tolist(), played.infos, strict=True)
    cases: list[Case] = [
        {"case_id": f"episode_{number}", "origin": env.origin, "return": total, "steps": float(steps)}
        | {name: float(value) for name, value in info.items() if isinstance(value, bool | int | float)}
        for number, (total, steps, info) in enumerate(numbers)
    ]
    return Result(
        id=f"{slug(method)}_seed{experiment.seed}",
        paper="PPO",
        env=experiment.env,
        method=method,
        seed=experiment.seed,
        data="drawn episodes",
        split="new",
        supervision=supervision,
        mode="inductive",
        origins=count_origins(cases),
        metrics=dict(mean_metrics(cases)),
        cases=cases,
        settings={
            "settings": _evaluated(experiment).settings,
            "total_timesteps": step,
            **({"unfinished": f"step {step} of {planned}"} if step < planned else {}),
        },
        command=command,
    )


def render(run: Run, experiment: PPOExperiment, options: RenderOptions) -> Episode:
    """One episode of the trained policy."""
    for name in ("case", "split"):
        if (given := getattr(options, name)) is not None:
            raise ValueError(f"{name} is {given!r} but the episodes of paper 'ppo' are drawn; choose one by --seed")
    total = experiment.ppo.total_timesteps
    step = reached(run, total, unfinished=options.unfinished)
    model = learner(experiment, run)
    env = env_of(experiment, 1, render_mode="rgb_array")
    env.shows_truth = options.truth
    env.seed([options.seed])
    with forked_rng(env.device):
        torch.manual_seed(options.seed)
        shots, played = play_and_draw(env, _policy(model, experiment))
    if step < total:
        shots = [Shot(shot.picture, [*shot.lines, method_name(experiment, step, total)]) for shot in shots]
    summary = f"{int(played.lengths[0])} steps, return {float(played.returns[0]):.3f}"
    return Episode(shots, env.legend(), summary)


PAPER: Paper[PPOExperiment] = Paper(
    experiment=PPOExperiment,
    check=check,
    train=train,
    learner=learner,
    check_export=check_export,
    evaluate=evaluate,
    render=render,
    columns=COLUMNS,
    baseline="random",
    hparams=(
        *("seed", "env", "ppo.total_timesteps", "ppo.num_envs", "ppo.n_steps", "ppo.batch_size", "ppo.n_epochs"),
        *("ppo.learning_rate", "ppo.gamma", "ppo.gae_lambda", "ppo.clip_range", "ppo.ent_coef"),
    ),
    curves=(
        Curve("rollout/ep_rew_mean", "reward of an episode"),
        Curve("rollout/ep_len_mean", "length of an episode", "steps"),
    ),
)
"""Its row of the table of papers."""
