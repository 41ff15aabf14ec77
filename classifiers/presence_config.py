"""How the presence classifier is trained: its configuration (docs/spars.md, Method 7)."""

import math
from dataclasses import dataclass
from typing import Literal

from ..common.checks import AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, SHARE, check
from ..datasets.liver.lattice import Triple
from .presence import PAPER_INPUT_SIZE, check_input_size

Supervision = Literal["window", "slab", "patient"]


@dataclass(frozen=True)
class PresenceTrainingConfig:
    """Training of the presence classifier; the defaults are ours (docs/spars.md, Method 7).

    Raises:
        ValueError: a value outside its range, or values that do not go together.
    """

    network: Literal["dense", "paper"] = "dense"
    """dense: ours, one forward scores all windows of a volume. paper: the paper's, on one window at a time; needs
    batch=windows."""
    input_size: Triple = PAPER_INPUT_SIZE
    """Voxels (x, y, z), each at least 108, to which network=paper resizes a window (nearest)."""
    supervision: Supervision = "window"
    """Labels that are learned from: does a window hold tumour; does a slab, all windows of one height; does the
    patient, all windows of the volume. slab and patient need batch=dense."""
    pooling: Literal["logsumexp", "max", "topk"] = "logsumexp"
    """Logit of a slab or patient from the logits of its windows: soft maximum, maximum, or mean of the highest."""
    sharpness: float = 5.0
    """ρ of pooling=logsumexp: towards the mean at 0, towards the maximum at infinity."""
    topk: int = 16
    """Number of windows in the mean of pooling=topk."""
    batch: Literal["windows", "dense"] = "dense"
    """windows: crops at random voxels, half of them with tumour. dense: all lattice windows of whole volumes, at a
    random phase, the two classes weighted to one half each."""
    windows_per_batch: int = 64
    """Windows per optimiser step with batch=windows (paper's program: 40)."""
    patients_per_batch: int | None = None
    """Cases per optimiser step with batch=windows, drawn with replacement, each with equally many windows (paper's
    program: 4); null: each window is of a case of its own."""
    volumes_per_batch: int = 4
    """Volumes per optimiser step with batch=dense; with one, BatchNorm learns statistics that no other volume has."""
    batches_per_epoch: int = 64
    """Optimiser steps per epoch (paper's program: 6)."""
    epochs: int = 32
    """Number of epochs (paper's program: 32); each ends with a validation."""
    learning_rate: float = 1e-3
    """AdamW learning rate at the start (paper's program: Adam, 1e-3)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate: falls to 0 along a cosine, or stays (paper's program)."""
    weight_decay: float = 1e-4
    """AdamW weight decay; 0 is Adam (paper's program)."""
    min_tumour_voxels: int = 1
    """Fewest tumour voxels that make a window, slab or patient positive."""
    flip_probability: float = 0.5
    """Probability of a flip along each axis, 0 to 1 (paper's program: no flips)."""
    hu_shift: float = 10.0
    """Largest random shift of the intensities, in HU, to both sides (paper's program: 0)."""
    hu_scale: float = 0.05
    """Largest random relative change of the intensities, to both sides (paper's program: 0)."""
    gamma: float = 0.0
    """Largest random bend of the grey values: g in [0, 1] becomes g^c, c from 1 / (1 + gamma) to 1 + gamma."""
    bias_hu: float = 0.0
    """Largest random shading in HU: a smooth field that is added, of four knots along each axis."""
    noise_hu: float = 0.0
    """Largest random standard deviation of added noise, in HU."""
    validation_windows: int = 512
    """Windows of the fixed validation set, half of them with tumour (paper's program: 160, drawn anew
    each epoch)."""

    def __post_init__(self) -> None:
        least_two = (2, math.inf)  # one window of each label
        check(self, "presence.", windows_per_batch=least_two, validation_windows=least_two)
        check(self, "presence.", volumes_per_batch=AT_LEAST_1, batches_per_epoch=AT_LEAST_1, epochs=AT_LEAST_1)
        check(self, "presence.", learning_rate=POSITIVE, weight_decay=AT_LEAST_0, min_tumour_voxels=AT_LEAST_1)
        check(self, "presence.", flip_probability=SHARE, hu_shift=AT_LEAST_0, hu_scale=(0, BELOW_1))
        check(self, "presence.", gamma=AT_LEAST_0, bias_hu=AT_LEAST_0, noise_hu=AT_LEAST_0)
        check(self, "presence.", patients_per_batch=AT_LEAST_1, sharpness=POSITIVE, topk=AT_LEAST_1)
        check_input_size("presence.input_size", self.input_size)
        if self.network == "paper" and self.batch == "dense":
            raise ValueError(
                "presence.network is 'paper' but presence.batch is 'dense', which needs a forward of whole volumes; "
                "use --presence.batch windows"
            )
        if self.supervision != "window" and self.batch == "windows":
            raise ValueError(
                f"presence.supervision is {self.supervision!r} but presence.batch is 'windows', and a bag is all "
                f"windows of a slab or volume; use --presence.batch dense"
            )
        if self.patients_per_batch is not None and self.windows_per_batch % (2 * self.patients_per_batch):
            raise ValueError(
                f"presence.windows_per_batch is {self.windows_per_batch} but must be a multiple of "
                f"{2 * self.patients_per_batch}: two labels of each of presence.patients_per_batch cases"
            )
