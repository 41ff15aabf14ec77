"""Phantom patches of 16 voxels a side on which trainings of SEAT take seconds."""

import torch
from segarena.agents.seat.config import NetworkConfig, TrainingConfig
from segarena.agents.seat.training import build_network, train_network
from segarena.common.runs import Run
from segarena.datasets.decathlon.cases import DecathlonConfig, PhantomCases, load_decathlon
from segarena.datasets.decathlon.sampling import PatchSampler

DATA = DecathlonConfig(task="toy", phantom_cases=PhantomCases(labelled=15, test=2))
"""12 cases to learn from and 3 of validation."""
TINY = {
    "paper": "seat",
    "device": "cpu",
    "data": {"task": "toy", "phantom_cases": {"labelled": 10, "test": 2}},
    "network": {"kind": "small3d", "width": 4},
    "training": {"epochs": 2, "batch_size": 4, "most_iterations": 2, "schedule": "constant"},
    "evaluation": {"attacks": ["pgd_2"], "eps": ["8/255"]},
}
"""A run of seconds."""


def toy_network(seed=0, width=4):
    return build_network(NetworkConfig(kind="small3d", width=width), DATA.resolved_task, DATA.resolved_plan(), seed)


def toy_batch(number=4, epoch=0):
    """Patches float32 [number, 1, 16, 16, 16] and their labels."""
    return PatchSampler(load_decathlon(DATA, "train"), DATA.resolved_plan(), seed=0).batch(torch.arange(number), epoch)


def toy_config(**settings):
    given = {"schedule": "constant", "most_iterations": 3, "eps": "16/255", "epochs": 2, "batch_size": 4}
    return TrainingConfig(**{**given, **settings})


def train_toy(folder, net=None, *, seed=0, data=DATA, **settings):
    """The network after its training, its last scalars, and the run."""
    net, run = net or toy_network(), Run(folder)
    sampler = PatchSampler(load_decathlon(data, "train"), data.resolved_plan(), seed=1)
    scalars = train_network(net, sampler, load_decathlon(data, "select"), toy_config(**settings), run, seed)
    run.close()
    return net, scalars, run
