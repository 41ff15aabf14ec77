"""Configuration of joint trainings of a masking agent and a classifier of X-rays (docs/apga.md, Method 10 to 19)."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from ...classifiers.masked_images import Fill
from ...classifiers.train_xray import XrayTrainingConfig
from ...common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, SHARE, check, whole_path, with_settings
from ...common.device import resolve_device
from ...datasets.xray.augmentation import Augment
from ...datasets.xray.images import XrayConfig
from ...rewards.loss_gap import Kind, Mode
from ...segmenters.grid_network import halvings
from ...segmenters.unet11 import UNIT
from ..dense_ppo.loss import Ratio
from ..experiment import Experiment

MethodName = Literal[
    "none",
    "none_2x",
    "cutout",
    "gradcam",
    "foreground",
    "pixel_dropout",
    "random",
    "shuffled",
    "end2end",
    "relaxed",
    "legacy",
    "reinforce",
    "arm",
    "disarm",
    "ppo",
]
TrainOn = Literal["aid", "adv", "both", "none"]
Way = Literal["plain", "masked", "averaged"]
MOST_SUMMED = 256
"""Cells of a mask up to which PPO takes the ratio of whole masks unless told otherwise."""


@dataclass(frozen=True)
class AgentConfig:
    """The network that selects (docs/apga.md, Method 10)."""

    kind: Literal["grid", "unet11"] = "grid"
    """grid: one logit for each cell, and a value; unet11 (paper): one for each pixel."""
    grid: int = 16
    """Cells along each side of the mask of `grid`: the image's side halved a number of times."""
    width: int = 16
    """Maps of the first level of `grid`, doubled at each level below."""
    in_channels: Literal[1, 3] = 1
    """Channels of the first layer; 3 (paper's program): a grey picture is repeated."""
    init: Literal["random", "foreground", "vgg11", "file"] = "random"
    """Weights to begin with. foreground: fitted to what is brighter than Otsu's threshold, first; vgg11: ImageNet's in
    the encoder of unet11; file: an agent of ours, or published weights of unet11 (paper)."""
    pretrained: str | None = None
    """File of `init: file`, such as agent.safetensors of an earlier run, or of `init: vgg11`."""
    foreground_epochs: int = 5
    """Epochs of the fit of `init: foreground`."""

    def __post_init__(self) -> None:
        check(self, "agent.", grid=AT_LEAST_1, width=AT_LEAST_1, foreground_epochs=AT_LEAST_1)
        if (self.pretrained is None) == (self.init in ("file", "vgg11")):
            raise ValueError(
                f"agent.init is {self.init!r} and agent.pretrained is {self.pretrained!r} but init file and vgg11 need "
                f"a file there, and others none"
            )
        if self.init == "vgg11" and self.kind != "unet11":
            raise ValueError(f"agent.init is 'vgg11' but agent.kind is {self.kind!r}; take unet11, or another init")


@dataclass(frozen=True)
class RewardConfig:
    """What a mask is worth (docs/apga.md, Method 13)."""

    mode: Mode = "adversarial"
    """adversarial (paper): how much the doubt rises where the mask is erased; cooperative: how much it falls where
    nothing else is kept; contrast: the doubt of the erased image less that of the kept one."""
    kind: Kind = "loss"
    """Doubt of the classifier. loss (paper): cross-entropy in nats; prob: -P(y); logit: - margin."""
    level: Literal["sample", "batch"] = "sample"
    """sample: each mask has its own reward; batch (paper's program): all of a batch have their mean."""
    clip: float | None = 5.0
    """Largest absolute gap; null: none."""
    area_coef: float = 0.5
    """What a mask of the whole image costs, in units of the gap."""
    tv_coef: float = 0.0
    """Cost of the total variation of a mask."""

    def __post_init__(self) -> None:
        check(self, "reward.", clip=POSITIVE, area_coef=AT_LEAST_0, tv_coef=AT_LEAST_0)


