"""Small games of the environments of RP-PGD: their images, environments and actions."""

import math

import torch
from attack_toys import scene, trained
from segarena.agents.papers import POLICIES
from segarena.datasets.images import ImagePool
from segarena.envs.attack import AttackEnv
from segarena.envs.attack_actions import NUMBERS, encode

NAMES = ("ground", "one", "two")
RULES = POLICIES["RPPGD-VOC-v0"]


def pool(number=6, side=16, ignored=(), **changes):
    images, labels = scene(number, side=side)
    labels[:, 0] = 255
    for row in ignored:
        labels[row] = 255
    fields = {
        "images": (255 * images).round().to(torch.uint8),
        "labels": labels.to(torch.uint8),
        "ids": [f"scene_{n}" for n in range(number)],
        "groups": [f"scene_{n}" for n in range(number)],
        "tags": {},
        "spacing_mm": torch.full((number, 2), math.nan, dtype=torch.float64),
        "classes": NAMES,
        "origin": "phantom",
    }
    return ImagePool(**{**fields, **changes})


def made(num_envs=4, **settings):
    settings = {"model": trained(), "images": pool(), "feature_layer": "features", "eps": 0.08, **settings}
    return AttackEnv(num_envs=num_envs, device="cpu", **settings)


def begun(num_envs=4, seed=0, **settings):
    env = made(num_envs, **settings)
    env.seed(range(seed, seed + num_envs))
    env.reset()
    return env


def action(**numbers):
    """The action of PGD with some numbers changed."""
    plain = {**dict.fromkeys(NUMBERS, 0.0), **dict.fromkeys(NUMBERS[:5], 1.0), "step_size": 0.5}
    return encode([{**plain, **numbers}[name] for name in NUMBERS])


def actions(env, **numbers):
    return torch.tensor([action(**numbers)] * env.num_envs)
