"""What RL4Seg is compared with, trained in the same run on the same images (paper: RL4Seg, section 10).

Each method is a stage below methods/ and leaves a segmenter there. Which labels a method has seen stands in
`SUPERVISION`; none chooses anything by labels of the target but those that are named for it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from ..datasets.echo import EchoImages
from ..runs import Run
from ..segmenters.adaptation import minimise_entropy
from ..segmenters.tist import train_tist
from ..segmenters.training import SupervisedConfig, save_segmenter, train_segmenter
from ..segmenters.udas import train_udas
from ..segmenters.unet import UNet
from .dense_ppo import DensePPOConfig
from .rl4seg_config import Method
from .rl4seg_ppo import train_policy
from .rl4seg_stages import reward_function, source_net, start_net
from .rl4seg_world import SEGMENTER, World

SUPERVISION: dict[str, str] = {"oracle_rl": "source and target", "target_supervised": "target"}
"""Labels that a method learned from; "source" if it is not named here."""


def _stage(world: World, name: str, make: Callable[[Run], UNet]) -> Path:
    """The finished stage of a method that leaves one U-Net."""

    def files(stage: Run) -> list[str]:
        save_segmenter(stage.folder / SEGMENTER, make(stage), {"stage": name})
        return [SEGMENTER]

    return world.stage(f"methods/{name}", files)


def entropy(world: World) -> nn.Module:
    """Entropy minimisation from the source network."""

    def make(stage: Run) -> UNet:
        net = world.load(source_net(world))
        return minimise_entropy(net, world.target, world.experiment.entropy, stage, world.seed("entropy"))

    return world.load(_stage(world, "entropy", make))


def gold_self_training(world: World) -> nn.Module:
    """Cross-entropy on the gold masks of all iterations, for as many gradient steps as PPO made."""
    experiment = world.experiment
    learners = [experiment.learner(i) for i in range(1, experiment.iterations + 1)]
    steps = sum(math.ceil(config.total_timesteps / config.num_envs) * config.n_epochs for config in learners)

    def make(stage: Run) -> UNet:
        gold, net = world.gold(experiment.iterations), world.load(start_net(world))
        images = replace(world.target.take(gold.rows.tolist()), labels=gold.masks)
        batch = experiment.supervised.batch_size
        epochs = math.ceil(steps / math.ceil(len(images) / batch))
        config = SupervisedConfig(epochs=epochs, learning_rate=experiment.ppo.learner.actor_lr, batch_size=batch)
        train_segmenter(net, images, None, config, stage, world.seed("gold_self_training"))
        return net

    return world.load(_stage(world, "gold_self_training", make))


def tist(world: World) -> nn.Module:
    """TI-ST, from scratch."""

    def fresh(out: int) -> UNet:
        return world.segmenter(world.seed("tist"), out=out)

    stage, config = world.run.stage("methods/tist"), world.experiment.tist
    return train_tist(fresh, world.source, world.source_val, world.target, config, stage, world.seed("tist"))


def udas(world: World) -> nn.Module:
    """UDAS, from the source network."""

    def make(stage: Run) -> UNet:
        net, config = world.load(source_net(world)), world.experiment.udas
        return train_udas(net, world.source, world.source_val, world.target, config, stage, world.seed("udas"))

    return world.load(_stage(world, "udas", make))


def policy_gradient(world: World) -> nn.Module:
    """The plain policy gradient on the last iteration's reward, images and number of passes."""
    last = world.experiment.iterations
    config = replace(world.experiment.learner(last), objective="pg", critic="none", n_epochs=1, group_size=1)
    config = replace(config, ent_coef=0.0, kl_coef=0.0)
    return _by_rl(world, "policy_gradient", config, learned=True)


def oracle_rl(world: World) -> nn.Module:
    """PPO as in the last iteration, from the start, with the true pixel accuracy as reward."""
    return _by_rl(world, "oracle_rl", world.experiment.learner(max(world.experiment.iterations, 1)), learned=False)


def _by_rl(world: World, name: str, config: DensePPOConfig, *, learned: bool) -> nn.Module:
    i = world.experiment.iterations
    start = start_net(world)

    def make(stage: Run) -> list[str]:
        reward = reward_function(world, i) if learned else "pixel_accuracy"
        nets = (world.load(start), world.load(start))
        return train_policy(world, stage, i=i, start=nets[0], reference=nets[1], reward=reward, config=config)

    return world.load(world.stage(f"methods/{name}", make))


def target_supervised(world: World) -> nn.Module:
    """The source network's training, on the target with its labels: an upper bound."""
    return _supervised(world, "target_supervised", world.target_all, world.target_val)


def ensemble(world: World) -> list[nn.Module]:
    """The source network and others that differ in the seed."""
    names = [f"ensemble/{k}" for k in range(1, world.experiment.evaluation.ensemble)]
    return [world.load(source_net(world)), *(_supervised(world, n, world.source, world.source_val) for n in names)]


def mc_dropout(world: World) -> nn.Module:
    """The source network's training, with dropout."""
    dropout = world.experiment.network.dropout
    return _supervised(world, "mc_dropout", world.source, world.source_val, dropout=dropout)


def _supervised(world: World, name: str, train: EchoImages, val: EchoImages, dropout: float = 0.0) -> nn.Module:
    def make(stage: Run) -> UNet:
        net = world.segmenter(world.seed(name), dropout=dropout)
        train_segmenter(net, train, val, world.experiment.supervised, stage, world.seed(name))
        return net

    return world.load(_stage(world, name, make))


METHODS: dict[Method, Callable[[World], nn.Module | list[nn.Module]]] = {
    "entropy": entropy,
    "gold_self_training": gold_self_training,
    "tist": tist,
    "udas": udas,
    "policy_gradient": policy_gradient,
    "oracle_rl": oracle_rl,
    "target_supervised": target_supervised,
    "ensemble": ensemble,
    "mc_dropout": mc_dropout,
}
"""Each trains its method unless that is done, and gives its network: logits [B, 3, H, W] of images [B, 1, H, W]."""
