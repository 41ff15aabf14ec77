"""The liver phantom: reproducible, plausible, and too hard for a threshold and for a mean image."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from segarena.datasets.liver.lattice import WindowLattice
from segarena.datasets.liver.phantom import SHAPE, liver_phantom


@pytest.fixture(scope="module")
def phantoms():
    return [liver_phantom(index) for index in range(5000, 5024)]


def test_the_same_number_gives_the_same_volume():
    first, again, other = liver_phantom(7), liver_phantom(7), liver_phantom(8)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.label, again.label)
    assert not torch.equal(first.image, other.image)


def test_every_volume_is_a_ct_with_liver_and_tumours(phantoms):
    for sample in phantoms:
        assert sample.image.shape == (1, *SHAPE)
        assert sample.image.dtype == torch.float32
        assert sample.image.isfinite().all()
        assert -1000 <= sample.image.min() < -900
        assert sample.label.unique().tolist() == [0, 1, 2]
        assert 8_000 < (sample.label >= 1).sum() < 50_000
        assert sample.origin == "phantom"


def test_tumours_have_the_stated_number_size_and_place(phantoms):
    radii = []
    for sample in phantoms:
        lesions, number = ndimage.label(sample.label.numpy() == 2)
        assert 1 <= number <= 3
        radii += [float(np.cbrt(3 * size / (4 * np.pi))) for size in np.bincount(lesions.ravel())[1:]]
        around = ndimage.binary_dilation(sample.label.numpy() == 2)
        assert (sample.label.numpy()[around] > 0).mean() > 0.97, "a tumour sticks out of the liver"
    assert min(radii) > 3.5
    assert max(radii) < 10
    assert np.ptp(radii) > 3


def test_tumours_are_a_little_darker_than_the_liver_around_them(phantoms):
    contrasts = []
    for sample in phantoms:
        hu, label = sample.image[0].numpy(), sample.label.numpy()
        liver = ndimage.binary_erosion(label > 0, iterations=2) & (label == 1)
        contrasts.append(np.median(hu[label == 2]) - np.median(hu[liver]))
    assert np.mean(np.array(contrasts) < -5) > 0.9
    assert min(contrasts) > -45


def test_no_threshold_finds_the_tumours(phantoms):
    """The best of all intervals of HU, chosen with the labels of these very cases, stays below a mean Dice of 0.3."""
    edges = np.array([-np.inf, *range(-150, 301, 5), np.inf])
    below = [[np.searchsorted(np.sort(v), edges) for v in (hu, hu[t])] for hu, t in map(voxels, phantoms)]
    everything, tumour = np.array(below).transpose(1, 0, 2)  # [cases, edges]: voxels below each edge
    inside, hits = (count[:, None, :] - count[:, :, None] for count in (everything, tumour))  # [cases, low, high]
    dice = (2 * hits / np.maximum(inside + tumour[:, -1, None, None], 1)).mean(axis=0)
    assert np.triu(dice).max() < 0.3


def voxels(sample):
    return sample.image.numpy().ravel(), sample.label.numpy().ravel() == 2


@pytest.fixture(scope="module")
def tumours():
    """Tumours of 60 phantoms to learn from, 8 to choose on and 24 to test on, bool [N, X, Y, Z]."""
    ranges = (range(60), range(1000, 1008), range(3000, 3024))
    return [np.stack([liver_phantom(index).label.numpy() == 2 for index in numbers]) for numbers in ranges]


def dice_of(mask, truths):
    return np.mean([2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for truth in truths])


def test_the_mean_tumour_map_of_others_finds_nothing(tumours):
    """It had a Dice of 36 % while every patient lay in the same place."""
    train, validation, test = tumours
    mean = train.mean(axis=0)
    levels = np.unique(np.quantile(mean, 1 - np.geomspace(1e-4, 1, 60)))
    best = max(levels, key=lambda level: dice_of(mean > level, validation))
    assert dice_of(mean > best, test) < 0.08


def test_the_place_of_a_window_says_little_of_a_tumour(tumours):
    """Its AUC over all windows of the lattice was 0.952."""
    lattice = WindowLattice(SHAPE, (16, 16, 8))
    held = [np.stack([lattice.window_sums(torch.from_numpy(t)).numpy() > 0 for t in some]) for some in tumours]
    share, test = held[0].mean(axis=0), held[2]
    ranks = stats.rankdata(np.tile(share, len(test)))
    positive = test.ravel()
    p, n = positive.sum(), (~positive).sum()
    auc = (ranks[positive].sum() - p * (p + 1) / 2) / (p * n)
    assert 0.5 < auc < 0.75
    assert test[:, share.argmax()].mean() < 0.6, "a fixed window must miss most tumours"


def test_a_phantom_without_its_tumours_is_the_same_patient():
    for number in range(4):
        ill, healthy = liver_phantom(number), liver_phantom(number, tumours=False)
        assert not bool((healthy.label == 2).any())
        assert torch.equal(healthy.label > 0, ill.label > 0)
        near = torch.from_numpy(ndimage.binary_dilation((ill.label == 2).numpy(), iterations=3))
        assert float((healthy.image - ill.image)[0][ill.label == 2].mean()) > 8  # tumours are darker
        assert (
            float((healthy.image - ill.image)[0][~near].abs().median()) < 25
        )  # cysts, vessels and noise are drawn anew


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="phantom number -1"):
        liver_phantom(-1)
