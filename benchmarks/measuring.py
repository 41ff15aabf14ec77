"""Tools of the benchmarks: figures with targets, clocks, memory, a command line, an environment that does nothing."""

import argparse
import json
import logging
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from segarena.common.files import replacing
from segarena.envs.core import BatchedEnv, Frame
from segarena.evaluation.machine import describe_machine
from torch.utils._pytree import tree_map

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


def repeated(run: Callable[[], object], repeats: int, device: torch.device = CPU) -> list[float]:
    """Seconds of each of some runs, after one to warm up."""
    seconds(run, device)
    return [seconds(run, device) for _ in range(repeats)]


def alternately(
    sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device = CPU
) -> dict[str, list[float]]:
    """Seconds of every side, one after the other in each repeat, after one turn of all to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            value = seconds(run, device)
            if repeat:
                spent[name].append(value)
    return spent


def worked(
    sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device = CPU
) -> dict[str, list[float]]:
    """As `alternately`; on a CPU seconds of this process, in which other programs do not count."""
    if device.type == "cuda":
        return alternately(sides, repeats, device)
    spent: dict[str, list[float]] = {name: [] for name in sides}
    alternately({name: clocked(run, spent[name]) for name, run in sides.items()}, repeats)
    return {name: values[1:] for name, values in spent.items()}


def clocked(run: Callable[[], object], seconds_of: list[float]) -> Callable[[], None]:
    """`run`, each call of which adds the CPU seconds of this process to the list."""

    def timed() -> None:
        start = time.process_time()
        run()
        seconds_of.append(time.process_time() - start)

    return timed


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Repeat by repeat, so that what slows down the machine for a while slows down both."""
    return [a / b for a, b in zip(above, below, strict=True)]


class Parts(defaultdict[str, float]):
    """Seconds of each part of a work: `with parts("network"): ...` adds to them, and synchronises with the GPU."""

    def __init__(self, device: torch.device = CPU) -> None:
        super().__init__(float)
        self.device = device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self[name] += time.perf_counter() - start

    def timed(self, name: str, run: Callable[[Given], Result]) -> Callable[[Given], Result]:
        """`run`, each call of which adds to part `name`."""

        def timed(given: Given) -> Result:
            with self(name):
                return run(given)

        return timed


def apart(task: Callable[[Given], Result], given: Given) -> Result:
    """`task(given)` in a fresh process with as many threads as this one."""
    context, threads = multiprocessing.get_context("spawn"), (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, context, torch.set_num_threads, threads) as pool:
        return pool.submit(task, given).result()


def megabytes(name: str) -> float:
    """Memory of this process on Linux: VmRSS now, VmHWM at its peak (ru_maxrss would count the parent's, too)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


class NothingEnv(BatchedEnv):
    """An environment with the spaces of another: observations are zero, rewards too, and no episode ends."""

    def __init__(self, like: BatchedEnv) -> None:
        super().__init__(num_envs=like.num_envs, device=like.device, horizon=2**62)
        self.single_observation_space = like.single_observation_space
        self.single_action_space = like.single_action_space
        self.seen = tree_map(torch.zeros_like, like.observe())
        self.nobody = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self.nothing = torch.zeros(self.num_envs, device=self.device)

    def _reset(self, env_ids: torch.Tensor, options: Mapping[str, Any]) -> None:
        pass

    def _step(self, actions: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {"reward": self.nothing}, self.nobody

    def observe(self, env_ids: torch.Tensor | None = None) -> Any:
        return self.seen

    def _render_frame(self, env_id: int) -> Frame:
        return np.zeros((1, 1, 3), np.uint8)


# -- the command ---------------------------------------------------------------------------------------------------


def command_line(doc: str | None, name: str, items: Sequence[str]) -> argparse.ArgumentParser:
    """Command line of every benchmark."""
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=(doc or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: also the targets of a GPU")
    parser.add_argument("--out", type=Path, help=f"JSON file; default results/{name}_<device>.json beside this")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how fast")
    parser.add_argument("--only", nargs="+", choices=items, default=items, help="some of the measurements")
    parser.add_argument("--threads", type=int, help="number of PyTorch's threads; by default its own choice")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parsed command line; also sets the number of PyTorch's threads and hides warnings."""
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and this machine has none")
    logging.disable(logging.WARNING)
    return given


def measure(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    sizes: Mapping[str, Any],
    items: Mapping[str, Callable[[], list[Figure]]],
) -> None:
    """Print the table of the chosen items as it grows, and keep it."""
    name = parser.prog.removesuffix(".py")
    print("| what | figure | target | met |\n|---|---|---|---|")
    figures = {}
    for item in given.only:
        if item in items:
            figures[item] = items[item]()
            print("\n".join(figure.as_row() for figure in figures[item]), flush=True)
    options = [f"--device {given.device}"]
    for key, value in vars(given).items():
        if key not in ("device", "out") and value != parser.get_default(key):
            words = [] if value is True else value if isinstance(value, list) else [value]
            options.append(" ".join(map(str, (f"--{key}", *words))))
    out = given.out or Path(__file__).parent / "results" / f"{name}_{given.device}.json"
    command = f"python benchmarks/{name}.py {' '.join(options)}"
    write_json(out, f"{name.replace('_', '-')}-{given.device}", command, sizes, figures)


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
