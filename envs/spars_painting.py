"""Painted windows of each episode of SPARS, and the maps and masks made from them.

Symbols: A = painted map, θ = mask threshold, T = horizon, P = agents, N = environments, K = environments asked for,
g_b = tumour voxels in block b. Windows are unions of the lattice's blocks, so that A is one value per block; where
voxels have the values of their blocks, overlaps are counted in blocks: exact integers, no voxel is touched
(docs/spars.md, Method 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.liver.lesions import TUMOUR

if TYPE_CHECKING:
    from .spars import SparsEnv


class Painting:
    """Positions and scores of the last T steps of an environment, and what they paint.

    The configuration says who paints (`accumulate`) and θ (`mask_threshold`); `env.masks` makes maps of it.
    """

    def __init__(self, env: SparsEnv) -> None:
        self._env = env
        shape = (env.horizon, env.config.n_agents, env.num_envs)  # place in the log = steps so far mod T
        self._at = torch.zeros(shape, dtype=torch.int64, device=env.device)
        self._scores = torch.zeros(shape, device=env.device)
        self._steps = 0
        self._tumour: dict[int, Tensor] = {}
        self._tumour_blocks: dict[int, Tensor] = {}

    def add(self, at: Tensor, scores: Tensor) -> None:
        """Keep a step of all environments: positions int64 [P, N] and scores float32 [P, N]."""
        place = self._steps % len(self._at)
        self._at[place], self._scores[place] = at, scores
        self._steps += 1

    def last_step(self) -> tuple[Tensor, Tensor]:
        """Positions int64 [P, N] and scores float32 [P, N] after the last step, of the episodes that it ended too."""
        place = (self._steps - 1) % len(self._at)
        return self._at[place].clone(), self._scores[place].clone()

    # -- maps ------------------------------------------------------------------------------------------------------

    def strokes(self, env_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Painted windows of the episodes of `env_ids` int64 [K]: positions int64 and scores float32, [K, T or 2T].

        A position of -1 paints nothing. The next step may overwrite the log, but not what was read here.
        """
        env, steps, painters = self._env, len(self._at), self._painters
        age = torch.arange(steps, device=env.device)  # 0: the last step
        ring = (self._steps - 1 - age) % steps
        live = (age[:, None] < env.t[env_ids])[:, None]  # [T, 1, K]
        at, scores = (
            log[:, :painters].index_select(2, env_ids).index_select(0, ring) for log in (self._at, self._scores)
        )
        at = torch.where(live, at, -1)  # [T, painters, K]
        return at.flatten(0, 1).T, scores.flatten(0, 1).T

    @property
    def _painters(self) -> int:
        return self._at.shape[1] if self._env.config.accumulate == "both" else 1

    def block_maps(self, env_ids: Tensor) -> Tensor:
        """A of the environments `env_ids` int64 [K], one value per block: float64 [K, Bx, By, Bz]."""
        return self._env.masks.paint(*self.strokes(env_ids), self._env.case[env_ids].tolist())

    def block_map(self, env_id: int = 0) -> Tensor:
        """A of one environment, one value per block: float64 [Bx, By, Bz]."""
        return self.block_maps(torch.tensor([env_id], device=self._env.device))[0]

    def voxel_map(self, env_id: int = 0) -> Tensor:
        """A of one environment, float32 [X, Y, Z]."""
        return self._env.masks.voxels(self.block_map(env_id))

    @property
    def theta(self) -> float:
        """θ at the precision of the scores, so that "A > θ" is strict for what was painted."""
        return float(np.float32(self._env.config.mask_threshold))

    def mask(self, env_id: int = 0) -> Tensor:
        """A > θ of the one episode that an environment plays, at the configured θ: bool [X, Y, Z].

        Not the mask that `evaluate` scores and `predict` writes: that is of several episodes, at the θ that
        `evaluation.mask` gives.
        """
        return self.voxel_map(env_id) > self.theta

    def save_episode_mask(self, path: str | Path, env_id: int = 0) -> None:
        """Write `mask`, of one episode, as NIfTI in the space, shape and orientation of the case's own file.

        The masks that are evaluated come from `evaluate --save_masks`, those of other images from `predict`.
        """
        case = self._env.cases[int(self._env.case[env_id])]
        case.save_mask(self.mask(env_id).cpu(), Path(path))

    # -- against the truth -----------------------------------------------------------------------------------------

    def tumour_blocks(self, case: int) -> Tensor:
        """g_b of case number `case`, int64 [Bx, By, Bz].

        Raises:
            ValueError: the case has no label.
        """
        if case not in self._tumour_blocks:
            self._tumour_blocks[case] = self._env.lattice.block_sums(self.tumour(case))
        return self._tumour_blocks[case]

    def tumour(self, case: int) -> Tensor:
        """Tumour of case number `case`, bool [X, Y, Z].

        Raises:
            ValueError: the case has no label.
        """
        env = self._env
        if case not in self._tumour:
            label = env.cases[case].label
            if label is None:
                raise ValueError(f"case {env.cases[case].id!r} has no label: dice is not known")
            self._tumour[case] = (label == TUMOUR).to(env.device)
        return self._tumour[case]

    def dice(self, env_id: int = 0) -> float:
        """Dice of the mask of one environment with the tumour, in [0, 1]; both empty: 1.

        Raises:
            ValueError: the case has no label.
        """
        case = int(self._env.case[env_id])
        self.tumour_blocks(case)
        return self.overlaps(*self.strokes(torch.tensor([env_id], device=self._env.device)), [case])[0]["dice"]

    def overlaps(
        self, at: Tensor, scores: Tensor, cases: Sequence[int], steps: int | None = None
    ) -> list[dict[str, float]]:
        """n_painted_blocks and, where the case has a label, dice, precision and recall of K masks; waits once for all.

        n_painted_blocks counts the blocks under the painted windows, whatever their scores are and unseen windows are
        filled with. The others are 1 where mask and tumour are empty, and 0 where one of them is.

        Args:
            at: positions of `strokes`, int64 [K, T or 2T].
            scores: of the same, float32.
            cases: K numbers of cases.
            steps: length of the longest of the episodes, where it is known; what lies before their starts is not read
                then.
        """
        if steps is not None:
            at, scores = (log[:, : steps * self._painters] for log in (at, scores))
        known = [self._env.cases[case].label is not None for case in cases]
        painted = self._env.lattice.covered(at).sum(dim=(1, 2, 3))
        blocks = self._env.masks.paint(at, scores, cases)
        by_block = self._env.masks.upsample == "blocks"
        overlap = self._block_overlap if by_block else self._voxel_overlap
        counts = torch.stack((painted, *overlap(blocks, cases, known)), dim=1).tolist()
        return [
            {"n_painted_blocks": n, **(_overlap(common, mask, target) if k else {})}
            for (n, common, mask, target), k in zip(counts, known, strict=True)
        ]

    def _block_overlap(self, blocks: Tensor, cases: Sequence[int], known: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """Voxels of mask ∩ tumour, mask and tumour, int64 [K], where voxels have the values of their blocks."""
        lattice = self._env.lattice
        nothing = torch.zeros(lattice.block_shape, dtype=torch.int64, device=blocks.device)
        truth = torch.stack([self.tumour_blocks(c) if k else nothing for c, k in zip(cases, known, strict=True)])
        return lattice.block_overlap(blocks.float() > self.theta, truth)

    def _voxel_overlap(self, blocks: Tensor, cases: Sequence[int], known: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """The same, counted in voxels, one episode after the other: a map of voxels may be large."""
        rows = []
        for a, case, has_label in zip(blocks, cases, known, strict=True):
            inside = self._env.masks.voxels(a) > self.theta
            truth = self.tumour(case) if has_label else torch.zeros_like(inside)
            rows.append(torch.stack(((inside & truth).sum(), inside.sum(), truth.sum())))
        common, mask, truth = torch.stack(rows, dim=1).unbind()
        return common, mask, truth

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for `load_state`."""
        return {"at": self._at, "scores": self._scores, "steps": self._steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self._at, self._scores = (state[name].to(self._env.device, copy=True) for name in ("at", "scores"))
        self._steps = state["steps"]


def _overlap(common: int, mask: int, truth: int) -> dict[str, float]:
    return {
        "dice": 2 * common / (mask + truth) if mask + truth else 1.0,
        "precision": common / mask if mask else float(truth == 0),
        "recall": common / truth if truth else float(mask == 0),
    }
