"""Radiographs of four greys, and classifiers whose answers are computed by hand, for the tests of APGA."""

import math

import torch
from segarena.agents.dense_ppo.policy import DensePolicy
from segarena.datasets.images import ImagePool
from segarena.datasets.xray.images import XrayPool
from segarena.envs.apga import APGAEnv
from torch import nn

CONTRIBUTIONS, BIAS = (2.0, -0.5, 0.0, 1.0), -1.0
GREYS = (255, 102, 153, 204)
"""Of the four cells, brighter where more is contributed."""
OPTIMUM = 1.25
"""Of the reward of the toy with area_coef 0.5, by the mask of cells 0 and 3."""


class Linear(nn.Module):
    """Logits (0, z): z = BIAS + the sum over a 2 x 2 grid of weights times the mean of the cell, CONTRIBUTIONS."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(CONTRIBUTIONS) * 255 / torch.tensor(GREYS))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        assert not self.training
        cells = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        z = BIAS + (cells * self.weight).sum(dim=1)
        return torch.stack((torch.zeros_like(z), z), dim=1)


def pool(number=1, size=32, *, labels=None, images=None, roi=None):
    """Images of four grey cells (or the ones that are given, uint8 [N, S, S]), all of class 1 unless labels say so."""
    if images is None:
        cells = torch.tensor(GREYS, dtype=torch.uint8).view(2, 2)
        images = cells.repeat_interleave(size // 2, 0).repeat_interleave(size // 2, 1).repeat(number, 1, 1)
    number = len(images)
    names = [f"limb_{n}" for n in range(number)]
    return XrayPool(
        pool=ImagePool(
            images=images[:, None],
            labels=None if roi is None else roi.to(torch.uint8),
            ids=names,
            groups=names,
            tags={"study": names, "part": ["limb"] * number},
            spacing_mm=torch.full((number, 2), math.nan, dtype=torch.float64),
            classes=("background", "lesion"),
            origin="phantom",
        ),
        labels=torch.ones(number, dtype=torch.int64) if labels is None else torch.tensor(labels),
        classes=("normal", "abnormal"),
    )


class Cells(DensePolicy):
    """Actor and critic see the mean of each cell alone."""

    def make_networks(self):
        actor, critic = (
            nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(1, 16, 1), nn.Tanh(), nn.Conv2d(16, 1, 1)) for _ in range(2)
        )
        return actor, critic


def toy(num_envs=1, images=None, **settings):
    """An environment of the toy that has begun."""
    classifier = settings.pop("classifier", None) or Linear().eval()
    env = APGAEnv(
        images=images or pool(), classifier=classifier, num_envs=num_envs, device="cpu", **{"grid": 2, **settings}
    )
    env.seed(range(num_envs))
    env.reset()
    return env
