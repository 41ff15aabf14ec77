"""What an agent sees of an attack: forty numbers, and maps (docs/rp-pgd.md, Method 21)."""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.prototypes import inter_class, intra_class
from ..attacks.regions import BOUNDARY, FALSE, GROUPS, TRUE, groups
from .attack_actions import NUMBERS

if TYPE_CHECKING:
    from .attack import AttackEnv

NUMBER = 40
"""Numbers of a summary."""
HIGHEST = 5.0
"""Each lies between its negative and this."""
AT_EDGE = 0.99
"""Share of epsilon from which a pixel counts as at the edge of the ball."""
MAPS = 8
"""Maps beside the three of each channel."""


@torch.no_grad()
def summary(env: "AttackEnv") -> Tensor:
    """The numbers float32 [N, 40]."""
    core, eps = env.core, env.eps.value
    group = groups(core.regions, core.right).flatten(1)
    chance, margin, loss, _ = _certainty(core.logits, core.targets)
    values = torch.stack([torch.ones_like(loss), loss, chance, margin], dim=1).flatten(2)  # [N, 4, pixels]
    sums = torch.stack([(values * (group == g)[:, None]).sum(dim=2) for g in range(1, 1 + len(GROUPS))], dim=2)
    sizes = sums[:, 0]  # [N, 5]
    valid = sizes.sum(dim=1, keepdim=True).clamp(min=1)
    mean_loss, mean_chance = (sums[:, k] / sizes.clamp(min=1) for k in (1, 2))
    of_regions = [sums[:, :, part].sum(dim=2) for part in (slice(0, 1), slice(1, 3), slice(3, 5))]  # T, B, F
    mean_margin = [one[:, 3] / one[:, 0].clamp(min=1) for one in of_regions]
    moved = (core.adversarial - core.images).flatten(1).abs() / eps
    last = dict(zip(NUMBERS, env.numbers.float().unbind(dim=1), strict=True))
    steps = env.steps.float()
    columns = [
        env.t / steps,
        steps.log2() / 7,
        torch.full_like(steps, 255 * eps / 16),
        *(sizes / valid).unbind(dim=1),
        *(mean_loss / 5).clamp(0, 2).unbind(dim=1),
        *mean_chance.unbind(dim=1),
        *mean_margin,
        env.now["acc"],
        env.now["miou"],
        env.begun_at - env.worth[env.config.reward],
        *env.flipped.unbind(dim=1),
        *_prototype_numbers(env),
        moved.mean(dim=1),
        (moved >= AT_EDGE).float().mean(dim=1),
        ((core.adversarial <= 0) | (core.adversarial >= 1)).flatten(1).float().mean(dim=1),
        env.turned,
        3 * last["step_size"],
        last["region_mean"],
        last["confidence"],
        last["momentum"],
        last["true"],
        (last["boundary_wrong"] + last["boundary_right"]) / 2,
        (last["false_wrong"] + last["false_right"]) / 2,
    ]
    return torch.stack([column.float() for column in columns], dim=1).nan_to_num(0.0).clamp(-HIGHEST, HIGHEST)


def _prototype_numbers(env: "AttackEnv") -> tuple[Tensor, ...]:
    """Share of the classes with a prototype, and both terms, [N] each; 0 where there are no features."""
    core = env.core
    if core.features is None:
        return (torch.zeros_like(env.turned),) * 3
    protos = core.class_prototypes()
    inter, intra = inter_class(protos), intra_class(protos, core.options.intra_skip)
    return protos.present.float().mean(dim=1), inter, intra


@torch.no_grad()
def maps(env: "AttackEnv", env_ids: Tensor) -> Tensor:
    """The maps float32 [K, 3 C + 8, M, M] in [-1, 1] of the environments `env_ids` int64 [K].

    Of each channel the image, the perturbation / epsilon and the sign of the gradient; then p_y, margin, entropy / log
    K, whether a pixel is in T, B, F, is right, is valid. Means over the pixels of each cell.
    """
    core = env.core
    x, clean = core.adversarial[env_ids], core.images[env_ids]
    logits, targets, valid = core.logits[env_ids], core.targets[env_ids], core.valid[env_ids]
    regions, right = core.regions[env_ids], core.right[env_ids]
    chance, margin, _, entropy = _certainty(logits, targets)
    flat = [chance * valid, margin * valid, entropy, *((regions == r) for r in (TRUE, BOUNDARY, FALSE))]
    flat += [right & valid, valid]
    one = torch.stack([part.float() for part in flat], dim=1)
    full = torch.cat([clean, (x - clean) / env.eps.value, env.shown_gradient()[env_ids].sign(), one], dim=1)
    size = (env.config.map_size, env.config.map_size)
    return F.adaptive_avg_pool2d(full, size).nan_to_num(0.0).clamp(-1, 1)


def _certainty(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p_y, p_y - highest other p, -ln p_y, and entropy / log K of each pixel, [B, H, W] each."""
    log_p = logits.log_softmax(dim=1)
    p, index = log_p.exp(), targets.unsqueeze(1)
    chance = p.gather(1, index).squeeze(1)
    other = p.scatter(1, index, -1.0).amax(dim=1).clamp(min=0)
    entropy = -(p * log_p.clamp(min=-1e4)).sum(dim=1) / math.log(max(2, logits.shape[1]))
    return chance, chance - other, -log_p.gather(1, index).squeeze(1), entropy
