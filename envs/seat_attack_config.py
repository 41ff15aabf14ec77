"""Arguments of SEAT's inner environment (docs/seat.md, Method 18)."""

from dataclasses import dataclass
from typing import Literal

from ..attacks.budget import Epsilon
from ..attacks.replays import Update
from ..common.checks import ABOVE_0, AT_LEAST_0, AT_LEAST_1, POSITIVE, SHARE, check
from ..datasets.decathlon.cases import DecathlonConfig

ActionMode = Literal["discrete", "multi", "box"]


@dataclass(frozen=True)
class SEATAttackConfig(DecathlonConfig):
    """Constructor arguments of SEATAttack-MSD-v0: volumes of a task, the victim, the budget and the game.

    Raises:
        ValueError: a value outside its range, or one that does not belong to these data.
    """

    task: int | str = "toy"
    """Task by number or name: 4, Hippocampus, Task04_Hippocampus; or toy, a phantom alone, which is quick."""
    split: str = "val"
    """train, val, select, report or a part, such as val[:8]; test of phantoms."""
    patches: Literal["centre", "train"] = "centre"
    """centre: the middle of a volume, val_size of the plan. train: drawn and augmented as in a training, in_size."""
    model: str = "packaged"
    """Victim: "packaged", a small network trained on phantoms of toy, or a file that save_victim wrote."""
    eps: float | str = "8/255"
    """Radius as a share of the range of each channel."""
    eps_range: Literal["patch", "window"] = "patch"
    """patch: the range is that of the patch. window: that of the task's window of intensities, for all patches."""
    start: Literal["zero", "carry", "uniform"] = "zero"
    """Perturbation that an episode begins with. zero: none. carry: what the last episode of this environment ended
    with. uniform: anything within the radius."""
    loss: Literal["dice_ce", "cross_entropy"] = "dice_ce"
    """Loss of a patch, which is raised, and which a victim that learns lowers: cross-entropy, or Dice part and that."""
    obs_mode: Literal["stats", "dict", "volume_full"] = "stats"
    """stats: 16 numbers. dict: also small volumes of image, probabilities, perturbation and gradient. volume_full: also
    these at full size."""
    volume_size: int = 24
    """Voxels along each side of the volumes of obs_mode=dict."""
    action_mode: ActionMode = "discrete"
    """discrete: stop, or one of five step sizes. multi: whether to go on, and which step size. box: two numbers."""
    reward: Literal["loss", "dice", "margin"] = "loss"
    """What is paid: the rise of the loss, the fall of the Dice of hard labels, or that of the mean margin (of a voxel,
    by how much its true class leads; 0 where it does not)."""
    price: float = 0.02
    """Price of a step."""
    horizon: int = 10
    """Steps after which an episode is truncated."""
    iterations: int = 5
    """K: adversarial iterations of an epoch, which scripted policies make; `env.iterations` changes it."""
    stop_on_success: bool = False
    """Terminate when the Dice of hard labels is at most dice_threshold after a step."""
    dice_threshold: float = 0.5
    """Dice at which an attack counts as a success."""
    update_victim: Update = "never"
    """When the victim learns. never: it is attacked. every_step: from every pass (Free-AT, SEAT). at_end: from the last
    image alone (PGD-AT)."""
    learning_rate: float = 1e-3
    """Learning rate of the victim's Adam, where it learns."""
    reference_magnitude: float | None = None
    """Relative magnitude that a training takes as its reference, shown beside that of the episode; null: none."""
    return_delta: bool = False
    """Add the perturbation to the info of every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self,
            volume_size=AT_LEAST_1,
            horizon=AT_LEAST_1,
            price=AT_LEAST_0,
            iterations=AT_LEAST_1,
            dice_threshold=SHARE,
            learning_rate=POSITIVE,
            reference_magnitude=(ABOVE_0, float("inf")),
        )
        Epsilon.parse(self.eps)
