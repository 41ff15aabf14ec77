"""Fingerprints and preparation: known z-scores, statistics of the foreground, resampling, cut slices, channels."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from segarena.common.overlap import class_dice
from segarena.datasets.decathlon.fingerprint import measure, measure_intensities, own_range
from segarena.datasets.decathlon.preparation import cut_slices, prepare, resampled, restored, to_z
from segarena.datasets.decathlon.tasks import find_task
from segarena.datasets.nifti import Frame, read_channels
from segarena.datasets.sample import Sample


def sample(image, label=None, spacing=(1.0, 1.0, 1.0)):
    return Sample("case", torch.as_tensor(image), None if label is None else torch.as_tensor(label), spacing)


@pytest.mark.parametrize(
    ("task", "hu", "z"),
    [
        ("Spleen", 50, -1.3308002),
        ("Spleen", 300, 2.1132079),  # clipped to 176
        ("Lung", -1000, -2.7530186),
        ("Liver", 0, -2.6504542),
    ],
)
def test_known_values_in_z(task, hu, z):
    """docs/seat.md, Method 3; the constants of the table have six digits."""
    task = find_task(task)
    found = to_z(torch.full((1, 1, 1, 1), float(hu)), task.fingerprint, ct=task.ct)
    assert found.item() == pytest.approx(z, abs=3e-6)


def test_an_mr_is_scaled_by_its_own_range_channel_by_channel_whatever_its_unit():
    task = find_task("Prostate")
    image = torch.rand(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    found = to_z(image, task.fingerprint, ct=False)
    unit = torch.tensor([1e5, 0.01]).view(2, 1, 1, 1)
    assert torch.allclose(to_z(image * unit - 3, task.fingerprint, ct=False), found, atol=2e-3)
    for channel, (low, high) in zip(found, task.fingerprint.z_window(), strict=True):
        assert (channel.min().item(), channel.max().item()) == pytest.approx((low, high), abs=1e-5)
    ct = find_task("Spleen").fingerprint
    assert not torch.allclose(to_z(image[:1] * 9, ct, ct=True), to_z(image[:1], ct, ct=True)), "HU are not scaled"


def test_a_constant_channel_is_no_division_by_zero():
    image = torch.stack((torch.full((3, 3, 3), 7.0), torch.arange(27.0).view(3, 3, 3)))
    assert torch.equal(own_range(image)[0], torch.zeros(3, 3, 3))
    assert torch.isfinite(to_z(image, find_task("Prostate").fingerprint, ct=False)).all()


def test_intensities_are_those_of_the_foreground_inside_the_window_each_channel_by_itself():
    rng = np.random.default_rng(0)
    label = np.zeros((20, 20, 20), np.uint8)
    label[5:15, 5:15, 5:15] = 1
    image = np.stack([rng.normal(100, 10, label.shape), rng.normal(-50, 2, label.shape)]).astype(np.float32)
    image[:, label == 0] = 9999  # background must not count
    found = measure_intensities([sample(image, label)], 2, ct=True)
    voxels = image[:, label == 1][:, ::10]
    low, high = np.percentile(voxels, (0.5, 99.5), axis=1)
    assert np.array(found.window) == pytest.approx(np.stack((low, high), 1))
    for channel, (a, b), mean, std in zip(voxels, found.window, found.mean, found.std, strict=True):
        inside = channel[(channel >= a) & (channel <= b)]
        assert (mean, std) == pytest.approx((inside.mean(), inside.std(ddof=1)), rel=1e-5)
    assert found.std[0] > 3 * found.std[1], "deviations are not shared by channels"


def test_the_window_holds_the_percentiles_of_each_class():
    label = np.zeros((10, 10, 10), np.uint8)
    label[:5], label[9] = 1, 2  # the second class is smaller, and brighter
    image = np.where(label == 2, 1000.0, 10.0).astype(np.float32)[None]
    image[0, 0] = 0
    found = measure_intensities([sample(image, label)], 3, ct=True)
    assert found.window == ((0.0, 1000.0),)


def test_sizes_are_of_the_smallest_classs_objects_without_crumbs():
    label = np.zeros((30, 40, 200), np.uint8)
    label[2:12, 3:23, 10:40] = 1
    label[20:24, 5:11, 50:58] = 2
    label[29, 39, 199] = 2  # a crumb, under 5 % of the object
    image = np.random.default_rng(0).random((1, *label.shape), dtype=np.float32)
    found = measure([sample(image, label, (1.0, 1.0, 2.5))], 3, ct=False)
    assert (found.mean_size, found.small_size, found.small_volume) == ((30, 40, 160), (4, 6, 8), 192)
    assert found.spacing_mm == (1.0, 1.0, 2.5)


def test_what_cannot_be_measured_is_refused():
    image, label = np.ones((1, 4, 4, 4), np.float32), np.ones((4, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="class 2 is in none of the training cases"):
        measure_intensities([sample(image, label)], 3, ct=True)
    with pytest.raises(ValueError, match="case has no label"):
        measure_intensities([sample(image)], 2, ct=True)
    with pytest.raises(ValueError, match="no case to measure"):
        measure_intensities([], 2, ct=True)


# -- resampling ----------------------------------------------------------------------------------------------------


def test_a_volume_at_the_right_spacing_is_not_touched():
    task = find_task("Hippocampus")
    image = torch.rand(1, 9, 8, 7)
    label = torch.randint(0, 3, (9, 8, 7), dtype=torch.uint8)
    made = prepare(sample(image, label), task.fingerprint, ct=False)
    assert torch.equal(made.image, to_z(image, task.fingerprint, ct=False))
    assert torch.equal(made.label, label)
    assert (made.image.dtype, made.label.dtype, made.spacing_mm) == (torch.float32, torch.uint8, (1.0, 1.0, 1.0))


def test_images_are_resampled_cubic_and_labels_nearest_to_the_spacing_of_the_task():
    ramp = np.arange(12, dtype=np.float32)[:, None, None] * np.ones((1, 10, 8), np.float32)
    label = (ramp > 5).astype(np.uint8)
    made = prepare(sample(ramp[None], label, (2.0, 1.0, 1.0)), find_task("Hippocampus").fingerprint, ct=False)
    assert made.image.shape == (1, 24, 10, 8)
    assert made.label.shape == (24, 10, 8)
    assert set(made.label.unique().tolist()) == {0, 1}
    assert abs(made.label.float().mean().item() - label.mean()) < 0.05
    found = resampled(ramp, (2, 1, 1), 3, None)[:, 4, 4]
    assert found[8:-8] == pytest.approx(np.linspace(0, 11, 24)[8:-8], abs=1e-2), "a straight line stays one"
    assert resampled(ramp, (2, 1, 1), 3, None) == pytest.approx(ndimage.zoom(ramp, (2, 1, 1), order=3), abs=1e-4)


def test_slices_that_lie_far_apart_are_not_mixed():
    """docs/seat.md, Method 3: in-plane cubic, then the nearest slice."""
    rng = np.random.default_rng(1)
    volume = rng.random((10, 10, 6), dtype=np.float32)
    found = resampled(volume, (1.5, 1.5, 2), 3, coarse=2)
    assert found.shape == (15, 15, 12)
    flat = [ndimage.zoom(volume[:, :, k], 1.5, order=3) for k in range(6)]
    for k in range(12):
        assert min(np.abs(found[:, :, k] - one).max() for one in flat) < 1e-5, "each slice is one of the six"
    mixed = resampled(volume, (1.5, 1.5, 2), 3, coarse=None)
    assert np.abs(mixed - found).max() > 0.1


@pytest.mark.parametrize(("spacing", "coarse"), [((1, 1, 3.0), False), ((1, 1, 3.2), True), ((3.2, 1, 1), True)])
def test_a_ratio_of_more_than_three_makes_an_axis_coarse(spacing, coarse):
    steps = np.zeros((12, 12, 12), np.float32)
    axis = int(np.argmax(spacing))
    np.moveaxis(steps, axis, 0)[6:] = 1
    steps[0, 0, 0] = 2  # so that a cubic spline would overshoot elsewhere but here
    constants = find_task("Hippocampus").fingerprint
    made = prepare(sample(steps[None], None, spacing), constants, ct=False)
    line = np.moveaxis(made.image[0].numpy(), axis, 0)[:, 6, 6]
    assert (len(np.unique(line.round(3))) <= 2) is coarse, "only far slices stay as sharp as they are"


def test_three_hundred_slices_are_kept_around_the_foreground():
    """docs/seat.md, Method 3."""

    def kept(first, last, slices=500, axis=2, channels=1):
        label = np.zeros((2, 2, slices), np.uint8)
        label[:, :, first:last] = 1
        image = np.broadcast_to(np.arange(slices, dtype=np.float32), (channels, 2, 2, slices))
        image, label = np.moveaxis(image, 3, axis + 1), np.moveaxis(label, 2, axis)
        cut, cut_label, at = cut_slices(image, label, axis)
        assert cut.shape[1:] == cut_label.shape
        assert cut_label.sum() == label.sum(), "no foreground is lost"
        assert at == cut.min()
        return cut.min(), cut.max()

    assert kept(200, 300) == (100, 399)
    assert kept(200, 300, axis=0) == (100, 399)
    assert kept(0, 20) == (0, 299)
    assert kept(480, 500) == (200, 499)
    assert kept(100, 400) == (70, 429)  # 300 slices and 30 on each side
    assert kept(0, 0) == (100, 399)
    assert kept(200, 300, slices=300) == (0, 299)
    assert kept(200, 300, channels=2) == (0, 499)
    image = np.zeros((1, 2, 2, 500), np.float32)
    assert cut_slices(image, None, 2)[0] is image, "without labels nothing is cut"


def test_wrong_volumes_are_refused_by_name():
    with pytest.raises(ValueError, match="case has 1 channels but the constants are of 4"):
        prepare(sample(torch.rand(1, 4, 4, 4)), find_task(1).fingerprint, ct=False)
    with pytest.raises(ValueError, match="more than 536,870,912; check the size in its file"):
        prepare(sample(torch.rand(1, 40, 40, 40), None, (50.0, 50.0, 50.0)), find_task(4).fingerprint, ct=False)


# -- several channels on disk --------------------------------------------------------------------------------------


def test_channels_are_the_last_axis_of_a_file_and_the_first_here(tmp_path):
    stored = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(stored, np.diag([-1.0, 2.0, 3.0, 1.0])), path)  # x runs to the left
    image, frame = read_channels(path, 2)
    assert image == pytest.approx(np.moveaxis(stored[::-1], 3, 0))
    assert (frame.shape, frame.ras_spacing_mm) == ((4, 5, 6), (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"image.nii.gz has shape \(4, 5, 6, 2\), 2 channel\(s\), but 4 are needed"):
        read_channels(path, 4)
    stored[..., 1] = 5
    nib.save(nib.Nifti1Image(stored, np.eye(4)), path)
    assert (read_channels(path, 2)[0][1] == 5).all(), "one channel may be constant"
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match="holds the value 0 in every voxel"):
        read_channels(path, 2)


# -- and back ------------------------------------------------------------------------------------------------------


TURNED = np.array([[0.96, -0.28, 0, 12], [0.28, 0.96, 0, -30], [0, 0, 1, 7], [0, 0, 0, 1.0]])
"""About z by some 16 degrees, and shifted."""


def recorded(shape, spacing, seed=0):
    """A blob of two classes in a turned file of some spacing: sample, and frame."""
    affine = TURNED @ np.diag([*spacing, 1.0])
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    label = ((places**2).sum(0) < 0.5).astype(np.uint8)
    label[(label == 1) & (places[1] > 0.1)] = 2
    image = np.random.default_rng(seed).random((1, *shape), dtype=np.float32)
    frame = Frame(shape, affine)
    made = Sample("case", torch.from_numpy(image), torch.from_numpy(label), frame.ras_spacing_mm, frame.ras_affine)
    return made, frame


def one_hot(label, classes=3):
    return torch.nn.functional.one_hot(label.long(), classes).movedim(-1, 0).float()


def dice_of(found, label):
    return class_dice(found[None], label[None], (1, 2)).min().item()


@pytest.mark.parametrize(
    ("spacing", "least"),
    [
        ((1, 1, 1), 1.0),
        ((0.5, 0.5, 0.5), 0.84),  # half of the voxels of each axis are gone for good
        ((0.7, 1.3, 1.9), 0.95),
        ((0.8, 1.4, 4.0), 0.97),
        ((2.0, 1.0, 1.0), 0.98),
    ],
)
def test_a_label_comes_back_to_the_voxels_of_its_file(spacing, least):
    sample_, frame = recorded((24, 30, 18), spacing)
    made = prepare(sample_, find_task("Hippocampus").fingerprint, ct=False)
    found = restored(one_hot(made.label), made, frame)
    assert found.shape == sample_.label.shape
    assert found.dtype == torch.uint8
    assert dice_of(found, sample_.label) >= least
    moved = torch.roll(sample_.label, 1, 0)
    assert dice_of(found, moved) < dice_of(found, sample_.label), "it lies where it was"


def test_prepared_voxels_lie_where_their_affine_says():
    """A ramp of mm along a direction of the patient is the same ramp where it was resampled."""
    sample_, frame = recorded((20, 24, 22), (0.7, 1.3, 1.9))
    direction = np.array([0.3, -0.5, 0.8])

    def ramp(affine, shape):
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        mm = np.einsum("ij,jxyz->ixyz", affine[:3, :3], index) + affine[:3, 3, None, None, None]
        return np.einsum("i,ixyz->xyz", direction, mm).astype(np.float32)

    stored = ramp(frame.ras_affine, frame.ras_shape)
    constants = replace(find_task("Spleen").fingerprint, spacing_mm=(1.0, 1.0, 1.0), window=((-1e4, 1e4),))
    made = prepare(replace(sample_, image=torch.from_numpy(stored)[None]), constants, ct=True)
    found = made.image[0].numpy() * constants.std[0] + constants.mean[0]
    inner = (slice(6, -6),) * 3  # a spline bends at the ends
    assert found[inner] == pytest.approx(ramp(made.affine, found.shape)[inner], abs=0.05)


def test_what_was_cut_off_is_background_and_the_rest_lies_in_place():
    shape = (4, 4, 700)
    label = np.zeros(shape, np.uint8)
    label[1:3, 1:3, 400:480] = 1
    label[1:3, 1:3, 480:500] = 2
    image = torch.rand(1, *shape)
    affine = np.diag([2.0, 2.0, 1.5, 1.0])
    constants = replace(find_task("Spleen").fingerprint, spacing_mm=(2.0, 2.0, 1.0))
    made = prepare(Sample("case", image, torch.from_numpy(label), (2.0, 2.0, 1.5), affine), constants, ct=True)
    assert made.image.shape[-1] == 300, "it was cut twice"
    frame = Frame(shape, affine)
    assert dice_of(restored(one_hot(made.label), made, frame), torch.from_numpy(label)) > 0.97
    everywhere = restored(one_hot(torch.ones_like(made.label)), made, frame)
    (kept,) = np.nonzero(everywhere[0, 0].numpy())
    assert len(kept) == pytest.approx(200, abs=2), "300 slices of 1 mm"
    assert kept[0] <= 400 < 500 <= kept[-1]


def test_scores_are_mixed_before_a_class_is_chosen_but_not_between_far_slices():
    """0.4, 0.6 beside 0.9, 0.1: the voxel between them is of the first class, whatever the nearest one says."""
    frame = Frame((5, 1, 1), np.eye(4))
    made = Sample("case", torch.zeros(1, 3, 1, 1), None, (2.0, 1.0, 1.0), np.diag([2.0, 1.0, 1.0, 1.0]))
    second = torch.tensor([0.6, 0.1, 0.6]).view(3, 1, 1)
    scores = torch.stack((1 - second, second))
    assert restored(scores, made, frame).flatten().tolist() == [1, 0, 0, 0, 1]
    coarse = Sample("case", made.image, None, (4.0, 1.0, 1.0), np.diag([4.0, 1.0, 1.0, 1.0]))
    found = restored(scores, coarse, Frame((9, 1, 1), np.eye(4))).flatten().tolist()
    assert found[:2] == [1, 1]
    assert found[3:6] == [0, 0, 0]
    assert found[7:] == [1, 1]


def test_volumes_of_a_single_slice_come_back():
    made = prepare(
        Sample("case", torch.rand(1, 8, 8, 1), None, (1.0, 1.0, 2.6), np.diag([1, 1, 2.6, 1.0])),
        find_task("Hippocampus").fingerprint,
        ct=False,
    )
    assert made.image.shape == (1, 8, 8, 3)
    scores = one_hot(torch.full((8, 8, 3), 2))
    assert restored(scores, made, Frame((8, 8, 1), np.diag([1, 1, 2.6, 1.0]))).eq(2).all()
    with pytest.raises(ValueError, match=r"is 0 voxels of .* mm thick along an axis"):
        prepare(sample(torch.rand(1, 8, 8, 1), None, (1.0, 1.0, 0.3)), find_task(4).fingerprint, ct=False)
