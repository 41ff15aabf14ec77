"""Echo phantoms, and the images of a split in one form: what they are, and how settings without sense are refused."""

import numpy as np
import pytest
import torch
from segarena.datasets.echo.images import LV, MYO, EchoDataConfig, PhantomPatients, load_echo
from segarena.datasets.echo.phantom import INSTANTS, VENDORS, VIEWS, echo_phantom
from segarena.datasets.echo.preparation import Acquisition, resize, resize_mask, sector, simulate_acquisition, to_bytes
from segarena.rewards.echo_validity import valid_masks

FEW = PhantomPatients(train=3, val=1, test=2, pred=1)


def drawn(vendor, patients=20):
    """Images [4 * patients, 64, 64] before CLAHE, and their labels."""
    phantoms = [
        echo_phantom(vendor, patient, view, instant)
        for patient in range(patients)
        for view in VIEWS
        for instant in INSTANTS
    ]
    return np.stack([one.image for one in phantoms]), np.stack([one.label for one in phantoms])


@pytest.fixture(scope="module")
def phantoms():
    """20 patients of a."""
    return drawn("a")


def dice(a, b):
    return 2 * (a & b).sum((-2, -1)) / np.maximum(a.sum((-2, -1)) + b.sum((-2, -1)), 1)


# -- phantoms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_same_number_is_the_same_image_and_another_is_not(vendor):
    first, again = (echo_phantom(vendor, 7, "4CH", "ES") for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.image.dtype == np.float32
    assert first.image.min() == 0
    assert first.image.max() <= 1
    for other in (echo_phantom(vendor, 8, "4CH", "ES"), echo_phantom(vendor, 7, "2CH", "ES")):
        assert np.abs(other.image - first.image).mean() > 0.02
        assert (other.label != first.label).mean() > 0.01


def test_vendors_have_different_patients():
    a, b = (echo_phantom(vendor, 7, "4CH", "ED") for vendor in VENDORS)
    assert (a.label != b.label).mean() > 0.01
    assert a.spacing_mm != b.spacing_mm


@pytest.mark.parametrize(("size", "patients"), [(64, 25), (256, 6)])
@pytest.mark.parametrize("vendor", VENDORS)
def test_every_truth_is_anatomically_valid(vendor, size, patients):
    labels = [
        echo_phantom(vendor, patient, view, instant, size).label
        for patient in range(1000, 1000 + patients)
        for view in VIEWS
        for instant in INSTANTS
    ]
    assert valid_masks(torch.from_numpy(np.stack(labels))).all()


def test_at_end_systole_the_cavity_is_smaller_and_the_wall_thicker(phantoms):
    _, labels = phantoms
    pairs = labels.reshape(-1, 2, 64, 64)  # [patient and view, ED/ES, y, x]
    cavity, heart = (pairs == LV).sum((2, 3)), (pairs > 0).sum((2, 3))
    assert (cavity[:, 1] < 0.9 * cavity[:, 0]).all()
    middle = np.array([[(frame[20:40] == MYO).sum() for frame in pair] for pair in pairs])
    assert (middle[:, 1] > middle[:, 0]).mean() > 0.9
    assert (heart[:, 1] < heart[:, 0]).all()


def test_the_size_in_pixels_changes_neither_heart_nor_speckle():
    small, large = (echo_phantom("b", 3, "4CH", "ED", size) for size in (64, 128))
    blocks = large.image.reshape(64, 2, 64, 2).mean((1, 3))
    assert np.corrcoef(small.image.ravel(), blocks.ravel())[0, 1] > 0.99
    assert np.isclose(small.spacing_mm[0], 2 * large.spacing_mm[0])
    assert (small.label == large.label[::2, ::2]).mean() > 0.97


def test_a_threshold_cannot_find_the_ventricle(phantoms):
    images, labels = phantoms
    inside = images > 0
    best = max(dice(inside & (images < level), labels == LV).mean() for level in np.linspace(0.05, 0.95, 19))
    assert best < 0.5


def test_the_mean_mask_is_a_poor_guess(phantoms):
    _, labels = phantoms
    for structure, most in ((LV, 0.8), (MYO, 0.5)):
        guess = (labels[:40] == structure).mean(0) > 0.5
        assert dice(np.broadcast_to(guess, labels[40:].shape), labels[40:] == structure).mean() < most


def test_the_cavity_is_darker_than_the_wall_in_source_and_less_so_in_target(phantoms):
    contrast = {
        vendor: images[labels == MYO].mean() - images[labels == LV].mean()
        for vendor, (images, labels) in (("a", phantoms), ("b", drawn("b")))
    }
    assert contrast["a"] > 0.1
    assert 0.03 < contrast["b"] < contrast["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c", 0, "2CH", "ED"), "vendor is 'c' but must be one of a, b"),
        (("a", 0, "3CH", "ED"), "view is '3CH' but must be one of 2CH, 4CH"),
        (("a", 0, "2CH", "MD"), "instant is 'MD' but must be one of ED, ES"),
        (("a", -1, "2CH", "ED"), "patient -1 must not be negative"),
        (("a", 0, "2CH", "ED", 8), "at least 16 pixels"),
    ],
)
def test_an_unknown_phantom_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        echo_phantom(*arguments)


