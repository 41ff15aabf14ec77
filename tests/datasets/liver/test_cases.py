"""Liver cases on the working grid: alignment, the way back, splits, the cache, and real CTs."""

import json
import logging
import random
import shutil
from importlib import resources
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from segarena.datasets.folders import log_once
from segarena.datasets.liver import cases as liver_ct
from segarena.datasets.liver.cases import (
    PHANTOM_SPLITS,
    LiverDataConfig,
    iter_liver_cases,
    liver_case_ids,
    load_liver_cases,
)
from segarena.datasets.liver.grid import resample_to_shape, scale_hu
from segarena.datasets.liver.lesions import LesionConfig
from segarena.datasets.liver.phantom import liver_phantom
from segarena.datasets.nifti import Frame
from segarena.envs.spars_config import SparsConfig

STANDINS = Path(__file__).resolve().parents[4] / "shared" / "data" / "standins"
needs_standins = pytest.mark.skipif(not STANDINS.is_dir(), reason=f"the real sample CTs are not at {STANDINS}")
LPS = np.array([[-1.0, 0, 0, 30], [0, -1.5, 0, 40], [0, 0, 3, -50], [0, 0, 0, 1]])
PERMUTED = np.array([[0.0, 0, -3, 30], [1.0, 0, 0, 40], [0, 1.5, 0, -50], [0, 0, 0, 1]])
OFFICIAL_TEST = [
    *(3, 5, 11, 12, 17, 19, 24, 25, 27, 38, 40, 41, 42, 44, 51, 52, 58, 64, 70, 75, 77, 82, 101, 112, 115, 120, 128)
]


