"""The groups of inputs by name, and the part of them that the tests run."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from . import (
    attack_result,
    camus,
    checkpoint,
    configuration,
    dataset,
    decathlon,
    names,
    nifti,
    plane,
    published,
    result,
    run_files,
    stage,
    sweep,
    weights,
    xray,
)
from .harness import Input

GROUPS: dict[str, Callable[[random.Random], Iterator[Input]]] = {
    "nifti": nifti.inputs,
    "dataset": dataset.inputs,
    "decathlon": decathlon.inputs,
    "camus": camus.inputs,
    "plane": plane.inputs,
    "safetensors": weights.inputs,
    "checkpoint": checkpoint.inputs,
    "run": run_files.inputs,
    "yaml": configuration.inputs,
    "result": result.inputs,
    "attack_result": attack_result.inputs,
    "stage": stage.inputs,
    "sweep": sweep.inputs,
    "names": names.inputs,
    "xray": xray.inputs,
    "published": published.inputs,
}
ONCE_FAILED = frozenset((Path(__file__).parent / "once_failed.txt").read_text(encoding="utf-8").splitlines())
"""Of each kind of fault that a reader once had, the name of an input of seed 0."""


def inputs(group: str, seed: int) -> list[Input]:
    """All inputs of a group."""
    found = list(GROUPS[group](random.Random(f"{seed}/{group}")))
    assert len({one.name for one in found}) == len(found), f"two inputs of the group {group} have one name"
    return found


def sample(everyone: list[Input], number: int) -> list[Input]:
    """Those inputs of a group that are in `ONCE_FAILED`, and `number` others, evenly spread."""
    others = [one for one in everyone if one.name not in ONCE_FAILED]
    chosen = {one.name for one in others[:: max(1, len(others) // number)][:number]}
    return [one for one in everyone if one.name in ONCE_FAILED or one.name in chosen]
