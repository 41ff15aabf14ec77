"""What the stages of RL4Seg's loop give each other: every network and mask is made up, and next to nothing is trained.

A stage whose file is there is finished; another one is made.
"""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from segarena.agents.predictor import POLICY
from segarena.agents.rl4seg import baselines, budget, policies, stages
from segarena.agents.rl4seg.callbacks import ValidationCallback
from segarena.agents.rl4seg.config import NetworkConfig, PPOStageConfig, RL4SegExperiment, Schedule, WarmStartConfig
from segarena.agents.rl4seg.context import CORRECTED, CRITIC, GOLD, REWARD_NET, SEGMENTER, TRIPLETS, Context, Gold
from segarena.agents.rl4seg.methods import Methods
from segarena.agents.rl4seg.policies import train_policy
from segarena.common.networks import load_network, save_network
from segarena.common.runs import Run
from segarena.datasets.echo.images import EchoDataConfig, PhantomPatients
from segarena.rewards.reward_data import Triplets
from segarena.rewards.reward_net import RewardNet
from segarena.segmenters.adaptation import EntropyConfig, adabn
from segarena.segmenters.tist import TistConfig
from segarena.segmenters.unet import UNet

MADE_UP = RL4SegExperiment(
    device="cpu",
    source=EchoDataConfig(size=32, phantom_patients=PhantomPatients(train=2, val=1, test=0, pred=0)),
    target=EchoDataConfig(vendor="b", size=32, phantom_patients=PhantomPatients(train=1, val=1, test=1, pred=3)),
    network=NetworkConfig(init_channels=2),
    iterations=2,
    initial_images=2,
    new_images=7,
    ppo=PPOStageConfig(epochs=2, batch=Schedule("linear_iter", 4)),
).resolved()
"""Of 16 target images the first iteration sees 9: 5 and 4 rollouts of 4 and 8 images, each played 5 times."""
STEPS = (25, 20)
"""Gradient steps of its two iterations."""


class Made(Context):
    """A run in which a stage is finished as soon as it has one file; all of them share the phantoms."""

    phantoms: ClassVar = {}

    def __init__(self, experiment, run):
        super().__init__(experiment, run, trains=True)
        self._loaded = self.phantoms

    def stage(self, name, make, **more):
        stage = self.run.stage(name)
        if not list(stage.folder.glob("*.safetensors")):
            make(stage)
        return stage.folder


