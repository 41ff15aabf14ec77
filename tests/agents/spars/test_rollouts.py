"""Episodes of an evaluation: whose find ended them, and whether it holds tumour (docs/spars.md, Method 13)."""

import pytest
import torch
from segarena.agents.spars.rollouts import mask_of, roll_out
from segarena.agents.spars.rules import POLICIES, BfsToTau
from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
from segarena.envs.spars import SparsEnv
from spars_toys import MINUS_X, PLUS_X, Always, line_env

RIGHT, LEFT = (24, 32), (8, 16)
"""Tumours under the windows at x = 24 and x = 8, two moves to either side of the start."""


@pytest.mark.parametrize("tumour", [RIGHT, LEFT])
@pytest.mark.parametrize(
    ("learner", "high", "ended_by_self"), [(MINUS_X, LEFT, 1.0), (PLUS_X, RIGHT, 1.0), (MINUS_X, RIGHT, 0.0)]
)
def test_an_episode_ended_on_tumour_where_the_window_above_tau_holds_tumour_whoever_moved_it(
    learner, high, ended_by_self, tumour
):
    """The two walk apart; only the window over `high` scores above τ."""
    env = line_env({high[0]: 0.9}, tumour, opponent=Always(PLUS_X + MINUS_X - learner), threshold=0.5, num_envs=2)
    (facts,) = roll_out(env, Always(learner), jitter_cells=0, seed=0).facts
    assert facts["terminal_hit"] == float(tumour == high)
    assert facts["ended_by_self"] == ended_by_self
    assert (facts["truncated"], facts["steps"]) == (0.0, 2.0)


def test_of_a_mask_the_largest_part_stays_where_that_is_asked_for():
    """A part of 3 voxels that meet by corners, one of 2 with the highest value, one of 3 that comes later."""
    values = torch.zeros(8, 5, 4)
    values[0, 0, 0] = values[1, 1, 1] = values[2, 2, 2] = 0.6
    values[4, 0, :2] = 0.9
    values[6, 0:3, 3] = 0.6
    whole, largest = (mask_of(values, 0.5, how) for how in ("none", "largest_component"))
    assert torch.equal(whole, values > 0.5)
    assert largest.nonzero().tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert mask_of(values, 0.7, "largest_component").nonzero().tolist() == [[4, 0, 0], [4, 0, 1]]
    assert not mask_of(values, 0.9, "largest_component").any()


@pytest.mark.parametrize("reduce", ["sum", "min"])
def test_windows_are_the_different_ones_that_were_looked_at(reduce):
    """Two episodes walk from 16 to 8, 4 and 0, where the second to last step stays; each window counts once."""
    env = line_env({}, opponent=Always(PLUS_X), threshold=1.0, horizon=5, num_envs=2, reduce=reduce, fill="none")
    (facts,) = roll_out(env, Always(MINUS_X), jitter_cells=0, seed=0).facts
    assert facts["windows"] == 4


@pytest.mark.parametrize(("own", "rival"), [(0.8, 0.9), (0.9, 0.8)])
def test_of_two_windows_above_tau_the_higher_score_ended_the_episode(own, rival):
    env = line_env({LEFT[0]: own, RIGHT[0]: rival}, LEFT, opponent=Always(PLUS_X), threshold=0.5)
    (facts,) = roll_out(env, Always(MINUS_X), jitter_cells=0, seed=0).facts
    assert facts["ended_by_self"] == facts["terminal_hit"] == float(own > rival)


def test_an_episode_that_time_ended_on_tumour_is_no_hit():
    env = line_env({LEFT[0]: 0.9}, LEFT, opponent=Always(PLUS_X), threshold=0.95, horizon=2)
    (facts,) = roll_out(env, Always(MINUS_X), jitter_cells=0, seed=0).facts
    assert int(env.at[0, 0]) * 4 == LEFT[0]
    assert facts["terminal_hit"] == facts["ended_by_self"] == 0.0
    assert facts["truncated"] == 1.0


def test_starts_are_moved_by_every_number_of_cells_up_to_the_jitter_alike_for_both():
    env = line_env({}, num_envs=512, grid_shape=(40, 40, 40), threshold=1.0)
    env.seed(range(512))
    env.begin(torch.zeros(512, dtype=torch.int64), jitter_cells=2)
    own, rival = env.info()["p_self"], env.info()["p_opp"]
    assert torch.equal(own, rival)
    for axis in range(3):
        counts = torch.bincount(own[:, axis])
        assert counts.nonzero().flatten().tolist() == [8, 12, 16, 20, 24]
        assert counts[counts > 0].min() > 512 / 5 - 5 * (512 * 0.2 * 0.8) ** 0.5


def test_a_score_of_exactly_tau_is_no_goal_of_the_shortest_path_and_a_start_above_it_needs_a_move():
    env = line_env({20: 0.5, 28: 0.9}, n_agents=1, reward="shaped", threshold=0.5)
    rule = BfsToTau(env)
    assert rule.distance.tolist() == [[7, 6, 5, 4, 3, 2, 1, 0, 1]]
    env.seed([0])
    env.reset(options={"start": [28, 0, 0]})
    assert rule.optimal_steps(env).tolist() == [1], "τ is looked at after a move"
    env.reset(options={"start": [16, 0, 0]})
    assert rule.optimal_steps(env).tolist() == [3]
    (facts,) = roll_out(env, rule, jitter_cells=0, seed=0).facts
    assert (facts["steps"], facts["steps_over_optimal"]) == (3.0, 1.0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("random", {"threshold": 0.95}),
        ("search_gp_straddle", {"profile": "search", "action_set": "anywhere"}),
        ("patch_random", {"profile": "patch"}),
    ],
)
def test_a_case_has_the_same_map_to_the_last_bit_alone_and_among_others(name, settings):
    """Evaluation plays all cases at once, prediction one: with likely scores of unseen windows, divided among cells."""
    cases = load_liver_cases(LiverDataConfig(cases=["phantom_02000", "phantom_02001", "phantom_02002"]))

    def maps(volumes):
        chosen = {"num_envs": 2 * len(volumes), "n_agents": 1, "device": "cpu", "eval_dice": False, **settings}
        env = SparsEnv(volumes=volumes, **chosen)
        assert env.masks.evidence is not None
        return roll_out(env, POLICIES[name].policy(env, 0), jitter_cells=1, seed=0).blocks

    assert torch.equal(maps(cases), torch.cat([maps([case]) for case in cases]))
