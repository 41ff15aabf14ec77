"""Training SPARS: a presence classifier, then self-play PPO against it, then the baselines that are asked for
(docs/spars.md, Method 7, 10 and 12)."""

import logging
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor
from tqdm import tqdm

from ...classifiers.stem import CELL
from ...classifiers.train_presence import build_presence, train_presence
from ...common.checkpoints import Checkpoint, load_into, restoring
from ...common.device import resolve_device
from ...common.manifests import NAME
from ...common.networks import save_network
from ...common.progress import Progress
from ...common.runs import Run, chosen
from ...datasets.liver.cases import HU_WINDOW, LiverDataConfig, iter_liver_cases, liver_case_ids, load_liver_cases
from ...datasets.selection import SelectionError
from ...envs.learner_env import LearnerEnv
from ...envs.spars import SparsEnv
from ...envs.spars_config import SparsConfig
from ...envs.spars_tables import lattice_of, score_tables
from ...evaluation.metrics import classification_metrics
from ...segmenters.score_prior import ScorePrior
from ..callbacks import Best
from ..experiment import baselines_of, check_names, reached
from ..learning import learn, restore
from ..ppo import LEARNERS, AnyLearner
from .baselines import BASELINES, MapBaseline
from .callbacks import DuelMetrics, ValidationCallback
from .config import TRAIN, SparsExperiment
from .context import LABELLED_CASES, STEPS_PER_BATCH, Context
from .policies import policy_arguments
from .pool import Snapshot
from .self_play import SELF_PLAY_NOTE, SelfPlay

log = logging.getLogger(__name__)

CLASSIFIER = "presence.safetensors"
"""File of the classifier in its stage."""
SCORE_PRIOR = "score_prior.safetensors"
"""File of the prior in its stage."""
CLASSIFIER_KEYS = (*LABELLED_CASES, "presence", "env.window_size", "env.step")
"""Keys of the configuration that the classifier's training depends on."""
SCORE_PRIOR_KEYS = (
    *("prior_train", "env.classifier", "env.window_size", "env.step", "env.phase", "env.start"),
    *(f"env.{field.name}" for field in fields(LiverDataConfig) if field.name not in ("split", "cases", "cache_dir")),
)
"""Keys of the configuration that the prior depends on, beside those of the classifier."""
AGENT_KEYS = (
    *("seed", "policy", "straddle", "ppo", "self_play", "validation", "examine_every"),
    *("evaluation.rollouts", "evaluation.jitter_cells", "evaluation.deterministic"),
    *(f"env.{field.name}" for field in fields(SparsConfig) if field.name != "cache_dir"),
)
"""Keys of the configuration that the agent's training depends on; those of the looks at the validation cases decide its
best weights."""
STEPS_PER_CASE = 3000
"""Steps of the agent's training that take about as long as to score a case: for the time left."""


def check(experiment: SparsExperiment) -> None:
    """Raises whatever can be known to be wrong before anything is written."""
    settings, is_trained = experiment.env, experiment.env.classifier == TRAIN
    rows = baselines_of(BASELINES, experiment.baselines, experiment).values()
    check_names([experiment] if experiment.ppo.total_timesteps else [], [(row.title, experiment.seed) for row in rows])
    _check_cases(experiment)
    if learners := [*(["the classifier"] if is_trained else []), *trained_baselines(experiment)]:
        for key in ("classifier_train", "validation"):
            for case in iter_liver_cases(_purposes(experiment)[key]) if settings.data != "phantom" else ():
                if case.label is None:
                    raise ValueError(
                        f"{case.id} has no label, which the training of {', '.join(learners)} needs; choose labelled "
                        f"cases by --{key}.cases{', or give a trained one as --env.classifier' if is_trained else ''}"
                    )
    if is_trained and experiment.presence.batch == "dense" and settings.step % CELL:
        raise ValueError(
            f"env.step is {settings.step} but presence.batch='dense' needs a multiple of {CELL}; use 'windows'"
        )
    with TemporaryDirectory() as folder:
        trial = Run(folder)
        if is_trained:  # an untrained one has the same shapes
            assert settings.window_size is not None
            net = build_presence(experiment.presence, settings.hu_window or HU_WINDOW, settings.window_size)
            save_network(trained_classifier(experiment, trial), net)
        if settings.fill == TRAIN:
            settings = replace(settings, fill="stationary")
        if settings.score_source == "classifier" and settings.profile != "search":
            settings = replace(settings, score_engine="lazy")  # scores a few windows only; a search needs all
        env = env_of(experiment, trial, settings)
        experiment.ppo.check_memory(env)
        env.reset()
        policy_arguments(experiment.policy, env.single_observation_space)