def write_case(folder, name, affine=LPS, shape=(60, 44, 30)):
    """A body of 60 HU with a liver of 120 HU, which holds a tumour of 200 HU: a landmark off every axis' middle."""
    image, label = np.full(shape, -1000, np.int16), np.zeros(shape, np.uint8)
    image[8:52, 6:40, 2:28] = 60
    for value, hu, (x, y, z) in ((1, 120, (20, 12, 6)), (2, 200, (24, 15, 9))):
        box = slice(x, x + 24 // value), slice(y, y + 20 // value), slice(z, z + 14 // value)
        image[box], label[box] = hu, value
    for kind, data in (("imagesTr", image), ("labelsTr", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, affine), folder / kind / f"{name}.nii.gz")
    names = sorted(file.name for file in (folder / "imagesTr").iterdir())
    entries = [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names]
    (folder / "dataset.json").write_text(json.dumps({"training": entries}))
    return folder


def config_for(folder, cache, **settings):
    return LiverDataConfig(**{"data": str(folder), "split": "all", "cache_dir": str(cache)} | settings)


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


# -- the grid ------------------------------------------------------------------------------------------------------


def test_hu_are_scaled_to_eight_bits_rounded_half_to_even_and_saturated():
    hu = torch.tensor([-1000.0, -17.0, 92.0, 201.0, 3000.0])
    assert scale_hu(hu, (-17, 201)).tolist() == [0, 0, 128, 255, 255]


def test_image_and_label_are_resampled_about_the_same_voxel_centres():
    frame = Frame((6, 4, 6), np.eye(4))
    ramp = torch.arange(6.0)[:, None, None].expand(6, 4, 6).contiguous()
    for shape, image, label in [
        ((2, 4, 6), [1.0, 4.0], [1, 4]),  # the middle of three voxels
        ((12, 4, 6), [0.0, *(n / 2 + 0.25 for n in range(10)), 5.0], [n // 2 for n in range(12)]),
    ]:
        grid = resample_to_shape(frame, shape)
        assert grid.image(ramp)[:, 0, 0].tolist() == image
        assert grid.label(ramp.to(torch.uint8))[:, 0, 0].tolist() == label


@pytest.mark.parametrize("affine", [LPS, PERMUTED])
@pytest.mark.parametrize(
    "settings",
    [
        {"grid_shape": (96, 80, 50)},
        {"grid_shape": (40, 30, 24)},
        {"grid": "spacing", "spacing_mm": (1.0, 1.2, 2.0), "grid_shape": (64, 40, 60)},
        {"grid": "spacing", "spacing_mm": (0.8, 1.0, 2.0), "grid_shape": (120, 90, 70)},
    ],
)
def test_a_landmark_stays_on_its_label_and_finds_its_way_back(tmp_path, affine, settings):
    folder = write_case(tmp_path, "liver_0", affine)
    (case,) = load_liver_cases(config_for(folder, tmp_path / "cache", hu_window=None, **settings))
    assert case.image.shape == case.label.shape == settings["grid_shape"]
    assert dice((case.hu > 160).numpy(), (case.label == 2).numpy()) > 0.85
    case.save_mask(case.label == 2, tmp_path / "out.nii.gz")
    truth, written = nib.load(folder / "labelsTr" / "liver_0.nii.gz"), nib.load(tmp_path / "out.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_allclose(written.affine, truth.affine)
    assert dice(np.asarray(written.dataobj) > 0, np.asarray(truth.dataobj) == 2) > 0.85


@pytest.mark.parametrize("lesions", [None, LesionConfig(diameter_mm=(5.0, 8.0))])
def test_the_native_label_is_the_files_own_or_holds_the_lesions_that_were_put_in(tmp_path, lesions):
    folder = write_case(tmp_path, "liver_0", PERMUTED)
    (case,) = load_liver_cases(config_for(folder, tmp_path / "cache", implant_lesions=lesions, grid_shape=(20, 40, 30)))
    native, file = case.native_label(), nib.load(folder / "labelsTr" / "liver_0.nii.gz")
    assert np.array_equal(native, np.asarray(file.dataobj)) == (lesions is None)
    ras = torch.from_numpy(np.ascontiguousarray(case.frame.file.to_ras(native)))
    assert torch.equal(case.frame.label(ras), case.label)
    assert load_liver_cases(LiverDataConfig(cases=["phantom_3000"]))[0].native_label is None


def test_spacing_is_that_of_the_grid(tmp_path):
    folder = write_case(tmp_path, "liver_0")  # 60 x 44 x 30 voxels of 1 x 1.5 x 3 mm
    cache = tmp_path / "cache"
    (case,) = load_liver_cases(config_for(folder, cache, grid_shape=(30, 33, 45)))
    assert case.spacing_mm == pytest.approx((2.0, 2.0, 2.0))
    (case,) = load_liver_cases(config_for(folder, cache, grid="spacing", spacing_mm=(2, 2, 2), grid_shape=(50, 50, 50)))
    assert case.spacing_mm == pytest.approx((2.0, 2.0, 2.0))


def test_a_crop_is_taken_around_the_body_and_padding_is_air(tmp_path):
    folder = write_case(tmp_path, "liver_0")
    settings = {"grid": "spacing", "spacing_mm": (1.0, 1.5, 3.0), "hu_window": None}
    (case,) = load_liver_cases(config_for(folder, tmp_path / "cache", grid_shape=(44, 34, 26), **settings))
    assert (case.hu > -200).float().mean() > 0.95
    (case,) = load_liver_cases(config_for(folder, tmp_path / "cache", grid_shape=(80, 60, 40), **settings))
    assert (case.hu[:10] == -1000).all()
    assert (case.label >= 1).sum() == 24 * 20 * 14


def test_voxels_too_large_for_the_spacing_are_refused_before_memory_is_asked_for(tmp_path):
    folder = write_case(tmp_path, "liver_0", np.diag([99.0, 99.0, 99.0, 1.0]))
    settings = {"grid": "spacing", "spacing_mm": (0.5, 0.5, 0.5), "grid_shape": (8, 8, 8)}
    with pytest.raises(ValueError, match=r"liver_0 has voxels of 99 x 99 x 99 mm and would have 11880 x 8712 x 5940"):
        load_liver_cases(config_for(folder, tmp_path / "cache", **settings))


def test_a_mask_of_another_grid_is_refused():
    (case,) = load_liver_cases(LiverDataConfig(cases=["phantom_0"]))
    with pytest.raises(ValueError, match=r"shape \(3, 3, 3\) but the grid of phantom_00000 has \(64, 64, 48\)"):
        case.to_native(torch.zeros(3, 3, 3))


# -- phantoms ------------------------------------------------------------------------------------------------------


def test_a_phantom_is_its_sample_in_eight_bits():
    (case,) = load_liver_cases(LiverDataConfig(cases=["phantom_12"]))
    sample = liver_phantom(12)
    assert (case.id, case.origin, case.spacing_mm) == ("phantom_00012", "phantom", (4.0, 4.0, 4.0))
    assert torch.equal(case.label, sample.label)
    assert torch.equal(case.image, scale_hu(sample.image[0], (-17, 201)))
    assert np.array_equal(case.to_native(case.label), sample.label)


def test_a_phantom_is_drawn_once_and_every_case_of_it_is_its_own():
    config = LiverDataConfig(cases=["phantom_4321"])
    (first,) = load_liver_cases(config)
    drawn = liver_ct._drawn_phantom.cache_info().misses
    truth = first.label.clone()
    first.label.zero_()
    first.image.zero_()
    (again,) = load_liver_cases(config)
    assert liver_ct._drawn_phantom.cache_info().misses == drawn
    assert torch.equal(again.label, truth)
    assert again.image.any()


def test_raw_hu_is_kept_when_there_is_no_window():
    windowed, raw = (
        load_liver_cases(LiverDataConfig(cases=["phantom_3"], hu_window=window))[0] for window in ((-17.0, 201.0), None)
    )
    assert windowed.hu is None
    assert raw.hu.dtype == torch.int16
    assert torch.equal(raw.hu, liver_phantom(3).image[0].round().short())
    assert torch.equal(raw.image, windowed.image)
    assert raw.digest != windowed.digest


def test_the_digest_knows_the_image_and_not_the_label(tmp_path):
    first, again, other = load_liver_cases(LiverDataConfig(cases=["phantom_1", "phantom_2"])) + load_liver_cases(
        LiverDataConfig(cases=["phantom_1"])
    )
    assert first.digest == other.digest != again.digest
    folder = write_case(tmp_path, "liver_0")
    (labelled,) = load_liver_cases(config_for(folder, tmp_path / "cache"))
    label = folder / "labelsTr" / "liver_0.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((60, 44, 30), np.uint8), LPS), label)
    (relabelled,) = load_liver_cases(config_for(folder, tmp_path / "cache"))
    assert (relabelled.label == 1).all(), "the cache gave the old label"
    assert labelled.digest == relabelled.digest


# -- which cases ---------------------------------------------------------------------------------------------------


def official_splits():
    return json.loads((resources.files("segarena.datasets.liver") / "splits" / "spars_v1.json").read_text())


def test_the_official_splits_are_those_of_seed_0_and_share_no_case():
    rest = [number for number in range(131) if number not in OFFICIAL_TEST]
    random.Random(0).shuffle(rest)
    numbers = {
        "classifier_train": rest[:24],
        "classifier_val": rest[24:40],
        "rl_pool": rest[40:],
        "test": OFFICIAL_TEST,
    }
    splits = official_splits()
    assert splits == {name: [f"liver_{n}" for n in chosen] for name, chosen in numbers.items()}
    assert [len(splits[name]) for name in ("classifier_train", "classifier_val", "rl_pool", "test")] == [24, 16, 64, 27]
    assert len({case for cases in splits.values() for case in cases}) == 131


def test_phantom_splits_share_no_case():
    numbers = [number for split in PHANTOM_SPLITS.values() for number in split]
    assert len(set(numbers)) == len(numbers)
    cases = load_liver_cases(LiverDataConfig(split="rl_pool"))
    assert [case.id for case in cases] == [f"phantom_{n:05d}" for n in PHANTOM_SPLITS["rl_pool"]]


def test_named_cases_win_over_the_split():
    chosen = LiverDataConfig(split="test", cases=["phantom_02001", "phantom_0200?", "phantom_77777"])
    ids = [case.id for case in load_liver_cases(chosen)]
    assert ids == ["phantom_02001", "phantom_02000", *(f"phantom_0200{n}" for n in range(2, 10)), "phantom_77777"]


def test_a_share_of_the_phantoms_has_no_tumours_and_says_so():
    config = LiverDataConfig(split="classifier_val[:5]", tumour_free=0.4)
    cases = load_liver_cases(config)
    healthy = [not bool((case.label == 2).any()) for case in cases]
    assert healthy == [False, False, True, False, True]
    assert [case.id.endswith("#healthy") for case in cases] == healthy
    assert [case.id.split("#")[0] for case in cases] == [f"phantom_0100{n}" for n in range(5)]
    ill = load_liver_cases(LiverDataConfig(split="classifier_val[:5]"))
    assert [one.digest == other.digest for one, other in zip(cases, ill, strict=True)] == [not h for h in healthy]
    assert len(load_liver_cases(LiverDataConfig(cases=["phantom_7"], tumour_free=1.0, grid_shape=(8, 8, 8)))) == 1
    for share in (0.0, 0.5, 1.0):
        ids = liver_case_ids(LiverDataConfig(split="classifier_train", tumour_free=share))
        assert sum("healthy" in case for case in ids) == 200 * share


def test_only_phantoms_can_do_without_tumours(tmp_path):
    with pytest.raises(ValueError, match=r"tumour_free is 0.5 but data is .* no phantoms; leave it 0"):
        config_for(tmp_path, tmp_path, tumour_free=0.5)


def test_a_part_of_a_split_may_stand_beside_named_cases():
    config = LiverDataConfig(split="classifier_train[:8]+classifier_val", cases=["phantom_5"])
    assert liver_case_ids(config) == ["phantom_00005"]
    with pytest.raises(ValueError, match=r"split is 'classifier_tran'.*did you mean"):
        liver_case_ids(LiverDataConfig(split="classifier_tran[:8]", cases=["phantom_5"]))


def test_a_folder_is_split_in_the_order_of_the_official_file(tmp_path):
    first, second = official_splits()["classifier_train"][:2]
    for name in (second, first, "liver_3"):
        write_case(tmp_path, name)
    cases = load_liver_cases(config_for(tmp_path, tmp_path / "cache", split="classifier_train", grid_shape=(8, 8, 8)))
    assert [case.id for case in cases] == [first, second]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "train"}, "is 'train' but .* has classifier_train, classifier_val, rl_pool, test, all; name cases"),
        (
            {"split": "rl_pool"},
            r"has no case that is there; there are liver_3; name cases, .* cases=\[\"liver_3\"\]",
        ),
        ({"cases": ["liver_4"]}, "'liver_4'; it has liver_3"),
        ({"cases": []}, "cases is empty"),
    ],
)
def test_a_wrong_selection_says_what_there_is(tmp_path, settings, message):
    write_case(tmp_path, "liver_3")
    with pytest.raises(ValueError, match=message):
        iter_liver_cases(config_for(tmp_path, tmp_path / "cache", **settings))


