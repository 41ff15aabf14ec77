"""One pool of 2-D images for every paper: resident as bytes, with labels where they are known.

Row n of every field belongs to the same image. Axes are (y, x): rows grow downwards, columns to the right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .sample import Origin

IGNORED = 255
"""Label of pixels that belong to no class and count nowhere: void, borders, padding."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue of ImageNet's photographs in [0, 1], by which networks trained on them normalise."""


class KnownLabels(NamedTuple):
    """Labels of the images of a pool that have some."""

    rows: list[int]
    """Rows of these images in the pool, K of them, at least 1, ascending."""
    labels: Tensor
    """uint8 [K, H, W], class numbers."""


@dataclass(frozen=True)
class ImagePool:
    """N images of one size, N at least 1: echocardiograms, radiographs, scenes, slices of a CT.

    Raises:
        ValueError: fields of another type or shape than stated, or of different lengths.

    >>> from segarena.datasets.echo.images import EchoDataConfig, PhantomPatients, load_echo
    >>> pool = load_echo(EchoDataConfig(size=32, phantom_patients=PhantomPatients(test=1)), "test")
    >>> pair = pool.take([3, 0])
    >>> len(pair), pair.tags["instant"], pair.groups
    (2, ['ES', 'ED'], ['phantom_a_200000', 'phantom_a_200000'])
    >>> import torch
    >>> pair.at(torch.tensor([1])).dtype, pair.at(torch.tensor([1])).shape
    (torch.float32, torch.Size([1, 1, 32, 32]))
    """

    images: Tensor
    """uint8 [N, C, H, W]; 255 stands for 1.0."""
    labels: Tensor | None
    """uint8 [N, H, W], class numbers, and `IGNORED` in photographs; None unless they are known of every image."""
    ids: list[str]
    """Name of each image, such as patient0001_2CH_ED."""
    groups: list[str]
    """Patient (or scene) of each image: images of one group never lie in two splits."""
    tags: dict[str, list[str]]
    """Further facts of each image by name, such as view and instant of an echocardiogram."""
    spacing_mm: Tensor
    """float64 [N, 2], (y, x), of the pixels of `images`; NaN where it is not known (photographs). On the CPU."""
    classes: tuple[str, ...]
    """Name of each label value; 0 is the background."""
    origin: Origin
    some_labels: KnownLabels | None = None
    """Labels of some images, where `labels` is None because others have none; see `known_labels`."""

    def __post_init__(self) -> None:
        images, labels, spacing = self.images, self.labels, self.spacing_mm
        if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
            shape = tuple(images.shape)
            raise ValueError(f"images are {images.dtype} {shape} but must be uint8 [N, C, H, W], N at least 1")
        number, shape = len(images), (len(images), *images.shape[2:])
        if labels is not None and (labels.dtype != torch.uint8 or labels.shape != shape):
            raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)} but must be uint8 {shape}")
        if labels is not None and labels.device != images.device:
            raise ValueError(f"labels lie on {labels.device} but images on {images.device}; use ImagePool.to")
        if self.some_labels is not None:
            self._check_some(*self.some_labels)
        for name, values in {"ids": self.ids, "groups": self.groups, **self.tags}.items():
            if len(values) != number:
                raise ValueError(f"{name} has {len(values)} entries but there are {number} images; give one for each")
        if spacing.dtype != torch.float64 or spacing.shape != (number, 2):
            given = f"{spacing.dtype} {tuple(spacing.shape)}"
            raise ValueError(f"spacing_mm is {given} but must be float64 {(number, 2)}, (y, x) of each image")
        if bool(((spacing <= 0) | spacing.isinf()).any()):
            raise ValueError("spacing_mm has lengths that are not positive; write NaN where a spacing is not known")

    def _check_some(self, rows: list[int], labels: Tensor) -> None:
        shape = (len(rows), *self.images.shape[2:])
        if self.labels is not None or not 0 < len(rows) < len(self.images):
            raise ValueError(f"some_labels names {len(rows)} of {len(self.images)} images; of all of them give labels")
        if rows != sorted(set(rows)) or rows[0] < 0 or rows[-1] >= len(self.images):
            raise ValueError(f"rows of some_labels are {rows[:8]} but must ascend and lie in 0..{len(self.images) - 1}")
        if labels.dtype != torch.uint8 or labels.shape != shape or labels.device != self.images.device:
            given = f"{labels.dtype} {tuple(labels.shape)} on {labels.device}"
            raise ValueError(f"some_labels are {given} but must be uint8 {shape} on {self.images.device}")

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: Tensor) -> Tensor:
        """Images float32 [K, C, H, W] in [0, 1] of the rows int64 [K], on the device of `images`."""
        return self.images[rows].float() / 255

    def checked(self, *, channels: int, classes: int, ignored: bool = False) -> "ImagePool":
        """The pool itself, if its images have so many channels and its labels, where there are any, so many classes.

        ignored: labels may be `IGNORED` too.

        Raises:
            ValueError: another number of channels, or a label outside 0..classes-1.
        """
        if (found := self.images.shape[1]) != channels:
            raise ValueError(f"images have {found} channels but {channels} is needed; convert them first")
        known = self.some_labels.labels if self.some_labels else self.labels
        if known is not None and ignored:
            known = torch.where(known == IGNORED, 0, known)
        if known is not None and (highest := int(known.max())) >= classes:
            raise ValueError(f"labels reach {highest} but must be 0..{classes - 1}; map or remove the others")
        return self

    @property
    def known_labels(self) -> KnownLabels | None:
        """Labels of all images whose labels are known, and their rows; None where there is no such image."""
        return self.some_labels if self.labels is None else KnownLabels(list(range(len(self))), self.labels)

    @property
    def unlabelled(self) -> list[str]:
        """Ids of the images whose labels are not known."""
        known = set(self.known_labels.rows) if self.known_labels else set()
        return [name for row, name in enumerate(self.ids) if row not in known]

    def without_labels(self) -> "ImagePool":
        """The same images, as if no label was known."""
        return replace(self, labels=None, some_labels=None)

    def take(self, rows: Sequence[int]) -> "ImagePool":
        """These rows only, in this order."""
        index = torch.tensor(rows, dtype=torch.int64)
        there = index.to(self.images.device)
        labels = None if self.labels is None else self.labels[there]
        some = None
        if self.some_labels is not None:
            place = {row: k for k, row in enumerate(self.some_labels.rows)}
            found = [n for n, row in enumerate(rows) if row in place]
            chosen = self.some_labels.labels[[place[rows[n]] for n in found]]
            labels, some = _sorted_out(found, chosen, len(rows))
        return replace(
            self,
            images=self.images[there],
            labels=labels,
            some_labels=some,
            ids=[self.ids[row] for row in rows],
            groups=[self.groups[row] for row in rows],
            tags={name: [values[row] for row in rows] for name, values in self.tags.items()},
            spacing_mm=self.spacing_mm[index],
        )

    def to(self, device: torch.device) -> "ImagePool":
        """Images and labels on `device`."""
        some = self.some_labels
        return replace(
            self,
            images=self.images.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            some_labels=None if some is None else some._replace(labels=some.labels.to(device)),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["ImagePool"]) -> "ImagePool":
        """All images of the parts in their order, with the labels that the parts have.

        Raises:
            ValueError: no parts, or parts of different size, origin, tags or classes.
        """
        kinds = {(part.images.shape[1:], part.origin, tuple(sorted(part.tags)), part.classes) for part in parts}
        if len(kinds) != 1:
            raise ValueError(
                f"pools of one size, origin, set of tags and classes can be joined, got {sorted(map(str, kinds))}"
            )
        rows, known, first = list[int](), list[Tensor](), 0
        for part in parts:
            if of_part := part.known_labels:
                rows += [first + row for row in of_part.rows]
                known.append(of_part.labels)
            first += len(part)
        labels, some = _sorted_out(rows, torch.cat(known), first) if known else (None, None)
        return replace(
            parts[0],
            images=torch.cat([part.images for part in parts]),
            labels=labels,
            some_labels=some,
            ids=[x for part in parts for x in part.ids],
            groups=[x for part in parts for x in part.groups],
            tags={name: [x for part in parts for x in part.tags[name]] for name in parts[0].tags},
            spacing_mm=torch.cat([part.spacing_mm for part in parts]),
        )


def _sorted_out(rows: list[int], labels: Tensor, number: int) -> tuple[Tensor | None, KnownLabels | None]:
    """`labels` and `some_labels` of a pool of `number` images of which these rows have these labels."""
    if len(rows) == number:
        return labels, None
    return None, KnownLabels(rows, labels) if rows else None
