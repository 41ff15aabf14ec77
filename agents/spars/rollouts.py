"""Episodes on chosen cases, and the maps and mask thresholds that come of them (docs/spars.md, Method 5 and 12-13).

A = painted map, θ = mask threshold, K = rollouts per case, B = score map. A case's episodes draw random numbers that
depend on its voxels and the seed alone, so that its map is the same alone, among others and from another file.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...common.device import forked_rng
from ...datasets.liver.cases import LiverCase
from ...datasets.liver.lesions import TUMOUR
from ...envs.spars import SparsEnv
from ...envs.spars_search import SearchEnv
from ...evaluation.metrics import components
from ...evaluation.metrics import dice as dice_of
from ...segmenters.expected_dice import count
from ..policy import Policy, play
from .config import Postprocess
from .rules import BfsToTau

PAPER_THRESHOLD = 0.5
NO_TUMOUR = "no case has a tumour"
NO_VALIDATION = "no validation case has a tumour, so no θ can be chosen; name cases with tumour in validation.cases"
LEVELS = 400
"""Number of θ that are tried: upper quantiles of the painted values."""


@dataclass(frozen=True)
class Maps:
    """The maps of a method for some cases."""

    env: SparsEnv
    """Environment with the cases and the lattice."""
    blocks: Tensor
    """A (or B) per case, float64 [C, Bx, By, Bz]."""
    facts: list[dict[str, float]]
    """Further metrics of each case. windows: how many different ones the map is made of, of all its episodes. Means
    over its episodes: found (D of a search, in [0, 1]); of the other games steps; ended_by_self (share that was ended
    with the learner ahead) and truncated (share); terminal_hit (share that τ or an agent ended on a window with tumour,
    of whoever was ahead); with moves and τ steps_over_optimal (steps / fewest possible, of those the learner ended;
    NaN without any)."""

    @classmethod
    def join(cls, env: SparsEnv, parts: Sequence["Maps"]) -> "Maps":
        """The maps of all cases of an environment, from those of some cases each, in the order of the cases."""
        return cls(env, torch.cat([part.blocks for part in parts]), [facts for part in parts for facts in part.facts])

    def values(self, number: int) -> Tensor:
        """A (or B) of case `number`, float32 [X, Y, Z], on the CPU."""
        return self.env.masks.voxels(self.blocks[number]).cpu()

    def inside(self, number: int, theta: float) -> Tensor:
        """The mask A > θ of case `number`, bool [X, Y, Z], on the CPU; see `mask_of`."""
        return mask_of(self.values(number), theta)

    def mean_dice(self, thetas: Sequence[float]) -> Tensor:
        """Mean Dice of the masks A > θ over the cases with tumour, for each of some ascending θ: float64 [θ].

        Raises:
            ValueError: no case has a tumour.
        """
        levels = torch.tensor(thetas, dtype=torch.float32, device=self.env.device)
        dice = []
        for number in range(len(self.env.cases)):
            values, sizes, tumour = self._by_value(number)
            place = torch.bucketize(values, levels)  # as many levels lie below the value
            painted, common = (
                torch.bincount(place, weights, minlength=len(levels) + 1).flip(0).cumsum(0).flip(0)[1:]
                for weights in (sizes, tumour)
            )
            if total := float(tumour.sum()):
                dice.append(2 * common / (painted + total))
        if not dice:
            raise ValueError(NO_TUMOUR)
        return torch.stack(dice).mean(dim=0)

    def counted(self, number: int) -> Tensor:
        """Voxels, and tumour voxels, of case `number` in every bin of logit A: float64 [2, bins]."""
        return count(*self._by_value(number))

    def dice_at(self, level: Callable[[Tensor], float]) -> float:
        """Mean Dice over the cases with tumour, each at the θ that `level` gives to its map.

        Raises:
            ValueError: no case has a tumour.
        """
        dice = []
        for number in range(len(self.env.cases)):
            truth = self.env.painting.tumour(number).cpu()
            if truth.any():
                values = self.values(number)
                dice.append(dice_of(values > level(values), truth))
        if not dice:
            raise ValueError(NO_TUMOUR)
        return sum(dice) / len(dice)

    def _by_value(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Values of A float32, and of each how many voxels, and tumour voxels, have it, float64: [M] each."""
        env, blocks = self.env, self.blocks[number]
        if env.masks.upsample == "blocks":
            sizes, tumour = env.lattice.block_sizes.to(env.device), env.painting.tumour_blocks(number)
            return blocks.float().flatten(), sizes.double().flatten(), tumour.double().flatten()
        values, tumour = env.masks.voxels(blocks).flatten(), env.painting.tumour(number).flatten().double()
        return values, torch.ones_like(tumour), tumour


