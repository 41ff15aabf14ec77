"""Implanted lesions: where they lie, how dark they are, and that size means millimetres."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from segarena.datasets.liver.lesions import LesionConfig, implant_lesions, lesion_field
from segarena.datasets.sample import Sample

SPACING = (1.0, 2.0, 4.0)
BALL = LesionConfig(
    number=(1, 1), diameter_mm=(24.0, 24.0), contrast_hu=(-40.0, -40.0), edge_mm=0.5, texture_hu=0.0, irregularity=0.0
)


def ct(noise_hu=10.0, liver_hu=100.0):
    """A box of liver, 70 x 72 x 72 mm, in air, with noise."""
    label = torch.zeros(80, 42, 22, dtype=torch.uint8)
    label[5:75, 3:39, 2:20] = 1
    rng = torch.Generator().manual_seed(0)
    image = torch.where(label == 1, liver_hu, -1000.0) + noise_hu * torch.randn(label.shape, generator=rng)
    return Sample("ct", image[None], label, SPACING)


def test_lesions_lie_inside_the_liver_and_are_labelled_tumour():
    before = ct()
    after = implant_lesions(before, LesionConfig(), seed=0)
    tumour = after.label == 2
    assert tumour.any()
    assert (before.label[tumour] == 1).all()
    assert torch.equal(after.label[~tumour], before.label[~tumour])
    assert (after.id, after.origin) == ("ct#0", "implanted")
    assert (before.label < 2).all(), "the given sample was changed"


def test_the_same_seed_gives_the_same_lesions_and_another_does_not():
    first, again, other = (implant_lesions(ct(), LesionConfig(), seed) for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.label, again.label)
    assert not torch.equal(first.label, other.label)
    renamed = implant_lesions(replace(ct(), id="other"), LesionConfig(), 0)
    assert not torch.equal(first.label, renamed.label), "two CTs got the same lesions"


def test_a_lesion_is_darker_by_its_contrast_and_keeps_the_noise_of_the_ct():
    before, after = ct(), implant_lesions(ct(), replace(BALL, edge_mm=0.1), seed=3)
    added = (after.image - before.image)[0]
    tumour = after.label == 2
    assert float(added[tumour].mean()) == pytest.approx(-40, abs=1)
    assert float(after.image[0][tumour].std()) == pytest.approx(float(before.image[0][tumour].std()), abs=2)


def test_the_rim_is_half_as_deep_and_as_wide_as_the_edge_says():
    soft = implant_lesions(ct(), replace(BALL, edge_mm=4.0), seed=3)
    added = (soft.image - ct().image)[0]
    tumour = soft.label == 2
    shell = ndimage.binary_dilation(tumour) & ~tumour.numpy()
    assert -30 < float(added[torch.from_numpy(shell)].mean()) < -8
    assert float(added.min()) == pytest.approx(-40, abs=0.5)


def test_a_diameter_is_in_millimetres_along_every_axis():
    mask = implant_lesions(ct(), BALL, seed=3).label.numpy() == 2
    extent = [np.ptp(where) + 1 for where in np.nonzero(mask)]
    np.testing.assert_allclose(np.multiply(extent, SPACING), 24.0, atol=4.0)
    volume = mask.sum() * np.prod(SPACING)
    assert volume == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.06)


def test_irregular_lesions_are_no_balls_but_stay_within_their_bounds():
    wild = replace(BALL, irregularity=0.4)
    liver = np.ones((80, 80, 80), bool)
    _, mask = lesion_field(liver, (1.0, 1.0, 1.0), wild, np.random.default_rng(0))
    centre = ndimage.center_of_mass(ndimage.distance_transform_edt(mask) > 5)
    radius = np.sqrt(sum((w - c) ** 2 for w, c in zip(np.nonzero(mask), centre, strict=True)))
    assert 12.5 < radius.max() < 12 * 1.4 + 6
    _, ball = lesion_field(liver, (1.0, 1.0, 1.0), BALL, np.random.default_rng(0))
    surface = [(ndimage.binary_dilation(m) & ~m).sum() / m.sum() ** (2 / 3) for m in (mask, ball)]
    assert surface[0] > 1.02 * surface[1]


def test_texture_has_the_stated_strength():
    textured = replace(BALL, diameter_mm=(40.0, 40.0), texture_hu=8.0, texture_mm=2.0)
    field, mask = lesion_field(np.ones((70, 70, 70), bool), (1.0, 1.0, 1.0), textured, np.random.default_rng(1))
    core = ndimage.binary_erosion(mask, iterations=4)
    assert field[core].std() == pytest.approx(8.0, rel=0.2)


def test_lesions_do_not_touch_each_other():
    three = replace(BALL, number=(3, 3), diameter_mm=(16.0, 24.0), irregularity=0.2)
    for seed in range(5):
        label = implant_lesions(ct(), three, seed).label.numpy()
        assert ndimage.label(label == 2, structure=np.ones((3, 3, 3)))[1] == 3


def test_the_diameter_is_capped_by_the_room_in_the_liver():
    sample = ct()
    sample.label[:, :, 8:] = 0  # 6 slices of 4 mm are left
    mask = implant_lesions(sample, replace(BALL, diameter_mm=(10.0, 60.0)), seed=0).label == 2
    assert 0 < mask.sum() * np.prod(SPACING) <= 4 / 3 * np.pi * 14**3


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "ct has no label"),
        (torch.zeros(80, 42, 22, dtype=torch.uint8), "ct: the label holds no liver"),
        (torch.ones(80, 42, 22, dtype=torch.uint8) * (torch.arange(22) == 5), r"room for 0 lesion\(s\) of at least 24"),
    ],
)
def test_a_ct_without_room_for_lesions_is_refused(label, message):
    with pytest.raises(ValueError, match=message):
        implant_lesions(replace(ct(), label=label), BALL, seed=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", (0, 2)),
        ("number", (3, 2)),
        ("diameter_mm", (0.0, 5.0)),
        ("diameter_mm", (9.0, 5.0)),
        ("contrast_hu", (-20.0, 20.0)),
        ("contrast_hu", (-20.0, -60.0)),
        ("edge_mm", 0.0),
        ("texture_hu", -1.0),
        ("texture_mm", 0.0),
        ("irregularity", 1.0),
    ],
)
def test_an_impossible_lesion_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        LesionConfig(**{field: value})
