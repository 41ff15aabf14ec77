"""Phantoms: the same from the same number, with the constants of their tasks, and hard enough for trivial rules."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from segarena.datasets.decathlon.cases import DecathlonConfig, load_decathlon
from segarena.datasets.decathlon.fingerprint import measure
from segarena.datasets.decathlon.phantom import PHANTOMS, drawn_phantom
from segarena.datasets.decathlon.sampling import centre_corners
from segarena.datasets.decathlon.tasks import PHANTOM_TASKS

by_task = pytest.mark.parametrize("name", list(PHANTOMS))


@by_task
def test_the_same_number_gives_the_same_volume(name):
    first, again, other = (PHANTOMS[name](number) for number in (7, 7, 8))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.label, again.label)
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)
    assert (first.id, first.origin, first.spacing_mm) == ("phantom_00007", "phantom", (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="phantom number -1 must not be negative"):
        PHANTOMS[name](-1)


@by_task
def test_phantoms_have_the_form_and_the_constants_of_their_task(name):
    task, samples = PHANTOM_TASKS[name], [drawn_phantom(name, number) for number in range(50)]
    for sample in samples:
        assert sample.image.shape == (len(task.channels), *sample.label.shape)
        assert sample.label.unique().tolist() == list(range(len(task.classes)))
        assert torch.isfinite(sample.image).all()
    found, known = measure(samples, len(task.classes), ct=False), task.fingerprint
    for field in ("window", "mean", "std"):
        assert np.array(getattr(found, field)) == pytest.approx(np.array(getattr(known, field)), abs=0.001), field
    assert (found.mean_size, found.small_size, found.small_volume) == (
        *(known.mean_size, known.small_size),
        known.small_volume,
    )


def test_units_and_sizes_differ_between_volumes():
    samples = [PHANTOMS["Task04_Hippocampus"](number) for number in range(20)]
    highest = [sample.image.max().item() for sample in samples]
    assert max(highest) > 100 * min(highest)
    assert len({tuple(sample.label.shape) for sample in samples}) > 10
    sizes = np.array([sample.label.shape for sample in samples])
    assert sizes.mean(0) == pytest.approx([36, 50, 36], abs=2)


# -- trivial rules -------------------------------------------------------------------------------------------------


@lru_cache
def validation(name):
    """Middle patches of 40 training and of 10 validation phantoms."""
    config = DecathlonConfig(task="toy" if name == "Toy" else name)
    size = config.resolved_plan().val_size
    pools = [load_decathlon(config, split) for split in ("train", "val")]
    return [pool.patches(torch.arange(len(pool)), centre_corners(pool, size), size) for pool in pools]


def mean_dice(found, truth):
    both = 2 * (found & truth).flatten(1).sum(1)
    return (both / (found.flatten(1).sum(1) + truth.flatten(1).sum(1)).clamp(min=1)).mean().item()


def best_interval(train, val, truth):
    """Dice on `val` of the interval of one channel that has the highest one on `train`."""
    best = (0.0, 0, 0.0, 0.0)
    inside = truth(train.labels)
    for channel in range(train.images.shape[1]):
        values = train.images[:, channel].contiguous()
        ends = torch.quantile(values[inside][::7], torch.linspace(0, 1, 15))
        bins = torch.bucketize(values, ends[1:-1])
        whole, part = (torch.bincount(bins[mask], minlength=14) for mask in ((values >= ends[0]) & (values <= ends[-1]),
                                                                             inside))  # fmt: skip
        for low in range(14):
            for high in range(low, 14):
                dice = 2 * part[low : high + 1].sum() / (whole[low : high + 1].sum() + part.sum())
                best = max(best, (dice.item(), channel, ends[low].item(), ends[high + 1].item()))
    _, channel, low, high = best
    values = val.images[:, channel]
    return mean_dice((values >= low) & (values <= high), truth(val.labels))


@pytest.mark.parametrize(
    ("name", "interval", "of_map"),
    [("Task04_Hippocampus", 0.25, 0.55), ("Task01_BrainTumour", 0.60, 0.35), ("Toy", 0.60, 0.60)],
)
def test_neither_an_interval_of_intensities_nor_the_mean_label_map_finds_the_foreground(name, interval, of_map):
    """docs/seat.md, Method 7."""
    train, val = validation(name)
    assert best_interval(train, val, lambda labels: labels > 0) < interval
    shares = (train.labels > 0).float().mean(0)
    maps = [mean_dice((shares > share).expand_as(val.labels), val.labels > 0) for share in (0.2, 0.3, 0.4, 0.5)]
    assert max(maps) < of_map


@pytest.mark.parametrize("name", ["Task04_Hippocampus", "Task01_BrainTumour"])
def test_no_class_has_an_interval_of_its_own(name):
    train, val = validation(name)
    for k in range(1, len(PHANTOM_TASKS[name].classes)):
        assert best_interval(train, val, lambda labels, k=k: labels == k) < 0.5
