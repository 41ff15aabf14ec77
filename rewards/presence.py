"""Presence scores of all windows of all cases, computed once and looked up afterwards (docs/spars.md, Method 2 and 8).

A frozen classifier's score depends on the case and the window's corner only, and corners lie on a lattice of L
positions. `ScoreTable` holds the C·L scores on one device; a step of the environment looks two of them up.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..classifiers.presence import PresenceNet
from ..common.checks import check_choice
from ..datasets.cache import cached
from ..datasets.liver.cases import LiverCase
from ..datasets.liver.lattice import WindowLattice
from ..datasets.liver.lesions import TUMOUR

log = logging.getLogger(__name__)

Engine = Literal["auto", "dense", "sliding", "lazy"]
ScoreFunction = Callable[[LiverCase, Tensor], Tensor]
"""Scores float32 [N] in [0, 1] of the windows of a case with lower corners int64 [N, 3]."""
FORMAT = 2
"""Part of every cache key: raise it when the same network and volume shall give other scores."""


class ScoreTable:
    """Scores float32 [C, L] in [0, 1] of all positions of `lattice` on all `cases`, resident on `device`.

    Args:
        cases: volumes on the lattice's grid.
        lattice: window, step and phase.
        scorer: a frozen classifier (it is moved to `device`); "oracle_fraction", the share of the case's tumour inside
            the window, which uses the labels; or a function.
        engine: dense scores every position before it is asked for, by one forward of the volume if the classifier has
            one on this lattice. sliding does so window by window, in batches, whatever the classifier has. lazy scores
            the positions that are asked for, all new ones of a lookup in one batch, and keeps them. auto is dense for
            the oracle and for a classifier that has a dense forward on this lattice, else lazy.
        features: keep the classifier's pooled features too (float16; 256 bytes a position for DensePresenceNet).
        device: where the table lives and the classifier runs.
        cache_dir: where the dense or sliding scores of a classifier are kept between runs; default as in
            `datasets.cache`.

    Raises:
        ValueError: no cases, a case on another grid, a classifier in training mode, features without a classifier,
            an oracle without labels, or scores that are not finite or outside [0, 1].
    """

    def __init__(
        self,
        cases: Sequence[LiverCase],
        lattice: WindowLattice,
        scorer: PresenceNet | Literal["oracle_fraction"] | ScoreFunction,
        *,
        engine: Engine = "auto",
        features: bool = False,
        device: torch.device | str = "cpu",
        cache_dir: str | None = None,
    ) -> None:
        _check_cases(cases, lattice)
        self.cases, self.lattice, self.device = list(cases), lattice, torch.device(device)
        self._net = scorer.to(self.device) if isinstance(scorer, PresenceNet) else None
        if self._net is not None:
            _check_net(self._net, lattice)
            shares_work = self._net.has_dense(lattice)
        else:
            if features:
                raise ValueError("features come from a classifier; with another scorer use features=False")
            shares_work = scorer == "oracle_fraction"
            self._function = _function(scorer, lattice)
        check_choice("score_engine", engine, get_args(Engine))
        self._slides = engine == "sliding"
        self._lazy = engine == "lazy" or (engine == "auto" and not shares_work)
        self._asked = self._evaluated = 0

        positions = len(self.cases) * lattice.size
        self._corners = lattice.corners().to(self.device)
        self._scores = torch.full((positions,), torch.nan, device=self.device)
        width = self._net.num_features if self._net is not None and features else 0
        self._features = torch.empty(positions, width, dtype=torch.float16, device=self.device)
        if not self._lazy:
            for number in range(len(self.cases)):
                self._fill_case(number, cache_dir)
        elif self._net is not None:
            self._volumes = torch.stack([case.image for case in self.cases]).to(self.device)  # [C, X, Y, Z]

    # -- looking up ------------------------------------------------------------------------------------------------

    def lookup(self, case: Tensor, ids: Tensor) -> Tensor:
        """Scores float32 [...] of the positions `ids` of the cases numbered `case`, both int64 [...] and valid."""
        rows = self._seen(case, ids)
        self._asked += rows.numel()
        return self._scores[rows]

    def feature_rows(self, case: Tensor, ids: Tensor) -> Tensor:
        """Pooled features float16 [..., F] of the positions `ids` of the cases numbered `case`, both int64 [...].

        F is 0 in a table that keeps no features.
        """
        return F.embedding(self._seen(case, ids), self._features)  # a plain index starts threads for a small batch

    def volume(self, case: int) -> Tensor:
        """Score volume float32 [sx, sy, sz] of case number `case`; a lazy table scores what is missing."""
        ids = torch.arange(self.lattice.size, device=self.device)
        return self.lookup(torch.full_like(ids, case), ids).view(self.lattice.shape)

    @property
    def scores(self) -> Tensor:
        """The table as it is, float32 [C, L]: NaN where a lazy one has not been asked yet."""
        return self._scores.view(len(self.cases), self.lattice.size)

    @property
    def cache_hit(self) -> float:
        """Share of the lookups so far that needed no forward: 1 unless the table is lazy."""
        return 1 - self._evaluated / self._asked if self._asked else 1.0

    @property
    def net(self) -> PresenceNet | None:
        """The classifier; None where the scores are of something else."""
        return self._net

    @property
    def digest(self) -> str | None:
        """`PresenceNet.digest` of the classifier; None where the scores are of something else."""
        return None if self._net is None else self._net.digest()

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs: what a lazy table has scored so far."""
        counts = {"asked": self._asked, "evaluated": self._evaluated}
        if not self._lazy:
            return counts
        rows = (~self._scores.isnan()).nonzero().flatten()
        return {**counts, "rows": rows, "scores": self._scores[rows], "features": self._features[rows]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read, on the same cases, lattice and scorer."""
        self._asked, self._evaluated = state["asked"], state["evaluated"]
        if self._lazy:
            rows = state["rows"].to(self.device)
            self._scores.fill_(torch.nan)[rows] = state["scores"].to(self.device)
            self._features[rows] = state["features"].to(self.device)

    def _seen(self, case: Tensor, ids: Tensor) -> Tensor:
        """Row numbers in the table, int64 [...], once their scores are there."""
        rows = torch.add(ids, case, alpha=self.lattice.size)
        if self._lazy:
            new = torch.unique(rows[self._scores[rows].isnan()])
            self._evaluated += new.numel()
            if new.numel():
                self._fill(new)
        return rows

    # -- scoring ---------------------------------------------------------------------------------------------------

    def _fill_case(self, number: int, cache_dir: str | None) -> None:
        """Score every position of a case; a classifier's scores come from the disk if they are there."""
        rows = torch.arange(number * self.lattice.size, (number + 1) * self.lattice.size, device=self.device)
        if self._net is None:
            self._fill(rows)
            return
        net, case = self._net, self.cases[number]
        features = self._features.shape[1] > 0

        def build() -> dict[str, Tensor]:
            score = net.slide if self._slides else net.score_lattice
            scores, pooled = score(case.image.to(self.device), self.lattice)
            tensors = {"scores": scores.cpu()}
            return tensors | {"features": pooled.half().cpu()} if features else tensors

        key = {
            "format": FORMAT,
            "case": case.digest,
            "classifier": net.digest(),
            "numerics": "float32, convolutions in TF32" if self.device.type == "cuda" else "float32",
            "lattice": [self.lattice.full, self.lattice.window, self.lattice.step, self.lattice.phase],
            "features": features,
            "engine": "sliding" if self._slides else "dense",
        }
        tensors = cached("presence_scores", key, build, cache_dir)
        self._store(rows, tensors["scores"], tensors.get("features"))

    def _fill(self, rows: Tensor) -> None:
        """Score the positions in the rows `rows`, int64 [N]: in one batch, or a function case by case."""
        owner, corners = rows // self.lattice.size, self._corners[rows % self.lattice.size]
        if self._net is not None:
            self._store(rows, *self._net.score_windows(self._volumes, owner, corners, self.lattice.window))
            return
        for number in torch.unique(owner).tolist():
            mine = owner == number
            self._store(rows[mine], self._function(self.cases[number], corners[mine].cpu()))

    def _store(self, rows: Tensor, scores: Tensor, pooled: Tensor | None = None) -> None:
        """Keep scores [N] and features [N, F]. A NaN is refused: it would win no duel and be scored for ever."""
        bad = ~((scores >= 0) & (scores <= 1))
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise ValueError(
                f"the scorer gives {float(scores[at])} on {self.cases[int(rows[at]) // self.lattice.size].id} "
                f"but scores must lie in [0, 1]"
            )
        self._scores[rows] = scores.to(self.device, torch.float32)
        if pooled is not None and self._features.shape[1]:
            self._features[rows] = pooled.to(self.device, torch.float16)


def oracle_fraction(lattice: WindowLattice) -> ScoreFunction:
    """A scorer that knows the truth: share of the case's tumour volume inside the window, 0 where it has no tumour."""

    def score(case: LiverCase, corners: Tensor) -> Tensor:
        if case.label is None:
            raise ValueError(f"{case.id} has no label, which 'oracle_fraction' needs; use a classifier")
        tumour = case.label == TUMOUR
        return lattice.window_sums(tumour)[lattice.ids(corners)] / tumour.sum().clamp(min=1)

    return score


def _function(scorer: object, lattice: WindowLattice) -> ScoreFunction:
    if scorer == "oracle_fraction":
        log.warning("the scorer 'oracle_fraction' reads the labels: for tests and upper bounds only")
        return oracle_fraction(lattice)
    if not callable(scorer):
        raise ValueError(f"scorer is {scorer!r} but must be a classifier, 'oracle_fraction' or a function")
    return scorer


def _check_cases(cases: Sequence[LiverCase], lattice: WindowLattice) -> None:
    if not cases:
        raise ValueError("a score table needs at least one case")
    for case in cases:
        if tuple(case.image.shape) != lattice.full:
            raise ValueError(f"{case.id} is {tuple(case.image.shape)} but the lattice stands on {lattice.full}")


def _check_net(net: PresenceNet, lattice: WindowLattice) -> None:
    if net.training:
        raise ValueError("the classifier is in training mode, where a score depends on its batch; call .eval()")
    if net.window_size != lattice.window:
        log.warning("the classifier is trained for windows of %s but scores %s", net.window_size, lattice.window)