@dataclass(frozen=True)
class VoxelMaps(Maps):
    """Maps that are not made on the blocks of the lattice: `blocks` is float32 [C, X, Y, Z], a block being a voxel."""

    def values(self, number: int) -> Tensor:
        """A of case `number`, float32 [X, Y, Z], on the CPU."""
        return self.blocks[number].cpu()

    def _by_value(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        tumour = self.env.painting.tumour(number).flatten().double()
        return self.blocks[number].flatten(), torch.ones_like(tumour), tumour


def mask_of(values: Tensor, theta: float, postprocess: Postprocess = "none") -> Tensor:
    """The mask A > θ of a map, float32 [X, Y, Z], or what `postprocess` leaves of it: bool [X, Y, Z], on the CPU.

    Compared as float32, so that a map that was written gives the same. Of parts of one size the first stays.
    """
    mask = values.cpu() > theta
    if postprocess == "none" or not mask.any():
        return mask
    parts = components(mask.numpy())
    return torch.from_numpy(parts == 1 + np.bincount(parts.ravel())[1:].argmax())


def seed_of(case: LiverCase, seed: int) -> int:
    """Seed of the first episode on a case: of its voxels and `seed` alone, below 2^48."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{case.digest}".encode()).digest()[:6], "big")


def roll_out(env: SparsEnv, policy: Policy[SparsEnv], *, jitter_cells: int, seed: int) -> Maps:
    """The map of K episodes per case, K = environments / cases, all at once: of all windows that they looked at, or,
    with reduce "sum", the mean of their maps.

    Random starts are taken as they are drawn; fixed ones are moved by up to `jitter_cells` lattice cells along each
    axis, both agents alike.
    """
    return _roll_out(env, policy, range(len(env.cases)), _shortest(env), jitter_cells, seed)


def roll_out_apart(env: SparsEnv, policy: Policy[SparsEnv], *, jitter_cells: int, seed: int) -> Maps:
    """As `roll_out`, but K = environments, one case after the other.

    For a policy that draws from PyTorch's generator, or whose network rounds otherwise in another batch: the map of a
    case is then the same to the last bit, whatever other cases there are.
    """
    shortest, parts = _shortest(env), list[Maps]()
    with forked_rng(env.device):
        for number, case in enumerate(env.cases):
            torch.manual_seed(seed_of(case, seed))
            parts.append(_roll_out(env, policy, [number], shortest, jitter_cells, seed))
    return Maps.join(env, parts)


def _shortest(env: SparsEnv) -> BfsToTau | None:
    """The fewest steps to τ; None in a search, which has no τ, and where actions are places."""
    return None if isinstance(env, SearchEnv) or not env.config.moves else BfsToTau(env)


def _roll_out(
    env: SparsEnv,
    policy: Policy[SparsEnv],
    numbers: Sequence[int],
    shortest: BfsToTau | None,
    jitter_cells: int,
    seed: int,
) -> Maps:
    """The maps of the cases `numbers`, from environments / len(numbers) episodes each."""
    n, cases = env.num_envs, len(numbers)
    rollouts = n // cases
    first = [seed_of(env.cases[number], seed) for number in numbers]
    env.seed([one + k for one in first for k in range(rollouts)])
    case = torch.tensor(numbers, device=env.device).repeat_interleave(rollouts)
    env.begin(case, jitter_cells)
    optimal = shortest.optimal_steps(env) if shortest else None

    summed = env.masks.reduce == "sum"
    shape = env.lattice.block_shape if summed else (env.lattice.size,)
    painted = torch.zeros(n, *shape, dtype=torch.float64 if summed else torch.float32, device=env.device)
    looked_at = torch.zeros(n, env.lattice.size, dtype=torch.bool, device=env.device)
    last, duel, found = torch.zeros_like(env.at), torch.zeros_like(env.duel), torch.zeros(n, device=env.device)

    def keep(env_ids: Tensor) -> None:
        strokes = env.painting.strokes(env_ids)
        seen = env.masks.seen(*strokes)
        painted[env_ids], looked_at[env_ids] = (
            env.masks.paint(*strokes, env.case[env_ids].tolist()) if summed else seen,
            ~seen.isnan(),
        )
        last[:, env_ids], duel[:, env_ids] = env.at[:, env_ids], env.duel[:, env_ids]
        if isinstance(env, SearchEnv):
            found[env_ids] = env.found[env_ids]

    played = play(env, policy, on_end=keep)
    steps, ended = played.lengths, played.terminated
    ahead = (duel[1] > duel[0]).long() if len(last) == 2 else torch.zeros_like(steps)  # whose score is higher at last
    window = last.gather(0, ahead[None])[0]
    by_self = ended & (ahead == 0)
    facts = []
    for number in numbers:
        mine = case == number
        windows = float(looked_at[mine].any(dim=0).sum())
        if isinstance(env, SearchEnv):
            facts.append({"windows": windows, "found": float(found[mine].mean())})
            continue
        of_case = {
            "windows": windows,
            "steps": float(steps[mine].double().mean()),
            "ended_by_self": float(by_self[mine].double().mean()),
            "truncated": float((~ended[mine]).double().mean()),
        }
        if optimal is not None:
            of_case["steps_over_optimal"] = float((steps / optimal)[mine & by_self].mean())
        label = env.cases[number].label
        if label is not None:
            holds = env.lattice.window_sums(label == TUMOUR).to(env.device) > 0
            of_case["terminal_hit"] = float((holds[window[mine]] & ended[mine]).double().mean())
        facts.append(of_case)
    of_cases = painted.view(cases, rollouts, *shape)
    if summed:
        return Maps(env, of_cases.mean(dim=1), facts)
    # one by one: what is likely of unseen windows is rounded otherwise in a batch
    apart = [env.masks.blocks(seen[None], [number]) for seen, number in zip(_highest(of_cases), numbers, strict=True)]
    return Maps(env, torch.cat(apart), facts)


def _highest(seen: Tensor) -> Tensor:
    """The score of every window that was seen in any rollout, NaN for the others: [C, L] of [C, K, L]."""
    best = seen.nan_to_num(nan=-1.0).amax(dim=1)
    return best.masked_fill(best < 0, torch.nan)


def choose_threshold(maps: Maps) -> float:
    """The θ with the highest mean Dice over the cases with tumour, among upper quantiles of the painted values.

    Raises:
        ValueError: no case has a tumour.
    """
    painted = maps.blocks[maps.blocks > 0].cpu().numpy()
    tail = np.geomspace(1e-6, 1.0, LEVELS)  # tumours are small: most leave little of the volume
    levels = np.unique(np.quantile(painted, 1.0 - tail).astype(np.float32)) if len(painted) else [PAPER_THRESHOLD]
    thetas = sorted({0.0, *(float(level) for level in levels)})
    try:
        return thetas[int(maps.mean_dice(thetas).argmax())]
    except ValueError as error:
        raise ValueError(NO_VALIDATION) from error
