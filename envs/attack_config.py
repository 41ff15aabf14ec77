"""Arguments of RP-PGD's environments (docs/rp-pgd.md, Method 19 to 22)."""

import math
from dataclasses import dataclass
from typing import Literal

from ..attacks.budget import Epsilon
from ..attacks.methods import ATTACKS
from ..common.checks import AT_LEAST_1, check, check_choice
from ..datasets.liver.slices import LiverSliceConfig
from ..datasets.scenes.images import SceneDataConfig
from ..rewards.damage import Measure


@dataclass(frozen=True)
class AttackConfig:
    """Arguments of every environment of an attack, beside its data.

    Raises:
        ValueError: a value outside its range, or two that do not go together.
    """

    model: str = "packaged"
    """Victim: "packaged", a small network trained on phantoms of these data, or a file that save_victim wrote."""
    feature_layer: str | None = "auto"
    """Submodule of the victim whose output prototypes are made of; auto: the usual one of its network; null: none, and
    the actions of both prototype terms have no effect."""
    eps: float | str = 0.03
    """Radius of the ball as a share of the range: 0.03 (the paper's), or 8/255."""
    horizons: tuple[int, ...] = (3,)
    """Numbers of steps N of an episode, of which each episode draws one."""
    action_mode: Literal["schedule", "gridweight", "discrete", "signmap"] = "schedule"
    """schedule: eleven numbers of the step. gridweight: factors of the pixels' weights on a grid. discrete: the
    scripted attack whose step is taken. signmap: the direction of each cell of a grid, without any gradient."""
    obs_mode: Literal["summary", "map"] = "summary"
    """summary: 40 numbers. map: also maps of image, perturbation, gradient, confidence and regions."""
    obs_grad: Literal["paid", "probe"] = "paid"
    """Gradient shown in the map. paid: that of the last step. probe: that of the plain loss here, for one more backward
    pass a step."""
    loss: Literal["cross_entropy", "jensen_shannon", "margin"] = "cross_entropy"
    """Loss of a pixel that is raised."""
    reward: Measure = "miou"
    """Measure of an image whose fall is the reward: miou, acc, dice (mean of the foreground) or p_y."""
    rand_start: bool | None = None
    """Start at random in the ball; null: in episodes of at least 10 steps."""
    best_iterate: bool = False
    """The image of the lowest measure counts, not the last one."""
    paired_baseline: str | None = None
    """Scripted attack whose damage, from the same start, is taken off the last reward; null: none."""
    residual_to: str | None = None
    """Scripted attack that actions are added to (schedule), or whose weights the grid multiplies (gridweight, where
    null is segpgd); null: none."""
    step_size: float | str | None = None
    """Step size of scripted attacks and of signmap, a share of the range like eps; null: their own."""
    cells: int = 8
    """Number of cells along each side of the grids of gridweight and signmap."""
    map_size: int = 64
    """Height and width of the maps of obs_mode=map."""
    intra_skip: tuple[int, ...] = (0,)
    """Classes without an intra-class term: the background; () where class 0 is a thing."""
    expose_x_adv: bool = False
    """Add x_adv, the final image, to the info at the end of an episode."""

    def __post_init__(self) -> None:
        check(self, horizons=AT_LEAST_1, cells=AT_LEAST_1, map_size=AT_LEAST_1, intra_skip=(0, math.inf))
        Epsilon.parse(self.eps)
        if self.step_size is not None:
            Epsilon.parse(self.step_size, "step_size")
        if not self.horizons:
            raise ValueError("horizons is empty but needs at least one number of steps, such as 3")
        for name in ("paired_baseline", "residual_to"):
            if (value := getattr(self, name)) is not None:
                check_choice(name, value, ATTACKS)
        if self.residual_to is not None and self.action_mode in ("discrete", "signmap"):
            raise ValueError(
                f"residual_to is {self.residual_to!r} but action_mode={self.action_mode!r} has no numbers to add to; "
                "leave it out, or choose schedule or gridweight"
            )
        if self.obs_grad == "probe" and (self.obs_mode == "summary" or self.action_mode == "signmap"):
            why = "obs_mode='summary' shows" if self.obs_mode == "summary" else "action_mode='signmap' has"
            raise ValueError(f"obs_grad is 'probe' but {why} no gradient; leave it out")

    @property
    def horizon(self) -> int:
        """The longest of the horizons."""
        return max(self.horizons)


@dataclass(frozen=True)
class SceneAttackConfig(AttackConfig, SceneDataConfig):
    """Constructor arguments of RPPGD-VOC-v0: photographs of one size, and the attack.

    Raises:
        ValueError: a value outside its range.
    """

    split: str = "val"
    """train, train_aug, val or trainval of VOC, train, val or test of phantoms, or a part, such as val[:100]."""
    size: int = 65
    """Height and width in pixels of the images; 473 in the paper."""

    def __post_init__(self) -> None:
        SceneDataConfig.__post_init__(self)
        AttackConfig.__post_init__(self)


@dataclass(frozen=True)
class CityscapesAttackConfig(SceneAttackConfig):
    """Constructor arguments of RPPGD-Cityscapes-v0."""

    split: str = "val"
    """train or val of Cityscapes, train, val or test of phantoms, or a part, such as val[:100]."""
    size: int = 65
    """Height and width in pixels of the images; 449 in the paper."""
    intra_skip: tuple[int, ...] = ()
    """Classes without an intra-class term: none, as class 0 is a thing, the road."""


@dataclass(frozen=True)
class ADE20KAttackConfig(SceneAttackConfig):
    """Constructor arguments of RPPGD-ADE20K-v0."""

    split: str = "val"
    """train or val of ADE20K, train, val or test of phantoms, or a part, such as val[:100]."""
    size: int = 65
    """Height and width in pixels of the images; 465 in the paper."""
    intra_skip: tuple[int, ...] = ()
    """Classes without an intra-class term: none, as class 0 is a thing, the wall."""


@dataclass(frozen=True)
class LiverAttackConfig(AttackConfig, LiverSliceConfig):
    """Constructor arguments of RPPGD-LiverCT-v0: axial slices of liver CTs, and the attack.

    Raises:
        ValueError: a value outside its range.
    """

    reward: Measure = "dice"
    """Measure of an image whose fall is the reward: miou, acc, dice (mean of liver and tumour) or p_y."""

    def __post_init__(self) -> None:
        LiverSliceConfig.__post_init__(self)
        AttackConfig.__post_init__(self)
