"""What a gradient step of each training learns from: none, SAT, DDC-AT, AT with any attack (docs/rp-pgd.md, Method 23).

Symbols: B = images of a step, K = number of classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ...attacks.budget import Epsilon
from ...attacks.core import AttackCore
from ...attacks.regions import GROUPS, groups
from ...attacks.victim import Normalized, frozen
from ...common.device import bfloat16_on_cuda
from ...common.workers import ONE_PROCESS, Workers
from ...datasets.images import IGNORED
from ...segmenters.dilated import DilatedSegmenter
from .batches import Batch
from .config import TrainingConfig, attack_arguments

REGIONS = ("true", "boundary", "false")
"""Names of the regions in their curves: what groups begin with."""


class Mixed(NamedTuple):
    """Images of one gradient step, the clean ones first."""

    images: Tensor
    """float32 [B, C, H, W] in [0, 1]."""
    labels: Tensor
    """int64 [B, H, W]."""
    mask: Tensor | None
    """Labels int64 [B, H, W] of DDC-AT's mask head; None in other trainings."""


class Outputs(NamedTuple):
    """Logits float32 of all heads that the loss is made of."""

    logits: Tensor
    """[B, K, H, W]."""
    auxiliary: Tensor | None
    """[B, K, H, W]; None where the network has no such head."""
    mask: Tensor | None
    """[B, 2, H, W]; None without DDC-AT."""


