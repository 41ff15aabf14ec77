"""The pool of volumes, and where patches of it are cut."""

import doctest

import numpy as np
import pytest
import torch
from segarena.common.counted import uniform
from segarena.datasets import volumes
from segarena.datasets.decathlon import cases, sampling
from segarena.datasets.decathlon import plan as plan_module
from segarena.datasets.decathlon.augmentation import NO_AUGMENTATION, AugmentationConfig, augment
from segarena.datasets.decathlon.cases import DecathlonConfig, load_decathlon
from segarena.datasets.decathlon.plan import Plan
from segarena.datasets.decathlon.sampling import (
    DRAWS,
    PLACE_DRAWS,
    PatchSampler,
    centre_corners,
    mass_centre,
    mass_corners,
)
from segarena.datasets.sample import Sample
from segarena.datasets.volumes import VolumePool

CLASSES = ("background", "one", "two")


def pool_of(*labels, channels=1):
    """Volumes whose intensity is the number of the voxel, so that a patch tells where it is from."""
    samples = []
    for number, label in enumerate(labels):
        label = torch.as_tensor(label, dtype=torch.uint8)
        voxels = torch.arange(label.numel(), dtype=torch.float32).view(label.shape)
        image = torch.stack([voxels + 0.5 * channel for channel in range(channels)])
        samples.append(Sample(f"case_{number}", image, label, (1.0, 1.0, 1.0)))
    return VolumePool.of(samples, [one.id for one in samples], ("c",) * channels, CLASSES)


def noise_label(shape, seed=0):
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def plan(size, inside=None):
    return Plan(size, inside or size, size, ((1, 1, 1),) * 3, 2)


# -- the pool ------------------------------------------------------------------------------------------------------


def test_patches_are_those_of_each_volume_and_of_its_reflection():
    shapes = [(9, 7, 8), (5, 12, 6), (20, 3, 4)]
    pool = pool_of(*(noise_label(shape, n) for n, shape in enumerate(shapes)), channels=2)
    corners = [(1, 2, 3), (-4, 0, -2), (18, -1, 2), (0, 0, 0)]
    rows, size = [0, 1, 2, 1], (6, 5, 4)
    found = pool.patches(torch.tensor(rows), torch.tensor(corners), size)
    assert (found.images.shape, found.images.dtype) == ((4, 2, *size), torch.float32)
    assert (found.labels.shape, found.labels.dtype) == ((4, *size), torch.int64)
    for n, (row, corner) in enumerate(zip(rows, corners, strict=True)):
        whole = pool[row]
        pads = [(0, 0)] + [
            (max(-c, 0) + 9, max(c + s - m, 0) + 9) for c, s, m in zip(corner, size, shapes[row], strict=True)
        ]
        image = np.pad(whole.image.numpy(), pads, "reflect")
        label = np.pad(whole.label.numpy(), pads[1:], "reflect")
        cut = tuple(slice(c + before, c + before + s) for c, s, (before, _) in zip(corner, size, pads[1:], strict=True))
        assert np.array_equal(found.images[n].numpy(), image[(slice(None), *cut)])
        assert np.array_equal(found.labels[n].numpy(), label[cut])


def test_a_length_of_five_padded_to_eight():
    """docs/seat.md, Method 5: one voxel before, two behind, by reflection."""
    label = torch.ones(5, 8, 8, dtype=torch.uint8)
    pool = pool_of(label)
    corner = mass_corners(pool, (8, 8, 8))
    assert corner.tolist() == [[-1, 0, 0]]
    line = pool.patches(torch.tensor([0]), corner, (8, 8, 8)).images[0, 0, :, 0, 0] / 64
    assert line.tolist() == [1, 0, 1, 2, 3, 4, 3, 2]


def test_an_axis_of_one_voxel_is_repeated():
    pool = pool_of(torch.ones(1, 4, 4, dtype=torch.uint8))
    patch = pool.patches(torch.tensor([0]), torch.tensor([[-2, 0, 0]]), (5, 4, 4)).images[0, 0]
    assert (patch == patch[0]).all()


def test_whole_volumes_rows_and_half_precision():
    pool = pool_of(noise_label((9, 7, 8)), noise_label((5, 6, 6), 1))
    assert torch.equal(pool[1].label, noise_label((5, 6, 6), 1))
    assert pool[-1].image.shape == (1, 5, 6, 6)
    taken = pool.take([1, 0, 1])
    assert (taken.ids, taken.groups) == (["case_1", "case_0", "case_1"],) * 2
    assert torch.equal(taken[2].image, pool[1].image)
    half = pool.to("cpu", torch.float16)
    patch = half.patches(torch.tensor([1]), torch.tensor([[0, 0, 0]]), (4, 4, 4)).images
    assert patch.dtype == torch.float32
    assert half.images.dtype == torch.float16
    assert torch.equal(patch, pool.patches(torch.tensor([1]), torch.tensor([[0, 0, 0]]), (4, 4, 4)).images)
    with pytest.raises(IndexError):
        pool[2]


