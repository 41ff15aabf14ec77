"""Reference policies of the patch game (docs/spars.md, Method 16): each chooses a patch that is not blanked in every
round, and ends nothing, so that all look at as many."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...envs.spars import SparsEnv
from ...envs.spars_patch import PatchEnv
from ..policy import Policy, Reference


def _best(env: PatchEnv, worth: Tensor) -> Tensor:
    """The patch of the highest worth, float [N, P], among those that are not blanked, as actions int64 [N, 2]."""
    patch = worth.masked_fill(env.blanked, -torch.inf).argmax(dim=1)
    return torch.stack((patch, torch.zeros_like(patch)), dim=1)


def random_patch(env: PatchEnv) -> Tensor:
    """Any patch."""
    patch = env.random_patch()
    return torch.stack((patch, torch.zeros_like(patch)), dim=1)


class LikeliestPatch:
    """The patch that is likeliest to hold tumour by its place alone: where scores of other cases are high, or, where
    nothing is known of others, near the middle. It looks at no image."""

    def __init__(self, env: PatchEnv) -> None:
        prior = env.masks.prior
        if prior is not None and prior.patterns:
            self.worth = prior.mean[env.patches]
        else:
            self.worth = -env._where[env.patches].norm(dim=1)

    def __call__(self, env: PatchEnv) -> Tensor:
        return _best(env, self.worth.expand(env.num_envs, -1))


def clairvoyant(env: PatchEnv) -> Tensor:
    """The patch of the highest score: it is given all of them."""
    return _best(env, env.table.lookup(env.case[:, None].expand_as(env.blanked), env.patches.expand_as(env.blanked)))


def _row(about: str, make: Callable[[PatchEnv], Policy[PatchEnv]]) -> Reference[SparsEnv]:
    needs = {"profile": ("patch",), "n_agents": (1,)}
    return Reference(about, lambda env, seed: make(env), needs=needs)  # type: ignore[arg-type, return-value]


PATCH_POLICIES: dict[str, Reference[SparsEnv]] = {
    "patch_random": _row("Any patch that is not blanked.", lambda env: random_patch),
    "patch_prior": _row("The patch that is likeliest by its place, without looking.", LikeliestPatch),
    "patch_clairvoyant": _row("The patch of the highest score, by all scores.", lambda env: clairvoyant),
}
"""Reference policies of profile "patch" by name."""
