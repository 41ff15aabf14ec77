"""SPARS search: new windows on one shared map, rounds, discovery, memory (docs/spars.md, Method 15)."""

from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_search import SCALE, SearchEnv
from segarena.envs.spars_tables import CANDIDATE, SEARCH_STATE
from segarena.testing import check_env_contract

FULL = (32, 28, 24)


def ball_score(case, corners):
    """High near one place: a tumour that windows feel from afar."""
    away = (corners - torch.tensor([16, 12, 8])).double().norm(dim=-1)
    return torch.exp(-((away / 8) ** 2)).float()


def search(num_envs=6, **settings):
    sample = load_liver_cases(LiverDataConfig(cases=["phantom_02000"]))[0]
    label = torch.zeros(FULL, dtype=torch.uint8)
    label[14:22, 12:18, 8:14] = 2
    case = replace(sample, id="toy", image=torch.zeros(FULL, dtype=torch.uint8), label=label)
    chosen = {"grid_shape": FULL, "window_size": (8, 8, 8), "score_source": ball_score, "mask_threshold": 0.5}
    chosen |= {"volumes": [case], "device": "cpu", "num_envs": num_envs, "horizon": 8, **settings}
    env = SparsEnv(profile="search", **chosen)
    env.seed(range(num_envs))
    env.reset()
    return env


def some_action(env, generator):
    """An action that can be chosen, for each environment."""
    masks = env.action_masks()
    return (torch.rand(masks.shape, generator=generator) * masks).argmax(dim=1)


def test_the_profile_makes_the_game():
    env = search()
    assert isinstance(env, SearchEnv)
    assert env.single_action_space.n == 78
    assert env.single_observation_space["candidates"].shape == (78, len(CANDIDATE))
    assert env.single_observation_space["state"].shape == (len(SEARCH_STATE),)
    assert type(SparsEnv(cases=["phantom_02000"], score_source="oracle_fraction", device="cpu")) is SparsEnv
    made = gym.make("SPARS-LiverCT-v0", profile="search", cases=["phantom_02000"], score_source="oracle_fraction")
    assert isinstance(made.unwrapped.batched, SearchEnv)


@pytest.mark.parametrize("n_agents", [1, 2])
def test_every_move_looks_at_a_new_window_and_the_map_is_of_all_of_them(n_agents):
    env, generator = search(n_agents=n_agents), torch.Generator().manual_seed(0)
    for step in range(8):
        _, terminated, truncated = env.step(some_action(env, generator))
        assert not terminated.any()
        assert bool(truncated.all()) == (step == 7)
    windows = env.info()["windows"]
    assert (windows == 8 * n_agents).all(), "of each agent one in each round, none of them twice"
    painted = env.masks.seen(*env.painting.strokes(torch.arange(6)))
    assert torch.equal(~painted.isnan(), env.posterior.seen)
    scores = ball_score(None, env.lattice.corners())
    assert torch.equal(painted[env.posterior.seen], scores.expand(6, -1)[env.posterior.seen])
    assert torch.allclose(env.prior.fill(painted), env.scores_known(), atol=1e-5), "as if all had been seen at once"
    assert {info["reason"] for info in env.episode_info(torch.arange(6))} == {"time"}


@pytest.mark.parametrize("reward", ["sign", "diff", "cooperative"])
def test_the_reward_is_what_either_discovered(reward):
    env, generator = search(reward=reward), torch.Generator().manual_seed(1)
    start = env.found.clone()
    start[env._second] -= env._pending[env._second] / SCALE  # what the competitor found before the first round
    total = torch.zeros(6)
    for _ in range(8):
        paid, _, _ = env.step(some_action(env, generator))
        mine, theirs = env.gains
        expected = {"sign": torch.sign(mine - theirs), "diff": mine - theirs, "cooperative": mine + theirs}[reward]
        assert torch.equal(paid, expected)
        total += mine + theirs
    assert torch.allclose(total, SCALE * (env.found - start), atol=1e-4), "what was discovered adds up"
    assert torch.allclose(env.total.sum(0), total, atol=1e-5)
    assert (env.info()["win"] == torch.sign(env.total[0] - env.total[1])).all(), "who discovered more in the episode"
    env.reset()
    assert not env.total.any()


def test_discovery_is_the_rise_of_the_likeness_with_what_all_scores_say():
    env = search(n_agents=1, num_envs=1, action_set="anywhere", fill="stationary")
    scores = ball_score(None, env.lattice.corners())

    def likeness(known):
        some = env.lattice.average(known[None])[0]
        full = env.lattice.average(scores[None])[0]
        p, q = (torch.sigmoid(a * logit(x) + b) for x, a, b in ((some, 1.4, -5.6), (full, 0.9, -5.5)))
        return 2 * float((p * q).sum()) / float((p**2).sum() + (q**2).sum())

    def logit(x):
        return torch.log(x / (1 - x)).clamp(-7, 7)

    seen = torch.full((1, env.lattice.size), torch.nan)
    before = likeness(env.prior.fill(seen)[0])
    for window in (int(scores.argmax()), 0, 40):
        seen[0, window] = scores[window]
        reward, _, _ = env.step(torch.tensor([window]))
        after = likeness(env.prior.fill(seen)[0])
        assert float(reward) == pytest.approx(SCALE * (after - before), abs=1e-3)
        before = after