def _purposes(experiment: SparsExperiment) -> dict[str, SparsConfig]:
    """The cases of each purpose, by the section of the configuration that chooses them."""
    choices = {"validation": experiment.validation, "test": experiment.test}
    if experiment.env.classifier == TRAIN or trained_baselines(experiment):
        choices["classifier_train"] = experiment.classifier_train
    if experiment.env.fill == TRAIN:
        choices["prior_train"] = experiment.prior_train
    return {"env": experiment.env} | {key: choice.of(experiment.env) for key, choice in choices.items()}


def trained_baselines(experiment: SparsExperiment) -> dict[str, MapBaseline]:
    """The baselines of an experiment that train a network, by name."""
    rows = baselines_of(BASELINES, experiment.baselines, experiment)
    return {name: row for name, row in rows.items() if row.networks}


def _check_cases(experiment: SparsExperiment) -> None:
    """Check that there are cases for every purpose; the error says for all of them at once what to write."""
    wrong: dict[str, list[str]] = {}
    for key, config in _purposes(experiment).items():
        try:
            liver_case_ids(config, f"--{key}.")
        except SelectionError as error:
            wrong.setdefault(error.reason, []).append(error.way_out)
    if wrong:
        raise ValueError(". ".join(f"{reason}; {', and '.join(ways)}" for reason, ways in wrong.items()))


def train(experiment: SparsExperiment, run: Run) -> None:
    """Train what is not finished: the classifier, the prior of its scores, the agent, then the baselines."""
    steps = float(experiment.ppo.total_timesteps)
    work: dict[str, float] = {}
    if experiment.env.classifier == TRAIN:
        work["classifier"] = float(STEPS_PER_BATCH * experiment.presence.epochs * experiment.presence.batches_per_epoch)
    if experiment.env.fill == TRAIN:
        cases = len(liver_case_ids(experiment.prior_train.of(experiment.env)))
        work["score_prior"] = float(STEPS_PER_CASE * cases)
    baselines = trained_baselines(experiment)
    last = {f"baselines/{name}": row.work(experiment) for name, row in baselines.items()}
    if work or last:
        run.progress = Progress({**work, **({"agent": steps} if steps else {}), **last})
    if "classifier" in work:
        settings = chosen(asdict(experiment), CLASSIFIER_KEYS)
        run.stage("classifier").complete(settings, partial(_train_classifier, experiment))
    if "score_prior" in work:
        settings = chosen(asdict(experiment), SCORE_PRIOR_KEYS)
        stages = [run.stage("classifier").folder] if "classifier" in work else []
        run.stage("score_prior").complete(settings, partial(_train_prior, experiment, run), after=stages)
    if steps:
        with run.progress.stage("agent"):
            _train_agent(experiment, run)
    for row in baselines.values():
        assert row.networks
        row.networks(Context(experiment, run, trains=True))


def trained_classifier(experiment: SparsExperiment, run: Run) -> Path:
    """Where a run keeps the classifier that it trained."""
    return run.stage("classifier").folder / CLASSIFIER


def _train_classifier(experiment: SparsExperiment, stage: Run) -> list[str]:
    env = experiment.env
    assert env.window_size is not None
    train_presence(
        load_liver_cases(experiment.classifier_train.of(env)),
        load_liver_cases(experiment.validation.of(env)),
        env.window_size,
        env.step,
        experiment.presence,
        stage,
        resolve_device(experiment.device),
        experiment.seed,
        metrics=classification_metrics,
        hu_window=env.hu_window or HU_WINDOW,
    )
    return [CLASSIFIER]


