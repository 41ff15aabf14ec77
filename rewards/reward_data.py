"""Triplets (image, good mask, bad mask) that a policy makes out of unlabelled images (docs/rl4seg.md, Method 7).

Symbols: x = image, a = argmax mask of the policy, a_s = sampled mask, c = g(a) = corrected mask, (a_ref, a_bad) = good
and bad mask; e = 1[a_bad = a_ref] is what the reward network learns. An image whose mask is anatomically valid and like
its correction is gold: its mask is perturbed. Of the others, those with a valid correction give (c, a_s).

One noisy copy of the policy serves a whole batch. All randomness comes from generators seeded by (seed, iteration,
batch, draw), so that the same call gives the same triplets, whatever ran before.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from ..common.checkpoints import load_weights, save_weights
from ..common.checks import AT_LEAST_1, BELOW_1, POSITIVE, SHARE, check
from ..common.device import bfloat16_on_cuda
from ..common.overlap import class_dice
from ..datasets.echo.images import BACKGROUND, LV, MYO
from ..datasets.images import ImagePool
from ..segmenters.inference import labels_of, logits_of
from ..segmenters.norms import modes_kept

KINDS = ("swap", "weights", "contrast", "noise", "correction", "identity", "sampled", "argmax", "hard")
"""Origins of a bad mask; `Triplets.kind` is an index into them."""
SHARES = (0.81, 0.09, 0.10)
"""Shares of the patients in training, validation and test."""
ADAPTIVE_DICE = (0.5, 0.98)
"""Adaptive strength: range of the Dice between bad and good mask."""
ADAPTIVE_SCALES = (1.0, 2.0, 0.5, 4.0, 0.25, 8.0, 16.0)
"""Adaptive strength: multiples of the configured one, tried in this order."""

Masks = Callable[[Tensor], Tensor]
"""Masks uint8 [N, H, W] to masks uint8 [N, H, W]."""
Valid = Callable[[Tensor], Tensor]
"""Masks uint8 [N, H, W] to bool [N]."""
Perturbed = Callable[[Tensor, float], Tensor]
"""Masks uint8 [K, H, W] for the rows int64 [K] of a batch, at a multiple of the configured strength."""


@dataclass(frozen=True)
class RewardDataConfig:
    """Kinds of triplets, and strength of the perturbations (docs/rl4seg.md, Method 7 and 14).

    Raises:
        ValueError: a value outside its range.
    """

    swap: bool = True
    """Gold images: the sampled mask of a random image of the same batch (perhaps its own)."""
    model: bool = True
    """Gold images: the mask of the policy with noise on its weights."""
    image: bool = True
    """Gold images: the mask of the image with less contrast, and with noise."""
    corrections: bool = True
    """Other images: the sampled mask against the corrected mask, where that is valid."""
    weight_noise: tuple[float, ...] = (0.005, 0.01, 0.015, 0.02)
    """Standard deviations of the noise on every parameter; one triplet each."""
    contrast: tuple[float, ...] = (0.7, 0.8)
    """Factors on an image's distance from its mean; one triplet each."""
    noise: tuple[float, ...] = (0.05, 0.1)
    """Standard deviations of the noise on the image, whose range is [0, 1]; one triplet each."""
    sim_threshold: float = 0.95
    """A mask is gold above this similarity to its correction."""
    similarity: Literal["mean", "last_label"] = "mean"
    """Dice of LV and MYO averaged; or of MYO alone, as the paper's program computed by mistake."""
    identity: bool = False
    """Also every good mask against itself, of gold and of corrected images, so that "all is right" is seen (ours)."""
    sampled: bool = False
    """Gold images: also their own sampled mask, the kind of mask that PPO asks about (ours)."""
    argmax: bool = False
    """Other images: the most probable mask, by which checkpoints are chosen, against the corrected mask (ours)."""
    source_triplets: bool = False
    """Also source images, with their true mask as the good one: against the policy's most probable and sampled mask,
    its perturbations, swap and identity (ours)."""
    hard_negatives: bool = False
    """Also the policy's present mask of every image seen so far that has a gold or corrected mask, against that one,
    where they differ (ours)."""
    mix_regions: float = 0.0
    """Put each connected region in which a bad mask differs from the good one right with this probability, so that the
    place of an error says nothing about it; 0: none (ours)."""
    adaptive: bool = False
    """Scale each perturbation, image by image, until its Dice with the good mask lies in 0.5 to 0.98; leave it out
    where no scale does that (ours)."""
    batch_size: int = 32
    """Images per forward pass; swaps stay within it, and it shares the noise on weights."""

    def __post_init__(self) -> None:
        check(self, "reward_data.", weight_noise=POSITIVE, noise=POSITIVE, contrast=(0, BELOW_1))
        check(self, "reward_data.", sim_threshold=SHARE, batch_size=AT_LEAST_1)
        check(self, "reward_data.", mix_regions=(0, BELOW_1))


