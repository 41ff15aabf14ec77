"""A small victim and scenes on which adversarial trainings take a second; a phantom run for the command line."""

import torch
from attack_toys import TinyNet
from segarena.agents.rp_pgd.config import TrainingConfig
from segarena.agents.rp_pgd.training import train_adversarial
from segarena.attacks.victim import Normalized
from segarena.common.runs import Run
from segarena.datasets.images import IGNORED
from segarena.datasets.scenes.augmentation import AugmentationConfig
from segarena.datasets.scenes.files import Scene
from segarena.datasets.scenes.images import SceneDataConfig, Scenes

SIDE = 17
EPS = 0.05
MEANS = torch.tensor([[0.3, 0.53, 0.5], [0.5, 0.5, 0.47], [0.7, 0.47, 0.53]])
"""Of each class: the first channel, noisy, tells them apart by more than 2 eps, the other two, exact, by less."""
NOISE = torch.tensor([0.12, 0.005, 0.005])
WHOLE = AugmentationConfig(crop=SIDE, scale=(1.0, 1.0), rotation=0.0, blur=0.0)
TINY = {
    "paper": "rp_pgd",
    "device": "cpu",
    "data": {"size": 33, "phantom_scenes": {"train": 8, "val": 2, "test": 3}},
    "augmentation": {"crop": 33, "scale": [1.0, 1.0], "rotation": 0.0, "blur": 0.0},
    "network": {"kind": "unet", "init_channels": 2},
    "training": {"epochs": 3, "batch_size": 4, "learning_rate": 0.05, "loaders": 0},
    "evaluation": {"attacks": ["fgsm", "rp_pgd_pp_2"]},
}
"""A run of seconds."""


def draw(number):
    """A scene of boxes of two classes on a ground, with noise, and a row that is ignored."""
    generator = torch.Generator().manual_seed(number)
    label = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    for value in (1, 2):
        y, x = torch.randint(0, SIDE - 8, (2,), generator=generator).tolist()
        label[y : y + 8, x : x + 8] = value
    image = MEANS[label.long()].movedim(-1, 0) + NOISE[:, None, None] * torch.randn(3, SIDE, SIDE, generator=generator)
    label[-1] = IGNORED
    return Scene(f"toy_{number}", (255 * image.clamp(0, 1)).round().to(torch.uint8), label)


def toys(number, first=0, load=None):
    """Scenes of these numbers, which say that they are phantoms of one size."""
    names = [f"toy_{n}" for n in range(first, first + number)]
    load = load or (lambda name: draw(int(name.removeprefix("toy_"))))
    config = SceneDataConfig(size=SIDE)
    return Scenes(names, list(names), ("ground", "one", "two"), "phantom", load, config)


def toy_victim(seed=0, dropout=0.5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TinyNet(channels=3, width=8)
    net.dropout.p = dropout
    return Normalized(net, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def config(**settings):
    """A training of the toy in a second; RP-PGD's features are those of the toy."""
    given = {"method": "sat", "eps": EPS, "epochs": 3, "batch_size": 4, "learning_rate": 0.05, "loaders": 0}
    return TrainingConfig(**{**given, "feature_layer": "model.features", **settings})


def train_toy(folder, victim=None, scenes=None, *, val=None, seed=0, augmentation=WHOLE, **settings):
    """The victim after its training, its last scalars, and the run."""
    victim, run = victim or toy_victim(), Run(folder)
    scalars = train_adversarial(victim, scenes or toys(8), val, augmentation, config(**settings), run, seed)
    run.close()
    return victim, scalars, run
