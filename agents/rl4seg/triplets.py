"""The triplets of one iteration that the paper does not have (docs/rl4seg.md, Method 7 and 14).

Symbols: π_i = policy of iteration i, a = argmax mask of a policy.
"""

from dataclasses import replace

import torch

from ...rewards.error_triplets import hard_negatives, mixed, source_triplets
from ...rewards.reward_data import Triplets
from ...segmenters.unet import UNet
from .context import Context, Gold


def with_more(context: Context, i: int, net: UNet, new: Triplets, known: Gold) -> tuple[Triplets, dict[str, int]]:
    """The triplets of iteration i and how many there are, with those that reward_data asks for beside the paper's.

    Args:
        context: the run's.
        i: the iteration.
        net: π_{i-1}.
        new: the paper's triplets, of the images that are new.
        known: good masks of all images seen so far, gold and corrected.
    """
    config = context.experiment.reward_data
    parts, of_source = [new], 0
    if config.hard_negatives:
        if config.argmax:  # has those of the new images
            known = known.take(~torch.isin(known.rows, context.new_rows(i)))
        parts.append(hard_negatives(net, context.target, known.rows, known.masks))
    if config.source_triplets:
        dealt = torch.arange(i - 1, len(context.source), context.experiment.iterations)  # each image in one iteration
        found = source_triplets(net, context.source, dealt, config, context.seed("source_triplets"), i)
        parts.append(replace(found, images=found.images + len(context.target)))  # rows of `context.judged`
        of_source = len(found)
    triplets = Triplets.concatenate(parts)
    if config.mix_regions:
        triplets = mixed(triplets, config.mix_regions, context.seed(f"mix_regions/{i}"))
    kinds = {f"n_{kind}": number for kind, number in triplets.counts().items()}
    return triplets, {"n_triplets": len(triplets), "n_source": of_source, **kinds}
