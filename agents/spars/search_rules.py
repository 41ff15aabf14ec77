"""Reference policies of SPARS search: rules that choose the next window, anywhere (docs/spars.md, Method 15).

They need `action_set="anywhere"`: an action is a window. Symbols: f = score, known of seen windows only (but to the
rules that are given all scores); μ, σ = mean and deviation of f given what was seen; θ = level at which the
straddle rule looks, `mask_threshold`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets.liver.lattice import Triple
from ...envs.spars import SparsEnv
from ...envs.spars_config import ANYWHERE
from ...envs.spars_search import SearchEnv
from ..policy import Policy, Reference

KAPPA = 2.0
"""Deviations by which a window may be better than its mean, in UCB and straddle."""
COARSE, ATLAS = 8, 16
"""Windows of the first stage of coarse-to-fine and of atlas-to-fine."""
CHOICES = 48
"""Windows that the clairvoyant tries in each step."""
APART = 3.0
"""Cells between windows of the atlas: a Gaussian of this width is taken away around each."""


def _best(env: SearchEnv, worth: Tensor) -> Tensor:
    """The window with the highest worth, [N, L], that was not seen; the lowest number among equals: int64 [N]."""
    return worth.masked_fill(env.posterior.seen, -torch.inf).argmax(dim=1)


def _noise(env: SearchEnv) -> Tensor:
    """Uniform numbers, float32 [N, L]."""
    return env.streams.uniform(env.lattice.size).float()


def known(env: SearchEnv) -> Tensor:
    """f of seen windows, -1 elsewhere: float32 [N, L]."""
    return torch.where(env.posterior.seen, env.scores_known(), -1.0)


def random_window(env: SearchEnv) -> Tensor:
    """Any window that was not seen, uniformly."""
    return _best(env, _noise(env))


def sub_lattice(shape: Triple, number: int) -> Tensor:
    """`number` positions spread evenly over the lattice, int64 [number], the same for every case."""
    per_axis = _grid(shape, number)
    axes = [((torch.arange(n) + 0.5) * size / n).long() for n, size in zip(per_axis, shape, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    ids = ((x * shape[1] + y) * shape[2] + z).flatten()
    return ids[(torch.arange(number) * len(ids)) // number]


def _grid(shape: Triple, number: int) -> list[int]:
    """Positions along each axis, whose product is at least `number`, about as far apart along each."""
    counts = [1, 1, 1]
    while counts[0] * counts[1] * counts[2] < number:
        gaps = [size / count for size, count in zip(shape, counts, strict=True)]
        axis = gaps.index(max(gaps))
        counts[axis] = min(counts[axis] + 1, shape[axis])
    return counts


class SubLattice:
    """Windows spread evenly, as many as there are moves; then any."""

    def __init__(self, env: SearchEnv) -> None:
        self.ids = sub_lattice(env.lattice.shape, env.horizon).to(env.device)

    def __call__(self, env: SearchEnv) -> Tensor:
        return self.ids[env.t]


def _around(env: SearchEnv, values: Tensor, nothing: float) -> Tensor:
    """The highest of the values, [N, L], among each window and its 26 neighbours: [N, L]."""
    grid = F.pad(values.view(-1, 1, *env.lattice.shape), (1,) * 6, value=nothing)
    return F.max_pool3d(grid, 3, 1).flatten(1)


class HillClimb:
    """To a random neighbour; on from there if its score is higher; from anywhere where all neighbours were seen."""

    def __init__(self, env: SearchEnv) -> None:
        self.at = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)

    def __call__(self, env: SearchEnv) -> Tensor:
        scores, last, everyone = known(env), env.at[0], torch.arange(env.num_envs, device=env.device)
        better = (env.t == 1) | (scores[everyone, last] > scores[everyone, self.at])
        self.at = torch.where((env.t > 0) & better, last, self.at)
        here = F.one_hot(self.at, env.lattice.size).float()
        near = (_around(env, here, 0.0) > 0) & ~env.posterior.seen & (env.t > 0)[:, None]
        chosen = _best(env, _noise(env) + near)
        self.at = torch.where((env.t > 0) & near.any(dim=1), self.at, chosen)  # anew: from where it looks next
        return chosen


class ThenBestFirst:
    """Some windows in their order, int64 [n], the same for every case; then best-first."""

    def __init__(self, env: SearchEnv, ids: Tensor) -> None:
        self.ids = ids.to(env.device)

    def __call__(self, env: SearchEnv) -> Tensor:
        first = self.ids[env.t.clamp(max=len(self.ids) - 1)]
        return torch.where(env.t < len(self.ids), first, _best(env, _around(env, known(env), -1.0)))


def best_first(env: SearchEnv) -> Policy[SearchEnv]:
    """The unseen neighbour of the seen window with the highest score; first the middle of the lattice."""
    return ThenBestFirst(env, sub_lattice(env.lattice.shape, 1))


def coarse_to_fine(env: SearchEnv) -> Policy[SearchEnv]:
    """Windows spread evenly, then best-first."""
    return ThenBestFirst(env, sub_lattice(env.lattice.shape, min(COARSE, env.horizon)))


def atlas_to_fine(env: SearchEnv) -> Policy[SearchEnv]:
    """The windows that are likeliest to hold tumour before anything is seen, apart from each other; then best-first."""
    left, ids = env.prior.mean.clone(), []
    cells = torch.stack(torch.unravel_index(torch.arange(env.lattice.size), env.lattice.shape), dim=-1).to(env.device)
    for _ in range(min(ATLAS, env.horizon)):
        ids.append(int(left.argmax()))
        away = (cells - cells[ids[-1]]).square().sum(dim=1)
        left = left * (1 - torch.exp(-0.5 * away / APART**2))
    return ThenBestFirst(env, torch.tensor(ids))


def gp_ucb(env: SearchEnv) -> Tensor:
    """The window whose score may be highest: μ + 2σ."""
    return _best(env, env.posterior.mean + KAPPA * env.posterior.variance.sqrt())


def gp_straddle(env: SearchEnv) -> Tensor:
    """The window that is likeliest to change sides of θ: 2σ - |μ - θ| (Bryan et al., 2005)."""
    away = (env.posterior.mean - env.config.mask_threshold).abs()
    return _best(env, KAPPA * env.posterior.variance.sqrt() - away)


def thompson(env: SearchEnv) -> Tensor:
    """The window with the highest of scores drawn from the posterior, of each window apart."""
    drawn = torch.special.ndtri(env.streams.uniform(env.lattice.size).clamp(1e-12, 1 - 1e-12)).float()
    return _best(env, env.posterior.mean + env.posterior.variance.sqrt() * drawn)


def prior_order(env: SearchEnv) -> Tensor:
    """The window that is likeliest to hold tumour before anything is seen: place alone, no look at the image."""
    return _best(env, env.prior.mean.expand(env.num_envs, -1))


def clairvoyant(env: SearchEnv) -> Tensor:
    """Of some windows, half of the highest scores and half at random, the one that would raise D most: it knows all
    scores. One step ahead; an upper bound for the choice."""
    truth = env.all_scores[env.case]
    noise, seen = _noise(env), env.posterior.seen
    high = (truth + 0.05 * noise).masked_fill(seen, -torch.inf).topk(min(CHOICES // 2, env.lattice.size), dim=1).indices
    some = noise.masked_fill(seen, -torch.inf).topk(min(CHOICES // 2, env.lattice.size), dim=1).indices
    tried = torch.cat((high, some), dim=1)
    worth = [env.foresee(ids, truth.gather(1, ids[:, None])[:, 0]) for ids in tried.T]
    return tried.gather(1, torch.stack(worth, dim=1).argmax(dim=1, keepdim=True))[:, 0]


def _row(about: str, make: Callable[[SearchEnv], Policy[SearchEnv]]) -> Reference[SparsEnv]:
    needs = {"profile": ("search",), "action_set": (ANYWHERE,), "n_agents": (1,)}
    return Reference(about, lambda env, seed: make(env), needs=needs)  # type: ignore[arg-type, return-value]


SEARCH_POLICIES: dict[str, Reference[SparsEnv]] = {
    "search_random": _row("Any window that was not seen.", lambda env: random_window),
    "search_prior": _row("The window that is likeliest before anything is seen.", lambda env: prior_order),
    "search_sub_lattice": _row("Windows spread evenly.", SubLattice),
    "search_hill_climb": _row("Up the scores of neighbours, with restarts.", HillClimb),
    "search_best_first": _row("The unseen neighbour of the best seen window.", best_first),
    "search_coarse_to_fine": _row(f"{COARSE} windows spread evenly, then best-first.", coarse_to_fine),
    "search_atlas_to_fine": _row(f"{ATLAS} likely windows, then best-first.", atlas_to_fine),
    "search_gp_ucb": _row("The window whose score may be highest, μ + 2σ.", lambda env: gp_ucb),
    "search_gp_straddle": _row("The window likeliest to change sides of θ, 2σ - |μ - θ|.", lambda env: gp_straddle),
    "search_thompson": _row("The highest of scores drawn from the posterior.", lambda env: thompson),
    "search_clairvoyant": _row("The window that raises D most, by all scores.", lambda env: clairvoyant),
}
"""Reference policies of profile "search" by name."""
