"""Stage 1 of SPARS: teach the presence classifier from labelled cases (docs/spars.md, Method 7).

A window's label is 1 when it contains at least `min_tumour_voxels` tumour voxels, counted exactly by a summed-area
table. Starts are uniform over all valid ones whose window has the wanted label, at any voxel: the reference drew a
tumour voxel as the corner, which shifts every score by up to half a window.

Integrity: with supervision=window the labels are window-level presence, but they, and the stratified sampling, come
from voxel masks. That is weaker supervision than voxels and stronger than image-level labels. With slab and patient the
loss reads one label of each slab or volume (`bags.py`), and so does the choice of the best epoch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR

from ..common.device import forked_rng
from ..common.fitting import Scalars, descend, fit
from ..common.networks import save_network
from ..common.runs import Run
from ..common.workers import ONE_PROCESS, Workers
from ..datasets.liver.cases import HU_WINDOW, LiverCase
from ..datasets.liver.lattice import Triple, WindowLattice
from ..datasets.liver.lesions import TUMOUR
from .augmentation import draw_flips, flip_axes, jitter_intensity
from .bags import bag_labels, bag_logits, bag_loss, positive_weight
from .presence import DensePresenceNet, PaperPresenceNet, PresenceNet, gather_crops
from .presence_config import PresenceTrainingConfig

Metrics = Callable[[Tensor, Tensor], Mapping[str, float]]
"""Validation metrics by name, of scores in [0, 1] and bool labels; "auroc" must be one of them."""
SHORT = {
    "accuracy": "acc",
    "auroc": "auc",
    "auroc_lattice": "auc_lattice",
    "sensitivity": "sens",
    "specificity": "spec",
}
"""Names of the curves of some metrics; the others keep theirs."""
VALIDATION_SEED = 0
"""The validation windows are the same whatever the seed of the training is, so that trainings can be compared."""


class WindowPool:
    """Every window of some labelled cases, at any voxel, in two classes.

    Args:
        cases: labelled volumes of one shape.
        window: window in voxels.
        min_tumour_voxels: tumour voxels from which on a window is positive.
        device: where the images stay.

    Raises:
        ValueError: a case without label or of another shape, or a class without any window.
    """

    def __init__(
        self, cases: Sequence[LiverCase], window: Triple, min_tumour_voxels: int, device: torch.device
    ) -> None:
        shapes = {tuple(case.image.shape) for case in cases}
        if len(shapes) != 1:
            raise ValueError(f"the classifier needs cases of one shape, but got {sorted(shapes) or 'no case'}")
        ((x, y, z),) = shapes
        self.full, self.window, self.minimum = (x, y, z), window, min_tumour_voxels
        self.starts = WindowLattice(self.full, window, step=1)
        self.images = torch.stack([case.image for case in cases]).to(device)  # uint8 [C, X, Y, Z]
        self.tumours = torch.stack([_tumour(case) for case in cases]).to(device)  # bool [C, X, Y, Z]
        positives = [self.labels(tumour, self.starts).nonzero()[:, 0].cpu() for tumour in self.tumours]
        self._positives = torch.cat(positives)  # ascending in each case
        self._number = torch.tensor([len(ids) for ids in positives])
        self._first = self._number.cumsum(0) - self._number
        rank = torch.cat([torch.arange(len(ids)) for ids in positives])
        owner = torch.arange(len(cases)).repeat_interleave(self._number)
        self._negatives_before = owner * self.starts.size + self._positives - rank
        self._cases = [(self._number < self.starts.size).nonzero()[:, 0], self._number.nonzero()[:, 0]]
        if not len(self._cases[1]):
            raise ValueError(
                f"none of the {len(cases)} cases ({cases[0].id}, ...) has a window of {window} with at least "
                f"{min_tumour_voxels} tumour voxels; the classifier needs cases with tumours"
            )
        if not len(self._cases[0]):
            raise ValueError(f"every window of {window} in the {len(cases)} cases holds tumour; use smaller windows")

    def labels(self, tumour: Tensor, lattice: WindowLattice) -> Tensor:
        """Presence, bool [L], in the windows of `lattice` on a tumour mask [X, Y, Z]."""
        return lattice.window_sums(tumour) >= self.minimum

    def draw(self, number: int, generator: Generator, patients: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Case int64 [N], corner int64 [N, 3] and label bool [N] of N windows, the second half of them positive.

        First a case with such windows, then one of its windows, both uniform: large tumours count no more than small.

        patients: first so many cases, with replacement, then N / patients windows of each, half of them positive; of a
            case that has windows of one label only, all of that label.
        """
        labels = torch.arange(number) >= number // 2
        share = torch.rand(2, number, dtype=torch.float64, generator=generator)
        case = torch.where(labels, _pick(self._cases[1], share[0]), _pick(self._cases[0], share[0]))
        if patients is not None:
            each = number // patients
            case = torch.randint(len(self.images), (patients,), generator=generator).repeat_interleave(each)
            half = torch.arange(number) % each >= each // 2
            labels = half & (self._number[case] > 0) | (self._number[case] == self.starts.size)
        positives = self._number[case]
        rank = (share[1] * torch.where(labels, positives, self.starts.size - positives)).long()  # k, within the class
        # the k-th negative is k plus the positives before it: those with at most k negatives before them
        before = torch.searchsorted(self._negatives_before, case * self.starts.size + rank, right=True)
        negative = rank + before - self._first[case]
        positive = self._positives[(self._first[case] + rank).clamp(max=len(self._positives) - 1)]
        corners = self.starts.corners(torch.where(labels, positive, negative))
        device = self.images.device
        return case.to(device), corners.to(device), labels.to(device)


