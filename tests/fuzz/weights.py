"""safetensors: the classifier's file that a configuration names."""

import json
import os
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from segarena.classifiers.presence import PACKAGED

from .harness import Input
from .parts import PHANTOM, malicious, merged, train


def inputs(rng: random.Random) -> Iterator[Input]:
    weights = load_file(PACKAGED)
    with PACKAGED.open("rb") as file:
        whole = file.read()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    meta = header["__metadata__"]

    def command(folder: Path, data: bytes) -> list[str]:
        (folder / "net.safetensors").write_bytes(data)
        config = merged(
            PHANTOM,
            {
                "env.score_source": "classifier",
                "env.classifier": str(folder / "net.safetensors"),
                "ppo.total_timesteps": 8,
            },
        )
        return train(folder, config)

    def make_input(name: str, must: str, data: bytes) -> Input:
        return Input(f"safetensors/{name}", lambda folder: command(folder, data), must, ("net.safetensors",))

    def packed(tensors: dict, metadata: dict | None = None) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            save_file(tensors, Path(folder) / "x", metadata)
            return (Path(folder) / "x").read_bytes()

    def with_header(text: bytes, body: bytes | None = None) -> bytes:
        return struct.pack("<Q", len(text)) + text + (whole[8 + length :] if body is None else body)

    yield make_input("valid", "accept", whole)
    for n in sorted({0, 1, 7, 8, 9, 8 + length - 1, 8 + length, len(whole) - 1, *rng.sample(range(len(whole)), 6)}):
        yield make_input(f"cut.{n}", "refuse", whole[:n])
    for size in (0, 1, 2**31, 2**40, 2**63, 2**64 - 1, length - 1, length + 1, 100_000_001):
        yield make_input(f"header length.{size}", "refuse", struct.pack("<Q", size) + whole[8:])
    for name, text in {
        "null": b"null",
        "list": b"[]",
        "no tensor": b"{}",
        "deep": b"[" * 50_000,
        "deep object": b'{"a":' * 20_000,
        "not utf-8": b'{"\xff": 1}',
        "number": b"5",
    }.items():
        yield make_input(f"header.{name}", "refuse", with_header(text))
    first = next(name for name in header if name != "__metadata__")
    for name, entry in {
        "offsets beyond": {"data_offsets": [0, 2**50]},
        "offsets backwards": {"data_offsets": [8, 0]},
        "offsets negative": {"data_offsets": [-8, 8]},
        "shape bomb": {"shape": [2**40, 2**40]},
        "shape negative": {"shape": [-1]},
        "dtype unknown": {"dtype": "F128"},
        "dtype number": {"dtype": 5},
        "shape text": {"shape": "x"},
        "overlap": {"data_offsets": header[list(header)[-1]]["data_offsets"]},
    }.items():
        spoiled = json.loads(json.dumps(header))
        spoiled[first].update(entry)
        yield make_input(f"entry.{name}", "refuse", with_header(json.dumps(spoiled).encode()))
    for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64):
        yield make_input(f"dtype.{str(kind)[6:]}", "refuse", packed({k: v.to(kind) for k, v in weights.items()}, meta))
    key = next(k for k, v in weights.items() if v.is_floating_point() and v.ndim > 1)
    for name, value in {"nan": torch.nan, "inf": torch.inf}.items():
        spoiled = {k: v.clone() for k, v in weights.items()}
        spoiled[key].view(-1)[0] = value
        yield make_input(f"weight.{name}", "refuse", packed(spoiled, meta))
    yield make_input(
        "weights all nan",
        "refuse",
        packed({k: torch.full_like(v, torch.nan) if v.is_floating_point() else v for k, v in weights.items()}, meta),
    )
    yield make_input("extra key", "refuse", packed({**weights, "extra": torch.zeros(3)}, meta))
    yield make_input("missing key", "refuse", packed({k: v for k, v in weights.items() if k != key}, meta))
    yield make_input("other shape", "refuse", packed({**weights, key: weights[key][:1].clone()}, meta))
    yield make_input("transposed", "any", packed({**weights, key: weights[key].transpose(0, 1).contiguous()}, meta))
    yield make_input("empty", "refuse", packed({}, meta))
    yield make_input("no metadata", "refuse", packed(weights))
    for field_name in meta:
        less = {k: v for k, v in meta.items() if k != field_name}
        yield make_input(
            f"metadata without {field_name}", "any" if field_name == "training" else "refuse", packed(weights, less)
        )
    described = json.loads(meta["description"])
    for field_name in described:
        other = next(f'"{key}": {json.dumps(value)}' for key, value in described.items() if key != field_name)
        for n, text in enumerate(
            (
                "",
                "x",
                "null",
                "5",
                "[1]",
                "[1, 2, 3, 4]",
                '["a", "b", "c"]',
                '["a", "b"]',
                "[NaN, 1]",
                "[1e400, 1, 1]",
                "[0, 0, 0]",
                "[-4, 4, 4]",
                "[4.5, 4, 4]",
                "[1000000, 1000000, 1000000]",
                "[" * 20_000,
                '{"a": 1}',
            )
        ):
            spoiled = packed(weights, {**meta, "description": f'{{"{field_name}": {text}, {other}}}'})
            yield make_input(f"metadata.{field_name}.{n}.{text[:12]}", "refuse", spoiled)
    for name, data in {
        "pickle": malicious(),
        "text": b"hello",
        "zip": b"PK\x03\x04" + bytes(200),
        "noise": rng.randbytes(10_000),
    }.items():
        yield make_input(f"not safetensors.{name}", "refuse", data)
    for n in range(16):
        noisy = bytearray(whole)
        noisy[rng.randrange(8, 8 + length)] = rng.randrange(32, 127)
        yield make_input(f"header.random.{n}", "any", bytes(noisy))
    for kind in ("folder", "fifo", "missing", "device"):

        def special(folder: Path, kind: str = kind) -> list[str]:
            arguments = command(folder, whole)
            place = folder / "net.safetensors"
            place.unlink()
            {
                "folder": place.mkdir,
                "fifo": lambda: os.mkfifo(place),
                "missing": lambda: None,
                "device": lambda: place.symlink_to("/dev/zero"),
            }[kind]()
            return arguments

        yield Input(f"safetensors/special.{kind}", special, "refuse", ("net.safetensors", "/dev/zero"))
