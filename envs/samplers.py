"""Shuffled decks: which image each slot plays on next; they are shuffled by the streams of the environment."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .core import Streams


class OwnDecks:
    """A shuffled deck of `cards` images for each slot, dealt without replacement, then shuffled anew."""

    def __init__(self, cards: int, streams: Streams) -> None:
        device, slots = streams.key.device, len(streams.key)
        self._cards, self._streams = cards, streams
        self._order = torch.zeros(slots, cards, dtype=torch.int64, device=device)
        self._next = torch.zeros(slots, dtype=torch.int64, device=device)

    def restart(self) -> None:
        """Shuffle before the next card."""
        self._next.zero_()

    def deal(self, rows: Tensor) -> Tensor:
        """The next card of each of the slots `rows` int64 [K]: int64 [K]."""
        used_up = rows[self._next[rows] == 0]
        if len(used_up):
            self._order[used_up] = self._streams.uniform(self._cards, used_up).argsort(dim=1, stable=True)
        dealt = self._order[rows, self._next[rows]]
        self._next[rows] = (self._next[rows] + 1) % self._cards
        return dealt

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs, beside the streams."""
        return {"order": self._order, "next": self._next}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self._order, self._next = (state[name].to(self._order.device, copy=True) for name in ("order", "next"))


class SharedDeck:
    """One shuffled deck of `cards` images for all slots; `group` slots that follow each other get the same card.

    Where the deck ends within a deal, the deal goes on with the next one. Nothing here waits for the device.
    """

    def __init__(self, cards: int, streams: Streams, group: int) -> None:
        self._cards, self._streams, self._group = cards, streams, group
        self._order = torch.zeros(cards, dtype=torch.int64, device=streams.key.device)
        self._first = torch.zeros(1, dtype=torch.int64, device=streams.key.device)  # the slot whose stream shuffles
        self._next = 0

    def restart(self) -> None:
        """Shuffle before the next card."""
        self._next = 0

    def deal(self, rows: Tensor) -> Tensor:
        """The next cards, for the slots `rows` int64 [K]: int64 [K].

        Raises:
            ValueError: the slots are no whole groups.
        """
        if len(rows) % self._group:
            raise ValueError(f"{len(rows)} slots are to begin, but they begin in groups of {self._group}")
        dealt, missing = [], len(rows) // self._group
        while missing:
            if self._next == 0:
                self._order = self._streams.uniform(self._cards, self._first)[0].argsort(stable=True)
            dealt.append(self._order[self._next : self._next + missing])
            missing -= len(dealt[-1])
            self._next = (self._next + len(dealt[-1])) % self._cards
        return torch.cat(dealt).repeat_interleave(self._group)

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs, beside the streams."""
        return {"order": self._order, "next": self._next}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        self._order, self._next = state["order"].to(self._order.device, copy=True), state["next"]
