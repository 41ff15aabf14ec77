"""Several reward networks as one, which doubts what they do not agree on (docs/rl4seg.md, Method 6).

Symbols: r_k = map of member k, r = fused map.
"""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_0, check_choice, check_range
from .reward_net import Fusion, RewardNet


class RewardEnsemble(nn.Module):
    """Reward networks of one task; called like one of them.

    Args:
        members: two or more.
        fusion: of the maps at each pixel. "min": the least; "lcb": max(mean - width · standard deviation, 0).
        width: of "lcb"; the deviation is that of the population of members.

    Raises:
        ValueError: one member, an unknown fusion, a negative width.
    """

    def __init__(self, members: Sequence[RewardNet], *, fusion: Fusion = "min", width: float = 1.0) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"an ensemble of {len(members)} reward networks fuses nothing; give two or more")
        check_choice("fusion", fusion, get_args(Fusion))
        check_range("width", width, AT_LEAST_0)
        self.members, self.fusion, self.width = nn.ModuleList(members), fusion, width

    def forward(self, images: Tensor, actions: Tensor, *, calibrated: bool = False) -> Tensor:
        """r, float32 [B, H, W] in [0, 1]; arguments as for `RewardNet.logits`.

        With `calibrated` it is the mean of the members' calibrated maps: an estimate, while the reward is a bound.
        """
        maps = torch.stack([member(images, actions, calibrated=calibrated) for member in self.members])
        if calibrated:
            return maps.mean(dim=0)
        if self.fusion == "min":
            return maps.amin(dim=0)
        return (maps.mean(dim=0) - self.width * maps.std(dim=0, correction=0)).clamp(min=0)


def as_one(nets: Sequence[RewardNet], *, fusion: Fusion, width: float) -> RewardNet | RewardEnsemble:
    """The network itself where there is one, else their ensemble."""
    return nets[0] if len(nets) == 1 else RewardEnsemble(nets, fusion=fusion, width=width)