def test_maps_that_say_the_same_are_alike_and_others_less():
    env = search(n_agents=1, num_envs=1)
    same = env._full[env.case]
    assert float(env._likeness(same)) == pytest.approx(1.0)
    for other in (1.5 * same, 0.5 * same, same.flip(1), torch.zeros_like(same), torch.ones_like(same)):
        assert float(env._likeness(other)) < 0.95


@pytest.mark.parametrize("changes", [{"phase": (2, 1, 3)}, {"grid_shape": (31, 28, 22)}])
def test_blocks_that_no_window_covers_are_no_tumour(changes):
    """Nor in the map of all scores, nor in the map so far: else D would be high before anything is seen."""
    shape = changes.get("grid_shape", FULL)
    sample = load_liver_cases(LiverDataConfig(cases=["phantom_02000"]))[0]
    case = replace(sample, id="toy", image=torch.zeros(shape, dtype=torch.uint8), label=None)
    env = search(num_envs=2, volumes=[case], score_source=lambda case, corners: torch.zeros(len(corners)), **changes)
    assert env._full.max() < 0.01
    assert env._p.max() < 0.1


def test_labels_change_nothing_but_what_is_measured():
    plays = []
    for shuffled in (False, True):
        env, generator = search(opponent="random"), torch.Generator().manual_seed(2)
        if shuffled:
            case = env.cases[0]
            order = torch.randperm(case.label.numel(), generator=torch.Generator().manual_seed(0))
            env.cases[0] = replace(case, label=case.label.flatten()[order].view(FULL))
        seen = []
        for _ in range(8):
            reward, _, _ = env.step(some_action(env, generator))
            seen += [reward, *env.observe().values()]
        plays.append(seen)
    assert all(torch.equal(one, other) for one, other in zip(*plays, strict=True))


def test_the_observation_is_what_is_known_of_the_windows_in_reach():
    env, generator = search(), torch.Generator().manual_seed(3)
    for _ in range(3):
        env.step(some_action(env, generator))
    for player in (0, 1):
        obs = env.observe(player=player)
        assert env.single_observation_space["candidates"].contains(obs["candidates"][0].numpy())
        column = dict(zip(CANDIDATE, obs["candidates"].unbind(-1), strict=True))
        there = env.candidates(player)
        assert torch.equal(there, env.neighbours(env.at[player]).T)
        assert torch.equal(column["μ"], env.posterior.mean.gather(1, there).clamp(-4, 4))
        assert torch.equal(column["σ"], env.posterior.variance.sqrt().gather(1, there))
        assert torch.equal(column["seen"] > 0, env.posterior.seen.gather(1, there))
        assert torch.equal(column["can be chosen"] > 0, env.action_masks(player))
        scores = ball_score(None, env.lattice.corners())[there]
        assert torch.equal(column["f if seen"], torch.where(column["seen"] > 0, scores, 0.0))
        cells = torch.stack(torch.unravel_index(torch.arange(env.lattice.size), env.lattice.shape), dim=-1)
        near = (cells[:, None] - cells[None]).abs().amax(-1) <= 1
        highest = torch.stack([torch.where(near, one, -9.0).amax(1) for one in env.posterior.mean])
        sigma = env.posterior.variance.sqrt() @ near.float().T / near.sum(1)
        assert torch.equal(column["highest μ around"], highest.gather(1, there).clamp(-4, 4))
        assert torch.allclose(column["mean σ around"], sigma.gather(1, there), atol=1e-5)
        blocks = env._p.view(-1, *env.lattice.block_shape)
        x, y, z = cells[int(there[2, 5])].tolist()
        assert float(column["mean p"][2, 5]) == pytest.approx(float(blocks[2, x : x + 2, y : y + 2, z : z + 2].mean()))
        straddle = 2 * column["σ"] - (env.posterior.mean.gather(1, there) - 0.5).abs()
        assert torch.allclose(column["2σ - |μ - θ|"], straddle.clamp(-4, 4))
        free = torch.tensor(FULL) - 8
        corners = env.lattice.corners(there)
        assert torch.allclose(torch.stack([column[axis] for axis in "xyz"], -1), 2.0 * corners / free - 1)
        state = dict(zip(SEARCH_STATE, obs["state"].unbind(-1), strict=True))
        assert torch.allclose(state["time"], torch.full((6,), 2 * 3 / 8 - 1))
        highest = torch.where(env.posterior.seen, ball_score(None, env.lattice.corners()), 0.0).amax(1)
        assert torch.equal(state["highest f seen"], highest)
        assert torch.allclose(state["mean σ"], env.posterior.variance.sqrt().mean(1))
        assert torch.allclose(state["predicted share of the volume"], env._p.mean(1))
        some = env.observe(torch.tensor([4, 1]), player=player)
        assert all(torch.equal(some[name], obs[name][[4, 1]]) for name in obs)