@dataclass(frozen=True)
class Triplets:
    """T triplets, all tensors on one device."""

    images: Tensor
    """int64 [T]: rows of the pool of images; the clean image, whatever was perturbed."""
    a_ref: Tensor
    """uint8 [T, H, W]: the good mask."""
    a_bad: Tensor
    """uint8 [T, H, W]: the bad mask."""
    kind: Tensor
    """uint8 [T]: number in `KINDS`."""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Tensor) -> "Triplets":
        """The triplets of the rows int64 [K], or where bool [T] is true."""
        return Triplets(self.images[rows], self.a_ref[rows], self.a_bad[rows], self.kind[rows])

    @classmethod
    def concatenate(cls, parts: Sequence["Triplets"]) -> "Triplets":
        """All triplets of the parts (the iterations so far, say), in this order."""
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in ("images", "a_ref", "a_bad", "kind")))

    def counts(self) -> dict[str, int]:
        """Number of triplets of each kind."""
        numbers = torch.bincount(self.kind.long(), minlength=len(KINDS)).tolist()
        return dict(zip(KINDS, numbers, strict=True))

    def split(self, patients: Sequence[str], seed: int) -> tuple["Triplets", "Triplets", "Triplets"]:
        """Training, validation and test triplets: 81, 9 and 10 per cent of the patients, none of them in two parts.

        Patients are dealt out in the order of their first triplet. What later iterations append therefore moves nobody,
        and a reward network that goes on from the last one has not learned from its validation patients. From 7
        patients on, no part is empty.

        Args:
            patients: of every image of the pool.
            seed: of the phase of the deal.
        """
        phase = torch.rand(2, generator=Generator().manual_seed(seed)).tolist()
        due = [0.0, *(0.25 + 0.25 * share for share in phase)]  # what each part is owed, in patients
        names = [patients[row] for row in self.images.tolist()]
        part_of: dict[str, int] = {}
        for number, name in enumerate(dict.fromkeys(names)):
            due = [owed + share for owed, share in zip(due, SHARES, strict=True)]
            part_of[name] = number if number < 2 else due.index(max(due))  # two patients already train and validate
            due[part_of[name]] -= 1
        parts = torch.tensor([part_of[name] for name in names], dtype=torch.int64, device=self.images.device)
        train, val, test = (self.take(parts == part) for part in range(3))
        return train, val, test

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        tensors = {name: getattr(self, name) for name in ("images", "a_ref", "a_bad", "kind")}
        save_weights(path, tensors, {"kinds": json.dumps(KINDS)})

    @classmethod
    def load(cls, path: str | Path) -> "Triplets":
        """The triplets in a file, on the CPU.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or holds no triplets.
        """
        tensors, metadata = load_weights(path)
        if metadata.get("kinds") != json.dumps(KINDS) or set(tensors) != {"images", "a_ref", "a_bad", "kind"}:
            raise ValueError(f"{str(path)!r} holds no triplets of this version; build the reward data again")
        return cls(**tensors)

    def to(self, device: torch.device) -> "Triplets":
        """The same on `device`."""
        return Triplets(*(getattr(self, name).to(device) for name in ("images", "a_ref", "a_bad", "kind")))


@dataclass(frozen=True)
class Built:
    """Triplets, gold and corrected masks of one iteration's new images."""

    triplets: Triplets
    gold_rows: Tensor
    """int64 [G]: rows of the pool whose mask is valid and like its correction."""
    gold_masks: Tensor
    """uint8 [G, H, W]: those masks."""
    corrected_rows: Tensor
    """int64 [C]: rows of the other images whose correction is valid."""
    corrected_masks: Tensor
    """uint8 [C, H, W]: the corrections."""
    stats: dict[str, int]
    """Images: n_images = n_valid + n_corrected + n_dropped. Triplets: n_triplets, and n_<kind>."""


class Draws:
    """Generators of one batch: `draw(name)` starts the same stream whenever it is called."""

    def __init__(self, device: torch.device, seed: int, iteration: int, batch: int) -> None:
        self._device, self._key = device, (seed, iteration, batch)

    def __call__(self, name: Literal["sample", "swap", "weights", "noise"], number: int = 0) -> Generator:
        key = (*self._key, ("sample", "swap", "weights", "noise").index(name), number)
        state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
        return Generator(self._device).manual_seed(state)


