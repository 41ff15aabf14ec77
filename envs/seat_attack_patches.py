"""Patches that SEAT's inner environment attacks, and what may be reached from each (docs/seat.md, Method 10, 18)."""

from torch import Tensor

from ..attacks.budget import Bounds, Epsilon, LinfBall
from ..datasets.decathlon.augmentation import AugmentationConfig
from ..datasets.decathlon.cases import constants_of
from ..datasets.decathlon.sampling import DRAWS, PatchSampler, centre_corners
from ..datasets.volumes import VolumePool
from .seat_attack_config import SEATAttackConfig


class AttackedPatches:
    """One patch of each volume, in its middle; or patches as in a training, which need random numbers.

    Args:
        pool: volumes with labels, on the device.
        config: sizes, patches and budget.

    Attributes:
        shape: of a patch, (C, X, Y, Z).
        numbers: uniform random numbers that a patch needs.
    """

    def __init__(self, pool: VolumePool, config: SEATAttackConfig) -> None:
        plan, train = config.resolved_plan(), config.patches == "train"
        self.pool, self.eps = pool, Epsilon.parse(config.eps)
        self.size = plan.in_size if train else plan.val_size
        self.shape = (len(pool.channels), *self.size)
        self.numbers = 1 + DRAWS if train else 0
        self._corners = centre_corners(pool, self.size)
        self._sampler = PatchSampler(pool, plan, AugmentationConfig(), seed=0) if train else None
        self._bounds = None if config.eps_range == "patch" else _window(config, pool)

    def at(self, index: Tensor, numbers: Tensor) -> tuple[LinfBall, Tensor]:
        """Ball and labels int64 [K, X, Y, Z] of patches of these volumes; the device is never waited for.

        Args:
            index: of the volumes, int64 [K].
            numbers: float64 [K, `self.numbers`] in [0, 1).
        """
        if self._sampler is None:
            images, labels = self.pool.patches(index, self._corners[index], self.size)
        else:
            images, labels = self._sampler.draw(index, numbers[:, 0] < 0.5, numbers[:, 1:])
        return LinfBall.of_range(images, self.eps.value, self._bounds), labels


def _window(config: SEATAttackConfig, pool: VolumePool) -> Bounds:
    """Ends of the task's window of intensities in z units, [1, C, 1, 1, 1] each, on the device.

    Raises:
        ValueError: the task has another number of channels.
    """
    low, high = (end.to(pool.device) for end in constants_of(config).z_bounds())
    if low.shape[1] != len(pool.channels):
        raise ValueError(
            f"eps_range is 'window' but {config.resolved_task.title} has windows of {low.shape[1]} channel(s), the "
            f"volumes have {len(pool.channels)}; give the task of these volumes, or eps_range='patch'"
        )
    return low, high
