"""How fast SPARS plays, learns and scores: each figure against its target (paper: SPARS, sections 11.1 to 11.5).

`python benchmarks/spars_speed.py` prints a table and writes a JSON file. A step is one move in one episode slot. Every
figure is the median of several repeats after a warm-up; both sides of a ratio run alternately. Scores are the oracle's
(the share of the tumour inside the window), so that no trained weights are needed; features come from a classifier with
random weights, which costs what a trained one costs. PyTorch's number of threads is left alone. Memory needs Linux.
"""

import argparse
import json
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from segarena.agents.policies import PolicyName, policy_arguments
from segarena.agents.self_play import SelfPlay
from segarena.agents.training import PPOConfig
from segarena.classifiers.presence import PACKAGED, DensePresenceNet, load_presence, save_presence
from segarena.datasets.lattice import Triple, WindowLattice
from segarena.datasets.lesions import TUMOUR
from segarena.datasets.liver_ct import HU_WINDOW, LiverDataConfig, load_liver_cases
from segarena.datasets.liver_phantom import liver_phantom
from segarena.envs.faces import LearnerEnv
from segarena.envs.spars import RULES, SparsEnv
from segarena.evaluation.machine import describe_machine
from segarena.files import replacing
from segarena.rewards.presence import ScoreTable
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

RELEASED_STEPS_PER_S = 1 / 7.3
"""The released environment with the paper's classifier: 7.3 s a step, measured on two CPU cores."""
RUN = 320_000
"""Environment steps of the paper's training."""
N = 64
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Grid:
    """A working grid and its window, in voxels."""

    name: str
    shape: Triple
    window: Triple


PHANTOM = Grid("phantom grid", (64, 64, 48), (16, 16, 8))


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    full: Grid = Grid("full grid", (256, 256, 180), (48, 48, 24))
    ct: Triple = (512, 512, 200)
    """Voxels of the CT that is prepared."""
    repeats: int = 7
    moves: int = 2000
    """Moves of all N slots per repeat."""
    single_steps: int = 5000
    ppo_steps: int = 20_480
    """Steps of PPO per repeat."""
    cnn_steps: int = 16_384
    memory_steps: int = RUN
    episodes: int = 8
    """Episodes whose Dice is computed twice."""


QUICK = Sizes(Grid("small grid", (96, 96, 60), (24, 24, 12)), (96, 96, 60), 2, 100, 200, 2048, 2048, 20_480, 3)


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


