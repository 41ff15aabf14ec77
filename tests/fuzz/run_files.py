"""metrics.jsonl and config.yaml of a run."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from .harness import Input
from .parts import MARK, merged
from .trained import Trained


def inputs(rng: random.Random) -> Iterator[Input]:
    def metrics(data: Callable[[bytes], bytes | None]) -> Callable[[Path], None]:
        def harm(checkpoint: Path) -> None:
            place = checkpoint.parents[1] / "metrics.jsonl"
            if not place.exists():
                return
            new = data(place.read_bytes())
            place.unlink() if new is None else place.write_bytes(new)

        return harm

    def unfinished(name: str, must: str, change: Callable[[bytes], bytes | None]) -> Input:
        """metrics.jsonl is harmed in a run that still has to be trained."""

        def make(folder: Path) -> list[str]:
            run = Trained.copy("spars", folder)
            for last in sorted((run / "checkpoints").iterdir())[1:]:
                shutil.rmtree(last)
            metrics(change)(next((run / "checkpoints").iterdir()))
            return ["train", "--resume", str(run)]

        return Input(f"metrics/{name}", make, must, ("metrics.jsonl",), ("run",))

    yield unfinished("valid", "accept", lambda b: b)
    refused = ("first line spoiled", "not utf-8")  # where lines are lost the training goes on with a warning
    for name, change in {
        "gone": lambda b: None,
        "empty": lambda b: b"",
        "cut": lambda b: b[:20],
        "one byte short of the checkpoint": lambda b: b[: b.index(b"\n")],
        "noise": lambda b: rng.randbytes(len(b)),
        "first line spoiled": lambda b: b"{{{{" + b[4:],
        "not utf-8": lambda b: b"\xff\xfe" + b[2:],
        "deep": lambda b: b"[" * len(b),
        "longer line": lambda b: b + b'{"step": 99',
        "zeros": lambda b: bytes(len(b)),
    }.items():
        yield unfinished(name, "refuse" if name in refused else "any" if name == "noise" else "accept", change)

    def config(name: str, must: str, text: bytes | Callable[[dict], dict]) -> Iterator[Input]:
        for command in ("resume", "evaluate", "render"):

            def make(folder: Path, command: str = command) -> list[str]:
                run = Trained.copy("spars", folder)
                place = run / "config.yaml"
                data = (
                    text
                    if isinstance(text, bytes)
                    else yaml.safe_dump(text(yaml.safe_load(place.read_text()))).encode()
                )
                place.write_bytes(data)
                return {
                    "resume": ["train", "--resume", str(run)],
                    "evaluate": ["evaluate", "--run", str(run)],
                    "render": ["render", "--run", str(run)],
                }[command]

            yield Input(
                f"run config/{name}.{command}", make, must, ("config.yaml", "config", "run", "paper", "seed", "env"), ()
            )

    aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    for name, text in {
        "empty": b"",
        "list": b"[]",
        "text": b"hello",
        "binary": rng.randbytes(200),
        "python tag": b"!!python/object/apply:os.system ['touch %s']" % MARK.encode(),
        "deep": b"[" * 20_000,
        "bomb": aliases.encode(),
        "bomb as list": ("- " + aliases.replace("\n", "\n- ")).encode(),
        "bomb as paper": (aliases + "paper: *a8\n").encode(),
        "unknown paper": b"paper: apga",
        "paper is a list": b"paper: [spars]",
        "paper is a map": b"paper: {a: b}",
        "half": b"device: cpu\nenv: {cases: [",
    }.items():
        yield from config(name, "refuse", text)
    yield from config("unknown key", "refuse", lambda c: {**c, "zzz": 1})
    yield from config("another architecture", "refuse", lambda c: merged(c, {"env.action_set": "king26"}))
