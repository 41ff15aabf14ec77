"""The patch game: rounds, blanks, ends, rewards by hand, and what may be known (docs/spars.md, Method 16)."""

import warnings
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import SparsConfig
from segarena.envs.spars_parallel import SparsParallelEnv
from segarena.envs.spars_patch import PatchEnv
from segarena.envs.spars_tables import PATCH, PATCH_PARTS, PATCH_STATE
from segarena.testing import check_env_contract
from spars_toys import case_of
from stable_baselines3.common.env_checker import check_env as sb3_check

FULL, WINDOW = (16, 16, 16), (8, 8, 8)
SCORES = [0.1, 0.5, 0.3, 0.9, 0.2, 0.7, 0.4, 0.6]
"""f of the eight patches of a volume of 16 x 16 x 16, in the order x, y, z."""
GAME = {"profile": "patch", "cases": ["phantom_02000", "phantom_02001"]}


def by_patch(scores):
    """Scores of corners: those of the patches, 0 elsewhere."""

    def score(case, corners):
        number = (corners // 8 * torch.tensor([4, 2, 1])).sum(dim=1)
        return torch.where((corners % 8 == 0).all(dim=1), torch.tensor(scores)[number.clamp(max=7)], 0.0)

    return score


class Script:
    """A competitor that plays given actions (patch, end), and keeps what it saw."""

    def __init__(self, *actions):
        self.actions, self.seen = list(actions), []

    def act(self, obs, deterministic):
        self.seen.append(obs)
        action = torch.tensor(self.actions.pop(0))
        return action.expand(len(obs["state"]), -1)


def game(*competitor, scores=SCORES, num_envs=1, tumour=None, **settings):
    chosen = {"grid_shape": FULL, "window_size": WINDOW, "score_source": by_patch(scores), "device": "cpu"}
    chosen |= {"volumes": [case_of(FULL, tumour)], "num_envs": num_envs, **settings}
    env = SparsEnv(profile="patch", **chosen)
    if competitor:
        env.set_opponent(Script(*competitor))
    env.seed(range(num_envs))
    env.reset()
    return env


def play(env, *actions):
    """Reward, terminated, truncated and terms of each step, of the first environment."""
    steps = []
    for action in actions:
        reward, terminated, truncated = env.step(torch.tensor(action).expand(env.num_envs, -1))
        terms = {name: float(term[0]) for name, term in env.reward_terms.items() if float(term[0])}
        steps.append((float(reward[0]), bool(terminated[0]), bool(truncated[0]), terms))
    return steps


def test_the_profile_makes_the_game_of_patches_side_by_side():
    env = game()
    assert isinstance(env, PatchEnv)
    assert env.config.patch_shape == (2, 2, 2)
    assert env.lattice.corners(env.patches).tolist() == [[x, y, z] for x in (0, 8) for y in (0, 8) for z in (0, 8)], (
        "in the order x, y, z"
    )
    assert env.single_action_space.nvec.tolist() == [8, 2]
    assert env.horizon == 4, "as long as there are patches for both"
    made = gym.make("SPARS-LiverCT-v0", **GAME).unwrapped.batched
    assert isinstance(made, PatchEnv)
    assert (len(made.patches), made.horizon) == (96, 16)
    rest = SparsEnv(**GAME, grid_shape=(72, 64, 48), window_size=(16, 16, 8), phase=(2, 0, 0), classifier="packaged")
    assert rest.config.patch_shape == (4, 4, 6), "what is left at the border is in no patch"
    assert rest.lattice.corners(rest.patches)[:, 0].unique().tolist() == [2, 18, 34, 50]


@pytest.mark.parametrize("settings", [{}, {"n_agents": 1, "horizon": 20, "reduce": "sum", "fill": "none"}])
def test_the_game_keeps_the_contract_of_every_environment(settings):
    check_env_contract("SPARS-LiverCT-v0", device="cpu", **GAME, **settings)


def test_both_checkers_pass():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Your observation candidates has an unconventional shape")
        gymnasium_check(gym.make("SPARS-LiverCT-v0", **GAME).unwrapped)
        sb3_check(gym.make("SPARS-LiverCT-v0", **GAME).unwrapped)


# -- rewards by hand ---------------------------------------------------------------------------------------------------


def test_an_episode_of_three_rounds_by_hand():
    """Rounds 0.1 against 0.5, 0.9 against 0.3, 0.7 against 0.2 and the learner ends."""
    env = game((1, 0), (2, 0), (4, 0))
    steps = play(env, (0, 0), (3, 0), (5, 1))
    assert steps == [
        (-1.0, False, False, {"duel": -1.0}),
        (1.0, False, False, {"duel": 1.0}),
        (100.0, True, False, {"duel": 1.0, "end": 99.0}),
    ]
    info = env.info()
    assert (float(info["score_self"]), float(info["score_opp"])) == pytest.approx((0.7, 0.2))
    assert (int(info["win"]), int(info["windows"])) == (1, 6)
    assert info["p_self"].tolist() == [[8, 0, 8]]
    assert env.episode_info(torch.tensor([0]))[0]["reason"] == "end_self"


@pytest.mark.parametrize(
    ("competitor", "learner", "expected"),
    [
        (((1, 0),), ((0, 1),), {"duel": -1.0, "end": -99.0, "early": -1.0}),  # in the first round
        (((1, 0), (2, 1)), ((0, 0), (3, 0)), {"duel": 1.0, "end": 99.0, "early": -1.0}),  # in the second, by the other
        (((1, 0), (2, 0), (4, 1)), ((0, 0), (3, 0), (5, 0)), {"duel": 1.0, "end": 99.0}),
        (((1, 0), (2, 0)), ((0, 0), (0, 0)), {"duel": -1.0, "blank": -1.0}),  # the learner's own, again
        (((1, 0), (2, 0)), ((0, 0), (1, 0)), {"duel": -1.0, "blank": -1.0}),  # the competitor's
        (((0, 0),), ((0, 0),), {"duel": 1.0}),  # the competitor takes what it saw blanked: 0.1 against nothing
        (((1, 0), (0, 0)), ((0, 0), (1, 0)), {"blank": -1.0}),  # both blank: a tie
    ],
)
def test_each_term_has_its_reason_and_counts_by_its_weight(competitor, learner, expected):
    *_, (reward, *_, terms) = play(game(*competitor), *learner)
    assert terms == expected
    assert reward == sum(expected.values())
    for left_out in expected:
        env = game(*competitor)
        env.reward_weights[left_out] = 0.0
        *_, (without, *_, _) = play(env, *learner)
        assert without == reward - expected[left_out], left_out


def test_who_ends_nothing_in_time_pays_for_it_and_is_truncated():
    env = game((1, 0), (3, 0), (5, 0), (7, 0))
    *before, last = play(env, (0, 0), (2, 0), (4, 0), (6, 0))
    assert before == [(-1.0, False, False, {"duel": -1.0})] * 3
    assert last == (-2.0, False, True, {"duel": -1.0, "late": -1.0})
    assert env.episode_info(torch.tensor([0]))[0]["reason"] == "time"
    ended = play(game((1, 0), (3, 0), (5, 0), (7, 0)), (0, 0), (2, 0), (4, 0), (6, 1))[-1]
    assert ended == (-100.0, True, False, {"duel": -1.0, "end": -99.0}), "who ends it in the last round is not late"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"reward": "diff"}, {"duel": 0.4, "end": 39.6, "early": -1.0}),
        ({"n_agents": 1}, {"score": 0.9, "end": 89.1, "early": -1.0}),
        ({"tie_reward": 0.5, "scores": [0.5] * 8}, {"duel": 0.5, "end": 49.5, "early": -1.0}),
        ({"scores": [0.5] * 8}, {"early": -1.0}),
    ],
)
def test_other_rewards_are_multiplied_too(settings, expected):
    ((_, _, _, terms),) = play(game((1, 0), **settings), (3, 1))
    assert terms == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("mine", "theirs", "reason"), [(1, 0, "end_self"), (0, 1, "end_opp"), (1, 1, "end_both")])
