"""Random changes of photographs (docs/rp-pgd.md, Method 15): each alone, with its known values, and all together."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from segarena.datasets.images import IGNORED, IMAGENET_MEAN
from segarena.datasets.scenes.augmentation import (
    AUGMENTATIONS,
    AugmentationConfig,
    Change,
    apply_change,
    augment,
    centred,
    draw_change,
    long_side_resized,
    padding,
)

NONE = Change(factor=1.0, degrees=None, blurred=False, flipped=False, place=(0.0, 0.0))
OFF = AugmentationConfig(crop=20, scale=(1, 1), rotation=0, blur=0, flip=0)
MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]


def photograph(height=24, width=30):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, height, width, generator=generator)
    label = torch.randint(0, 5, (height, width), generator=generator, dtype=torch.uint8)
    return image, label


def test_without_a_change_the_crop_is_a_part_of_the_photograph():
    image, label = photograph()
    crop, labels = apply_change(image, label, NONE._replace(place=(0.5, 0.999)), 20)
    assert torch.equal(crop, image[:, 2:22, 10:30])  # 5 places down, 11 across: int(0.5 * 5), int(0.999 * 11)
    assert torch.equal(labels, label[2:22, 10:30])


def test_what_is_missing_of_the_crop_has_the_mean_colour_and_is_ignored():
    image, label = photograph(5, 9)
    crop, labels = apply_change(image, label, NONE, 10)
    assert torch.equal(crop[:, 2:7, 0:9], image)  # of 5 missing rows 2 lie above; of 1 missing column none before
    assert torch.equal(labels[2:7, 0:9], label)
    outside = torch.ones(10, 10, dtype=torch.bool)
    outside[2:7, 0:9] = False
    assert (labels[outside] == IGNORED).all()
    assert torch.equal(crop[:, outside], MEAN[..., 0].expand(3, int(outside.sum())))


def test_known_padding_of_a_voc_and_an_ade20k_photograph():
    """docs/rp-pgd.md, Method 16."""
    assert padding(384, 512, 473, 473) == (0, 0, 44, 45)
    assert padding(384, 512, 465, 465) == (0, 0, 40, 41)


def test_scale_changes_image_and_labels_alike():
    image = torch.zeros(3, 10, 10)
    image[:, :, 5:] = 1.0
    label = torch.zeros(10, 10, dtype=torch.uint8)
    label[:, 5:] = 3
    crop, labels = apply_change(image, label, NONE._replace(factor=2.0), 20)
    assert (labels[:, :10] == 0).all()
    assert (labels[:, 10:] == 3).all()
    # bilinear, middles at half pixels: 0.25 and 0.75 beside the edge
    assert crop[0, 7].tolist() == pytest.approx([0] * 9 + [0.25, 0.75] + [1] * 9)
    half, halves = apply_change(image, label, NONE._replace(factor=0.5), 5)
    assert half.shape == (3, 5, 5)
    assert set(halves.unique().tolist()) == {0, 3}


def test_rotation_turns_counter_clockwise_about_half_the_sides():
    image, label = torch.zeros(3, 21, 21), torch.zeros(21, 21, dtype=torch.uint8)
    image[:, 5, 15], label[5, 15] = 1.0, 4  # up and right of the middle
    crop, labels = apply_change(image, label, NONE._replace(degrees=90.0), 21)
    # OpenCV's matrix [[0, 1, 0], [-1, 0, 21]] of 90 degrees about (10.5, 10.5): x' = y, y' = 21 - x
    assert labels[6, 5] == 4
    assert crop[:, 6, 5].tolist() == pytest.approx([1, 1, 1], abs=1e-4)


@pytest.mark.parametrize("degrees", [-10.0, 7.0])
def test_rotation_is_what_scipy_makes_of_opencvs_matrix(degrees):
    image, label = photograph(23, 31)
    crop, labels = apply_change(image, label, NONE._replace(degrees=degrees), 23)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle = np.array([23 / 2, 31 / 2])  # (y, x)
    back = np.array([[cos, sin], [-sin, cos]])  # of (y, x): the inverse of OpenCV's [[cos, sin], [-sin, cos]] of (x, y)
    offset = middle - back @ middle
    for channel, mean in enumerate(IMAGENET_MEAN):
        around = np.pad(image[channel].double().numpy() - mean, 3)  # beyond the image the mean, mixed in at its edge
        turned = ndimage.affine_transform(around, back, offset + back @ [-3, -3] + 3, order=1, cval=0.0) + mean
        assert np.allclose(crop[channel].numpy(), turned[3:26, 3:26], atol=1e-4)
    around = np.pad(label.numpy(), 3, constant_values=IGNORED)
    nearest = ndimage.affine_transform(around, back, offset + back @ [-3, -3] + 3, order=0, cval=IGNORED)
    assert (labels.numpy() == nearest[3:26, 3:26]).all()
    assert (labels == IGNORED).any()


def test_blur_is_opencvs_kernel_of_five_mirrored_at_the_edges():
    image, label = photograph()
    crop, labels = apply_change(image, label, NONE._replace(blurred=True), 24)
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    plain = ndimage.convolve1d(
        ndimage.convolve1d(image.double().numpy(), kernel, 1, mode="mirror"), kernel, 2, mode="mirror"
    )
    assert np.allclose(crop.numpy(), plain[:, :, :24], atol=1e-5)
    assert torch.equal(labels, label[:, :24])
    # its deviation is close to that which OpenCV states of five pixels: 0.3 ((5 - 1) / 2 - 1) + 0.8 = 1.1
    assert math.sqrt((kernel * np.arange(-2, 3) ** 2).sum()) == pytest.approx(1.0)


def test_flip_mirrors_left_and_right():
    image, label = photograph(20, 20)
    crop, labels = apply_change(image, label, NONE._replace(flipped=True), 20)
    assert torch.equal(crop, image.flip(2))
    assert torch.equal(labels, label.flip(1))


def changes(config, number=400):
    generator = torch.Generator().manual_seed(1)
    return [draw_change(config, generator) for _ in range(number)]


def test_everything_off_changes_nothing():
    assert {change[:4] for change in changes(OFF)} == {(1.0, None, False, False)}


@pytest.mark.parametrize(
    ("option", "on"),
    [
        ({"scale": (0.5, 2.0)}, lambda change: change.factor != 1),
        ({"rotation": 0.5}, lambda change: change.degrees is not None),
        ({"blur": 0.5}, lambda change: change.blurred),
        ({"flip": 0.5}, lambda change: change.flipped),
    ],
)
def test_each_option_alone_switches_its_own_change_on(option, on):
    drawn = changes(replace(OFF, **option))
    share = sum(map(on, drawn)) / len(drawn)
    assert share == 1 if "scale" in option else 0.4 < share < 0.6
    fields = [change[:4] for change in drawn if not on(change)]
    assert all(field == (1.0, None, False, False) for field in fields)
    (changed,) = {n for change in drawn for n in range(4) if change[n] != NONE[n]}
    assert (
        NONE._fields[changed]
        == {"scale": "factor", "rotation": "degrees", "blur": "blurred", "flip": "flipped"}[next(iter(option))]
    )


def test_numbers_of_the_program_and_their_ranges():
    """docs/rp-pgd.md, Method 15."""
    assert {name: (one.crop, one.scale) for name, one in AUGMENTATIONS.items()} == {
        "voc": (473, (0.5, 2.0)),
        "cityscapes": (449, (0.25, 1.0)),
        "ade20k": (465, (0.5, 2.0)),
    }
    drawn = changes(AugmentationConfig())
    factors = [change.factor for change in drawn]
    degrees = [change.degrees for change in drawn if change.degrees is not None]
    assert 0.5 <= min(factors) < 0.52
    assert 1.98 < max(factors) <= 2.0
    assert -10 <= min(degrees) < -9.5
    assert 9.5 < max(degrees) <= 10
    assert np.mean(factors) == pytest.approx(1.25, abs=0.06)
    assert {change.place[0] < 0.5 for change in drawn} == {True, False}


def test_the_same_seed_gives_the_same_crop_and_bytes_the_same_as_floats():
    image, label = photograph(60, 50)
    image = (255 * image).to(torch.uint8)
    one, two, other = (
        augment(picture, label, AugmentationConfig(crop=33), torch.Generator().manual_seed(seed))
        for picture, seed in ((image, 5), (image.float() / 255, 5), (image, 6))
    )
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])
    assert one[0].min() >= 0
    assert one[0].max() <= 1


def test_image_and_labels_stay_on_each_other_through_all_changes():
    """An image that is its own labels: where the crop is not a mixture of two classes, both say the same."""
    label = torch.zeros(80, 90, dtype=torch.uint8)
    label[20:60, 30:70] = 1
    image = label.float().expand(3, -1, -1)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        crop, labels = augment(image, label, AugmentationConfig(crop=65), generator)
        sure = (labels != IGNORED) & ((crop[0] < 0.02) | (crop[0] > 0.98))
        assert sure.any()
        assert ((crop[0] > 0.5) == (labels == 1))[sure].float().mean() > 0.99


def test_the_middle_and_the_longer_side():
    image, label = photograph(24, 30)
    middle, labels = centred(image, label, 20)
    assert torch.equal(middle, image[:, 2:22, 5:25])
    assert torch.equal(labels, label[2:22, 5:25])
    padded, labels = centred(image, label, 28)
    assert torch.equal(padded[:, 2:26], image[:, :, 1:29])
    assert (labels[:2] == IGNORED).all()
    assert centred(image, None, 28)[1] is None
    resized, labels = long_side_resized(image, label, 15)
    assert (resized.shape, labels.shape) == ((3, 12, 15), (12, 15))


def test_wrong_values_are_refused_by_name():
    image, label = photograph()
    with pytest.raises(ValueError, match=r"label torch.uint8 \[24, 29\] but must be"):
        apply_change(image, label[:, :29], NONE, 20)
    with pytest.raises(ValueError, match=r"augmentation.scale is \(2.0, 0.5\) but the lowest factor comes first"):
        AugmentationConfig(scale=(2.0, 0.5))
    with pytest.raises(ValueError, match=r"augmentation.blur is 1.5"):
        AugmentationConfig(blur=1.5)


def test_everything_runs_where_the_image_lies(police):
    image, label = (tensor.to("cuda") for tensor in photograph(40, 50))
    change = Change(factor=1.3, degrees=5.0, blurred=True, flipped=True, place=(0.5, 0.5))
    crop, labels = apply_change(image, label, change, 65)
    assert (crop.device.type, labels.device.type) == ("cuda", "cuda")
    host, on_host = apply_change(*photograph(40, 50), change, 65)
    assert torch.allclose(crop.to("cpu"), host)
    assert torch.equal(labels.to("cpu"), on_host)