def reads(**settings):
    """A search that observes features: of the packaged classifier, on a part of a phantom."""
    chosen = {"cases": ["phantom_02000", "phantom_02001"], "grid_shape": (32, 32, 24), "horizon": 6, "num_envs": 5}
    env = SparsEnv(profile="search", obs_mode="features", device="cpu", **{**chosen, **settings})
    env.seed(range(env.num_envs))
    env.reset()
    return env


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_agents": 1}, {"score_source": "oracle_fraction"}, {"score_engine": "lazy", "cases": ["phantom_02000"]}],
)
def test_the_features_observed_are_the_own_ones_and_mean_and_maximum_of_those_seen(settings):
    env, generator = reads(**settings), torch.Generator().manual_seed(6)
    everywhere = torch.arange(env.lattice.size).expand(5, -1)
    rows = env._features.feature_rows(env.case[:, None], everywhere).float()  # [N, L, F]
    assert rows.std(dim=1).max() > 0
    for step in range(6):
        for player in range(env.config.n_agents):
            obs = env.observe(player=player)
            assert obs["features"].shape[1:] == env.single_observation_space["features"].shape
            for number, (seen, at) in enumerate(zip(env.posterior.seen, env.at[player], strict=True)):
                own, mean, highest = obs["features"][number]
                known = rows[number, seen]
                assert len(known) >= step
                if not len(known):
                    assert not obs["features"][number].any(), "nothing is known before a window was seen"
                    continue
                assert torch.equal(own, rows[number, at] * seen[at])
                assert torch.allclose(mean, known.mean(dim=0), atol=1e-5)
                assert torch.equal(highest, known.amax(dim=0))
            some = env.observe(torch.tensor([4, 1]), player=player)
            assert torch.equal(some["features"], obs["features"][[4, 1]])
        env.step(some_action(env, generator))


def test_features_of_windows_that_were_not_seen_are_not_observed():
    env, generator = reads(num_envs=1, cases=["phantom_02000"]), torch.Generator().manual_seed(7)
    table = env._features
    for _ in range(4):
        kept, seen = table._features, env.posterior.seen[0, :, None]
        for player in (0, 1):
            before = env.observe(player=player)
            for changed in (kept + 1, torch.full_like(kept, torch.inf)):
                table._features = torch.where(seen, kept, changed)
                assert all(torch.equal(part, before[name]) for name, part in env.observe(player=player).items())
            table._features = torch.where(seen, kept + 1, kept)
            moved = env.observe(player=player)["features"] != before["features"]
            assert bool(moved[0, 1:].any()) == bool(seen.any()), "but those of seen ones are"
            table._features = kept
        env.step(some_action(env, generator))


def test_a_search_that_observes_features_keeps_the_contract():
    """Of one agent; the rounding of a posterior depends on who stands beside it where one moves before another."""
    chosen = {"cases": ["phantom_02000", "phantom_02001"], "grid_shape": (32, 32, 24), "horizon": 3, "n_agents": 1}
    check_env_contract("SPARS-LiverCT-v0", steps=8, profile="search", obs_mode="features", **chosen)


def test_features_of_two_agents_are_the_same_alone_and_among_others_and_after_a_checkpoint():
    together, alone = (reads(num_envs=number, opponent="random") for number in (3, 1))
    alone.seed([2])
    alone.reset()
    for step in range(8):
        seen, own = (env.advance(torch.full((env.num_envs,), step)).obs["features"] for env in (together, alone))
        assert torch.allclose(seen[2], own[0], atol=1e-6)
        assert seen.any()
    again = reads(num_envs=3, opponent="random")
    again.load_state(together.state())
    assert torch.equal(again.observe()["features"], together.observe()["features"])


@pytest.mark.parametrize("phase", [(0, 0, 0), (2, 1, 3)])
def test_around_a_window_are_its_neighbours_and_its_blocks_and_nothing_beyond_the_border(phase):
    env = search(phase=phase)
    env._p = torch.rand(env._p.shape, generator=torch.Generator().manual_seed(0))
    env.posterior.mean[:] = -0.25
    highest, _, p = env._around()
    assert (highest == -0.25).all()
    under = torch.stack([env.lattice.covered(torch.tensor([[at]]))[0].flatten() for at in range(env.lattice.size)])
    assert (under.sum(dim=1) == 2 * 2 * 2).all()
    assert torch.allclose(p, env._p @ under.float().T / 8, atol=1e-6)


