"""The configuration of an RL4Seg run (docs/rl4seg.md, Method 5 and 14)."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from ...common.checks import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, SHARE, check, whole_path
from ...common.device import resolve_device
from ...datasets.echo.images import EchoDataConfig
from ...envs.rl4seg_config import RewardName
from ...rewards.corrector import Projection
from ...rewards.echo_validity import BorderPolicy
from ...rewards.reward_data import RewardDataConfig
from ...rewards.reward_net import RewardNetConfig
from ...rewards.shape_prior import SHRINK, ShapePriorConfig
from ...segmenters.adaptation import EntropyConfig
from ...segmenters.norms import NormMode
from ...segmenters.tist import TistConfig
from ...segmenters.training import SupervisedConfig
from ...segmenters.udas import UdasConfig
from ...segmenters.unet import SMALLEST
from ..dense_ppo.ppo import DensePPOConfig
from ..experiment import Experiment


@dataclass(frozen=True)
class Schedule:
    """A number that depends on the iteration i = 1, 2, ..."""

    kind: Literal["constant", "inv_iter", "linear_iter"] = "constant"
    """constant: c0; inv_iter: c0 / i; linear_iter: c0 · i."""
    c0: float = 0.0
    """The number at i = 1."""

    def at(self, i: int) -> float:
        """The number at iteration i."""
        return self.c0 * {"constant": 1.0, "inv_iter": 1 / i, "linear_iter": float(i)}[self.kind]


@dataclass(frozen=True)
class NetworkConfig:
    """Policy, critic and reward network: U-Nets of one size (docs/rl4seg.md, Method 3)."""

    init_channels: int = 32
    """Twice the number of feature maps of the first level, even; 32 in the paper's program."""
    norm_mode: NormMode = "frozen"
    """Normalisation layers. frozen: BatchNorm with statistics of the target, estimated once; batch: with statistics of
    each mini-batch (paper); group: GroupNorm."""
    dropout: float = 0.25
    """Dropout probability of the network that the baseline mc_dropout trains; the others have none."""

    def __post_init__(self) -> None:
        check(self, "network.", init_channels=(2, math.inf), dropout=(ABOVE_0, BELOW_1))
        if self.init_channels % 2:
            raise ValueError(f"network.init_channels is {self.init_channels} but must be even")


@dataclass(frozen=True)
class SourceNetConfig(SupervisedConfig):
    """Training of the source network (docs/rl4seg.md, Method 5). Defaults: the paper's program, but for the loss."""

    section: ClassVar[str] = "supervised."


@dataclass(frozen=True)
class PPOStageConfig:
    """One iteration's PPO (docs/rl4seg.md, Method 4-5)."""

    epochs: int = 5
    """Passes over the target images seen so far, per iteration of the loop; 0 leaves the policy as it is."""
    batch: Schedule = field(default_factory=lambda: Schedule("linear_iter", 8))
    """Images per rollout; a mini-batch is a whole rollout."""
    ent_coef: Schedule = field(default_factory=lambda: Schedule("inv_iter", 0.15))
    """c_H: weight of the entropy bonus, in nats per pixel."""
    kl_coef: Schedule = field(default_factory=lambda: Schedule("inv_iter", 0.05))
    """β: weight of the KL penalty towards the reference network, in nats per pixel."""
    critic_start: Literal["random", "policy"] = "random"
    """Initial weights of the first iteration's critic. random: fresh (paper); policy: the policy's features, with a
    last layer that gives the policy's mean reward everywhere (ours)."""
    examine_every: int = 1
    """Passes over the images between two validations; the best validation chooses the policy."""
    learner: DensePPOConfig = field(default_factory=DensePPOConfig)
    """Further settings of PPO; its total_timesteps, num_envs, ent_coef, kl_coef and imitate follow from the fields
    above and `gold`."""

    def __post_init__(self) -> None:
        check(self, "ppo.", epochs=AT_LEAST_0, examine_every=AT_LEAST_1)
        for name in ("batch", "ent_coef", "kl_coef"):
            check(getattr(self, name), f"ppo.{name}.", c0=AT_LEAST_1 if name == "batch" else AT_LEAST_0)
        for name in ("total_timesteps", "num_envs", "ent_coef", "kl_coef", "imitate"):
            if getattr(self.learner, name) != getattr(DensePPOConfig(), name):
                raise ValueError(
                    f"ppo.learner.{name} is decided by ppo.epochs, ppo.batch, ppo.ent_coef, ppo.kl_coef and gold"
                )
        if self.learner.head == "bernoulli":
            raise ValueError("ppo.learner.head is 'bernoulli' but there are three labels per pixel; use 'categorical'")


