"""The validation on the way: a victim on clean and on attacked images (docs/rp-pgd.md, Method 24)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...attacks.methods import Attack
from ...attacks.victim import Normalized, frozen
from ...common.device import bfloat16_on_cuda
from ...common.overlap import class_counts
from ...datasets.images import ImagePool
from ...evaluation.robustness_metrics import Counts, metrics

KEPT = 8
"""Images whose pictures are kept."""


class Judged(NamedTuple):
    """What a victim makes of a pool of N images."""

    means: dict[str, float]
    """miou, macc, aacc of all images together."""
    images: Tensor
    """The first ones, attacked, float32 [8 or N, C, H, W], on the CPU."""
    predicted: Tensor
    """Their classes, uint8 [8 or N, H, W], on the CPU."""


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
    counts, images, predicted = list[Counts](), list[Tensor](), list[Tensor]()
    generator = torch.Generator(device).manual_seed(0)
    for rows in torch.split(torch.arange(len(pool)), batch_size):
        x, labels = pool.at(rows).to(device), pool.labels[rows].to(device)
        with frozen(victim), bfloat16_on_cuda(device):
            if attack is not None:
                x = attack(victim, x, labels, **{"generator": generator, **(arguments or {})})
            with torch.no_grad():
                found = victim(x).argmax(dim=1).to(torch.uint8)
        of_batch = class_counts(found, labels, len(pool.classes))
        counts.append(Counts(*(one.sum(dim=0, keepdim=True).cpu().numpy() for one in of_batch)))
        if int(rows[0]) < KEPT:
            images.append(x.cpu())
            predicted.append(found.cpu())
    whole = metrics(Counts(*(sum(part) for part in zip(*counts, strict=True))))
    means = {name: getattr(whole, name) for name in ("miou", "macc", "aacc")}
    return Judged(means, torch.cat(images)[:KEPT], torch.cat(predicted)[:KEPT])
