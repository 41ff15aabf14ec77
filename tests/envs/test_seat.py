"""An adversarial training as an episode: its segments, what it pays, who plays it, and what comes of it."""

import pickle

import numpy as np
import pytest
import torch
from schedule_toys import SMALL, begun, brittle
from segarena.agents.papers import POLICIES
from segarena.agents.policy import play
from segarena.agents.seat.controller import SEAT, MPlus
from segarena.agents.seat.schedules import Bandit, actions_towards
from segarena.attacks.victim import Normalized
from segarena.attacks.victims import save_victim
from segarena.datasets.decathlon.sampling import DRAWS, PatchSampler
from segarena.envs.seat import CLEAN, CURVES, ITERATIONS, MAGNITUDE, ROBUST, TRAIN_LOSS, VAL_LOSS, SEATEnv
from segarena.envs.seat_config import ENLARGED, SEATConfig
from segarena.segmenters.volume_networks import SmallVolumeNet
from torch import nn

RULES = POLICIES["SEAT-MSD-v0"]


def actions(*choices):
    return torch.tensor(choices)


def test_a_segment_is_some_minibatches_of_replays_on_drawn_patches():
    """The patches are drawn by hand from the environment's own numbers, and the victim is taught without it."""
    env, twin = begun(2, segment=3, batch_size=1), begun(2, segment=3, batch_size=1)
    env.step(actions(2, 1))  # K = 2 and 1
    volumes = len(twin.sampler.pool)
    rounds = -(-3 // volumes)
    drawn = twin.streams.uniform(rounds * volumes + 3 * DRAWS)
    losses = torch.zeros(2)
    for number in range(3):
        for which in range(2):
            order = drawn[which, : rounds * volumes].view(rounds, volumes).argsort(dim=1).flatten()
            row = order[number : number + 1]
            numbers = drawn[which, rounds * volumes :].view(3, 1, DRAWS)[number]
            images, labels = twin.sampler.draw(row, row % 2 == 0, numbers)
            live = [torch.tensor([which])] * (2 - which)
            both = (images.expand(2, 1, *images.shape[1:]), labels.expand(2, 1, *labels.shape[1:]))
            kept = twin.victims.noise.clone()
            loss, _ = twin.victims.replay(*both, torch.full((2,), twin.eps), 0.5, live, torch.full((2,), 0.05))
            twin.victims.noise[1 - which] = kept[1 - which]
            losses = losses + loss
    torch.testing.assert_close(env.victims.weights, twin.victims.weights, rtol=0, atol=1e-5)
    torch.testing.assert_close(env.victims.noise, twin.victims.noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(env.info()["train_loss"], losses / torch.tensor([6.0, 3.0]), rtol=0, atol=1e-5)
    assert env.info()["n_passes"].tolist() == [6, 3]


def test_an_epoch_shows_each_volume_once(monkeypatch):
    env, seen = begun(1, segment=None), []
    draw = env.sampler.draw
    monkeypatch.setattr(env.sampler, "draw", lambda rows, *given: seen.extend(rows.tolist()) or draw(rows, *given))
    env.step(actions(1))
    assert sorted(seen) == list(range(len(env.sampler.pool)))


def test_k_moves_by_one_within_its_bounds_or_is_the_action():
    env = begun(3)
    for choice, expected in (((0, 1, 2), [1, 1, 2]), ((2, 0, 2), [2, 1, 3]), ((1, 1, 2), [2, 1, 3])):
        env.step(actions(*choice))
        assert env.info()["iter"].tolist() == expected
    absolute = begun(3, action_mode="absolute")
    absolute.step(actions(2, 0, 1))
    assert absolute.info()["iter"].tolist() == [3, 1, 2]
    assert absolute.single_action_space.n == 3


def test_the_second_part_of_an_action_enlarges_epsilon_while_the_victim_learns():
    env = begun(3, seeds=[1, 1, 1], eps_enlarger=True, segment=2)
    env.step(torch.tensor([[2, 0], [2, 1], [2, 2]]))
    largest = env.victims.noise.flatten(1).abs().amax(dim=1)
    assert (largest / largest[0]).tolist() == pytest.approx(ENLARGED, rel=1e-4)
    plain = begun(1, seeds=[1], segment=2)
    plain.step(actions(2))
    assert torch.equal(plain.victims.weights[0], env.victims.weights[0])


def test_changes_of_dice_add_up_over_an_episode_and_passes_are_paid():
    env = begun(2, price=0.5, robust_weight=2.0)
    start, totals = env.info(), dict.fromkeys(env.reward_weights, 0.0)
    for choice in ((2, 1), (2, 1), (0, 2), (1, 1)):
        env.step(actions(*choice))
        totals = {name: total + env.reward_terms[name] for name, total in totals.items()}
    end = env.info()
    for name, weight in (("robust", 2.0), ("clean", 0.5)):
        change = end[f"dice_{name}"] - start[f"dice_{name}"]
        torch.testing.assert_close(totals[name], weight * change, rtol=0, atol=1e-6)
        assert change.abs().max() > 0
    assert totals["price"].tolist() == pytest.approx([-0.5 * (2 + 3 + 2 + 2) / 3, -0.5 * (1 + 1 + 2 + 2) / 3])


def test_every_weight_reaches_the_reward():
    plain = begun(2)
    reward = plain.step(actions(2, 1))[0]
    for name, field in (("robust", "robust_weight"), ("clean", "clean_weight"), ("price", "price")):
        less = begun(2, **{field: 0.0})
        torch.testing.assert_close(reward - less.step(actions(2, 1))[0], plain.reward_terms[name], rtol=0, atol=1e-6)
        assert plain.reward_terms[name].any(), name


def test_an_episode_ends_with_its_budget_or_after_its_segments():
    env = begun(2, budget=5, horizon=4)
    ends = [[*env.step(actions(2, 1))[1:]] for _ in range(4)]  # K = 2, 3, 3, 3 and 1, 1, 1, 1
    found = [terminated.tolist() for terminated, _ in ends]
    assert found == [[False, False], [True, False], [True, False], [True, True]], "what follows N segments is nothing"
    assert not any(truncated.any() for _, truncated in ends)
    env = begun(1, budget=5)
    seen = [float(env.observe()[0, 12])]
    env.step(actions(2))
    assert [*seen, float(env.observe()[0, 12])] == pytest.approx([0, 2 / 5])


def test_an_episode_that_is_over_costs_no_pass_while_others_go_on():
    env, alone = begun(2, budget=5, horizon=4), begun(1, seeds=[1], budget=5, horizon=4)
    for step in range(4):
        kept = env.victims.weights.clone()
        env.step(actions(2, 1))  # the first is over after 2 + 3 passes
        alone.step(actions(1))
        assert torch.equal(kept[0], env.victims.weights[0]) is (step > 1)
        assert torch.equal(env.victims.weights[1], alone.victims.weights[0]), "the other one plays as alone"
        assert torch.equal(env.curves[1], alone.curves[0])
    assert env.n_passes.tolist() == [5, 4]
    assert env.observe().isfinite().all()


def test_an_observation_shows_time_magnitudes_losses_dice_and_cost():
    env = begun(1, segment=2)
    first = env.observe()[0]
    assert first[[0, 2, 3, 4, 5, 9, 10, 11, 12]].tolist() == [0.0] * 9
    for choice in (1, 2, 1):  # K = 1, 2, 2
        env.step(actions(choice))
    seen, curves = env.observe()[0], env.curves[0]
    m = curves[:, MAGNITUDE]
    expected = [
        *(3 / 6, 2 / 3, m[3].log10(), m[3] / m[1] - 1, (m[3] / m[2]).log10()),
        *(curves[3, TRAIN_LOSS], curves[3, VAL_LOSS], curves[3, CLEAN], curves[3, ROBUST]),
        *(curves[3] - curves[2])[VAL_LOSS:],
        *(10 / (6 * 2 * 3), 1.0),
    ]
    assert seen.tolist() == pytest.approx([float(one) for one in expected], abs=1e-5)
    assert curves[:4, ITERATIONS].tolist() == [0, 1, 2, 2]
    info = {name: float(value) for name, value in env.info().items() if name in CURVES}
    assert list(info.values()) == pytest.approx(curves[3].tolist())


def test_the_learning_rate_is_halved_where_the_validation_loss_stands_still():
    env = begun(2, patience=1)
    for loss in ((1.0, 1.0), (1.0, 0.5), (1.0, 0.2), (1.0, 0.1), (1.0, 0.1)):
        env._lower_rate(torch.tensor(loss))
        env.t = env.t + 1
    assert (env.rate / 0.05).tolist() == pytest.approx([0.25, 1.0])
    assert env.observe()[:, 13].tolist() == pytest.approx([0.25, 1.0])


@pytest.mark.parametrize(("name", "make"), [("seat", SEAT), ("m_plus", MPlus)])
def test_the_controller_plays_as_it_decides_by_the_magnitudes_that_are_shown(name, make):
    env = begun(3, horizon=16, most_iterations=5)
    policy = RULES[name].policy(env, 0)
    controllers, chosen = [make(5) for _ in range(3)], []
    for segment in range(16):
        env.step(policy(env))
        chosen.append(env.info()["iter"].tolist())
        assert chosen[-1] == [one.iterations for one in controllers]
        assert env.info()["threshold"].tolist() == pytest.approx([one.threshold for one in controllers])
        for one, magnitude in zip(controllers, env.info()["mag"].tolist(), strict=True):
            one.update(segment + 1, magnitude)
    assert np.unique(chosen).size > 2, "K must have moved by the magnitude, too"
    env.reset()
    policy(env)
    assert [one.iterations for one in policy.schedules] == [1, 1, 1], "a new episode"


def test_scripted_policies_come_to_their_k():
    env = begun(2, horizon=4)
    for name, expected in {"constant_1": [1, 1, 1, 1], "constant_2": [2, 2, 2, 2], "constant_5": [2, 3, 3, 3]}.items():
        env.reset()
        play(env, RULES[name].policy(env, 0))
        assert env.curves[0, 1:, ITERATIONS].tolist() == expected
    env.reset()
    play(env, RULES["deat_d"].policy(env, 0))
    assert env.curves[1, 1:, ITERATIONS].tolist() == [1, 1, 1, 2]
    absolute = begun(2, horizon=2, action_mode="absolute", eps_enlarger=True)
    for name in RULES:
        absolute.reset()
        play(absolute, RULES[name].policy(absolute, 0))
        assert name not in ("constant_3", "constant_5") or (absolute.curves[:, 1:, ITERATIONS] == 3).all()


def test_the_bandit_settles_on_the_k_that_pays():
    env, bandit = begun(2, action_mode="absolute"), Bandit()
    played = []
    for segment in range(40):
        env.t = torch.full((2,), segment)
        env.iterations = bandit(env) + 1
        played.append(env.iterations.tolist())
        best = torch.tensor([2, 3])
        env.reward_terms = {"robust": torch.where(env.iterations == best, 0.2, 0.0)}
    assert [sorted(column) for column in zip(*played[:3], strict=True)] == [[1, 2, 3], [1, 2, 3]]
    assert played[-1] == [2, 3]
    assert actions_towards(env, env.iterations).tolist() == [1, 2]


def test_a_saved_training_goes_on_as_it_would_have():
    env = begun(2, eps_enlarger=True, patience=1)
    moves = torch.tensor([[[2, 1], [1, 2]], [[2, 0], [2, 1]], [[0, 0], [1, 0]], [[2, 2], [2, 2]]])
    for move in moves[:2]:
        env.step(move)
    other = SEATEnv(num_envs=2, device="cpu", **{**SMALL, "eps_enlarger": True, "patience": 1})
    other.load_state(pickle.loads(pickle.dumps(env.state())))
    for move in moves[2:]:
        for one, two in zip(env.step(move), other.step(move), strict=True):
            assert torch.equal(one, two)
    for one, two in zip(env.victims.state().values(), other.victims.state().values(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(env.observe(), other.observe())


def test_what_the_end_tells_and_its_picture():
    env = begun(2, horizon=2, render_mode="rgb_array")
    start = env.render(1)
    env.step(actions(2, 1))
    facts = env.advance(actions(2, 1)).ended.episode_info
    assert [one["mean_iter"] for one in facts] == [2.5, 1.0]
    assert [one["final_passes"] for one in facts] == [5, 2]
    later = begun(2, horizon=2, render_mode="rgb_array")
    for _ in range(2):
        later.step(actions(2, 1))
    assert facts[0]["final_dice_robust"] == pytest.approx(float(later.info()["dice_robust"][0]))
    picture = later.render(1)
    assert picture.shape == start.shape
    assert (picture != start).any()
    assert "Dice" in later.caption(0)
    assert len(later.legend()) == 7
    assert "labels" in str(later.legend())
    later.shows_truth = False
    assert later.render(1).shape[1] < picture.shape[1]
    assert "labels" not in str(later.legend())


def test_free_training_makes_a_victim_robust_that_training_without_noise_does_not():
    """Both learn from as many passes; one relies on a pattern that an attack undoes. Where the attack has the wrong
    sign, it lowers the loss of the training below that without noise."""
    settings = {
        "segment": 20,
        "batch_size": 4,
        "width": 4,
        "most_iterations": 5,
        "eps": 0.08,
        "learning_rate": 0.03,
        "probe_steps": 2,
    }
    env = begun(2, seeds=[1, 1], action_mode="absolute", **settings)
    env.sampler = PatchSampler(brittle(24, seed=1), env.config.resolved_plan(), seed=0)
    judged = brittle(8, seed=99)
    corners = torch.zeros(8, 3, dtype=torch.int64)
    env.validation = env.probe = judged.patches(torch.arange(8), corners, (8, 8, 8))
    replay = env.victims.replay
    env.victims.replay = lambda images, labels, eps, *rest: replay(
        images, labels, eps * torch.tensor([1.0, 0.0]), *rest
    )
    env.reset()
    play(env, RULES["constant_5"].policy(env, 0))
    robust, clean, losses = (env.info()[name].tolist() for name in ("dice_robust", "dice_clean", "train_loss"))
    assert robust[0] > robust[1] + 0.1
    assert clean[1] > clean[0] + 0.1, "the pattern is there to be used"
    assert losses[0] > losses[1] + 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"most_iterations": 0}, "most_iterations is 0 but must"),
        ({"segment": 0}, "segment is 0 but must"),
        ({"eps": 8}, "8 grey levels are 8/255"),
        ({"width": 1}, "width is 1 but must"),
        ({"price": -0.1}, "price is -0.1 but must"),
        ({"action_mode": "both"}, "action_mode is 'both' but must be"),
        ({"task": "Spleen"}, "of which there is no phantom"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SEATConfig(**settings)


def test_every_episode_of_a_given_victim_begins_with_its_weights(tmp_path):
    network, path = SmallVolumeNet(1, 2, 4), tmp_path / "victim.safetensors"
    save_victim(path, Normalized(network, [0.0], [1.0]), ("background", "ball"))
    env = begun(2, model=str(path))
    plain = nn.utils.parameters_to_vector(network.parameters())
    assert torch.equal(env.victims.weights, plain.expand(2, -1))
    env.step(actions(2, 2))
    assert not torch.equal(env.victims.weights[0], env.victims.weights[1]), "patches of their own"
    env.reset()
    assert torch.equal(env.victims.weights, plain.expand(2, -1))
    save_victim(path, Normalized(network, [0.0], [1.0]), ("background", "cube"))
    with pytest.raises(ValueError, match="give the file of a victim that was trained on such volumes"):
        begun(1, model=str(path))


def test_reset_takes_no_options():
    with pytest.raises(ValueError, match="unknown reset options"):
        begun(1).reset(options={"index": 0})
