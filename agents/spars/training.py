"""Training SPARS: a presence classifier, then self-play PPO against it (paper: SPARS, section 5)."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy

from ...classifiers.presence import CELL, DensePresenceNet
from ...classifiers.train_presence import PresenceTrainingConfig, train_presence
from ...common.checkpoints import load_into
from ...common.checks import AT_LEAST_0, AT_LEAST_1, check
from ...common.device import resolve_device
from ...common.files import replacing
from ...common.networks import save_network
from ...common.runs import Run, chosen, plain
from ...datasets.liver.cases import HU_WINDOW, LiverDataConfig, iter_liver_cases, liver_case_ids, load_liver_cases
from ...envs.adapters import LearnerEnv
from ...envs.spars import SparsEnv
from ...envs.spars_config import SparsConfig
from ...evaluation.metrics import classification_metrics
from ..callbacks import Best
from ..ppo import Learner, PPOConfig, learn, restore
from .callbacks import Examine, Watch
from .policies import PolicyName, policy_arguments
from .self_play import InitialOpponent, SelfPlay, Snapshot

log = logging.getLogger(__name__)

TRAIN = "train"
"""As `env.classifier`: train one in the run before the agent."""
CLASSIFIER = "presence.safetensors"
"""File of the classifier in its stage."""
CLASSIFIER_KEYS = (
    *("seed", "presence", "classifier_train", "validation", "env.window_size", "env.step"),
    *(f"env.{field.name}" for field in fields(LiverDataConfig) if field.name not in ("split", "cases", "cache_dir")),
)
"""Keys of the configuration that the classifier's training depends on."""


@dataclass(frozen=True)
class CaseChoice:
    """Some cases of `env.data`, for one purpose."""

    split: str = "test"
    """classifier_train, classifier_val, rl_pool, test or all."""
    cases: list[str] | None = None
    """Case ids (* and ? stand for any text), which win over the split."""

    def of(self, env: SparsConfig) -> SparsConfig:
        """The environment's configuration with these cases."""
        return replace(env, split=self.split, cases=self.cases)


@dataclass(frozen=True)
class SelfPlayConfig:
    """Who competes while the learner learns (section 4)."""

    refresh_every: int = 1
    """Rollouts between two copies of the learner into its opponent (of n_steps each)."""
    initial_opponent: InitialOpponent = "self_snapshot"
    """Before the first refresh: the untrained learner, constant0 (always +z; paper) or random."""

    def __post_init__(self) -> None:
        check(self, "self_play.", refresh_every=AT_LEAST_1)


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained policy segments unseen cases (section 7)."""

    rollouts: int = 8
    """K: episodes per case whose maps are averaged."""
    jitter_cells: int = 2
    """Start positions are moved by up to this many lattice cells along each axis."""
    deterministic: bool = False
    """Take the likeliest action instead of a drawn one."""
    best: bool = False
    """Judge the weights that had the highest mean Dice on the validation cases while training (see examine_every),
    instead of the last ones."""
    tolerance_mm: float = 7.0
    """Of the normalised surface Dice, in mm; 7 is the Decathlon's for the liver."""
    pictures: int = 4
    """Cases shown in each figure."""

    def __post_init__(self) -> None:
        check(self, "evaluation.", rollouts=AT_LEAST_1, pictures=AT_LEAST_1)
        check(self, "evaluation.", jitter_cells=AT_LEAST_0, tolerance_mm=AT_LEAST_0)