class Trainer:
    """Attacks the images of a step with the network as it is, and says what the network loses on them.

    Args:
        victim: the network that is trained, behind its normalisation.
        config: method, attack and composition of the batches.
        workers: the processes that train together; losses are those of all, so that the mean of the workers' gradients
            is that of one process.

    Attributes:
        clean, attacked: images of each kind in the batch of this process.
    """

    def __init__(self, victim: Normalized, config: TrainingConfig, workers: Workers = ONE_PROCESS) -> None:
        self.victim, self.config, self.workers = victim, config, workers
        self.clean, self.attacked = config.composition
        self.eps = Epsilon.parse(config.eps).value
        self._attack, self._arguments = config.inner_attack, attack_arguments(config, victim)
        self.forget()

    def forget(self) -> None:
        """Begin the sums of `look` anew."""
        device, steps = self.victim.mean.device, self.config.steps
        self._groups, self._size = torch.zeros(steps, len(GROUPS), device=device), torch.zeros((), device=device)
        self._attacks = 0

    def look(self) -> dict[str, Tensor]:
        """Of the attacks since `forget`, means over attacks: share of the valid pixels in each region at the last
        gradient, in each group at each gradient, and mean |delta| / eps. Empty where there was none."""
        if not self._attacks:
            return {}
        shares = self._groups / self._attacks
        found = {
            f"attack_{region}": shares[-1, [name.startswith(region) for name in GROUPS]].sum() for region in REGIONS
        }
        for step, of_step in enumerate(shares, start=1):
            found |= {f"attack/step_{step}_{name}": share for name, share in zip(GROUPS, of_step, strict=True)}
        return {**found, "attack_size": self._size / self._attacks}

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        """The images [B, C, H, W] after the inner attack; the network is left as it was."""
        counts: list[Tensor] = []
        numbers = torch.arange(1, len(GROUPS) + 1, device=images.device, dtype=torch.uint8)[:, None]

        def watch(core: AttackCore) -> None:
            counts.append((groups(core.regions, core.right).flatten() == numbers).sum(dim=1))

        with bfloat16_on_cuda(images.device):
            adversarial = self._attack(self.victim, images, labels, watch=watch, **self._arguments)
        valid = (labels != IGNORED).sum().clamp(min=1)
        self._groups += torch.stack(counts) / valid
        self._size += (adversarial - images).abs().mean() / self.eps
        self._attacks += 1
        return adversarial

    def mix(self, batch: Batch) -> Mixed:
        """The clean images of a batch, then its attacked ones (docs/rp-pgd.md, Method 23)."""
        images, labels = batch.images, batch.labels.long()
        if not self.attacked:
            return Mixed(images, labels, None)
        if self.config.method == "ddc_at":
            adversarial = self.attack(images, labels)
            mixed = torch.cat([images[: self.clean], adversarial[self.clean :]])
            return Mixed(mixed, labels, self._mask_labels(images, adversarial, labels))
        adversarial = self.attack(images[-self.attacked :], labels[-self.attacked :])
        mixed = torch.cat([images[: self.clean], adversarial])
        return Mixed(mixed, torch.cat([labels[: self.clean], labels[-self.attacked :]]), None)

    @torch.no_grad()
    def _mask_labels(self, images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """1 where the attack changes what is predicted of the clean images; 0 for the attacked ones."""
        mask = torch.zeros_like(labels)
        if self.clean:
            with frozen(self.victim):
                before, after = (self._pass(x[: self.clean]).logits.argmax(dim=1) for x in (images, adversarial))
            mask[: self.clean] = (before != after).long()
        return mask.masked_fill(labels == IGNORED, IGNORED)

    def outputs(self, images: Tensor) -> Outputs:
        """Logits of all heads; with `bn: split` of the clean and of the attacked images in a pass of their own."""
        parts = [part for part in torch.split(images, [self.clean, self.attacked]) if len(part)]
        if self.config.bn == "shared" or len(parts) == 1:
            return self._pass(images)
        fields = zip(*(self._pass(part) for part in parts), strict=True)
        return Outputs(*(None if field[0] is None else torch.cat(field) for field in fields))  # type: ignore[arg-type]

    def _pass(self, images: Tensor) -> Outputs:
        net: nn.Module = self.victim.model
        x = self.victim.normalize(images)
        with bfloat16_on_cuda(images.device):
            found: Any = net.training_outputs(x) if isinstance(net, DilatedSegmenter) else (net(x), None, None)
        return Outputs(*(None if one is None else one.float() for one in found))  # type: ignore[arg-type]

    def losses(self, outputs: Outputs, mixed: Mixed) -> dict[str, Tensor]:
        """loss_main, loss_aux, loss_mask, where there are such heads: means over all valid pixels, 0 without any."""
        count = self.workers.total((mixed.labels != IGNORED).sum()).clamp(min=1) / self.workers.world_size

        def mean(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / count

        found = {"loss_main": mean(outputs.logits, mixed.labels)}
        if outputs.auxiliary is not None:
            found["loss_aux"] = mean(outputs.auxiliary, mixed.labels)
        if outputs.mask is not None and mixed.mask is not None:
            found["loss_mask"] = mean(outputs.mask, mixed.mask)
        return found

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """CE of the main logits + weight * CE of the auxiliary ones + CE of the mask."""
        weights = {"loss_main": 1.0, "loss_aux": self.config.aux_weight, "loss_mask": 1.0}
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


# -- optimiser -----------------------------------------------------------------------------------------------------


def make_optimizer(net: nn.Module, config: TrainingConfig) -> Optimizer:
    """SGD or AdamW; of a network on a ResNet the heads have `head_factor` times the learning rate of the stages."""
    rate, heads = config.learning_rate, config.learning_rate * config.head_factor
    named = dict(net.named_parameters())
    backbone = [value for name, value in named.items() if name.startswith("layer")]
    if isinstance(net, DilatedSegmenter):
        rest = [value for name, value in named.items() if not name.startswith("layer")]
        groups: list[dict[str, Any]] = [{"params": backbone, "lr": rate}, {"params": rest, "lr": heads}]
    else:
        groups = [{"params": list(named.values()), "lr": rate}]
    if config.optimizer == "adamw":
        return AdamW(groups, weight_decay=config.weight_decay)
    return SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)


def poly(step: int, steps: int, power: float, warmup: int = 0) -> float:
    """Factor of the learning rate in step i = 1 .. n: (1 - i / n) ^ power, times i / warmup while that is below 1.

    >>> from segarena.agents.rp_pgd.trainers import poly
    >>> [round(0.01 * poly(step, 100, 0.9), 8) for step in (1, 50, 100)]
    [0.00990995, 0.00535887, 0.0]
    """
    return float((1 - step / steps) ** power) * (min(step / warmup, 1.0) if warmup else 1.0)


class PolySchedule:
    """Learning rates of an optimiser, set before each step.

    Args:
        optimizer: has the rates before the schedule.
        steps: of the whole training.
        power: exponent.
        warmup: steps in which the rates rise.
    """

    def __init__(self, optimizer: Optimizer, steps: int, power: float, warmup: int = 0) -> None:
        self.optimizer, self.steps, self.power, self.warmup = optimizer, steps, power, warmup
        self.rates: Sequence[float] = [group["lr"] for group in optimizer.param_groups]
        self.made = 0

    def advance(self) -> float:
        """Set the rates of the next step; returns that of the first group."""
        self.made += 1
        factor = poly(self.made, self.steps, self.power, self.warmup)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = factor * rate
        return factor * self.rates[0]

    def state_dict(self) -> dict[str, int]:
        """The number of steps that were made."""
        return {"made": self.made}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after so many steps."""
        self.made = int(state_dict["made"])
