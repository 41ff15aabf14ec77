"""What masking an image does to a classifier (docs/apga.md, Method 13): pure functions of tensors.

Symbols: z = logits [N, K]; y = labels int64 [N]; x_adv, x_aid = image with the mask erased, and with nothing but the
mask; d = doubt of the classifier in y, higher where it is worse; a = mask [N, 1, h, w] in [0, 1], 1 where selected.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["loss", "prob", "logit"]
Mode = Literal["adversarial", "cooperative", "contrast"]
VIEWS: dict[Mode, tuple[str, ...]] = {
    "adversarial": ("adv",),
    "cooperative": ("aid",),
    "contrast": ("adv", "aid"),
}
"""The views of an image, beside the plain one, whose doubts a mode compares."""


def doubt(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """d float32 [N]; loss: cross-entropy in nats; prob: -P(y); logit: -(z_y - the highest other logit)."""
    logits = logits.float()
    if kind == "loss":
        return F.cross_entropy(logits, labels, reduction="none")
    of_label = labels[:, None]
    if kind == "prob":
        return -logits.softmax(dim=1).gather(1, of_label)[:, 0]
    others = logits.scatter(1, of_label, -torch.inf).amax(dim=1)
    return others - logits.gather(1, of_label)[:, 0]


def gap(doubts: Mapping[str, Tensor], mode: Mode) -> Tensor:
    """What the mask is worth, [N].

    adversarial: d(x_adv) - d(x); cooperative: d(x) - d(x_aid); contrast: d(x_adv) - d(x_aid).

    doubts: d of the views "plain", "adv" and "aid", each [N]; those of `VIEWS[mode]` and "plain" are read.
    """
    worse = doubts["plain"] if mode == "cooperative" else doubts["adv"]
    return worse - (doubts["plain"] if mode == "adversarial" else doubts["aid"])


def area(masks: Tensor) -> Tensor:
    """Mean of a over its cells, float32 [N]."""
    return masks.float().mean(dim=(1, 2, 3))


def total_variation(masks: Tensor) -> Tensor:
    """Sum of |differences| of cells that lie beside or below each other, over the number of cells: float32 [N]."""
    masks = masks.float()
    down, across = masks.diff(dim=2).abs().sum(dim=(1, 2, 3)), masks.diff(dim=3).abs().sum(dim=(1, 2, 3))
    return (down + across) / masks[0].numel()


def reward_terms(worth: Tensor, masks: Tensor, clip: float | None) -> dict[str, Tensor]:
    """Terms of the reward without their weights, by name, each float32 [N]: the gap, cut at ± clip; less the area; less
    the total variation.

    worth: [N], of `gap`; masks: cells [N, 1, h, w]; clip: None cuts nothing.
    """
    cut = worth if clip is None else worth.clamp(-clip, clip)
    return {"gap": cut, "area": -area(masks), "tv": -total_variation(masks)}
