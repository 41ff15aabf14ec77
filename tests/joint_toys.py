"""A linear classifier of four patches, whose best mask is known, and tiny runs of APGA."""

import torch
from segarena.agents.apga.config import AgentConfig, APGAExperiment, TrainingConfig, UpdateConfig, WarmUpConfig
from segarena.agents.apga.game import Game, Players
from segarena.agents.apga.joint import Loop
from segarena.agents.apga.methods import method_of
from segarena.classifiers.train_xray import XrayTrainingConfig
from segarena.common.runs import Run
from segarena.datasets.images import ImagePool
from segarena.datasets.xray.images import PhantomStudies, XrayConfig, XrayPool
from segarena.segmenters.grid_network import GridNetwork
from torch import nn
from torch.optim import Adam

SIDE = 8
DATA = XrayConfig(size=32, phantom_studies=PhantomStudies(train=8, val=4, test=4))
BEST = 1.25
"""Highest reward of the sixteen masks of `Patches`, of cells 0 and 3."""


class Patches(nn.Module):
    """Logits (0, 2 a - 0.5 b + 0 c + d - 1) of the means a, b, c, d of an image's four quarters."""

    split_bn = False

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, -0.5, 0.0, 1.0]))
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x, *, masked=False):
        quarters = nn.functional.avg_pool2d(x, x.shape[-1] // 2).flatten(1)
        logit = quarters @ self.weight + self.bias
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


class Table(nn.Module):
    """An agent with the same logits for every image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x):
        return self.logits.expand(len(x), -1, -1, -1).clone()


def white_pool(number=8):
    """White images of class 1."""
    pool = ImagePool(
        torch.full((number, 1, SIDE, SIDE), 255, dtype=torch.uint8),
        torch.zeros(number, SIDE, SIDE, dtype=torch.uint8),
        [f"white_{n}" for n in range(number)],
        [f"patient_{n}" for n in range(number)],
        {"study": [f"study_{n}" for n in range(number)], "part": ["limb"] * number},
        torch.full((number, 2), float("nan"), dtype=torch.float64),
        ("background", "lesion"),
        "phantom",
    )
    return XrayPool(pool, torch.ones(number, dtype=torch.int64), ("normal", "abnormal"))


def toy(method, *, agent=None, rate=0.02, number=8, **settings):
    """A game about `Patches`, and the method's row."""
    update = {"learning_rate": rate, "zeros_coef": 0.0, "ent_coef": 0.0, "ratio": "sum", **settings}
    training = TrainingConfig(method=method, batch_size=number, epochs=1, learning_rate=1e-3)
    experiment = APGAExperiment(
        data=DATA, agent=AgentConfig(grid=2, width=8), update=UpdateConfig(**update), training=training
    )
    if agent is None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            agent = GridNetwork(SIDE, 2, width=8)
    players = Players(Patches(), agent)
    groups = [
        {"params": players.classifier.parameters(), "lr": training.learning_rate},
        {"params": agent.parameters(), "lr": rate},
    ]
    return Game(players, Adam(groups), white_pool(number), experiment), method_of(experiment)


def play(game, row, groups, epochs, folder):
    """So many epochs of these groups of steps."""
    loop, generator = Loop(game, row, groups, game.pool, Run(folder)), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        loop.train_epoch(game.players, generator)
    return game


def tiny(method, *, warm_up=0, epochs=2, classifier=None, agent=None, seed=0, update=None, **training):
    """An experiment of seconds."""
    return APGAExperiment(
        name=method,
        seed=seed,
        device="cpu",
        data=DATA,
        classifier=XrayTrainingConfig(**{"network": "small_cnn", "in_channels": 1, "epochs": 1, **(classifier or {})}),
        agent=AgentConfig(**{"grid": 8, "width": 8, **(agent or {})}),
        update=UpdateConfig(**(update or {})),
        warm_up=WarmUpConfig(epochs=warm_up),
        training=TrainingConfig(
            **{"method": method, "epochs": epochs, "batch_size": 8, "learning_rate": 1e-3} | training
        ),
    ).resolved()
