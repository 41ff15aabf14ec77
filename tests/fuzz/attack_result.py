"""JSON of attacks, read and put into a report."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from segarena.evaluation.robustness_report import RobustnessReport

from .harness import Input
from .parts import malicious

FILE = "m__pgd_3__eps_8_255.json"
NAMES = (FILE, "result", "attack", "images", "eps")


def inputs(rng: random.Random) -> Iterator[Input]:
    valid = {
        "model": "m",
        "attack": "pgd_3",
        "title": "PGD, 3 steps",
        "kind": "white",
        "family": "pgd",
        "steps": 3,
        "eps": "8/255",
        "radius": 0.03,
        "ids": ["0", "1"],
        "classes": ["a", "b"],
        "both": [[3, 1], [0, 2]],
        "predicted": [[4, 2], [3, 2]],
        "true": [[4, 2], [1, 4]],
        "farthest": [0.03, 0.02],
        "forwards": 3.0,
        "backwards": 3.0,
        "seconds": 0.1,
        "zero_gradient": 0.0,
        "depends": {"data": "x"},
        "revision": None,
        "machine": {},
        "date": "2020",
    }

    def make_input(name: str, must: str, data: bytes) -> Input:
        def make(folder: Path) -> Callable[[], object]:
            (folder / FILE).write_bytes(data)

            def read() -> None:
                report = RobustnessReport.read(folder)
                print(report, report.checks, report.worst, report.radii)

            return read

        return Input(f"attack_result/{name}", make, must, NAMES)

    yield make_input("valid", "accept", json.dumps(valid).encode())
    for name, text in {
        "empty": b"",
        "list": b"[]",
        "open": b"{",
        "deep": b"[" * 100_000,
        "utf-16": json.dumps(valid).encode("utf-16"),
        "binary": rng.randbytes(300),
        "pickle": malicious(),
        "long number": b'{"steps": ' + b"9" * 10_000 + b"}",
    }.items():
        yield make_input(name, "refuse", text)
    for key in valid:
        yield make_input(f"without {key}", "refuse", json.dumps({k: v for k, v in valid.items() if k != key}).encode())
    for key, values in {
        "extra": [1],
        "model": [None, 5, [], {}],
        "attack": [None, 5, []],
        "kind": ["x", None, 5, []],
        "steps": ["x", [], 1.5, True],
        "eps": [None, 8, []],
        "radius": ["x", None, 1e400, float("nan"), -1.0, 5.0],
        "ids": [None, [], ["0"], ["0", "0"], [1, 2], "01"],
        "classes": [None, [], ["a"], [1, 2]],
        "both": [None, [], [[3, 1]], [[3], [0]], *([row, [0, 2]] for row in ([5, 1], [-1, 1], [1.5, 1], [10**30, 1]))],
        "predicted": [[row, [3, 2]] for row in ([4, 3], [2**62, 2**62], ["4", 2], None, [True, 5])],
        "true": [{}, "x", [[4, 2], [1, 4], [0, 0]]],
        "farthest": [None, [0.1], ["x", 0.1], [float("nan"), 0.1], [1e400, 0.1], [-1, 0.1]],
        "forwards": ["x", None, float("inf"), -1],
        "seconds": ["x", None, float("nan"), -1],
        "zero_gradient": ["x", float("nan"), 2.0, -1.0],
        "depends": [None, [], "x"],
    }.items():  # fmt: skip
        for n, value in enumerate(values):
            yield make_input(f"{key}.{n}.{repr(value)[:16]}", "refuse", json.dumps({**valid, key: value}).encode())
