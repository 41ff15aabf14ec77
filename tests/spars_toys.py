"""Small made-up volumes for the tests of SPARS: an axis along which windows move, and scores that say where."""

from dataclasses import replace
from functools import cache

import torch
from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
from segarena.datasets.liver.lesions import TUMOUR
from segarena.envs import spars
from segarena.envs.spars import SparsEnv

ONE = {"cases": ["phantom_02000"], "device": "cpu"}
ORACLE = {**ONE, "score_source": "oracle_fraction"}
PAINT = {"reduce": "sum", "upsample": "blocks"}
"""How the paper's profile makes masks."""
PLUS_X, MINUS_X = 4, 5
"""Actions of `axis6`."""
LINE = {"grid_shape": (40, 8, 8), "window_size": (8, 8, 8), "start": "centre", "device": "cpu"}
"""Nine positions along x, 0 to 32; both agents begin at x = 16, and no other axis leaves room to move."""


@cache
def _sample():
    return load_liver_cases(LiverDataConfig(cases=["phantom_02000"]))[0]


def case_of(full, tumour=None, **changes):
    """A case of `full` voxels; tumour: slices of its tumour voxels, None: there are none."""
    label = torch.zeros(full, dtype=torch.uint8)
    if tumour is not None:
        label[tumour] = TUMOUR
    x, y, z = full
    image = torch.arange(x * y * z).reshape(full).remainder(256).to(torch.uint8)
    return replace(_sample(), **{"id": "toy", "image": image, "label": label, "spacing_mm": (1.0, 1.0, 1.0), **changes})


def along_x(scores, elsewhere=0.0):
    """Scores by the x of a window's corner."""

    def score(case, corners):
        return torch.tensor([scores.get(x, elsewhere) for x in corners[:, 0].tolist()])

    return score


class Always:
    """Takes one action, whatever it sees."""

    def __init__(self, action):
        self.action = action

    def act(self, obs, deterministic):
        return torch.full((len(obs["state"] if isinstance(obs, dict) else obs),), self.action)

    def __call__(self, env):
        return torch.full((env.num_envs,), self.action)


def line_env(scores=None, tumour=None, **settings):
    """The environment of LINE. scores: f by x; tumour: (first, last + 1) voxel of the tumour along x."""
    made = {**LINE, "obs_mode": "own_window", **settings}
    made.setdefault("volumes", [case_of(made["grid_shape"], None if tumour is None else slice(*tumour))])
    if scores is not None:
        made["score_source"] = along_x(scores)
    return SparsEnv(**made)


def toy(monkeypatch, full, label=None, image=None):
    """Let every environment play on one made-up case."""
    x, y, z = full
    image = torch.arange(x * y * z).reshape(full).remainder(256).to(torch.uint8) if image is None else image
    case = replace(_sample(), id="toy", image=image, label=label, spacing_mm=(1.0, 1.0, 1.0))
    monkeypatch.setattr(spars, "load_liver_cases", lambda config: [case])


def play(env, actions):
    """Reward, terminated, truncated of each action, taken in every environment."""
    return [env.step(torch.as_tensor([action] * env.num_envs)) for action in actions]


def linear_score(case, corners):
    """Rises along every axis; no two windows of a small lattice have the same."""
    return (corners.double() @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) * 1e-3).float()
