"""The configuration of a SPARS run (docs/spars.md, Method 7, 10 and 13)."""

from dataclasses import dataclass, field, replace
from typing import Literal

from ...classifiers.presence_config import PresenceTrainingConfig
from ...common.checks import AT_LEAST_0, AT_LEAST_1, check, whole_path
from ...envs.spars_config import CONTINUOUS, SparsConfig
from ...segmenters.volume_unet import VolumeUNetConfig
from ..experiment import Experiment
from ..ppo import PPOConfig
from .policies import PolicyName
from .self_play import SelfPlayConfig

Postprocess = Literal["none", "largest_component"]
MaskRule = Literal["threshold", "expected_dice"]
TRAIN = "train"
"""Value of `env.classifier` and of `env.fill`: make one in the run before the agent."""


@dataclass(frozen=True)
class CaseChoice:
    """Some cases of `env.data`, for one purpose."""

    split: str = "test"
    """classifier_train, classifier_val, rl_pool, test or all; a part of one, such as classifier_train[:8], or several,
    such as classifier_train[12:]+classifier_val[:4]."""
    cases: list[str] | None = None
    """Case ids (* and ? stand for any text), which win over the split."""
    tumour_free: float = 0.0
    """Share of the phantoms, evenly among them, whose tumours are left out."""

    def of(self, env: SparsConfig) -> SparsConfig:
        """The environment's configuration with these cases."""
        return replace(env, split=self.split, cases=self.cases, tumour_free=self.tumour_free)


@dataclass(frozen=True)
class EvaluationConfig:
    """Protocol by which a trained policy segments unseen cases (docs/spars.md, Method 13)."""

    rollouts: int = 8
    """K: episodes per case, which make one map (with env.reduce=sum the mean of their maps)."""
    jitter_cells: int = 2
    """Largest random shift of the start positions, in lattice cells along each axis."""
    deterministic: bool = False
    """Take the likeliest action instead of a drawn one."""
    best: bool = False
    """Evaluate the weights that had the highest mean Dice on the validation cases while training (see examine_every)
    instead of the last ones."""
    mask: MaskRule | None = None
    """From a map to its mask. threshold: above one θ, that of the highest mean Dice on the validation cases;
    expected_dice: for each case the mask of the highest expected Dice, by what the values of the map said on the
    validation cases, which is never empty unless may_be_empty. null: expected_dice; with env.reduce=sum, whose
    maps exceed 1, threshold."""
    may_be_empty: bool = False
    """With expected_dice: no mask where that has the higher expected Dice, by what the maps of validation cases with
    and without tumour said; dozens of each are needed. For patients who may have no tumour."""
    postprocess: Postprocess = "none"
    """What becomes of a mask above θ. none: it stays; largest_component: only its largest connected part does (26
    neighbours). θ is chosen before."""
    tolerance_mm: float = 7.0
    """Tolerance of the normalised surface Dice, in mm; 7 is the Decathlon's for the liver."""
    pictures: int = 4
    """Number of cases in each figure."""

    def __post_init__(self) -> None:
        check(self, "evaluation.", rollouts=AT_LEAST_1, pictures=AT_LEAST_1)
        check(self, "evaluation.", jitter_cells=AT_LEAST_0, tolerance_mm=AT_LEAST_0)


