"""Uncertainty of a segmenter by ensembles, MC dropout and test-time augmentation (docs/rl4seg.md, Method 11).

p̄ = mean softmax over passes, [N, C, H, W]; u = entropy of p̄ in base C, in [0, 1].
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..common.device import forked_rng
from .inference import logits_of

MAX_SHIFT, MAX_ROTATION_DEG = 0.05, 10.0
"""Test-time augmentation: largest translation, as a share of the image's size, and largest rotation, to both sides."""
CONTRAST = (0.8, 1.2)
"""Test-time augmentation: range of the factor on the distance from the image's mean."""
BATCH = 32
"""Images per forward pass."""


def entropy_map(probabilities: Tensor) -> Tensor:
    """u, float32 [N, H, W] in [0, 1], of mean softmax maps [N, C, H, W]."""
    p = probabilities.float()
    u = -(p * p.clamp(min=1e-12).log()).sum(dim=1) / math.log(p.shape[1])
    return u.clamp(0, 1)  # rounding can pass either end


def ensemble(nets: Sequence[nn.Module], images: Tensor) -> Tensor:
    """p̄ of networks that were trained apart; images uint8 [N, C, H, W]."""
    return _mean_softmax([_plainly(net.eval()) for net in nets], images)


def mc_dropout(net: nn.Module, images: Tensor, passes: int, seed: int) -> Tensor:
    """p̄ of `passes` draws of the dropout masks; everything but dropout stays in eval mode.

    Raises:
        ValueError: the network has no dropout, so that all passes would be equal.
    """
    dropouts = [module for module in net.modules() if isinstance(module, nn.Dropout | nn.Dropout2d) and module.p > 0]
    if not dropouts:
        raise ValueError("MC dropout needs a network that was trained with dropout > 0")
    net.eval()
    for module in dropouts:
        module.train()
    with forked_rng(images.device):
        torch.manual_seed(seed)
        mean = _mean_softmax([_plainly(net)] * passes, images)
    net.eval()
    return mean


def test_time_augmentation(net: nn.Module, images: Tensor, passes: int, seed: int) -> Tensor:
    """p̄ of `passes` views of each image, changed in contrast, shifted and turned, with the masks turned back."""
    generator = Generator().manual_seed(seed)
    net.eval()

    def view(x: Tensor) -> Tensor:
        contrast, shift_x, shift_y, turn = torch.rand(4, len(x), generator=generator).to(x.device)
        factor = (CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * contrast).view(-1, 1, 1, 1)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        angle = (2 * turn - 1) * math.radians(MAX_ROTATION_DEG)
        shift = (2 * torch.stack([shift_x, shift_y], dim=1) - 1) * 2 * MAX_SHIFT  # grid units span 2
        there, back = _motion(angle, shift)
        seen = _warp((mean + factor * (x - mean)).clamp(0, 1), there)
        softmax = _warp(logits_of(net, seen).softmax(dim=1), back)
        outside = 1 - softmax.sum(dim=1)  # what the view did not show is background
        return torch.cat([softmax[:, :1] + outside[:, None], softmax[:, 1:]], dim=1)

    return _mean_softmax([view] * passes, images)


def _plainly(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: logits_of(net, x).softmax(dim=1)


@torch.no_grad()
def _mean_softmax(views: Sequence[Callable[[Tensor], Tensor]], images: Tensor) -> Tensor:
    means = []
    for batch in torch.split(images, BATCH):
        x = batch.float() / 255
        means.append(torch.stack([view(x) for view in views]).mean(dim=0))
    return torch.cat(means)


def _motion(angle: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Affine maps [B, 2, 3] for `affine_grid`: a turn by `angle` [B] and then a shift [B, 2]; and its inverse."""
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    back = turn.transpose(1, 2)
    return torch.cat([turn, shift[..., None]], dim=2), torch.cat([back, -(back @ shift[..., None])], dim=2)


def _warp(x: Tensor, motion: Tensor) -> Tensor:
    grid = F.affine_grid(motion, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)
