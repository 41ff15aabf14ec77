"""One attack on all images of an evaluation, batch by batch, as a result, which is kept on disk once it is whole."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..attacks.budget import Bounds, Epsilon, as_bounds, image_range
from ..attacks.named import NamedAttack
from ..attacks.victim import check_logits
from ..common.overlap import class_counts
from .robustness_results import AttackResult, file_name, read_attack_results

SLACK = 1e-4
"""How far, as a share of the radius and of the range, rounding may take an image out of its ball."""


class Needs(NamedTuple):
    """What only some attacks need; see `NamedAttack`."""

    feature_layer: str | None
    class_counts: Tensor
    surrogates: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Evaluation:
    """A model, labelled images and all settings that attacks share."""

    model: nn.Module
    name: str
    pairs: list[tuple[Tensor, Tensor]]
    """Image [C, *spatial] and labels [*spatial]."""
    ids: list[str]
    classes: list[str]
    device: torch.device
    batch_size: int
    bounds: Bounds | Literal["image"]
    ignore_index: int
    needs: Needs
    seed: int
    out: Path | None

    def depends(self) -> dict[str, Any]:
        """What the numbers of every attack depend on."""
        given = self.bounds if isinstance(self.bounds, str) else [torch.as_tensor(end).tolist() for end in self.bounds]
        return {
            "weights": digest(self.model.state_dict().values()),
            "data": digest(part for pair in self.pairs for part in pair),
            "bounds": given,
            "ignore_index": self.ignore_index,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def result(
        self, attack: NamedAttack, eps: Epsilon | None, depends: dict[str, Any], reach: Callable[[int], None]
    ) -> AttackResult:
        """The result of an attack, from `out` where it lies there; `reach` is called with the number of images done.

        Raises:
            ValueError: a result of other data, weights or settings; an attack that leaves its ball; logits that are not
                finite.
        """
        depends = depends | self._needed(attack)
        given = "0" if eps is None else eps.given
        path = None if self.out is None else self.out / file_name(self.name, attack.name, given)
        if path is not None and path.exists():
            (kept,) = read_attack_results(path)
            _check_same(kept, depends, path)
            return kept
        result = self._made(attack, eps, depends, reach)
        if path is not None:
            result.write(path)
        return result

    def _made(
        self, attack: NamedAttack, eps: Epsilon | None, depends: dict[str, Any], reach: Callable[[int], None]
    ) -> AttackResult:
        radius = 0.0 if eps is None else eps.value
        both: list[list[int]] = []
        predicted: list[list[int]] = []
        true: list[list[int]] = []
        farthest: list[float] = []
        zeros: list[float] = []
        forwards, backwards, seconds = 0, 0, 0.0
        for first, images, labels in batches(self.pairs, self.batch_size):
            x, y = images.to(self.device), labels.to(self.device)
            low, high = as_bounds(x, image_range(x) if isinstance(self.bounds, str) else self.bounds)
            valid = (y != self.ignore_index).flatten(1).any(dim=1)
            with passes(self.model, valid) as seen:
                start = time.perf_counter()
                found = attack(
                    self.model,
                    x,
                    y,
                    eps=eps or Epsilon.parse(1.0),
                    bounds=(low, high),
                    ignore_index=self.ignore_index,
                    generator=torch.Generator().manual_seed(self.seed + first),
                    feature_layer=self.needs.feature_layer,
                    class_counts=self.needs.class_counts,
                    surrogates=self.needs.surrogates,
                )
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                seconds += time.perf_counter() - start
            forwards, backwards = forwards + seen.forwards, backwards + seen.backwards
            farthest += _distances(attack.name, found, x, low, high, radius)
            predicted_classes = logits_of(self.model, found).max(dim=1).indices  # much faster than argmax
            counts = class_counts(predicted_classes, y, len(self.classes), self.ignore_index)
            both += counts.both.tolist()
            predicted += counts.predicted.tolist()
            true += counts.true.tolist()
            if seen.zeros is not None and bool(valid.any()):
                zeros += [float(seen.zeros)] * int(valid.sum())
            reach(first + len(x))
        return AttackResult(
            model=self.name,
            attack=attack.name,
            title=attack.title,
            kind=attack.kind,
            family=attack.family,
            steps=attack.steps,
            eps="0" if eps is None else eps.given,
            radius=radius,
            ids=self.ids,
            classes=self.classes,
            both=both,
            predicted=predicted,
            true=true,
            farthest=farthest,
            forwards=forwards / len(self.pairs),
            backwards=backwards / len(self.pairs),
            seconds=seconds,
            zero_gradient=sum(zeros) / len(zeros) if zeros else None,
            depends=depends,
        )

    def _needed(self, attack: NamedAttack) -> dict[str, Any]:
        """What the attack needs, as its result keeps it."""
        texts: dict[str, Any] = {
            "feature_layer": self.needs.feature_layer,
            "class_counts": self.needs.class_counts.tolist(),
            "surrogates": [digest(one.state_dict().values()) for one in self.needs.surrogates],
        }
        return {need: texts[need] for need in attack.needs if need in texts}


class Passes:
    """Images that went through a model, images whose gradient came back, and what the first gradient was."""

    def __init__(self, valid: Tensor) -> None:
        self.valid = valid
        self.forwards = self.backwards = 0
        self.zeros: Tensor | None = None
        """Share of values of the first gradient of the valid images that are exactly 0."""

    def gradient(self, gradient: Tensor) -> None:
        """Called with each gradient of the input."""
        self.backwards += len(gradient)
        if self.zeros is None and len(gradient) == len(self.valid):
            zero = (gradient == 0).flatten(1).double().mean(dim=1)
            self.zeros = (zero * self.valid).sum() / self.valid.sum()


@contextmanager
def passes(model: nn.Module, valid: Tensor) -> Iterator[Passes]:
    """Count the passes of a model within the block; its modules keep their names. valid: which images have labels."""
    seen = Passes(valid)

    def before(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.forwards += len(inputs[0])
        if inputs[0].requires_grad:
            inputs[0].register_hook(seen.gradient)

    handle = model.register_forward_pre_hook(before)
    try:
        yield seen
    finally:
        handle.remove()


def batches(pairs: Sequence[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number of the first image of each batch, its images and labels; neighbours of one size share a batch."""
    first = 0
    while first < len(pairs):
        last = first + 1
        while last < min(first + size, len(pairs)) and pairs[last][0].shape == pairs[first][0].shape:
            last += 1
        images, labels = zip(*pairs[first:last], strict=True)
        yield first, torch.stack(images), torch.stack(labels)
        first = last


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [B, K, *spatial] of images [B, C, *spatial].

    Raises:
        ValueError: something else, or logits that are not finite.
    """
    logits: Tensor = model(images)
    check_logits(logits, images)
    if not bool(logits.isfinite().all()):
        raise ValueError("the model's logits have NaN or infinity; look for it in its weights, or for a low precision")
    return logits


def digest(tensors: Iterable[Any]) -> str:
    """SHA-256 of types, shapes and values, in hexadecimal."""
    found = hashlib.sha256()
    for tensor in tensors:
        values = torch.as_tensor(tensor).detach().cpu().contiguous()
        found.update(f"{values.dtype} {[*values.shape]}".encode())
        found.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _distances(attack: str, found: Tensor, images: Tensor, low: Tensor, high: Tensor, radius: float) -> list[float]:
    """Largest change of each image as a share of the range.

    Raises:
        ValueError: an image of another shape, or outside of its ball or bounds.
    """
    if found.shape != images.shape:
        raise ValueError(f"attack {attack!r} gives {[*found.shape]} for images {[*images.shape]}")
    width = (high - low).expand_as(images)
    share = torch.where(width > 0, (found - images).abs() / width.clamp(min=torch.finfo(width.dtype).tiny), 0.0)
    farthest, slack = share.flatten(1).amax(dim=1), SLACK * (high - low)
    inside = ((found >= low - slack) & (found <= high + slack)).all()
    if not bool(inside & (farthest <= radius + SLACK).all()):
        raise ValueError(
            f"attack {attack!r} leaves its ball or the bounds: it changes values by {float(farthest.max()):.6g} of the "
            f"range, and eps is {radius:.6g}"
        )
    return [float(one) for one in farthest.tolist()]


def _check_same(kept: AttackResult, depends: dict[str, Any], path: Path) -> None:
    different = [key for key in {**kept.depends, **depends} if kept.depends.get(key) != depends.get(key)]
    if different:
        raise ValueError(
            f"{path} was made with other {' and '.join(different)}; remove it, or give another folder as `out`, or "
            "the model another name"
        )
