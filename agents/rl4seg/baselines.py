"""Baselines of RL4Seg, trained in the same run on the same images (docs/rl4seg.md, Method 11).

A baseline is one row of `BASELINES`, at the end, and one function; training, evaluation, checks and tables read the
row. Each one that is trained is a stage below baselines/ and leaves its networks there. None chooses anything by labels
of the target but those whose row says so.
"""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from ...common.networks import save_network
from ...common.runs import Run
from ...envs.rl4seg import EchoEnv
from ...rewards.echo_validity import valid_masks
from ...rewards.shape_prior import SHRINK
from ...segmenters.adaptation import EntropyConfig, minimise_entropy
from ...segmenters.tist import TistConfig, load_tist, train_tist
from ...segmenters.training import SupervisedConfig, train_segmenter
from ...segmenters.udas import train_udas
from ...segmenters.uncertainty import ensemble as mean_of_networks
from ...segmenters.uncertainty import mc_dropout as mean_of_dropouts
from ...segmenters.uncertainty import test_time_augmentation
from ...segmenters.unet import UNet
from ..dense_ppo.ppo import DensePPOConfig
from ..experiment import Baseline, always
from ..policy import Policy
from .budget import budget_keys, epochs_of, lasting_as_asked, learners, steps_of_the_loop
from .config import RL4SegExperiment
from .context import GOLD_FRACTION, SEGMENTER, SOURCE, TARGET, UNET, Context
from .policies import train_policy
from .rules import CorrectorPolicy, NetworkPolicy
from .stages import (
    CORRECTION,
    FORWARD,
    adabn_net,
    corrector,
    gold_of,
    ppo_work,
    reward_function,
    shape_prior,
    source_net,
    start_net,
    way_on,
)


@dataclass(frozen=True)
class NetworkBaseline(Baseline[RL4SegExperiment, Context]):
    """One row; its networks give logits [B, 3, H, W] of images [B, 1, H, W]."""

    supervision: str = "source"
    """Labels that it learns from: source, target, or source and target."""
    policy: Callable[[Context, list[nn.Module]], Policy[EchoEnv]] = lambda context, nets: NetworkPolicy(nets[0])
    """Its policy, made of its networks (an empty list where it trains none)."""
    helpers: tuple[str, ...] = ()
    """Stages in its stage whose network does not segment."""
    probabilities: Callable[[Context, list[nn.Module], Tensor], Tensor] | None = None
    """Mean probabilities [N, 3, H, W] of images uint8 [N, 1, H, W]: it segments by the largest, and their entropy is
    its uncertainty. None: it segments by `policy`, without uncertainty."""


# -- how each is trained -------------------------------------------------------------------------------------------


def _stage(
    context: Context,
    name: str,
    make: Callable[[Run], list[str]],
    *,
    keys: Iterable[str],
    work: Callable[[], float],
    after: Sequence[Path] = (),
) -> Path:
    """The finished stage of a baseline; see `Context.stage`. It depends on the row's own section too."""
    section = BASELINES[name.partition("/")[0]].section
    own = [section] if section else []
    return context.stage(f"baselines/{name}", make, keys=(*keys, *own), after=after, work=work)


def one_unet(
    context: Context,
    name: str,
    make: Callable[[Run], UNet],
    *,
    keys: Iterable[str],
    work: Callable[[], float],
    after: Sequence[Path] = (),
) -> list[nn.Module]:
    """The network of a stage that leaves one U-Net."""

    def files(stage: Run) -> list[str]:
        save_network(stage.folder / SEGMENTER, make(stage))
        return [SEGMENTER]

    return [context.load(_stage(context, name, files, keys=keys, after=after, work=work))]


def entropy(context: Context) -> list[nn.Module]:
    """Entropy minimisation from the source network."""
    source, lasting = source_net(context), lasting_as_asked(context)

    def config() -> EntropyConfig:
        return lasting(context.experiment.entropy, len(context.target))

    def make(stage: Run) -> UNet:
        return minimise_entropy(context.load(source), context.target, config(), stage, context.seed("entropy"))

    def work() -> float:
        return config().epochs * len(context.target)

    keys = (*TARGET, *budget_keys(context))
    return one_unet(context, "entropy", make, keys=keys, after=[source], work=work)


