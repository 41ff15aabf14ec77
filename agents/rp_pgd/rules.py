"""Policies of RP-PGD's environments: the scripted attacks, each the same as its function in `attacks/methods.py`
(docs/rp-pgd.md, Method 20)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...attacks.methods import ATTACKS
from ...envs.attack import AttackEnv
from ..policy import RandomPolicy, Reference

ABOUT = {
    "fgsm": "every valid pixel alike, one step of epsilon",
    "bim": "every valid pixel alike",
    "pgd": "every valid pixel alike",
    "mi_fgsm": "every valid pixel alike, with momentum",
    "segpgd": "right pixels first, wrong ones more and more",
    "cospgd": "each pixel by its confidence",
    "masked_ce": "right pixels alone",
    "js": "every valid pixel alike, by the Jensen-Shannon divergence",
    "cw_linf": "every valid pixel alike, by the margin of right ones",
    "rp_region": "three regions, each by its mean",
    "rp_pgd": "three regions and the inter-class term",
    "rp_pgd_pp": "three regions, the inter-class and the intra-class term",
    "rp_global": "three regions, by the mean of all valid pixels",
}
"""What each attack raises."""


@dataclass(frozen=True)
class ScriptedPolicy:
    """An attack as a policy: its weights, step size and momentum for each step of each number of steps."""

    table: Tensor
    """Of `AttackEnv.script`."""

    def __call__(self, env: AttackEnv) -> Tensor:
        """Actions float64 [N, 11]: as float32 the last bits of a weight would differ from the function's."""
        return env.scripted(self.table)


def _scripted(name: str) -> Reference[AttackEnv]:
    attack = ATTACKS[name]
    needs: dict[str, tuple[Any, ...]] = {"action_mode": ("schedule",), "residual_to": (None,)}
    needs["loss"] = (attack.loss.__name__,)
    if attack.single:
        needs["horizons"] = ((1,),)
    return Reference(
        f"{attack.title}: {ABOUT[name]}.",
        lambda env, seed: ScriptedPolicy(env.script(name)),
        supervision="voxel",
        needs=needs,
    )


POLICIES: dict[str, Reference[AttackEnv]] = {
    "random": Reference(
        "Any action, uniformly.",
        lambda env, seed: RandomPolicy(env.single_action_space, seed),
    ),
    **{name: _scripted(name) for name in ATTACKS},
}
"""Reference policies of every environment of RP-PGD by name."""