def empty_files(folder, images, labels=()):
    for kind, names in (("images", images), ("labels", labels)):
        for name in names:
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"{name}.nii.gz").touch()
    return folder


SPLITS = ("classifier_train", "classifier_val", "rl_pool", "test")


def divided(folder, **settings):
    return {s: liver_case_ids(LiverDataConfig(data=str(folder), split=s, **settings)) for s in SPLITS}


def test_cases_that_no_list_knows_are_divided_by_ratio_and_said_once(tmp_path, caplog):
    log_once.cache_clear()
    names = [f"ct_{n}" for n in range(10)]
    empty_files(tmp_path, [*names, "ct_10"], names)
    with caplog.at_level(logging.INFO):
        splits = divided(tmp_path)
    assert {split: len(ids) for split, ids in splits.items()} == dict(zip(SPLITS, (3, 1, 4, 2), strict=True))
    assert sorted(i for ids in splits.values() for i in ids) == sorted(names)
    assert splits == divided(tmp_path)
    assert splits != divided(tmp_path, split_seed=1)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 10 cases of 10 patients were divided by ratio (split_seed 0): classifier_train 3, "
        "classifier_val 1, rl_pool 4, test 2; 1 cases without label are in no split"
    ]
    assert len(liver_case_ids(LiverDataConfig(data=str(tmp_path), split="all"))) == 11