def test_a_greedy_competitor_looks_where_tumour_is_likeliest():
    env, generator = search(opponent="greedy"), torch.Generator().manual_seed(5)
    for _ in range(3):
        env.step(some_action(env, generator))
    likely = env.posterior.mean.gather(1, env.candidates(1)).clamp(0, 1).masked_fill(~env.action_masks(1), -1.0)
    chosen = likely.gather(1, env._answer()[:, None])[:, 0]
    assert torch.equal(chosen, likely.amax(dim=1))
    assert (chosen > likely.mean(dim=1)).all()


def test_masks_leave_seen_windows_out_unless_all_are_seen():
    env = search(n_agents=1, num_envs=1)
    env.posterior.seen[0, env.candidates()[0][:3]] = True
    masks = env.action_masks()[0]
    assert torch.equal(masks, ~env.posterior.seen[0, env.candidates()[0]])
    env.posterior.seen[:] = True
    assert env.action_masks().all(), "at least one action is always left"


def test_a_coin_says_who_moves_first_and_each_side_is_as_good():
    """The same rule on both sides: the mean reward is 0 within its interval, over episodes and over rounds."""
    env, generator = search(num_envs=256, opponent="random"), torch.Generator().manual_seed(4)
    assert 0.4 < env._second.float().mean() < 0.6
    rewards = torch.stack([env.step(some_action(env, generator))[0] for _ in range(8)])
    of_episode = rewards.mean(dim=0)
    assert of_episode.abs().sum() > 0
    assert abs(float(of_episode.mean())) < 3 * float(of_episode.std()) / 256**0.5


def test_an_episode_is_the_same_alone_and_among_others_and_after_a_checkpoint():
    def play(env, steps):
        told = []
        for step in range(steps):
            advance = env.advance(torch.full((env.num_envs,), step))
            looked = env.painting.last_step()[0].T  # before a checkpoint too: of a competitor that is first in a round
            told.append((advance.obs["state"], advance.reward, looked))
        return told

    together, alone = search(num_envs=3, opponent="random"), search(num_envs=1, opponent="random")
    alone.seed([2])
    alone.reset()
    for one, other in zip(play(together, 20), play(alone, 20), strict=True):
        assert all(torch.allclose(part[2], own[0], atol=1e-6) for part, own in zip(one, other, strict=True))
    assert together._second.any()
    again = search(num_envs=3, opponent="random")
    again.load_state(together.state())
    for one, other in zip(play(together, 12), play(again, 12), strict=True):
        assert all(torch.equal(part, own) for part, own in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"action_set": "king26"}, "action_set is 'king26' but profile 'search' needs leap78 or anywhere"),
        ({"obs_mode": "two_window"}, "obs_mode is 'two_window' but profile 'search' needs memory or features"),
        ({"profile": "patch", "obs_mode": "features"}, "obs_mode is 'features' but profile 'patch' needs patches"),
        (
            {"reward": "score"},
            "reward is 'score' but with profile 'search' and n_agents=2 it must be one of sign,",
        ),
        ({"reward": "sign", "n_agents": 1}, "with profile 'search' and n_agents=1 it must be one of discovery"),
        ({"reduce": "max"}, "reduce is 'max' but profile 'search' knows 'mean' alone"),
        ({"accumulate": "learner"}, "accumulate is 'learner' but profile 'search' knows 'both' alone"),
        ({"lesion_rounds": 2}, "lesion_rounds is 2 but profile 'search' knows 1 alone"),
        ({"threshold": 0.5}, "threshold is 0.5 but profile 'search' knows 1.0 alone"),
        ({"opponent": "constant0"}, "opponent is 'constant0' but with profile 'search' it must be one of"),
        ({"fill": "none"}, "fill is 'none' but profile 'search' needs to know what is likely"),
        ({"profile": "paper", "action_set": "leap78"}, "action_set is 'leap78' but profile 'paper' has no such one"),
        ({"profile": "default", "obs_mode": "memory"}, "obs_mode is 'memory' but profile 'default' has no such one"),
    ],
)
def test_what_does_not_go_together_is_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        SparsEnv(**{"profile": "search", "cases": ["phantom_02000"], "score_source": "oracle_fraction", **bad})


def test_a_competitor_with_a_memory_is_refused():
    class Remembers:
        recurrent = True

        def act(self, obs, deterministic, starts):
            raise AssertionError

    env = search()
    with pytest.raises(ValueError, match="a recurrent policy, but profile 'search' has none"):
        env.set_opponent(Remembers())
    with pytest.raises(ValueError, match="a recurrent policy, but profile 'search' has none"):
        search(opponent=Remembers())
