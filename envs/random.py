"""Random numbers of the environments: counted, not consumed, so that batches and single environments draw the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.counted import GOLDEN, mixed, unit


class Streams:
    """One stream of uniform random numbers for each of N environments: number k of environment n is a hash of its seed
    and k.

    Counter-based (SplitMix64): an environment draws the same numbers alone or among a thousand others, on CPU or CUDA,
    and all environments draw in one call. The state is two integers per environment, and the number of ticks.
    """

    AHEAD = 64
    """Ticks that are drawn at once."""

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.key = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.drawn = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.ticks = 0
        self._ahead: Tensor | None = None

    def seed(self, seeds: Sequence[int]) -> None:
        """Start every stream anew, from the seed of its environment."""
        signed = [(seed & (2**64 - 1)) - (seed & 2**63) * 2 for seed in seeds]
        self.key = mixed(torch.tensor(signed, dtype=torch.int64, device=self.key.device) + GOLDEN)
        self.drawn = torch.zeros_like(self.drawn)
        self.ticks, self._ahead = 0, None

    def uniform(self, lanes: int, env_ids: Tensor | None = None) -> Tensor:
        """The next `lanes` numbers of each environment, float64 [N, lanes] in [0, 1); of `env_ids` int64 [K] only,
        [K, lanes]."""
        key, drawn = self.key, self.drawn
        if env_ids is None:
            self.drawn = drawn + lanes
        else:
            key, drawn = key.index_select(0, env_ids), drawn.index_select(0, env_ids)
            self.drawn.index_copy_(0, env_ids, drawn + lanes)
        number = drawn[:, None] + torch.arange(1, lanes + 1, device=key.device)
        return unit(key[:, None] + number * GOLDEN)

    def tick(self) -> Tensor:
        """One number for every environment, float64 [N] in [0, 1), of a second stream that is drawn `AHEAD` of its use.

        For draws that every environment makes in every step: a draw then costs a look into a table.
        """
        place = self.ticks % self.AHEAD
        if place == 0 or self._ahead is None:
            number = self.ticks - place + torch.arange(1, self.AHEAD + 1, device=self.key.device)
            self._ahead = unit(mixed(self.key) + number[:, None] * GOLDEN)
        self.ticks += 1
        return self._ahead[place]

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for `load_state`."""
        return {"key": self.key, "drawn": self.drawn, "ticks": self.ticks}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self.key, self.drawn = (state[name].to(self.key.device, copy=True) for name in ("key", "drawn"))
        self.ticks, self._ahead = state["ticks"], None
