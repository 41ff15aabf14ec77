"""Exact values on the lattice: what the rewards of the two profiles are worth, and how near PPO comes
(docs/spars.md, Method 3 and 12)."""

import pytest
import torch
from segarena.agents.policy import TrainedPolicy, play
from segarena.agents.ppo import Learner
from segarena.agents.spars.policies import policy_arguments
from segarena.agents.spars.rules import POLICIES, BfsToTau
from segarena.agents.spars.values import ValueIteration, action_values
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import PROFILES
from spars_toys import PLUS_X, Always, line_env

SMALL = {"cases": ["phantom_02000"], "score_source": "oracle_fraction", "device": "cpu", "grid_shape": (32, 32, 24)}
GAMMA = 0.95
SEARCH = {**SMALL, "n_agents": 1, "obs_mode": "features", "gamma": GAMMA, "threshold": 0.5, "horizon": 64}


def test_values_are_the_geometric_sums_that_they_must_be():
    """Two places: staying at 0 pays 1 a step; going to 1 pays 5 and ends."""
    following, reward = torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1.0, 5.0], [0.0, 0.0]])
    ends = torch.tensor([[False, True], [False, True]])
    for gamma, best in ((0.9, 10.0), (0.5, 5.0), (0.0, 5.0)):
        values = action_values(following, reward, ends, gamma)
        stay = 1.0 + gamma * best
        torch.testing.assert_close(values, torch.tensor([[stay, 5.0], [gamma * best, 0.0]]).double(), atol=1e-7, rtol=0)
    with pytest.raises(ValueError, match=r"gamma is 1\.0 but must be at least 0 and below 1"):
        action_values(following, reward, ends, 1.0)


@pytest.mark.parametrize("reward", ["shaped", "score"])
@pytest.mark.parametrize("action_set", ["axis7", "multidiscrete3"])
def test_the_values_satisfy_bellmans_equation_in_the_environment_itself(reward, action_set):
    """Every action from every position, as the environment pays it."""
    env = SparsEnv(
        **SMALL, n_agents=1, obs_mode="own_window", reward=reward, threshold=0.4, action_set=action_set, num_envs=125
    )
    rule = ValueIteration(env)
    env.seed(range(125))
    env.reset()
    best = torch.full((125,), -torch.inf, dtype=torch.float64)
    for move in range(env.n_moves):
        env._place(env._all, torch.zeros(125, dtype=torch.int64), torch.arange(125)[None])
        paid, terminated, _ = env.step(torch.full((125,), move))
        best = torch.maximum(best, paid.double() + env.config.gamma * rule.values[0, env.at[0]] * ~terminated)
    torch.testing.assert_close(rule.values[0], best, atol=1e-5, rtol=0)


def test_with_a_bonus_and_a_potential_the_best_policy_is_the_shortest_path():
    env = SparsEnv(**SMALL, n_agents=1, obs_mode="own_window", threshold=0.4)
    rule, path, scores = ValueIteration(env), BfsToTau(env), env.table.volume(0).flatten().double()
    moves = path.distance[0].double()
    outside = moves > 0
    expected = 10.0 * env.config.gamma ** (moves - 1) - scores
    torch.testing.assert_close(rule.values[0, outside], expected[outside], atol=1e-5, rtol=0)


def test_with_the_bare_score_as_reward_the_best_policy_stays_below_tau_for_ever():
    env = line_env({20: 0.45, 24: 0.9}, n_agents=1, reward="score", threshold=0.5, terminal_bonus=0.0, horizon=50)
    env.seed([0])
    env.reset()
    assert not play(env, POLICIES["value_iteration"].make(env, 0)).terminated.any()
    assert ValueIteration(env).values[0, 5] == pytest.approx(0.45 / 0.01, rel=1e-6), "there is no room aside: it stays"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lesion_rounds": 2}, "needs lesion_rounds=1, not 2"),
        ({"gamma": 1.0}, r"gamma is 1\.0 but must be at least 0 and below 1"),
    ],
)
def test_where_the_values_do_not_hold_they_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ValueIteration(line_env({}, n_agents=1, **settings))


# -- the rewards of the two profiles ---------------------------------------------------------------------------------

