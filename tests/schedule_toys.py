"""Small trainings under attack: patches of 8 x 8 x 8, and settings by which an environment takes a moment a step."""

from pathlib import Path

import torch
from segarena.datasets.decathlon.cases import PhantomCases
from segarena.datasets.sample import Sample
from segarena.datasets.volumes import VolumePool
from segarena.envs.seat import SEATEnv
from segarena.envs.seat_victims import Victims, live_of
from segarena.segmenters.volume_networks import SmallVolumeNet

SMALL = {
    "phantom_cases": PhantomCases(labelled=4, test=0),
    "folds": 2,
    "plan": str(Path(__file__).parent / "small_plan.json"),
    "width": 2,
    "batch_size": 1,
    "segment": 1,
    "most_iterations": 3,
    "horizon": 6,
    "learning_rate": 0.05,
    "probe_steps": 1,
}
"""Arguments of SEAT-MSD-v0."""
EPS = 0.06


def begun(num_envs, seeds=None, **settings):
    env = SEATEnv(num_envs=num_envs, device="cpu", **{**SMALL, **settings})
    env.seed(range(num_envs) if seeds is None else seeds)
    env.reset()
    return env


def victims(number, batch=2, side=6, seed=0):
    made = Victims(
        SmallVolumeNet(1, 2, 4), number, (batch, 1, side, side, side), torch.device("cpu"), weight_decay=1e-3
    )
    generator = torch.Generator().manual_seed(seed)
    made.begin(torch.arange(number), torch.rand(number, made.size, generator=generator, dtype=torch.float64))
    return made


def minibatches(number, count, batch=2, side=6, seed=1):
    """`count` minibatches for each of `number` victims: images [E, B, 1, ...] and labels [E, B, ...]."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = (torch.rand(number, batch, side, side, side, generator=generator) < 0.3).long()
        noise = torch.randn(number, batch, 1, side, side, side, generator=generator)
        yield 2.0 * labels[:, :, None] + noise, labels


def taught(made, of, iterations, rate=0.01):
    """The sums of losses and magnitudes of each victim over minibatches, each with its own K."""
    losses = magnitudes = 0
    for images, labels in of:
        number = len(iterations)
        eps, rates = torch.full((number,), EPS), torch.full((number,), rate)
        loss, magnitude = made.replay(images, labels, eps, 0.5, live_of(iterations), rates)
        losses, magnitudes = losses + loss, magnitudes + magnitude
    return losses, magnitudes


def brittle(number, seed=0, side=8):
    """Volumes with balls that a weak chequered pattern tells with certainty, and their brightness, under spots, less.

    An attack of 0.08 of the range undoes the pattern, but not the brightness.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid([torch.arange(side)] * 3, indexing="ij"))
    chequers = 1 - 2 * grid.sum(dim=0).remainder(2)
    samples = []
    for name in range(number):
        centre = (side - 1) / 2 + (torch.rand(3, 1, 1, 1, generator=generator) - 0.5) * side / 2
        label = ((grid - centre).square().sum(dim=0) < (0.35 * side) ** 2).to(torch.uint8)
        spots = torch.randn([-(-side // 4)] * 3, generator=generator)
        for axis in range(3):
            spots = spots.repeat_interleave(4, dim=axis)
        image = 0.05 * torch.randn(label.shape, generator=generator) + 0.8 * spots[:side, :side, :side]
        image = image + label * (1.5 + 0.3 * chequers)
        samples.append(Sample(f"brittle_{name}", image[None], label, (1.0, 1.0, 1.0), origin="phantom"))
    ids = [sample.id for sample in samples]
    return VolumePool.of(samples, ids, ("MR",), ("background", "ball"))
