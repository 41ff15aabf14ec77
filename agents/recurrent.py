"""The memory of recurrent policies, those of RecurrentPPO of sb3-contrib, wherever one plays.

Symbols: N environments; the LSTM of the policy has l layers of H units.
"""

from typing import Any

import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import Distribution
from torch import Tensor

from ..envs.core import Obs


class Memory:
    """What a recurrent policy remembers of the episode in each of N environments.

    Args:
        policy: gives the size of its LSTM.
        num_envs: N.
    """

    def __init__(self, policy: RecurrentActorCriticPolicy, num_envs: int) -> None:
        lstm = policy.lstm_actor
        self.states = torch.zeros(2, lstm.num_layers, num_envs, lstm.hidden_size, device=policy.device)
        """Hidden and cell states of the LSTM that acts, float32 [2, l, N, H]."""

    @classmethod
    def fitting(cls, kept: "Memory | None", policy: RecurrentActorCriticPolicy, num_envs: int) -> "Memory":
        """The memory that was kept; a new one where there is none, or one of another number of environments."""
        return kept if kept is not None and kept.states.shape[2] == num_envs else cls(policy, num_envs)

    @torch.no_grad()
    def distribution(
        self, policy: RecurrentActorCriticPolicy, obs: Obs, starts: Tensor, rows: Tensor | slice = slice(None)
    ) -> Distribution:
        """What the policy would do after what it has seen, which now has `obs` in it.

        Args:
            policy: of the size that `states` have.
            obs: observations [K, ...].
            starts: whether an episode begins with them, which nothing is remembered of, bool [K].
            rows: the environments that they are of, int64 [K].
        """
        hidden, cell = self.states[:, :, rows].contiguous()
        distribution, after = policy.get_distribution(obs, (hidden, cell), starts.float())  # type: ignore[arg-type]
        self.states[:, :, rows] = torch.stack(after)
        return distribution


def constructor_arguments(policy: Any) -> dict[str, Any]:
    """What SB3's policy of the same architecture is made of; sb3-contrib leaves out the LSTM's."""
    told: dict[str, Any] = policy._get_constructor_parameters()
    if isinstance(policy, RecurrentActorCriticPolicy):
        told |= {"lstm_hidden_size": policy.lstm_actor.hidden_size, "n_lstm_layers": policy.lstm_actor.num_layers}
    return told
