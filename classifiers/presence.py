"""The presence classifier f of SPARS: the probability that a window holds tumour (docs/spars.md, Method 2, 6 and 8).

Symbols: W(p) = window with lower corner p; f(p) = softmax(C(I[W(p)]))[1], its presence score in [0, 1]; φ = phase.
`DensePresenceNet` is fully convolutional: one forward of the volume gives f at every position of a lattice, equal to
the forward of each crop, because a crop carries the `HALO` voxels that the convolutions use up on every side.
`PaperPresenceNet` is the paper's: it enlarges each window, and looks at one window at a time.
"""

import hashlib
from abc import ABC, abstractmethod
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..common.checkpoints import load_weights
from ..common.checks import check_range
from ..common.device import bfloat16_on_cuda
from ..common.networks import Network, load_network
from ..common.reading import parse_json
from ..datasets.liver.lattice import Triple, WindowLattice, nearest_index
from .stem import CELL, CHANNELS, CHUNK_VOXELS, HALO, Stem, conv, pool_cells

HIDDEN = 64
LARGEST_WINDOW = 1024
"""Voxels of a window along each axis, at most."""
PAPER_INPUT_SIZE = (256, 256, 180)
"""Voxels to which the paper resizes every window."""
PACKAGED = Path(__file__).parent / "weights" / "presence_phantom.safetensors"


