"""Random numbers that are counted, not consumed: number k of a stream is a hash of its key and k (SplitMix64).

The same key gives the same numbers in a batch of any size, in any order, on CPU or CUDA, in one call for all.
"""

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""The step from one number of a stream to the next."""
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser of int64."""
    x = (x ^ _shift(x, 30)) * (_FIRST - 2**64)
    x = (x ^ _shift(x, 27)) * (_SECOND - 2**64)
    return x ^ _shift(x, 31)


def unit(x: Tensor) -> Tensor:
    """The upper 53 bits of `mixed`, as float64 in [0, 1)."""
    if x.device.type == "cpu":  # the numbers are few, and a small operation costs NumPy a quarter of PyTorch's time
        bits = x.numpy().view(np.uint64)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_FIRST)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_SECOND)
        return torch.from_numpy(((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53)
    return _shift(mixed(x), 11).double() * 2.0**-53


def uniform(items: Tensor, lanes: int, *words: int) -> Tensor:
    """Numbers of each item, float64 [N, lanes] in [0, 1), on the device of `items`.

    Args:
        items: int64 [N], what the numbers belong to, such as the rows of a pool.
        lanes: how many each item needs.
        words: what else they depend on, such as a seed and the number of an epoch.
    """
    key = torch.zeros_like(items)
    for word in words:
        key = mixed(key + word + GOLDEN)
    key = mixed(key + items + GOLDEN)
    return unit(key[:, None] + torch.arange(1, lanes + 1, device=items.device) * GOLDEN)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
