"""How steep a loss and a network are in their input: magnitudes of a gradient, difference quotients, the spectral norm
of the input Jacobian (docs/seat.md, Method 12).

Symbols: x = images [B, C, *spatial] in their own units; g = gradient of the loss of each image; R_c = high - low of
channel c; f = logits [B, K, *spatial]; V = voxels of an image.
"""

import warnings

import torch
from torch import Generator, Tensor, nn
from torch.func import jvp, vjp

from ..common.checks import AT_LEAST_1, check_range
from ..segmenters.norms import modes_kept


def magnitude(gradient: Tensor, *, scale: float | Tensor = 1.0) -> Tensor:
    """||g||_1 of each image, float32 [B]: a lower bound of the loss's Lipschitz constant in L-infinity around x.

    Args:
        gradient: [B, C, *spatial], of the sum over images of their losses; that of a batch's mean is 1 / B of it.
        scale: factor that the loss was multiplied by (loss scaling), which is divided out; what overflowed by it is
            infinite or NaN here, too.
    """
    return gradient.float().abs().flatten(1).sum(dim=1) / scale


def relative_magnitude(gradient: Tensor, low: Tensor, high: Tensor, *, scale: float | Tensor = 1.0) -> Tensor:
    """sum_c R_c ||g_c||_1 of each image, float32 [B]: first-order gain of the loss for a radius of the whole range.

    It has no unit: images that are s times as large, behind a first layer of 1 / s, give the same.

    Args:
        gradient: [B, C, *spatial], as in `magnitude`.
        low: lowest intensity of each image and channel; broadcasts to [B, C, 1, ...].
        high: the highest.
        scale: factor that the loss was multiplied by.
    """
    return ((high - low) * gradient.float().abs()).flatten(1).sum(dim=1) / scale


def difference_quotient(clean: Tensor, reached: Tensor, images: Tensor, moved: Tensor) -> Tensor:
    """||softmax f(x') - softmax f(x)||_1 / (V ||x' - x||_inf) of each image, float32 [B]; 0 where x' = x.

    The largest over the images x' of an attack is a lower bound of the Lipschitz constant of the mean voxel.

    Args:
        clean: f(x), [B, K, *spatial].
        reached: f(x').
        images: x, [B, C, *spatial].
        moved: x'.
    """
    change = (reached.float().softmax(dim=1) - clean.float().softmax(dim=1)).abs().flatten(1).sum(dim=1)
    distance = (moved.float() - images.float()).abs().flatten(1).amax(dim=1)
    voxels = clean[0, 0].numel()
    return torch.where(distance > 0, change / (voxels * torch.where(distance > 0, distance, 1)), 0.0)


@torch.no_grad()
def spectral_norm(model: nn.Module, images: Tensor, *, steps: int = 5, generator: Generator | None = None) -> Tensor:
    """Largest singular value of the Jacobian of f at each image, [B], from below, by power iteration.

    The model is in evaluation mode meanwhile, so that images do not depend on each other; its parameters get no
    gradient. `steps` + 1 products with the Jacobian and `steps` with its transpose.

    Args:
        model: gives logits of images, by operations that have a forward derivative.
        images: floating point [B, C, *spatial].
        steps: of the iteration, at least 1.
        generator: of the first direction; None: PyTorch's own.

    Raises:
        ValueError: steps below 1.
    """
    check_range("steps", steps, AT_LEAST_1)
    device = images.device if generator is None else generator.device
    direction = torch.randn(images.shape, dtype=images.dtype, generator=generator, device=device).to(images.device)

    def push(direction: Tensor) -> Tensor:
        stretched: Tensor = jvp(model, (images,), (_unit(direction),))[1]
        return stretched

    with modes_kept(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)  # PyTorch's own, at the first jvp
        model.eval()
        pull = vjp(model, images)[1]
        for _ in range(steps):
            (direction,) = pull(push(direction))
        found: Tensor = torch.linalg.vector_norm(push(direction).flatten(1), dim=1)
    return found


def _unit(direction: Tensor) -> Tensor:
    """Each image's direction with Euclidean norm 1; 0 stays 0."""
    norm = torch.linalg.vector_norm(direction.flatten(1), dim=1).view(-1, *[1] * (direction.dim() - 1))
    return direction / torch.where(norm > 0, norm, 1)
