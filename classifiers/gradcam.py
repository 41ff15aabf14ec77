"""GradCAM of classifiers that end in ReLU, mean and a linear layer: no backward pass (docs/apga.md, Method 8).

Symbols: A = feature maps before the last ReLU [B, M, h, w]; W_c = weights of class c in the linear layer [M].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .xray import XrayClassifier

SELECTED = 0.5
"""Value of a map above which a mask of it selects."""


@torch.no_grad()
def gradcam(net: XrayClassifier, x: Tensor, classes: Tensor | None = None) -> Tensor:
    """Maps of what speaks for a class, [B, H, W] in [0, 1]; 0 where a map is the same everywhere.

    Args:
        net: in eval mode.
        x: images [B, C, H, W] in [0, 1].
        classes: int64 [B], the class of each; None: the one with the highest logit.

    Raises:
        ValueError: the network is in training mode, or does not take such images.
    """
    if net.training:
        raise ValueError("the classifier is in training mode, where a map depends on its batch; call eval() first")
    maps = net.feature_maps(x).float()
    if classes is None:
        classes = net.head(F.relu(maps).mean(dim=(2, 3))).argmax(dim=1)
    return scale_maps(class_activation(maps, net.head.weight[classes].float()), (x.shape[-2], x.shape[-1]))


def class_activation(maps: Tensor, weights: Tensor) -> Tensor:
    """ReLU(Σ_k w_k ReLU(A_k)) [B, h, w], w_k = W_ck / (h w) times the share of positions with A_k > 0.

    maps: A; weights: W_c of each image, [B, M].
    """
    share = (maps > 0).to(maps.dtype).mean(dim=(2, 3))
    weights = weights * share / (maps.shape[2] * maps.shape[3])
    return F.relu(torch.einsum("bm,bmhw->bhw", weights, F.relu(maps)))


def scale_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] enlarged to `size` (bilinear, corners not aligned) and stretched to [0, 1], each by itself.

    A map that is the same everywhere becomes 0.
    """
    low, high = maps.flatten(1).aminmax(dim=1)
    large = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    bottom, top = (bound[:, None, None] for bound in large.flatten(1).aminmax(dim=1))
    differs = (high > low)[:, None, None] & (top > bottom)  # rounding makes differences in a map that has none
    return torch.where(differs, (large - bottom) / torch.where(differs, top - bottom, 1.0), 0.0)
