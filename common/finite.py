"""NaN and infinity: a training that meets one stops, and names it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


class NotFiniteError(ValueError):
    """A loss, a reward, a score or a weight is NaN or infinite."""


def known(value: float) -> float | None:
    """The value; None where it is NaN, which JSON does not have."""
    return None if math.isnan(value) else float(value)


def not_finite(scalars: Mapping[str, float]) -> list[str]:
    """What is wrong with these scalars: "loss is nan" for each that is not finite."""
    return [f"{name} is {value}" for name, value in scalars.items() if not math.isfinite(value)]


def not_finite_tensor(tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with these tensors, by the first that holds NaN or infinity: "head.bias holds 3 numbers ...".

    None: nothing is. It waits for the device once; tensors of whole numbers have none.
    """
    floats = {name: value.detach() for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    if not floats or bool(get_total_norm(floats.values(), torch.inf).isfinite()):
        return None
    for name, value in floats.items():
        if bad := int((~value.isfinite()).sum()):
            return f"{name} holds {bad} numbers, of {value.numel()}, that are NaN or infinite"
    return None
