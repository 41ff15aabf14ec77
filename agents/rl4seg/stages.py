"""The stages of the loop, each from the results of those before it (docs/rl4seg.md, Method 1 and 7).

Symbols: π_0 = source network, π_i = policy of iteration i, r_i = its reward network, g = corrector.
"""

import math
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from ...common.device import forked_rng
from ...common.networks import load_network, save_network
from ...common.runs import Run
from ...datasets.echo.images import CLASSES
from ...envs.rl4seg import RewardFunction
from ...evaluation.calibration import calibration
from ...rewards.corrector import Corrector
from ...rewards.echo_validity import valid_masks
from ...rewards.ranking import truth_preferred
from ...rewards.reward_data import Built, RewardDataConfig, Triplets, build_reward_data, similarity
from ...rewards.reward_net import RewardNet, train_reward_net
from ...rewards.shape_prior import ARVAE, train_shape_prior
from ...segmenters.adaptation import adabn
from ...segmenters.inference import segment
from ...segmenters.norms import norm_of, shrink_perturb
from ...segmenters.training import train_segmenter
from ...segmenters.unet import UNet
from ..dense_ppo.ppo import DensePPOConfig
from ..program import PROGRAM
from .context import (
    AT_ONCE,
    CORRECTED,
    CRITIC,
    GOLD,
    PRIOR,
    REWARD_NET,
    SEGMENTER,
    SOURCE,
    TARGET,
    TRIPLETS,
    UNET,
    Context,
    Gold,
)
from .policies import train_policy
from .triplets import with_more

CORRECTION = (*SOURCE, "projection", "border_policy")
"""Keys of the configuration that decide the corrector, beside those of the shape prior."""
POLICY = (*TARGET, *UNET, "ppo", "reward", "gold", "warm_start")
"""Keys that decide the PPO of an iteration, beside those of the stages before it."""
FORWARD = 0.3
"""Share of an image's work in training that remains without gradients."""
TRIPLETS_PER_IMAGE = 3
"""About so many triplets come of an image: nine where its mask is gold, one where it is corrected."""

# -- stage 0 -------------------------------------------------------------------------------------------------------


def source_net(context: Context) -> Path:
    """π_0, trained on the source."""

    def make(stage: Run) -> list[str]:
        net = context.segmenter(context.seed("supervised"))
        train_segmenter(
            net, context.source, context.source_val, context.experiment.supervised, stage, context.seed("supervised")
        )
        save_network(stage.folder / SEGMENTER, net)
        return [SEGMENTER]

    def work() -> float:
        return context.experiment.supervised.epochs * len(context.source)

    return context.stage("supervised", make, keys=(*SOURCE, *UNET, "supervised"), work=work)


def adabn_net(context: Context) -> Path:
    """π_0 with the batch statistics of all target images."""
    source = source_net(context)

    def make(stage: Run) -> list[str]:
        net = adabn(context.load(source), context.target, batch_size=AT_ONCE)
        save_network(stage.folder / SEGMENTER, net)
        return [SEGMENTER]

    return context.stage("adabn", make, keys=TARGET, after=[source], work=lambda: FORWARD * len(context.target))


def start_net(context: Context) -> Path:
    """First policy of the loop, which is its reference network too: see `NetworkConfig.norm_mode`."""
    return adabn_net(context) if context.experiment.network.norm_mode == "frozen" else source_net(context)


def shape_prior(context: Context) -> Path:
    """The corrector's auto-encoder, trained on source masks."""

    def make(stage: Run) -> list[str]:
        train, val = context.source.labels, context.source_val.labels
        assert train is not None
        assert val is not None
        prior = train_shape_prior(train, val, context.experiment.shape_prior, stage, context.seed("shape_prior"))
        save_network(stage.folder / PRIOR, prior)
        return [PRIOR]

    def work() -> float:
        return context.experiment.shape_prior.epochs * len(context.source)

    return context.stage("shape_prior", make, keys=(*SOURCE, "seed", "shape_prior"), work=work)


def corrector(context: Context) -> Corrector:
    """The corrector g (docs/rl4seg.md, Method 8)."""
    experiment = context.experiment
    prior = load_network(shape_prior(context) / PRIOR, ARVAE).requires_grad_(False).to(context.device)
    judge = partial(valid_masks, border_policy=experiment.border_policy)
    return Corrector(prior, projection=experiment.projection, masks=context.source.labels, valid=judge)


