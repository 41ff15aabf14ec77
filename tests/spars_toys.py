"""Small made-up volumes for the tests of SPARS: an axis along which windows move, and scores that say where."""

from dataclasses import replace
from functools import cache

import torch
from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
from segarena.datasets.liver.lesions import TUMOUR
from segarena.envs.spars import SparsEnv

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
