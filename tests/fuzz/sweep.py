"""Sweep files: what is wrong is refused before an experiment is made, and without Ray."""

import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from .harness import Input
from .parts import MARK, PHANTOM

SWEEP = {"paper": "spars", "base": [PHANTOM], "grid": {"env.threshold": [0.2, 2.0]}}
"""Its second threshold is out of range, so that even what else is right trains nothing."""


def inputs(rng: random.Random) -> Iterator[Input]:
    def make_input(name: str, text: str | bytes, *more: str) -> Input:
        def make(folder: Path) -> list[str]:
            (folder / "sweep.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
            return ["sweep", "--config", str(folder / "sweep.yaml"), "--out", str(folder / "out"), *more]

        return Input(f"sweep/{name}", make, "refuse", ("sweep.yaml", "set", "config"))

    base = yaml.safe_dump(SWEEP)
    aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    for name, text in {
        "a value out of its range": base,
        "empty": "",
        "list": "[]",
        "binary": rng.randbytes(300),
        "deep list": "[" * 5_000,
        "anchors bomb": aliases + base + "seeds: *a8\n",
        "python tag": f"{base}name: !!python/object/apply:os.system ['touch {MARK}']",
        "int key": base + "5: 6",
        "list as key": "? [a]\n: b",
    }.items():
        yield make_input(name, text)
    for key, values in {
        "paper": [None, 5, "x", ["spars"], {}],
        "name": [None, 5, "", "a\nb", "x" * 5000, []],
        "base": [None, 5, "spars/features", [5], [None], [[]], [{"": 1}], [{".": 1}], [{5: 1}], ["/dev/null"], ["\0"]],
        "variants": [5, [], "x", {"a": 5}, {"a": None}, {"a": {}}, {5: [5]}],
        "grid": [None, 5, [], {}, {"env.threshold": 5}, {"env": [1]}, {5: [1]}, {"": [1]}, {"env..": [1]}, {"a": [{}]}],
        "seeds": [None, 5, "x", [], [-1], [1.5], [True], [2**32], [None], [[1]], [1, 1]],
        "metric": [5, "x", [], {}],
        "evaluation": [None, 5, [], "x", {"x": 1}, {5: 1}, {"split": 5}, {"cases": 5}, {"policies": "x"}],
        "zzz": [1],
    }.items():
        for n, value in enumerate(values):
            yield make_input(f"{key}.{n}.{repr(value)[:18]}", yaml.safe_dump({**SWEEP, key: value}))
    for n, word in enumerate(
        ("", "=", "a", "a=", "env=1", "env.threshold=[", "env.threshold=x", "=1", "..=1", "seed=1")
    ):
        yield make_input(f"set.{n}.{word}", base, "--set", word)
    lines = base.splitlines()
    for n in range(20):
        spoiled = list(lines)
        spoiled[rng.randrange(len(lines))] = "".join(rng.choice("{}[]:,&*!|>'\"%@`#-? 0aé") for _ in range(12))
        yield make_input(f"a line spoiled.{n}", "\n".join(spoiled))