@dataclass(frozen=True)
class UpdateConfig:
    """How the agent learns from rewards (docs/apga.md, Method 15 and 16); legacy has the program's own numbers."""

    learning_rate: float | None = None
    """Adam learning rate of the agent; null: 3e-4 of grid, 1e-5 of unet11 (paper's program)."""
    samples: int = 4
    """Masks that are drawn of each image; of arm and disarm half as many pairs."""
    baseline: Literal["leave_one_out", "ema"] = "leave_one_out"
    """What is taken off the rewards in reinforce: the mean of the image's other masks, or the moving mean of all."""
    zeros_coef: float = 0.001
    """Weight of BCE(p, 0), which makes masks small; 0.6 and 0.5 of ones and zeros are end2end's own."""
    ones_coef: float = 0.0
    """Weight of BCE(p, 1), which keeps them from being empty."""
    ent_coef: float = 0.001
    """Weight of the mean entropy of a cell, in nats."""
    temperature: float = 0.5
    """Of the binary concrete masks of relaxed: the lower, the harder."""
    ratio: Ratio | None = None
    """Of ppo: of whole masks (sum), their geometric mean over the cells (mean), or one of each cell (factored); null:
    sum up to 256 cells, else factored."""
    n_epochs: int = 4
    """Passes of ppo over the masks of a batch."""
    clip_range: float = 0.2
    """Epsilon of ppo."""
    target_kl: float = 0.02
    """Divergence after whose excess ppo leaves a batch: of a mask with ratio sum, else the mean of a cell."""
    vf_coef: float = 0.5
    """Weight of the squared error of the value in ppo."""
    max_grad_norm: float | None = 0.5
    """Largest 2-norm of the agent's gradient, which is scaled down to it; null: none."""
    end2end: tuple[float, float] = (0.5, 0.6)
    """Weights of BCE(p, 0) and BCE(p, 1) in end2end."""

    def __post_init__(self) -> None:
        check(self, "update.", learning_rate=POSITIVE, samples=(2, math.inf), zeros_coef=AT_LEAST_0)
        check(self, "update.", ones_coef=AT_LEAST_0, ent_coef=AT_LEAST_0, temperature=POSITIVE, n_epochs=AT_LEAST_1)
        check(self, "update.", clip_range=(0.001, 1), target_kl=POSITIVE, vf_coef=AT_LEAST_0, max_grad_norm=POSITIVE)
        check(self, "update.", end2end=AT_LEAST_0)


@dataclass(frozen=True)
class WarmUpConfig:
    """Training of the agent before the joint loop, while the classifier is frozen (ours)."""

    epochs: int = 0
    """Passes over the training images; 0: none."""
    learning_rate: float | None = None
    """Adam learning rate; null: that of `update`."""

    def __post_init__(self) -> None:
        check(self, "warm_up.", epochs=AT_LEAST_0, learning_rate=POSITIVE)


@dataclass(frozen=True)
class TrainingConfig:
    """What the classifier learns from after its training on plain images (docs/apga.md, Method 17 and 18)."""

    method: MethodName = "reinforce"
    """none: nothing more; none_2x: plain images, twice; cutout, gradcam, foreground, pixel_dropout, random, shuffled:
    masks without an agent, or without its places; end2end, relaxed: the mask's gradient; legacy: the paper's program;
    reinforce, arm, disarm, ppo: rewards."""
    train_on: TrainOn | None = None
    """Masked images that teach: aid (paper) keeps what is selected, adv erases it, both does one or the other, by
    chance; none: plain images alone; null: the method's own."""
    mask: Literal["threshold", "sample"] = "threshold"
    """How a mask of the agent is made for the classifier: p > 0.5 (paper), or drawn."""
    fresh_aid: bool = False
    """Make that mask after the agent's update, at the price of one more pass of it; legacy always does."""
    joint_step: bool = False
    """One step for plain and masked images together, instead of one each (paper)."""
    split_bn: bool = False
    """Give masked images statistics of their own in batch normalisation."""
    extra_cutout: bool = False
    """One more step on images with a random box erased."""
    area: float | None = None
    """Share of the cells that random keeps; null: as many as the agent selects in each image, which it learns by
    reinforce."""
    fill: Fill = "zero"
    """What stands where an image is erased: black (paper), its mean, itself blurred, or noise."""
    augment: Augment = "none"
    """geometric: mirrored left to right by chance, and turned by up to 30 degrees."""
    epochs: int = 100
    """Passes over the training images, at most."""
    patience: int = 15
    """Training ends after patience + 1 epochs in a row without a higher validation accuracy than all before."""
    batch_size: int = 64
    """Images per step, at most (paper's program: 25)."""
    learning_rate: float = 1e-5
    """Adam learning rate of the classifier."""

    def __post_init__(self) -> None:
        check(self, "training.", area=SHARE, epochs=AT_LEAST_1, patience=AT_LEAST_0, batch_size=AT_LEAST_1)
        check(self, "training.", learning_rate=POSITIVE)
        if self.area is not None and self.method != "random":
            raise ValueError(f"training.area is {self.area} but only method random has a share; leave it null")


