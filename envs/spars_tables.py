"""What SPARS looks up in a step: positions, scores and features of the classifier, grey values under a window; and
its spaces."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from ..classifiers.presence import DensePresenceNet, PresenceNet, load_presence
from ..classifiers.stem import CELL
from ..classifiers.window_cam import WindowCam
from ..datasets.liver.cases import HU_WINDOW, LiverCase
from ..datasets.liver.lattice import Triple, WindowLattice, nearest_index
from ..rewards.presence import ScoreFunction, ScoreTable
from ..segmenters.score_prior import ScorePrior, load_prior
from ..segmenters.window_masks import MaskMaker
from .spars_config import CONTINUOUS, FEATURES, SparsConfig

CANDIDATE = (
    *("μ", "σ", "seen", "f if seen", "m", "s", "x", "y", "z", "time", "highest μ around", "mean σ around", "mean p"),
    *("2σ - |μ - θ|", "can be chosen"),
)
"""What is observed of a candidate in a search (spars_search.py has the symbols); around: of it and its 26
neighbours."""
SEARCH_STATE = ("time", "highest f seen", "mean σ", "predicted share of the volume", "x", "y", "z")
"""What is observed of the whole."""
PATCH_PARTS = (4, 4, 2)
"""Mean grey values along x, y and z that are observed of a patch."""
PATCH = (*(f"part {number}" for number in range(prod(PATCH_PARTS))), "x", "y", "z", "f if seen", "can be chosen")
"""What is observed of a patch: its grey values and score, place, and whether it is not blanked (spars_patch.py)."""
PATCH_STATE = ("time", "share blanked", "highest f seen", "own last f", "other's last f")
"""What is observed of the whole there."""


def lattice_of(config: SparsConfig) -> WindowLattice:
    """Where windows may stand; the phase, if left open, is that of the start corner."""
    assert config.grid_shape is not None
    assert config.window_size is not None
    x, y, z = (size // 2 % config.step if config.start == "corner_paper" else 0 for size in config.grid_shape)
    return WindowLattice(config.grid_shape, config.window_size, config.step, config.phase or (x, y, z))


def open_moves(following: Tensor, config: SparsConfig) -> Tensor:
    """Moves that change the place, or mean to stay, at each of L positions: bool [L, A].

    For multidiscrete3 [L, 9], the values 0, 1, 2 of x, y and z: an axis does not depend on the others. Where nothing is
    left, as of a window as large as the volume, all are.

    Args:
        following: where each move leads, int64 [L, A].
        config: has the moves.
    """
    stays = torch.tensor([move == (0, 0, 0) for move in config.moves], dtype=torch.bool)
    is_open = (following != torch.arange(len(following))[:, None]) | stays
    if config.action_set == "multidiscrete3":
        along = [[v - 1 if axis == k else 0 for k in range(3)] for axis in range(3) for v in range(3)]
        return is_open[:, [config.moves.index((x, y, z)) for x, y, z in along]]
    return is_open | ~is_open.any(dim=1, keepdim=True)


def score_tables(
    config: SparsConfig,
    cases: Sequence[LiverCase],
    lattice: WindowLattice,
    function: ScoreFunction | None,
    device: torch.device,
) -> tuple[ScoreTable, ScoreTable, int]:
    """Table of the scores, table of the features (the same where one network gives both), and number of features.

    Features are kept only where they are observed; elsewhere their number is 0.

    Raises:
        ValueError: `function` is none; a classifier is needed and not named, or was trained with other grey values.
    """
    if function is not None and not callable(function):
        raise ValueError(
            f"score_source is {function!r} but must be 'classifier', 'oracle_fraction' or a function (case, corners "
            f"int64 [N, 3]) -> scores float32 [N]"
        )
    observed = config.obs_mode == FEATURES
    scored_by_net = config.score_source == "classifier" and function is None
    net = _classifier(config) if scored_by_net or observed else None
    table = partial(ScoreTable, cases, lattice, engine=config.score_engine, device=device)
    if scored_by_net and net is not None:
        scores = features = table(net, features=observed, cache_dir=config.cache_dir)
    else:
        scores = features = table(function or "oracle_fraction")
        if net is not None:
            features = table(net, features=True, cache_dir=config.cache_dir)
    return scores, features, net.num_features if observed and net is not None else 0


def _classifier(config: SparsConfig) -> PresenceNet:
    if config.classifier is None:
        raise ValueError(
            f"no classifier for data={config.data!r}: give classifier=<presence.safetensors> (train one with "
            f"`train`); 'packaged' names the one that was made for phantoms"
        )
    net = load_presence(config.classifier)
    seen = config.hu_window or HU_WINDOW
    if tuple(net.hu_window) != tuple(seen):
        raise ValueError(
            f"hu_window is {seen} but classifier {config.classifier!r} was trained with another one; "
            f"give hu_window={tuple(net.hu_window)}"
        )
    return net


def mask_maker(config: SparsConfig, table: ScoreTable) -> MaskMaker:
    """What makes maps of the scores of windows, with what unseen windows are filled from, on the table's device.

    Raises:
        FileNotFoundError, ValueError: `config.fill` is no such file, or of another lattice or classifier; or
            `config.paint` needs a classifier that there is not.
    """
    lattice, device = table.lattice, table.device
    assert config.fill is not None
    assert config.reduce is not None
    assert config.upsample is not None
    prior = None
    if config.fill == "stationary":
        prior = ScorePrior(lattice.shape).to(device)
    elif config.fill != "none":
        prior = load_prior(config.fill, lattice, table.digest).to(device)
    return MaskMaker(lattice, config.reduce, config.upsample, prior, _evidence(config, table))


def _evidence(config: SparsConfig, table: ScoreTable) -> WindowCam | None:
    if config.paint == "windows" or (config.paint is None and config.reduce == "sum"):
        return None
    if not isinstance(table.net, DensePresenceNet) or table.lattice.step != CELL:
        if config.paint == "cells":
            raise ValueError(
                f"paint is 'cells' but needs the scores of a DensePresenceNet and step {CELL}, not step "
                f"{table.lattice.step} and {type(table.net).__name__ if table.net else 'scores of a function'}"
            )
        return None
    return WindowCam(table.net, table.lattice, [case.image for case in table.cases])


class Windows:
    """Grey values under a window at any position of any case, from one copy of the images on the device.

    Args:
        cases: the volumes.
        lattice: where windows stand.
        size: voxels (x, y, z) to which a window is resized (nearest); None: its own size.
        device: where the images live.
    """

    def __init__(
        self, cases: Sequence[LiverCase], lattice: WindowLattice, size: Triple | None, device: torch.device
    ) -> None:
        images = torch.stack([case.image for case in cases]).to(device).flatten()  # [C·X·Y·Z]
        (_, ny, nz), (wx, wy, wz) = lattice.full, lattice.window
        self._window, self._voxels = lattice.window, prod(lattice.full)
        self._lines = images.as_strided((len(images) - wz + 1, wz), (1, 1))  # a view: line v is wz voxels from v on
        self._first = (lattice.corners() * torch.tensor((ny * nz, nz, 1))).sum(dim=1).to(device)  # [L]
        lines = (torch.arange(wx)[:, None] * ny + torch.arange(wy)) * nz
        self._window_lines = lines.flatten().to(device)  # [wx·wy], from the first voxel of a window
        resized = zip(lattice.window, size or lattice.window, strict=True)
        self._resize = [nearest_index(voxels, out).to(device) for voxels, out in resized] if size else []

    def crop(self, case: Tensor, at: Tensor) -> Tensor:
        """Windows at the positions `at` int64 [P, N] of the cases `case` int64 [N]: uint8 [N, P, *size]."""
        first = case[:, None] * self._voxels + self._first[at.T]  # [N, P]
        lines = (first[..., None] + self._window_lines).flatten()
        crops = self._lines.index_select(0, lines).view(*first.shape, *self._window)  # 10 times faster than an index
        for axis, index in enumerate(self._resize):
            crops = crops.index_select(axis + 2, index)
        return crops


def placement(actions: Tensor, lattice: WindowLattice) -> Tensor:
    """Numbers of the positions nearest to lower corners given as shares of the volume, int64 [N] of float [N, 3].

    The corner is full · a, clipped to where a window can stand (docs/spars.md, Method 2).
    """
    axes = zip(actions.unbind(dim=-1), lattice.full, lattice.phase, lattice.shape, lattice.strides, strict=True)
    cells = [
        ((share * full - phase) / lattice.step).round().long().clamp(0, number - 1) * stride
        for share, full, phase, number, stride in axes
    ]
    return cells[0] + cells[1] + cells[2]


def patch_parts(cases: Sequence[LiverCase], lattice: WindowLattice) -> Tensor:
    """Mean grey values in [0, 1] of PATCH_PARTS parts of each patch, in the order x, y, z: float32 [C, patches, parts],
    on the CPU."""
    parts = []
    for case in cases:
        patches = case.image
        for axis, (w, phase) in enumerate(zip(lattice.window, lattice.phase, strict=True)):
            patches = patches.narrow(axis, phase, lattice.full[axis] - phase).unfold(axis, w, w)
        parts.append(F.adaptive_avg_pool3d(patches.flatten(0, 2).float() / 255.0, PATCH_PARTS).flatten(1))
    return torch.stack(parts)


def spaces_of(cfg: SparsConfig, lattice: WindowLattice, n_features: int) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Observation and action space of one environment; n_features: F, of the classifier at one window."""
    if cfg.profile == "search":
        number = len(cfg.moves) or lattice.size
        seen: dict[str, spaces.Space[Any]] = {
            "candidates": spaces.Box(-4.0, 4.0, (number, len(CANDIDATE)), np.float32),
            "state": spaces.Box(-4.0, 4.0, (len(SEARCH_STATE),), np.float32),
        }
        if cfg.obs_mode == FEATURES:
            seen["features"] = spaces.Box(-np.inf, np.inf, (3, n_features), np.float32)
        return spaces.Dict(seen), spaces.Discrete(number)
    if cfg.profile == "patch":
        number = prod(cfg.patch_shape)
        candidates = spaces.Box(0.0, 1.0, (number, len(PATCH)), np.float32)
        state = spaces.Box(-1.0, 1.0, (len(PATCH_STATE),), np.float32)
        return spaces.Dict(candidates=candidates, state=state), spaces.MultiDiscrete([number, 2])
    actions: spaces.Space[Any] = spaces.Box(0.0, 1.0, (3,), np.float32)
    if cfg.action_set != CONTINUOUS:
        actions = spaces.Discrete(len(cfg.moves))
    if cfg.action_set == "multidiscrete3":
        actions = spaces.MultiDiscrete([3, 3, 3])
    players, numbers = cfg.n_agents, 4 * cfg.n_agents + 1
    if cfg.obs_mode == FEATURES:
        return spaces.Box(-np.inf, np.inf, (players * n_features + numbers,), np.float32), actions
    if cfg.obs_mode == "own_window":
        return spaces.Box(0, 255, (1, *(cfg.obs_size or lattice.window)), np.uint8), actions
    windows = spaces.Box(0, 255, (players, *lattice.window), np.uint8)
    return spaces.Dict(windows=windows, state=spaces.Box(-1.0, 1.0, (numbers,), np.float32)), actions