# -- one split -----------------------------------------------------------------------------------------------------


def test_a_split_of_phantoms_has_four_images_of_every_patient():
    echo = load_echo(EchoDataConfig(phantom_patients=FEW), "test")
    assert echo.images.shape == (8, 1, 64, 64)
    assert echo.images.dtype == echo.labels.dtype == torch.uint8
    assert echo.ids[:2] == ["phantom_a_200000_2CH_ED", "phantom_a_200000_2CH_ES"]
    assert echo.groups == ["phantom_a_200000"] * 4 + ["phantom_a_200001"] * 4
    assert echo.tags["view"] == ["2CH", "2CH", "4CH", "4CH"] * 2
    assert echo.tags["instant"] == ["ED", "ES"] * 4
    assert echo.spacing_mm.shape == (8, 2)
    assert echo.spacing_mm.dtype == torch.float64
    assert echo.origin == "phantom"
    assert set(echo.labels.unique().tolist()) == {0, 1, 2}
    phantom = echo_phantom("a", 200_001, "4CH", "ES")
    np.testing.assert_array_equal(echo.labels[-1], phantom.label)
    np.testing.assert_array_equal(echo.images[-1, 0], to_bytes(phantom.image, clahe=True))


def test_splits_and_vendors_share_no_patient():
    splits = [("a", s) for s in ("train", "val", "test", "pred")] + [("b", "train")]
    loaded = [load_echo(EchoDataConfig(vendor=v, phantom_patients=FEW), s) for v, s in splits]
    patients = [patient for echo in loaded for patient in set(echo.groups)]
    assert len(patients) == len(set(patients)) == 3 + 1 + 2 + 1 + 3
    labels = torch.cat([echo.labels.flatten(1) for echo in loaded])
    assert len(labels.unique(dim=0)) == len(labels)
    assert len(load_echo(EchoDataConfig(phantom_patients=FEW), "all")) == 4 * 7


def test_prepared_phantoms_come_from_the_cache_and_settings_are_part_of_its_key(tmp_path):
    config = EchoDataConfig(phantom_patients=FEW, cache_dir=str(tmp_path))
    first, again = load_echo(config, "val"), load_echo(config, "val")
    assert torch.equal(first.images, again.images)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    plain = load_echo(EchoDataConfig(phantom_patients=FEW, cache_dir=str(tmp_path), clahe=False), "val")
    assert not torch.equal(first.images, plain.images)
    assert torch.equal(first.labels, plain.labels)


def test_phantom_patients_can_be_named():
    config = EchoDataConfig(phantom_patients=FEW, patients={"mine": ["*_00000[02]", "*_200001"]})
    assert sorted(set(load_echo(config, "mine").groups)) == [
        "phantom_a_000000",
        "phantom_a_000002",
        "phantom_a_200001",
    ]


@pytest.mark.parametrize(
    ("split", "patients", "message"),
    [
        ("testing", None, "split is 'testing' but 'phantom' has train, val, test, pred, all"),
        ("test", {"train": ["*"]}, "split is 'test' but 'phantom' has train, all"),
        ("train", {"train": ["nobody*"]}, "no patient in 'phantom' is called 'nobody\\*'"),
        ("train", {"train": []}, "has no patient that is there"),
        ("train", {"train": ["*_00000?"], "test": ["*_000001"]}, "phantom_a_000001 is in train and in test"),
    ],
)
def test_a_split_that_is_not_there_is_refused(split, patients, message):
    with pytest.raises(ValueError, match=message):
        load_echo(EchoDataConfig(phantom_patients=FEW, patients=patients), split)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vendor": "c"}, "vendor is 'c' but must be one of 'a', 'b'"),
        ({"size": 8}, "size is 8 but must be at least 16"),
        ({"acquisition": Acquisition(gain=0.1)}, "for phantoms of another scanner set vendor to b"),
        ({"data": "/somewhere", "vendor": "b"}, "vendor 'b' belongs to phantoms"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EchoDataConfig(**settings)


def test_a_number_of_patients_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"phantom_patients\.val is -1 but must lie in \[0, 100000\]"):
        PhantomPatients(val=-1)
    with pytest.raises(ValueError, match="nobody in any split"):
        PhantomPatients(train=0, val=0, test=0, pred=0)


# -- preparation ---------------------------------------------------------------------------------------------------


