"""manifest.json and the network of a finished stage."""

import json
import random
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from safetensors.torch import load_file, save_file

from .harness import Input
from .parts import malicious
from .trained import Trained


def inputs(rng: random.Random) -> Iterator[Input]:
    def make_input(name: str, must: str, harm: Callable[[Path], object]) -> Iterator[Input]:
        for command in ("resume", "evaluate"):

            def make(folder: Path, command: str = command) -> list[str]:
                run = Trained.copy("rl4seg", folder)
                harm(run / "supervised")
                return ["train", "--resume", str(run)] if command == "resume" else ["evaluate", "--run", str(run)]

            wanted = (
                "any" if "forged" in name and command == "resume" else must
            )  # a finished stage's network is not read
            yield Input(
                f"stage/{name}.{command}",
                make,
                wanted,
                ("manifest.json", "supervised", "segmenter"),
                ("run",) if must == "any" else (),
            )

    def manifest(text: str | bytes) -> Callable[[Path], object]:
        return lambda stage: (stage / "manifest.json").write_bytes(text.encode() if isinstance(text, str) else text)

    for name, text in {
        "empty": "",
        "null": "null",
        "list": "[]",
        "number": "5",
        "open": "{",
        "no config": '{"sha256": {}}',
        "no sums": '{"config": {}}',
        "config null": '{"config": null, "sha256": {}}',
        "config list": '{"config": [], "sha256": {}}',
        "sums null": '{"config": {}, "sha256": null}',
        "sums list": '{"config": {}, "sha256": [1]}',
        "binary": rng.randbytes(50),
        "utf-16": "{}".encode("utf-16"),
        "deep": "[" * 100_000,
        "deep config": '{"sha256": {}, "config": ' + '{"a":' * 2_000 + "1" + "}" * 2_002,
        "nan": '{"config": NaN, "sha256": NaN}',
    }.items():
        yield from make_input(f"manifest.{name}", "refuse", manifest(text))

    def sums(change: dict) -> Callable[[Path], object]:
        def harm(stage: Path) -> None:
            made = json.loads((stage / "manifest.json").read_text())
            made["sha256"] = {**made["sha256"], **change}
            (stage / "manifest.json").write_text(json.dumps(made))

        return harm

    for name, change in {
        "wrong": {"segmenter.safetensors": "0"},
        "number": {"segmenter.safetensors": 5},
        "more": {"x": "0"},
        "outside": {"../../config.yaml": "0"},
        "absolute": {"/etc/passwd": "0"},
        "folder": {".": "0"},
        "nul": {"a\0b": "0"},
        "long": {"n" * 5000: "0"},
    }.items():
        yield from make_input(f"sums.{name}", "refuse", sums(change))
    yield from make_input("file lost", "refuse", lambda stage: (stage / "segmenter.safetensors").unlink())
    yield from make_input(
        "file changed", "refuse", lambda stage: (stage / "segmenter.safetensors").write_bytes(malicious())
    )

    def forged(data: bytes | Callable[[Path], bytes]) -> Callable[[Path], object]:
        def harm(stage: Path) -> None:
            place = stage / "segmenter.safetensors"
            content = data if isinstance(data, bytes) else data(place)
            place.write_bytes(content)
            sums({"segmenter.safetensors": sha256(content).hexdigest()})(stage)

        return harm

    def with_meta(text: str) -> Callable[[Path], bytes]:
        def build(place: Path) -> bytes:
            tensors = load_file(place)
            save_file(tensors, place, {"unet": text})
            return place.read_bytes()

        return build

    for name, text in {
        "text": "x",
        "null": "null",
        "list": "[]",
        "empty": "{}",
        "unknown key": '{"zzz": 1}',
        "huge": '{"in_channels": 1, "out_channels": 3, "init_channels": 1000000, "norm": "batch"}',
        "negative": '{"in_channels": 1, "out_channels": 3, "init_channels": -2, "norm": "batch"}',
        "norm": '{"in_channels": 1, "out_channels": 3, "init_channels": 2, "norm": "os.system"}',
        "float": '{"in_channels": 1, "out_channels": 3, "init_channels": 2.5, "norm": "batch"}',
        "deep": "[" * 100_000,
    }.items():
        yield from make_input(f"forged metadata.{name}", "refuse", forged(with_meta(text)))
    yield from make_input("forged.pickle", "refuse", forged(malicious()))
    yield from make_input("forged.empty", "refuse", forged(b""))
