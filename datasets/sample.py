"""The one sample type that every dataset and phantom yields, and how samples that cannot be loaded are left out."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be loaded, and why."""

    id: str
    reason: str


class HasId(Protocol):
    """Source of a sample, with the sample's id: files or a number."""

    @property
    def id(self) -> str: ...


Source = TypeVar("Source", bound=HasId)
Loaded = TypeVar("Loaded")


def load_each(
    sources: Iterable[Source], load: Callable[[Source], Loaded], on_bad: Callable[[BadSample], object] | None
) -> Iterator[tuple[Source, Loaded]]:
    """Each source with what `load` makes of it, one at a time.

    on_bad: None: a bad source raises. Otherwise it is logged, handed to `on_bad` (`bad.append`, say) and left out.

    Raises:
        FileNotFoundError, ValueError: what `load` raises of a bad source, without `on_bad`.
    """
    for source in sources:
        try:
            loaded = load(source)
        except (FileNotFoundError, ValueError) as error:
            if on_bad is None:
                raise
            log.warning("skipping %s: %s", source.id, error)
            on_bad(BadSample(source.id, str(error)))
        else:
            yield source, loaded