def gold_self_training(context: Context) -> list[nn.Module]:
    """Cross-entropy on the gold masks of the policy from which the loop starts, all target images being asked.

    As many gradient steps as the loop's PPO makes: the difference is what PPO and the reward network add
    (docs/rl4seg.md, Method 11).
    """
    return _self_training(context, "gold_self_training", corrected=False)


def corrected_self_training(context: Context) -> list[nn.Module]:
    """The same with the valid corrections of other masks: what `gold.corrected` adds without a reward (ours)."""
    return _self_training(context, "corrected_self_training", corrected=True)


def _self_training(context: Context, name: str, *, corrected: bool) -> list[nn.Module]:
    experiment = context.experiment
    start = start_net(context)

    def make(stage: Run) -> UNet:
        net = context.load(start)
        gold = gold_of(context, net, context.rows(0), corrected=corrected)
        if not len(gold.rows):
            others = f"[{','.join(one for one in experiment.baselines if one != name)}]"
            raise ValueError(
                f"{name}: none of the first policy's masks is valid and like its correction. Leave the baseline out: "
                f"{way_on(context, 1, f'--baselines {shlex.quote(others)}')}"
            )
        images = replace(context.target.take(gold.rows.tolist()), labels=gold.masks)
        batch = experiment.supervised.batch_size
        epochs = epochs_of(steps_of_the_loop(context), len(images), batch)
        config = SupervisedConfig(epochs=epochs, learning_rate=experiment.ppo.learner.actor_lr, batch_size=batch)
        train_segmenter(net, images, None, config, stage, context.seed(name))
        stage.log(epochs + 1, {GOLD_FRACTION: len(images) / len(context.target)})
        context.adapt(net, 0)
        return net

    keys = (*TARGET, *CORRECTION, "reward_data", "supervised.batch_size", "ppo", "network.norm_mode")
    after = [start, shape_prior(context)]

    def work() -> float:
        return steps_of_the_loop(context) * experiment.supervised.batch_size

    return one_unet(context, name, make, keys=keys, after=after, work=work)


def tist(context: Context) -> list[nn.Module]:
    """TI-ST, from scratch."""
    lasting = lasting_as_asked(context)

    def fresh(out: int) -> UNet:
        return context.segmenter(context.seed("tist"), out=out)

    def config() -> TistConfig:
        return lasting(context.experiment.tist, len(context.source))

    def make(stage: Run) -> list[str]:
        seed = context.seed("tist")
        train_tist(fresh, context.source, context.source_val, context.target, config(), stage, seed)
        return sorted(str(path.relative_to(stage.folder)) for path in stage.folder.glob("*/weights.safetensors"))

    def work() -> float:
        nets = 1 if context.experiment.tist.nets == "multi" else 2
        return nets * config().epochs * 1.5 * len(context.source)  # target from half on

    keys = (*SOURCE, *TARGET, *UNET, *budget_keys(context))
    folder = _stage(context, "tist", make, keys=keys, work=work)
    return [context.read(folder, lambda folder: load_tist(folder, context.experiment.tist))]


def udas(context: Context) -> list[nn.Module]:
    """UDAS, from the source network."""
    source = source_net(context)

    def make(stage: Run) -> UNet:
        net, config = context.load(source), context.experiment.udas
        return train_udas(net, context.source, context.source_val, context.target, config, stage, context.seed("udas"))

    def work() -> float:
        config = context.experiment.udas
        return FORWARD * config.head_epochs * len(context.source) + config.epochs * len(context.target)

    return one_unet(context, "udas", make, keys=(*SOURCE, *TARGET), after=[source], work=work)


