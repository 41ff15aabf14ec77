"""Files of weights that others have trained, put into a small network."""

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from segarena.common.published import put_weights, read_state_dict
from torch import nn

from .harness import Input
from .parts import malicious

FILE = "published.pth"


def inputs(rng: random.Random) -> Iterator[Input]:
    weights = {"w": torch.zeros(4, 3), "b": torch.ones(4)}
    whole = _saved(weights)
    for name, content in {"bare": weights, "model": {"model": weights}, "module": _prefixed(weights)}.items():
        yield Input(f"published/{name}", _put(_saved(content)), "accept")
    for name, content in {
        "list": [torch.zeros(1)],
        "nothing": {},
        "number": 5,
        "text": {"model": "weights"},
        "no tensor": {"w": 1.0, "b": 2.0},
        "nested": {"model": {"state_dict": {"model": {}}}},
        "nan": {**weights, "w": torch.full((4, 3), torch.nan)},
        "half": {**weights, "w": torch.zeros(4, 3).half()},
        "complex": {**weights, "w": torch.zeros(4, 3, dtype=torch.complex64)},
        "sparse": {**weights, "w": torch.zeros(4, 3).to_sparse()},
        "scalar": {**weights, "w": torch.zeros(())},
        "shape": {**weights, "w": torch.zeros(3, 4)},
        "broadcast": {**weights, "w": torch.zeros(1).expand(2**40)},
        "missing": {"w": weights["w"]},
        "unexpected": {**weights, "c": torch.zeros(1)},
        "long name": {**weights, "n" * 100_000: torch.zeros(1)},
        "number as name": {**weights, 3: torch.zeros(1)},
        "meta": {**weights, "w": torch.zeros(4, 3, device="meta")},
    }.items():
        yield Input(f"published/{name}", _put(_saved(content)), "refuse", (FILE,))
    noise = rng.randbytes(3000)
    for name, data in {"empty": b"", "noise": noise, "pickle": malicious(), "zip": b"PK\x03\x04" + bytes(200)}.items():
        yield Input(f"published/{name}", _put(data), "refuse", (FILE,))
    for n in sorted(rng.sample(range(1, len(whole)), 4)):
        yield Input(f"published/cut.{n}", _put(whole[:n]), "refuse", (FILE,))
    for n in range(12):
        noisy = bytearray(whole)
        noisy[rng.randrange(len(noisy))] = rng.randrange(256)
        yield Input(f"published/random.{n}", _put(bytes(noisy)), "any", (FILE,))


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _prefixed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{name}": value for name, value in weights.items()}


def _put(data: bytes) -> Callable[[Path], Callable[[], object]]:
    def make(folder: Path) -> Callable[[], object]:
        path = folder / FILE
        path.write_bytes(data)
        names = {"0.weight": "w", "0.bias": "b"}
        net = nn.Sequential(nn.Linear(3, 4))
        return lambda: put_weights(net, read_state_dict(path), names, f"checkpoint {str(path)!r}", "a layer")

    return make
