"""The configuration of an adversarial training (docs/rp-pgd.md, Method 23-25)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from torch import nn

from ...attacks.budget import Epsilon
from ...attacks.methods import ATTACKS, Attack
from ...attacks.named import GRID_STEPS, Need, preset
from ...attacks.options import RPOptions
from ...attacks.victims import feature_layer_of
from ...common.checks import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    POSITIVE,
    check,
    check_choice,
    check_range,
    whole_path,
)
from ...common.device import resolve_device
from ...datasets.liver.slices import LiverSliceConfig
from ...datasets.scenes.augmentation import AugmentationConfig
from ...datasets.scenes.images import SceneDataConfig
from ...segmenters.resnet import Backbone
from ..experiment import Experiment
from ..robust_segmenters import RobustnessConfig
from .learned_attack import LearnedAttack, is_run

NetworkName = Literal["pspnet", "deeplab", "unet"]
Method = Literal["none", "sat", "ddc_at", "at"]


@dataclass(frozen=True)
class NetworkConfig:
    """The network that is trained (docs/rp-pgd.md, Method 12)."""

    kind: NetworkName = "pspnet"
    """pspnet, deeplab: on a ResNet at output stride 8; unet: the U-Net of six levels."""
    backbone: Backbone = "resnet50"
    """ResNet of pspnet and deeplab; resnet18 for two cores."""
    deep_stem: bool = False
    """Stem of three 3x3 convolutions, as in SAT's and DDC-AT's programs, in place of the 7x7 one (pspnet, deeplab)."""
    init_channels: int = 32
    """Twice the number of feature maps of the first level of unet, even."""
    pretrained: str | None = None
    """File to begin with: ImageNet weights of the backbone (torchvision's or semseg's layout, robust ones too), or a
    victim file of such a network, whose heads are taken too; null: random weights."""

    def __post_init__(self) -> None:
        check(self, "network.", init_channels=(2, math.inf))


@dataclass(frozen=True)
class TrainingConfig:
    """What the network learns from, and how (docs/rp-pgd.md, Method 23 and 24)."""

    method: Method = "at"
    """none: clean images alone; sat: BIM with step size eps / N; ddc_at: SAT with two heads more (pspnet, deeplab); at:
    `attack`."""
    attack: str = "rp_pgd_pp"
    """The inner attack of method at: one of the attacks by name, or the folder of a run whose policy attacks
    (docs/rp-pgd.md, Method 9 and 30)."""
    steps: int = 3
    """Gradients N of the inner attack."""
    eps: float | str = 0.03
    """Radius as a share of the range of the images: 0.03, or 8/255."""
    step_size: float | str | None = None
    """Step size of method at, a share of the range like eps; null: the attack's own."""
    random_start: bool | None = None
    """Whether the attack of method at begins anywhere in the ball; null: from 10 steps on, where the attack has it."""
    feature_layer: str | None = None
    """Submodule whose output RP-PGD's prototypes are made of, such as model.layer3; null: model.layer4, or
    model.merge.1 of unet."""
    options: RPOptions = field(default_factory=RPOptions)
    """Options of the attacks whose names begin with rp; the others have none."""
    adv_ratio: float = 0.5
    """Share of a batch that is attacked, rounded up to whole images; the images before it stay clean."""
    pairing: Literal["split", "paired"] = "split"
    """split: clean and attacked images are different ones; paired: attacked images stand in the batch clean, too."""
    bn: Literal["shared", "split"] = "shared"
    """shared: clean and attacked images are one batch for batch normalisation; split: two, one after the other."""
    aux_weight: float = 0.4
    """Weight of the auxiliary head's cross-entropy (pspnet, deeplab)."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum."""
    learning_rate: float = 0.01
    """Of the backbone, before the schedule; of all weights of unet."""
    head_factor: float = 10.0
    """The learning rate of context module and heads is so many times that of the backbone."""
    momentum: float = 0.9
    """Of sgd, below 1."""
    weight_decay: float = 1e-4
    """Of all weights, those of batch normalisation too."""
    power: float = 0.9
    """Exponent of the schedule: the factor of step i of n is (1 - i / n) ^ power."""
    warmup_epochs: int = 0
    """Epochs in which the learning rate rises linearly to that of the schedule."""
    epochs: int = 50
    """Passes over the training images."""
    batch_size: int = 16
    """Images that one gradient step sees in this process, clean and attacked ones together."""
    loaders: int = 4
    """Threads that read and augment images while the network computes; 0: it waits for them. Changes no number."""
    validate_every: int = 1
    """Epochs between two validations; the last epoch is always validated."""
    val_attack: str = "bim"
    """Attack of the validation, with `eps`, whatever the method."""
    val_steps: int = 3
    """Gradients of that attack."""

    def __post_init__(self) -> None:
        check(self, "training.", steps=AT_LEAST_1, adv_ratio=(ABOVE_0, 1), aux_weight=AT_LEAST_0, power=AT_LEAST_0)
        check(self, "training.", learning_rate=POSITIVE, head_factor=POSITIVE, weight_decay=AT_LEAST_0)
        check(self, "training.", momentum=(0, BELOW_1))
        check(self, "training.", epochs=AT_LEAST_1, batch_size=AT_LEAST_1, warmup_epochs=AT_LEAST_0, loaders=AT_LEAST_0)
        check(self, "training.", validate_every=AT_LEAST_1, val_steps=AT_LEAST_1)
        check_choice("training.val_attack", self.val_attack, ATTACKS)
        if not is_run(self.attack):
            check_choice("training.attack", self.attack, ATTACKS)
        Epsilon.parse(self.eps, "training.eps")
        if self.step_size is not None:
            Epsilon.parse(self.step_size, "training.step_size")
        if self.method != "none":
            self.inner_attack.steps(self.steps)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"training.warmup_epochs is {self.warmup_epochs} but must be below epochs, {self.epochs}")
        if self.method == "ddc_at" and self.pairing == "paired":
            raise ValueError("training.pairing is 'paired' but ddc_at needs other images in each half; use split")
        ATTACKS[self.val_attack].steps(self.val_steps)

    @cached_property
    def inner_attack(self) -> "Attack | LearnedAttack":
        """What attacks while it trains: BIM in sat and ddc_at. A run's policy is opened once."""
        if self.method == "at" and is_run(self.attack):
            return LearnedAttack.open(self.attack)
        return ATTACKS[self.attack if self.method == "at" else "bim"]

    @property
    def composition(self) -> tuple[int, int]:
        """Number of clean and of attacked images in the batch of one process (docs/rp-pgd.md, Method 23)."""
        if self.method == "none":
            return self.batch_size, 0
        clean = math.floor(self.batch_size * (1 - self.adv_ratio) + 1e-9)  # 10 (1 - 0.9) is a little below 1
        return clean, self.batch_size - clean

    @property
    def drawn(self) -> tuple[int, ...]:
        """Number of images that such a batch is made of: (clean, attacked), or those that are both."""
        return (max(self.composition),) if self.pairing == "paired" else self.composition


