"""What the benchmarks share: figures with targets, clocks, memory, and an environment that does nothing."""

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from segarena.evaluation.machine import describe_machine
from segarena.files import replacing
from stable_baselines3.common.vec_env import VecEnv

CPU = torch.device("cpu")
Given = TypeVar("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Figure:
    """One row of the table: what was measured, in which unit, and what it should be."""

    what: str
    unit: str
    values: Sequence[float]
    target: float | None = None
    at_most: bool = False
    """The target is an upper bound."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """None without a target."""
        if self.target is None:
            return None
        return self.median <= self.target if self.at_most else self.median >= self.target

    def as_json(self) -> dict[str, Any]:
        spread = {"median": self.median, "min": min(self.values), "max": max(self.values), "met": self.met}
        return {**asdict(self), "values": list(self.values), **spread}

    def as_row(self) -> str:
        target = "–" if self.target is None else f"{'≤' if self.at_most else '≥'} {_short(self.target)} {self.unit}"
        met = {None: "–", True: "yes", False: "no"}[self.met]
        return f"| {self.what} | {_short(self.median)} {self.unit} | {target} | {met} |"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds(run: Callable[[], object], device: torch.device = CPU) -> float:
    """Wall time of `run()`, with what it leaves on the device."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def rates(run: Callable[[], object], steps: int, repeats: int, device: torch.device = CPU) -> list[float]:
    """Steps per second of `run()`, which makes `steps`, after one run to warm up."""
    seconds(run, device)
    return [steps / seconds(run, device) for _ in range(repeats)]


def apart(task: Callable[[Given], Result], given: Given) -> Result:
    """`task(given)` in a fresh process with as many threads as this one."""
    context, threads = multiprocessing.get_context("spawn"), (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, context, torch.set_num_threads, threads) as pool:
        return pool.submit(task, given).result()


def megabytes(name: str) -> float:
    """Memory of this process on Linux: VmRSS now, VmHWM at its peak (ru_maxrss would count the parent's, too)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


class NothingEnv(VecEnv):
    """An environment with the spaces of another: observations are zero, rewards too, and no episode ends."""

    def __init__(self, like: VecEnv) -> None:
        super().__init__(like.num_envs, like.observation_space, like.action_space)
        space = like.observation_space
        self.obs = np.zeros((self.num_envs, *space.shape), space.dtype)
        self.reward, self.done = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, np.bool_)

    def reset(self) -> Any:
        return self.obs

    def step_async(self, actions: Any) -> None:
        pass

    def step_wait(self) -> Any:
        return self.obs, self.reward, self.done, [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        pass

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [True] * self.num_envs


def write_json(
    path: Path, name: str, command: str, sizes: Mapping[str, Any], figures: Mapping[str, Sequence[Figure]]
) -> None:
    """Keep what was measured, and on what."""
    result = {
        "id": name,
        "command": command,
        "machine": {**describe_machine(), "threads": torch.get_num_threads()},
        "sizes": sizes,
        "figures": {item: [figure.as_json() for figure in rows] for item, rows in figures.items()},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
