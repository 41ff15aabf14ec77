"""One pool of 2-D images for every paper: resident as bytes, with labels where they are known.

Row n of every field belongs to the same image. Axes are (y, x): rows grow downwards, columns to the right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .sample import Origin


@dataclass(frozen=True)
class ImagePool:
    """N images of one size."""

    images: Tensor
    """uint8 [N, C, H, W]; 255 stands for 1.0."""
    labels: Tensor | None
    """uint8 [N, H, W], class numbers, or None where no truth is known."""
    ids: list[str]
    """Name of each image, such as patient0001_2CH_ED."""
    groups: list[str]
    """Patient (or scene) of each image: images of one group never lie in two splits."""
    tags: dict[str, list[str]]
    """What else is known of each image, by name: view and instant of an echocardiogram, say."""
    spacing_mm: Tensor
    """float64 [N, 2], (y, x), of the pixels of `images`."""
    classes: tuple[str, ...]
    """Name of each label value; 0 is the background."""
    origin: Origin

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: Tensor) -> Tensor:
        """Images float32 [K, C, H, W] in [0, 1] of the rows int64 [K], on the device of `images`."""
        return self.images[rows].float() / 255

    def take(self, rows: Sequence[int]) -> "ImagePool":
        """These rows only, in this order."""
        index = torch.tensor(rows, dtype=torch.int64)
        there = index.to(self.images.device)
        return replace(
            self,
            images=self.images[there],
            labels=None if self.labels is None else self.labels[there],
            ids=[self.ids[row] for row in rows],
            groups=[self.groups[row] for row in rows],
            tags={name: [values[row] for row in rows] for name, values in self.tags.items()},
            spacing_mm=self.spacing_mm[index],
        )

    def to(self, device: torch.device) -> "ImagePool":
        """Images and labels on `device`."""
        return replace(
            self, images=self.images.to(device), labels=None if self.labels is None else self.labels.to(device)
        )

    @classmethod
    def concatenate(cls, parts: Sequence["ImagePool"]) -> "ImagePool":
        """All images of the parts, of one size, origin, set of tags and classes; labelled if all parts are."""
        labels = [part.labels for part in parts if part.labels is not None]
        return replace(
            parts[0],
            images=torch.cat([part.images for part in parts]),
            labels=torch.cat(labels) if len(labels) == len(parts) else None,
            ids=[x for part in parts for x in part.ids],
            groups=[x for part in parts for x in part.groups],
            tags={name: [x for part in parts for x in part.tags[name]] for name in parts[0].tags},
            spacing_mm=torch.cat([part.spacing_mm for part in parts]),
        )
