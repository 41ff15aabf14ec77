"""Result JSON, read and put into tables."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from segarena.agents.papers import PAPERS
from segarena.evaluation.results import read_results

from .harness import Input
from .parts import malicious


def inputs(rng: random.Random) -> Iterator[Input]:
    valid = {
        "id": "a_seed0",
        "paper": "SPARS",
        "env": "SPARS-LiverCT-v0",
        "method": "score map (mean)",
        "seed": 0,
        "data": "d",
        "split": "test",
        "supervision": "window",
        "mode": "inductive",
        "origins": {"phantom": 2},
        "metrics": {"dice": 0.5},
        "cases": [
            {
                "case_id": f"p{n}",
                "origin": "phantom",
                "dice": 0.5,
                "dice_at_0.5": 0.4,
                "hd95_mm": 3.0,
                "lesion_recall": 1.0,
                "label_voxels": 5,
                "pred_voxels": 4,
            }
            for n in range(2)
        ],
        "settings": {},
        "command": "x",
        "revision": None,
        "machine": {},
        "date": "2020",
    }

    def make_input(name: str, must: str, data: bytes) -> Input:
        def make(folder: Path) -> Callable[[], object]:
            (folder / "r.json").write_bytes(data)

            def read() -> None:
                results = read_results(folder)
                print("\n".join(PAPERS["spars"].tables(results)))

            return read

        return Input(f"result/{name}", make, must, ("r.json", "result", "method", "metric", "case", "seed"))

    yield make_input("valid", "accept", json.dumps(valid).encode())
    for name, text in {
        "empty": b"",
        "null": b"null",
        "list": b"[]",
        "number": b"1",
        "text": b'"x"',
        "open": b"{",
        "deep": b"[" * 100_000,
        "deep object": b'{"a":' * 100_000,
        "utf-16": json.dumps(valid).encode("utf-16"),
        "binary": rng.randbytes(300),
        "pickle": malicious(),
        "long number": b'{"seed": ' + b"9" * 10_000 + b"}",
    }.items():
        yield make_input(name, "refuse", text)
    for key in valid:
        yield make_input(f"without {key}", "refuse", json.dumps({k: v for k, v in valid.items() if k != key}).encode())
    for key, values in {
        "extra": [1],
        "mode": ["x", None, 5, []],
        "origins": [None, [], {"x": 1}, {"phantom": 3}, {"phantom": "2"}, 5],
        "seed": ["x", None, [], {}, 1.5],
        "method": [None, 5, [], {}],
        "metrics": [None, 5, "x", {"dice": "x"}],
        "env": [[], {}],
        "data": [[]],
        "split": [{}],
        "supervision": [[], 5],
        "settings": [None],
        "cases": [
            None,
            5,
            "x",
            {},
            [],
            [1],
            [None],
            ["x"],
            [{}],
            [{"case_id": "a"}],
            [{"case_id": [], "origin": "phantom"}],
            [{"case_id": "a", "origin": "x"}],
            [valid["cases"][0], valid["cases"][0]],
        ],
    }.items():
        for n, value in enumerate(values):
            yield make_input(
                f"{key}.{n}.{repr(value)[:16]}",
                "any" if key in ("settings", "metrics", "data", "env", "split", "supervision") else "refuse",
                json.dumps({**valid, key: value}).encode(),
            )
    for key, values in {
        "dice": ["x", [], {}, True, 1e400, float("nan"), None],
        "case_id": [None, 5, {}],
        "patient": [5, None, []],
        "label_voxels": ["0", None, -1],
        "hd95_mm": [float("inf"), "inf"],
    }.items():
        for n, value in enumerate(values):
            cases = [{**one, key: value} if m == 0 else one for m, one in enumerate(valid["cases"])]
            yield make_input(
                f"case.{key}.{n}.{repr(value)[:12]}", "any", json.dumps({**valid, "cases": cases}).encode()
            )
