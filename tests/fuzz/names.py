"""Names of trained policies and runs: what stands in file names, tables and figures."""

import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from .harness import Input
from .parts import MARK
from .trained import Trained


def inputs(rng: random.Random) -> Iterator[Input]:
    for paper, taken in {"spars": "score map mean", "rl4seg": "source only"}.items():
        has_policy = paper == "spars"  # the other run has 0 iterations: no row of its table has the run's name
        for name, must in {
            "plain": "accept",
            "": "refuse",
            "!!!": "accept",
            "\N{ANATOMICAL HEART}": "accept",
            r"$\frac$": "accept",
            "cost $5 and $6": "accept",
            "a | b": "accept",
            "two\nlines": "refuse",
            "tab\tand \x07 bell": "refuse",
            "n" * 400: "refuse",
            "n" * 100: "accept",
            "\N{GREEK SMALL LETTER TAU} \N{LATIN SMALL LETTER E WITH ACUTE}": "accept",
            "../../x": "accept",
            **dict.fromkeys(("Random", taken, taken.upper()), "refuse" if has_policy else "accept"),
            f"`touch {MARK}`": "accept",
        }.items():

            def make(folder: Path, paper: str = paper, name: str = name) -> list[str]:
                run = Trained.copy(paper, folder)
                config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
                (run / "config.yaml").write_text(yaml.safe_dump({**config, "name": name}), encoding="utf-8")
                return ["evaluate", "--run", str(run)]

            yield Input(f"names/{paper}.{name[:20]!r} ({len(name)})", make, must, ("name",))