def train_presence(
    train_cases: Sequence[LiverCase],
    val_cases: Sequence[LiverCase],
    window_size: Triple,
    step: int,
    config: PresenceTrainingConfig,
    run: Run,
    device: torch.device,
    seed: int,
    *,
    metrics: Metrics,
    hu_window: tuple[float, float] = HU_WINDOW,
    workers: Workers = ONE_PROCESS,
) -> PresenceNet:
    """The classifier with the best validation, frozen; also written to presence.safetensors in the run's folder.

    The best is that with the highest AUC of the validation windows, or, with supervision by slab or patient, with the
    lowest loss of the validation bags: an AUC of a few patients is often 1.

    A run that was interrupted is continued; on a CPU it ends with the same weights, bit for bit.

    Args:
        train_cases: labelled cases of one shape, some of them with tumours.
        val_cases: the same, of other patients.
        window_size: window in voxels.
        step: lattice step in voxels, for batch=dense and the lattice AUC.
        config: see there.
        run: the stage: receives scalars `classifier/*` (x axis: epochs) and checkpoints.
        device: where it is computed.
        seed: of weights, windows and augmentation.
        metrics: computes what is watched; handed in, because `evaluation` stands above this package.
        hu_window: HU that the bytes 0 and 255 of the cases stand for.
        workers: the processes that train together; each draws its own batches.

    Raises:
        ValueError: cases that cannot be learned from, or a loss that is no longer finite.
    """
    train = WindowPool(train_cases, window_size, config.min_tumour_voxels, device)
    val = WindowPool(val_cases, window_size, config.min_tumour_voxels, device)
    val_windows = val.draw(config.validation_windows, Generator().manual_seed(VALIDATION_SEED))
    with forked_rng(device):
        torch.manual_seed(seed)
        net = build_presence(config, hu_window, window_size).to(device)
    optimizer = AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = schedule_of(optimizer, config)
    level, lattice = config.supervision, WindowLattice(train.full, window_size, step)
    if level != "window":
        of_train, of_val = (bag_labels(pool.tumours, lattice, config).flatten() for pool in (train, val))
        weight = positive_weight(of_train, "training", level)
        positive_weight(of_val, "validation", level)

    def train_epoch(net: PresenceNet, generator: Generator) -> Scalars:
        total = torch.zeros((), device=device)
        for _ in range(config.batches_per_epoch):
            if config.batch == "windows":
                loss = balanced_cross_entropy(*windows_batch(net, train, config, generator))
            elif level == "window":
                loss = balanced_cross_entropy(*dense_batch(net, train, step, config, generator))
            else:
                loss = bag_loss(*bag_batch(net, train, step, config, generator), weight)
            descend(optimizer, loss, workers)
            schedule.step()
            total += loss.detach() / (config.batches_per_epoch * workers.world_size)
        return {"loss": total}

    def validate(net: PresenceNet) -> tuple[float, Scalars]:
        judged = dict(metrics(*window_scores(net, val, val_windows)))
        scalars = {SHORT.get(name, name): value for name, value in judged.items()}
        if net.has_dense(lattice):  # else it would take hours
            auroc = metrics(*lattice_scores(net, val, step))["auroc"]
            scalars |= {} if math.isnan(auroc) else {SHORT["auroc_lattice"]: auroc}  # nan: windows of one class only
        if level == "window":
            return judged["auroc"], scalars
        logits = torch.cat([_bag_logits(net, image[None, None].float() / 255, lattice, config) for image in val.images])
        of_bags = {"loss": float(bag_loss(logits, of_val, weight)), **metrics(logits.sigmoid(), of_val)}
        return -of_bags["loss"], scalars | {f"{SHORT.get(name, name)}_{level}": v for name, v in of_bags.items()}

    best = fit(
        run,
        net,
        optimizer,
        name="classifier",
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        state={"schedule": schedule},
        workers=workers,
    )
    long = {short: name for name, short in SHORT.items()}
    summary = {
        "supervision": level,
        "cases": len(train_cases),
        "origins": sorted({case.origin for case in train_cases}),
        "seed": seed,
        "config": asdict(config),
        "validation": {long.get(name, name): value for name, value in best.items() if name != "loss"},
    }
    if workers.is_main:
        save_network(run.folder / "presence.safetensors", net, {"training": summary})
    return net.requires_grad_(False)


def build_presence(config: PresenceTrainingConfig, hu_window: tuple[float, float], window_size: Triple) -> PresenceNet:
    """The untrained network that the configuration names."""
    if config.network == "paper":
        return PaperPresenceNet(hu_window, window_size, config.input_size)
    return DensePresenceNet(hu_window, window_size)


