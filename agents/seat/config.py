"""Configuration of adversarial trainings of 3-D segmenters (docs/seat.md, Method 8 to 14)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...attacks.budget import Epsilon
from ...attacks.named import Need
from ...common.checks import AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, SHARE, check, whole_path
from ...common.device import resolve_device
from ...datasets.decathlon.augmentation import AugmentationConfig
from ...datasets.decathlon.cases import DecathlonConfig
from ..experiment import Experiment
from ..robust_segmenters import RobustnessConfig
from .controller import ScheduleName, make_schedule

Method = Literal["replay", "pgd", "trades"]
LADDER: tuple[float | str, ...] = ("2/255", "4/255", "6/255", "8/255", "10/255")
"""Radii of the evaluation."""


@dataclass(frozen=True)
class NetworkConfig:
    """The network that is trained."""

    kind: Literal["rog", "segresnet", "unet3d", "dynunet", "small3d"] = "segresnet"
    """rog: the lattice, with the strides of the plan; segresnet, unet3d, dynunet: MONAI's; small3d: four
    convolutions."""
    width: int = 8
    """Maps of each layer of small3d, even."""
    pretrained: str | None = None
    """Weights to begin with: a victim.safetensors of a training, or of rog a published checkpoint; null: random
    ones."""


@dataclass(frozen=True)
class TrainingConfig:
    """What the weights learn from, and how."""

    method: Method = "replay"
    """replay: every pass moves the noise and teaches (Free-AT, SEAT; clean training with noise false). pgd: the noise
    moves first, and the image that it reaches teaches. trades: clean images teach, and the attacked ones to be
    alike."""
    schedule: ScheduleName = "seat"
    """Iterations K of an epoch. constant: K_max. seat: rises and falls with the magnitude of the gradient. seat_plus:
    the same, but falls only as far below as it rises above. m_plus: rises alone. deat_d: rises every `period` epochs.
    amata: rises linearly over the training."""
    most_iterations: int = 5
    """K_max: iterations of a batch, at most."""
    period: int = 3
    """Epochs between two decisions of seat, seat_plus and m_plus, or two rises of deat_d."""
    gamma: float = 1.1
    """Factor above 1 of the magnitude at the last change, above which K rises."""
    magnitude: Literal["all", "last", "first", "probe"] = "all"
    """Which gradients the magnitude is a mean over: those of all iterations, of the last or first ones, or of a fixed
    probe of clean patches after each epoch, in evaluation mode."""
    units: Literal["raw", "relative"] = "raw"
    """raw: sum of |g|; relative: times the range of each patch and channel, the gain of the loss for a full range."""
    smoothing: float = 0.0
    """Share of the last epochs' mean in the magnitude that the schedule is given, in [0, 1)."""
    noise: bool = True
    """Whether a replay attacks; false: images stay clean, in as many iterations: with one, clean training."""
    eps: float | str = "8/255"
    """Radius as a share of the range: 8/255, or 0.03."""
    eps_range: Literal["patch", "window"] = "patch"
    """patch: of the range of each patch and channel; window: of the window of intensities of the task, for every
    patch."""
    eps_enlarger: float = 1.0
    """Factor of the radius while it trains."""
    step_share: float | None = 0.5
    """Step size as a share of the radius; 0.25 is usual of pgd. null: 1 / K, K of the epoch."""
    least_step: float = 0.0
    """Least step size as a share of the range, like eps; above it when step_share is smaller (DEAT: 10/255)."""
    tau: int | None = None
    """Steps of pgd that an image takes yet once its Dice was at most dice_threshold (FAT); null: K for all images."""
    dice_threshold: float = 0.5
    """Dice of a patch at which an attack counts as a success, for tau."""
    start: Literal["carry", "zero", "uniform"] = "carry"
    """Where the noise of a batch begins: where that of the last batch ended, at 0, or anywhere in the ball."""
    attack_mode: Literal["train", "eval"] = "eval"
    """Mode of dropout and batch statistics in the attack of pgd."""
    beta: float = 6.0
    """Weight of the divergence of trades."""
    trades_steps: int = 10
    """Steps of the attack of trades, of size eps / trades_steps each."""
    ignore_absent: bool = False
    """Leave classes that are not in an image's labels out of its Dice loss; false, as in the program: they add a
    constant."""
    learning_rate: float = 1e-3
    """Adam learning rate at the start; with amsgrad."""
    weight_decay: float = 1e-5
    """Adam weight decay."""
    patience: int = 50
    """Epochs without a lower smoothed validation loss after which the learning rate is halved."""
    stop_below: float = 0.0
    """Stop once the learning rate is at most that share of the first one: 0.0625 in the program's clean training; 0:
    never."""
    epochs: int = 1000
    """Passes over the training cases, at most."""
    budget: int = 0
    """Passes of a batch, forward and backward together, after whose epoch the training ends; 0: no limit."""
    batch_size: int | None = None
    """Patches of one step in this process; null: the plan's."""
    select: Literal["both", "clean"] = "both"
    """Which epoch is kept: that of the highest mean of clean Dice and Dice of the attacked probe, or of clean Dice
    alone."""
    probe: int = 8
    """Validation patches that are attacked at each validation, and whose gradient `magnitude: probe` is."""
    probe_steps: int = 2
    """Gradients of that attack, PGD with step size eps / 2 from the clean patch."""

    def __post_init__(self) -> None:
        check(
            self, "training.", most_iterations=AT_LEAST_1, period=AT_LEAST_1, smoothing=(0, BELOW_1), least_step=(0, 1)
        )
        check(self, "training.", eps_enlarger=POSITIVE, beta=AT_LEAST_0, trades_steps=AT_LEAST_1)
        check(self, "training.", learning_rate=POSITIVE, weight_decay=AT_LEAST_0, patience=AT_LEAST_1)
        check(self, "training.", stop_below=(0, 1), epochs=AT_LEAST_1, budget=AT_LEAST_0)
        check(self, "training.", probe=AT_LEAST_1, probe_steps=AT_LEAST_1, gamma=(1 + 1e-9, math.inf))
        if self.step_share is not None:
            check(self, "training.", step_share=(0, 2))
        check(self, "training.", dice_threshold=SHARE)
        if self.tau is not None:
            check(self, "training.", tau=AT_LEAST_0)
            if self.method != "pgd":
                raise ValueError(f"training.tau is of pgd, but training.method is {self.method!r}; leave it out")
        if self.batch_size is not None:
            check(self, "training.", batch_size=AT_LEAST_1)
        Epsilon.parse(self.eps, "training.eps")
        make_schedule(self.schedule, self.most_iterations, self.period, self.gamma, self.epochs)
        if not self.noise and self.method != "replay":
            raise ValueError(f"training.noise is false but training.method {self.method!r} is an attack; use replay")
        if self.method == "trades" and self.start != "carry":
            raise ValueError("training.start is of replay and pgd; trades begins beside the clean image; leave it out")
        if self.method == "trades" and self.schedule != "constant":
            raise ValueError(
                f"training.schedule is {self.schedule!r} but trades has no iterations to decide on, only trades_steps; "
                "give constant"
            )

    def step(self, iterations: int) -> float:
        """Step size of an epoch of K iterations as a share of the radius without its enlarger."""
        share = 1 / iterations if self.step_share is None else self.step_share
        return max(share, self.least_step / Epsilon.parse(self.eps).value)


