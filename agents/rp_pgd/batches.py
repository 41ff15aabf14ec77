"""Batches of random crops: the same for the same seeds, whoever makes them (docs/rp-pgd.md, Method 15 and 23)."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from ...common.workers import ONE_PROCESS, Workers
from ...datasets.images import ImagePool
from ...datasets.scenes.augmentation import AugmentationConfig, augment, draw_change
from ...datasets.scenes.images import Scenes

AHEAD = 2
"""Batches that are made while the network works on another."""


class Drawn(NamedTuple):
    """The images of one gradient step in one process."""

    rows: list[int]
    """Of the training images, [B]; those that stay clean first."""
    seeds: list[int]
    """Of each one's crop."""


class Batch(NamedTuple):
    """Crops of one gradient step."""

    images: Tensor
    """float32 [B, C, crop, crop] in [0, 1]."""
    labels: Tensor
    """uint8 [B, crop, crop], class numbers or `IGNORED`."""


def steps_of(number: int, parts: Sequence[int], workers: Workers = ONE_PROCESS) -> int:
    """Gradient steps in an epoch; the arguments are those of `draw_epoch`.

    Raises:
        ValueError: fewer images than one batch needs.
    """
    needed = sum(parts) * workers.world_size
    if number < needed:
        raise ValueError(
            f"a batch needs {needed} images but there are {number}; lower training.batch_size, or take more images"
        )
    return number // needed


def draw_epoch(
    number: int, parts: Sequence[int], generator: torch.Generator, workers: Workers = ONE_PROCESS
) -> list[Drawn]:
    """What this process sees in each step of an epoch: images without replacement, a seed for each one's crop.

    What is left when no whole batch can be made is left out. Rank 0's generator decides, and each worker gets its share
    of each part, so that W workers see together what one process with parts W times as large sees.

    Args:
        number: of training images.
        parts: images of one process in each part of its batch, such as (clean, attacked).
        generator: of order and seeds.
        workers: among whom the batches are divided.

    Raises:
        ValueError: fewer images than one batch needs.
    """
    steps, sizes = steps_of(number, parts, workers), [part * workers.world_size for part in parts if part]
    order, seeds = workers.broadcast(
        (torch.randperm(number, generator=generator), torch.randint(2**62, (number,), generator=generator))
    )
    drawn = []
    for batch in order[: steps * sum(sizes)].tensor_split(steps):
        mine = torch.cat([workers.shard(part) for part in torch.split(batch, sizes)])
        drawn.append(Drawn(mine.tolist(), seeds[mine].tolist()))
    return drawn


class Crops:
    """Crops of scenes that are read and changed by threads, a few batches ahead.

    Args:
        scenes: with labels.
        augmentation: of each crop.
        device: where the batches are wanted.
        loaders: threads; 0: each batch is made when it is asked for.
    """

    def __init__(self, scenes: Scenes, augmentation: AugmentationConfig, device: torch.device, loaders: int) -> None:
        self.scenes, self.augmentation, self.device, self.loaders = scenes, augmentation, device, loaders

    def crop(self, row: int, seed: int) -> tuple[Tensor, Tensor]:
        """One crop, float32 [C, crop, crop], and its labels.

        Raises:
            FileNotFoundError, ValueError: a file that is missing, cannot be used or has no labels.
        """
        scene = self.scenes[row]
        if scene.label is None:
            raise ValueError(f"{self.scenes.ids[row]} has no labels, which training needs; take another train_split")
        return augment(scene.image, scene.label, self.augmentation, torch.Generator().manual_seed(seed))

    def __call__(self, drawn: Iterable[Drawn]) -> Iterator[Batch]:
        """The batches, in their order."""
        if not self.loaders:
            for one in drawn:
                yield self._stacked(map(self.crop, *one))
            return
        with ThreadPoolExecutor(self.loaders) as threads, closing(self._ahead(drawn, threads)) as batches:
            yield from batches

    def _ahead(self, drawn: Iterable[Drawn], threads: ThreadPoolExecutor) -> Generator[Batch, None, None]:
        waiting = deque[list[Future[tuple[Tensor, Tensor]]]]()
        try:
            for one in drawn:
                waiting.append([threads.submit(self.crop, *pair) for pair in zip(*one, strict=True)])
                if len(waiting) > AHEAD:
                    yield self._stacked(future.result() for future in waiting.popleft())
            while waiting:
                yield self._stacked(future.result() for future in waiting.popleft())
        finally:
            for futures in waiting:
                for future in futures:
                    future.cancel()

    def _stacked(self, crops: Iterable[tuple[Tensor, Tensor]]) -> Batch:
        images, labels = (torch.stack(parts) for parts in zip(*crops, strict=True))
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return Batch(images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True))


class Resident:
    """Whole images of a pool on the device, mirrored or not: what `Crops` makes where nothing else is changed.

    Args:
        pool: images with labels, of one size.
        augmentation: that `is_resident` of them.
        device: where the pool is kept.
    """

    def __init__(self, pool: ImagePool, augmentation: AugmentationConfig, device: torch.device) -> None:
        self.pool, self.augmentation = pool.to(device), augmentation

    def __call__(self, drawn: Iterable[Drawn]) -> Iterator[Batch]:
        """The batches, in their order."""
        labels = self.pool.labels
        assert labels is not None
        for rows, seeds in drawn:
            changes = [draw_change(self.augmentation, torch.Generator().manual_seed(seed)) for seed in seeds]
            flipped = torch.tensor([change.flipped for change in changes], device=labels.device)[:, None, None]
            where = torch.tensor(rows, device=labels.device)
            images, truth = self.pool.at(where), labels[where]
            yield Batch(
                torch.where(flipped[:, None], images.flip(-1), images), torch.where(flipped, truth.flip(-1), truth)
            )


def is_resident(scenes: Scenes, augmentation: AugmentationConfig) -> bool:
    """Whether a crop is always a whole image of the pool: images of the crop's size that are mirrored at most."""
    still = augmentation.scale == (1, 1) and not augmentation.rotation and not augmentation.blur
    return still and scenes.side == augmentation.crop


def batches_of(
    scenes: Scenes, augmentation: AugmentationConfig, device: torch.device, loaders: int
) -> Crops | Resident:
    """The cheapest way to the crops of these scenes."""
    if is_resident(scenes, augmentation):
        return Resident(scenes.pool(), augmentation, device)
    return Crops(scenes, augmentation, device, loaders)
