"""Samplers: which image of a pool each environment shows next, in orders shuffled by the environments' streams."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .random import Streams


def chosen_images(index: Any, number: int, size: int, device: torch.device) -> Tensor:
    """The image of each of `number` environments, int64 [number], of reset's option `index`: one number for all, or one
    for each.

    Raises:
        ValueError: no integers, another number of them, or one outside 0..size - 1.
    """
    given = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
    if given.dtype.kind not in "iu":
        raise ValueError(f"index is {index!r} but must be an integer, or one for every environment")
    if given.ndim and given.shape != (number,):
        raise ValueError(f"index has shape {given.shape} but must be one number or {number}, one for every environment")
    if not ((given >= 0) & (given < size)).all():
        raise ValueError(f"index is {index!r} but must lie in 0..{size - 1}, the images of this environment")
    return torch.as_tensor(given.astype(np.int64), device=device).expand(number)


class PerEnvSampler:
    """Each environment has an order of its own of all `size` images; used up, it is shuffled anew.

    So N environments show what N single environments would show. A draw synchronises with the GPU.
    """

    def __init__(self, size: int, streams: Streams) -> None:
        device, num_envs = streams.key.device, len(streams.key)
        self._size, self._streams = size, streams
        self._order = torch.zeros(num_envs, size, dtype=torch.int64, device=device)
        self._next = torch.zeros(num_envs, dtype=torch.int64, device=device)

    def restart(self) -> None:
        """Shuffle before the next draw."""
        self._next.zero_()

    def draw(self, env_ids: Tensor) -> Tensor:
        """The next image of each of the environments `env_ids` int64 [K]: int64 [K]."""
        used_up = env_ids[self._next[env_ids] == 0]
        if len(used_up):
            self._order[used_up] = self._streams.uniform(self._size, used_up).argsort(dim=1, stable=True)
        drawn = self._order[env_ids, self._next[env_ids]]
        self._next[env_ids] = (self._next[env_ids] + 1) % self._size
        return drawn

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for `load_state`, beside the streams."""
        return {"order": self._order, "next": self._next}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self._order, self._next = (state[name].to(self._order.device, copy=True) for name in ("order", "next"))


class SharedSampler:
    """One order of all `size` images for all environments, shuffled by the first one's stream; used up, it is shuffled
    anew, even within a draw.

    `group` environments that follow each other show the same image. Nothing here synchronises with the GPU.
    """

    def __init__(self, size: int, streams: Streams, group: int) -> None:
        self._size, self._streams, self._group = size, streams, group
        self._order = torch.zeros(size, dtype=torch.int64, device=streams.key.device)
        self._first = torch.zeros(1, dtype=torch.int64, device=streams.key.device)
        self._next = 0

    def restart(self) -> None:
        """Shuffle before the next draw."""
        self._next = 0

    def draw(self, env_ids: Tensor) -> Tensor:
        """The next images, for the environments `env_ids` int64 [K]: int64 [K].

        Raises:
            ValueError: the environments are no whole groups.
        """
        if len(env_ids) % self._group:
            raise ValueError(f"{len(env_ids)} environments are to begin, but they begin in groups of {self._group}")
        drawn, missing = [], len(env_ids) // self._group
        while missing:
            if self._next == 0:
                self._order = self._streams.uniform(self._size, self._first)[0].argsort(stable=True)
            drawn.append(self._order[self._next : self._next + missing])
            missing -= len(drawn[-1])
            self._next = (self._next + len(drawn[-1])) % self._size
        return torch.cat(drawn).repeat_interleave(self._group)

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for `load_state`, beside the streams."""
        return {"order": self._order, "next": self._next}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self._order, self._next = state["order"].to(self._order.device, copy=True), state["next"]
