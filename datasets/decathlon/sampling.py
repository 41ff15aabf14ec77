"""Where patches are cut: for training, for validation, and where a network is attacked (docs/seat.md, Method 5).

Corners are the lower corners of patches in voxels of their volumes; negative ones lie outside, where a volume is
continued by its reflection.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...common.counted import uniform
from ..volumes import Patches, VolumePool
from . import augmentation
from .augmentation import AugmentationConfig, augment
from .plan import Plan, Triple

BEYOND = 3
"""Voxels on each side that a volume is continued by, beyond what a patch needs."""
PLACE_DRAWS = 5
"""Uniform numbers that the place of a patch needs."""
DRAWS = PLACE_DRAWS + augmentation.DRAWS
"""Uniform numbers that a training patch needs."""


class PatchSampler:
    """Training patches of a pool, drawn, cut and augmented on its device.

    Every second patch, by its row and the epoch, has its middle in a voxel of the foreground: first a class is drawn
    among those of the volume, then a voxel of it. The others have it anywhere. No patch leaves its volume, which is
    continued by its reflection where it is not larger than a patch. A class counts where one of its voxels can be the
    middle of a patch.

    Args:
        pool: with labels. The places of its foreground are kept beside it, 4 bytes a voxel.
        plan: sizes of patches before and after augmentation.
        config: augmentation; None: none.
        seed: of all numbers. Each patch has its own, by seed, epoch and row, so that neither order nor batch matters.

    Raises:
        ValueError: a pool without labels.

    >>> from segarena.datasets.decathlon.cases import DecathlonConfig, load_decathlon
    >>> from segarena.datasets.decathlon.sampling import PatchSampler
    >>> from segarena.datasets.decathlon.tasks import find_task
    >>> pool = load_decathlon(DecathlonConfig(task="toy"), "train")
    >>> sampler = PatchSampler(pool, find_task("toy", phantom=True).plan, seed=0)
    >>> images, labels = next(sampler.epoch(0, batch=4))
    >>> images.shape, labels.shape
    (torch.Size([4, 1, 16, 16, 16]), torch.Size([4, 16, 16, 16]))
    """

    def __init__(self, pool: VolumePool, plan: Plan, config: AugmentationConfig | None = None, *, seed: int) -> None:
        self.pool, self.plan, self.seed = pool, plan, seed
        self.config = config or augmentation.NO_AUGMENTATION
        size = torch.tensor(plan.p_size, device=pool.device)
        small = (pool.shapes <= size).any(1, keepdim=True)
        beyond = torch.where(small, ((size - pool.shapes).div(2, rounding_mode="floor") + BEYOND).clamp(min=0), 0)
        self._half = size // 2
        self._cut = (size - torch.tensor(plan.in_size, device=pool.device)) // 2
        self._lowest = self._half - beyond  # of middles; [N, 3]
        self._places = pool.shapes + beyond - self._half - self._lowest  # number of middles along each axis
        self._find_foreground()

    def _find_foreground(self) -> None:
        """Voxels of each class of each volume that can be the middle of a patch, one after the other."""
        pool, classes = self.pool, len(self.pool.classes) - 1
        found, counts = list[Tensor](), list[int]()
        for row, (low, number) in enumerate(zip(self._lowest.tolist(), self._places.tolist(), strict=True)):
            label = pool[row].label
            if label is None:
                raise ValueError(f"{pool.ids[row]} has no label, but training patches need one")
            inside = torch.zeros_like(label, dtype=torch.bool)
            inside[tuple(slice(max(a, 0), max(a + n, 0)) for a, n in zip(low, number, strict=True))] = True
            for k in range(1, classes + 1):
                voxels = ((label == k) & inside).flatten().nonzero()[:, 0].int()
                found.append(voxels)
                counts.append(len(voxels))
        self._voxels = torch.cat([*found, torch.zeros(1, dtype=torch.int32, device=pool.device)])  # never empty
        self._counts = torch.tensor(counts, device=pool.device).view(len(pool), classes)
        self._begins = (self._counts.flatten().cumsum(0) - self._counts.flatten()).view_as(self._counts)

    def corners(self, rows: Tensor, foreground: Tensor, numbers: Tensor) -> Tensor:
        """Lower corners int64 [B, 3] of patches of `plan.p_size`.

        Args:
            rows: int64 [B], volumes.
            foreground: bool [B], whether the middle shall be foreground; where a volume has none, it is anywhere.
            numbers: float64 [B, PLACE_DRAWS] in [0, 1).
        """
        counts, begins, shapes = self._counts[rows], self._begins[rows], self.pool.shapes[rows]
        present = counts > 0
        place = (numbers[:, 0] * present.sum(1)).long()
        chosen = ((present.cumsum(1) == place[:, None] + 1) & present).long().argmax(1, keepdim=True)
        count, begin = counts.gather(1, chosen)[:, 0], begins.gather(1, chosen)[:, 0]
        voxel = self._voxels[begin + (numbers[:, 1] * count).long()].long()
        line = voxel.div(shapes[:, 2], rounding_mode="floor")
        middle = torch.stack((line // shapes[:, 1], line % shapes[:, 1], voxel % shapes[:, 2]), dim=1)
        anywhere = self._lowest[rows] + (numbers[:, 2:5] * self._places[rows]).long()
        return torch.where((foreground & present.any(1))[:, None], middle, anywhere) - self._half

    def draw(self, rows: Tensor, foreground: Tensor, numbers: Tensor) -> Patches:
        """Augmented patches of `plan.in_size` voxels, for who has numbers of his own.

        Args:
            rows: int64 [B].
            foreground: bool [B], as of `corners`.
            numbers: float64 [B, DRAWS] in [0, 1), on the device of the pool.
        """
        corners = self.corners(rows, foreground, numbers[:, :PLACE_DRAWS])
        if self.config == augmentation.NO_AUGMENTATION:  # the same, without a resampling that changes nothing
            return self.pool.patches(rows, corners + self._cut, self.plan.in_size)
        patches = self.pool.patches(rows, corners, self.plan.p_size)
        return augment(patches, self.plan.in_size, self.config, numbers[:, PLACE_DRAWS:])

    def batch(self, rows: Tensor, epoch: int) -> Patches:
        """The patches that these rows, int64 [B] on the device of the pool, have in an epoch."""
        foreground = (rows + epoch) % 2 == 0
        return self.draw(rows, foreground, uniform(rows, DRAWS, self.seed, epoch))

    def order(self, epoch: int) -> Tensor:
        """All rows of the pool in the order of an epoch, int64 [N]: shuffled by seed and epoch."""
        rows = torch.arange(len(self.pool), device=self.pool.device)
        return uniform(rows, 1, self.seed, epoch, -1)[:, 0].argsort(stable=True)

    def epoch(self, number: int, batch: int | None = None) -> Iterator[Patches]:
        """Each volume's patch of an epoch, in batches; the last may be smaller. batch: None: that of the plan."""
        order, size = self.order(number), batch or self.plan.batch
        for rows in (order[start : start + size] for start in range(0, len(order), size)):
            yield self.batch(rows, number)


