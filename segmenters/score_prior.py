"""What is likely of the scores of all windows before and after some were seen: a Gaussian process on the lattice.

Symbols (docs/spars.md, Method 15): L positions, f = presence score; m = mean and s = deviation of f at each position
over score volumes without labels; u_r = the R strongest patterns in which f deviates from m together; ℓ = length of the
stationary part, in cells; a = its share of the covariance; ε = noise;

    k(p, q) = (1 - a) Σ_r u_r(p) u_r(q) + a s(p) s(q) exp(-½ |(p - q) / ℓ|²).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.networks import Network, load_network
from ..datasets.liver.lattice import Triple, WindowLattice

log = logging.getLogger(__name__)
PACKAGED = Path(__file__).parent / "weights" / "score_prior_phantom.safetensors"
FEWEST = 16
"""Score volumes from which a covariance can be learned; with fewer it is stationary."""
RANK = 128
"""R: patterns that are kept, at most."""
SHARE = 0.3
LENGTHS = (1.8, 1.8, 1.5)
NOISE = 1e-3
UNKNOWN = (0.1, 0.25)
"""Mean and deviation of a score where nothing was learned."""
LARGEST_TABLE = 4096
"""Positions up to which the whole covariance is kept, of at most 64 MB."""
MOST_NUMBERS = 2**25
"""Numbers of the covariance that are looked at at once, 128 MB, unless one volume needs more."""


class ScorePrior(Network):
    """Mean, deviation and patterns of score volumes [L] on one lattice, of one classifier.

    Args:
        shape: positions of the lattice along each axis; L is their product.
        patterns: R; 0: the covariance is stationary.
        share: a, of the stationary part; 1 where there are no patterns.
        classifier: `PresenceNet.digest` of the classifier that gave the scores; "" where nothing was learned.
        place: the lattice, as `place_of` names it; "" where nothing was learned.
    """

    mean: Tensor
    deviation: Tensor
    patterns_of: Tensor

    def __init__(
        self, shape: Triple, patterns: int = 0, share: float = 1.0, classifier: str = "", place: str = ""
    ) -> None:
        super().__init__()
        self.place = place
        self.shape, self.patterns, self.share, self.classifier = shape, patterns, share, classifier
        size = shape[0] * shape[1] * shape[2]
        self.register_buffer("mean", torch.full((size,), UNKNOWN[0]))
        self.register_buffer("deviation", torch.full((size,), UNKNOWN[1]))
        self.register_buffer("patterns_of", torch.zeros(patterns, size))
        self._table: Tensor | None = None

    @classmethod
    def fit(cls, volumes: Tensor, lattice: WindowLattice, classifier: str) -> "ScorePrior":
        """The prior of score volumes, float32 [V, L] of V cases of the same purpose, on any device.

        With fewer than `FEWEST` volumes mean and deviation are one number each, over all positions, and the covariance
        is stationary.
        """
        if len(volumes) < FEWEST:
            log.warning(
                "%d score volumes are too few to learn a covariance from (%d are needed): a stationary one is used",
                len(volumes),
                FEWEST,
            )
            prior = cls(lattice.shape, classifier=classifier, place=place_of(lattice))
            if len(volumes):
                prior.mean.fill_(float(volumes.mean()))
                prior.deviation.fill_(float(volumes.std().clamp(min=1e-3)))
            return prior
        mean = volumes.mean(dim=0)
        spread = (volumes - mean).double() / (len(volumes) - 1) ** 0.5
        of_cases = torch.linalg.eigh(spread @ spread.T).eigenvectors.flip(1)  # [V, V]: V is far below L
        rank = min(RANK, len(volumes) - 1)
        patterns = (of_cases[:, :rank].T @ spread).float()  # u_r: their outer products sum to the covariance
        prior = cls(lattice.shape, rank, SHARE, classifier, place_of(lattice))
        prior.mean.copy_(mean)
        prior.deviation.copy_(spread.square().sum(dim=0).sqrt().float().clamp(min=1e-3))
        prior.patterns_of.copy_(patterns)
        return prior

    @property
    def size(self) -> int:
        """L."""
        return len(self.mean)

    @property
    def variance(self) -> Tensor:
        """k(p, p), float32 [L]."""
        learned = self.patterns_of.square().sum(dim=0)
        return (1 - self.share) * learned + self.share * self.deviation.square()

    def rows(self, ids: Tensor) -> Tensor:
        """k(p, q) of the positions p = `ids`, int64 [...], and all q: float32 [..., L]."""
        if self.size > LARGEST_TABLE:
            return self._rows(ids.flatten()).view(*ids.shape, self.size)
        if self._table is None or self._table.device != ids.device:
            self._table = self._rows(torch.arange(self.size, device=ids.device))
        return self._table[ids]

    def _rows(self, ids: Tensor) -> Tensor:
        """The same of a list of positions [n], computed: [n, L]."""
        learned = self.patterns_of[:, ids].T @ self.patterns_of
        near = self._near(ids) * self.deviation[ids, None] * self.deviation
        return torch.add(near * self.share, learned, alpha=1 - self.share)

    def _near(self, ids: Tensor) -> Tensor:
        """exp(-½ |(p - q) / ℓ|²), float32 [n, L], one axis at a time."""
        _, sy, sz = self.shape
        cells = (ids // (sy * sz), ids // sz % sy, ids % sz)
        x, y, z = (
            torch.exp(-0.5 * ((torch.arange(n, device=ids.device) - cell[:, None]) / length).square())
            for n, cell, length in zip(self.shape, cells, LENGTHS, strict=True)
        )
        return (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).flatten(1)

    def fill(self, scores: Tensor) -> Tensor:
        """Scores float32 [K, L] without NaN: what was not seen is its posterior mean, in [0, 1], given what was.

        scores: NaN where a window was not seen.
        """
        seen = ~scores.isnan()
        most = int(seen.sum(dim=1).max()) if len(scores) else 0
        if not most:
            return self.mean.clamp(0, 1).expand(len(scores), -1)
        rows = max(1, MOST_NUMBERS // (most * self.size))
        likely = torch.cat([self._likely(part, most) for part in torch.split(scores, rows)])
        return torch.where(seen, scores, likely.clamp(0, 1))

    def _likely(self, scores: Tensor, most: int) -> Tensor:
        """m + k(·, S) (k(S, S) + ε)^-1 (f - m), float32 [K, L], of at most `most` seen windows S of each."""
        seen = ~scores.isnan()
        ids = seen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]  # those of S come first
        known = seen.gather(1, ids)  # [K, most]
        rows = self.rows(ids) * known[..., None]  # [K, most, L]
        among = rows.gather(2, ids[:, None].expand(-1, most, -1)).double() * known[:, None]
        among.diagonal(dim1=1, dim2=2).add_(torch.where(known, NOISE, 1.0))
        surprise = torch.where(known, scores.gather(1, ids) - self.mean[ids], 0.0)
        weights = torch.linalg.solve(among, surprise.double()).float()
        return self.mean + torch.bmm(weights[:, None], rows)[:, 0]


def place_of(lattice: WindowLattice) -> str:
    """Grid, window, step and phase of a lattice, in words."""
    sides = ("x".join(map(str, triple)) for triple in (lattice.full, lattice.window, lattice.phase))
    full, window, phase = sides
    return f"grid {full}, window {window}, step {lattice.step}, phase {phase}"


def load_prior(path: str | Path, lattice: WindowLattice, classifier: str | None) -> ScorePrior:
    """The prior that `save_network` wrote, on the CPU.

    Args:
        path: the file, or "packaged" for the one that was made for phantoms.
        lattice: where it is used.
        classifier: `PresenceNet.digest` of the classifier whose scores are filled; None where none gives them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another lattice or classifier.
    """
    path = PACKAGED if path == "packaged" else Path(path)
    prior = load_network(path, ScorePrior)
    if prior.place != place_of(lattice):
        raise ValueError(
            f"fill {str(path)!r} was learned on another lattice ({prior.place}) than this ({place_of(lattice)}); use "
            f"fill 'stationary', or train one with this window_size, step and grid_shape"
        )
    if prior.classifier not in ("", classifier):
        raise ValueError(
            f"fill {str(path)!r} was learned from the scores of another classifier; use fill 'stationary', or train "
            f"one with this classifier"
        )
    return prior


class Posterior:
    """Mean and variance of the scores in N environments, each of which sees windows one after the other.

    After windows p_1 ... p_n it equals the posterior given all of them (with noise ε), at the cost of O(n L) a window.

    Args:
        prior: of the lattice.
        num_envs: N.
        most: windows that an environment may see, at most.
    """

    def __init__(self, prior: ScorePrior, num_envs: int, most: int) -> None:
        self.prior = prior
        size, device = prior.size, prior.mean.device
        self.mean = prior.mean.repeat(num_envs, 1)  # [N, L]
        self.variance = prior.variance.repeat(num_envs, 1)
        self.seen = torch.zeros(num_envs, size, dtype=torch.bool, device=device)
        self._count = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._basis = torch.zeros(num_envs, most, size, device=device)  # v_j: the covariance is k - Σ_j v_j v_jᵀ
        self._used = 0  # no environment has more than so many

    def reset(self, env_ids: Tensor) -> None:
        """Forget what the environments `env_ids` int64 [K] have seen."""
        for tensor, value in ((self.mean, self.prior.mean), (self.variance, self.prior.variance)):
            tensor.index_copy_(0, env_ids, value.expand(len(env_ids), -1))
        self.seen.index_fill_(0, env_ids, value=False)
        self._count.index_fill_(0, env_ids, 0)
        self._basis.index_fill_(0, env_ids, 0.0)
        self._used = 0 if len(env_ids) == len(self.mean) else self._used

    def see(self, ids: Tensor, scores: Tensor, who: Tensor | None = None) -> None:
        """The environments `who`, bool [N] (None: all), see the window `ids` int64 [N], whose score is `scores` float32
        [N]; one that they have seen before tells them nothing."""
        env = torch.arange(len(ids), device=ids.device)
        new = ~self.seen[env, ids]
        if who is not None:
            new &= who
        column, surprise = self._column(ids, scores)
        column = torch.where(new[:, None], column, 0.0)
        self.mean = self.mean + column * surprise[:, None]
        self.variance = (self.variance - column.square()).clamp(min=0.0)
        self._basis[env, self._count.clamp(max=self._basis.shape[1] - 1)] += column
        self._count = self._count + new
        self._used = min(self._used + 1, self._basis.shape[1])
        self.seen[env, ids] |= new

    def mean_if(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The mean, float32 [N, L], if every environment saw the window `ids` int64 [N], unseen, with `scores`."""
        column, surprise = self._column(ids, scores)
        return self.mean + column * surprise[:, None]

    def _column(self, ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """v of a further window, [N, L], and by how many deviations its score surprises, [N]."""
        env, basis = torch.arange(len(ids), device=ids.device), self._basis[:, : self._used]
        left = self.prior.rows(ids) - torch.bmm(basis[env, :, ids][:, None], basis)[:, 0]
        deviation = (left[env, ids] + NOISE).clamp(min=NOISE).sqrt()
        return left / deviation[:, None], (scores - self.mean[env, ids]) / deviation

    def state(self) -> dict[str, Any]:
        """Tensors for `load_state`."""
        tensors = {"mean": self.mean, "variance": self.variance, "seen": self.seen, "basis": self._basis}
        return {**tensors, "count": self._count, "used": self._used}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        device = self.mean.device
        self.mean, self.variance, self.seen = (
            state[name].to(device, copy=True) for name in ("mean", "variance", "seen")
        )
        self._count, self._basis = (state[name].to(device, copy=True) for name in ("count", "basis"))
        self._used = state["used"]