def loop(context: Context) -> None:
    """Every stage but those of the baselines."""
    source_net(context)
    for i in range(1, context.experiment.iterations + 1):
        iterate(context, i)
    if context.experiment.iterations and context.experiment.network.norm_mode != "group":
        adabn_net(context)  # an answer of its own in the evaluation, whatever norm_mode is


# -- one iteration -------------------------------------------------------------------------------------------------


def policy_folder(context: Context, i: int) -> Path:
    """Where π_i lies; π_0: see `start_net`."""
    return context.run.stage(f"iteration_{i}/ppo").folder if i else start_net(context)


def reward_function(context: Context, i: int) -> RewardFunction | str:
    """Reward of PPO in iteration i: r_i, or the name of another reward."""
    name = context.experiment.reward
    if name != "reward_net":
        return name
    net = context.reward_net(i)
    return lambda images, masks, rows: net(images, masks)


def iterate(context: Context, i: int) -> None:
    """π_{i-1} -> π_i."""
    experiment, run = context.experiment, context.run
    after = [start_net(context), policy_folder(context, i - 1)]
    if experiment.reward == "reward_net":
        seen = [run.stage(f"iteration_{i - 1}/reward_data").folder] if i > 1 else []
        data = context.stage(
            f"iteration_{i}/reward_data",
            partial(_reward_data, context, i),
            keys=(*TARGET, *CORRECTION, "reward_data"),  # gold.refresh, read if i > 1, is a key of the PPO before it
            after=[policy_folder(context, i - 1), shape_prior(context), *seen],
            work=lambda: FORWARD * TRIPLETS_PER_IMAGE * experiment.new_images,
        )
        for k, name in enumerate(context.reward_stages(i)):
            before = context.reward_stages(i - 1)[k] if i > 1 and experiment.reward_net.warm_start else None
            reward = context.stage(
                name,
                partial(_reward_net, context, i, k, before),
                keys=(*TARGET, *UNET, "reward_net"),
                after=[data, *([run.stage(before).folder] if before else [])],
                work=lambda: experiment.reward_net.epochs * TRIPLETS_PER_IMAGE * experiment.pool_size(i),
            )
            after.append(reward)
    keys = POLICY if i > 1 else [key for key in POLICY if key != "warm_start"]  # only later ones start warm
    make, work = partial(_ppo, context, i), partial(ppo_work, experiment.learner(i))
    context.stage(f"iteration_{i}/ppo", make, keys=keys, after=after, work=work)


def ppo_work(config: DensePPOConfig) -> float:
    """Images that a PPO shows: in each rollout and in each pass over it, to actor and critic."""
    return 2 * (1 + config.n_epochs) * config.total_timesteps


def _reward_data(context: Context, i: int, stage: Run) -> list[str]:
    """Triplets of the images that are new in iteration i, and the gold images so far."""
    stage.resume()  # there is no checkpoint: what was logged by a run that was killed here is logged again
    experiment, net = context.experiment, context.load(policy_folder(context, i - 1))
    rows = context.new_rows(i)
    built = _built(context, net, rows, experiment.reward_data, i)
    if not len(built.triplets) and built.stats["n_valid"]:
        raise ValueError(
            f"iteration {i}: {len(rows)} images gave {built.stats['n_valid']} gold masks but no triplet; enable some: "
            f"{way_on(context, i, '--reward_data.swap true')}"
        )
    if not built.stats["n_valid"]:
        raise ValueError(f"iteration {i}: no mask was valid: {_why_none_is_valid(context, net, rows, i)}")
    gold, corrected = Gold(built.gold_rows, built.gold_masks), Gold(built.corrected_rows, built.corrected_masks)
    if i > 1:
        refreshed = gold_of(context, net, context.rows(i - 1)) if experiment.gold.refresh else context.gold(i - 1)
        before = context.gold(i - 1, CORRECTED)
        gold, corrected = refreshed.join(gold), before.take(~torch.isin(before.rows, refreshed.rows)).join(corrected)
    made, counts = with_more(context, i, net, built.triplets, gold.join(corrected))
    made.save(stage.folder / TRIPLETS)
    gold.save(stage.folder / GOLD)
    corrected.save(stage.folder / CORRECTED)
    stage.log(i, {f"reward_data/{name}": float(value) for name, value in {**built.stats, **counts}.items()})
    return [TRIPLETS, GOLD, CORRECTED]