@torch.no_grad()
def build_reward_data(
    net: nn.Module,
    images: ImagePool,
    rows: Tensor,
    corrector: Masks,
    valid: Valid,
    config: RewardDataConfig,
    seed: int,
    iteration: int,
) -> Built:
    """Triplets and gold masks of some images.

    Args:
        net: the policy, on the device of `images`; eval mode meanwhile. Its parameters and buffers are not touched.
        images: the pool.
        rows: int64 [N], which of them.
        corrector: g.
        valid: anatomical validity.
        config: see there; source_triplets, hard_negatives and mix_regions are done in error_triplets.py.
        seed: of the run.
        iteration: of the loop: another one draws other noise.

    Raises:
        ValueError: no image.
    """
    if not len(rows):
        raise ValueError("rows is empty but reward data need at least one image")
    device = images.images.device
    rows = rows.to(device)
    batches = torch.split(torch.arange(len(rows), device=device), config.batch_size)
    draws = [Draws(device, seed, iteration, number) for number in range(len(batches))]
    with modes_kept(net):
        net.eval()
        a, a_s, partner = predicted(net, images, rows, batches, draws)
        c = corrector(a)
        gold = _judged(valid, a, similarity(a, c, config.similarity) > config.sim_threshold)
        corrected = _judged(valid, c, ~gold)

        made = [Triplets(rows[:0], a[:0], a[:0], rows[:0].byte())]

        def emit(kind: str, at: Tensor, a_ref: Tensor, a_bad: Tensor) -> None:
            made.append(Triplets(rows[at], a_ref, a_bad, torch.full_like(at, KINDS.index(kind), dtype=torch.uint8)))

        for batch, draw in zip(batches, draws, strict=True):
            at = batch[gold[batch]]
            if len(at):
                good = a[at]
                if config.swap:
                    emit("swap", at, good, a_s[partner[at]])
                for kind, kept, bad in perturbed_masks(net, images.at(rows[at]), good, config, draw):
                    emit(kind, at[kept], good[kept], bad)
                if config.identity:
                    emit("identity", at, good, good)
                if config.sampled:
                    emit("sampled", at, good, a_s[at])
            at = batch[corrected[batch]]
            if config.corrections:
                emit("correction", at, c[at], a_s[at])
            if config.identity:
                emit("identity", at, c[at], c[at])
            if config.argmax:
                emit("argmax", at, c[at], a[at])

    triplets = Triplets.concatenate(made)
    gold_at, corrected_at = gold.nonzero()[:, 0], corrected.nonzero()[:, 0]
    counts = {"n_images": len(rows), "n_valid": len(gold_at), "n_corrected": len(corrected_at)}
    counts["n_dropped"] = counts["n_images"] - counts["n_valid"] - counts["n_corrected"]
    kinds = {f"n_{kind}": number for kind, number in triplets.counts().items()}
    stats = {**counts, "n_triplets": len(triplets), **kinds}
    return Built(triplets, rows[gold_at], a[gold_at], rows[corrected_at], c[corrected_at], stats)


def similarity(a: Tensor, c: Tensor, kind: Literal["mean", "last_label"]) -> Tensor:
    """Dice [N] of masks uint8 [N, H, W]: mean of LV and MYO, or that of MYO; a class absent from both counts 1."""
    dice = class_dice(a, c, (LV, MYO))
    return dice.mean(dim=1) if kind == "mean" else dice[:, -1]


def predicted(
    net: nn.Module, images: ImagePool, rows: Tensor, batches: Sequence[Tensor], draws: Sequence[Draws]
) -> tuple[Tensor, Tensor, Tensor]:
    """a and a_s, uint8 [N, H, W], and whose sampled mask a swap takes, int64 [N]."""
    found = []
    for batch, draw in zip(batches, draws, strict=True):
        logits = logits_of(net, images.at(rows[batch]))
        partner = torch.randint(len(batch), (len(batch),), generator=draw("swap"), device=batch.device)
        found.append((labels_of(logits), labels_of(logits + gumbel(logits, draw("sample"))), batch[partner]))
    a, a_s, partners = (torch.cat(values) for values in zip(*found, strict=True))
    return a, a_s, partners


def _judged(valid: Valid, masks: Tensor, where: Tensor) -> Tensor:
    """Which masks are valid, bool [N]; only those at `where` are looked at, for it is slow."""
    found, rows = where.clone(), where.nonzero()[:, 0]
    if len(rows):
        found[rows] = valid(masks[rows]).to(found.device)
    return found


