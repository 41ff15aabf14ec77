"""Episodes on chosen cases, and the maps and mask thresholds that come of them (paper: SPARS sections 2.8, 7, 10).

A = painted map, θ = mask threshold, K = rollouts per case, f = presence score, B = score map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
import torch
from torch import Tensor

from ..datasets.lesions import TUMOUR
from ..envs.spars import SparsEnv
from .reference import BfsToTau

Player = Callable[[SparsEnv], Tensor]
"""Actions of the learner's side in every slot, int64 [N]."""
PAPER_THRESHOLD = 0.5
CANDIDATES = 200
"""Mask thresholds that are tried: quantiles of the painted values."""


@dataclass(frozen=True)
class Maps:
    """What a method says of some cases."""

    game: SparsEnv
    """Knows the cases and the lattice."""
    blocks: Tensor
    """A (or B) per case, float64 [C, Bx, By, Bz]."""
    said: list[dict[str, float]]
    """What else is known of each case, means over its episodes: steps, truncated (share), excess_steps (steps / fewest
    possible; NaN where τ is out of reach) and terminal_hit (share that τ ended on a window with tumour)."""

    def inside(self, number: int, theta: float) -> Tensor:
        """The mask A > θ of case `number`, bool [X, Y, Z], on the CPU."""
        return self.game.lattice.expand(self.blocks[number] > theta).cpu()

    def mean_dice(self, theta: float) -> float:
        """Mean Dice of the masks A > θ over the cases with tumour, from block counts; NaN where there is none."""
        tumour = torch.stack(
            [self.game.tumour_blocks(number) for number in range(len(self.game.cases))]
        )  # g_b [C, ...]
        sizes = self.game.lattice.block_sizes.to(tumour.device)
        truth, inside = tumour.flatten(1).sum(dim=1), self.blocks > theta
        common = (tumour * inside).flatten(1).sum(dim=1)
        overlap = 2 * common / ((sizes * inside).flatten(1).sum(dim=1) + truth)
        return float(overlap[truth > 0].mean())


def roll_out(game: SparsEnv, player: Player, *, jitter_cells: int, seed: int) -> Maps:
    """Mean map of K episodes per case, from starts that are moved by up to `jitter_cells` along each axis."""
    cases, rollouts = len(game.cases), game.num_envs // len(game.cases)
    lattice, device = game.lattice, game.device
    game.seed([seed * game.num_envs + slot for slot in range(game.num_envs)])
    case = torch.arange(cases, device=device).repeat_interleave(rollouts)
    game.reset()
    jitter = (game.streams.uniform(3) * (2 * jitter_cells + 1)).long() - jitter_cells
    cell = (lattice.corners(game.at[0]) - torch.tensor(lattice.phase, device=device)) // lattice.step + jitter
    low, high = torch.zeros(3, dtype=torch.int64, device=device), torch.tensor(lattice.shape, device=device) - 1
    start = (cell.clamp(low, high) * torch.tensor(lattice.strides, device=device)).sum(dim=1)
    game.place(case, start.expand(game.config.n_agents, -1).clone())

    blocks = torch.zeros(game.num_envs, *lattice.block_shape, dtype=torch.float64, device=device)
    steps = torch.zeros(game.num_envs, dtype=torch.int64, device=device)
    last = torch.zeros_like(steps)
    by_score = torch.zeros(game.num_envs, dtype=torch.bool, device=device)
    over = torch.zeros_like(by_score)
    optimal = BfsToTau(game).optimal_steps(game)
    for _ in range(game.horizon):
        _, terminated, truncated = game.step(player(game))
        rows = ((terminated | truncated) & ~over).nonzero().flatten()
        if len(rows):
            blocks[rows], steps[rows], last[rows] = game.block_maps(rows), game.t[rows], game.at[0, rows]
            by_score[rows] = terminated[rows]
            over[rows] = True
        if bool(over.all()):
            break
    said = []
    for number in range(cases):
        mine = case == number
        facts = {
            "steps": float(steps[mine].double().mean()),
            "truncated": float((~by_score[mine]).double().mean()),
            "excess_steps": float((steps[mine] / optimal[mine]).mean())
            if bool(optimal[mine].isfinite().all())
            else nan,
        }
        label = game.cases[number].label
        if label is not None:
            holds = lattice.window_sums(label == TUMOUR).to(device) > 0
            facts["terminal_hit"] = float((holds[last[mine]] & by_score[mine]).double().mean())
        said.append(facts)
    return Maps(game, blocks.view(cases, rollouts, *lattice.block_shape).mean(dim=1), said)


def score_map(game: SparsEnv, reduce: str) -> Maps:
    """B = mean or max of f over all lattice windows that contain a voxel: the answer without an agent (10-1)."""
    ids = torch.arange(game.lattice.size, device=game.device)[None]
    scores = (game.table.volume(number).flatten()[None] for number in range(len(game.cases)))
    blocks = torch.cat([game.lattice.paint(ids, f, reduce) for f in scores])
    return Maps(game, blocks, [{} for _ in game.cases])


def choose_threshold(maps: Maps) -> float:
    """The θ with the highest mean Dice over the cases with tumour, among quantiles of the painted values.

    Raises:
        ValueError: no case has a tumour.
    """
    painted = maps.blocks[maps.blocks > 0].cpu().numpy()
    levels = np.unique(np.quantile(painted, np.linspace(0, 1, CANDIDATES))) if len(painted) else [PAPER_THRESHOLD]
    candidates = [0.0, *(float(level) for level in levels)]
    scores = [maps.mean_dice(theta) for theta in candidates]
    if any(map(isnan, scores)):
        raise ValueError("no validation case has a tumour, so no mask threshold can be chosen")
    return candidates[int(np.argmax(scores))]