RISE = {4 * k: 0.05 + 0.03 * k for k in range(8)} | {32: 0.9}
"""Scores that rise along the line up to 0.26; at its end a find. τ is 0.3."""
NEXT_TO_THE_FIND, STAY, GO = 7, 6, PLUS_X


def duel_values(opponent_at, **settings):
    """Q of the learner against an opponent that stands still, as the environment pays and ends each move."""
    probe = line_env(RISE, action_set="axis7")
    size, moves = probe.lattice.size, probe.n_moves
    env = line_env(RISE, action_set="axis7", opponent=Always(STAY), num_envs=size * moves, **settings)
    env.seed(range(size * moves))
    env.reset()
    own = torch.arange(size).repeat_interleave(moves)
    env._place(env._all, torch.zeros_like(own), torch.stack((own, torch.full_like(own, opponent_at))))
    reward, terminated, _ = env.step(torch.arange(moves).repeat(size))
    return action_values(*(column.view(size, moves) for column in (env.at[0], reward, terminated)), 0.99)


def test_the_papers_reward_pays_for_not_ending_and_the_default_one_does_not():
    """docs/spars.md, Method 3: two agents side by side where the score is highest below τ, next to the find."""
    assert PROFILES["paper"] | {"tie_reward": 1.0, "bonus": 0.0} == PROFILES["paper"]
    paper = duel_values(NEXT_TO_THE_FIND, profile="paper")
    assert paper[NEXT_TO_THE_FIND, STAY] == pytest.approx(100.0), "a tie in every step"
    assert paper[NEXT_TO_THE_FIND, GO] == pytest.approx(1.0)
    default = duel_values(NEXT_TO_THE_FIND, profile="default")
    assert default[NEXT_TO_THE_FIND, GO] == pytest.approx(11.0)
    assert default[NEXT_TO_THE_FIND, STAY] == pytest.approx(0.99 * 11.0), "a tie, and the find later"
    assert default[NEXT_TO_THE_FIND].argmax() == GO


@pytest.mark.parametrize(("bonus", "ends"), [(10.0, False), (98.0, False), (100.0, True)])
def test_against_an_opponent_that_stays_behind_only_a_bonus_above_99_pays_for_ending(bonus, ends):
    """docs/spars.md, Method 3: 1 + bonus against 1 / (1 - γ)."""
    values = duel_values(3, profile="default", terminal_bonus=bonus)[NEXT_TO_THE_FIND]
    assert values.max() == pytest.approx(max(100.0, 1.0 + bonus))
    assert bool(values.argmax() == GO) is ends


# -- learning --------------------------------------------------------------------------------------------------------


def discounted_return(policy):
    """Mean discounted return of 512 episodes from places all over the volume, and that of the best policy."""
    env = SparsEnv(**SEARCH, num_envs=512)
    env.seed(range(512))
    env.reset()
    torch.manual_seed(0)
    best = ValueIteration(env).values[env.case, env.at[0]].mean()
    total, running = torch.zeros(512, dtype=torch.float64), torch.ones(512, dtype=torch.bool)
    for t in range(env.horizon):
        reward, terminated, truncated = env.step(policy(env))
        total += GAMMA**t * reward * running
        running &= ~(terminated | truncated)
    return float(total.mean() / best)


def test_ppo_comes_within_5_percent_of_the_exact_values():
    """125 places; its actions are drawn, as in an evaluation."""
    env = SparsEnv(**SEARCH, num_envs=32)
    arguments = policy_arguments("feature_mlp", env.single_observation_space)
    settings = {"n_steps": 32, "batch_size": 256, "n_epochs": 4, "gamma": GAMMA, "learning_rate": 1e-3, "seed": 0}
    model = Learner(env=LearnerEnv(env), ent_coef=0.01, device="cpu", **arguments, **settings)
    before = discounted_return(TrainedPolicy(model.policy))
    model.learn(16_384)
    assert before < 0.7
    assert discounted_return(POLICIES["random"].make(env, 0)) < 0.7
    assert discounted_return(ValueIteration(env)) == pytest.approx(1.0, abs=1e-4)
    assert 0.95 < discounted_return(TrainedPolicy(model.policy)) <= 1.0001