def made_up(kind, seed, **settings):
    """A network with random weights, biases and statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = kind(init_channels=2, **settings).eval()
        for name, value in net.state_dict().items():
            if value.is_floating_point() and name != "temperature":
                value += 0.1 * torch.rand_like(value)
    return net


def triplets(rows, seed):
    masks = torch.randint(3, (2, len(rows), 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Triplets(torch.tensor(rows), *masks, torch.zeros(len(rows), dtype=torch.uint8))


FIRST, SECOND = triplets(range(2, 9), 0), triplets(range(9, 16), 1)


@pytest.fixture
def context(tmp_path):
    """A run up to its second PPO, without the stages adabn and shape_prior."""
    run = Run(tmp_path / "run")
    for seed, name in enumerate(("supervised", "iteration_1/ppo", "iteration_2/ppo")):
        save_network(run.stage(name).folder / SEGMENTER, made_up(UNet, seed, in_channels=1, out_channels=3))
        if seed:
            save_network(run.stage(name).folder / CRITIC, made_up(UNet, 9 + seed, in_channels=1, out_channels=1))
    for i, found in ((1, FIRST), (2, SECOND)):
        net = made_up(RewardNet, 20 + i, classes=3)
        net.temperature.fill_(float(1 + i))
        save_network(run.stage(f"iteration_{i}/reward_net").folder / REWARD_NET, net)
        data = run.stage(f"iteration_{i}/reward_data").folder
        found.save(data / TRIPLETS)
        Gold(found.images[:3], found.a_ref[:3]).save(data / GOLD)
        Gold(found.images[3:4], found.a_ref[3:4]).save(data / CORRECTED)
    return Made(MADE_UP, run)


def same(net, other):
    one, other = net.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def weights_of(net):
    return [value for name, value in net.named_parameters() if name.endswith("weight")]


def statistics(net):
    return torch.cat([value for name, value in net.state_dict().items() if "running" in name])


def with_changes(context, **changes):
    return Made(replace(MADE_UP, **changes), context.run)


# -- the start -----------------------------------------------------------------------------------------------------


def test_adabn_takes_the_statistics_of_the_target(context):
    source = context.load(context.run.stage("supervised").folder)
    found = context.load(stages.adabn_net(context))
    assert same(found, adabn(source, context.target))
    assert not torch.allclose(statistics(found), statistics(adabn(source, context.source)))


def test_the_paper_shrinks_by_a_half_and_perturbs_a_little():
    """docs/rl4seg.md, Method 5."""
    paper = WarmStartConfig()
    assert (paper.kind, paper.shrink, paper.sigma, paper.include_norm) == ("shrink_perturb", 0.5, 0.01, True)


# -- reward network ------------------------------------------------------------------------------------------------


class EnoughError(Exception):
    """What was to be seen has been seen."""


@pytest.mark.parametrize("warm", [False, True])
def test_a_reward_network_learns_from_the_triplets_of_all_iterations_and_starts_warm_where_it_shall(
    context, monkeypatch, warm
):
    given = {}

    def train(net, train, val, *rest):
        given.update(start=net, train=train, val=val)
        raise EnoughError

    monkeypatch.setattr(stages, "train_reward_net", train)
    monkeypatch.setattr(stages, "shape_prior", lambda context: context.run.folder)
    context = with_changes(context, reward_net=replace(MADE_UP.reward_net, warm_start=warm))
    (context.run.stage("iteration_2/reward_net").folder / REWARD_NET).unlink()
    with pytest.raises(EnoughError):
        stages.iterate(context, 2)
    assert same(given["start"], context.reward_net(1)) is warm
    every = stages.triplets(context, 2)
    assert every.images.tolist() == [*FIRST.images.tolist(), *SECOND.images.tolist()]
    train, val, _ = every.split(context.target.groups, context.seed("triplets"))
    assert torch.equal(given["train"].a_bad, train.a_bad)
    assert torch.equal(given["val"].a_bad, val.a_bad)
    assert not set(train.images.tolist()) & set(val.images.tolist())


def test_the_uncertainty_is_one_minus_the_calibrated_reward_of_the_last_network(context):
    images = context.target.take(range(4))
    shown = Methods(context).load(POLICY)(images)[-1]
    net = load_network(context.run.stage("iteration_2/reward_net").folder / REWARD_NET, RewardNet, classes=3)
    with torch.no_grad():
        z = net.logits(images.at(torch.arange(4)), shown.masks)
    assert float(net.temperature) == 3.0
    torch.testing.assert_close(shown.uncertainty, 1 - torch.sigmoid(z / 3.0))


# -- PPO -----------------------------------------------------------------------------------------------------------


def given_to_ppo(context, monkeypatch, **changes):
    """What PPO of the second iteration is given."""
    given = {}
    monkeypatch.setattr(stages, "train_policy", lambda context, stage, **more: given.update(more) or [])
    stages._ppo(with_changes(context, **changes), 2, context.run.stage("second"))
    return SimpleNamespace(**given)


def test_ppo_goes_on_with_policy_and_critic_but_its_reference_stays_the_first_policy(context, monkeypatch):
    given = given_to_ppo(context, monkeypatch, warm_start=WarmStartConfig("keep"))
    before = context.run.stage("iteration_1/ppo").folder
    assert same(given.start, context.load(before))
    assert same(given.critic, load_network(before / CRITIC, UNet, out_channels=1))
    assert same(given.reference, context.load(stages.adabn_net(context)))


def test_policy_and_critic_are_shrunk_and_take_the_statistics_of_what_they_are(context, monkeypatch):
    given, before = given_to_ppo(context, monkeypatch), context.run.stage("iteration_1/ppo").folder
    seen = context.target.take(context.rows(2).tolist())
    old = {"start": context.load(before), "critic": load_network(before / CRITIC, UNet, out_channels=1)}
    for name, net in old.items():
        new = getattr(given, name)
        was, now = (torch.cat([p.detach().flatten() for p in weights_of(one)]) for one in (net, new))
        assert float(was @ now / (was @ was)) == pytest.approx(0.5, abs=0.01)
        assert 0.005 < float((now - 0.5 * was).std()) < 0.015
        torch.testing.assert_close(statistics(new), statistics(adabn(new, seen)))


def test_ppo_plays_without_labels_and_keeps_the_best_look_at_the_validation_images(context, monkeypatch):
    """Of three looks the second is the best; the first is of the untrained policy."""
    scores, pools, looks = iter([0.1, 0.9, 0.1, 0.8, 0.1, 0.3]), [], []

    class Watched(ValidationCallback):
        def look(self):
            done = self.looks
            super().look()
            if self.looks > done:
                looks.append({name: value.clone() for name, value in self.model.policy.actor.state_dict().items()})

    def env_of(context, images, *more):
        pools.append(images)
        return plain(context, images, *more)

    plain = policies.env_of
    monkeypatch.setattr(policies, "env_of", env_of)
    monkeypatch.setattr(policies, "ValidationCallback", Watched)
    monkeypatch.setattr(policies, "rewards_of", lambda env, masks: torch.full((len(masks), 32, 32), next(scores)))
    start = context.load(context.run.stage("supervised").folder)
    settings = {"start": start, "reference": start, "reward": stages.reward_function(context, 1)}
    critic = load_network(context.run.stage("iteration_1/ppo").folder / CRITIC, UNet, out_channels=1)
    config = replace(MADE_UP.learner(1), n_epochs=1, total_timesteps=20, critic_lr=0.0)
    stage = context.run.stage("third")
    files = train_policy(context, stage, i=1, config=config, critic=critic, **settings)
    assert files == [SEGMENTER, CRITIC]
    assert pools[0].labels is None
    assert pools[0].ids == context.target.ids[:9]
    kept = context.load(stage.folder).state_dict()
    same_as = [all(torch.equal(kept[name], value) for name, value in look.items()) for look in looks]
    assert same_as == [False, True, False]
    assert stage.metrics()[-1] == {"step": 20, "train/gradient_steps": 5}
    assert same(load_network(stage.folder / CRITIC, UNet, out_channels=1), critic)


def test_labels_are_played_with_only_where_a_reward_is_named_that_reads_them(context):
    assert context.images(1, stages.reward_function(context, 1)).labels is None
    assert context.images(1, "anatomical").labels is None
    assert torch.equal(context.images(1, "pixel_accuracy").labels, context.target_all.labels[:9])


# -- baselines -----------------------------------------------------------------------------------------------------


def make_only(context, monkeypatch):
    """Baselines are made in a stage of no name, and give their network itself."""
    stage = context.run.stage("baseline")
    monkeypatch.setattr(baselines, "one_unet", lambda context, name, make, **more: [make(stage)])
    monkeypatch.setattr(baselines, "_stage", lambda context, name, make, **more: make(stage) and stage.folder)


def test_self_training_learns_gold_masks_for_as_long_as_the_loop_and_then_takes_the_statistics_again(
    context, monkeypatch
):
    given, found = {}, Gold(SECOND.images[:5], SECOND.a_ref[:5])

    def train(net, images, val, config, *rest):
        given.update(images=images, val=val, config=config)
        net.train()(images.at(torch.arange(5)))  # moves the running statistics
        net.eval()

    make_only(context, monkeypatch)
    monkeypatch.setattr(baselines, "shape_prior", lambda context: context.run.folder)
    monkeypatch.setattr(baselines, "gold_of", lambda *_, **more: given.update(more) or found)
    monkeypatch.setattr(baselines, "train_segmenter", train)
    context = with_changes(context, supervised=replace(MADE_UP.supervised, batch_size=2))
    for function, corrected in ((baselines.gold_self_training, False), (baselines.corrected_self_training, True)):
        (net,) = function(context)
        assert given["corrected"] is corrected
        assert torch.equal(given["images"].labels, found.masks)
        assert given["images"].ids == [context.target.ids[row] for row in found.rows]
        assert given["val"] is None, "no truth may choose"
        assert given["config"].epochs == sum(STEPS) / 3, "three batches an epoch"
        expected = statistics(adabn(context.load(stages.start_net(context)), context.target))
        torch.testing.assert_close(statistics(net), expected)


def test_baselines_are_chosen_on_the_source_and_see_a_target_without_labels(context, monkeypatch):
    make_only(context, monkeypatch)
    monkeypatch.setattr(baselines, "load_tist", lambda *_: UNet(1, 3, init_channels=2))
    given = {}
    for name in ("train_tist", "train_udas"):
        monkeypatch.setattr(baselines, name, lambda *pools, name=name: given.update({name: pools[1:4]}) or UNet(1, 3))
    baselines.tist(context)
    baselines.udas(context)
    for source, val, target in given.values():
        assert (source.ids, val.ids, target.ids) == (context.source.ids, context.source_val.ids, context.target.ids)
        assert target.labels is None
    assert len(given) == 2


@pytest.mark.parametrize("function", [baselines.policy_gradient, baselines.oracle_rl])
def test_baselines_by_rl_begin_where_the_loop_does_and_see_as_many_images(context, monkeypatch, function):
    given = {}

    def train(context, stage, **more):
        given.update(more)
        raise EnoughError

    make_only(context, monkeypatch)
    monkeypatch.setattr(baselines, "train_policy", train)
    with pytest.raises(EnoughError):
        function(context)
    config, first = given["config"], context.load(stages.start_net(context))
    assert (config.total_timesteps, config.num_envs) == (2 * 9 + 2 * 16, 4)
    assert same(given["start"], first)
    assert same(given["reference"], first)
    assert (given["i"], given.get("gold")) == (0, None)
    assert (given["reward"] == "pixel_accuracy") is (function is baselines.oracle_rl)


@pytest.mark.parametrize("equal", [False, True])
def test_with_equal_budgets_baselines_take_as_many_gradient_steps_as_the_loop(context, monkeypatch, equal):
    """Of 16 target and 8 source images: 4 and 3 batches an epoch. One step for each rollout of 4 images."""
    given, steps = {}, sum(STEPS)
    make_only(context, monkeypatch)
    monkeypatch.setattr(baselines, "load_tist", lambda *_: UNet(1, 3, init_channels=2))
    monkeypatch.setattr(baselines, "minimise_entropy", lambda *args: given.update(entropy=args[2]))
    monkeypatch.setattr(baselines, "train_tist", lambda *args: given.update(tist=args[4]))
    monkeypatch.setattr(baselines, "train_policy", lambda *_, **more: given.update(pg=more["config"]) or [SEGMENTER])
    save_network(context.run.stage("baseline").folder / SEGMENTER, UNet(1, 3, init_channels=2))
    changes = {"entropy": EntropyConfig(batch_size=4), "tist": TistConfig(batch_size=3)}
    context = with_changes(context, equal_budget=equal, **changes)
    for function in (baselines.entropy, baselines.tist, baselines.policy_gradient):
        function(context)
    epochs = (math.ceil(steps / 4), steps / 3) if equal else (EntropyConfig().epochs, TistConfig().epochs)
    assert (given["entropy"].epochs, given["tist"].epochs) == epochs
    assert (given["pg"].n_epochs, given["pg"].num_envs) == (1, 4)
    assert given["pg"].total_timesteps == (4 * steps if equal else 2 * 9 + 2 * 16)
    assert budget.budget_keys(context) == (["equal_budget", "ppo"] if equal else [])


def test_a_stage_that_did_not_count_its_steps_is_not_said_to_have_made_none(context):
    stage = context.run.stage("old")
    assert budget._steps_in(stage.folder) == 0
    stage.log(1, {"segmenter/loss": 0.5})
    assert budget._steps_in(stage.folder) is None
    stage.log(2, {"segmenter/loss": 0.5, "segmenter/gradient_steps": 7})
    assert budget._steps_in(stage.folder) == 7
    stage.close()