def test_volumes_that_make_no_pool_are_refused_by_name():
    image, label = torch.rand(1, 4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.uint8)

    def pool(*samples):
        return VolumePool.of(samples, [one.id for one in samples], ("c",), CLASSES)

    one = Sample("one", image, label, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="no volume"):
        pool()
    with pytest.raises(ValueError, match=r"two has shape \(2, 4, 4, 4\) but must be \[1, X, Y, Z\]"):
        pool(one, Sample("two", torch.rand(2, 4, 4, 4), None, (1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match=r"label of two has shape \(4, 4, 5\), its image \(4, 4, 4\)"):
        pool(one, Sample("two", image, torch.zeros(4, 4, 5, dtype=torch.uint8), (1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match=r"two has the label 3 but the classes are 0\.\.2"):
        pool(Sample("two", image, label + 3, (1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match="one spacing and origin"):
        pool(one, Sample("two", image, label, (2.0, 1.0, 1.0)))
    without = pool(Sample("one", image, None, (1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match="have no labels"):
        without.patches(torch.tensor([0]), torch.tensor([[0, 0, 0]]), (2, 2, 2))
    with pytest.raises(ValueError, match="one has no label"):
        PatchSampler(without, plan((2, 2, 2)), seed=0)
    with pytest.raises(ValueError, match="one has no foreground"):
        mass_corners(pool(one), (2, 2, 2))


# -- the centre of mass, the centre --------------------------------------------------------------------------------


def test_known_centres_of_mass():
    """docs/seat.md, Method 5."""
    label = torch.zeros(40, 40, 40, dtype=torch.uint8)
    label[10, 20, 20], label[30, 20, 20] = 1, 2
    assert mass_centre(label, (16, 16, 16)).tolist() == [23, 20, 20]
    assert mass_corners(pool_of(label), (16, 16, 16)).tolist() == [[15, 12, 12]]
    label[:] = 0
    label[0, 20, 20] = 1
    assert mass_centre(label, (16, 16, 16)).tolist() == [7, 20, 20]
    assert mass_corners(pool_of(label), (16, 16, 16)).tolist() == [[0, 12, 12]]
    label[39, 20, 20] = 1
    label[33, 20, 20] = 1
    assert mass_centre(label, (16, 16, 16)).tolist() == [24, 20, 20], "all lie outside: the middle of all, within"
    label[12, 20, 20] = 1
    assert mass_centre(label, (16, 16, 16)).tolist() == [12, 20, 20], "only what can be a middle counts"


def test_patches_of_evaluation_lie_inside():
    pool = pool_of(noise_label((30, 20, 17)), noise_label((16, 40, 18), 1))
    for corners in (mass_corners(pool, (16, 16, 16)), centre_corners(pool, (16, 16, 16))):
        assert (corners >= 0).all()
        assert (corners + 16 <= pool.shapes).all()
    assert centre_corners(pool, (16, 16, 17)).tolist() == [[7, 2, 0], [0, 12, 1]]
    assert centre_corners(pool, (16, 24, 16))[0].tolist() == [7, -2, 0], "a smaller volume is reflected"


# -- training ------------------------------------------------------------------------------------------------------


def test_every_second_patch_has_foreground_in_its_middle_by_row_and_epoch():
    label = torch.zeros(20, 20, 20, dtype=torch.uint8)
    label[9, 9, 9], label[12, 8, 11] = 1, 2
    pool = pool_of(*[label] * 64)
    sampler = PatchSampler(pool, plan((8, 8, 8)), seed=3)
    rows = torch.arange(64)
    for epoch in (0, 1):
        middles = sampler.batch(rows, epoch).labels[:, 4, 4, 4] > 0
        drawn = (rows + epoch) % 2 == 0
        assert middles[drawn].all()
        assert middles[~drawn].float().mean() < 0.2
    everything = torch.cat([sampler.batch(rows, epoch).labels[:, 4, 4, 4] for epoch in range(8)])
    ones, twos = ((everything == k).sum().item() for k in (1, 2))
    assert abs(ones - twos) < 60, "classes are as likely"


def test_the_class_is_drawn_before_the_voxel():
    """A class of one voxel is in the middle as often as one of hundreds."""
    label = torch.zeros(24, 24, 24, dtype=torch.uint8)
    label[6:16, 6:16, 6:16] = 1
    label[18, 12, 12] = 2
    sampler = PatchSampler(pool_of(*[label] * 400), plan((8, 8, 8)), seed=0)
    rows = torch.arange(400)
    numbers = uniform(rows, PLACE_DRAWS, 7)
    corners = sampler.corners(rows, torch.ones(400, dtype=torch.bool), numbers)
    found = [int(label[tuple(corner + 4)]) for corner in corners]
    assert 0.4 < found.count(2) / 400 < 0.6
    assert found.count(0) == 0
    one = corners[[k == 1 for k in found]] + 4
    assert one.float().std(0).min() > 2, "voxels of the class are drawn all over it"


def test_middles_reach_everywhere_and_no_patch_leaves_its_volume():
    pool = pool_of(*[torch.zeros(14, 12, 20, dtype=torch.uint8)] * 500)
    sampler = PatchSampler(pool, plan((8, 8, 8)), seed=0)
    corners = sampler.corners(torch.arange(500), torch.ones(500, dtype=torch.bool), uniform(torch.arange(500), 5, 1))
    assert (corners >= 0).all()
    assert (corners + 8 <= pool.shapes).all()
    assert corners.min(0).values.tolist() == [0, 0, 0]
    assert corners.max(0).values.tolist() == [5, 3, 11]  # middles 4 to 13 - 4, the last not counted


def test_volumes_that_are_not_larger_than_a_patch_are_continued_on_both_sides():
    """docs/seat.md, Method 5: by (patch - size) // 2 + 3 voxels, along all axes but those that need none."""
    pool = pool_of(*[torch.zeros(8, 10, 40, dtype=torch.uint8)] * 500)
    sampler = PatchSampler(pool, plan((10, 10, 10)), seed=0)
    corners = sampler.corners(torch.arange(500), torch.zeros(500, dtype=torch.bool), uniform(torch.arange(500), 5, 1))
    assert corners.min(0).values.tolist() == [-4, -3, 0]  # (10 - 8) // 2 + 3, 0 + 3, none
    assert corners.max(0).values.tolist() == [8 + 4 - 11, 10 + 3 - 11, 40 - 11]


def test_a_volume_of_the_size_of_a_patch_is_continued_too():
    pool = pool_of(*[torch.zeros(10, 12, 40, dtype=torch.uint8)] * 500)
    sampler = PatchSampler(pool, plan((10, 10, 10)), seed=0)
    corners = sampler.corners(torch.arange(500), torch.zeros(500, dtype=torch.bool), uniform(torch.arange(500), 5, 1))
    assert corners.min(0).values.tolist() == [-3, -2, 0]


def test_a_patch_depends_on_seed_epoch_and_row_alone():
    pool = load_decathlon(DecathlonConfig(task="toy"), "train[:6]")
    whole = Plan((16, 16, 16), (16, 16, 16), (16, 16, 16), ((1, 1, 1),) * 3, 2)
    sampler = PatchSampler(pool, whole, AugmentationConfig(), seed=5)
    many, few = sampler.batch(torch.tensor([0, 3, 5]), 2), sampler.batch(torch.tensor([3]), 2)
    assert torch.allclose(many.images[1], few.images[0], atol=1e-5)
    assert torch.equal(many.labels[1], few.labels[0])
    assert not torch.allclose(sampler.batch(torch.tensor([3]), 4).images, few.images, atol=0.1)
    other = PatchSampler(pool, whole, AugmentationConfig(), seed=6)
    assert not torch.allclose(other.batch(torch.tensor([3]), 2).images, few.images, atol=0.1)


def test_without_augmentation_the_middle_is_cut_as_augmentation_does():
    pool = pool_of(noise_label((12, 9, 10)), noise_label((8, 14, 9), 1))
    sampler = PatchSampler(pool, plan((8, 8, 9), (6, 5, 6)), seed=0)
    rows = torch.tensor([1, 0, 1])
    numbers, foreground = uniform(rows, DRAWS, 1), torch.tensor([True, False, False])
    found = sampler.draw(rows, foreground, numbers)
    whole = pool.patches(rows, sampler.corners(rows, foreground, numbers[:, :PLACE_DRAWS]), (8, 8, 9))
    cut = augment(whole, (6, 5, 6), NO_AUGMENTATION, numbers[:, PLACE_DRAWS:])
    assert torch.equal(found.images, cut.images)
    assert torch.equal(found.labels, cut.labels)


def test_an_epoch_shows_each_volume_once_in_an_order_of_its_own():
    pool = load_decathlon(DecathlonConfig(task="toy"), "train")
    sampler = PatchSampler(pool, DecathlonConfig(task="toy").resolved_plan(), seed=1)
    orders = [sampler.order(epoch).tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(40))
    sizes = [len(patches.images) for patches in sampler.epoch(0, batch=12)]
    assert sizes == [12, 12, 12, 4]


def test_sampling_and_augmentation_stay_on_the_device(police):
    pool = pool_of(noise_label((12, 9, 10)), noise_label((8, 14, 9), 1)).to("cuda")
    sampler = PatchSampler(pool, plan((8, 8, 8), (6, 6, 6)), AugmentationConfig(), seed=0)
    corners = mass_corners(pool, (8, 8, 8))
    rows = torch.tensor([1, 0], device="cuda")
    sampler.batch(rows, 0)
    with police.count() as counted:
        found = sampler.batch(rows, 1)
        fixed = pool.patches(rows, corners[rows], (8, 8, 8))
        sampler.draw(rows, rows == 0, uniform(rows, DRAWS, 3))
    assert {tensor.device.type for tensor in (*found, *fixed)} == {"cuda"}
    assert counted.total == 0, counted.report()


@pytest.mark.parametrize("module", [volumes, sampling, cases, plan_module])
def test_the_examples_of_docstrings_run(module):
    failed, tried = doctest.testmod(module)
    assert tried > 1
    assert failed == 0
