"""The one sample type that every dataset and phantom yields."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

Origin = Literal["real", "implanted", "phantom"]
"""Where a sample comes from: as recorded, recorded with lesions put in, or procedural. Reports name it."""


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it."""

    id: str
    image: Tensor
    """float32 [C, *spatial], in the unit of the modality (CT: HU)."""
    label: Tensor | None = None
    """uint8 [*spatial], class numbers, or None where no truth is known."""
    spacing_mm: tuple[float, ...] = ()
    """Size of a voxel along each spatial axis."""
    affine: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    """Voxel index to patient coordinates in mm (RAS+)."""
    origin: Origin = "real"