def schedule_of(optimizer: Optimizer, config: PresenceTrainingConfig) -> CosineAnnealingLR | ConstantLR:
    """The learning rate over the whole training."""
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=config.epochs * config.batches_per_epoch)
    return ConstantLR(optimizer, factor=1.0)


# -- one batch -----------------------------------------------------------------------------------------------------


def windows_batch(
    net: PresenceNet, pool: WindowPool, config: PresenceTrainingConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Logits [N, 2] and labels bool [N] of N windows of any cases."""
    case, corners, labels = pool.draw(config.windows_per_batch, generator, config.patients_per_batch)
    crops = gather_crops(pool.images, case, corners, pool.window, net.halo)
    crops = flip_axes(crops, draw_flips(len(crops), config, generator).to(crops.device))
    return net(jitter_intensity(crops, net.hu_window, config, generator)), labels


def dense_batch(
    net: PresenceNet, pool: WindowPool, step: int, config: PresenceTrainingConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Logits [B·L, 2] and labels bool [B·L] of all windows of B cases on the lattice of a random phase."""
    volumes, tumours, lattice = draw_volumes(net.hu_window, pool, pool.window, step, config, generator)
    logits = _dense(net).dense_logits(volumes, lattice)
    return logits.flatten(0, 3), torch.cat([pool.labels(tumour, lattice) for tumour in tumours])


def bag_batch(
    net: PresenceNet, pool: WindowPool, step: int, config: PresenceTrainingConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Logits Z [N] and labels bool [N] of the bags of B cases on the lattice of a random phase."""
    volumes, tumours, lattice = draw_volumes(net.hu_window, pool, pool.window, step, config, generator)
    return _bag_logits(net, volumes, lattice, config), bag_labels(tumours, lattice, config).flatten()


def _bag_logits(net: PresenceNet, volumes: Tensor, lattice: WindowLattice, config: PresenceTrainingConfig) -> Tensor:
    """Logits Z [N] of all bags of volumes [B, 1, X, Y, Z] in [0, 1]."""
    logits = _dense(net).dense_logits(volumes, lattice)
    return bag_logits(logits[..., 1] - logits[..., 0], config).flatten()


def draw_volumes(
    hu_window: tuple[float, float],
    pool: WindowPool,
    window: Triple,
    step: int,
    config: PresenceTrainingConfig,
    generator: Generator,
) -> tuple[Tensor, Tensor, WindowLattice]:
    """Augmented volumes [B, 1, X, Y, Z] in [0, 1], their tumours bool [B, X, Y, Z], and a lattice of a random phase."""
    case = torch.randint(len(pool.images), (config.volumes_per_batch,), generator=generator).to(pool.images.device)
    free = [min(step, full - w + 1) for full, w in zip(pool.full, window, strict=True)]
    x, y, z = (int(torch.randint(n, (), generator=generator)) for n in free)
    lattice = WindowLattice(pool.full, window, step, (x, y, z))
    flips = draw_flips(len(case), config, generator).to(case.device)
    volumes = flip_axes(pool.images[case][:, None], flips).float() / 255
    tumours = flip_axes(pool.tumours[case][:, None], flips)[:, 0]
    return jitter_intensity(volumes, hu_window, config, generator), tumours, lattice


def _dense(net: PresenceNet) -> DensePresenceNet:
    """The network, which the checks of the configuration made one with a dense forward."""
    assert isinstance(net, DensePresenceNet)
    return net


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """½ Σ_c mean over the windows of class c of −log softmax(z)[c]; a class without windows adds nothing.

    With as many windows of each class it is the paper's cross-entropy (docs/spars.md, Method 7). logits [N, 2]; labels
    bool [N].
    """
    nll = F.cross_entropy(logits.float(), labels.long(), reduction="none")
    weights = [mask / mask.sum().clamp(min=1) for mask in (labels, ~labels)]
    return 0.5 * (nll * (weights[0] + weights[1])).sum()


# -- validation ----------------------------------------------------------------------------------------------------


def window_scores(net: PresenceNet, pool: WindowPool, windows: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores float32 [N] and labels bool [N] of windows that `pool` has drawn; the network in eval mode."""
    case, corners, labels = windows
    return net.score_windows(pool.images, case, corners, pool.window)[0], labels


def lattice_scores(net: PresenceNet, pool: WindowPool, step: int) -> tuple[Tensor, Tensor]:
    """Scores float32 [C·L] and labels bool [C·L] of every window of every case at phase 0."""
    lattice = WindowLattice(pool.full, pool.window, step)
    scores = [net.score_lattice(image, lattice)[0] for image in pool.images]
    return torch.cat(scores), torch.cat([pool.labels(tumour, lattice) for tumour in pool.tumours])


def _tumour(case: LiverCase) -> Tensor:
    if case.label is None:
        raise ValueError(f"{case.id} has no label, which the classifier's training needs; use a labelled split")
    return case.label == TUMOUR


def _pick(values: Tensor, share: Tensor) -> Tensor:
    """values[...] at shares in [0, 1) of its length."""
    return values[(share * len(values)).long()]
