"""What RL4Seg is compared with, trained in the same run on the same images (paper: RL4Seg, section 10).

Each method is a stage below methods/ and leaves its networks there. Which labels a method has seen, `supervision` says;
none chooses anything by labels of the target but those that are named for it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from ...common.runs import Run
from ...datasets.echo.images import EchoImages
from ...segmenters.adaptation import minimise_entropy
from ...segmenters.tist import train_tist
from ...segmenters.training import SupervisedConfig, save_segmenter, train_segmenter
from ...segmenters.udas import train_udas
from ...segmenters.unet import UNet
from ..dense_ppo.ppo import DensePPOConfig
from .config import Method
from .context import SEGMENTER, World
from .policies import train_policy
from .stages import gold_of, reward_function, source_net, start_net

SOURCE_ONLY, ADABN, CORRECTOR, AUGMENTED = OTHERS = ("source only", "AdaBN", "corrector", "test-time augmentation")
"""What tables call the answers that need no training of their own."""
TITLES: dict[Method, str] = {
    "entropy": "entropy minimisation",
    "gold_self_training": "gold self-training",
    "corrected_self_training": "gold and corrected self-training",
    "tist": "TI-ST",
    "udas": "UDAS",
    "policy_gradient": "policy gradient",
    "oracle_rl": "oracle RL",
    "target_supervised": "target-supervised",
    "ensemble": "ensemble",
    "mc_dropout": "MC dropout",
}
"""What tables call each method."""


SOURCE_BOUND = {SOURCE_ONLY, AUGMENTED, CORRECTOR, TITLES["ensemble"], TITLES["mc_dropout"]}
"""Answers of networks that saw no image of the target."""


def supervision(method: Method) -> str:
    """The labels that a method learned from."""
    if method == "target_supervised":
        return "target"
    return "source and target" if method == "oracle_rl" else "source"


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


def learners(world: World) -> list[DensePPOConfig]:
    """The learner of each iteration of the loop; of one, where there is no loop."""
    experiment = world.experiment
    if not experiment.iterations:
        return [replace(experiment.learner(1), total_timesteps=experiment.ppo.epochs * len(world.target))]
    return [experiment.learner(i) for i in range(1, experiment.iterations + 1)]


def gold_self_training(world: World) -> nn.Module:
    """Cross-entropy on the gold masks of the policy from which the loop starts, all target images being asked.

    As many gradient steps as the loop's PPO makes: the difference is what PPO and the reward network add (10.4).
    """
    return _self_training(world, "gold_self_training", corrected=False)


def corrected_self_training(world: World) -> nn.Module:
    """The same with the valid corrections of other masks: what `gold.corrected` adds without a reward (ours)."""
    return _self_training(world, "corrected_self_training", corrected=True)


def _gradient_steps(config: DensePPOConfig) -> int:
    rollout = config.num_envs * config.n_steps
    batches = rollout // (config.batch_size or rollout)
    return math.ceil(config.total_timesteps / rollout) * config.n_epochs * batches


def _self_training(world: World, name: str, *, corrected: bool) -> nn.Module:
    experiment = world.experiment
    steps = sum(_gradient_steps(one) for one in learners(world))

    def make(stage: Run) -> UNet:
        net = world.load(start_net(world))
        gold = gold_of(world, net, world.rows(0), corrected=corrected)
        if not len(gold.rows):
            raise ValueError(f"{name}: none of the first policy's masks can be used; lower reward_data.sim_threshold")
        images = replace(world.target.take(gold.rows.tolist()), labels=gold.masks)
        batch = experiment.supervised.batch_size
        epochs = math.ceil(steps / math.ceil(len(images) / batch))
        config = SupervisedConfig(epochs=epochs, learning_rate=experiment.ppo.learner.actor_lr, batch_size=batch)
        train_segmenter(net, images, None, config, stage, world.seed(name))
        world.adapt(net, 0)
        return net

    return world.load(_stage(world, name, make))


def tist(world: World) -> nn.Module:
    """TI-ST, from scratch."""

    def fresh(out: int) -> UNet:
        return world.segmenter(world.seed("tist"), out=out)

    def trained(stage: Run) -> nn.Module:
        config = world.experiment.tist
        return train_tist(fresh, world.source, world.source_val, world.target, config, stage, world.seed("tist"))

    def make(stage: Run) -> list[str]:
        trained(stage)
        return sorted(str(path.relative_to(stage.folder)) for path in stage.folder.glob("*/weights.safetensors"))

    return trained(Run(world.stage("methods/tist", make)))  # its networks are stages of their own, now finished


def udas(world: World) -> nn.Module:
    """UDAS, from the source network."""

    def make(stage: Run) -> UNet:
        net, config = world.load(source_net(world)), world.experiment.udas
        return train_udas(net, world.source, world.source_val, world.target, config, stage, world.seed("udas"))

    return world.load(_stage(world, "udas", make))


def policy_gradient(world: World) -> nn.Module:
    """The plain policy gradient on the last reward network, from the start, for as many images as the loop shows."""
    batch = round(world.experiment.ppo.batch.at(1))
    config = replace(_at_length(world), num_envs=batch, group_size=1, objective="pg", critic="none", n_epochs=1)
    return _by_rl(world, "policy_gradient", replace(config, ent_coef=0.0, kl_coef=0.0), learned=True)


def oracle_rl(world: World) -> nn.Module:
    """PPO from the start with the true pixel accuracy as reward, for as many images as the loop shows."""
    return _by_rl(world, "oracle_rl", _at_length(world), learned=False)


def _at_length(world: World) -> DensePPOConfig:
    """The last iteration's learner with the first one's batch and the images of all of them together."""
    loop = learners(world)
    return replace(loop[-1], num_envs=loop[0].num_envs, total_timesteps=sum(one.total_timesteps for one in loop))


def _by_rl(world: World, name: str, config: DensePPOConfig, *, learned: bool) -> nn.Module:
    start, last = start_net(world), world.experiment.iterations

    def make(stage: Run) -> list[str]:
        reward = reward_function(world, last) if learned else "pixel_accuracy"
        nets = (world.load(start), world.load(start))
        return train_policy(world, stage, i=0, start=nets[0], reference=nets[1], reward=reward, config=config)

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
    "corrected_self_training": corrected_self_training,
    "tist": tist,
    "udas": udas,
    "policy_gradient": policy_gradient,
    "oracle_rl": oracle_rl,
    "target_supervised": target_supervised,
    "ensemble": ensemble,
    "mc_dropout": mc_dropout,
}
"""Each trains its method unless that is done, and gives its network: logits [B, 3, H, W] of images [B, 1, H, W]."""