@dataclass(frozen=True)
class SparsExperiment:
    """One SPARS run: data, classifier, env, learner and evaluation."""

    paper: Literal["spars"] = "spars"
    """Whose experiment this is; decides all other options: spars, or rl4seg (train --paper rl4seg --help)."""
    name: str = "SPARS"
    """What the trained policy is called in tables."""
    seed: int = 0
    """Of classifier, learner, environment and evaluation."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    env: SparsConfig = field(default_factory=SparsConfig)
    """The env. env.classifier: a .safetensors file, "packaged" (made for phantoms), or "train"."""
    presence: PresenceTrainingConfig = field(default_factory=PresenceTrainingConfig)
    """Training of the classifier, with env.classifier=train."""
    classifier_train: CaseChoice = field(default_factory=lambda: CaseChoice(split="classifier_train"))
    """Cases from which the classifier learns."""
    validation: CaseChoice = field(default_factory=lambda: CaseChoice(split="classifier_val"))
    """Cases that choose the classifier's best epoch and every mask threshold."""
    test: CaseChoice = field(default_factory=CaseChoice)
    """Cases that nothing was chosen or trained on."""
    policy: PolicyName = "window_cnn"
    """window_cnn; feature_mlp (needs env.obs_mode=features); flatten_mlp (paper)."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """The learner."""
    self_play: SelfPlayConfig = field(default_factory=SelfPlayConfig)
    """The opponent, with env.n_agents=2 and env.opponent=snapshot."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The protocol of `evaluate`."""
    checkpoint_every: int = 20_480
    """Environment steps between checkpoints."""
    examine_every: int = 40_960
    """Environment steps between looks at the validation cases while training, for curves, pictures and the best
    weights (which only evaluation.best uses); 0: never."""

    def __post_init__(self) -> None:
        check(self, seed=(0, 2**32 - 1), checkpoint_every=AT_LEAST_1, examine_every=AT_LEAST_0)

    def resolved(self) -> "SparsExperiment":
        """The same with nothing left open.

        Raises:
            ValueError: a value outside its range.
        """
        if self.ppo.normalize_observations:
            raise ValueError(
                "ppo.normalize_observations is True but opponents and evaluation read the observations as they are, "
                "which is in [-1, 1] or normalised by the policy; leave it False"
            )
        if self.evaluation.best and not self.examine_every:
            raise ValueError("evaluation.best is True but examine_every is 0: no look could find the best weights")
        needed = self.env.score_source == "classifier" or self.env.obs_mode == "features"
        classifier = self.env.classifier or ("packaged" if self.env.data == "phantom" else TRAIN if needed else None)
        if self.ppo.total_timesteps == 0 and classifier != TRAIN:
            raise ValueError("nothing to train: ppo.total_timesteps is 0 and env.classifier is not 'train'")
        if classifier not in (None, "packaged", TRAIN):
            classifier = str(Path(classifier).resolve())  # the run can then be continued from anywhere
        data = self.env.data if self.env.data == "phantom" else str(Path(self.env.data).resolve())
        env = replace(self.env, classifier=classifier, data=data).resolved()
        if env.reward == "shaped" and env.gamma != self.ppo.gamma:
            raise ValueError(
                f"env.gamma is {env.gamma} but ppo.gamma is {self.ppo.gamma}; with reward 'shaped' they must be equal, "
                f"or the potential changes which policy is best"
            )
        return replace(self, env=env)


def train(
    experiment: SparsExperiment,
    out: str | Path,
    environment: Mapping[str, Any],
    *,
    sb3_zip: str | Path | None = None,
) -> Run:
    """Train in the new folder `out`; see `resume` for a run that was interrupted.

    environment: what is to be kept of the machine. sb3_zip: also write the learner as a zip of Stable-Baselines3, for
    its own `PPO.load`.

    Raises:
        ValueError: a value, case, file or folder that cannot be used; nothing is written then.
        FileNotFoundError: a missing folder or file.
    """
    experiment = experiment.resolved()
    _check(experiment)
    return _train(experiment, Run.create(out, plain(asdict(experiment)), environment), sb3_zip)


def resume(experiment: SparsExperiment, out: str | Path, *, sb3_zip: str | Path | None = None) -> Run:
    """Continue the run in the folder `out`, which `experiment` describes, from its last checkpoint."""
    return _train(experiment.resolved(), Run.open(out), sb3_zip)


def _check(experiment: SparsExperiment) -> None:
    """Raises whatever can be known to be wrong before anything is written."""
    settings, is_trained = experiment.env, experiment.env.classifier == TRAIN
    resolve_device(experiment.device)
    for choice in (experiment.validation, experiment.test):
        liver_case_ids(choice.of(settings))
    if is_trained:
        for choice in (experiment.classifier_train, experiment.validation):
            config = choice.of(settings)
            liver_case_ids(config)
            for case in iter_liver_cases(config) if settings.data != "phantom" else ():
                if case.label is None:
                    raise ValueError(f"{case.id} has no label, which the classifier's training needs; choose others")
        if experiment.presence.batch == "dense" and settings.step % CELL:
            raise ValueError(
                f"env.step is {settings.step} but presence.batch='dense' needs a multiple of {CELL}; use 'windows'"
            )
    with TemporaryDirectory() as folder:
        trial = Run(folder)
        if is_trained:  # an untrained one has the same shapes
            assert settings.window_size is not None
            net = DensePresenceNet(settings.hu_window or HU_WINDOW, settings.window_size)
            save_network(trained_classifier(experiment, trial), net)
        if settings.score_source == "classifier":
            settings = replace(settings, score_engine="lazy")  # scores a few windows only
        env = env_of(experiment, trial, settings)
        env.reset()
        policy_arguments(experiment.policy, env.single_observation_space)


