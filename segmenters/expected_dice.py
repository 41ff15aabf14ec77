"""The mask of the highest expected Dice, from a map whose values tell how likely a voxel is tumour (docs/spars.md,
Method 13).

Symbols: A = map, in [0, 1]; p = P(tumour) of a voxel in a case that has tumour; a, b = slope and offset of
p = sigmoid(a logit A + b); D = expected Dice of a mask in such a case; π = P(the case has tumour).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_LOGIT = 7.0
"""|logit A| is at most so large: A is known to lie between 0.001 and 0.999."""
BINS = 280
"""Bins of logit A in which voxels are counted, each 0.05 wide."""
ROUNDS = 200
"""Steps of the logistic regression; a few dozen suffice."""


def logit(values: Tensor) -> Tensor:
    """log(A / (1 - A)) of a map, bounded by `LARGEST_LOGIT`; A outside [0, 1] counts as the nearer end."""
    return torch.logit(values.clamp(0, 1), eps=1e-12).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def count(values: Tensor, sizes: Tensor, tumour: Tensor) -> Tensor:
    """Voxels, and tumour voxels, in every bin of logit A: float64 [2, BINS].

    Args:
        values: A, [M].
        sizes: voxels that have each of the values, float64 [M].
        tumour: tumour voxels that have each of the values, float64 [M].
    """
    place = ((logit(values) / LARGEST_LOGIT + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    return torch.stack([torch.bincount(place, one, minlength=BINS) for one in (sizes, tumour)])


@dataclass(frozen=True)
class Calibration:
    """What the value of a voxel says: p = sigmoid(slope * logit A + offset), rising with A."""

    slope: float
    offset: float

    @classmethod
    def fit(cls, counts: Tensor) -> "Calibration":
        """By logistic regression of the voxels that `count` counted, float64 [2, BINS], as Platt (1999) does it: with
        targets (N + 1) / (N + 2) and 1 / (N + 2), N voxels of that class, so that a stays finite. Newton's method,
        damped (Levenberg, Marquardt): where values lie at both ends, a whole step leads to where p has no curvature.

        A map that is lower where there is tumour tells nothing: a is 0, and p the share of tumour.

        Raises:
            ValueError: no voxel is tumour, or all are.
        """
        sizes, tumour = counts.cpu()
        total, positive = float(sizes.sum()), float(tumour.sum())
        if not 0 < positive < total:
            raise ValueError(f"{positive:g} of {total:g} voxels are tumour, so what a value says cannot be learned")
        tumour = tumour * (positive + 1) / (positive + 2) + (sizes - tumour) / (total - positive + 2)
        x = ((torch.arange(BINS, dtype=torch.float64) + 0.5) * (2 / BINS) - 1) * LARGEST_LOGIT
        design = torch.stack((x, torch.ones_like(x)))  # [2, BINS]
        odds = math.log(positive / (total - positive))
        weights = torch.tensor([0.0, odds], dtype=torch.float64)
        most = (design * sizes / 4) @ design.T + 1e-9 * total * torch.eye(
            2, dtype=torch.float64
        )  # no curvature is more
        loss, damping = _loss(design, weights, sizes, tumour), 1.0
        for _ in range(ROUNDS):
            p = torch.sigmoid(weights @ design)
            slope = design @ (tumour - sizes * p)
            curvature = (design * (sizes * p * (1 - p))) @ design.T + damping * most
            tried = weights + torch.linalg.solve(curvature, slope)
            if (after := _loss(design, tried, sizes, tumour)) < loss:
                weights, loss, damping = tried, after, damping / 10
            else:
                damping = min(1.0, damping * 10)
        a, b = weights.tolist()
        return cls(a, b) if a > 0 else cls(0.0, odds)

    def probability(self, values: Tensor) -> Tensor:
        """p of values of a map, of any shape."""
        return torch.sigmoid(self.slope * logit(values) + self.offset)

    def level(self, values: Tensor) -> float:
        """θ of one map: A > θ, strictly, is the mask with the highest expected Dice of a case that has tumour.

        Where A is 0 there is no mask: nothing was seen, or nothing speaks for tumour.
        """
        return self.best(values)[0]

    def best(self, values: Tensor) -> tuple[float, float]:
        """`level` of one map, and D there.

        D of the k voxels with the highest p is about 2 Σ_k p / (k + Σ p), with Σ p over all voxels. It is never highest
        for no voxel; `Presence` knows of cases without tumour.
        """
        ordered = values.flatten().sort(descending=True).values
        p = self.probability(ordered.double())
        number = torch.arange(1, len(p) + 1, dtype=torch.float64, device=p.device)
        expected = p.cumsum(0) / (number + p.sum())
        last = torch.ones_like(ordered, dtype=torch.bool)  # of those with the same value all are in, or none
        last[:-1] = ordered[1:] < ordered[:-1]
        inside = int(expected.masked_fill(~last, -1.0).argmax()) + 1
        theta = float(ordered[inside]) if inside < len(ordered) else 0.0
        return theta, 2 * float(expected[inside - 1])


@dataclass(frozen=True)
class Presence:
    """How likely a case has any tumour, by D of its best mask: π = sigmoid(slope * logit D + offset)."""

    curve: Calibration

    @classmethod
    def fit(cls, dice: Tensor, tumour: Tensor) -> "Presence":
        """By D, float64 [C], of cases with and without tumour, bool [C].

        Raises:
            ValueError: all cases are of one kind.
        """
        if tumour.all() or not tumour.any():
            raise ValueError(
                f"{int(tumour.sum())} of {len(tumour)} validation cases have tumour, so what speaks for none cannot be "
                f"learned; choose cases of both kinds by --validation.cases (phantoms: --validation.tumour_free 0.5), "
                f"or leave out evaluation.may_be_empty"
            )
        return cls(Calibration.fit(count(dice, torch.ones_like(dice), tumour.double())))

    def level(self, calibration: Calibration, values: Tensor) -> float:
        """θ of one map by which A > θ has the highest expected Dice, whether the case has tumour or not.

        Its best mask has π D, and none at all 1 - π, the chance that both are empty. θ is then the highest value.
        """
        theta, dice = calibration.best(values)
        chance = float(self.curve.probability(torch.tensor(dice, dtype=torch.float64)))
        return theta if chance * dice >= 1 - chance else max(theta, float(values.max()))


def _loss(design: Tensor, weights: Tensor, sizes: Tensor, tumour: Tensor) -> Tensor:
    """-log likelihood of the counted voxels."""
    z = weights @ design
    return (sizes * torch.nn.functional.softplus(z) - tumour * z).sum()
