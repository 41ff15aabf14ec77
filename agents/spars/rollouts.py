"""Episodes on chosen cases, and the maps and mask thresholds that come of them (paper: SPARS sections 2.8, 7, 10).

A = painted map, θ = mask threshold, K = rollouts per case, f = presence score, B = score map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan

import numpy as np
import torch
from torch import Tensor

from ...datasets.liver.lesions import TUMOUR
from ...envs.spars import SparsEnv
from .rules import BfsToTau

Player = Callable[[SparsEnv], Tensor]
"""Actions of the learner's side in every slot, int64 [N]."""
PAPER_THRESHOLD = 0.5
CANDIDATES = 400
"""Mask thresholds that are tried: upper quantiles of the painted values."""


@dataclass(frozen=True)
class Maps:
    """What a method says of some cases."""

    env: SparsEnv
    """Knows the cases and the lattice."""
    blocks: Tensor
    """A (or B) per case, float64 [C, Bx, By, Bz]."""
    said: list[dict[str, float]]
    """What else is known of each case, means over its episodes: steps; ended_by_self and truncated (shares);
    terminal_hit (share that τ ended on a window with tumour, whoever's); steps_over_optimal (steps / fewest possible,
    of the episodes that the learner ended; NaN without any)."""

    def inside(self, number: int, theta: float) -> Tensor:
        """The mask A > θ of case `number`, bool [X, Y, Z], on the CPU."""
        return self.env.lattice.expand(self.blocks[number] > theta).cpu()

    def mean_dice(self, theta: float) -> float:
        """Mean Dice of the masks A > θ over the cases with tumour, from block counts; NaN where there is none."""
        tumour = torch.stack([self.env.tumour_blocks(number) for number in range(len(self.env.cases))])  # g_b [C, ...]
        common, painted, truth = self.env.lattice.block_overlap(self.blocks > theta, tumour)
        return float((2 * common / (painted + truth))[truth > 0].mean())


def roll_out(env: SparsEnv, player: Player, *, jitter_cells: int, seed: int) -> Maps:
    """Mean map of K episodes per case, K = slots / cases.

    Random starts are taken as they are drawn; fixed ones are moved by up to `jitter_cells` lattice cells along each
    axis, both agents alike.
    """
    cases, rollouts = len(env.cases), env.num_envs // len(env.cases)
    env.seed([seed * env.num_envs + slot for slot in range(env.num_envs)])
    case = torch.arange(cases, device=env.device).repeat_interleave(rollouts)
    env.begin(case, jitter_cells)
    optimal = BfsToTau(env).optimal_steps(env)

    slots = env.num_envs
    blocks = torch.zeros(slots, *env.lattice.block_shape, dtype=torch.float64, device=env.device)
    steps = torch.zeros(slots, dtype=torch.int64, device=env.device)
    last, duel = torch.zeros_like(env.at), torch.zeros_like(env.duel)
    by_score, over = (torch.zeros(slots, dtype=torch.bool, device=env.device) for _ in range(2))
    for _ in range(env.horizon):
        _, terminated, truncated = env.step(player(env))
        rows = ((terminated | truncated) & ~over).nonzero().flatten()
        if len(rows):
            blocks[rows], steps[rows] = env.block_maps(rows), env.t[rows]
            last[:, rows], duel[:, rows], by_score[rows] = env.at[:, rows], env.duel[:, rows], terminated[rows]
            over[rows] = True
        if bool(over.all()):
            break
    ended_by = (duel[1] > duel[0]).long() if len(last) == 2 else torch.zeros_like(steps)  # whose score ended it
    window = last.gather(0, ended_by[None])[0]
    found = by_score & (ended_by == 0)
    said = []
    for number in range(cases):
        mine = case == number
        facts = {
            "steps": float(steps[mine].double().mean()),
            "ended_by_self": float(found[mine].double().mean()),
            "truncated": float((~by_score[mine]).double().mean()),
            "steps_over_optimal": float((steps / optimal)[mine & found].mean()),
        }
        label = env.cases[number].label
        if label is not None:
            holds = env.lattice.window_sums(label == TUMOUR).to(env.device) > 0
            facts["terminal_hit"] = float((holds[window[mine]] & by_score[mine]).double().mean())
        said.append(facts)
    return Maps(env, blocks.view(cases, rollouts, *env.lattice.block_shape).mean(dim=1), said)


def score_map(env: SparsEnv, reduce: str) -> Maps:
    """B = mean or max of f over all lattice windows that contain a voxel: the answer without an agent (10-1)."""
    ids = torch.arange(env.lattice.size, device=env.device)[None]
    scores = (env.table.volume(number).flatten()[None] for number in range(len(env.cases)))
    blocks = torch.cat([env.lattice.paint(ids, f, reduce) for f in scores])
    return Maps(env, blocks, [{} for _ in env.cases])


def choose_threshold(maps: Maps) -> float:
    """The θ with the highest mean Dice over the cases with tumour, among upper quantiles of the painted values.

    Raises:
        ValueError: no case has a tumour.
    """
    painted = maps.blocks[maps.blocks > 0].cpu().numpy()
    tail = np.geomspace(1e-6, 1.0, CANDIDATES)  # tumours are small: most candidates leave little of the volume
    levels = np.unique(np.quantile(painted, 1.0 - tail)) if len(painted) else [PAPER_THRESHOLD]
    candidates = [0.0, *(float(level) for level in levels)]
    scores = [maps.mean_dice(theta) for theta in candidates]
    if any(map(isnan, scores)):
        raise ValueError("no validation case has a tumour, so no mask threshold can be chosen")
    return candidates[int(np.argmax(scores))]