@dataclass(frozen=True)
class EvaluationConfig(RobustnessConfig):
    """What the trained network is judged by (docs/seat.md, Method 17)."""

    attacks: list[str] | str = field(default_factory=lambda: ["pgd_20", "segpgd_20", "cospgd_20", "apgd_ce_50"])
    """Attacks by name, such as pgd_20 (10 steps where the name has none), beside the clean patches; or a preset:
    strict, seat, rog, reference, sea."""
    eps: list[float | str] | float | str = field(default_factory=lambda: [*LADDER])
    """Radius of each, or several, as shares of the range that training.eps_range names."""
    batch_size: int = 4
    """Patches that are attacked at once."""
    windows: Literal["monai", "rog"] = "monai"
    """How whole volumes are segmented: MONAI's sliding windows, or those of ROG's program."""
    tolerance_mm: float = 1.0
    """Distance within which two surfaces agree, for NSD."""
    sanity: bool = False
    """Attack with random signs and without a bound, too, so that the checks of the report can be made."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "evaluation.", tolerance_mm=AT_LEAST_0)

    def _lacks(self) -> Mapping[Need, str]:
        return {**super()._lacks(), "feature_layer": "prototypes are of networks of images; leave it out"}


@dataclass(frozen=True)
class SEATExperiment(Experiment):
    """One training of a 3-D segmenter, and its evaluation."""

    paper: Literal["seat"] = "seat"
    name: str = "SEAT"
    data: DecathlonConfig = field(default_factory=DecathlonConfig)
    """Task, cases and folds."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random changes of the training patches."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """What it learns from."""
    test_split: str = "report"
    """Split that `evaluate` and `render` take unless told otherwise: validation cases by which nothing was chosen."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What `evaluate` does."""

    def resolved(self) -> "SEATExperiment":
        """The same with paths made absolute.

        Raises:
            ValueError: values that do not fit together.
        """
        resolve_device(self.device)
        data, network = self.data, self.network
        files = {"data": None if data.phantom else data.data, "splits": data.splits, "plan": data.plan}
        whole: dict[str, Any] = {
            name: whole_path(f"data.{name}", path) for name, path in files.items() if path is not None
        }
        data = replace(data, **whole)
        if network.pretrained is not None:
            network = replace(network, pretrained=whole_path("network.pretrained", network.pretrained))
        return replace(self, data=data, network=network)
