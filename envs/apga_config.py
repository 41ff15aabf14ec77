"""Arguments of APGA-MURA-v0 (docs/apga.md, Method 11)."""

from dataclasses import dataclass
from typing import Literal

from ..classifiers.masked_images import Fill
from ..common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, check
from ..datasets.xray.images import XrayConfig, XrayPool
from ..rewards.loss_gap import Kind, Mode
from .apga_actions import ActionMode

SEQUENTIAL_HORIZON = 16


@dataclass(frozen=True)
class APGAConfig(XrayConfig):
    """Constructor arguments of APGA-MURA-v0: the radiographs, the classifier, the actions and the reward.

    Raises:
        ValueError: a value outside its range, or two that do not go together.
    """

    split: str = "train"
    """train, val or test, a split that a table names, or a part, such as val[:100]."""
    classifier: str = "packaged"
    """Classifier whose doubt is the reward: "packaged", a small one that was trained on phantoms, or a file that a
    training wrote."""
    action_mode: ActionMode = "patch"
    """patch: cells of a grid; pixel: pixels; box: one box of cells; beta: a weight for each cell; sequential: one cell
    more in each step, or to stop."""
    grid: int = 8
    """Number of cells along each side, which must divide the size of the images; 14 suits the paper's 224 pixels. Mode
    pixel does not use it."""
    horizon: int | None = None
    """Steps of an episode at most; null: 16 of mode sequential, else the 1 that there is."""
    reward_mode: Mode = "adversarial"
    """What the mask is worth. adversarial: the classifier's doubt with the mask erased, less that of the plain image;
    cooperative: that of the plain image, less that of the mask alone; contrast: erased, less alone."""
    reward_kind: Kind = "loss"
    """Doubt in the true class. loss: cross-entropy in nats; prob: minus its probability; logit: minus the margin of its
    logit."""
    reward_level: Literal["sample", "batch"] = "sample"
    """sample: each image has its own reward; batch: all of a step have the mean (paper)."""
    area_coef: float = 0.5
    """Taken off the reward for a mask that covers all, in its unit; less for a smaller one, in proportion."""
    tv_coef: float = 0.0
    """Weight of the mask's total variation, which is taken off the reward."""
    reward_clip: float | None = 5.0
    """The gap is cut to minus and plus this; null: never."""
    fill: Fill = "zero"
    """What is seen where an image is erased. zero: black (paper); mean: its own mean; blur: a smooth version of it;
    noise: normal noise of its mean and deviation, drawn for each episode."""
    blur_sigma_px: float = 0.0
    """Standard deviation of the Gaussian that smooths masks of mode beta, in pixels; 0: none."""
    log_aid: bool = False
    """Add loss_aid and prob_aid to the info, of the mask alone, also where the reward does not need them: in the same
    call of the classifier."""
    sampler: Literal["per_env", "shared"] = "per_env"
    """Order of the images. per_env: each environment shows all images; shared: all environments together show each
    image once a pass."""
    group: int = 1
    """Number of consecutive environments that show the same image; more than 1 needs sampler=shared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, grid=AT_LEAST_1, horizon=AT_LEAST_1, group=AT_LEAST_1, reward_clip=POSITIVE)
        check(self, area_coef=AT_LEAST_0, tv_coef=AT_LEAST_0, blur_sigma_px=(0, self.size / 2))
        if self.size % self.grid and self.action_mode != "pixel":
            grids = [number for number in range(1, self.size + 1) if self.size % number == 0]
            raise ValueError(f"grid is {self.grid} but must divide size, {self.size}: choose one of {grids}")
        sequential = self.action_mode == "sequential"
        if (self.horizon or 1) > 1 and not sequential:
            raise ValueError(
                f"horizon is {self.horizon} but an episode of action_mode {self.action_mode!r} is one step; leave it "
                f"out, or choose action_mode='sequential'"
            )
        if self.reward_level == "batch" and sequential:
            raise ValueError(
                "reward_level is 'batch' but episodes of action_mode 'sequential' do not end together; use 'sample'"
            )
        if self.group > 1 and self.sampler == "per_env":
            raise ValueError(f"group is {self.group!r} but needs sampler='shared'; or leave it out")
        if self.blur_sigma_px and self.action_mode != "beta":
            raise ValueError(
                f"blur_sigma_px is {self.blur_sigma_px} but masks of action_mode {self.action_mode!r} are hard; leave "
                f"it 0, or choose action_mode='beta'"
            )


def side_of(images: XrayPool) -> int:
    """Height and width of the images of a pool.

    Raises:
        ValueError: they are not grey and square.
    """
    height, width = images.images.shape[2:]
    if height != width or images.images.shape[1] != 1:
        raise ValueError(f"images have shape {tuple(images.images.shape[1:])} but must be grey and square: (1, S, S)")
    return int(width)