@dataclass(frozen=True)
class WarmStartConfig:
    """Initial weights of the policy in iterations after the first (docs/rl4seg.md, Method 5)."""

    kind: Literal["shrink_perturb", "keep"] = "shrink_perturb"
    """shrink_perturb: weights of the iteration before, shrunk and perturbed; keep: as they are."""
    shrink: float = 0.5
    """λ: factor on every weight, 0 to 1."""
    sigma: float = 0.01
    """σ: standard deviation of the Gaussian noise added to every weight."""
    include_norm: bool = True
    """Shrink and perturb the gains of normalisation layers too, as the paper's program does."""

    def __post_init__(self) -> None:
        check(self, "warm_start.", shrink=SHARE, sigma=AT_LEAST_0)


@dataclass(frozen=True)
class GoldConfig:
    """Gold images: those whose action is given and rewarded with 1 (docs/rl4seg.md, Method 7)."""

    source: Literal["pseudo", "gt"] = "pseudo"
    """pseudo: valid masks of the policy; gt: the true masks of the target (needs labels)."""
    fraction: float = 1.0
    """Share of the possible gold images that are used, 0 to 1."""
    corrected: bool = False
    """Use corrected masks too, where the reward network rates them above the policy's own mask of that image (ours)."""
    refresh: bool = False
    """Predict and check all images seen so far anew at each iteration (but not correct them anew); false: a mask that
    was gold once stays gold."""

    def __post_init__(self) -> None:
        check(self, "gold.", fraction=SHARE)


@dataclass(frozen=True)
class ProtocolConfig:
    """Protocol of the evaluation on test images (docs/rl4seg.md, Method 11 and 12)."""

    mc_passes: int = 10
    """Forward passes per image of MC dropout."""
    tta_passes: int = 25
    """Forward passes per image of test-time augmentation."""
    ensemble: int = 4
    """Number of networks in the ensemble, the source-only one among them."""
    pictures: int = 4
    """Number of images in each figure."""

    def __post_init__(self) -> None:
        check(self, "evaluation.", mc_passes=AT_LEAST_1, tta_passes=AT_LEAST_1, pictures=AT_LEAST_1)
        check(self, "evaluation.", ensemble=(2, math.inf))


