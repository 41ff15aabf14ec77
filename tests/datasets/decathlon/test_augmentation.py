"""Augmentation of batches: each change against its plain version, its share and range, and the order of all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from segarena.common.counted import uniform
from segarena.datasets.decathlon.augmentation import (
    DRAWS,
    NO_AUGMENTATION,
    AugmentationConfig,
    augment,
    contrast_changed,
    gamma_changed,
)
from segarena.datasets.volumes import Patches

NEVER = 0.999
"""A number that is below no share but 1."""


def patches(number=3, size=(14, 12, 16), channels=2, seed=0):
    rng = np.random.default_rng(seed)
    images = ndimage.gaussian_filter(rng.normal(size=(number, channels, *size)), (0, 0, 1.5, 1.5, 1.5))
    labels = (images[:, 0] > 0.02).astype(np.int64) + (images[:, 0] > 0.1)
    return Patches(torch.tensor(images, dtype=torch.float32), torch.tensor(labels))


def numbers(batch, **given):
    """Uniform numbers that change nothing but what is given: lane=value."""
    found = torch.full((batch, DRAWS), NEVER, dtype=torch.float64)
    for lane, value in given.items():
        found[:, int(lane[1:])] = value
    return found


def test_nothing_changes_the_middle_of_a_patch_when_all_is_off():
    batch = patches()
    found = augment(batch, (10, 12, 11), NO_AUGMENTATION, uniform(torch.arange(3), DRAWS, 0))
    assert torch.equal(found.images, batch.images[:, :, 2:12, :, 2:13])
    assert torch.equal(found.labels, batch.labels[:, 2:12, :, 2:13])


@pytest.mark.parametrize("axis", range(3))
def test_a_patch_is_turned_as_scipy_turns_it(axis):
    """About each axis by itself, in the middle of the patch; the label with it."""
    config = replace(NO_AUGMENTATION, rotation=1.0, degrees=15.0)
    lanes = {"_1": 0.5, "_2": 0.5, "_3": 0.5} | {f"_{1 + axis}": 0.5 + 0.5 * 10 / 15}  # 10 degrees about this one
    batch = patches(1, (15, 17, 13), channels=1)
    found = augment(batch, (15, 17, 13), config, numbers(1, _0=0.0, **lanes))
    one, other = [kept for kept in range(3) if kept != axis]
    options = []
    for angle in (10, -10):
        image = ndimage.rotate(batch.images[0, 0].numpy(), angle, (one, other), reshape=False, order=1)
        label = ndimage.rotate(batch.labels[0].numpy(), angle, (one, other), reshape=False, order=0)
        inside = ndimage.rotate(np.ones((15, 17, 13)), angle, (one, other), reshape=False, order=1) > 0.999
        options.append(
            (
                np.abs(found.images[0, 0].numpy() - image)[inside].max(),
                (found.labels[0].numpy() != label)[inside].mean(),
            )
        )
    best = min(options)
    assert best[0] < 1e-4
    assert best[1] < 0.01
    assert max(options)[0] > 0.05


@pytest.mark.parametrize(("u", "factor"), [(0.0, 0.85), (0.25, 0.925), (0.75, 1.075), (NEVER, 1.1497)])
def test_a_patch_is_scaled_about_its_middle(u, factor):
    config = replace(NO_AUGMENTATION, scaling=1.0)
    size = (13, 13, 13)
    batch = patches(1, size, channels=1)
    found = augment(batch, size, config, numbers(1, _4=0.0, _5=u))
    places = [(np.arange(13) - 6) * factor + 6] * 3
    grid = np.meshgrid(*places, indexing="ij")
    expected = ndimage.map_coordinates(batch.images[0, 0].numpy(), grid, order=1, mode="constant")
    inside = np.all([(axis >= 0) & (axis <= 12) for axis in grid], axis=0)
    assert np.abs(found.images[0, 0].numpy() - expected)[inside].max() < 1e-4
    label = ndimage.map_coordinates(batch.labels[0].numpy(), grid, order=0, mode="constant")
    assert (found.labels[0].numpy() != label)[inside].mean() < 0.01


def test_beyond_the_patch_are_zero_and_background():
    batch = Patches(torch.full((1, 1, 8, 8, 8), 5.0), torch.full((1, 8, 8, 8), 2))
    found = augment(
        batch, (8, 8, 8), replace(NO_AUGMENTATION, scaling=1.0, scale=(1.0, 2.0)), numbers(1, _4=0.0, _5=NEVER)
    )
    assert found.images[0, 0, 0, 0, 0] == 0
    assert found.images[0, 0, 4, 4, 4] == 5
    assert found.labels[0, 0, 0, 0] == 0
    assert found.labels[0, 4, 4, 4] == 2
    larger = Patches(torch.full((1, 1, 16, 16, 16), 5.0), torch.full((1, 16, 16, 16), 2))
    found = augment(larger, (8, 8, 8), replace(NO_AUGMENTATION, rotation=1.0), uniform(torch.arange(1), DRAWS, 0))
    assert (found.images - 5).abs().max() < 1e-5, "a patch with a margin has no border after it was turned"
    assert (found.labels == 2).all()


@pytest.mark.parametrize("axis", range(3))
def test_each_axis_is_mirrored_by_itself(axis):
    batch = patches()
    found = augment(batch, (14, 12, 16), replace(NO_AUGMENTATION, mirror=0.5), numbers(3, **{f"_{6 + axis}": 0.1}))
    assert torch.equal(found.images, batch.images.flip(2 + axis))
    assert torch.equal(found.labels, batch.labels.flip(1 + axis))


def test_gamma_bends_intensities_and_keeps_mean_and_deviation():
    images = patches().images
    power = torch.tensor([0.7, 1.0, 1.5])
    found = gamma_changed(images, power)
    for image, new, exponent in zip(images.numpy(), found.numpy(), power.tolist(), strict=True):
        low, reach = image.min(), image.max() - image.min()
        bent = ((image - low) / reach) ** exponent * reach + low
        bent = (bent - bent.mean()) / bent.std() * image.std() + image.mean()
        assert new == pytest.approx(bent, abs=1e-4)
        assert (new.mean(), new.std()) == pytest.approx((image.mean(), image.std()), abs=1e-5)
    assert torch.allclose(found[1], images[1], atol=1e-5)
    assert (found[0] - images[0]).abs().max() > 0.02
    constant = torch.full((1, 1, 4, 4, 4), 3.0)
    assert torch.equal(gamma_changed(constant, torch.tensor([1.5])), constant)


def test_contrast_is_about_the_mean_and_within_the_range():
    images = patches().images
    found = contrast_changed(images, torch.tensor([0.75, 1.0, 1.25]))
    for image, new, factor in zip(images.numpy(), found.numpy(), (0.75, 1.0, 1.25), strict=True):
        mean = image.mean()
        assert new == pytest.approx(np.clip((image - mean) * factor + mean, image.min(), image.max()), abs=1e-5)


def test_brightness_adds_one_normal_number_to_all_channels():
    batch = patches(400, (4, 4, 4))
    config = replace(NO_AUGMENTATION, brightness=1.0)
    found = augment(batch, (4, 4, 4), config, uniform(torch.arange(400), DRAWS, 1))
    added = (found.images - batch.images).flatten(1)
    assert added.std(1).max() < 1e-5
    assert added[:, 0].mean().abs() < 0.15
    assert added[:, 0].std().item() == pytest.approx(1, abs=0.1)


def test_each_change_has_its_share_and_none_shifts_another():
    batch = Patches(*(tensor.expand(400, *tensor.shape[1:]) for tensor in patches(1, (5, 5, 5), channels=1)))
    lanes = uniform(torch.arange(400), DRAWS, 2)
    for name, value in (("rotation", 0.5), ("scaling", 0.5), ("mirror", 0.5), ("gamma", 0.2), ("contrast", 0.2)):
        found = augment(batch, (5, 5, 5), replace(NO_AUGMENTATION, **{name: value}), lanes)
        share = ((found.images - batch.images).abs().flatten(1).max(1).values > 1e-4).float().mean().item()
        expected = 1 - 0.5**3 if name == "mirror" else value
        assert share == pytest.approx(expected, abs=0.07), name
        low = augment(batch, (5, 5, 5), replace(NO_AUGMENTATION, **{name: value / 2}), lanes).images
        still = (low == batch.images).flatten(1).all(1)
        kept = torch.where(still.view(-1, 1, 1, 1, 1), batch.images, found.images)
        assert torch.allclose(kept, low, atol=1e-4) or name == "mirror", "the share decides whether, not how much"


def test_powers_and_factors_are_as_often_below_1_as_above():
    """docs/seat.md, Method 6: not uniform between 0.7 and 1.5."""
    batch = Patches(*(tensor.expand(1000, *tensor.shape[1:]) for tensor in patches(1, (4, 4, 4), channels=1)))
    config = replace(NO_AUGMENTATION, gamma=1.0)
    lanes = uniform(torch.arange(1000), DRAWS, 3)
    found = augment(batch, (4, 4, 4), config, lanes).images
    above = gamma_changed(batch.images[:1], torch.tensor([1.1]))[0] - batch.images[0]
    same_way = ((found - batch.images) * above).flatten(1).sum(1) > 0
    assert same_way.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_order_is_that_of_the_page():
    """Gamma before contrast before brightness: another order gives other numbers."""
    batch = patches(1)
    lanes = numbers(1, _9=0.0, _10=0.1, _11=0.0, _12=0.9, _13=0.0, _14=0.8)
    found = augment(batch, (14, 12, 16), AugmentationConfig(), lanes)
    bent = gamma_changed(batch.images, torch.tensor([0.7 + 0.2 * 0.3]))
    contrasted = contrast_changed(bent, torch.tensor([1.2]))
    assert torch.allclose(found.images, contrasted + 0.8416212, atol=1e-4)
    swapped = gamma_changed(contrast_changed(batch.images, torch.tensor([1.2])), torch.tensor([0.76]))
    assert (contrasted - swapped).abs().max() > 1e-3


def test_wrong_values_are_refused_by_name():
    batch = patches()
    with pytest.raises(ValueError, match=r"size is \(15, 12, 16\) but patches have \(14, 12, 16\)"):
        augment(batch, (15, 12, 16), NO_AUGMENTATION, numbers(3))
    with pytest.raises(ValueError, match=r"uniform has shape \(2, 15\) but must have \(3, 15\)"):
        augment(batch, (14, 12, 16), NO_AUGMENTATION, numbers(2))
    with pytest.raises(ValueError, match=r"augmentation.mirror is 1.5"):
        AugmentationConfig(mirror=1.5)
    with pytest.raises(ValueError, match=r"augmentation.scale is \(1.1, 1.2\) but must enclose 1"):
        AugmentationConfig(scale=(1.1, 1.2))