@dataclass(frozen=True)
class EvaluationConfig:
    """What `evaluate` does (docs/apga.md, Method 19)."""

    ways: list[Way] = field(default_factory=lambda: list[Way](["plain", "masked", "averaged"]))
    """How classes are predicted: of the image, of what is selected of it, or by the mean of both probabilities."""
    pictures: int = 4
    """Images in the figure."""
    saliency: bool = True
    """Whether masks are judged by deletion and insertion, too, beside GradCAM and random masks of equal area."""

    def __post_init__(self) -> None:
        check(self, "evaluation.", pictures=AT_LEAST_0)
        if "plain" not in self.ways or len(set(self.ways)) < len(self.ways):
            raise ValueError(f"evaluation.ways is {self.ways} but must have plain, and each once")


@dataclass(frozen=True)
class APGAExperiment(Experiment):
    """One classifier, what it learns from after its training on plain images, and its evaluation."""

    paper: Literal["apga"] = "apga"
    name: str = "APGA"
    data: XrayConfig = field(default_factory=XrayConfig)
    """Radiographs and splits."""
    classifier: XrayTrainingConfig = field(default_factory=XrayTrainingConfig)
    """Network, and its training on plain images."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """Network of the agent."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Reward of its masks."""
    update: UpdateConfig = field(default_factory=UpdateConfig)
    """How it learns."""
    warm_up: WarmUpConfig = field(default_factory=WarmUpConfig)
    """Its training before the joint loop."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The joint loop."""
    test_split: str = "test"
    """Split that `evaluate` and `render` take unless told otherwise."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What `evaluate` does."""

    @property
    def agent_rate(self) -> float:
        """Adam learning rate of the agent."""
        return self.update.learning_rate or (3e-4 if self.agent.kind == "grid" else 1e-5)

    @property
    def cells(self) -> int:
        """N: logits of the agent for an image."""
        return (self.agent.grid if self.agent.kind == "grid" else self.data.size) ** 2

    def resolved(self) -> "APGAExperiment":
        """The same with paths made absolute, and the ratio chosen.

        Raises:
            ValueError: values that do not fit together.
        """
        resolve_device(self.device)
        data, classifier, agent, update = self.data, self.classifier, self.agent, self.update
        for name in ("data", "csv"):
            value = getattr(data, name)
            if value not in (None, "phantom"):
                data = with_settings(data, {name: whole_path(f"data.{name}", value)})
        for name in ("imagenet", "pretrained"):
            if (value := getattr(classifier, name)) is not None:
                classifier = with_settings(classifier, {name: whole_path(f"classifier.{name}", value)})
        if agent.pretrained is not None:
            agent = replace(agent, pretrained=whole_path("agent.pretrained", agent.pretrained))
        if agent.kind == "grid":
            halvings(data.size, agent.grid)
        elif data.size % UNIT:
            raise ValueError(f"data.size is {data.size} but unet11 needs a multiple of {UNIT}; or take agent.kind grid")
        if update.ratio is None:
            update = replace(update, ratio="sum" if self.cells <= MOST_SUMMED else "factored")
        return replace(self, data=data, classifier=classifier, agent=agent, update=update)