@torch.no_grad()
def _why_none_is_valid(context: Context, net: UNet, rows: Tensor, i: int) -> str:
    """What the masks of `net` lack on the images `rows`, and the command that goes on."""
    experiment, config = context.experiment, context.experiment.reward_data
    masks = segment(net, context.target.images[rows])
    obey = valid_masks(masks, border_policy=experiment.border_policy).to(masks.device)
    if obey.any():
        alike = similarity(masks, corrector(context)(masks), config.similarity)[obey]
        lower = max(math.floor(float(alike.median()) * 100 - 1) / 100, 0.0)  # half of them, or more, count then
        return (
            f"{len(alike)} of {len(rows)} masks of the policy obey the anatomical rules, but the likeness to their "
            f"correction is at most {float(alike.max()):.2f} and must exceed reward_data.sim_threshold = "
            f"{config.sim_threshold}. Lower it: {way_on(context, i, f'--reward_data.sim_threshold {lower}')}"
        )
    better = f"--supervised.epochs {2 * experiment.supervised.epochs}"
    advice = "Train the source network longer, or bring source and target closer (clahe, network.norm_mode frozen)"
    if i > 1:
        better = f"--ppo.kl_coef.c0 {2 * experiment.ppo.kl_coef.c0 or 0.05}"
        advice = "Keep the policy closer to its reference"
    return (
        f"none of {len(rows)} masks of the policy obeys the anatomical rules, so that there is no good mask to learn a "
        f"reward from. {advice}, in a new run: {way_on(context, 0, better)}"
    )


def way_on(context: Context, i: int, options: str) -> str:
    """The command that goes on with other options: in the run itself, where only iteration 1 and what follows depend on
    them and i = 1; else in a new run."""
    folder = context.run.folder
    if i == 1:
        return f"{PROGRAM} train --resume {shlex.quote(str(folder))} {options}"
    number = next(n for n in range(2, 10**6) if not Path(f"{folder}-{n}").exists())
    config, out = shlex.quote(str(folder / "config.yaml")), shlex.quote(f"{folder}-{number}")
    return f"{PROGRAM} train --config {config} {options} --out {out}"


def _built(context: Context, net: UNet, rows: Tensor, config: RewardDataConfig, i: int) -> Built:
    judge = partial(valid_masks, border_policy=context.experiment.border_policy)
    return build_reward_data(
        net, context.target, rows, corrector(context), judge, config, context.seed("reward_data"), iteration=i
    )


def gold_of(context: Context, net: UNet, rows: Tensor, *, corrected: bool = False) -> Gold:
    """The masks of `net` that are gold, of the target images `rows`; and, if asked, the valid corrections of others."""
    config = replace(context.experiment.reward_data, swap=False, model=False, image=False, corrections=False)
    config = replace(config, identity=False, sampled=False, argmax=False)
    built = _built(context, net, rows, config, 0)
    gold = Gold(built.gold_rows, built.gold_masks)
    return gold.join(Gold(built.corrected_rows, built.corrected_masks)) if corrected else gold


def triplets(context: Context, i: int) -> Triplets:
    """All triplets up to iteration i."""
    folders = [context.run.stage(f"iteration_{n}/reward_data").folder for n in range(1, i + 1)]
    return Triplets.concatenate([Triplets.load(folder / TRIPLETS) for folder in folders]).to(context.device)


def _reward_net(context: Context, i: int, k: int, before: str | None, stage: Run) -> list[str]:
    """Member k = 0, 1, ... of r_i; before: the stage whose network it goes on from, None: from scratch."""
    experiment, seed = context.experiment, context.seed(f"reward_net/{i}" + (f"/{k}" if k else ""))
    config, norm = experiment.reward_net, norm_of(experiment.network.norm_mode)
    with forked_rng(context.device):
        torch.manual_seed(seed)
        channels = experiment.network.init_channels
        net = RewardNet(
            classes=len(CLASSES),
            encoding=config.action_encoding,
            init_channels=channels,
            norm=norm,
            levels=config.levels,
        )
    if before:
        net.load_state_dict(context.reward_member(before).state_dict())
    made = triplets(context, i)
    train, val, test = made.split(context.judged.groups, context.seed("triplets"))
    if not len(val):
        patients = {context.judged.groups[row] for row in made.images.tolist()}
        lower = context.experiment.reward_data.sim_threshold / 2
        more = way_on(context, i, f"--reward_data.sim_threshold {lower:g}")
        raise ValueError(
            f"iteration {i}: all {len(made)} triplets are of {len(patients)} patient, but the reward network needs "
            f"another for its validation. Let more masks count, {more}, or give more images (new_images)"
        )
    net = net.to(context.device)
    best = train_reward_net(net, train, val, context.judged, config, stage, seed)
    stage.log(
        config.epochs + 1,
        {
            "reward_net/temperature": best["temperature"],
            "reward_net/ece": _ece(net, test if len(test) else val, context),
            **_ranking(context, net, i),
        },
    )
    save_network(stage.folder / REWARD_NET, net)
    return [REWARD_NET]


