"""What RL4Seg is compared with, trained in the same run on the same images (paper: RL4Seg, section 10).

Each method is a stage below methods/ and leaves its networks there. Which labels a method has seen, `supervision` says;
none chooses anything by labels of the target but those that are named for it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from ...common.networks import save_network
from ...common.runs import Run
from ...datasets.images import ImagePool
from ...segmenters.adaptation import minimise_entropy
from ...segmenters.tist import train_tist
from ...segmenters.training import SupervisedConfig, train_segmenter
from ...segmenters.udas import train_udas
from ...segmenters.unet import UNet
from ..dense_ppo.ppo import DensePPOConfig
from .config import Method
from .context import SEGMENTER, SOURCE, TARGET, UNET, Context
from .policies import train_policy
from .stages import CORRECTION, gold_of, reward_function, shape_prior, source_net, start_net

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


def _stage(
    context: Context, name: str, make: Callable[[Run], UNet], *, keys: Iterable[str], after: Sequence[Path] = ()
) -> Path:
    """The finished stage of a method that leaves one U-Net; keys, after: see `Context.stage`."""

    def files(stage: Run) -> list[str]:
        save_network(stage.folder / SEGMENTER, make(stage))
        return [SEGMENTER]

    return context.stage(f"methods/{name}", files, keys=keys, after=after)


def entropy(context: Context) -> nn.Module:
    """Entropy minimisation from the source network."""
    source = source_net(context)

    def make(stage: Run) -> UNet:
        net = context.load(source)
        return minimise_entropy(net, context.target, context.experiment.entropy, stage, context.seed("entropy"))

    return context.load(_stage(context, "entropy", make, keys=(*TARGET, "entropy"), after=[source]))


def learners(context: Context) -> list[DensePPOConfig]:
    """The learner of each iteration of the loop; of one, where there is no loop."""
    experiment = context.experiment
    if not experiment.iterations:
        return [replace(experiment.learner(1), total_timesteps=experiment.ppo.epochs * len(context.target))]
    return [experiment.learner(i) for i in range(1, experiment.iterations + 1)]


def gold_self_training(context: Context) -> nn.Module:
    """Cross-entropy on the gold masks of the policy from which the loop starts, all target images being asked.

    As many gradient steps as the loop's PPO makes: the difference is what PPO and the reward network add (10.4).
    """
    return _self_training(context, "gold_self_training", corrected=False)


def corrected_self_training(context: Context) -> nn.Module:
    """The same with the valid corrections of other masks: what `gold.corrected` adds without a reward (ours)."""
    return _self_training(context, "corrected_self_training", corrected=True)


def _gradient_steps(config: DensePPOConfig) -> int:
    rollout = config.num_envs * config.n_steps
    batches = rollout // (config.batch_size or rollout)
    return math.ceil(config.total_timesteps / rollout) * config.n_epochs * batches


def _self_training(context: Context, name: str, *, corrected: bool) -> nn.Module:
    experiment = context.experiment
    start = start_net(context)

    def make(stage: Run) -> UNet:
        net = context.load(start)
        gold = gold_of(context, net, context.rows(0), corrected=corrected)
        if not len(gold.rows):
            raise ValueError(f"{name}: none of the first policy's masks can be used; lower reward_data.sim_threshold")
        images = replace(context.target.take(gold.rows.tolist()), labels=gold.masks)
        batch, steps = experiment.supervised.batch_size, sum(_gradient_steps(one) for one in learners(context))
        epochs = math.ceil(steps / math.ceil(len(images) / batch))
        config = SupervisedConfig(epochs=epochs, learning_rate=experiment.ppo.learner.actor_lr, batch_size=batch)
        train_segmenter(net, images, None, config, stage, context.seed(name))
        context.adapt(net, 0)
        return net

    keys = (*TARGET, *CORRECTION, "reward_data", "supervised.batch_size", "ppo", "network.norm_mode")
    return context.load(_stage(context, name, make, keys=keys, after=[start, shape_prior(context)]))


def tist(context: Context) -> nn.Module:
    """TI-ST, from scratch."""

    def fresh(out: int) -> UNet:
        return context.segmenter(context.seed("tist"), out=out)

    def trained(stage: Run) -> nn.Module:
        config = context.experiment.tist
        return train_tist(
            fresh, context.source, context.source_val, context.target, config, stage, context.seed("tist")
        )

    def make(stage: Run) -> list[str]:
        trained(stage)
        return sorted(str(path.relative_to(stage.folder)) for path in stage.folder.glob("*/weights.safetensors"))

    folder = context.stage("methods/tist", make, keys=(*SOURCE, *TARGET, *UNET, "tist"))
    return trained(Run(folder))  # its networks are stages of their own, now finished


def udas(context: Context) -> nn.Module:
    """UDAS, from the source network."""
    source = source_net(context)

    def make(stage: Run) -> UNet:
        net, config = context.load(source), context.experiment.udas
        return train_udas(net, context.source, context.source_val, context.target, config, stage, context.seed("udas"))

    return context.load(_stage(context, "udas", make, keys=(*SOURCE, *TARGET, "udas"), after=[source]))


def policy_gradient(context: Context) -> nn.Module:
    """The plain policy gradient on the last reward network, from the start, for as many images as the loop shows."""
    batch = round(context.experiment.ppo.batch.at(1))
    config = replace(_at_length(context), num_envs=batch, group_size=1, objective="pg", critic="none", n_epochs=1)
    return _by_rl(context, "policy_gradient", replace(config, ent_coef=0.0, kl_coef=0.0), learned=True)


def oracle_rl(context: Context) -> nn.Module:
    """PPO from the start with the true pixel accuracy as reward, for as many images as the loop shows."""
    return _by_rl(context, "oracle_rl", _at_length(context), learned=False)


def _at_length(context: Context) -> DensePPOConfig:
    """The last iteration's learner with the first one's batch and the images of all of them together."""
    loop = learners(context)
    return replace(loop[-1], num_envs=loop[0].num_envs, total_timesteps=sum(one.total_timesteps for one in loop))


def _by_rl(context: Context, name: str, config: DensePPOConfig, *, learned: bool) -> nn.Module:
    start, last = start_net(context), context.experiment.iterations
    after = [start, context.run.stage(f"iteration_{last}/reward_net").folder] if learned else [start]

    def make(stage: Run) -> list[str]:
        reward = reward_function(context, last) if learned else "pixel_accuracy"
        nets = (context.load(start), context.load(start))
        return train_policy(context, stage, i=0, start=nets[0], reference=nets[1], reward=reward, config=config)

    return context.load(context.stage(f"methods/{name}", make, keys=(*TARGET, *UNET, "ppo"), after=after))


def target_supervised(context: Context) -> nn.Module:
    """The source network's training, on the target with its labels: an upper bound."""
    return _supervised(context, "target_supervised", context.target_all, context.target_val, keys=TARGET)


def ensemble(context: Context) -> list[nn.Module]:
    """The source network and others that differ in the seed."""
    names = [f"ensemble/{k}" for k in range(1, context.experiment.evaluation.ensemble)]
    return [
        context.load(source_net(context)),
        *(_supervised(context, n, context.source, context.source_val, keys=SOURCE) for n in names),
    ]


def mc_dropout(context: Context) -> nn.Module:
    """The source network's training, with dropout."""
    dropout, keys = context.experiment.network.dropout, (*SOURCE, "network.dropout")
    return _supervised(context, "mc_dropout", context.source, context.source_val, dropout=dropout, keys=keys)


def _supervised(
    context: Context, name: str, train: ImagePool, val: ImagePool, *, keys: Sequence[str], dropout: float = 0.0
) -> nn.Module:
    def make(stage: Run) -> UNet:
        net = context.segmenter(context.seed(name), dropout=dropout)
        train_segmenter(net, train, val, context.experiment.supervised, stage, context.seed(name))
        return net

    return context.load(_stage(context, name, make, keys=(*keys, *UNET, "supervised")))


METHODS: dict[Method, Callable[[Context], nn.Module | list[nn.Module]]] = {
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
