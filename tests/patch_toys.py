"""Small volumes, plans and networks of SEAT's inner environment."""

import torch
from segarena.datasets.decathlon.plan import Plan
from segarena.datasets.sample import Sample
from segarena.datasets.volumes import VolumePool
from segarena.envs.seat_attack import SEATAttackEnv
from segarena.segmenters.volume_networks import SmallVolumeNet

EPS = 8 / 255
STOP, HALF, WHOLE = 0, 3, 4
"""Discrete actions."""
SIDE = 6


def pool(number=4, channels=1, classes=2, side=SIDE, shift=0.0):
    """Small volumes of noise, the middle of which is foreground."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for n in range(number):
        label = torch.zeros(side, side, side, dtype=torch.uint8)
        label[2:4, 1:5, 2:5] = 1
        label[0, 0, : classes - 2] = torch.arange(2, classes).to(torch.uint8)
        image = torch.randn(channels, side, side, side, generator=generator) + label + shift
        samples.append(Sample(f"case_{n}", image, label, (1.0, 1.0, 1.0), "phantom"))
    ids = [sample.id for sample in samples]
    names = tuple(f"channel {n}" for n in range(channels))
    return VolumePool.of(samples, ids, names, tuple(f"class {n}" for n in range(classes)))


def saved_plan(folder, size=(SIDE,) * 3):
    """The file of a plan of patches of one size."""
    Plan(size, size, size, ((1, 1, 1),) * 3, 2).save(folder / "plan.json")
    return str(folder / "plan.json")


def small(channels=1, classes=2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallVolumeNet(channels, classes, width=4)


def begun(plan, num_envs=4, channels=1, classes=2, **settings):
    settings = {"model": small(channels, classes), "volumes": pool(4, channels, classes), "eps": EPS, **settings}
    env = SEATAttackEnv(num_envs=num_envs, plan=plan, device="cpu", **settings)
    env.seed(range(num_envs))
    env.reset()
    return env


def all_of(env, action):
    return torch.full((env.num_envs,), action)
