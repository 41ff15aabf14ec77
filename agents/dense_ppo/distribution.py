"""The distribution of a map of actions, and how maps are explored.

Symbols: a = action map [B, h, w] with values 0..C-1; π(a) = product over the places p of Cat(a_p; softmax(logits_p));
l = log π(a_p) of each place, in nats.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Exploration = Literal["iid", "argmax", "correlated"]


class PixelCategorical:
    """One categorical per pixel, independent given the image; two classes with logits (0, z) are a Bernoulli.

    SB3's MultiCategorical keeps H·W distributions in a list and sums over them; this keeps one tensor and the map.

    Args:
        logits: float32 [B, C, H, W].
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.normaliser = logits.logsumexp(dim=1)  # [B, H, W]

    def log_prob(self, actions: Tensor) -> Tensor:
        """l, float32 [B, H, W]; actions: any integer type, [B, H, W] or [B, H·W] row by row."""
        chosen = self.logits.gather(1, actions.reshape(self.normaliser.shape)[:, None].long())  # [B, 1, H, W]
        return chosen[:, 0] - self.normaliser

    def entropy(self) -> Tensor:
        """Entropy of each pixel in nats, float32 [B, H, W]; at most log C."""
        log_p = self._log_p()
        return -(log_p.exp() * log_p).sum(dim=1)

    def kl(self, other: "PixelCategorical") -> Tensor:
        """KL(self || other) of each pixel in nats, float32 [B, H, W]."""
        log_p = self._log_p()
        return (log_p.exp() * (log_p - other._log_p())).sum(dim=1)

    def mode(self) -> Tensor:
        """The most probable action of each pixel (the first of several), uint8 [B, H, W]."""
        return self.logits.argmax(dim=1).byte()

    def sample(self, field: Tensor | None = None) -> Tensor:
        """Actions uint8 [B, H, W], from PyTorch's global generator by the Gumbel-max trick.

        field: added to the Gumbel noise, [B, C, H, W]; with one the sample is no longer exactly of this distribution.
        """
        noise = -torch.empty_like(self.logits).exponential_().log()
        return (self.logits + (noise if field is None else noise + field)).argmax(dim=1).byte()

    def get_actions(self, deterministic: bool = False) -> Tensor:
        """`mode` or `sample`, as SB3 asks for them."""
        return self.mode() if deterministic else self.sample()

    def _log_p(self) -> Tensor:
        return self.logits - self.normaliser[:, None]


@torch.no_grad()
def explore(
    distribution: PixelCategorical, exploration: Exploration, *, scale: float, sigma_px: float, eps_greedy: float
) -> Tensor:
    """Actions to try, uint8 [B, H, W].

    Args:
        distribution: the policy's.
        exploration: "iid": a sample; "argmax": the mode; "correlated": argmax(logits + τ (Gumbel noise + smooth
            field)), so that whole regions change together instead of grains (docs/rl4seg.md, Method 4).
        scale: τ, of "correlated".
        sigma_px: of the Gaussian kernel that smooths the field, in pixels.
        eps_greedy: share of pixels that take the mode instead, drawn independently.
    """
    if exploration == "argmax":
        return distribution.mode()
    if exploration == "correlated":
        sharper = PixelCategorical(distribution.logits / scale)  # argmax(logits + τ g) = argmax(logits / τ + g)
        actions = sharper.sample(smooth_field(distribution.logits, sigma_px))
    else:
        actions = distribution.sample()
    if eps_greedy:
        greedy = torch.rand_like(distribution.normaliser) < eps_greedy
        actions = torch.where(greedy, distribution.mode(), actions)
    return actions


def smooth_field(like: Tensor, sigma_px: float) -> Tensor:
    """Gaussian field of mean 0 and variance 1 everywhere, [B, C, H, W] as `like`, smooth on the scale of sigma_px."""
    radius = max(round(3 * sigma_px), 1)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=like.device) / sigma_px) ** 2)
    kernel = kernel / kernel.square().sum().sqrt()  # white noise keeps its variance
    batch, classes, height, width = like.shape
    white = torch.randn(batch * classes, 1, height + 2 * radius, width + 2 * radius, device=like.device)
    return F.conv2d(F.conv2d(white, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)).view_as(like)