def test_either_agent_ends_the_episode(mine, theirs, reason):
    env = game((1, theirs))
    ((_, terminated, _, _),) = play(env, (0, mine))
    assert terminated
    assert env.episode_info(torch.tensor([0]))[0]["reason"] == reason


# -- what is known -----------------------------------------------------------------------------------------------------


def test_the_observation_is_the_image_with_blanks_and_what_was_looked_at():
    env = game((1, 0), (2, 0), num_envs=2)
    play(env, (0, 0), (3, 0))
    obs = env.observe()
    assert env.single_observation_space["candidates"].contains(obs["candidates"][0].numpy())
    assert env.single_observation_space["state"].contains(obs["state"][0].numpy())
    column = dict(zip(PATCH, obs["candidates"].unbind(-1), strict=True))
    blanked = torch.tensor([True, True, True, True, False, False, False, False])
    assert torch.equal(column["can be chosen"], (~blanked).float().expand(2, -1))
    assert torch.allclose(column["f if seen"][0], torch.tensor(SCORES) * blanked)
    image = env.cases[0].image.float() / 255
    for patch, corner in enumerate(env.lattice.corners(env.patches).tolist()):
        x, y, z = corner
        parts = image[x : x + 8, y : y + 8, z : z + 8].reshape(4, 2, 4, 2, 2, 4).mean(dim=(1, 3, 5)).flatten()
        expected = torch.zeros_like(parts) if blanked[patch] else parts
        assert torch.allclose(obs["candidates"][0, patch, : len(parts)], expected, atol=1e-6)
        assert [float(column[axis][0, patch]) for axis in "xyz"] == [c / 8 for c in corner]
    assert len(parts) == PATCH_PARTS[0] * PATCH_PARTS[1] * PATCH_PARTS[2]
    state = dict(zip(PATCH_STATE, obs["state"][0].tolist(), strict=True))
    assert state == pytest.approx(
        {"time": 0.0, "share blanked": 0.5, "highest f seen": 0.9, "own last f": 0.9, "other's last f": 0.3}
    )
    other = dict(zip(PATCH_STATE, env.observe(player=1)["state"][0].tolist(), strict=True))
    assert (other["own last f"], other["other's last f"]) == pytest.approx((0.3, 0.9))
    assert torch.equal(env.observe(torch.tensor([1]))["candidates"], obs["candidates"][1:])