def test_all_cts_and_lesion_variants_of_a_patient_lie_in_one_split(tmp_path):
    empty_files(tmp_path, [f"P{n}_{phase}" for n in range(5) for phase in ("portal", "late")])
    splits = divided(tmp_path, patient_pattern="^P[0-9]+", implant_lesions=LesionConfig(), copies=2)
    patients = {split: {i.split("_")[0] for i in ids} for split, ids in splits.items()}
    assert sum(map(len, patients.values())) == 5
    assert sum(map(len, splits.values())) == 20


def test_ratios_that_are_given_win_over_the_list_of_the_decathlon(tmp_path):
    first = official_splits()["test"][:4]
    empty_files(tmp_path, first, first)
    assert liver_case_ids(LiverDataConfig(data=str(tmp_path), split="test")) == first
    ratios = {"rl_pool": 1.0, "test": 1.0}
    ids = {s: liver_case_ids(LiverDataConfig(data=str(tmp_path), split=s, split_ratios=ratios)) for s in ratios}
    assert [len(ids[split]) for split in ratios] == [2, 2]
    with pytest.raises(ValueError, match=r"split is 'classifier_train' but .* has rl_pool, test, all"):
        divided(tmp_path, split_ratios=ratios)


def test_too_few_patients_say_which_splits_would_be_empty(tmp_path):
    empty_files(tmp_path, ["liver_3", "patient_7"])
    message = (
        r"2 patients .*: test and classifier_val would be empty; name cases, such as --test\.cases '\[\"liver_3\"\]'"
    )
    with pytest.raises(ValueError, match=message) as caught:
        liver_case_ids(LiverDataConfig(data=str(tmp_path), split="test"), "--test.")
    assert str(caught.value).endswith("or take all by --test.split all")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grid", "isotropic"),
        ("grid_shape", (64, 0, 48)),
        ("grid_shape", (10_000, 10_000, 10_000)),
        ("split_ratios", {"test": -1.0}),
        ("patient_pattern", "("),
        ("spacing_mm", (1.0, -1.0, 1.0)),
        ("hu_window", (201.0, -17.0)),
        ("copies", 0),
        ("copies", 2),
        ("implant_lesions", LesionConfig()),
    ],
)
def test_an_impossible_configuration_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        LiverDataConfig(**{field: value})