def _train_prior(experiment: SparsExperiment, run: Run, stage: Run) -> list[str]:
    """Learn mean and covariance of the classifier's scores, without labels, case by case."""
    config = _with_stages(experiment, run, experiment.prior_train.of(experiment.env))
    lattice, device, volumes, digest = lattice_of(config), resolve_device(experiment.device), list[Tensor](), None
    for case in tqdm(iter_liver_cases(config), desc="score volumes", unit="case", disable=None):
        table, _, _ = score_tables(replace(config, obs_mode="own_window"), [case], lattice, None, device)
        volumes.append(table.volume(0).flatten().cpu())
        digest = table.digest
    assert digest is not None
    save_network(stage.folder / SCORE_PRIOR, ScorePrior.fit(torch.stack(volumes), lattice, digest))
    stage.log(len(volumes), {"score_prior/cases": float(len(volumes))})
    return [SCORE_PRIOR]


def _with_stages(experiment: SparsExperiment, run: Run, config: SparsConfig) -> SparsConfig:
    """`config` with the files of the run's own classifier and prior."""
    if config.classifier == TRAIN:
        config = replace(config, classifier=str(trained_classifier(experiment, run)))
    if config.fill == TRAIN:
        config = replace(config, fill=str(run.stage("score_prior").folder / SCORE_PRIOR))
    return config


def env_of(experiment: SparsExperiment, run: Run, config: SparsConfig | None = None, **settings: Any) -> SparsEnv:
    """The environment of a run, with its own classifier; `config` and `settings` change what is played."""
    config = _with_stages(experiment, run, config or experiment.env)
    return SparsEnv(config, device=experiment.device, **settings)


def _policy_arguments(experiment: SparsExperiment, space: gym.Space[Any]) -> dict[str, Any]:
    """`policy` and `policy_kwargs` of the learner, as the experiment says."""
    arguments = policy_arguments(experiment.policy, space, experiment.ppo.algorithm)
    start = {"straddle": experiment.straddle} if experiment.env.profile == "search" else {}
    return {**arguments, "policy_kwargs": experiment.ppo.policy_kwargs({**arguments["policy_kwargs"], **start})}


@dataclass
class _Training:
    """What learns, and what belongs to it: environment, opponent, best weights."""

    model: AnyLearner
    env: SparsEnv
    self_play: SelfPlay | None
    best: Best

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go where the checkpoint was kept."""
        restore(self.model, checkpoint)
        with restoring(checkpoint):
            self.best.load_state(checkpoint.state["best"])
            if self.self_play:
                self.self_play.load_state(checkpoint.state["self_play"], self.model.policy)

    def state(self) -> dict[str, Any]:
        """What belongs to a checkpoint beside the learner's own state."""
        return {"best": self.best.state(), **({"self_play": self.self_play.state()} if self.self_play else {})}


def _fresh(experiment: SparsExperiment, run: Run) -> _Training:
    """The learner as it is at the start."""
    ppo = experiment.ppo
    env = env_of(experiment, run, num_envs=ppo.num_envs, eval_dice=False)
    model = LEARNERS[ppo.algorithm](
        env=ppo.wrap(LearnerEnv(env)),
        seed=experiment.seed,
        device=env.device,
        **_policy_arguments(experiment, env.single_observation_space),
        **ppo.ppo_kwargs(),
    )
    self_play = None
    if env.config.n_agents == 2 and env.config.opponent == "snapshot":
        self_play = SelfPlay(env, experiment.self_play)
    return _Training(model, env, self_play, Best())


def check_export(experiment: SparsExperiment) -> None:
    """Raises where the run trains a classifier only."""
    if not experiment.ppo.total_timesteps:
        raise ValueError("export_sb3 needs an agent, but this run trains none: ppo.total_timesteps is 0")


def learner(experiment: SparsExperiment, run: Run) -> AnyLearner:
    """The trained agent as a learner of Stable-Baselines3."""
    training = _fresh(experiment, run)
    training.restore(run.checkpoint())
    return training.model