def policy_gradient(context: Context) -> list[nn.Module]:
    """The plain policy gradient on the last reward network, from the start, for as many images as the loop shows; with
    `equal_budget` for as many gradient steps, one for each rollout."""
    batch = round(context.experiment.ppo.batch.at(1))
    config = replace(_at_length(context), num_envs=batch, group_size=1, objective="pg", critic="none", n_epochs=1)
    if context.experiment.equal_budget:
        rollout = config.num_envs * config.n_steps
        config = replace(config, batch_size=None, total_timesteps=steps_of_the_loop(context) * rollout)
    config = replace(config, ent_coef=0.0, kl_coef=0.0)
    return _by_rl(context, "policy_gradient", config, learned=True, keys=budget_keys(context))


def oracle_rl(context: Context) -> list[nn.Module]:
    """PPO from the start with the true pixel accuracy as reward, for as many images as the loop shows."""
    return _by_rl(context, "oracle_rl", _at_length(context), learned=False)


def _at_length(context: Context) -> DensePPOConfig:
    """The last iteration's learner with the first one's batch and the images of all of them together."""
    loop = learners(context)
    return replace(loop[-1], num_envs=loop[0].num_envs, total_timesteps=sum(one.total_timesteps for one in loop))


def _by_rl(
    context: Context, name: str, config: DensePPOConfig, *, learned: bool, keys: Sequence[str] = ()
) -> list[nn.Module]:
    start, last = start_net(context), context.experiment.iterations
    rewards = context.reward_stages(last) if learned else []
    after = [start, *(context.run.stage(name).folder for name in rewards)]

    def make(stage: Run) -> list[str]:
        reward = reward_function(context, last) if learned else "pixel_accuracy"
        nets = (context.load(start), context.load(start))
        return train_policy(context, stage, i=0, start=nets[0], reference=nets[1], reward=reward, config=config)

    all_keys, work = (*TARGET, *UNET, "ppo", *keys), partial(ppo_work, config)
    return [context.load(_stage(context, name, make, keys=all_keys, after=after, work=work))]


def target_supervised(context: Context) -> list[nn.Module]:
    """The source network's training, on the target with its labels: an upper bound."""
    return _supervised(context, "target_supervised", "target", keys=TARGET)


def ensemble(context: Context) -> list[nn.Module]:
    """The source network and others that differ in the seed."""
    names = [f"ensemble/{k}" for k in range(1, context.experiment.evaluation.ensemble)]
    others = [_supervised(context, name, "source", keys=SOURCE) for name in names]
    return [context.load(source_net(context)), *(net for nets in others for net in nets)]


def mc_dropout(context: Context) -> list[nn.Module]:
    """The source network's training, with dropout."""
    dropout, keys = context.experiment.network.dropout, (*SOURCE, "network.dropout")
    return _supervised(context, "mc_dropout", "source", dropout=dropout, keys=keys)


def _supervised(
    context: Context, name: str, domain: Literal["source", "target"], *, keys: Sequence[str], dropout: float = 0.0
) -> list[nn.Module]:
    def make(stage: Run) -> UNet:
        of = context
        train, val = (of.source, of.source_val) if domain == "source" else (of.target_all, of.target_val)
        net = context.segmenter(context.seed(name), dropout=dropout)
        train_segmenter(net, train, val, context.experiment.supervised, stage, context.seed(name))
        return net

    def work() -> float:
        images = context.source if domain == "source" else context.target
        return context.experiment.supervised.epochs * len(images)

    return one_unet(context, name, make, keys=(*keys, *UNET, "supervised"), work=work)


# -- how some are asked, and when they stand in a table ------------------------------------------------------------


def _source(context: Context, nets: list[nn.Module]) -> Policy[EchoEnv]:
    return NetworkPolicy(context.load(source_net(context)))


def _adabn(context: Context, nets: list[nn.Module]) -> Policy[EchoEnv]:
    return NetworkPolicy(context.load(adabn_net(context)))


def _correct(context: Context, nets: list[nn.Module]) -> Policy[EchoEnv]:
    return CorrectorPolicy(context.load(source_net(context)), corrector(context))


def _correct_adabn(context: Context, nets: list[nn.Module]) -> Policy[EchoEnv]:
    return CorrectorPolicy(context.load(adabn_net(context)), corrector(context))