def _ranking(context: Context, net: RewardNet, i: int) -> dict[str, float]:
    """Whether r prefers the truth to the masks of π_{i-1}: on the source's validation images, whose labels may be known
    while the target's may not."""
    images = context.source_val
    found = truth_preferred(net, images, segment(context.load(policy_folder(context, i - 1)), images.images), AT_ONCE)
    return {f"reward_net/{name}": share for name, share in found.means().items()}


@torch.no_grad()
def _ece(net: RewardNet, held_out: Triplets, context: Context) -> float:
    """Calibration error of r, at its temperature, on triplets that it was not fitted on."""
    rows = torch.arange(len(held_out), device=context.device)
    parts = [held_out.take(part) for part in torch.split(rows, AT_ONCE)]
    trust = torch.cat([net(context.judged.at(part.images), part.a_bad, calibrated=True) for part in parts])
    return calibration(trust, torch.cat([part.a_bad == part.a_ref for part in parts])).ece


def _ppo(context: Context, i: int, stage: Run) -> list[str]:
    """π_i: PPO from π_{i-1}, after the first iteration shrunk and perturbed, on all images seen so far."""
    experiment, before = context.experiment, policy_folder(context, i - 1)
    start = context.load(before)
    has_critic = (before / CRITIC).is_file()
    critic = load_network(before / CRITIC, UNet, out_channels=1).to(context.device) if has_critic else None
    if i > 1 and (warm := experiment.warm_start).kind == "shrink_perturb" and experiment.ppo.epochs:
        generator = Generator().manual_seed(context.seed(f"perturb/{i}"))
        for net in (start, critic) if critic else (start,):
            shrink_perturb(net, generator, shrink=warm.shrink, sigma=warm.sigma, include_norm=warm.include_norm)
            context.adapt(net, i)
    return train_policy(
        context,
        stage,
        i=i,
        start=start,
        critic=critic,
        reference=context.load(start_net(context)),
        reward=reward_function(context, i),
        gold=_gold_for_ppo(context, i, context.load(before)),
        config=experiment.learner(i),
    )


def _gold_for_ppo(context: Context, i: int, policy: UNet) -> Gold:
    """The images whose mask PPO imitates in iteration i, policy being π_{i-1}: see `GoldConfig`."""
    experiment, rows = context.experiment, context.rows(i)
    if experiment.gold.source == "gt":
        assert context.target_all.labels is not None
        found = Gold(rows, context.target_all.labels[rows])
    elif experiment.reward == "reward_net":
        found = context.gold(i)
        if experiment.gold.corrected:
            found = found.join(_preferred(context, i, policy, context.gold(i, CORRECTED)))
    else:
        return Gold(rows[:0], context.target.images[:0, 0])
    rank = torch.randperm(len(context.target), generator=Generator().manual_seed(context.seed("gold")))
    chosen = rank < experiment.gold.fraction * len(rank)  # the same images in every iteration
    return found.take(chosen.to(context.device)[found.rows])


@torch.no_grad()
def _preferred(context: Context, i: int, policy: UNet, corrected: Gold) -> Gold:
    """The corrected masks with a higher mean r_i than the policy's own mask of that image."""
    if not len(corrected.rows):
        return corrected
    judge = context.reward_net(i)
    own = segment(policy.eval(), context.target.images[corrected.rows])
    better: list[Tensor] = []
    for part in torch.split(torch.arange(len(own), device=context.device), AT_ONCE):
        x = context.target.at(corrected.rows[part])
        worth = [judge(x, masks[part]).mean(dim=(1, 2)) for masks in (corrected.masks, own)]
        better.append(worth[0] > worth[1])
    return corrected.take(torch.cat(better))
