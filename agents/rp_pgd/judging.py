"""A victim on clean and on attacked images: pixels of each class, and the means that they make (docs/rp-pgd.md, Method
18)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...attacks.methods import Attack
from ...attacks.victim import Normalized, frozen
from ...common.device import bfloat16_on_cuda
from ...common.overlap import ClassCounts, class_counts
from ...datasets.images import ImagePool

KEPT = 8
"""Images whose pictures are kept."""


class Judged(NamedTuple):
    """What a victim makes of a pool of N images."""

    counts: ClassCounts
    """Of each image, [N, K]."""
    images: Tensor
    """The first ones, attacked, float32 [8 or N, C, H, W], on the CPU."""
    predicted: Tensor
    """Their classes, uint8 [8 or N, H, W], on the CPU."""

    @property
    def means(self) -> dict[str, float]:
        """miou, macc, aacc of all images together."""
        return scores(ClassCounts(*(one.sum(dim=0, keepdim=True) for one in self.counts)))[0]

    @property
    def of_each(self) -> list[dict[str, float]]:
        """The same of each image alone."""
        return scores(self.counts)


def judge(
    victim: Normalized,
    pool: ImagePool,
    attack: Attack | None,
    arguments: Mapping[str, Any] | None = None,
    *,
    batch_size: int,
) -> Judged:
    """Count what a victim predicts of all images of a pool.

    Args:
        victim: on its device; the batches are brought there.
        pool: images with labels.
        attack: of each batch first; None: clean images.
        arguments: of the attack: eps, steps, ...; without a generator its random starts are always the same.
        batch_size: images at once.
    """
    device = victim.mean.device
    assert pool.labels is not None
    counts, images, predicted = list[ClassCounts](), list[Tensor](), list[Tensor]()
    generator = torch.Generator(device).manual_seed(0)
    for rows in torch.split(torch.arange(len(pool)), batch_size):
        x, labels = pool.at(rows).to(device), pool.labels[rows].to(device)
        with frozen(victim), bfloat16_on_cuda(device):
            if attack is not None:
                x = attack(victim, x, labels, **{"generator": generator, **(arguments or {})})
            with torch.no_grad():
                found = victim(x).argmax(dim=1).to(torch.uint8)
        counts.append(ClassCounts(*(one.cpu() for one in class_counts(found, labels, len(pool.classes)))))
        if int(rows[0]) < KEPT:
            images.append(x.cpu())
            predicted.append(found.cpu())
    whole = ClassCounts(*(torch.cat(part) for part in zip(*counts, strict=True)))
    return Judged(whole, torch.cat(images)[:KEPT], torch.cat(predicted)[:KEPT])


def scores(counts: ClassCounts) -> list[dict[str, float]]:
    """miou, macc and aacc of each row of the counts [B, K]: means over the classes that are there; NaN of none."""

    def mean(parts: Tensor, whole: Tensor) -> Tensor:
        there = whole > 0
        return (parts / whole.clamp(min=1)).masked_fill(~there, 0).sum(dim=1) / there.sum(dim=1)

    both, union = counts.both.double(), counts.union
    rows = {
        "miou": mean(both, union),
        "macc": mean(both, counts.true),
        "aacc": both.sum(dim=1) / counts.true.sum(dim=1),
    }
    columns = {name: values.tolist() for name, values in rows.items()}
    return [{name: values[row] for name, values in columns.items()} for row in range(len(both))]
