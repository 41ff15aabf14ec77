"""Class activation maps of the dense presence classifier: which feature cells speak for tumour (docs/spars.md,
Method 12).

Symbols: F_k(c) = feature k of cell c, never negative; y = logit of the volume; g_k(c) = ∂y / ∂F_k(c). The maps are
[B, cx, cy, cz], 0 where nothing speaks for tumour.
"""

from collections.abc import Callable
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.liver.lattice import WindowLattice
from .bags import pool_logits
from .presence import DensePresenceNet
from .presence_config import PresenceTrainingConfig
from .stem import CELL, CHUNK_VOXELS, HALO, cell_lattice, pool_cells

Kind = Literal["grad", "grad_plus_plus", "score"]
Target = Callable[[Tensor], Tensor]
"""y [B] of feature cells [B, K, cx, cy, cz]."""


def volume_logit(net: DensePresenceNet, cells: Tensor, lattice: WindowLattice) -> Tensor:
    """y [B] of all feature cells [B, 64, cx, cy, cz] of B volumes: the logits z of all windows of the lattice, pooled
    as those of a patient are by default (`pool_logits`)."""
    x, y, z = (phase // CELL for phase in lattice.phase)
    logits = net.head(pool_cells(cells[..., x:, y:, z:], lattice))
    return pool_logits((logits[..., 1] - logits[..., 0]).flatten(1), PresenceTrainingConfig())


def gradient(cells: Tensor, target: Target) -> Tensor:
    """g [B, K, cx, cy, cz]."""
    with torch.enable_grad():
        leaf = cells.detach().requires_grad_()
        (found,) = torch.autograd.grad(target(leaf).sum(), leaf)
    return found


def grad_cam(cells: Tensor, target: Target) -> Tensor:
    """ReLU(Σ_k w_k F_k), w_k = mean over the cells of g_k (Selvaraju et al., 2017)."""
    weights = gradient(cells, target).mean(dim=(2, 3, 4), keepdim=True)
    return F.relu((weights * cells).sum(dim=1))


def grad_cam_plus_plus(cells: Tensor, target: Target) -> Tensor:
    """ReLU(Σ_k w_k F_k), w_k = Σ_c α_k(c) ReLU(g_k(c)), α = g² / (2 g² + g³ Σ_c F_k(c)), of exp(y) instead of y, whose
    derivatives of second and third order are exp(y) g² and exp(y) g³ (Chattopadhay et al., 2018); α is 0 where g is."""
    g = gradient(cells, target)
    below = 2 * g.square() + g.pow(3) * cells.sum(dim=(2, 3, 4), keepdim=True)
    alpha = g.square() / torch.where(below == 0, 1.0, below)
    weights = (alpha * F.relu(g)).sum(dim=(2, 3, 4), keepdim=True)
    return F.relu((weights * cells).sum(dim=1))


def score_cam(cells: Tensor, volume: Tensor, lattice: WindowLattice, logit: Callable[[Tensor], Tensor]) -> Tensor:
    """ReLU(Σ_k w_k F_k), w = softmax over k of y of the volume times F_k, scaled to [0, 1] and trilinear on the voxels
    (Wang et al., 2020); a feature that is the same everywhere has no weight.

    Args:
        cells: of one volume, [1, K, cx, cy, cz].
        volume: [1, 1, X, Y, Z] in [0, 1].
        lattice: whose windows are the cells.
        logit: y [B] of volumes [B, 1, X, Y, Z] in [0, 1].
    """
    flat = cells[0].flatten(1)  # [K, L]
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    flat, says = (flat - low) / (high - low).clamp(min=1e-12), (high > low)[:, 0]
    if not bool(says.any()):
        return torch.zeros_like(cells[:, 0])
    ids = torch.arange(lattice.size, device=cells.device)
    y = torch.full((len(flat),), -torch.inf, device=cells.device)
    batch = max(1, CHUNK_VOXELS // prod(n + 2 * HALO for n in lattice.full))  # no more: slabs would share less
    for some in torch.split(says.nonzero()[:, 0], batch):
        masks = lattice.interpolate(lattice.paint(ids.expand(len(some), -1), flat[some], "max").float())
        y[some] = logit(volume * masks[:, None])
    return F.relu((y.softmax(dim=0).view(1, -1, 1, 1, 1) * cells).sum(dim=1))


@torch.no_grad()
def class_activation(net: DensePresenceNet, image: Tensor, lattice: WindowLattice, kind: Kind) -> Tensor:
    """The map of one volume uint8 [X, Y, Z] on the windows of `cell_lattice(lattice)`, divided by its maximum: float32
    [cx, cy, cz] in [0, 1]; 0 everywhere where nothing speaks for tumour."""
    everywhere, volume = cell_lattice(lattice), image[None, None].float() / 255
    cells = net.layers.cells(volume, everywhere)
    if kind == "score":
        found = score_cam(
            cells, volume, everywhere, lambda x: volume_logit(net, net.layers.cells(x, everywhere), lattice)
        )
    else:
        by_gradient = grad_cam if kind == "grad" else grad_cam_plus_plus
        found = by_gradient(cells, lambda at: volume_logit(net, at, lattice))
    return found[0] / found.max().clamp(min=1e-12)