def _train_agent(experiment: SparsExperiment, run: Run) -> None:
    training = _fresh(experiment, run)
    settings = experiment.env
    stages = {"classifier": settings.classifier, "score_prior": settings.fill}
    trained = [run.stage(name).folder for name, source in stages.items() if source == TRAIN]
    run.depend_on(chosen(asdict(experiment), AGENT_KEYS), after=trained)
    checkpoint = run.resume()
    if checkpoint:
        training.restore(checkpoint)
    seen = checkpoint.step if checkpoint else 0
    if training.self_play and not checkpoint and settings.profile != "patch":  # there the learner is always first
        log.info(SELF_PLAY_NOTE)
        run.log_text("spars/self_play", SELF_PLAY_NOTE)
    learn(
        training.model,
        run,
        experiment.ppo.total_timesteps,
        [
            *([training.self_play] if training.self_play else []),
            DuelMetrics(training.env, training.self_play),
            *_validation_callback(experiment, run, training.self_play, training.best, seen),
        ],
        checkpoint_every=experiment.checkpoint_every,
        extra_state=training.state,
        checkpoint=checkpoint,
    )


def trained_steps(experiment: SparsExperiment, run: Run, *, unfinished: bool = False) -> int:
    """Environment steps that the agent of a run was trained for; 0 where it trains a classifier only.

    Raises:
        ValueError: the classifier or a baseline is not finished; or the agent is not, and `unfinished` is False.
    """
    sources = {"classifier": experiment.env.classifier, "score_prior": experiment.env.fill}
    names = [name for name, source in sources.items() if source == TRAIN]
    for name in [*names, *(f"baselines/{name}" for name in trained_baselines(experiment))]:
        if not (run.stage(name).folder / NAME).is_file():
            raise ValueError(
                f"run {str(run.folder)!r} is not finished: it lacks its {name}; train it further with --resume"
            )
    total = experiment.ppo.total_timesteps
    return reached(run, total, unfinished=unfinished) if total else 0


def load_policies(experiment: SparsExperiment, run: Run, env: SparsEnv) -> tuple[Snapshot, Snapshot | None]:
    """The trained policy of a run and its last opponent (None in single-agent runs), frozen, on `env.device`.

    With evaluation.best the policy is that of the best validation while training, else the last one.

    Raises:
        ValueError: the run has no checkpoint, no best weights, or those of another architecture.
    """
    checkpoint = run.checkpoint()
    with restoring(checkpoint):
        weights = checkpoint.state["best"]["weights"] if experiment.evaluation.best else checkpoint.weights
        snapshots = checkpoint.state.get("self_play", {"snapshots": []})["snapshots"]
        opponent = snapshots[-1]["weights"] if snapshots else None
    if not weights:
        raise ValueError(f"evaluation.best is True but {str(run.folder)!r} has not looked at labelled validation cases")
    arguments = _policy_arguments(experiment, env.single_observation_space)
    kind: Any = arguments["policy"]
    if isinstance(kind, str):
        kind = LEARNERS[experiment.ppo.algorithm].policy_aliases[kind]
    policy = kind(
        env.single_observation_space, env.single_action_space, lambda _: 0.0, **arguments["policy_kwargs"]
    ).to(env.device)
    load_into(policy, weights, f"{run.folder} at step {checkpoint.step}")
    learner = Snapshot(policy)
    if not opponent:
        return learner, None
    load_into(policy, opponent, f"opponent of {run.folder}")
    return learner, Snapshot(policy)


def _validation_callback(
    experiment: SparsExperiment, run: Run, self_play: SelfPlay | None, best: Best, seen: int
) -> list[BaseCallback]:
    if not experiment.examine_every:
        return []
    config, protocol = replace(experiment.validation.of(experiment.env), eval_dice=False), experiment.evaluation
    env = env_of(experiment, run, config, num_envs=len(liver_case_ids(config)) * protocol.rollouts)
    if any(case.label is None for case in env.cases):
        log.warning("validation cases without labels: training is not looked at on the way (examine_every)")
        return []
    return [
        ValidationCallback(
            env,
            run,
            experiment.examine_every,
            self_play,
            best,
            deterministic=protocol.deterministic,
            jitter_cells=protocol.jitter_cells,
            seen=seen,
        )
    ]
