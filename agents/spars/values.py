"""Exact values of the search by one agent, by value iteration on the lattice (docs/spars.md, Method 12).

f = presence score, p, p' = positions before and after a move, L = positions, A = actions, C = cases.
"""

import torch
from torch import Tensor

from ...envs.spars import SparsEnv

TOLERANCE = 1e-9
"""Largest error of a value, in units of the largest reward."""


def action_values(following: Tensor, reward: Tensor, ends: Tensor, gamma: float) -> Tensor:
    """Q of the best policy, float64 [L, A], where moves are certain: Q = r + γ · [not ended] · max Q(p').

    An episode goes on until it has ended: a horizon that truncates is none, as for a learner that bootstraps there.

    Args:
        following: where each action leads, int64 [L, A].
        reward: r of each action, [L, A].
        ends: whether it ends the episode, bool [L, A].
        gamma: γ, at least 0 and below 1.

    Raises:
        ValueError: γ outside its range.
    """
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f"gamma is {gamma} but must be at least 0 and below 1: the values could be infinite")
    reward, ongoing = reward.double(), gamma * (~ends).double()
    values, enough = torch.zeros(len(reward), dtype=torch.float64, device=reward.device), TOLERANCE * (1.0 - gamma)
    largest = float(reward.abs().max()) or 1.0
    while True:
        found = reward + ongoing * values[following]
        change = float((found.amax(dim=1) - values).abs().max())
        values = found.amax(dim=1)
        if change <= enough * largest:
            return reward + ongoing * values[following]


class ValueIteration:
    """The policy with the highest discounted return of an agent that searches alone; by scores, no labels.

    The reward is the environment's, with its γ; that of a duel is left out, as if nobody competed. `values` float64
    [C, L] are the returns from each position of each case.

    Raises:
        ValueError: γ = 1, more than one lesion round, or scores that are computed on demand.
    """

    def __init__(self, env: SparsEnv) -> None:
        cfg = env.config
        if cfg.lesion_rounds > 1:
            raise ValueError(f"value_iteration needs lesion_rounds=1, not {cfg.lesion_rounds}: a find changes it")
        values, actions = [], []
        for case in env.cases:
            scores = env.score_volume(case.id).flatten()
            if bool(scores.isnan().any()):
                raise ValueError("value_iteration needs the scores of all windows: give score_engine='dense'")
            following = env.neighbours(torch.arange(len(scores), device=env.device)).T  # [L, A]
            hit, there = scores[following] > cfg.threshold, scores[following].double()
            gain = there if cfg.reward == "score" else cfg.gamma * there * ~hit - scores.double()[:, None]
            found = action_values(following, gain + (cfg.terminal_bonus or 0.0) * hit, hit, cfg.gamma)
            values.append(found.amax(dim=1))
            actions.append(found.argmax(dim=1))
        self.values, self.actions = torch.stack(values), torch.stack(actions)

    def __call__(self, env: SparsEnv) -> Tensor:
        return self.actions[env.case, env.at[0]]