@dataclass(frozen=True)
class Bench:
    """The measurements; each gives one or more figures."""

    sizes: Sizes
    device: torch.device
    folder: str
    """Temporary: caches and the random weights."""

    def game(self, grid: Grid, **settings: Any) -> SparsEnv:
        """A game on two phantoms on `grid`, on the CPU unless said otherwise."""
        weights = Path(self.folder) / f"{grid.name}.safetensors"
        if not weights.exists():
            torch.manual_seed(0)
            save_presence(weights, DensePresenceNet(HU_WINDOW, grid.window), {})
        chosen = {
            "cases": ["phantom_02000", "phantom_02001"],
            "grid_shape": grid.shape,
            "window_size": grid.window,
            "score_source": "oracle_fraction",
            "classifier": str(weights),
            "cache_dir": self.folder,
            "num_envs": N,
            "device": CPU,
            "eval_dice": False,
        }
        game = SparsEnv(**{**chosen, **settings})
        game.seed(range(game.num_envs))
        game.reset()
        return game

    # -- steps -----------------------------------------------------------------------------------------------------

    def raw_steps(self, num_envs: int = N, target: float = 300_000, device: torch.device = CPU) -> list[Figure]:
        """Moves, and new episodes where one ended; nothing is observed."""
        figures = []
        for grid in (PHANTOM, self.sizes.full):
            game = self.game(grid, opponent="random", num_envs=num_envs, device=device)
            actions = torch.randint(game.n_moves, (self.sizes.moves, num_envs), device=device)

            def play(game: SparsEnv = game, actions: torch.Tensor = actions) -> None:
                for action in actions:
                    _, terminated, truncated = game.step(action)
                    over = (terminated | truncated).nonzero().flatten()
                    if len(over):
                        game.reset(over)

            what = f"steps without observations, N={num_envs}, {grid.name}, {device.type}"
            values = rates(play, self.sizes.moves * num_envs, self.sizes.repeats, device)
            figures += [Figure(what, "steps/s", values, target)]
            if num_envs == N:
                figures.append(_to_released(figures[-1]))
        return figures

    def observed_steps(self) -> list[Figure]:
        """Moves with automatic reset and an observation of every slot."""
        figures = []
        for grid in (PHANTOM, self.sizes.full):
            game = self.game(grid, opponent="random", obs_mode="features")
            actions = torch.randint(game.n_moves, (self.sizes.moves, N))

            def play(game: SparsEnv = game, actions: torch.Tensor = actions) -> None:
                for action in actions:
                    game.advance(action)

            values = rates(play, self.sizes.moves * N, self.sizes.repeats)
            figures.append(Figure(f"steps with features, N={N}, {grid.name}", "steps/s", values, 100_000))
        return figures

    def single_steps(self) -> list[Figure]:
        """`gym.make` with its default arguments: two windows observed, Dice at the end of every episode."""
        scores = {} if PACKAGED.exists() else {"score_source": "oracle_fraction"}
        env = gym.make("SPARS-LiverCT-v0", device="cpu", cache_dir=self.folder, **scores)
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(self.sizes.single_steps)]
        env.reset(seed=0)
        episodes = 0

        def play() -> None:
            nonlocal episodes
            for action in actions:
                *_, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
                    episodes += 1

        values = rates(play, len(actions), self.sizes.repeats)
        length = len(actions) * (self.sizes.repeats + 1) / max(1, episodes)
        details = {"scores": scores.get("score_source", "packaged classifier"), "steps_per_episode": round(length, 1)}
        figure = Figure("one gym.make environment, two_window", "steps/s", values, 5_000, details=details)
        return [figure, _to_released(figure)]

    # -- learning --------------------------------------------------------------------------------------------------

    def ppo_ratio(self) -> list[Figure]:
        """PPO on SPARS, with self-play, against the same PPO on an environment that does nothing."""
        env = LearnerEnv(self.game(PHANTOM, obs_mode="features"))
        learners = {"ours": Learner(env, "feature_mlp", CPU), "nothing": Learner(Nothing(env), "feature_mlp", CPU)}
        speed: dict[str, list[float]] = {name: [] for name in learners}
        for repeat in range(self.sizes.repeats + 1):
            for name, learner in learners.items():
                steps = self.sizes.ppo_steps
                value = steps / seconds(lambda play=learner, steps=steps: play(steps))
                if repeat:  # the first is the warm-up
                    speed[name].append(value)
        ratio = [ours / nothing for ours, nothing in zip(speed["ours"], speed["nothing"], strict=True)]
        return [
            Figure(f"PPO with features and self-play, N={N}", "steps/s", speed["ours"]),
            Figure("the same PPO on an environment that does nothing", "steps/s", speed["nothing"]),
            Figure("ratio of the two", "x", ratio, 0.5),
        ]

    def memory_of_training(self) -> list[Figure]:
        """Memory of a fresh process over a whole training."""
        self.game(PHANTOM, obs_mode="features")  # fills the cache
        steps, megabytes = _apart(_train_and_watch, self)
        grown = [b - a for a, b in zip(megabytes, megabytes[1:], strict=False)]
        slope = 1e5 * float(np.polyfit(steps, megabytes, 1)[0])
        details = {"steps": steps, "megabytes": megabytes, "largest_growth_per_tenth": max(grown)}
        return [
            Figure(f"memory at 10 % of {steps[-1]:,} steps", "MB", megabytes[:1]),
            Figure(f"memory at 100 % of {steps[-1]:,} steps", "MB", megabytes[-1:]),
            Figure("growth between the two", "MB", [megabytes[-1] - megabytes[0]], 16, True, details),
            Figure("slope of memory", "MB per 100,000 steps", [slope]),
        ]

    # -- scores and masks ------------------------------------------------------------------------------------------

    def score_volume(self) -> list[Figure]:
        """All windows of one volume, scored by the dense engine in a fresh process each time."""
        measured = [_apart(_score_volume, self) for _ in range(min(3, self.sizes.repeats))]
        times, peaks, grown = ([row[k] for row in measured] for k in range(3))
        name = f"score volume, {self.sizes.full.name}"
        return [
            Figure(f"{name}: time", "s", times, 60, True),
            Figure(f"{name}: peak memory of the process", "GB", peaks, 6, True),
            Figure(f"{name}: of which scoring", "GB", grown),
        ]

    def dice(self) -> list[Figure]:
        """Dice at an episode's end from blocks and from voxels, of the same windows; greedy play from anywhere."""
        grid, episodes = self.sizes.full, self.sizes.episodes
        game = self.game(grid, num_envs=episodes, start="random_lattice", threshold=1.0)
        places, scores = [], []
        over = torch.zeros(episodes, dtype=torch.bool)
        while not over.any():  # a score never exceeds 1: all end together
            _, _, over = game.step(RULES["greedy"](game, 0))
            places.append(game.at[0])
            scores.append(game.scores[0])
        at, painted = torch.stack(places, dim=1), torch.stack(scores, dim=1)  # [K, T]
        corners, theta = game.lattice.corners(), game.config.mask_threshold

        def by_voxels(row: int) -> float:
            painting = torch.zeros(grid.shape, dtype=torch.float64)
            for (x, y, z), score in zip(corners[at[row]].tolist(), painted[row].tolist(), strict=True):
                painting[x : x + grid.window[0], y : y + grid.window[1], z : z + grid.window[2]] += score
            mask, label = painting > theta, game.cases[int(game.case[row])].label
            assert label is not None
            truth = label == TUMOUR
            both = int(mask.sum() + truth.sum())
            return 2 * int((mask & truth).sum()) / both if both else 1.0

        values = [(game.dice(row), by_voxels(row)) for row in range(episodes)]  # and the warm-up
        slow = [seconds(lambda row=row: by_voxels(row)) for row in range(episodes)]
        fast = [seconds(lambda row=row: game.dice(row)) for row in range(episodes)]
        different = sum(blocks != voxels for blocks, voxels in values)
        details = {"block_dice": [b for b, _ in values], "voxel_dice": [v for _, v in values]}
        return [
            Figure(f"block Dice that differs from voxel Dice, {grid.name}", "episodes", [different], 0, True, details),
            Figure("block Dice", "ms", [1e3 * value for value in fast]),
            Figure("voxel Dice", "ms", [1e3 * value for value in slow]),
            Figure("ratio of the two", "x", [s / f for s, f in zip(slow, fast, strict=True)]),
        ]

    def preparation(self) -> list[Figure]:
        """One CT from its NIfTI file to the working grid: a phantom, enlarged, with noise, of the size of a real CT."""
        folder = Path(self.folder) / "Task03_Liver"
        sample = liver_phantom(0)
        assert sample.label is not None
        image = F.interpolate(sample.image[None], self.sizes.ct, mode="trilinear")[0, 0]
        image += 10 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        label = F.interpolate(sample.label[None, None].float(), self.sizes.ct)[0, 0]
        for kind, volume, dtype in (("imagesTr", image, np.int16), ("labelsTr", label, np.uint8)):
            (folder / kind).mkdir(parents=True)
            nib.save(nib.Nifti1Image(volume.numpy().astype(dtype), np.eye(4)), folder / kind / "liver_0.nii.gz")
        files = [{"image": "./imagesTr/liver_0.nii.gz", "label": "./labelsTr/liver_0.nii.gz"}]
        (folder / "dataset.json").write_text(json.dumps({"training": files}), encoding="utf-8")
        times = []
        for repeat in range(min(5, self.sizes.repeats)):
            config = LiverDataConfig(
                data=str(folder), split="all", grid_shape=self.sizes.full.shape, cache_dir=f"{self.folder}/{repeat}"
            )
            times.append(seconds(lambda config=config: load_liver_cases(config)))
        size = sum(file.stat().st_size for file in folder.rglob("*.gz")) / 1e6
        return [Figure("preparation of one CT", "s", times, 5, True, {"voxels": self.sizes.ct, "gzip_mb": size})]

    # -- section 11.5 ----------------------------------------------------------------------------------------------

    def cuda(self) -> list[Figure]:
        """What is expected of an H200-class GPU."""
        device, full, repeats = self.device, self.sizes.full, self.sizes.repeats
        torch.cuda.reset_peak_memory_stats(device)
        lattice = WindowLattice(full.shape, full.window)
        (case,) = load_liver_cases(LiverDataConfig(cases=["phantom_02000"], grid_shape=full.shape))
        torch.manual_seed(0)
        net = (load_presence() if PACKAGED.exists() else DensePresenceNet(HU_WINDOW, full.window)).eval()
        exact = net.score_lattice(case.image, lattice)[0]  # float32 on the CPU
        net, volume = net.to(device), case.image.to(device)
        difference = float((net.score_lattice(volume, lattice)[0].cpu() - exact).abs().max())
        times = [seconds(lambda: net.score_lattice(volume, lattice), device) for _ in range(repeats + 3)][3:]
        weights = {"weights": "packaged" if PACKAGED.exists() else "random", "range": [*_range(exact)]}
        figures = [
            Figure(f"score volume, {full.name}, cuda", "ms", [1e3 * value for value in times], 50, True),
            Figure("largest |Δf|, bfloat16 against float32", "", [difference], 5e-3, True, weights),
        ]
        for place in (CPU, device):
            figures += self.raw_steps(1024, 1e6, place)
        kinds: list[tuple[str, PolicyName, int, float]] = [
            ("features", "feature_mlp", self.sizes.ppo_steps, 60),
            ("two_window", "window_cnn", self.sizes.cnn_steps, 360),
        ]
        for mode, policy, steps, target in kinds:
            learner = Learner(LearnerEnv(self.game(full, obs_mode=mode, device=device)), policy, device)
            speed = rates(lambda play=learner, steps=steps: play(steps), steps, repeats, device)
            what, details = f"{RUN:,} steps of PPO, {mode}, N={N}, cuda", {"extrapolated_from": steps * repeats}
            figures.append(Figure(what, "s", [RUN / value for value in speed], target, True, details))
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        return [*figures, Figure("peak GPU memory of all this", "GB", [peak])]


