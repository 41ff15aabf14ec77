"""The network of SEAT's inner environment: attacked as it is, or a copy that learns (docs/seat.md, Method 18)."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.replays import Update
from ..attacks.victims import PACKAGED_VOLUMES, load_victim
from ..datasets.decathlon.tasks import Task
from ..datasets.volumes import VolumePool

WEIGHT_DECAY = 1e-5


class Learner:
    """A victim and its optimiser, Adam with amsgrad; one that never learns has none.

    What learns is a copy, in training mode but for dropout, which is off: its numbers would come from PyTorch's
    generator. `restore` makes it what it was at first.

    Attributes:
        network: the victim.
        pending: whether its weights have gradients that the optimiser has not seen.
        updates: steps of the optimiser since the beginning.
    """

    def __init__(self, network: nn.Module, update: Update, rate: float) -> None:
        self.learns = update != "never"
        self.network = deepcopy(network) if self.learns else network
        self.pending, self.updates, self._rate = False, 0, rate
        if self.learns:
            self.network.train().requires_grad_(True)
            for module in self.network.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.eval()
            self._first = {name: value.clone() for name, value in self.network.state_dict().items()}
            self._begin()

    def _begin(self) -> None:
        self._parameters = list(self.network.parameters())
        self._adam = torch.optim.Adam(self._parameters, self._rate, amsgrad=True, weight_decay=WEIGHT_DECAY)
        self._adam.zero_grad()

    def step(self) -> None:
        """One step of the optimiser along the gradients, which are emptied."""
        self._adam.step()
        self._adam.zero_grad()
        self.pending, self.updates = False, self.updates + 1

    def forget(self) -> None:
        """Leave out gradients that no step has used."""
        if self.learns:
            self._adam.zero_grad()
            self.pending = False

    def restore(self) -> None:
        """Begin anew: first weights, no moments."""
        if self.learns:
            self.network.load_state_dict(self._first)
            self.pending, self.updates = False, 0
            self._begin()

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for `load_state`."""
        if not self.learns:
            return {}
        moments = self._adam.state_dict()["state"]
        gradients = {} if not self.pending else dict(enumerate(_gradient(one) for one in self._parameters))
        return {
            "weights": self.network.state_dict(),
            "moments": {str(number): dict(values) for number, values in moments.items()},
            "gradients": {str(number): value for number, value in gradients.items()},
            "pending": self.pending,
            "updates": self.updates,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read, which is copied."""
        if not self.learns:
            return
        self.network.load_state_dict(state["weights"])
        self._begin()
        moments = {int(number): deepcopy(values) for number, values in state["moments"].items()}
        self._adam.load_state_dict({**self._adam.state_dict(), "state": moments})
        for number, value in state["gradients"].items():
            parameter = self._parameters[int(number)]
            parameter.grad = value.to(parameter.device, copy=True)
        self.pending, self.updates = state["pending"], state["updates"]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def victim_of(model: str, task: Task, pool: VolumePool) -> nn.Module:
    """The victim of a configuration, which must tell the classes of these volumes apart.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no victim of this task comes with the package, a damaged file, or one of another task.
    """
    if model == "packaged" and task.title.lower() not in PACKAGED_VOLUMES:
        raise ValueError(
            f"model is 'packaged', but the package has victims of {', '.join(PACKAGED_VOLUMES)} alone, none of "
            f"{task.title}; give a file that save_victim wrote, or a module"
        )
    victim, names = load_victim(PACKAGED_VOLUMES[task.title.lower()] if model == "packaged" else model)
    if names != pool.classes or len(victim.mean) != len(pool.channels):
        raise ValueError(
            f"model is {model!r}, which tells {names} apart in {len(victim.mean)} channel(s), but the volumes have "
            f"{pool.classes} and {len(pool.channels)}; give a victim that was trained on such volumes"
        )
    return victim.requires_grad_(False)
