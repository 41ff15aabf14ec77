"""Speed of SPARS: playing, learning, scoring; each figure against its target (docs/spars.md, Method 14).

`python benchmarks/spars_speed.py` prints a table and writes a JSON file. A step is one move in one environment. Every
figure is the median of several repeats after a warm-up; both sides of a ratio run alternately. Scores are the oracle's
(the share of the tumour inside the window), so that no trained weights are needed; features come from a classifier with
random weights, which costs what a trained one costs. Only the single environment uses the packaged classifier, if it
is there. PyTorch chooses its number of threads unless --threads does. Memory is measured on Linux only.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from measuring import (
    CPU,
    Figure,
    NothingEnv,
    alternately,
    apart,
    clocked,
    command_line,
    measure,
    megabytes,
    parsed,
    rates,
    ratios,
    repeated,
    seconds,
)
from segarena.agents.ppo import Learner, PPOConfig
from segarena.agents.spars.policies import PolicyName, policy_arguments
from segarena.agents.spars.self_play import SelfPlay
from segarena.agents.spars.values import ValueIteration
from segarena.classifiers.presence import PACKAGED, DensePresenceNet, load_presence
from segarena.common.networks import save_network
from segarena.datasets.liver.cases import HU_WINDOW, LiverDataConfig, liver_case_ids, load_liver_cases
from segarena.datasets.liver.lattice import Triple, WindowLattice
from segarena.datasets.liver.lesions import TUMOUR
from segarena.datasets.liver.phantom import liver_phantom
from segarena.envs.adapters import BatchEnv, of_env
from segarena.envs.core import BatchedEnv
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import SparsConfig
from segarena.envs.spars_painting import Painting
from segarena.envs.spars_rules import RULES
from segarena.rewards.presence import ScoreTable
from segarena.segmenters.score_prior import Posterior, ScorePrior
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

RELEASED_STEPS_PER_S = 1 / 7.3
"""The released environment with the paper's classifier: 7.3 s a step, measured on two CPU cores."""
RUN = 320_000
"""Environment steps of the paper's training."""
N = 64
ITEMS = [
    *("make_vec", "raw_steps", "observed_steps", "single_steps", "ppo_ratio", "ppo_features", "score_volume"),
    *("memory_of_training", "lattice_share", "dice", "second_environment", "preparation", "search", "values"),
    *("engines", "cuda"),
]


@dataclass(frozen=True)
class Grid:
    """A working grid and its window, in voxels."""

    name: str
    shape: Triple
    window: Triple


PHANTOM = Grid("phantom grid", (64, 64, 48), (16, 16, 8))


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    full: Grid = Grid("full grid", (256, 256, 180), (48, 48, 24))
    ct: Triple = (512, 512, 200)
    """Voxels of the CT that is prepared."""
    repeats: int = 7
    moves: int = 2000
    """Moves of all N environments per repeat."""
    single_steps: int = 5000
    ppo_steps: int = 20_480
    """Steps of PPO per repeat."""
    cnn_steps: int = 16_384
    memory_steps: int = RUN
    episodes: int = 8
    """Episodes whose Dice is computed twice."""
    pool: int = 16
    """Phantoms, of the 16 that an environment has by default."""
    many: int = 512
    """Environments of the largest training."""
    engines: Grid = PHANTOM
    """Grid of the windows that are scored in both ways."""


QUICK = Sizes(
    full=Grid("small grid", (96, 96, 60), (24, 24, 12)),
    ct=(96, 96, 60),
    repeats=1,
    moves=50,
    single_steps=100,
    ppo_steps=2048,
    cnn_steps=2048,
    memory_steps=8192,
    episodes=3,
    pool=1,
    many=128,
    engines=Grid("tiny grid", (32, 32, 24), (16, 16, 8)),
)


