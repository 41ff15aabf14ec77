"""The joint loop: learning towards the best mask, who moves and who does not, and the program's own order."""

import itertools
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from joint_toys import BEST, Patches, Table, play, tiny, toy
from segarena.agents.apga import joint, learners
from segarena.agents.apga.config import RewardConfig
from segarena.agents.apga.joint import Loop
from segarena.agents.apga.masks import foreground, others, same_area
from segarena.agents.apga.methods import METHODS, method_of, views
from segarena.agents.apga.training import build_agent
from segarena.classifiers.train_xray import build_classifier
from segarena.common.finite import NotFiniteError
from segarena.common.networks import save_network
from segarena.common.runs import Run


def all_masks():
    """The sixteen masks [16, 1, 1, 2, 2]."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).view(16, 1, 1, 2, 2)


def test_rewards_are_those_of_the_known_masks():
    game, _ = toy("reinforce")
    rewards = game.rewards(game.batch(torch.tensor([0])), all_masks())[:, 0]
    by_mask = dict(zip(itertools.product((0, 1), repeat=4), rewards.tolist(), strict=True))
    assert by_mask[1, 0, 0, 1] == pytest.approx(BEST, abs=1e-5)
    assert by_mask[1, 0, 0, 1] == max(by_mask.values())
    assert by_mask[1, 0, 0, 0] == pytest.approx(0.647664, abs=1e-5)
    assert by_mask[1, 1, 1, 1] == pytest.approx(0.611849, abs=1e-5)
    assert by_mask[0, 0, 0, 0] == 0.0
    assert float(game.means()["apga/loss_orig"]) == pytest.approx(0.201413, abs=1e-5)


@pytest.mark.parametrize("method", ["reinforce", "arm", "disarm", "ppo", "relaxed"])
def test_the_agent_finds_the_best_mask(tmp_path, method):
    game, row = toy(method)
    torch.manual_seed(0)
    play(game, row, [("agent",)], 40, tmp_path)
    batch = game.batch(torch.arange(8))
    found = game.rewards(batch, (batch.logits.detach() > 0).float()[None]).mean()
    assert float(found) >= 0.95 * BEST, float(found)


def test_a_moving_mean_as_baseline_finds_it_too(tmp_path):
    game, row = toy("reinforce", baseline="ema")
    torch.manual_seed(0)
    play(game, row, [("agent",)], 60, tmp_path)
    batch = game.batch(torch.arange(8))
    assert float(game.rewards(batch, (batch.logits.detach() > 0).float()[None]).mean()) >= 0.95 * BEST


def test_the_program_gives_its_known_losses_through_the_trainer(tmp_path, monkeypatch):
    p = torch.tensor([[0.9, 0.2], [0.6, 0.4]])[None, None]
    game, row = toy("legacy", agent=Table(p.logit()), rate=1e-9, number=1, max_grad_norm=None)
    rewards, losses, learn = iter([0.5, 1.0, -0.2]), [], game.learn
    monkeypatch.setattr(learners, "classifier_loss", lambda net, x, y, masked: game.last_plain_loss + next(rewards))
    monkeypatch.setattr(game, "learn", lambda loss: (losses.append(float(loss.detach())), learn(loss)))
    play(game, row, row.groups(joint=False), 3, tmp_path)
    assert losses == pytest.approx([0.0, 8.465144, -15.982432], abs=1e-3)


def test_the_program_does_not_learn_from_a_constant_reward(tmp_path, monkeypatch):
    game, row = toy("legacy", agent=Table(torch.tensor([[1.0, -1], [0.5, -2]])[None, None]), max_grad_norm=None)
    before = game.agent.logits.detach().clone()
    monkeypatch.setattr(learners, "classifier_loss", lambda net, x, y, masked: game.last_plain_loss + 0.75)
    play(game, row, row.groups(joint=False), 5, tmp_path)
    assert torch.equal(game.agent.logits, before)


def test_the_program_compares_two_modes_and_moves_first():
    game, row = toy("legacy", agent=Table(torch.full((1, 1, 2, 2), 3.0)), max_grad_norm=None)
    seen = []
    game.players.classifier.register_forward_hook(lambda net, x, y: seen.append(net.training))
    batch = game.batch(torch.arange(8))
    for group in row.groups(joint=False):
        if group == ("agent",):
            row.learner(game, batch)
        else:
            game.teach(views(game, batch, row, group), batch.y)
    assert seen[0], "the whole images teach first, in training mode"
    assert not any(seen[1:-1]), "the erased ones are judged in evaluation mode"
    assert seen[-1]


def test_warming_up_leaves_every_bit_of_the_classifier(tmp_path):
    game, row = toy("reinforce")
    before = {name: value.clone() for name, value in game.players.classifier.state_dict().items()}
    agent = [one.clone() for one in game.agent.parameters()]
    play(game, row, [("agent",)], 3, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in game.players.classifier.state_dict().items())
    assert not all(torch.equal(a, b) for a, b in zip(agent, game.agent.parameters(), strict=True))
    assert game.counters.passes == 0
    assert game.counters.queries == 3 * 8 * 5, "the whole images, and four masks of each"


@pytest.mark.parametrize("method", sorted(name for name, row in METHODS.items() if row.learner))
def test_the_loop_moves_both(tmp_path, method):
    game, row = toy(method, agent=Table(torch.tensor([[1.0, -1], [0.5, -2]])[None, None]))
    classifier, agent = game.players.classifier.weight.detach().clone(), game.agent.logits.detach().clone()
    torch.manual_seed(0)
    play(game, row, row.groups(joint=False), 3, tmp_path)
    assert not torch.equal(game.players.classifier.weight, classifier)
    assert not torch.equal(game.agent.logits, agent)
    assert game.counters.passes == 3 * 8 * 2, "all methods have the same budget"


@pytest.mark.parametrize("method", ["none_2x", "cutout", "foreground", "pixel_dropout"])
def test_methods_without_an_agent_have_the_same_budget(tmp_path, method):
    game, row = toy(method)
    play(game, row, row.groups(joint=False), 3, tmp_path)
    assert game.counters.passes == 3 * 8 * 2


def test_the_accuracy_of_whole_validation_images_chooses_the_epoch_of_the_classifier(tmp_path):
    game, row = toy("reinforce")
    for groups, chooses in ((row.groups(joint=False), True), ([("agent",)], False)):
        loop = Loop(game, row, groups, game.pool, Run(tmp_path))
        score, found = loop.validate(game.players.eval())
        assert score == (1.0 if chooses else None), "all are of class 1, and are found to be"
        assert found.get("val_acc") == score


def test_the_loop_ends_after_its_patience(tmp_path, monkeypatch):
    game, row = toy("none_2x")
    settled = {"accuracy": 0.5, "auroc": 0.5, "kappa": 0.0}
    monkeypatch.setattr(joint, "image_metrics", lambda p, labels: settled)
    experiment = replace(game.experiment, training=replace(game.experiment.training, epochs=10, patience=1))
    best = joint.train_jointly(game.players, row, game.pool, game.pool, experiment, Run(tmp_path), 0)
    assert best["epoch"] == 1
    assert len(Run(tmp_path).metrics()) == 3, "the first, and two that are not better"


def test_the_gradient_of_end_to_end_reaches_both_and_cooperates():
    game, row = toy("end2end", agent=Table(torch.zeros(1, 1, 2, 2)), max_grad_norm=None, end2end=(0.0, 0.0), rate=0.1)
    before = game.players.classifier.weight.detach().clone()
    row.learner(game, game.batch(torch.arange(8)))
    moved = game.agent.logits.detach().flatten()
    assert moved[0] > 0, "what speaks for the class is kept"
    assert moved[3] > 0
    assert moved[1] < 0, "what speaks against it is not"
    assert not torch.equal(before, game.players.classifier.weight)


def test_one_step_for_both_is_one_step():
    row = METHODS["reinforce"]
    assert row.groups(joint=False) == [("agent",), ("plain",), ("masked",)]
    assert row.groups(joint=True) == [("agent",), ("plain", "masked")]
    game, row = toy("reinforce")
    batch = game.batch(torch.arange(8))
    together = views(game, batch, row, ("plain", "masked"))
    game.teach(together, batch.y)
    assert [name for name, _ in together] == ["plain", "aid"]
    assert {"loss_plain", "loss_aid"} <= game.means().keys()
    assert all(int(state["step"]) == 1 for state in game.optimizer.state.values())


def test_split_statistics_keep_masked_images_out_of_the_plain_ones():
    game, _ = toy("reinforce")
    net = build_classifier(tiny("reinforce").classifier, 2, 0, torch.device("cpu")).train()
    net.split_statistics()
    game.players.classifier, y = net, torch.tensor([0, 1] * 4)
    game.optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    plain, black = torch.rand(8, 1, 32, 32), torch.zeros(8, 1, 32, 32)
    other = deepcopy(net)
    game.teach([("plain", plain), ("aid", black)], y)
    with torch.no_grad():
        other(plain)
    first, alone = net.body[1], other.body[1]
    assert torch.equal(first.running_mean, alone.running_mean)
    assert not torch.equal(first.masked_running_mean, first.running_mean)


@pytest.mark.parametrize("method", ["reinforce", "legacy"])
def test_rewards_ask_for_masked_images_as_such(method):
    game, row = toy(method, agent=Table(torch.full((1, 1, 2, 2), 3.0)))
    game.last_plain_loss, seen = torch.tensor(0.2), []
    game.players.classifier.register_forward_pre_hook(
        lambda net, x, options: seen.append((options.get("masked", False), bool((x[0] == 0).any()))), with_kwargs=True
    )
    row.learner(game, game.batch(torch.arange(8)))
    assert {masked for masked, _ in seen} == {False, True}
    assert all(masked or not erased for masked, erased in seen), "with split statistics, each kind by its own"


def test_masked_views_keep_or_erase():
    game, _ = toy("reinforce", agent=Table(torch.tensor([[1.0, -1], [1.0, -1]])[None, None]))
    batch = game.batch(torch.arange(8))
    of = {}
    torch.manual_seed(0)
    for train_on in ("aid", "adv", "both"):
        row = method_of(tiny("reinforce", train_on=train_on))
        of[train_on] = views(game, batch, row, ("masked",))[0][1]
    assert of["aid"][0, 0, 0].tolist() == [1.0] * 4 + [0.0] * 4
    assert torch.equal(of["aid"] + of["adv"], batch.x)
    assert 0 < int((of["both"] == of["aid"]).flatten(1).all(dim=1).sum()) < 8
    keeps = (of["both"] == of["aid"]).flatten(1).all(dim=1)
    assert torch.equal(keeps, ~(of["both"] == of["adv"]).flatten(1).all(dim=1))


def test_controls_keep_the_area_and_lose_the_place():
    torch.manual_seed(0)
    masks = (torch.rand(6, 1, 8, 8) < 0.2).float()
    moved = same_area(masks, torch.rand(6, 1, 8, 8))
    assert torch.equal(moved.sum(dim=(1, 2, 3)), masks.sum(dim=(1, 2, 3)))
    assert not torch.equal(moved, masks)
    assert torch.equal(others(masks)[1:], masks[:-1])
    picture = torch.zeros(1, 1, 8, 8)
    picture[..., 2:5] = 0.7
    assert torch.equal(foreground(picture), (picture > 0.5).float())


def test_a_reward_that_is_no_number_ends_it_and_names_the_images(tmp_path):
    game, row = toy("reinforce")
    game.experiment.training.__dict__["batch_size"] = 4

    def broken(net, x, y):
        return torch.where(x[0].mean() < 2, torch.nan, y)

    game.players.classifier.register_forward_hook(broken)
    with pytest.raises(NotFiniteError, match="its images stand in"):
        play(game, row, [("agent",)], 1, tmp_path)
    assert "white_" in (tmp_path / "not_finite.json").read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "none_2x", "train_on": "adv"}, "masks nothing"),
        ({"method": "legacy", "joint_step": True}, "no two steps to join"),
        ({"method": "end2end", "joint_step": True}, "no two steps to join"),
        ({"method": "reinforce", "joint_step": True, "train_on": "none"}, "no two steps to join"),
        ({"method": "end2end", "train_on": "none"}, "no step of plain images"),
        ({"method": "cutout", "warm_up": 1}, "no agent learns"),
        ({"method": "legacy", "warm_up": 1}, "no agent learns"),
    ],
)
def test_options_without_a_use_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        method_of(tiny(**settings))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tiny("cutout", area=0.2), "only method random"),
        (lambda: tiny("reinforce", agent={"init": "file"}), "need a file"),
        (lambda: tiny("reinforce", agent={"init": "vgg11", "pretrained": "x"}), "take unet11"),
        (lambda: tiny("reinforce", agent={"grid": 12}), "halved a number of times"),
        (lambda: tiny("reinforce", update={"samples": 1}), "samples"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_an_agent_of_another_grid_is_refused(tmp_path):
    file = tmp_path / "agent.safetensors"
    save_network(file, build_agent(tiny("reinforce").agent, 32, 0))
    other = tiny("reinforce", agent={"grid": 16, "init": "file", "pretrained": str(file)})
    with pytest.raises(ValueError, match="grid = 8 but 16 is needed"):
        build_agent(other.agent, 32, 0)
    same = tiny("reinforce", agent={"init": "file", "pretrained": str(file)})
    assert build_agent(same.agent, 32, 5).grid == 8


def test_random_masks_of_a_share_need_no_agent():
    row = method_of(tiny("random", area=0.3))
    assert row.learner is None
    game, _ = toy("reinforce")
    game.experiment = tiny("random", area=0.3, agent={"grid": 4})
    mask = row.select(game, game.batch(torch.arange(8)))
    assert mask.shape == (8, 1, 8, 8)
    assert 0.1 < float(mask.mean()) < 0.5
    assert isinstance(game.players.classifier, Patches)


def test_the_value_of_ppo_learns_the_reward(tmp_path):
    game, row = toy("ppo", vf_coef=5.0)
    torch.manual_seed(0)
    batch = game.batch(torch.arange(8))
    before = float((batch.values.detach() - 1.0).abs().mean())
    play(game, row, [("agent",)], 40, tmp_path)
    batch = game.batch(torch.arange(8))
    rewards = game.rewards(batch, learners.draw(batch.logits, 64)).mean(dim=0)
    error = float((batch.values.detach() - rewards).abs().mean())
    assert error < 0.25, (before, error)


def rewarded(**settings):
    """A game with another reward, and a batch of it."""
    game, _ = toy("reinforce")
    game.experiment = replace(game.experiment, reward=RewardConfig(**settings))
    return game, game.batch(torch.arange(8))


def test_modes_kinds_and_terms_of_the_reward():
    pair = torch.tensor([1.0, 0, 0, 1]).view(1, 1, 1, 2, 2).expand(1, 8, 1, 2, 2)
    found = {}
    for mode in ("adversarial", "cooperative", "contrast"):
        game, batch = rewarded(mode=mode, area_coef=0.0)
        found[mode] = float(game.rewards(batch, pair)[0, 0])
    assert found["cooperative"] == pytest.approx(0.201413 - 0.126928, abs=1e-5), "nothing else is kept: logit 2"
    assert found["contrast"] == pytest.approx(found["adversarial"] + found["cooperative"], abs=1e-5)
    game, batch = rewarded(kind="logit", area_coef=0.0)
    assert float(game.rewards(batch, pair)[0, 0]) == pytest.approx(3.0), "from 1.5 to -1.5"
    game, batch = rewarded(kind="logit", area_coef=0.0, clip=2.0)
    assert float(game.rewards(batch, pair)[0, 0]) == 2.0
    game, batch = rewarded(tv_coef=1.0)
    assert float(game.rewards(batch, pair)[0, 0]) == pytest.approx(BEST - 1.0), "four borders of four cells"
    nothing = torch.zeros_like(pair)
    game, batch = rewarded(level="batch")
    mixed = torch.cat([pair[:, :4], nothing[:, :4]], dim=1)
    assert game.rewards(batch, mixed)[0].tolist() == pytest.approx([BEST / 2] * 8)


def test_what_is_known_of_whole_images_is_what_would_be_computed():
    game, _ = toy("reinforce")
    asked = game.rewards(game.batch(torch.arange(8)), all_masks()[:4].expand(4, 8, 1, 2, 2))
    game.remember_plain()
    queries = game.counters.queries
    known = game.rewards(game.batch(torch.arange(8)), all_masks()[:4].expand(4, 8, 1, 2, 2))
    assert torch.equal(asked, known)
    assert game.counters.queries == queries + 4 * 8


def test_a_fresh_mask_sees_the_agents_step_and_a_drawn_one_is_drawn():
    game, row = toy("reinforce", agent=Table(torch.full((1, 1, 2, 2), -0.5)))
    batch = game.batch(torch.arange(8))
    with torch.no_grad():
        game.agent.logits += 1.0
    assert float(row.select(game, batch).mean()) == 0.0
    training = game.experiment.training
    game.experiment = replace(game.experiment, training=replace(training, fresh_aid=True))
    assert float(row.select(game, batch).mean()) == 1.0
    game.experiment = replace(game.experiment, training=replace(training, mask="sample"))
    torch.manual_seed(0)
    drawn = row.select(game, game.batch(torch.arange(8)))
    assert 0.3 < float(drawn.mean()) < 0.9


def test_one_more_step_on_images_with_a_box_erased(tmp_path):
    row = method_of(tiny("reinforce", extra_cutout=True))
    assert row.groups(joint=False)[-1] == ("cutout",)
    game, _ = toy("reinforce")
    play(game, row, row.groups(joint=False), 1, tmp_path)
    assert game.counters.passes == 3 * 8
    assert "loss_cutout" in game.means()
    assert method_of(tiny("reinforce", train_on="none")).steps == ("agent", "plain")
