"""The actor-critic of SPARS search and of the patch game: one small network for every window that can be chosen
(docs/spars.md, Method 15 and 16).

A = candidates, F = numbers of each, S = numbers of the whole, E = answers to whether to end the episode: 2 in the patch
game, 0 in a search.
"""

from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

HIDDEN = 32
CODE = 8
"""Numbers that the features of seen windows are brought to."""
CLOSED = -1e8
"""Added to the logit of an action that cannot be chosen: its probability is 0."""


class _Candidates(nn.Module):
    """Logits [N, A + E], the first A by the same network for each candidate, and what the value is read from,
    [N, HIDDEN].

    Observations come flat, [N, A·F + S], then the features of seen windows, if there are any. The last of the F numbers
    says whether the candidate can be chosen; in a search the one before is 2σ - |μ - θ|, the worth of the straddle
    rule.

    straddle: weight of that number in the logits at the start of training; it is learned further. 0: none.
    features: how many those of seen windows are; CODE numbers that are read from them join those of the whole.
    """

    def __init__(
        self, number: int, width: int, state: int, ends: int, straddle: float = 0.0, features: int = 0
    ) -> None:
        super().__init__()
        self.features = features
        if features:
            self.read = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, CODE))
            state += CODE
        self.scale = straddle
        self.straddle = nn.Parameter(torch.zeros(())) if straddle else None  # the weight is scale · exp of it: above 0
        self.number, self.width = number, width
        self.latent_dim_pi, self.latent_dim_vf = number + ends, HIDDEN
        self.actor = nn.Sequential(nn.Linear(width + state, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        self.logit = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.logit.weight)  # at first every candidate is as likely
        nn.init.zeros_(self.logit.bias)
        self.end: nn.Module | None = None
        if ends:
            last = nn.Linear(HIDDEN, ends)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.end = nn.Sequential(nn.Linear(state + width, HIDDEN), nn.Tanh(), last)
        self.critic = nn.Sequential(nn.Linear(state + width, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())

    def _parts(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        candidates = flat[:, : self.number * self.width].view(len(flat), self.number, self.width)
        state = flat[:, self.number * self.width :]
        if self.features:
            state = torch.cat((state[:, : -self.features], self.read(state[:, -self.features :])), dim=1)
        return candidates, state

    def forward(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and value features."""
        return self.forward_actor(flat), self.forward_critic(flat)

    def forward_actor(self, flat: Tensor) -> Tensor:
        """Logits [N, A + E]."""
        candidates, state = self._parts(flat)
        both = torch.cat((candidates, state[:, None].expand(-1, self.number, -1)), dim=2)
        logits: Tensor = self.logit(self.actor(both))[..., 0] + CLOSED * (candidates[..., -1] == 0)
        if self.straddle is not None:
            logits = logits + self.scale * self.straddle.exp() * candidates[..., -2]
        return logits if self.end is None else torch.cat((logits, self.end(self._whole(flat))), dim=1)

    def forward_critic(self, flat: Tensor) -> Tensor:
        """What the value is read from, [N, HIDDEN]."""
        features: Tensor = self.critic(self._whole(flat))
        return features

    def _whole(self, flat: Tensor) -> Tensor:
        """The numbers of the whole, and the highest of each number of the candidates: [N, S + F]."""
        candidates, state = self._parts(flat)
        return torch.cat((state, candidates.amax(dim=1)), dim=1)


_Base: Any = object


class _OverCandidates(_Base):  # type: ignore[misc] # of either of SB3's actor-critics
    """What makes an actor-critic choose among candidates."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        straddle: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self._straddle = straddle
        kwargs = {**kwargs, "features_extractor_class": _Flatten, "ortho_init": False}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "straddle": self._straddle}

    def _build_mlp_extractor(self) -> None:
        assert isinstance(self.observation_space, spaces.Dict)
        candidates, state = (self.observation_space[name].shape for name in ("candidates", "state"))
        assert candidates is not None
        assert state is not None
        (number, width), (whole,) = candidates, state
        ends = int(self.action_space.nvec[1]) if isinstance(self.action_space, spaces.MultiDiscrete) else 0
        read = self.observation_space.spaces.get("features")
        features = 0 if read is None else spaces.flatdim(read)
        self.mlp_extractor = _Candidates(number, width, whole, ends, self._straddle, features)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # the logits are the actor's
        settings: dict[str, Any] = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(self.parameters(), **settings)


class CandidatePolicy(_OverCandidates, ActorCriticPolicy):  # type: ignore[misc] # its parts are those of the first
    """Chooses among windows; one that was seen is not chosen while another was not."""


class MaskableCandidatePolicy(_OverCandidates, MaskableActorCriticPolicy):  # type: ignore[misc] # as above
    """The same for MaskablePPO, whose masks say so once more."""


class _Flatten(FlattenExtractor):
    """Candidates, state and features, if any, in one row."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        """[N, A·F + S], and the features."""
        parts = (observations[name] for name in ("candidates", "state", "features") if name in observations)
        return torch.cat([part.flatten(1) for part in parts], dim=1)