def centre_corners(pool: VolumePool, size: Triple) -> Tensor:
    """Corners int64 [N, 3] of the patch in the middle of each volume, for validation."""
    return pool.shapes // 2 - torch.tensor(size, device=pool.device) // 2


def mass_corners(pool: VolumePool, size: Triple) -> Tensor:
    """Corners int64 [N, 3] of the patch about the labels' centre of mass in each volume, where a network is attacked.

    A voxel weighs as much as its class number. Only those count that can be the middle of a patch within the volume;
    where none can, the patch is the nearest one to the centre of all.

    Raises:
        ValueError: a volume without labels, or without foreground.
    """
    corners = list[list[int]]()
    for row in range(len(pool)):
        label = pool[row].label
        if label is None or not label.any():
            what = "label" if label is None else "foreground"
            raise ValueError(f"{pool.ids[row]} has no {what}, whose middle is needed; leave it out")
        wanted, shape = torch.tensor(size), torch.tensor(label.shape)
        middle = mass_centre(label, size)
        before = _before(shape, wanted)
        inside = torch.minimum((middle + before - wanted // 2).clamp(min=0), torch.maximum(shape, wanted) - wanted)
        corners.append((inside - before).tolist())
    return torch.tensor(corners, dtype=torch.int64, device=pool.device)


def mass_centre(label: Tensor, size: Triple) -> Tensor:
    """The voxel int64 [3] about which `mass_corners` cuts a patch of `size` voxels, on the CPU.

    label: uint8 [X, Y, Z], not only background.
    """
    wanted, shape = torch.tensor(size), torch.tensor(label.shape)
    before, margin = _before(shape, wanted), (wanted // 2 - 1).clamp(min=0)
    low, high = margin - before, torch.maximum(shape, wanted) - before - margin  # of middles, the last not counted
    voxels, weight = label.nonzero().cpu(), label[label > 0].cpu().double()
    inside = ((voxels >= low) & (voxels < high)).all(1)
    if inside.any():
        voxels, weight = voxels[inside], weight[inside]
        return ((voxels * weight[:, None]).sum(0) / weight.sum()).floor().long()
    centre = ((voxels * weight[:, None]).sum(0) / weight.sum()).round().long()
    return torch.minimum(torch.maximum(centre, low), high - 1)


def _before(shape: Tensor, wanted: Tensor) -> Tensor:
    """Voxels by which a smaller volume is continued before it; behind it is one more where their sum is odd."""
    return (wanted - shape).clamp(min=0) // 2