def _train(experiment: SparsExperiment, run: Run, sb3_zip: str | Path | None) -> Run:
    if experiment.env.classifier == TRAIN:
        settings = chosen(asdict(experiment), CLASSIFIER_KEYS)
        run.stage("classifier").complete(settings, partial(_train_classifier, experiment))
    if experiment.ppo.total_timesteps:
        model = _train_agent(experiment, run)
        if sb3_zip is not None:
            with replacing(Path(sb3_zip)) as unfinished:
                model.save(unfinished)
    run.close()
    return run


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


def env_of(experiment: SparsExperiment, run: Run, config: SparsConfig | None = None, **settings: Any) -> SparsEnv:
    """The environment of a run, with its own classifier; `config` and `settings` change what is played."""
    config = config or experiment.env
    if config.classifier == TRAIN:
        config = replace(config, classifier=str(trained_classifier(experiment, run)))
    return SparsEnv(config, device=experiment.device, **settings)


def _policy_arguments(experiment: SparsExperiment, space: gym.Space[Any]) -> dict[str, Any]:
    """`policy` and `policy_kwargs` of the learner, as the experiment says."""
    arguments = policy_arguments(experiment.policy, space)
    return {**arguments, "policy_kwargs": experiment.ppo.policy_kwargs(arguments["policy_kwargs"])}


def _train_agent(experiment: SparsExperiment, run: Run) -> Learner:
    ppo = experiment.ppo
    env = env_of(experiment, run, num_envs=ppo.num_envs, eval_dice=False)
    model = Learner(
        env=ppo.wrapped(LearnerEnv(env)),
        seed=experiment.seed,
        device=env.device,
        **_policy_arguments(experiment, env.single_observation_space),
        **ppo.learner(),
    )
    self_play = None
    if env.config.n_agents == 2 and env.config.opponent == "snapshot":
        self_play = SelfPlay(env, experiment.self_play.refresh_every, experiment.self_play.initial_opponent)
    best, checkpoint = Best(), run.resume()
    if checkpoint:
        restore(model, checkpoint)
        best.load_state(checkpoint.state["best"])
        if self_play:
            self_play.load_state(checkpoint.state["self_play"], model.policy)
    seen = checkpoint.step if checkpoint else 0
    learn(
        model,
        run,
        ppo.total_timesteps,
        [
            *([self_play] if self_play else []),
            Watch(env, self_play),
            *_examiners(experiment, run, self_play, best, seen),
        ],
        checkpoint_every=experiment.checkpoint_every,
        extra_state=lambda: {"best": best.state(), **({"self_play": self_play.state()} if self_play else {})},
        checkpoint=checkpoint,
    )
    if checkpoint is None or checkpoint.step < model.num_timesteps:  # a finished run stays as it is
        outcome = {name: value for name, value in run.metrics()[-1].items() if name.startswith(("spars/", "rollout/"))}
        run.log_hparams(plain(asdict(experiment)), outcome)
    return model


def load_policies(experiment: SparsExperiment, run: Run, env: SparsEnv) -> tuple[Snapshot, Snapshot | None]:
    """The trained policy of a run and its last opponent (None in single-agent runs), frozen, on the env's device.

    With evaluation.best the policy is that of the best look at the validation cases, else the last one.

    Raises:
        ValueError: the run has no checkpoint, no best weights, or those of another architecture.
    """
    checkpoint = run.checkpoint()
    weights = checkpoint.state["best"]["weights"] if experiment.evaluation.best else checkpoint.weights
    if not weights:
        raise ValueError(f"evaluation.best is True but {str(run.folder)!r} has not looked at labelled validation cases")
    arguments = _policy_arguments(experiment, env.single_observation_space)
    kind: type[ActorCriticPolicy] = Learner.policy_aliases[arguments["policy"]]  # type: ignore[assignment]
    policy = kind(
        env.single_observation_space, env.single_action_space, lambda _: 0.0, **arguments["policy_kwargs"]
    ).to(env.device)
    load_into(policy, weights, f"{run.folder} at step {checkpoint.step}")
    learner = Snapshot(policy)
    if "self_play" not in checkpoint.state or not checkpoint.state["self_play"]["weights"]:
        return learner, None
    load_into(policy, checkpoint.state["self_play"]["weights"], f"opponent of {run.folder}")
    return learner, Snapshot(policy)


def _examiners(
    experiment: SparsExperiment, run: Run, self_play: SelfPlay | None, best: Best, seen: int
) -> list[BaseCallback]:
    if not experiment.examine_every:
        return []
    config = replace(experiment.validation.of(experiment.env), eval_dice=False)
    slots = len(liver_case_ids(config)) * experiment.evaluation.rollouts
    env = env_of(experiment, run, config, num_envs=slots)
    if any(case.label is None for case in env.cases):
        log.warning("validation cases without labels: training is not looked at on the way (examine_every)")
        return []
    protocol = experiment.evaluation
    return [
        Examine(
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