# -- perturbations -------------------------------------------------------------------------------------------------


def gumbel(like: Tensor, generator: Generator) -> Tensor:
    """Noise whose argmax with logits is a sample of their softmax; of the shape and device of `like`, float32."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device)
    return -(-uniform.clamp(min=1e-20).log()).log()


def noisy_parameters(net: nn.Module, m: float, generator: Generator) -> dict[str, Tensor]:
    """Every parameter of `net`, norms and biases too, plus m N(0, 1): new tensors, for `functional_call`."""
    return {
        name: p + m * torch.randn(p.shape, generator=generator, device=p.device) for name, p in net.named_parameters()
    }


def adjust_contrast(x: Tensor, f: float) -> Tensor:
    """clip(f x + (1 - f) mean(x), 0, 1), the mean being each image's own; x float32 [B, 1, H, W].

    TI-ST's jitter has the same formula but rounds otherwise; sharing one would change published weights.
    """
    return torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, f).clamp(0, 1)


def add_noise(x: Tensor, noise: Tensor) -> Tensor:
    """(x + noise) / max(x + noise), the maximum being each image's own; both float32 [B, 1, H, W]."""
    x = x + noise
    return x / x.amax(dim=(1, 2, 3), keepdim=True)


def perturbed_masks(
    net: nn.Module, x: Tensor, good: Tensor, config: RewardDataConfig, draw: Draws
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Kind, rows int64 [K] that are kept and their bad masks uint8 [K, H, W], for all configured perturbations.

    x: float32 [B, 1, H, W]; good: uint8 [B, H, W], for the adaptive strength. Masks without foreground are left out.
    """
    for kind, perturbed in _perturbations(net, x, config, draw):
        bad, fits = (_adapted if config.adaptive else _as_configured)(perturbed, good)
        kept = (fits & (bad != BACKGROUND).flatten(1).any(dim=1)).nonzero()[:, 0]  # waits once, not thrice
        yield kind, kept, bad[kept]


def _perturbations(net: nn.Module, x: Tensor, config: RewardDataConfig, draw: Draws) -> Iterator[tuple[str, Perturbed]]:
    """Kind, and what gives the masks of images float32 [B, 1, H, W], for all perturbations of the policy's input.

    At another scale the direction of the noise is the same.
    """

    def weights(number: int, m: float) -> Perturbed:
        def perturbed(at: Tensor, scale: float) -> Tensor:
            noisy = noisy_parameters(net, scale * m, draw("weights", number))
            with bfloat16_on_cuda(x.device):
                return labels_of(functional_call(net, noisy, (x[at],)))

        return perturbed

    def contrast(f: float) -> Perturbed:
        return lambda at, scale: labels_of(logits_of(net, adjust_contrast(x[at], max(1 - scale * (1 - f), 0.0))))

    def noise(number: int, s: float) -> Perturbed:
        drawn = torch.randn(x.shape, generator=draw("noise", number), device=x.device)
        return lambda at, scale: labels_of(logits_of(net, add_noise(x[at], scale * s * drawn[at])))

    if config.model:
        for number, m in enumerate(config.weight_noise):
            yield "weights", weights(number, m)
    if config.image:
        for f in config.contrast:
            yield "contrast", contrast(f)
        for number, s in enumerate(config.noise):
            yield "noise", noise(number, s)


def _as_configured(perturbed: Perturbed, good: Tensor) -> tuple[Tensor, Tensor]:
    """Bad masks uint8 [B, H, W] at the configured strength, and which are kept, bool [B]: all."""
    at = torch.arange(len(good), device=good.device)
    return perturbed(at, 1.0), torch.ones_like(at, dtype=torch.bool)


def _adapted(perturbed: Perturbed, good: Tensor) -> tuple[Tensor, Tensor]:
    """Bad masks uint8 [B, H, W], each at the first scale with a Dice in ADAPTIVE_DICE; and where there is one."""
    bad, kept = torch.zeros_like(good), torch.zeros(len(good), dtype=torch.bool, device=good.device)
    low, high = ADAPTIVE_DICE
    for scale in ADAPTIVE_SCALES:
        at = (~kept).nonzero()[:, 0]
        if not len(at):
            break
        tried = perturbed(at, scale)
        dice = similarity(tried, good[at], "mean")
        fits = (dice >= low) & (dice <= high)
        bad[at[fits]], kept[at[fits]] = tried[fits], True
    return bad, kept
