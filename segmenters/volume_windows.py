"""Logits of whole volumes by overlapping windows: MONAI's, or those of ROG's program (docs/seat.md, Method 15).

Gradients flow where they are on, so that an attack may change the whole volume. Symbols: L, P = sides of volume and
window along an axis; K = classes.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, check_choice, check_range

Windows = Literal["monai", "rog"]
OVERLAP = 0.5
"""Of MONAI's windows, at least, a share of their sides."""


class VolumeWindows(nn.Module):
    """A network of patches behind windows: logits [B, K, D, H, W] of volumes of any size.

    Whatever takes a network takes this, too. The mode, train or eval, is the network's.

    Args:
        net: gives logits [B, K, *window_size] of patches [B, C, *window_size].
        window_size: sides of the windows, three.
        windows: "monai", half overlapping, with Gaussian weights, a smaller volume padded with 0; "rog", as the
            program of ROG and SEAT: about half a window apart, a smaller volume mirrored.
        batch_size: windows in one pass.

    Raises:
        ValueError: sides below 1 or not three, no windows of that name, or a batch size below 1.
    """

    def __init__(
        self, net: nn.Module, window_size: tuple[int, int, int], windows: Windows = "monai", batch_size: int = 4
    ) -> None:
        super().__init__()
        check_range("window_size", window_size, AT_LEAST_1)
        check_range("batch_size", batch_size, AT_LEAST_1)
        check_choice("windows", windows, ("monai", "rog"))
        if len(window_size) != 3:
            raise ValueError(f"window_size is {window_size!r} but must be three sides")
        self.net, self.window_size, self.windows, self.batch_size = net, window_size, windows, batch_size

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits float32 [B, K, D, H, W] of volumes [B, C, D, H, W].

        Raises:
            ValueError: volumes of another rank.
        """
        if volumes.dim() != 5:
            raise ValueError(f"volumes are {[*volumes.shape]} but must be [B, C, D, H, W]")
        if self.windows == "rog":
            return rog_windows(self.net, volumes, self.window_size, self.batch_size)
        from monai.inferers.utils import sliding_window_inference  # here: it loads slowly

        logits = sliding_window_inference(
            volumes, self.window_size, self.batch_size, lambda x: self.net(x).float(), OVERLAP, mode="gaussian"
        )
        assert isinstance(logits, Tensor)
        return logits


def rog_windows(net: nn.Module, volumes: Tensor, window_size: tuple[int, int, int], batch_size: int = 4) -> Tensor:
    """Logits float32 [B, K, D, H, W] by ROG's windows: means of the windows' logits with `window_weights`.

    Sums are float32, and no weight is 0, where the program's halves are NaN. Arguments as those of `VolumeWindows`.
    """
    sides, device = volumes.shape[2:], volumes.device
    for axis, (length, size) in enumerate(zip(sides, window_size, strict=True), start=2):
        if length < size:
            volumes = volumes.index_select(axis, torch.tensor(mirrored(length, size), device=device))
    firsts = [
        [centre - size // 2 for centre in window_centres(length, size)]
        for length, size in zip(volumes.shape[2:], window_size, strict=True)
    ]
    a, b, c = window_size
    corners = [(x, y, z) for x in firsts[0] for y in firsts[1] for z in firsts[2]]
    parts = torch.cat([volumes[..., x : x + a, y : y + b, z : z + c] for x, y, z in corners])
    found = torch.cat([net(part).float() for part in parts.tensor_split(math.ceil(len(parts) / batch_size))])
    weights = window_weights(window_size).to(device)
    total = found.new_zeros(len(volumes), found.shape[1], *volumes.shape[2:])
    seen = found.new_zeros(volumes.shape[2:])
    for (x, y, z), part in zip(corners, found.tensor_split(len(corners)), strict=True):
        total[..., x : x + a, y : y + b, z : z + c] += part * weights
        seen[x : x + a, y : y + b, z : z + c] += weights
    before = [max(size - length, 0) // 2 for length, size in zip(sides, window_size, strict=True)]
    kept = [slice(first, first + length) for first, length in zip(before, sides, strict=True)]
    return (total / seen)[(slice(None), slice(None), *kept)]


def window_centres(length: int, size: int) -> list[int]:
    """Centres of ROG's windows along an axis of at least `size` voxels, evenly from one end to the other.

    They are half a window to a whole one apart: ceil((L - P) / (P / 2)) windows, but two where that is 1.

    >>> from segarena.segmenters.volume_windows import window_centres
    >>> window_centres(100, 32), window_centres(35, 32)
    ([16, 33, 50, 67, 84], [16, 19])
    """
    half, room = size // 2, length - size
    if room <= 0:
        return [half]
    number = max(math.ceil(2 * room / size), 2)
    return [half + room * n // (number - 1) for n in range(number)]


def window_weights(window_size: tuple[int, ...]) -> Tensor:
    """Weight of each voxel of a window, float32, 1 at its centre P // 2: a Gaussian of deviation P // 8, at least 1."""
    weights = torch.ones(())
    for size in window_size:
        away = (torch.arange(size) - size // 2) / max(size // 8, 1)
        weights = weights.unsqueeze(-1) * (-away.double().square() / 2).exp()
    return weights.float().clamp(min=torch.finfo(torch.float32).tiny)


def mirrored(length: int, size: int) -> list[int]:
    """Voxels of an axis of `length` that make one of `size`, mirrored at both ends without repeating the end.

    >>> from segarena.segmenters.volume_windows import mirrored
    >>> mirrored(5, 8)
    [1, 0, 1, 2, 3, 4, 3, 2]
    """
    period, before = max(2 * (length - 1), 1), (size - length) // 2
    places = [(n - before) % period for n in range(size)]
    return [min(place, period - place) for place in places]
