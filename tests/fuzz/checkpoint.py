"""Checkpoints of a run, with checksums made anew where a reader would stop at them."""

import io
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .harness import Input
from .parts import MARK, malicious
from .trained import Trained


def forge(checkpoint: Path) -> None:
    """Make the checksums of a checkpoint those of its files, as somebody who wants to harm would."""
    sums = {name: sha256((checkpoint / name).read_bytes()).hexdigest() for name in ("state.pt", "weights.safetensors")}
    step = int(checkpoint.name.removeprefix("step_"))
    (checkpoint / "manifest.json").write_text(json.dumps({"step": step, "sha256": sums}, indent=1))


def zipped_pickle(data: bytes) -> bytes:
    """A file as torch.save writes it, whose pickle is `data`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("state/data.pkl", data)
        archive.writestr("state/byteorder", "little")
        archive.writestr("state/version", "3\n")
    return out.getvalue()


class _Malicious:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def inputs(rng: random.Random) -> Iterator[Input]:
    here = ("checkpoint", "state.pt", "step_", "weights", "run")

    def make_input(
        name: str,
        must: str,
        harm: Callable[[Path], object],
        *,
        all_of_them: bool = True,
        sums: bool = True,
        commands: tuple[str, ...] = ("resume", "evaluate"),
    ) -> Iterator[Input]:
        for command in commands:

            def make(folder: Path, command: str = command) -> list[str]:
                run = Trained.copy("spars", folder)
                checkpoints = sorted((run / "checkpoints").iterdir())
                for checkpoint in checkpoints if all_of_them else checkpoints[-1:]:
                    harm(checkpoint)
                    if sums:
                        forge(checkpoint)
                return ["train", "--resume", str(run)] if command == "resume" else ["evaluate", "--run", str(run)]

            yield Input(f"checkpoint/{name}.{command}", make, must, here, ("run",) if must != "refuse" else ())

    def state(change: Callable[[dict], object]) -> Callable[[Path], None]:
        def harm(checkpoint: Path) -> None:
            loaded = torch.load(checkpoint / "state.pt", weights_only=True)
            changed = change(loaded)
            torch.save(loaded if changed is None else changed, checkpoint / "state.pt")

        return harm

    def content(data: bytes) -> Callable[[Path], None]:
        return lambda checkpoint: (checkpoint / "state.pt").write_bytes(data)

    evil = malicious()
    legacy = io.BytesIO()
    torch.save(_Malicious(f"touch {MARK}"), legacy, _use_new_zipfile_serialization=False)
    modern = io.BytesIO()
    torch.save({"optimizer": _Malicious(f"touch {MARK}")}, modern)
    eval_pickle = b"cbuiltins\neval\n(V__import__('os').system('touch %s')\ntR." % MARK.encode()
    for name, data in {
        "pickle": evil,
        "pickle in zip": zipped_pickle(evil),
        "torch legacy": legacy.getvalue(),
        "torch modern": modern.getvalue(),
        "eval": eval_pickle,
        "eval in zip": zipped_pickle(eval_pickle),
        "exec in zip": zipped_pickle(eval_pickle.replace(b"eval", b"exec")),
        "empty": b"",
        "text": b"hello",
        "zip": b"PK\x03\x04" + bytes(300),
        "empty zip": zipped_pickle(b""),
        "noise": rng.randbytes(4000),
        "half": b"",
        "deep pickle": zipped_pickle(b"\x80\x02" + b"(" * 200_000 + b"."),
        "int bomb": zipped_pickle(b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"."),
        "tar": b"ustar" + bytes(2000),
    }.items():
        if name == "half":
            yield from make_input(
                "state.half", "refuse", lambda c: os.truncate(c / "state.pt", (c / "state.pt").stat().st_size // 2)
            )
        else:
            yield from make_input(f"state.{name}", "refuse", content(data))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("state/data.pkl", b"\x80\x02}." + bytes(1 << 30))
    yield from make_input("state.deflated bomb", "refuse", content(bomb.getvalue()))
    parts = ("optimizer", "n_updates", "env", "episodes", "unwritten", "random", "self_play", "best", "wrappers")
    for key in (*parts, "observation", "settings", "metrics_bytes", "tensorboard_bytes"):
        yield from make_input(
            f"state.without {key}",
            "refuse",
            state(lambda s, key=key: {name: part for name, part in s.items() if name != key}),
            commands=("resume",),
        )
        yield from make_input(
            f"state.{key} is text", "refuse", state(lambda s, key=key: s.update({key: "x"})), commands=("resume",)
        )
    for name, value in {"list": [], "number": 5, "text": "x", "empty": {}, "tensor": torch.zeros(3)}.items():
        yield from make_input(f"state.is {name}", "refuse", state(lambda s, value=value: value), commands=("resume",))
    for value in (-1, 10**9, 2**40, 2**63, 1.5, float("nan"), 3):
        yield from make_input(
            f"state.metrics_bytes.{value}",
            "any" if isinstance(value, int) and value > 0 else "refuse",  # lines may be lost: weights do not need them
            state(lambda s, v=value: s.update(metrics_bytes=v)),
            commands=("resume",),
        )
    yield from make_input(
        "state.env of other shape",
        "refuse",
        state(lambda s: s["env"].update(returns=torch.zeros(99))),
        commands=("resume",),
    )
    yield from make_input(
        "state.optimizer of other shape",
        "refuse",
        state(lambda s: s["optimizer"].update(param_groups=[])),
        commands=("resume",),
    )
    yield from make_input(
        "state.random of other length",
        "refuse",
        state(lambda s: s["random"].update(torch=torch.zeros(3, dtype=torch.uint8))),
        commands=("resume",),
    )

    def net(change: Callable[[dict], dict]) -> Callable[[Path], None]:
        def harm(checkpoint: Path) -> None:
            place = checkpoint / "weights.safetensors"
            tensors = change(load_file(place))
            place.unlink()
            save_file(tensors, place)

        return harm

    yield from make_input(
        "weights.nan", "refuse", net(lambda w: {k: torch.full_like(v, torch.nan) for k, v in w.items()})
    )
    yield from make_input("weights.float64", "refuse", net(lambda w: {k: v.double() for k, v in w.items()}))
    yield from make_input("weights.extra", "refuse", net(lambda w: {**w, "x": torch.zeros(1)}))
    yield from make_input("weights.missing", "refuse", net(lambda w: dict(list(w.items())[1:])))
    yield from make_input("weights.pickle", "refuse", lambda c: (c / "weights.safetensors").write_bytes(evil))
    yield from make_input("weights.empty", "refuse", lambda c: (c / "weights.safetensors").write_bytes(b""))
    for name, text in {
        "empty": "",
        "null": "null",
        "list": "[]",
        "deep": "[" * 100_000,
        "number": "5",
        "binary": "\0\1\2",
        "step": '{"step": "x", "sha256": {}}',
        "more": '{"step": 8, "sha256": {"state.pt": "0", "weights.safetensors": "0", "../x": "0"}}',
    }.items():
        yield from make_input(
            f"manifest.{name}", "any", lambda c, text=text: (c / "manifest.json").write_text(text), sums=False
        )
        yield from make_input(
            f"manifest.last.{name}",
            "accept",
            lambda c, text=text: (c / "manifest.json").write_text(text),
            sums=False,
            all_of_them=False,
            commands=("resume",),
        )
    for name, harm in {
        "name without number": lambda c: (c.parent / "step_backup").mkdir(exist_ok=True),
        "a file called step_": lambda c: (c.parent / "step_notes.txt").write_text("mine"),
        "step beyond": lambda c: (
            None if (c.parent / "step_999999999999").exists() else shutil.copytree(c, c.parent / "step_999999999999")
        ),
        "negative step": lambda c: (
            None if (c.parent / "step_-1").exists() else shutil.copytree(c, c.parent / "step_-1")
        ),
    }.items():
        yield from make_input(f"folder.{name}", "any", harm, commands=("resume",))