class Nothing(VecEnv):
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


class Learner:
    """PPO as `segarena-rl train` sets it up, with self-play where somebody competes; call it with a number of steps."""

    def __init__(self, env: VecEnv, policy: PolicyName, device: torch.device) -> None:
        arguments = {**policy_arguments(policy, env.observation_space), **PPOConfig().learner()}
        self.model = PPO(env=env, seed=0, device=device, **arguments)
        self.callbacks: list[BaseCallback] = [SelfPlay(env.game)] if isinstance(env, LearnerEnv) else []

    def __call__(self, steps: int, *callbacks: BaseCallback) -> None:
        self.model.learn(steps, callback=[*self.callbacks, *callbacks], reset_num_timesteps=False)


# -- in a process of their own -------------------------------------------------------------------------------------


def _apart(task: Callable[[Bench], Any], bench: Bench) -> Any:
    """`task(bench)` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, bench).result()


def _megabytes(name: str) -> float:
    """Memory of this process: VmRSS now, VmHWM at its peak. (ru_maxrss also counts the parent that forked it.)"""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def _score_volume(bench: Bench) -> tuple[float, float, float]:
    """Seconds, peak and growth in GB."""
    full = bench.sizes.full
    cases = load_liver_cases(LiverDataConfig(cases=["phantom_02000"], grid_shape=full.shape))
    net, lattice = DensePresenceNet(HU_WINDOW, full.window).eval(), WindowLattice(full.shape, full.window)
    before = _megabytes("VmRSS")
    with tempfile.TemporaryDirectory() as cache:
        spent = seconds(lambda: ScoreTable(cases, lattice, net, engine="dense", features=True, cache_dir=cache))
    peak = _megabytes("VmHWM")
    return spent, peak / 1e3, (peak - before) / 1e3


class _Memory(BaseCallback):
    """Megabytes after every tenth of a training."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total, self.steps, self.megabytes = total, list[int](), list[float]()

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.total * (len(self.steps) + 1) / 10:
            self.steps.append(self.num_timesteps)
            self.megabytes.append(_megabytes("VmRSS"))
        return True