@dataclass(frozen=True)
class EvaluationConfig(RobustnessConfig):
    """What the trained network is judged by (docs/rp-pgd.md, Method 26 and 27)."""

    attacks: list[str] | str = field(default_factory=lambda: ["pgd", "segpgd", "cospgd", "rp_pgd_pp"])
    """Attacks by name, such as pgd_20 (10 steps where the name has none), or folders of runs, whose policies attack,
    beside the clean images; or a preset: reference, grid, sea, battery."""
    eps: list[float | str] | float | str = "8/255"
    """Radius of each, or several, as shares of the range."""
    steps: list[int] = field(default_factory=lambda: [*GRID_STEPS])
    """Gradients of the attacks of the preset grid."""
    batch_size: int = 8
    """Images of one size that are attacked at once."""
    protocol: Literal["whole", "reference"] = "whole"
    """How photographs are segmented and attacked: whole, or by the windows of the released program (docs/rp-pgd.md,
    Method 16), where attacks have no features."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Of protocol reference: factors of base_size, over which probabilities are averaged."""
    flip: bool = False
    """Of protocol reference: average with the probabilities of each mirrored window."""
    base_size: int | None = None
    """Of protocol reference: pixels that the longer side is brought to; null: 512 of VOC 2012 and ADE20K, 1024 of
    Cityscapes, else as it is."""
    pictures: int = 4
    """Images of the figure."""

    def __post_init__(self) -> None:
        check(self, "evaluation.", pictures=AT_LEAST_1, scales=POSITIVE, base_size=AT_LEAST_1)
        if not self.scales:
            raise ValueError("evaluation.scales is [] but needs a factor; give [1] for one pass")
        if self.protocol == "whole" and (self.scales != [1.0] or self.flip or self.base_size is not None):
            raise ValueError(
                "evaluation.scales, flip and base_size are of windows, but evaluation.protocol is 'whole'; leave them "
                "out, or use reference"
            )
        for count in self.steps:
            check_range("each of evaluation.steps", count, AT_LEAST_1)
        super().__post_init__()
        if isinstance(self.attacks, str):
            preset(self.attacks, self.steps)

    def _needs(self, name: str) -> Sequence[Need]:
        return () if is_run(name) else super()._needs(name)

    def _lacks(self) -> Mapping[Need, str]:
        lacks = super()._lacks()
        if self.protocol == "whole":
            return lacks
        reason = "evaluation.protocol is 'reference', whose windows give no features of a whole image"
        return {**lacks, "feature_layer": f"{reason}; leave it out, or use whole"}


