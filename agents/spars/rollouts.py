"""Episodes on chosen cases, and the maps and mask thresholds that come of them (docs/spars.md, Method 5 and 12-13).

A = painted map, θ = mask threshold, K = rollouts per case, B = score map. A case's episodes draw random numbers that
depend on its voxels and the seed alone, so that its map is the same alone, among others and from another file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
import torch
from torch import Tensor

from ...common.device import forked_rng
from ...datasets.liver.cases import LiverCase
from ...datasets.liver.lesions import TUMOUR
from ...envs.spars import SparsEnv
from ..policy import Policy, play
from .rules import BfsToTau

PAPER_THRESHOLD = 0.5
CANDIDATES = 400
"""Number of mask thresholds that are tried: upper quantiles of the painted values."""


@dataclass(frozen=True)
class Maps:
    """The maps of a method for some cases."""

    env: SparsEnv
    """Environment with the cases and the lattice."""
    blocks: Tensor
    """A (or B) per case, float64 [C, Bx, By, Bz]."""
    facts: list[dict[str, float]]
    """Further metrics of each case, means over its episodes: steps; ended_by_self and truncated (shares);
    terminal_hit (share that τ ended on a window with tumour, whoever's); steps_over_optimal (steps / fewest possible,
    of the episodes that the learner ended; NaN without any)."""

    @classmethod
    def join(cls, env: SparsEnv, parts: Sequence["Maps"]) -> "Maps":
        """The maps of all cases of an environment, from those of some cases each, in the order of the cases."""
        return cls(env, torch.cat([part.blocks for part in parts]), [facts for part in parts for facts in part.facts])

    def values(self, number: int) -> Tensor:
        """A (or B) of case `number`, float32 [X, Y, Z], on the CPU."""
        return self.env.lattice.expand(self.blocks[number].float()).cpu()

    def inside(self, number: int, theta: float) -> Tensor:
        """The mask A > θ of case `number`, in the precision of `values`: bool [X, Y, Z], on the CPU."""
        return self.env.lattice.expand(self.above(theta)[number]).cpu()

    def above(self, theta: float) -> Tensor:
        """Where A > θ, bool [C, Bx, By, Bz]; compared as float32, so that a map that was written gives the same."""
        return self.blocks.float() > theta

    def mean_dice(self, theta: float) -> float:
        """Mean Dice of the masks A > θ over the cases with tumour, from block counts; NaN where there is none."""
        tumour_blocks = self.env.painting.tumour_blocks
        tumour = torch.stack([tumour_blocks(number) for number in range(len(self.env.cases))])  # g_b [C, ...]
        common, painted, truth = self.env.lattice.block_overlap(self.above(theta), tumour)
        return float((2 * common / (painted + truth))[truth > 0].mean())


def seed_of(case: LiverCase, seed: int) -> int:
    """Seed of the first episode on a case: of its voxels and `seed` alone, below 2^48."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{case.digest}".encode()).digest()[:6], "big")


def roll_out(env: SparsEnv, policy: Policy[SparsEnv], *, jitter_cells: int, seed: int) -> Maps:
    """Mean map of K episodes per case, K = environments / cases, all at once.

    Random starts are taken as they are drawn; fixed ones are moved by up to `jitter_cells` lattice cells along each
    axis, both agents alike.
    """
    return _roll_out(env, policy, range(len(env.cases)), BfsToTau(env), jitter_cells, seed)


def roll_out_apart(env: SparsEnv, policy: Policy[SparsEnv], *, jitter_cells: int, seed: int) -> Maps:
    """Mean map of K = environments episodes per case, one case after the other.

    For a policy that draws from PyTorch's generator, or whose network rounds otherwise in another batch: the map of a
    case is then the same to the last bit, whatever other cases there are.
    """
    shortest, parts = BfsToTau(env), list[Maps]()
    with forked_rng(env.device):
        for number, case in enumerate(env.cases):
            torch.manual_seed(seed_of(case, seed))
            parts.append(_roll_out(env, policy, [number], shortest, jitter_cells, seed))
    return Maps.join(env, parts)


def _roll_out(
    env: SparsEnv, policy: Policy[SparsEnv], numbers: Sequence[int], shortest: BfsToTau, jitter_cells: int, seed: int
) -> Maps:
    """The maps of the cases `numbers`, from environments / len(numbers) episodes each."""
    n, cases = env.num_envs, len(numbers)
    rollouts = n // cases
    first = [seed_of(env.cases[number], seed) for number in numbers]
    env.seed([one + k for one in first for k in range(rollouts)])
    case = torch.tensor(numbers, device=env.device).repeat_interleave(rollouts)
    env.begin(case, jitter_cells)
    optimal = shortest.optimal_steps(env)

    blocks = torch.zeros(n, *env.lattice.block_shape, dtype=torch.float64, device=env.device)
    last, duel = torch.zeros_like(env.at), torch.zeros_like(env.duel)

    def keep(env_ids: Tensor) -> None:
        blocks[env_ids] = env.painting.block_maps(env_ids)
        last[:, env_ids], duel[:, env_ids] = env.at[:, env_ids], env.duel[:, env_ids]

    played = play(env, policy, on_end=keep)
    steps, by_score = played.lengths, played.terminated
    ended_by = (duel[1] > duel[0]).long() if len(last) == 2 else torch.zeros_like(steps)  # whose score ended it
    window = last.gather(0, ended_by[None])[0]
    found = by_score & (ended_by == 0)
    facts = []
    for number in numbers:
        mine = case == number
        of_case = {
            "steps": float(steps[mine].double().mean()),
            "ended_by_self": float(found[mine].double().mean()),
            "truncated": float((~by_score[mine]).double().mean()),
            "steps_over_optimal": float((steps / optimal)[mine & found].mean()),
        }
        label = env.cases[number].label
        if label is not None:
            holds = env.lattice.window_sums(label == TUMOUR).to(env.device) > 0
            of_case["terminal_hit"] = float((holds[window[mine]] & by_score[mine]).double().mean())
        facts.append(of_case)
    return Maps(env, blocks.view(cases, rollouts, *env.lattice.block_shape).mean(dim=1), facts)


def choose_threshold(maps: Maps) -> float:
    """The θ with the highest mean Dice over the cases with tumour, among upper quantiles of the painted values.

    Raises:
        ValueError: no case has a tumour.
    """
    painted = maps.blocks[maps.blocks > 0].cpu().numpy()
    tail = np.geomspace(1e-6, 1.0, CANDIDATES)  # tumours are small: most candidates leave little of the volume
    levels = np.unique(np.quantile(painted, 1.0 - tail).astype(np.float32)) if len(painted) else [PAPER_THRESHOLD]
    candidates = [0.0, *(float(level) for level in levels)]
    scores = [maps.mean_dice(theta) for theta in candidates]
    if any(map(isnan, scores)):
        raise ValueError("no validation case has a tumour, so no mask threshold can be chosen")
    return candidates[int(np.argmax(scores))]