@dataclass(frozen=True)
class RL4SegExperiment(Experiment):
    """One RL4Seg run: source network, shape prior, and the iterations of reward data, reward network and PPO."""

    paper: Literal["rl4seg"] = "rl4seg"
    name: str = "RL4Seg"
    source: EchoDataConfig = field(default_factory=EchoDataConfig)
    """The labelled domain."""
    target: EchoDataConfig = field(default_factory=EchoDataConfig)
    """The domain to adapt to (phantoms: vendor b); only evaluation, and baselines that say so, use its labels."""
    pool: list[str] = field(default_factory=list)
    """Splits of the target whose images are adapted to; their order is shuffled by the seed. None named: train, and
    pred where the target has one."""
    test_split: str | None = None
    """Split of the target that `evaluate` and `render` take unless told otherwise; null: test where there is one, else
    the first of `pool` (train)."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Size and normalisation of the networks."""
    supervised: SourceNetConfig = field(default_factory=SourceNetConfig)
    """Stage 0: the source network; in the paper's program the loss is ce_double_softmax."""
    shape_prior: ShapePriorConfig = field(default_factory=ShapePriorConfig)
    """Shape auto-encoder of the corrector, trained on source masks."""
    iterations: int = 4
    """Number N of iterations; 0 trains the source network and the baselines only."""
    initial_images: int = 100
    """Number of target images that PPO sees from the first iteration on, beside the new ones."""
    new_images: int = 2500
    """Number of new target images per iteration."""
    reward: RewardName = "reward_net"
    """Reward of PPO at a pixel; all but reward_net and anatomical need the target's labels ("supervised RL")."""
    border_policy: BorderPolicy = "vital"
    """Image border in the anatomical rules of reward data. vital: the image as it is (paper); padded: background added
    around it."""
    projection: Projection = "decode"
    """Treatment of an invalid reconstruction by the corrector. decode: none (paper); nearest_valid: its code is moved
    towards the nearest code of a valid mask."""
    reward_data: RewardDataConfig = field(default_factory=RewardDataConfig)
    """Stage 1 of an iteration: triplets."""
    reward_net: RewardNetConfig = field(default_factory=RewardNetConfig)
    """Stage 2: the reward network."""
    ppo: PPOStageConfig = field(default_factory=PPOStageConfig)
    """Stage 3: the policy."""
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    """Initial weights of the policy in iterations after the first."""
    gold: GoldConfig = field(default_factory=GoldConfig)
    """Gold images: those whose mask PPO imitates."""
    baselines: list[str] = field(default_factory=list)
    """Names of the baselines to train for comparison, in this order; `list` prints them."""
    equal_budget: bool = False
    """Train the baselines entropy, tist (each of its networks) and policy_gradient for at least as many gradient steps
    as the loop's PPO makes; false: for the epochs of their own sections, and policy_gradient for as many images."""
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    """Settings of the baseline entropy."""
    tist: TistConfig = field(default_factory=TistConfig)
    """Settings of the baseline tist."""
    udas: UdasConfig = field(default_factory=UdasConfig)
    """Settings of the baseline udas."""
    evaluation: ProtocolConfig = field(default_factory=ProtocolConfig)
    """The protocol of `evaluate`."""

    def resolved(self) -> "RL4SegExperiment":
        """The same with paths made absolute, after checking what can be checked without files.

        Raises:
            ValueError: a value outside its range, or values that do not fit together.
        """
        check(self, iterations=AT_LEAST_0, initial_images=AT_LEAST_0, new_images=AT_LEAST_1)
        resolve_device(self.device)
        if self.source.size != self.target.size:
            raise ValueError(
                f"source.size is {self.source.size} but target.size is {self.target.size}; they must be equal"
            )
        if self.source.size < SMALLEST:
            raise ValueError(f"source.size is {self.source.size} but the U-Net needs at least {SMALLEST} pixels")
        corrects = bool(self.iterations) and self.reward == "reward_net"
        if self.gold.corrected and not corrects:
            raise ValueError("gold.corrected needs iterations > 0 and reward 'reward_net', which judges the masks")
        if corrects and self.source.size % SHRINK:
            raise ValueError(f"source.size is {self.source.size} but the shape prior needs a multiple of {SHRINK}")
        if len(set(self.pool)) < len(self.pool):
            raise ValueError(f"pool is {self.pool} but must name each split once")
        learner = self.ppo.learner
        if self.network.norm_mode == "batch" and (learner.batch_size is not None or learner.n_steps > 1):
            raise ValueError(
                f"network.norm_mode is 'batch', so that an inner step must see the whole rollout of one step, but "
                f"ppo.learner.batch_size is {learner.batch_size} and n_steps {learner.n_steps}; leave them null and 1"
            )
        for i in range(1, max(self.iterations, 1) + 1):
            self.learner(i)
        source, target = _settled("source", self.source, "a"), _settled("target", self.target, "b")
        return replace(self, source=source, target=target)

    def pool_size(self, i: int) -> int:
        """Number of target images seen up to iteration i = 1, 2, ..."""
        return self.initial_images + i * self.new_images

    def learner(self, i: int) -> DensePPOConfig:
        """The learner of iteration i: batch, c_H and β (docs/rl4seg.md, Method 5)."""
        ppo = self.ppo
        return replace(
            ppo.learner,
            total_timesteps=ppo.epochs * self.pool_size(i) * ppo.learner.group_size,
            num_envs=round(ppo.batch.at(i)) * ppo.learner.group_size,
            ent_coef=ppo.ent_coef.at(i),
            kl_coef=ppo.kl_coef.at(i),
        )


def _settled(section: str, data: EchoDataConfig, vendor: Literal["a", "b"]) -> EchoDataConfig:
    """`data` with vendor and absolute path filled in, so that a run can be continued from any folder."""
    if data.data == "phantom":
        return replace(data, vendor=data.vendor or vendor)
    return replace(data, data=whole_path(f"{section}.data", data.data))