class PresenceNet(Network, ABC):
    """A network that scores windows of volumes; frozen (eval mode) wherever it is used as f.

    Volumes are uint8 (HU window over 0..255). Scores are f, float32; pooled features are what the head reads.

    Args:
        hu_window: HU that the bytes 0 and 255 of a volume stand for.
        window_size: window in voxels that it is trained for; it may score others.
    """

    num_features: int
    halo: int
    """Voxels on every side of a window that its score depends on."""

    def __init__(self, hu_window: tuple[float, float], window_size: Triple) -> None:
        super().__init__()
        check_range("window_size", window_size, (1, LARGEST_WINDOW))
        if not hu_window[0] < hu_window[1]:
            raise ValueError(f"hu_window is {hu_window} but its first number must be below its second")
        self.hu_window, self.window_size = hu_window, window_size

    def digest(self) -> str:
        """SHA-256 of architecture and weights: equal digests give equal scores."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @abstractmethod
    def forward(self, crops: Tensor) -> Tensor:
        """Logits [N, 2] (1 = tumour) of crops [N, 1, *(window + 2 halo)] in [0, 1]."""

    @abstractmethod
    def pool_crops(self, crops: Tensor) -> Tensor:
        """Features [N, F] of crops [N, 1, *(window + 2 halo)] in [0, 1]."""

    @abstractmethod
    def score_features(self, features: Tensor) -> Tensor:
        """f, float32 [N], of features [N, F]; in float64, because float32 sums depend on the size of the batch."""

    def crop_voxels(self, window: Triple) -> int:
        """Voxels that go through the layers for one window."""
        return prod(w + 2 * self.halo for w in window)

    @torch.no_grad()
    def score_windows(self, volumes: Tensor, case: Tensor, corners: Tensor, window: Triple) -> tuple[Tensor, Tensor]:
        """f [N] and features [N, F] of the windows at `corners` of volumes[case], in batches within `CHUNK_VOXELS`.

        On a CPU a window's score is the same bit for bit, whichever windows are scored with it.

        volumes: uint8 [C, X, Y, Z]; case: int64 [N]; corners: int64 [N, 3], in voxels.
        """
        batch = max(1, CHUNK_VOXELS // self.crop_voxels(window))
        pooled = []
        for cases, at in zip(torch.split(case, batch), torch.split(corners, batch), strict=True):
            crops = gather_crops(volumes, cases, at, window, self.halo)
            if len(crops) == 1 < batch:  # PyTorch has other kernels for one, which are slower and round differently
                crops = crops.expand(2, -1, -1, -1, -1)
            pooled.append(self.pool_crops(crops)[: len(cases)])
        features = torch.cat(pooled)
        return self.score_features(features), features

    def slide(self, volume: Tensor, lattice: WindowLattice) -> tuple[Tensor, Tensor]:
        """f [L] and features [L, F] of all positions on volume, uint8 [X, Y, Z], by `score_windows`."""
        corners = lattice.corners().to(volume.device)
        return self.score_windows(volume[None], torch.zeros_like(corners[:, 0]), corners, lattice.window)

    def has_dense(self, lattice: WindowLattice) -> bool:
        """Whether `score_lattice` shares its work between the windows of this lattice."""
        return False

    def score_lattice(self, volume: Tensor, lattice: WindowLattice) -> tuple[Tensor, Tensor]:
        """f [L] and features [L, F] of all positions on volume, uint8 [X, Y, Z]: in one forward if there is one."""
        return self.slide(volume, lattice)


class DensePresenceNet(PresenceNet):
    """The feature cells of `Stem`, then mean ⊕ max over each window, then two linear layers in float32.

    Windows are multiples of 4 voxels.
    """

    num_features = 2 * CHANNELS[-1]
    halo = HALO

    def __init__(self, hu_window: tuple[float, float], window_size: Triple) -> None:
        super().__init__(hu_window, window_size)
        self.layers = Stem()
        self.head = nn.Sequential(nn.Linear(self.num_features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))

    # -- network ---------------------------------------------------------------------------------------------------

    def forward(self, crops: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool_crops(crops))
        return logits

    def dense_features(self, volume: Tensor, lattice: WindowLattice) -> Tensor:
        """Mean ⊕ max features [B, sx, sy, sz, 128] of every window on volume [B, 1, X, Y, Z] in [0, 1].

        Raises:
            ValueError: a lattice whose step is no multiple of 4, or one of another grid.
        """
        return pool_cells(self.layers.cells(volume, lattice), lattice)

    def dense_logits(self, volume: Tensor, lattice: WindowLattice) -> Tensor:
        """Logits [B, sx, sy, sz, 2] of every window on volume [B, 1, X, Y, Z] in [0, 1]."""
        logits: Tensor = self.head(self.dense_features(volume, lattice))
        return logits

    def pool_crops(self, crops: Tensor) -> Tensor:
        features = self.layers(crops).flatten(2)
        return torch.cat((features.mean(dim=-1), features.amax(dim=-1)), dim=1)  # [N, 128]

    # -- scores ----------------------------------------------------------------------------------------------------

    def has_dense(self, lattice: WindowLattice) -> bool:
        """Whether the positions lie on feature cells."""
        return lattice.step % CELL == 0

    @torch.no_grad()
    def score_lattice(self, volume: Tensor, lattice: WindowLattice) -> tuple[Tensor, Tensor]:
        """f [L] and pooled features [L, 128] of all positions on volume, uint8 [X, Y, Z]: one forward if it can."""
        if not self.has_dense(lattice):
            return self.slide(volume, lattice)
        pooled = self.dense_features(volume[None, None].float() / 255, lattice).flatten(0, 3)
        return self.score_features(pooled), pooled

    def score_windows(self, volumes: Tensor, case: Tensor, corners: Tensor, window: Triple) -> tuple[Tensor, Tensor]:
        """f [N] and features [N, 128] of the windows at `corners` of volumes[case], as `PresenceNet.score_windows`.

        Raises:
            ValueError: a window that is no multiple of 4 voxels.
        """
        if any(w % CELL for w in window):
            raise ValueError(f"window {window} must have a multiple of {CELL} voxels along each axis")
        return super().score_windows(volumes, case, corners, window)

    def score_features(self, features: Tensor) -> Tensor:
        head = {name: value.double() for name, value in self.head.named_parameters()}
        logits: Tensor = functional_call(self.head, head, features.double())
        return logits.softmax(dim=-1)[:, 1].float()


class PaperPresenceNet(PresenceNet):
    """The paper's network: four convolutions and five linear layers on each window, enlarged to `input_size`.

    Layers (docs/spars.md, Method 6): Conv-BN-ReLU 1→8, 8→16, 16→32, 32→64, all 3x3x3 and unpadded, the last three with
    stride 2, a 2x pool after each of the first three; linear 1600, 800, 400, 128, 2. A window is resized by nearest
    neighbour (`nearest_index`), in training as in use. On CUDA the convolutions run in bfloat16 in training.

    Args:
        hu_window: HU that the bytes 0 and 255 of a volume stand for.
        window_size: window in voxels that it is trained for; it may score others.
        input_size: voxels (x, y, z) to which a window is resized.

    Raises:
        ValueError: an input_size of which the convolutions leave nothing.
    """

    num_features = 128
    halo = 0

    def __init__(
        self, hu_window: tuple[float, float], window_size: Triple, input_size: Triple = PAPER_INPUT_SIZE
    ) -> None:
        super().__init__(hu_window, window_size)
        check_input_size("input_size", input_size)
        self.input_size = input_size
        self.conv1, self.bn1 = conv(1, 8), nn.BatchNorm3d(8)
        self.conv2, self.bn2 = conv(8, 16, stride=2), nn.BatchNorm3d(16)
        self.conv3, self.bn3 = conv(16, 32, stride=2), nn.BatchNorm3d(32)
        self.conv4, self.bn4 = conv(32, 64, stride=2), nn.BatchNorm3d(64)
        self.fc1 = nn.Linear(64 * prod(_cells_left(n) for n in input_size), 1600)
        self.fc2, self.fc3 = nn.Linear(1600, 800), nn.Linear(800, 400)
        self.fc4, self.fc5 = nn.Linear(400, self.num_features), nn.Linear(self.num_features, 2)

    def forward(self, crops: Tensor) -> Tensor:
        logits: Tensor = self.fc5(self._hidden(self._trunk(crops)))
        return logits

    def pool_crops(self, crops: Tensor) -> Tensor:
        return self._hidden(self._trunk(crops).double()).float()

    def score_features(self, features: Tensor) -> Tensor:
        return _linear(self.fc5, features.double()).softmax(dim=-1)[:, 1].float()

    def crop_voxels(self, window: Triple) -> int:
        return prod(self.input_size)

    def digest(self) -> str:
        """SHA-256 of architecture and weights, and of `input_size`, which no weight shows."""
        return hashlib.sha256(f"{super().digest()} {self.input_size}".encode()).hexdigest()

    def _trunk(self, x: Tensor) -> Tensor:
        """What the convolutions leave of crops [N, 1, *window] in [0, 1]: float32 [N, inputs of fc1]."""
        for axis, n in enumerate(self.input_size, start=2):
            if x.shape[axis] != n:
                x = x.index_select(axis, nearest_index(x.shape[axis], n, x.device))
        with bfloat16_on_cuda(x.device, enabled=self.training):
            for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
                x = F.relu(F.max_pool3d(norm(conv(x)), 2))  # ReLU and max commute; after the pool there is less
            x = F.relu(self.bn4(self.conv4(x)))
        return x.float().flatten(1)

    def _hidden(self, x: Tensor) -> Tensor:
        """What fc5 reads, [N, 128], in the dtype of x."""
        for layer in (self.fc1, self.fc2, self.fc3, self.fc4):
            x = F.relu(_linear(layer, x))
        return x


def check_input_size(name: str, input_size: Triple) -> None:
    """Check that the convolutions of `PaperPresenceNet` leave something of windows that are resized to `input_size`.

    Raises:
        ValueError: names `name`, its value and the least number of voxels.
    """
    check_range(name, input_size, (1, LARGEST_WINDOW))
    for axis, n in zip("xyz", input_size, strict=True):
        if not _cells_left(n):
            least = next(n for n in range(LARGEST_WINDOW) if _cells_left(n))
            raise ValueError(
                f"{name} is {input_size} but the convolutions of PaperPresenceNet leave nothing of {n} voxels along "
                f"{axis}; give at least {least}"
            )


def _cells_left(n: int) -> int:
    """Cells that the convolutions of `PaperPresenceNet` leave of n voxels: 1 of 108, 3 of 256."""
    n = (n - 2) // 2
    for pool in (2, 2, 1):
        n = ((n - 3) // 2 + 1) // pool
    return max(n, 0)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in the dtype of x."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def gather_crops(volumes: Tensor, case: Tensor, corners: Tensor, window: Triple, halo: int = HALO) -> Tensor:
    """Crops with halo in [0, 1], float32 [N, 1, *(window + 2 halo)]; 0 outside the volume.

    volumes: uint8 [C, X, Y, Z]; case: int64 [N]; corners: int64 [N, 3], lower corners in voxels.
    """
    index, inside = [], []
    for axis, (full, size) in enumerate(zip(volumes.shape[1:], window, strict=True)):
        at = corners[:, axis, None] + torch.arange(-halo, size + halo, device=corners.device)  # [N, size + 2 halo]
        shape = [len(at), 1, 1, 1]
        shape[axis + 1] = -1
        index.append(at.clamp(0, full - 1).view(shape))
        inside.append(((at >= 0) & (at < full)).view(shape))
    crops = volumes[case.view(-1, 1, 1, 1), index[0], index[1], index[2]]
    return (crops * (inside[0] & inside[1] & inside[2]))[:, None].float() / 255


# -- files ---------------------------------------------------------------------------------------------------------


def supervision_of(checkpoint: str | Path = "packaged") -> str:
    """Labels that the classifier in the file `checkpoint` learned from: window, slab or patient; "unknown" where the
    file does not say.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or no safetensors file.
    """
    metadata = load_weights(PACKAGED if checkpoint == "packaged" else checkpoint)[1]
    training = parse_json(metadata.get("training", "{}"), "training")
    level = training.get("supervision") if isinstance(training, dict) else None
    return level if isinstance(level, str) else "unknown"


def load_presence(checkpoint: str | Path = "packaged") -> PresenceNet:
    """The classifier in the file `checkpoint`, frozen, in eval mode, on the CPU; "packaged" was trained on phantoms.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no safetensors file, or holds another network.
    """
    path = PACKAGED if checkpoint == "packaged" else checkpoint
    net: PresenceNet = load_network(path, (DensePresenceNet, PaperPresenceNet))
    return net.requires_grad_(False)