def _train_and_watch(bench: Bench) -> tuple[list[int], list[float]]:
    memory = _Memory(bench.sizes.memory_steps)
    Learner(LearnerEnv(bench.game(PHANTOM, obs_mode="features")), "feature_mlp", CPU)(bench.sizes.memory_steps, memory)
    return memory.steps, memory.megabytes


# -- the command ---------------------------------------------------------------------------------------------------


def _to_released(figure: Figure) -> Figure:
    values = [value / RELEASED_STEPS_PER_S for value in figure.values]
    return Figure("the same against the released environment (7.3 s a step)", "x", values)


def _range(values: torch.Tensor) -> Iterable[float]:
    return float(values.min()), float(values.max())


def main() -> None:
    names = ["raw_steps", "observed_steps", "single_steps", "ppo_ratio", "score_volume", "memory_of_training", "dice"]
    names += ["preparation", "cuda"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: also what is expected of a GPU")
    parser.add_argument("--out", type=Path, help="JSON file; default results/spars_speed_<device>.json beside this")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how fast")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some of the measurements")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and this machine has none")
    out = given.out or Path(__file__).parent / "results" / f"spars_speed_{given.device}.json"
    logging.disable(logging.WARNING)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(QUICK if given.quick else Sizes(), torch.device(given.device), folder)
        print("| what | figure | target | met |\n|---|---|---|---|")
        for name in given.only:
            if name != "cuda" or given.device == "cuda":
                figures[name] = getattr(bench, name)()
                print("\n".join(figure.as_row() for figure in figures[name]), flush=True)
    options = [f"--device {given.device}", *(["--quick"] if given.quick else [])]
    options += [f"--only {' '.join(given.only)}"] if given.only != names else []
    result = {
        "id": f"spars-speed-{given.device}",
        "command": f"python benchmarks/spars_speed.py {' '.join(options)}",
        "machine": {**describe_machine(), "threads": torch.get_num_threads()},
        "sizes": asdict(bench.sizes),
        "figures": {name: [figure.as_json() for figure in rows] for name, rows in figures.items()},
    }
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
