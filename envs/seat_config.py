"""Arguments of SEAT-MSD-v0 (docs/seat.md, Method 19)."""

from dataclasses import dataclass
from typing import Literal

from ..attacks.budget import Epsilon
from ..common.checks import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, check, check_range
from ..datasets.decathlon.cases import DecathlonConfig

ENLARGED = (1.0, 1.25, 1.5)
"""Factors of epsilon that the second part of an action chooses from."""


@dataclass(frozen=True)
class SEATConfig(DecathlonConfig):
    """Constructor arguments of SEAT-MSD-v0: the data, the victim, its training, and what is paid for.

    Raises:
        ValueError: a value outside its range.
    """

    task: int | str = "toy"
    """Task by number or name: 4, Hippocampus, Task04_Hippocampus; or toy, a phantom alone."""
    split: str = "train"
    """Volumes that victims learn from: train, or a part, such as train[:20]."""
    validation_split: str = "val"
    """Volumes that they are judged on: val, select, report, test, or a part of one."""
    model: str | None = None
    """Victim whose weights every episode begins with, a file that save_victim wrote; null: a small network with new
    weights."""
    width: int = 4
    """Maps of each layer of the small network, even."""
    eps: float | str = "16/255"
    """Radius of the ball as a share of the range of a patch, such as 8/255, the paper's."""
    step_share: float = 0.5
    """Step size of the attack as a share of the radius."""
    most_iterations: int = 5
    """K_max: most iterations of a minibatch."""
    batch_size: int = 4
    """Patches of a minibatch."""
    segment: int | None = 20
    """Minibatches of a step; null: an epoch, each volume once."""
    horizon: int = 40
    """N: steps of an episode."""
    budget: int | None = None
    """Passes of minibatches, forward and backward, after which an episode ends; null: none."""
    learning_rate: float = 0.003
    """Adam learning rate at the start."""
    weight_decay: float = 1e-5
    """Adam weight decay."""
    patience: int = 50
    """Steps without a lower validation loss after which the learning rate is halved."""
    action_mode: Literal["relative", "absolute"] = "relative"
    """relative: K falls by one, stays, or rises by one. absolute: K itself."""
    eps_enlarger: bool = False
    """Whether a second part of the action chooses the factor of epsilon while the victim learns: 1, 1.25 or 1.5."""
    probe: int = 8
    """Patches that are attacked after each step, of the first volumes of the validation split."""
    probe_steps: int = 2
    """Steps of that attack."""
    robust_weight: float = 1.0
    """Weight of the change of Dice under attack in the reward."""
    clean_weight: float = 0.5
    """Weight of the change of clean Dice in the reward."""
    price: float = 0.01
    """Price of a step with K_max iterations; fewer cost less in proportion."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, width=(2, 1024), step_share=POSITIVE, learning_rate=(ABOVE_0, BELOW_1))
        for name in (
            "most_iterations",
            "batch_size",
            "segment",
            "horizon",
            "budget",
            "patience",
            "probe",
            "probe_steps",
        ):
            check_range(name, getattr(self, name), AT_LEAST_1)
        for name in ("weight_decay", "robust_weight", "clean_weight", "price"):
            check_range(name, getattr(self, name), AT_LEAST_0)
        Epsilon.parse(self.eps)