def test_the_second_sees_the_patch_of_the_first_blanked_but_not_its_score():
    env = game((1, 0))
    play(env, (3, 0))
    (seen,) = env._opponent.seen
    column = dict(zip(PATCH, seen["candidates"][0].unbind(-1), strict=True))
    assert column["can be chosen"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert not column["f if seen"].any()
    assert not seen["candidates"][0, 3, :32].any()


def test_no_observation_depends_on_the_score_of_a_patch_that_nobody_chose():
    """Else a policy could read where the tumour is without looking."""
    others = [score if patch in (0, 1, 2, 3) else 1 - score for patch, score in enumerate(SCORES)]
    seen = []
    for scores in (SCORES, others):
        env = game((1, 0), (2, 0), scores=scores)
        rows = [env.observe()]
        for action in ((0, 0), (3, 0)):
            play(env, action)
            rows += [env.observe(), env.observe(player=1)]
        seen.append([*rows, *env._opponent.seen])
    for one, other in zip(*seen, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_labels_change_nothing():
    seen = []
    for tumour in (None, slice(0, 8)):
        env = game(tumour=tumour, num_envs=4, opponent="random")
        generator, rows = torch.Generator().manual_seed(0), []
        for _ in range(4):
            actions = torch.stack((torch.randint(8, (4,), generator=generator), torch.zeros(4, dtype=torch.int64)), 1)
            rows += [env.step(actions)[0], *env.observe().values()]
        seen.append(rows)
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


def test_masks_leave_blanked_patches_out_and_both_answers_in():
    env = game((1, 0))
    assert env.action_masks().all()
    play(env, (3, 0))
    assert env.action_masks()[0].tolist() == [True, False, True, False, *[True] * 4, True, True]
    env.blanked[:] = True
    assert env.action_masks().all(), "at least one patch is always left"


def test_the_random_opponent_never_chooses_a_blank_patch():
    env = game(num_envs=64, opponent="random")
    for patch in range(4):
        chosen = env.blanked.sum(dim=1)
        env.step(torch.stack((env.action_masks()[:, :8].float().argmax(1), torch.zeros(64, dtype=torch.int64)), 1))
        assert torch.equal(env.blanked.sum(dim=1), chosen + 2), patch
    assert env.blanked.all()


# -- mask --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accumulate", "painted"), [("both", {0, 1, 2, 3}), ("learner", {0, 3})])
def test_the_mask_is_made_of_the_patches_that_were_looked_at(accumulate, painted):
    env = game((1, 0), (2, 0), (0, 0), accumulate=accumulate, upsample="blocks")
    play(env, (0, 0), (3, 0), (1, 0))  # both choose blank patches at last, which paints nothing
    values = env.painting.voxel_map()
    for patch, (x, y, z) in enumerate(env.lattice.corners(env.patches).tolist()):
        inside = values[x : x + 8, y : y + 8, z : z + 8]
        expected = SCORES[patch] if patch in painted else 0.0
        assert torch.allclose(inside, torch.full_like(inside, expected)), patch


def test_an_episode_is_the_same_alone_and_among_others_and_after_a_checkpoint():
    def run(env, steps, rows):
        generator, seen = torch.Generator().manual_seed(5), []
        for _ in range(steps):
            actions = torch.stack(
                (torch.randint(8, (3,), generator=generator), torch.randint(8, (3,), generator=generator) // 7), 1
            )
            step = env.advance(actions[rows])
            seen.append((step.reward, step.terminated, *step.obs.values()))
        return seen

    together, alone = game(num_envs=3, opponent="random"), game(opponent="random")
    alone.seed([2])
    alone.reset()
    for one, other in zip(run(together, 20, [0, 1, 2]), run(alone, 20, [2]), strict=True):
        assert all(torch.equal(a[2:], b) for a, b in zip(one, other, strict=True))
    again = game(num_envs=3, opponent="random")
    again.load_state(together.state())
    for one, other in zip(run(together, 12, [0, 1, 2]), run(again, 12, [0, 1, 2]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"action_set": "axis6"}, "action_set is 'axis6' but profile 'patch' needs patches"),
        ({"obs_mode": "features"}, "obs_mode is 'features' but profile 'patch' needs patches"),
        (
            {"reward": "shaped"},
            "reward is 'shaped' but with profile 'patch' and n_agents=2 it must be one of sign, diff",
        ),
        ({"reward": "sign", "n_agents": 1}, "with profile 'patch' and n_agents=1 it must be one of score"),
        ({"threshold": 0.5}, "threshold is 0.5 but profile 'patch' knows 1.0 alone"),
        ({"terminal_bonus": 5.0}, "terminal_bonus is 5.0 but profile 'patch' knows 0.0 alone"),
        ({"lesion_rounds": 2}, "lesion_rounds is 2 but profile 'patch' knows 1 alone"),
        ({"start": "random_lattice"}, "start is 'random_lattice' but profile 'patch' knows 'centre' alone"),
        ({"opponent": "greedy"}, "opponent is 'greedy' but with profile 'patch' it must be one of"),
        ({"horizon": 49}, "horizon is 49 but the 96 patches .* last for 48 rounds of n_agents=2"),
        ({"window_size": (64, 64, 48)}, "horizon is None but the 1 patches .* last for 0 rounds"),
        ({"profile": "default", "action_set": "patches"}, "action_set is 'patches' but profile 'default' has no such"),
        ({"profile": "search", "obs_mode": "patches"}, "obs_mode is 'patches' but profile 'search' needs memory"),
    ],
)
def test_what_does_not_go_together_is_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        SparsConfig(**{"profile": "patch", **bad}).resolved()


def test_a_start_and_two_learners_at_once_are_refused():
    with pytest.raises(ValueError, match="reset option 'start' sets where a window starts, but patches have no start"):
        game().reset(options={"start": (0, 0, 0)})
    with pytest.raises(ValueError, match="profile is 'patch', in which agents act one after the other"):
        SparsParallelEnv(**GAME)
    with pytest.raises(ValueError, match="profile is 'default' but this is the game of 'patch'"):
        PatchEnv(replace(SparsConfig(), cases=["phantom_02000"]))
