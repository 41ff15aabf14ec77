"""Weights that others have trained: reading their files, and putting them into a network under its own names.

Files are safetensors or PyTorch's own, of which only tensors, numbers and text are read: never code.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoints import check_weights, load_weights
from .reading import quoted

COUNTER = ".num_batches_tracked"
"""End of the names of a counter that nothing here reads and that old files lack."""
NUMPY_TYPES = (np.float64, np.float32, np.int64, np.uint32)
"""Of the numbers beside the weights, such as the state of NumPy's random generator."""
WRAPPERS = ("state_dict", "model")
"""Names under which a file may hold its weights by name."""
NAMED = 5
"""Weights that an error names, at most."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Weights by name, on the CPU, without what wraps them: `state_dict` or `model` around, "module." before each name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds more than tensors, numbers and text, no weights by name, or sparse ones.
    """
    if Path(path).suffix == ".safetensors":
        found: object = load_weights(path)[0]
    elif not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {quoted(str(path))} does not exist; name a file of weights")
    else:
        try:
            with torch.serialization.safe_globals(_numpy_globals()):
                found = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # PyTorch's reader raises anything on a malformed file: EOFError, KeyError, ...
            raise ValueError(
                f"checkpoint {str(path)!r} holds more than tensors, numbers and text, or is damaged "
                f"({type(error).__name__}): not read, since it could run code; save its weights with safetensors"
            ) from error
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(
            f"checkpoint {str(path)!r} holds {quoted(type(found).__name__)} but weights by name, or state_dict or "
            f"model with them, are needed; save the network's state_dict()"
        )
    weights = {str(name): value for name, value in found.items()}
    for name, value in weights.items():
        if value.layout != torch.strided or value.is_meta:
            raise ValueError(
                f"checkpoint {str(path)!r} has {quoted(name)} as a tensor that is sparse or without values; save it "
                f"dense"
            )
    wrapped = all(name.startswith("module.") for name in weights)
    return {name.removeprefix("module."): value for name, value in weights.items()} if wrapped else weights


def _numpy_globals() -> list[Any]:
    """What makes arrays and numbers of NumPy again, under the names of its versions 1 and 2; none of it runs code."""
    makers: list[Any] = [np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]]
    named = [(make, f"numpy.{core}.multiarray.{make.__name__}") for make in makers for core in ("core", "_core")]
    return [*named, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in NUMPY_TYPES)]


def put_weights(
    net: nn.Module, weights: Mapping[str, Tensor], names: Mapping[str, str], source: str, described: str
) -> None:
    """Put exactly the weights that `names` knows into `net`.

    Args:
        net: is changed, but for what `names` does not know.
        weights: by their names in the file.
        names: name in the file of weights of `net`, by their own name.
        source: where they come from, for errors.
        described: the network, for errors.

    Raises:
        ValueError: some are missing (but for counters of batches) or unexpected, or do not fit.
    """
    own = net.state_dict()
    missing = [name for name in names.values() if name not in weights and not name.endswith(COUNTER)]
    known = set(names.values())
    unexpected = [name for name in weights if name not in known]
    if missing or unexpected:
        raise ValueError(
            f"{source} does not fit {described}: missing {listed(missing)}, unexpected {listed(unexpected)}; build the "
            f"network as the weights were trained"
        )
    own |= {name: weights[theirs] for name, theirs in names.items() if theirs in weights}
    check_weights(net, own, source)
    net.load_state_dict(own)


def listed(names: Iterable[str]) -> str:
    """ "none", or the first names and how many more there are."""
    known = list(names)
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(quoted(name) for name in known[:NAMED]) + more if known else "none"
