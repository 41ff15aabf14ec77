"""Networks on disk: one safetensors file with the weights and with what is needed to build the network again."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .checkpoints import check_weights, load_weights, save_weights
from .checks import check_arguments
from .reading import parse_json, quoted


class Network(nn.Module):
    """A network that can be built again: each argument of its constructor is kept as an attribute of the same name."""

    @property
    def description(self) -> dict[str, Any]:
        """The arguments of its constructor, by name: numbers, strings and tuples of them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


N = TypeVar("N", bound=Network)


def save_network(path: Path, net: Network, metadata: Mapping[str, Any] | None = None) -> None:
    """Write weights, class and description of `net` into one file.

    metadata: what else is to be known of it, by name; values that JSON can hold.
    """
    described = {"kind": type(net).__name__, "description": net.description, **(metadata or {})}
    save_weights(path, net.state_dict(), {name: json.dumps(value) for name, value in described.items()})


def load_network(path: str | Path, kind: type[N] | Sequence[type[N]], **needed: object) -> N:
    """The network that `save_network` wrote, in eval mode, on the CPU; its parameters want gradients.

    Args:
        path: the file.
        kind: the class that it must have, or several of which it must have one.
        needed: arguments of the constructor that it must have been built with, such as out_channels=3.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds another kind of network, or one that was built with other arguments.
    """
    kinds = {one.__name__: one for one in (kind if isinstance(kind, Sequence) else [kind])}
    wanted = " or ".join(kinds)
    weights, metadata = load_weights(path)
    source = f"checkpoint {str(path)!r}"
    try:
        stored = parse_json(metadata["kind"], "kind")
        description = parse_json(metadata["description"], "description")
        described = {name: _as_tuple(value) for name, value in description.items()}
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{source} does not say which network it holds (metadata: {quoted(metadata)}) but a {wanted} is needed; "
            f"name a file that save_network wrote"
        ) from error
    if not isinstance(stored, str) or stored not in kinds:
        raise ValueError(f"{source} holds a {str(stored)[:50]} but a {wanted} is needed; take another file")
    try:
        check_arguments(kinds[stored], described)
        with torch.device("meta"):  # without memory: a description may name sizes that no machine has
            outline = kinds[stored](**described)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        what = quoted(error)
        raise ValueError(f"{source} describes a {stored} that cannot be built ({what}); train it again") from error
    for name, value in needed.items():
        if described.get(name) != value:
            has = quoted(described.get(name))
            raise ValueError(
                f"{source} holds a {stored} with {name} = {has} but {value!r} is needed; take another file"
            )
    check_weights(outline, weights, source)
    net = kinds[stored](**described)
    net.load_state_dict(weights)
    return net.eval()


def _as_tuple(value: Any) -> Any:
    """JSON has lists only; descriptions have tuples only."""
    return tuple(value) if isinstance(value, list) else value