def test_a_bad_file_stops_the_batch_or_is_reported_and_left_out(tmp_path, caplog):
    for number in range(3):
        write_case(tmp_path, f"liver_{number}")
    bad_path = tmp_path / "imagesTr" / "liver_1.nii.gz"
    bad_path.write_bytes(bad_path.read_bytes()[:500])
    config = config_for(tmp_path, tmp_path / "cache", grid_shape=(8, 8, 8))
    with pytest.raises(ValueError, match=r"liver_1\.nii\.gz is truncated"):
        load_liver_cases(config)
    bad = []
    assert [case.id for case in iter_liver_cases(config, on_bad=bad.append)] == ["liver_0", "liver_2"]
    assert [entry.id for entry in bad] == ["liver_1"]
    assert str(bad_path) in bad[0].reason
    assert "skipping liver_1" in caplog.text


# -- the cache -----------------------------------------------------------------------------------------------------


def test_a_prepared_case_is_read_once_and_known_by_its_content(tmp_path, monkeypatch):
    folder = write_case(tmp_path / "a", "liver_0")
    config = config_for(folder, tmp_path / "cache", hu_window=None)
    (first,) = load_liver_cases(config)
    moved = tmp_path / "b"
    shutil.copytree(folder, moved)
    with monkeypatch.context() as patch:
        patch.setattr(liver_ct, "read_sample", lambda *_, **__: pytest.fail("the file was read again"))
        (again,) = load_liver_cases(config_for(moved, tmp_path / "cache", hu_window=None))
    for name in ("image", "hu", "label"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.digest == again.digest
    assert np.array_equal(first.to_native(first.label), again.to_native(again.label))
    write_case(folder, "liver_0", shape=(60, 44, 31))
    (changed,) = load_liver_cases(config)
    assert changed.digest != first.digest


def test_what_changes_no_voxel_shares_the_cache_entry(tmp_path):
    folder = write_case(tmp_path, "liver_0")
    load_liver_cases(config_for(folder, tmp_path / "cache", grid_shape=(256, 256, 180)))
    load_liver_cases(SparsConfig(data=str(folder), cases=["liver_0"], cache_dir=str(tmp_path / "cache"), horizon=9))
    assert len(list((tmp_path / "cache" / "liver_ct").iterdir())) == 1


def test_another_window_or_grid_is_another_cache_entry(tmp_path):
    folder = write_case(tmp_path, "liver_0")
    for settings in ({}, {"hu_window": (0.0, 100.0)}, {"grid": "spacing"}, {"grid_shape": (16, 16, 16)}):
        load_liver_cases(config_for(folder, tmp_path / "cache", **{"grid_shape": (8, 8, 8)} | settings))
    assert len(list((tmp_path / "cache" / "liver_ct").iterdir())) == 4


# -- real CTs ------------------------------------------------------------------------------------------------------


@needs_standins
@pytest.mark.parametrize("grid", ["fixed_shape", "spacing"])
def test_real_livers_come_back_onto_their_own_files(tmp_path, grid):
    cases = load_liver_cases(config_for(STANDINS, tmp_path, grid=grid, grid_shape=(128, 128, 96)))
    if grid == "fixed_shape":
        assert [case.id for case in cases] == ["liver_0", "liver_1", "liver_2"]
    for case in cases:
        assert (case.origin, case.image.shape) == ("real", (128, 128, 96))
        assert 50 < case.image[case.label == 1].float().mean() < 200, "the label does not lie on the liver"


@needs_standins
def test_a_real_liver_mask_survives_the_grid_and_the_way_back(tmp_path):
    for case in load_liver_cases(config_for(STANDINS, tmp_path / "cache")):
        assert case.image.shape == (256, 256, 180)
        case.save_mask(case.label == 1, tmp_path / f"{case.id}.nii.gz")
        truth = nib.load(STANDINS / "Task03_Liver" / "labelsTr" / f"{case.id}.nii.gz")
        written = nib.load(tmp_path / f"{case.id}.nii.gz")
        np.testing.assert_allclose(written.affine, truth.affine, atol=1e-4)
        assert dice(np.asarray(written.dataobj) == 1, np.asarray(truth.dataobj) == 1) > 0.9


@needs_standins
def test_the_same_ct_under_lits_names_is_the_same_case(tmp_path):
    (lits,) = load_liver_cases(config_for(STANDINS / "LiTS17", tmp_path, cases=["liver_0"], grid_shape=(64, 64, 48)))
    (msd,) = load_liver_cases(config_for(STANDINS, tmp_path, cases=["liver_2"], grid_shape=(64, 64, 48)))
    assert torch.equal(lits.image, msd.image)
    assert torch.equal(lits.label, msd.label)


@needs_standins
def test_lesions_are_implanted_into_real_livers(tmp_path):
    lesions = LesionConfig(contrast_hu=(-50.0, -50.0), texture_hu=0.0)
    settings = {"cases": ["liver_2"], "hu_window": None, "grid_shape": (122, 101, 112)}
    (plain,) = load_liver_cases(config_for(STANDINS, tmp_path, **settings))
    copies = load_liver_cases(config_for(STANDINS, tmp_path, implant_lesions=lesions, copies=2, **settings))
    assert [case.id for case in copies] == ["liver_2#0", "liver_2#1"]
    assert not torch.equal(copies[0].label, copies[1].label)
    for case in copies:
        tumour = case.label == 2
        assert case.origin == "implanted"
        assert tumour.any()
        assert (plain.label[tumour] == 1).all()
        added = (case.hu - plain.hu).float()
        assert -51 <= added[tumour].mean() < -30
        assert added[~tumour].mean().abs() < 0.5