@dataclass(frozen=True)
class RPPGDExperiment(Experiment):
    """One adversarial training of a segmenter, and its evaluation."""

    paper: Literal["rp_pgd"] = "rp_pgd"
    name: str = "RP-PGD-PP-AT"
    data: SceneDataConfig = field(default_factory=SceneDataConfig)
    """The photographs."""
    liver: LiverSliceConfig | None = None
    """Axial slices of liver CTs in place of photographs, the CTs of each split by train_split, val_split and test_split
    (docs/spars.md, Method 11); null: `data`."""
    train_split: str = "train"
    """Split from which the network learns."""
    val_split: str = "val"
    """Split of the validation on the way, which chooses nothing: the last epoch is kept."""
    test_split: str = "test"
    """Split that `evaluate` and `render` take unless told otherwise."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random changes of the training images."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Attack, batches and optimiser."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What `evaluate` does."""

    def resolved(self) -> "RPPGDExperiment":
        """The same with paths made absolute, after checking what can be checked without files.

        Raises:
            ValueError: a value outside its range, or values that do not fit together.
        """
        resolve_device(self.device)
        on_resnet, training = self.network.kind != "unet", self.training
        if training.method == "ddc_at" and not on_resnet:
            raise ValueError("training.method is 'ddc_at' but unet has no heads for it; use pspnet or deeplab")
        smallest = min(part for part in training.composition if part) if training.bn == "split" else training.batch_size
        if on_resnet and smallest < 2:
            raise ValueError(
                f"training.batch_size is {training.batch_size}, so that batch normalisation sees a batch of one image, "
                f"but {self.network.kind} needs two; raise it, or use training.bn shared"
            )
        data, network = self.data, self.network
        if data.data != "phantom":
            lists = data.lists and {split: whole_path("data.lists", path) for split, path in data.lists.items()}
            data = replace(data, data=whole_path("data.data", data.data), lists=lists)
        liver = None if self.liver is None else self._resolved_liver(self.liver)
        if network.pretrained is not None:
            network = replace(network, pretrained=whole_path("network.pretrained", network.pretrained))
        training = replace(training, attack=_whole(training.attack))
        attacks = self.evaluation.attacks
        if not isinstance(attacks, str):
            attacks = [_whole(name) for name in attacks]
        evaluation = replace(self.evaluation, attacks=attacks)
        return replace(self, data=data, liver=liver, network=network, training=training, evaluation=evaluation)

    def _resolved_liver(self, liver: LiverSliceConfig) -> LiverSliceConfig:
        """The same with a whole path."""
        if self.data != SceneDataConfig():
            raise ValueError("data is of photographs, but liver is given, too; leave one of them out")
        if liver.cases is not None or liver.split != LiverSliceConfig().split:
            raise ValueError(
                "liver.split and liver.cases are of environments; here train_split, val_split and test_split choose; "
                "leave these out"
            )
        if self.evaluation.protocol == "reference":
            raise ValueError("evaluation.protocol is 'reference', whose windows are of photographs; use whole")
        return liver if liver.data == "phantom" else replace(liver, data=whole_path("liver.data", liver.data))


def _whole(attack: str) -> str:
    """The name of an attack, or the whole path of its run."""
    return whole_path("attack", attack) if is_run(attack) else attack


def attack_arguments(config: TrainingConfig, victim: nn.Module) -> dict[str, Any]:
    """Arguments of the inner attack, beside model, images and labels."""
    arguments: dict[str, Any] = {"eps": config.eps, "steps": config.steps}
    if config.method == "at":
        arguments |= {"step_size": config.step_size, "random_start": config.random_start}
    else:
        arguments["step_size"] = Epsilon.parse(config.eps).value / config.steps
    return arguments | feature_arguments(config.inner_attack, config, victim)


def feature_arguments(attack: Attack | LearnedAttack, config: TrainingConfig, victim: nn.Module) -> dict[str, Any]:
    """What the attacks whose names begin with rp need beside it."""
    if not attack.regional:
        return {}
    return {"feature_layer": config.feature_layer or feature_layer_of(victim), "options": config.options}
