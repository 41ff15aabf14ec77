"""Triplets (image, good mask, bad mask) of true errors and of the present policy's masks (docs/rl4seg.md, Method 7).

Symbols: x = image, y = its true mask, a = argmax mask of the policy, a_s = sampled mask, (a_ref, a_bad) = good and bad
mask.
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from ..datasets.images import ImagePool
from ..segmenters.inference import segment
from ..segmenters.norms import modes_kept
from .regions import mix_regions
from .reward_data import KINDS, Draws, RewardDataConfig, Triplets, perturbed_masks, predicted


@torch.no_grad()
def source_triplets(
    net: nn.Module, images: ImagePool, rows: Tensor, config: RewardDataConfig, seed: int, iteration: int
) -> Triplets:
    """Triplets (x, y, a) and (x, y, a_s) of labelled images, and the configured perturbations, swap and identity.

    The errors are the true ones, and in the kinds that perturb also those that the policy makes by itself.

    Args:
        net: the policy, on the device of `images`; eval mode meanwhile.
        images: the pool, with labels.
        rows: int64 [N], which of them.
        config: see there; corrections have no part in it.
        seed: of the run.
        iteration: of the loop: another one draws other noise.

    Raises:
        ValueError: no labels.
    """
    if images.labels is None:
        raise ValueError(f"{images.unlabelled[0]} has no labels, so that the errors of its masks are not known")
    rows = rows.to(images.images.device)
    y = images.labels[rows]
    made = [Triplets(rows[:0], y[:0], y[:0], rows[:0].byte())]

    def emit(kind: str, at: Tensor, a_bad: Tensor) -> None:
        made.append(Triplets(rows[at], y[at], a_bad, torch.full_like(at, KINDS.index(kind), dtype=torch.uint8)))

    if not len(rows):
        return made[0]
    batches = torch.split(torch.arange(len(rows), device=rows.device), config.batch_size)
    draws = [Draws(rows.device, seed, iteration, number) for number in range(len(batches))]
    with modes_kept(net):
        net.eval()
        a, a_s, partner = predicted(net, images, rows, batches, draws)
        for at, draw in zip(batches, draws, strict=True):
            emit("argmax", at, a[at])
            emit("sampled", at, a_s[at])
            if config.swap:
                emit("swap", at, a_s[partner[at]])
            if config.identity:
                emit("identity", at, y[at])
            for kind, kept, bad in perturbed_masks(net, images.at(rows[at]), y[at], config, draw):
                emit(kind, at[kept], bad)
    return Triplets.concatenate(made)


def hard_negatives(net: nn.Module, images: ImagePool, rows: Tensor, good: Tensor) -> Triplets:
    """Triplets (x, good, a) of images whose good mask was found by an earlier policy, or by the corrector.

    Those whose a is the good mask are left out: there is nothing to learn from them.

    Args:
        net: the present policy; eval mode meanwhile.
        images: the pool.
        rows: int64 [K], which of them.
        good: uint8 [K, H, W], their good masks.
    """
    a = segment(net, images.images[rows]) if len(rows) else good
    kind = torch.full_like(rows, KINDS.index("hard"), dtype=torch.uint8)
    return Triplets(rows, good, a, kind).take((a != good).flatten(1).any(dim=1))


def mixed(triplets: Triplets, probability: float, seed: int) -> Triplets:
    """The triplets with each region in which a bad mask differs from the good one put right with this probability."""
    bad = mix_regions(triplets.a_ref, triplets.a_bad, probability, Generator().manual_seed(seed))
    return replace(triplets, a_bad=bad)