def _correct_invalid_adabn(context: Context, nets: list[nn.Module]) -> Policy[EchoEnv]:
    return CorrectorPolicy(context.load(adabn_net(context)), corrector(context), valid_masks)


def _augment(context: Context, nets: list[nn.Module], images: Tensor) -> Tensor:
    net = context.load(source_net(context))
    return test_time_augmentation(net, images, context.experiment.evaluation.tta_passes, context.seed("tta"))


def _average(context: Context, nets: list[nn.Module], images: Tensor) -> Tensor:
    return mean_of_networks(nets, images)


def _drop_out(context: Context, nets: list[nn.Module], images: Tensor) -> Tensor:
    return mean_of_dropouts(nets[0], images, context.experiment.evaluation.mc_passes, context.seed("mc_dropout"))


def _uncertainty_is_shown(experiment: RL4SegExperiment) -> bool:
    return any(BASELINES[name].probabilities for name in experiment.baselines)


def _statistics_are_adapted(experiment: RL4SegExperiment) -> bool:
    return bool(experiment.iterations) and experiment.network.norm_mode != "group"


def _prior_is_trained(experiment: RL4SegExperiment) -> bool:
    by_baseline = any(BASELINES[name].objection is _without_prior for name in experiment.baselines)
    return bool(experiment.iterations) and (experiment.reward == "reward_net" or by_baseline)


def _both_are_there(experiment: RL4SegExperiment) -> bool:
    return _statistics_are_adapted(experiment) and _prior_is_trained(experiment)


def _without_prior(experiment: RL4SegExperiment) -> str | None:
    if experiment.source.size % SHRINK:
        return f"needs the shape prior, and that a multiple of {SHRINK}, but source.size is {experiment.source.size}"
    return None


def _without_reward_net(experiment: RL4SegExperiment) -> str | None:
    if experiment.iterations == 0 or experiment.reward != "reward_net":
        return "needs iterations > 0 and reward 'reward_net'"
    if experiment.gold.source == "gt":
        return "would learn from true masks through gold.source 'gt'; leave it out"
    return None


SOURCE_ONLY = "source only"
"""Title of the baseline with which the others are compared."""
BASELINES: dict[str, NetworkBaseline] = {
    "source_only": NetworkBaseline(SOURCE_ONLY, sees_target=False, policy=_source, included=always),
    "test_time_augmentation": NetworkBaseline(
        "test-time augmentation", sees_target=False, probabilities=_augment, included=_uncertainty_is_shown
    ),
    "adabn": NetworkBaseline("AdaBN", policy=_adabn, included=_statistics_are_adapted),
    "corrector": NetworkBaseline("corrector", sees_target=False, policy=_correct, included=_prior_is_trained),
    "adabn_corrector": NetworkBaseline("AdaBN + corrector", policy=_correct_adabn, included=_both_are_there),
    "adabn_corrector_invalid": NetworkBaseline(
        "AdaBN + corrector where invalid", policy=_correct_invalid_adabn, included=_both_are_there
    ),
    "entropy": NetworkBaseline("entropy minimisation", entropy, section="entropy"),
    "gold_self_training": NetworkBaseline("gold self-training", gold_self_training, objection=_without_prior),
    "corrected_self_training": NetworkBaseline(
        "gold and corrected self-training", corrected_self_training, objection=_without_prior
    ),
    "tist": NetworkBaseline("TI-ST", tist, section="tist"),
    "udas": NetworkBaseline("UDAS", udas, section="udas", helpers=("head",)),
    "policy_gradient": NetworkBaseline("policy gradient", policy_gradient, objection=_without_reward_net),
    "oracle_rl": NetworkBaseline("oracle RL", oracle_rl, supervision="source and target"),
    "target_supervised": NetworkBaseline("target-supervised", target_supervised, supervision="target"),
    "ensemble": NetworkBaseline("ensemble", ensemble, sees_target=False, probabilities=_average),
    "mc_dropout": NetworkBaseline("MC dropout", mc_dropout, sees_target=False, probabilities=_drop_out),
}
"""Every baseline by the name that a configuration gives it; those without training come first in tables."""