@dataclass(frozen=True)
class Bench:
    """The measurements; each gives one or more figures."""

    sizes: Sizes
    device: torch.device
    folder: str
    """Temporary: caches and the random weights."""

    def env(self, grid: Grid, **settings: Any) -> SparsEnv:
        """An environment on two phantoms on `grid`, on the CPU unless said otherwise."""
        chosen = {
            "cases": ["phantom_02000", "phantom_02001"],
            "grid_shape": grid.shape,
            "window_size": grid.window,
            "score_source": "oracle_fraction",
            "classifier": self.weights(grid),
            "cache_dir": self.folder,
            "num_envs": N,
            "device": CPU,
            "eval_dice": False,
        }
        env = SparsEnv(**{**chosen, **settings})
        env.seed(range(env.num_envs))
        env.reset()
        return env

    @property
    def cases(self) -> list[str]:
        """Names of the phantoms that an environment has by default, or of the first of them."""
        return liver_case_ids(SparsConfig())[: self.sizes.pool]

    def weights(self, grid: Grid) -> str:
        """A classifier with random weights."""
        file = Path(self.folder) / f"{grid.name}.safetensors"
        if not file.exists():
            torch.manual_seed(0)
            save_network(file, DensePresenceNet(HU_WINDOW, grid.window))
        return str(file)

    # -- steps -----------------------------------------------------------------------------------------------------

    def make_vec(self) -> list[Figure]:
        """What a user gets: `gym.make_vec` and NumPy arrays; packaged classifier, if it is there, on 16 phantoms.

        The plain side counts Dice, and tells the ends of episodes, one after the other. CPU seconds are of this
        process: on a machine that others use, steps per CPU second say more than steps per second.
        """
        scores = {} if PACKAGED.exists() else {"score_source": "oracle_fraction"}
        settings = {"num_envs": N, "obs_mode": "features", "device": "cpu", "cases": self.cases, **scores}
        settings["cache_dir"] = self.folder
        made = {
            "defaults": gym.make_vec("SPARS-LiverCT-v0", **settings),
            "with Dice": gym.make_vec("SPARS-LiverCT-v0", eval_dice=True, **settings),
            "with Dice, plainly": PlainBatchEnv(SparsEnv(**settings)),
        }
        actions = np.random.default_rng(0).integers(0, 6, (self.sizes.moves, N))
        work: dict[str, list[float]] = {name: [] for name in made}

        def play(name: str) -> None:
            start = time.process_time()
            for action in actions:
                made[name].step(action)
            work[name].append(time.process_time() - start)

        for env in made.values():
            env.reset(seed=0)
        spent = alternately({name: lambda name=name: play(name) for name in made}, self.sizes.repeats)
        steps = self.sizes.moves * N
        speed = {name: [steps / value for value in values] for name, values in spent.items()}
        figures = []
        for name, target in (("defaults", 150_000), ("with Dice", None), ("with Dice, plainly", None)):
            what, cpu = f"gym.make_vec, features, N={N}, {name}", [steps / value for value in work[name][1:]]
            figures.append(Figure(what, "steps/s", speed[name], target, details={"steps_per_cpu_second": cpu}))
            figures.append(Figure(f"{what}: per CPU second", "steps/s", cpu))
        return [
            *figures,
            Figure("ratio of defaults to plain Dice", "x", ratios(speed["defaults"], speed["with Dice, plainly"])),
            Figure("ratio of Dice to plain Dice", "x", ratios(speed["with Dice"], speed["with Dice, plainly"])),
        ]

    def second_environment(self) -> list[Figure]:
        """A further environment on phantoms that this process has drawn."""
        make = partial(gym.make, "SPARS-LiverCT-v0", cases=self.cases, cache_dir=self.folder)
        make()
        times = [seconds(make) for _ in range(self.sizes.repeats)]
        return [Figure("gym.make, second environment in a process", "s", times, 0.05, True)]

    def raw_steps(self, num_envs: int = N, target: float = 300_000, device: torch.device = CPU) -> list[Figure]:
        """Moves, and new episodes where one ended; nothing is observed."""
        figures = []
        for grid in (PHANTOM, self.sizes.full):
            env = self.env(grid, opponent="random", num_envs=num_envs, device=device)
            actions = torch.randint(env.n_moves, (self.sizes.moves, num_envs), device=device)

            def play(env: SparsEnv = env, actions: torch.Tensor = actions) -> None:
                for action in actions:
                    _, terminated, truncated = env.step(action)
                    over = (terminated | truncated).nonzero().flatten()
                    if len(over):
                        env.reset(over)

            what = f"steps without observations, N={num_envs}, {grid.name}, {device.type}"
            values = rates(play, self.sizes.moves * num_envs, self.sizes.repeats, device)
            figures += [Figure(what, "steps/s", values, target)]
            if num_envs == N:
                figures.append(_to_released(figures[-1]))
        return figures

    def observed_steps(self) -> list[Figure]:
        """Moves with automatic reset and an observation of every environment."""
        figures = []
        for grid in (PHANTOM, self.sizes.full):
            env = self.env(grid, opponent="random", obs_mode="features")
            actions = torch.randint(env.n_moves, (self.sizes.moves, N))

            def play(env: SparsEnv = env, actions: torch.Tensor = actions) -> None:
                for action in actions:
                    env.advance(action)

            values = rates(play, self.sizes.moves * N, self.sizes.repeats)
            figures.append(Figure(f"steps with features, N={N}, {grid.name}", "steps/s", values, 100_000))
        return figures

    def single_steps(self) -> list[Figure]:
        """`gym.make` with its default arguments: two windows observed, Dice at the end of every episode.

        How long an episode lasts decides how often Dice is computed, and the classifier decides that: so it is measured
        with the packaged one, if it is there, and with the oracle.
        """
        figures = []
        for scores in (*(["packaged classifier"] if PACKAGED.exists() else []), "oracle"):
            settings = {"score_source": "oracle_fraction"} if scores == "oracle" else {}
            env = gym.make("SPARS-LiverCT-v0", device="cpu", cases=self.cases, cache_dir=self.folder, **settings)
            env.action_space.seed(0)
            actions = [env.action_space.sample() for _ in range(self.sizes.single_steps)]
            env.reset(seed=0)
            ends: list[int] = []

            def play(env: Any = env, actions: list[Any] = actions, ends: list[int] = ends) -> None:
                for number, action in enumerate(actions):
                    *_, terminated, truncated, _ = env.step(action)
                    if terminated or truncated:
                        env.reset()
                        ends.append(number)

            values = rates(play, len(actions), self.sizes.repeats)
            length = len(actions) * (self.sizes.repeats + 1) / max(1, len(ends))
            what = f"one gym.make environment, two_window, {scores}, {length:.1f} steps per episode"
            figures.append(Figure(what, "steps/s", values, 5_000, details={"steps_per_episode": length}))
            figures.append(_to_released(figures[-1]))
        return figures

    # -- learning --------------------------------------------------------------------------------------------------

    def ppo_ratio(self) -> list[Figure]:
        """PPO on SPARS, with self-play, against the same PPO on an environment that does nothing."""
        env = self.env(PHANTOM, obs_mode="features")
        learners = {"ours": Training(env, "feature_mlp"), "nothing": Training(NothingEnv(env), "feature_mlp")}
        steps = self.sizes.ppo_steps
        sides = {name: lambda play=learner: play(steps) for name, learner in learners.items()}
        spent = alternately(sides, self.sizes.repeats)
        speed = {name: [steps / value for value in values] for name, values in spent.items()}
        return [
            Figure(f"PPO with features and self-play, N={N}", "steps/s", speed["ours"]),
            Figure("the same PPO on an environment that does nothing", "steps/s", speed["nothing"]),
            Figure("ratio of the two", "x", ratios(speed["ours"], speed["nothing"]), 0.5),
        ]

    def ppo_features(self) -> list[Figure]:
        """PPO with features and self-play, in 64 environments and in many.

        The same on an environment that does nothing, and by Stable-Baselines3's own PPO, which keeps its rollouts in
        NumPy arrays. In CPU seconds of this process, since others may use the machine.
        """
        figures = []
        for n in (N, self.sizes.many):
            env, other = (self.env(PHANTOM, obs_mode="features", num_envs=n) for _ in range(2))
            sides = {
                "": Training(env, "feature_mlp"),
                ", on an environment that does nothing": Training(NothingEnv(env), "feature_mlp"),
                ", rollouts by SB3": Training(other, "feature_mlp", plainly=True),
            }
            rollout = n * PPOConfig().n_steps
            steps = max(1, self.sizes.ppo_steps // rollout) * rollout
            spent: dict[str, list[float]] = {name: [] for name in sides}
            gradients: list[float] = []
            sides[""].model.train = clocked(sides[""].model.train, gradients)  # type: ignore[method-assign]
            alternately(
                {name: clocked(partial(side, steps), spent[name]) for name, side in sides.items()}, self.sizes.repeats
            )
            speed = {name: [steps / value for value in values[1:]] for name, values in spent.items()}
            what = f"PPO with features and self-play, N={n}"
            figures += [Figure(f"{what}{name}: per CPU second", "steps/s", values) for name, values in speed.items()]
            for name, target in ((", on an environment that does nothing", 0.6), (", rollouts by SB3", 1.3)):
                ratio = ratios(speed[""], speed[name])
                figures.append(Figure(f"ratio to that{name}", "x", ratio, target if n == self.sizes.many else None))
            share = [sum(gradients) / sum(spent[""])]
            figures.append(Figure(f"{what}: share of its gradient steps", "of CPU seconds", share))
        return figures

    def lattice_share(self) -> list[Figure]:
        """Windows that a whole training with lazy scores looks at, of all windows of its cases.

        The settings are those of `configs/spars/phantom.yaml`: random starts, whose candidates are scored too, τ = 0.95
        and self-play.
        """
        scores = {} if PACKAGED.exists() else {"score_source": "oracle_fraction", "classifier": self.weights(PHANTOM)}
        env = SparsEnv(
            num_envs=N,
            device="cpu",
            cases=self.cases,
            obs_mode="features",
            threshold=0.95,
            score_engine="lazy",
            eval_dice=False,
            cache_dir=self.folder,
            **scores,
        )
        seen = _Tenths(self.sizes.memory_steps, lambda: float((~env.table.scores.isnan()).float().mean()))
        Training(env, "feature_mlp")(self.sizes.memory_steps, seen)
        details = {"steps": seen.steps, "share": seen.values, "windows": env.table.scores.numel()}
        details["cases"] = len(env.cases)
        what = f"windows looked at in {seen.steps[-1]:,} lazy steps, N={N}, {len(env.cases)} phantoms"
        return [
            Figure(f"{what}: after a tenth", "of all", seen.values[:1]),
            Figure(f"{what}: at the end", "of all", seen.values[-1:], details=details),
        ]

    def memory_of_training(self) -> list[Figure]:
        """Memory of a fresh process over a whole training."""
        self.env(PHANTOM, obs_mode="features")  # fills the cache
        steps, used = apart(_train_and_watch, self)
        slope, details = 1e5 * float(np.polyfit(steps, used, 1)[0]), {"steps": steps, "megabytes": used}
        return [
            Figure(f"memory at 10 % of {steps[-1]:,} steps", "MB", used[:1]),
            Figure(f"memory at 100 % of {steps[-1]:,} steps", "MB", used[-1:]),
            Figure("growth between the two", "MB", [used[-1] - used[0]], 16, True, details),
            Figure("slope of memory", "MB per 100,000 steps", [slope]),
        ]

    # -- scores and masks ------------------------------------------------------------------------------------------

    def search(self) -> list[Figure]:
        """SPARS search, N=64: moves with observations, and the update of what is likely, window after window."""
        figures, moves = [], max(8, self.sizes.moves // 20)
        for n_agents in (1, 2):
            settings = {"profile": "search", "fill": "stationary", "opponent": "random", "horizon": 16}
            env = self.env(PHANTOM, n_agents=n_agents, **settings)
            actions = torch.randint(78, (moves, N))

            def play(env: SparsEnv = env, actions: torch.Tensor = actions) -> None:
                for action in actions:
                    env.advance(action)

            what = f"search steps, N={N}, {n_agents} agent{'s'[: n_agents - 1]}, 16 windows each"
            figures.append(Figure(what, "steps/s", rates(play, moves * N, self.sizes.repeats)))
        prior = ScorePrior(env.lattice.shape)
        posterior, ids = Posterior(prior, N, 32), torch.randint(prior.size, (32, N))

        def see() -> None:
            posterior.reset(torch.arange(N))
            for window in ids:
                posterior.see(window, torch.full((N,), 0.5))

        spent = [1e6 * value / (32 * N) for value in repeated(see, self.sizes.repeats)]
        return [*figures, Figure("Gaussian process: a window, mean of 32, 1,859 positions", "µs per env", spent)]

    def values(self) -> list[Figure]:
        """Exact values of one agent on one phantom, by value iteration."""
        env = self.env(PHANTOM, num_envs=1, n_agents=1, cases=["phantom_02000"], threshold=0.5, reward="score")
        spent = repeated(lambda: ValueIteration(env), self.sizes.repeats)
        return [Figure("value iteration, 1,859 positions, six moves", "s", spent)]

    def engines(self) -> list[Figure]:
        """All windows of a phantom by one forward, and window by window."""
        grid, repeats = self.sizes.engines, min(3, self.sizes.repeats)
        net = DensePresenceNet(HU_WINDOW, grid.window).eval()
        volume, lattice = torch.randint(256, grid.shape, dtype=torch.uint8), WindowLattice(grid.shape, grid.window)
        with torch.no_grad():
            spent = alternately(
                {
                    "dense": lambda: net.score_lattice(volume, lattice),
                    "sliding": lambda: net.slide(volume, lattice),
                },
                repeats,
            )
        what = f"scores of {lattice.size:,} windows"
        return [
            Figure(f"{what}, dense", "s", spent["dense"]),
            Figure(f"{what}, sliding", "s", spent["sliding"]),
            Figure("ratio of the two", "x", ratios(spent["sliding"], spent["dense"])),
        ]

    def score_volume(self) -> list[Figure]:
        """All windows of one volume, scored by the dense engine in a fresh process each time."""
        measured = [apart(_score_volume, self) for _ in range(min(3, self.sizes.repeats))]
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
        paint = {"reduce": "sum", "upsample": "blocks"}  # the paper's masks
        env = self.env(grid, num_envs=episodes, start="random_lattice", threshold=1.0, **paint)
        places, scores = [], []
        over = torch.zeros(episodes, dtype=torch.bool)
        while not over.any():  # a score never exceeds 1: all end together
            _, _, over = env.step(RULES["greedy"](env, 0))
            places.append(env.at[0])
            scores.append(env.scores[0])
        at, painted = torch.stack(places, dim=1), torch.stack(scores, dim=1)  # [K, T]
        corners, theta = env.lattice.corners(), env.config.mask_threshold
        truths = [case.label == TUMOUR for case in env.cases if case.label is not None]

        def by_voxels(row: int) -> float:
            painting = torch.zeros(grid.shape, dtype=torch.float64)
            for (x, y, z), score in zip(corners[at[row]].tolist(), painted[row].tolist(), strict=True):
                painting[x : x + grid.window[0], y : y + grid.window[1], z : z + grid.window[2]] += score
            mask, truth = painting > theta, truths[int(env.case[row])]
            both = int(mask.sum() + truth.sum())
            return 2 * int((mask & truth).sum()) / both if both else 1.0

        values = [(env.painting.dice(row), by_voxels(row)) for row in range(episodes)]  # and the warm-up
        slow = [seconds(lambda row=row: by_voxels(row)) for row in range(episodes)]
        fast = [seconds(lambda row=row: env.painting.dice(row)) for row in range(episodes)]
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

    # -- docs/spars.md, Method 14 ----------------------------------------------------------------------------------

    def cuda(self) -> list[Figure]:
        """Targets on an H200-class GPU."""
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
        weights = {
            "weights": "packaged" if PACKAGED.exists() else "random",
            "range": [float(exact.min()), float(exact.max())],
        }
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
            learner = Training(self.env(full, obs_mode=mode, device=device), policy)
            speed = rates(lambda play=learner, steps=steps: play(steps), steps, repeats, device)
            what, details = f"{RUN:,} steps of PPO, {mode}, N={N}, cuda", {"extrapolated_from": steps * repeats}
            figures.append(Figure(what, "s", [RUN / value for value in speed], target, True, details))
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        return [*figures, Figure("peak GPU memory of all this", "GB", [peak])]


class PlainPainting(Painting):
    """Counts the overlap of one episode after the other, each over the whole log."""

    def overlaps(
        self, at: torch.Tensor, scores: torch.Tensor, cases: Sequence[int], steps: int | None = None
    ) -> list[dict[str, float]]:
        alone = super().overlaps
        return [alone(a[None], s[None], [case])[0] for a, s, case in zip(at, scores, cases, strict=True)]


class PlainBatchEnv(BatchEnv):
    """Tells the end of one episode after the other, as Gymnasium's own vector environments do."""

    def __init__(self, env: SparsEnv) -> None:
        super().__init__(env)
        env.painting = PlainPainting(env)

    def _final(self, last: dict[str, Any], episode_info: Sequence[dict[str, Any]]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for k, (env_id, facts) in enumerate(zip(last["env_ids"].tolist(), episode_info, strict=True)):
            final = {"final_obs": of_env(last["obs"], k), "final_info": {**of_env(last["info"], k), **facts}}
            infos = self._add_info(infos, final, env_id)
        return infos


class Training:
    """PPO as `segarena-rl train` sets it up, with self-play where somebody competes; call it with a number of steps.

    plainly: by Stable-Baselines3's own PPO, whose rollouts are NumPy arrays.
    """

    def __init__(self, env: BatchedEnv, policy: PolicyName, *, plainly: bool = False, **settings: Any) -> None:
        ppo = PPOConfig(num_envs=env.num_envs, **settings)
        arguments = policy_arguments(policy, env.single_observation_space)
        if not plainly:
            arguments["policy_kwargs"] = ppo.policy_kwargs(arguments["policy_kwargs"])
        learner = PPO if plainly else Learner
        self.model = learner(env=LearnerEnv(env), seed=0, device=env.device, **arguments, **ppo.ppo_kwargs())
        self.callbacks: list[BaseCallback] = [SelfPlay(env)] if isinstance(env, SparsEnv) else []

    def __call__(self, steps: int, *callbacks: BaseCallback) -> None:
        self.model.learn(steps, callback=[*self.callbacks, *callbacks], reset_num_timesteps=False)


# -- in a process of their own -------------------------------------------------------------------------------------


def _score_volume(bench: Bench) -> tuple[float, float, float]:
    """Seconds, peak and growth in GB."""
    full = bench.sizes.full
    cases = load_liver_cases(LiverDataConfig(cases=["phantom_02000"], grid_shape=full.shape))
    net, lattice = DensePresenceNet(HU_WINDOW, full.window).eval(), WindowLattice(full.shape, full.window)
    before = megabytes("VmRSS")
    with tempfile.TemporaryDirectory() as cache:
        spent = seconds(lambda: ScoreTable(cases, lattice, net, engine="dense", features=True, cache_dir=cache))
    peak = megabytes("VmHWM")
    return spent, peak / 1e3, (peak - before) / 1e3


class _Tenths(BaseCallback):
    """What `look()` says after every tenth of a training."""

    def __init__(self, total: int, look: Callable[[], float]) -> None:
        super().__init__()
        self.total, self.look, self.steps, self.values = total, look, list[int](), list[float]()

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.total * (len(self.steps) + 1) / 10:
            self.steps.append(self.num_timesteps)
            self.values.append(self.look())
        return True


def _train_and_watch(bench: Bench) -> tuple[list[int], list[float]]:
    memory = _Tenths(bench.sizes.memory_steps, lambda: megabytes("VmRSS"))
    Training(bench.env(PHANTOM, obs_mode="features"), "feature_mlp")(bench.sizes.memory_steps, memory)
    return memory.steps, memory.values


# -- the command ---------------------------------------------------------------------------------------------------


def _to_released(figure: Figure) -> Figure:
    values = [value / RELEASED_STEPS_PER_S for value in figure.values]
    return Figure("the same against the released environment (7.3 s a step)", "x", values)


def main() -> None:
    parser = command_line(__doc__, "spars_speed", ITEMS)
    given = parsed(parser)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(QUICK if given.quick else Sizes(), torch.device(given.device), folder)
        items = {name: getattr(bench, name) for name in ITEMS if name != "cuda" or given.device == "cuda"}
        measure(parser, given, asdict(bench.sizes), items)


if __name__ == "__main__":
    main()