def fan(height=120, width=150):
    """A grey sector with its probe at the top, and where it is."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    inside = (np.hypot(y, x - width / 2) < height - 4) & (np.abs(x - width / 2) < 0.7 * y)
    return np.where(inside, np.float32(0.5), np.float32(0)), inside


def test_the_sector_leaves_out_text_beside_it_and_keeps_dark_parts_inside():
    picture, inside = fan()
    picture[40:80, 70:90] = 0  # a cavity
    picture[2:8, 2:30] = 1  # text
    found = sector(picture)
    assert not found[:10, :32].any()
    assert (found == inside).mean() > 0.98
    assert found[40:80, 70:90].all()


def test_a_picture_without_black_margin_is_all_sector():
    assert sector(np.full((40, 50), 0.3, np.float32)).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gain": 0.2}, 0.7),
        ({"gamma": 2.0}, 0.25),
        ({"gain": -0.1, "gamma": 0.5}, 0.4**0.5),
        ({"gain": 0.8}, 1.0),
    ],
)
def test_gain_and_gamma_change_the_grey_inside_the_sector_only(change, expected):
    picture, _ = fan()
    changed = simulate_acquisition(picture, (1.0, 1.0), Acquisition(**change), "one")
    inside = sector(picture)
    np.testing.assert_allclose(changed[(picture > 0) & inside], expected, rtol=1e-5)
    assert (changed[~inside] == 0).all()
    assert changed.dtype == np.float32


def test_attenuation_grows_evenly_with_depth():
    picture, _ = fan()
    rows = simulate_acquisition(picture, (1.0, 1.0), Acquisition(attenuation=0.4), "one")[20:110, 75]
    steps = np.diff(rows)
    np.testing.assert_allclose(steps, steps[0], atol=1e-6)
    assert -0.4 / 110 < steps[0] < -0.4 / 125


def test_speckle_adds_noise_of_the_stated_spread_and_grain():
    picture = np.full((200, 200), 0.5, np.float32)
    fine, coarse = (
        simulate_acquisition(picture, (0.5, 0.5), Acquisition(speckle=0.2, speckle_mm=mm), "one") for mm in (1.0, 6.0)
    )
    assert fine.std() == pytest.approx(0.1, rel=0.05)
    assert fine.mean() == pytest.approx(0.5, abs=0.01)
    assert np.abs(np.diff(coarse)).mean() < 0.5 * np.abs(np.diff(fine)).mean()


def test_wedges_darken_beams_and_depend_on_the_image_only():
    picture, _ = fan()
    wedge = Acquisition(wedges=2, wedge_loss=0.5)
    one, again, other = (simulate_acquisition(picture, (1.0, 1.0), wedge, id) for id in ("one", "one", "other"))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    lit = sector(picture) & (picture > 0)
    assert one[lit].min() < 0.02
    assert 0.05 < (one[lit] < 0.25).mean() < 0.7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("speckle", -1),
        ("speckle_mm", 0),
        ("wedges", -1),
        ("wedge_loss", 2),
        ("attenuation", -0.1),
        ("gain", 3),
        ("gamma", 0),
    ],
)
def test_an_acquisition_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"acquisition\.{field} is {value} but must "):
        Acquisition(**{field: value})


def test_resizing_is_linear_for_images_and_nearest_for_masks():
    ramp = np.broadcast_to(np.linspace(0, 1, 80, dtype=np.float32), (50, 80))
    small = resize(np.ascontiguousarray(ramp), 20)
    np.testing.assert_allclose(small[10, 2:-2], ramp[0].reshape(20, 4).mean(1)[2:-2], atol=0.01)
    mask = np.zeros((40, 80), np.uint8)
    mask[10:20, 40:] = 2
    expected = np.zeros((20, 20), np.uint8)
    expected[5:10, 10:] = 2
    np.testing.assert_array_equal(resize_mask(mask, 20), expected)


def test_clahe_raises_the_contrast_of_a_flat_part():
    flat = 0.5 + 0.01 * np.random.default_rng(0).standard_normal((64, 64))
    flat[0, 0], flat[0, 1] = 0, 1
    flat = flat.astype(np.float32)
    assert to_bytes(flat, clahe=True).std() > 1.5 * to_bytes(flat, clahe=False).std()
    np.testing.assert_array_equal(to_bytes(flat, clahe=False), np.rint(flat * 255))


def test_any_phantom_can_be_named_in_full():
    few = PhantomPatients(train=1, val=1, test=1, pred=1)
    named = load_echo(EchoDataConfig(phantom_patients=few, patients={"new": ["phantom_a_200077"]}), "new")
    assert set(named.groups) == {"phantom_a_200077"}
    with pytest.raises(ValueError, match="phantom_b_200077"):
        load_echo(EchoDataConfig(phantom_patients=few, patients={"new": ["phantom_b_200077"]}), "new")