@dataclass(frozen=True)
class SparsExperiment(Experiment):
    """One SPARS run: data, classifier, environment, learner and evaluation."""

    paper: Literal["spars"] = "spars"
    name: str = "SPARS"
    env: SparsConfig = field(default_factory=SparsConfig)
    """The environment. env.classifier: a .safetensors file, "packaged" (made for phantoms), or "train"."""
    presence: PresenceTrainingConfig = field(default_factory=PresenceTrainingConfig)
    """Training of the classifier, with env.classifier=train, and of the baseline attention_mil."""
    classifier_train: CaseChoice = field(default_factory=lambda: CaseChoice(split="classifier_train"))
    """Cases from which the classifier and the baselines that are trained learn."""
    validation: CaseChoice = field(default_factory=lambda: CaseChoice(split="classifier_val"))
    """Cases that choose the best epoch of classifier and trained baselines, and from whose labels evaluation.mask
    learns what makes a mask of a map."""
    prior_train: CaseChoice = field(default_factory=lambda: CaseChoice(split="rl_pool"))
    """Cases from whose scores, without labels, env.fill=train learns what is likely of windows that were not seen."""
    test: CaseChoice = field(default_factory=CaseChoice)
    """Cases of the results: nothing was trained or chosen on them."""
    policy: PolicyName = "window_cnn"
    """Network of the policy. window_cnn: convolutions on the windows; feature_mlp: on the classifier's features, needs
    env.obs_mode=features; flatten_mlp: MLP on the voxels (paper); candidates: one network for every window that can be
    chosen, for env.profile=search and patch."""
    straddle: float = 10.0
    """Weight of 2σ - |μ - θ|, the straddle rule, in the logits of a search's policy at the start of training; it is
    learned further. 0: training starts from equal chances."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of PPO."""
    self_play: SelfPlayConfig = field(default_factory=SelfPlayConfig)
    """The opponent, with env.n_agents=2 and env.opponent=snapshot."""
    baselines: list[str] = field(default_factory=list)
    """Names of the baselines to train and evaluate beside those that every evaluation has, in this order; `list`
    prints them."""
    unet: VolumeUNetConfig = field(default_factory=VolumeUNetConfig)
    """Settings of the baseline unet."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The protocol of `evaluate`."""
    checkpoint_every: int = 20_480
    """Environment steps between checkpoints."""
    examine_every: int = 40_960
    """Environment steps between validations while training, for curves, pictures and the best weights (which only
    evaluation.best uses); 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, checkpoint_every=AT_LEAST_1, examine_every=AT_LEAST_0, straddle=AT_LEAST_0)

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
        if self.ppo.total_timesteps == 0 and TRAIN not in (classifier, self.env.fill) and not self.baselines:
            raise ValueError(
                "nothing to train: ppo.total_timesteps is 0, neither env.classifier nor env.fill is 'train', and "
                "baselines names none"
            )
        if classifier not in (None, "packaged", TRAIN):
            classifier = whole_path("env.classifier", classifier)  # the run can then be continued from anywhere
        if self.env.profile in ("search", "patch") and self.self_play.initial_opponent != "self_snapshot":
            raise ValueError(
                f"self_play.initial_opponent is {self.self_play.initial_opponent!r} but with env.profile "
                f"{self.env.profile!r} it must be 'self_snapshot'"
            )
        if self.env.action_set == CONTINUOUS and self.self_play.initial_opponent == "constant0":
            raise ValueError(
                "self_play.initial_opponent is 'constant0' but env.action_set 'continuous' has no moves; give "
                "'self_snapshot' or 'random'"
            )
        if self.env.action_set == CONTINUOUS and self.ppo.algorithm == "maskable":
            raise ValueError(
                "ppo.algorithm is 'maskable' but env.action_set 'continuous' has no action masks; give 'ppo'"
            )
        if self.policy == "candidates" and self.ppo.algorithm == "recurrent":
            raise ValueError(
                "ppo.algorithm is 'recurrent' but policy 'candidates' masks windows that were seen, and observes "
                "them; give 'ppo' or 'maskable'"
            )
        if self.policy == "candidates" and self.ppo.net_arch:
            raise ValueError(
                f"ppo.net_arch is {self.ppo.net_arch} but policy 'candidates' has layers of its own; leave it out"
            )
        if self.env.fill == TRAIN and self.env.score_source != "classifier":
            raise ValueError(
                f"env.fill is 'train' but env.score_source is {self.env.score_source!r}; only the scores of a "
                f"classifier can be learned from"
            )
        fill = self.env.fill
        if fill not in (None, "none", "stationary", "packaged", TRAIN):
            fill = whole_path("env.fill", fill)
        data = self.env.data if self.env.data == "phantom" else whole_path("env.data", self.env.data)
        env = replace(self.env, classifier=classifier, data=data, fill=fill).resolved()
        if env.paint is None and classifier == TRAIN:
            env = replace(env, paint="cells" if self.presence.network == "dense" else "windows")
        if env.reward == "shaped" and env.gamma != self.ppo.gamma:
            raise ValueError(
                f"env.gamma is {env.gamma} but ppo.gamma is {self.ppo.gamma}; with reward 'shaped' they must be equal, "
                f"or the potential changes which policy is best"
            )
        mask = self.evaluation.mask or ("threshold" if env.reduce == "sum" else "expected_dice")
        if mask == "expected_dice" and env.reduce == "sum":
            raise ValueError(
                "evaluation.mask is 'expected_dice' but env.reduce is 'sum', whose maps exceed 1; take 'threshold', or "
                "another env.reduce"
            )
        if mask != "expected_dice" and self.evaluation.may_be_empty:
            raise ValueError(
                f"evaluation.may_be_empty is True but evaluation.mask is {mask!r}; take 'expected_dice', or leave "
                f"it out"
            )
        return replace(self, env=env, evaluation=replace(self.evaluation, mask=mask))
