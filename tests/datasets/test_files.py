"""Reading and writing volumes, folders of cases, and the cache: what is accepted, and how the rest is refused."""

import gzip
import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from segarena.datasets.cache import cached
from segarena.datasets.msd import CaseFiles, find_cases, read_sample
from segarena.datasets.nifti import read_frame, read_label, read_nifti, write_volume

RAS = np.diag([1.0, 2.0, 3.0, 1.0])
LPS = np.array([[-1.0, 0, 0, 30], [0, -2, 0, 40], [0, 0, 3, -50], [0, 0, 0, 1]])
SLANTED_AND_PERMUTED = np.array([[0.1, 0.2, -2.9, 10], [-1.0, 0.1, 0.3, 20], [0.1, 2.0, 0.2, 30], [0, 0, 0, 1]])
AFFINES = [RAS, LPS, SLANTED_AND_PERMUTED]


def noise(shape=(6, 7, 8), seed=0):
    return np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)


def write(path, data, affine=RAS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def decathlon(folder, names, training=None):
    """A Decathlon task with one small case per name."""
    for name in names:
        write(folder / "imagesTr" / f"{name}.nii.gz", noise())
        write(folder / "labelsTr" / f"{name}.nii.gz", np.zeros((6, 7, 8), np.uint8))
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in training or names]
    (folder / "dataset.json").write_text(json.dumps({"training": entries, "test": []}))
    return folder


# -- NIfTI ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", AFFINES)
def test_a_volume_is_turned_to_ras_and_keeps_its_place_in_the_patient(tmp_path, affine):
    stored = noise()
    volume, frame = read_nifti(write(tmp_path / "ct.nii.gz", stored, affine))
    assert volume.dtype == np.float32
    assert volume.shape == frame.ras_shape
    assert nib.aff2axcodes(frame.ras_affine) == ("R", "A", "S")
    np.testing.assert_allclose(frame.ras_spacing_mm, np.linalg.norm(frame.ras_affine[:3, :3], axis=0))
    spot = np.unravel_index(stored.argmax(), stored.shape)
    turned = np.unravel_index(volume.argmax(), volume.shape)
    np.testing.assert_allclose(affine @ [*spot, 1], frame.ras_affine @ [*turned, 1], atol=1e-4)
    np.testing.assert_array_equal(frame.from_ras(volume), stored)


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_mask_is_written_onto_the_file_it_is_for(tmp_path, affine, suffix):
    stored = noise()
    volume, frame = read_nifti(write(tmp_path / "ct.nii.gz", stored, affine))
    write_volume(frame.from_ras((volume > 50).astype(np.uint8)), frame, tmp_path / "out" / f"mask{suffix}")
    written = nib.load(tmp_path / "out" / f"mask{suffix}")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored > 50)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [f"mask{suffix}"]


def test_scaled_integers_are_read_in_their_unit(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), RAS)
    image.header.set_slope_inter(2.0, -1000.0)
    image.to_filename(tmp_path / "ct.nii.gz")
    volume, _ = read_nifti(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(volume, np.arange(24).reshape(2, 3, 4) * 2.0 - 1000)


def test_the_frame_is_read_from_the_header(tmp_path):
    path = write(tmp_path / "ct.nii", noise(), LPS)
    path.write_bytes(path.read_bytes()[:400])
    assert read_frame(path).shape == (6, 7, 8)


def test_a_mask_for_another_file_or_under_another_suffix_is_refused(tmp_path):
    frame = read_frame(write(tmp_path / "ct.nii.gz", noise()))
    with pytest.raises(ValueError, match=r"shape \(6, 7, 9\) but the file it belongs to has \(6, 7, 8\)"):
        write_volume(np.zeros((6, 7, 9), np.uint8), frame, tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match=r"mask\.npy must end in"):
        write_volume(np.zeros((6, 7, 8), np.uint8), frame, tmp_path / "mask.npy")


def with_value(value):
    data = noise()
    data[1, 2, 3] = value
    return data


@pytest.mark.parametrize(
    ("data", "affine", "message"),
    [
        (with_value(np.nan), RAS, "1 voxels that are NaN or infinite"),
        (with_value(np.inf), RAS, "1 voxels that are NaN or infinite"),
        (np.full((4, 4, 4), -1000, np.int16), RAS, "-1000 in every voxel"),
        (noise((6, 7)), RAS, "a 3-D volume is needed"),
        (noise((6, 7, 8, 2)), RAS, "a 3-D volume is needed"),
        (noise(), np.diag([1.0, 2.0, 0.0, 1.0]), "gives its voxels no volume"),
    ],
)
def test_a_volume_that_is_no_image_is_refused_by_name(tmp_path, data, affine, message):
    path = tmp_path / "ct.nii.gz"
    image = nib.Nifti1Image(data, None)
    image.header.set_sform(affine, code=1)
    image.to_filename(path)
    with pytest.raises(ValueError, match=message) as caught:
        read_nifti(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 300, 400, 1200])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix, kept):
    path = write(tmp_path / f"ct{suffix}", noise())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"truncated or damaged|cannot be read as NIfTI") as caught:
        read_nifti(path)
    assert str(path) in str(caught.value)


def test_a_damaged_gzip_stream_is_refused_by_name(tmp_path):
    path = write(tmp_path / "ct.nii.gz", noise())
    damaged = bytearray(path.read_bytes())
    damaged[700:760] = bytes(60)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"ct\.nii\.gz is truncated or damaged"):
        read_nifti(path)


@pytest.mark.parametrize("content", [b"hello", gzip.compress(b"hello" * 1000)], ids=["text", "zipped text"])
def test_a_file_that_is_not_nifti_is_refused_by_name(tmp_path, content):
    (tmp_path / "ct.nii.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"ct\.nii\.gz cannot be read as NIfTI"):
        read_nifti(tmp_path / "ct.nii.gz")


def test_another_image_format_and_a_missing_file_are_refused_by_name(tmp_path):
    nib.save(nib.MGHImage(noise(), RAS), tmp_path / "ct.mgz")
    with pytest.raises(ValueError, match=r"ct\.mgz is a MGHImage, not NIfTI"):
        read_nifti(tmp_path / "ct.mgz")
    with pytest.raises(FileNotFoundError, match=r"none\.nii does not exist"):
        read_nifti(tmp_path / "none.nii")


def test_labels_stored_as_floats_are_rounded_and_may_be_constant(tmp_path):
    data = np.zeros((4, 4, 4), np.float32)
    label, _ = read_label(write(tmp_path / "empty.nii", data), classes=3)
    assert label.dtype == np.uint8
    assert not label.any()
    data[0], data[1] = 0.9999, 2.0001
    label, _ = read_label(write(tmp_path / "label.nii", data), classes=3)
    assert [label[i, 0, 0] for i in range(3)] == [1, 2, 0]


@pytest.mark.parametrize("value", [3, -1, 255])
def test_a_label_outside_the_classes_is_refused_with_its_value(tmp_path, value):
    data = np.zeros((4, 4, 4), np.int16)
    data[1, 1, 1] = value
    with pytest.raises(ValueError, match=rf"label\.nii has labels {value} but the classes are 0\.\.2"):
        read_label(write(tmp_path / "label.nii", data), classes=3)


# -- folders -------------------------------------------------------------------------------------------------------


def test_decathlon_cases_come_in_the_order_of_their_numbers_without_macos_junk(tmp_path):
    names = ["liver_10", "liver_9", "liver_100"]
    folder = decathlon(tmp_path / "Task03_Liver", names, training=[*names, "._liver_9"])
    for root in (folder, tmp_path):
        cases = find_cases(root)
        assert [case.id for case in cases] == ["liver_9", "liver_10", "liver_100"]
        assert all(case.image.is_file() and case.label.is_file() for case in cases)


def test_decathlon_test_cases_have_no_label(tmp_path):
    decathlon(tmp_path, ["liver_0"])
    write(tmp_path / "imagesTs" / "liver_131.nii.gz", noise())
    description = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(description | {"test": ["./imagesTs/liver_131.nii.gz"]}))
    last = find_cases(tmp_path)[-1]
    assert (last.id, last.label) == ("liver_131", None)
    assert read_sample(last, classes=3).label is None


@pytest.mark.parametrize("below", ["", "Training Batch 1"])
def test_lits_names_are_found(tmp_path, below):
    for number in (10, 2):
        write(tmp_path / below / f"volume-{number}.nii", noise())
        write(tmp_path / below / f"segmentation-{number}.nii.gz", np.zeros((6, 7, 8), np.uint8))
    write(tmp_path / below / "volume-11.nii", noise())
    (tmp_path / below / "._volume-12.nii").write_bytes(b"junk")
    (tmp_path / below / "volume-x.nii").write_bytes(b"junk")
    cases = find_cases(tmp_path)
    assert [(case.id, case.label is not None) for case in cases] == [
        ("liver_2", True),
        ("liver_10", True),
        ("liver_11", False),
    ]


def test_a_lits_number_that_occurs_twice_is_refused(tmp_path):
    write(tmp_path / "volume-1.nii", noise())
    write(tmp_path / "a" / "volume-1.nii.gz", noise())
    with pytest.raises(ValueError, match="both called volume 1"):
        find_cases(tmp_path)


def test_a_folder_without_cases_says_what_was_expected_and_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected dataset\.json .* LiTS .* found an empty folder"):
        find_cases(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"found notes\.txt"):
        find_cases(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_cases(tmp_path / "nowhere")
    (tmp_path / "dataset.json").write_text('{"training": []}')
    with pytest.raises(FileNotFoundError, match="no case in"):
        find_cases(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"training": [{"image": "a"}]}', '{"training": 3}'])
def test_a_dataset_json_that_is_none_is_refused_by_name(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset\.json is no Decathlon description"):
        find_cases(tmp_path)


def test_a_file_that_dataset_json_names_must_exist(tmp_path):
    decathlon(tmp_path, ["liver_0", "liver_1"])
    (tmp_path / "labelsTr" / "liver_1.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset\.json names .*labelsTr.liver_1\.nii\.gz, which does not"):
        find_cases(tmp_path)


def test_image_and_label_become_one_sample_in_ras(tmp_path):
    image, label = noise(), (noise() > 50).astype(np.float32)
    files = CaseFiles("a", write(tmp_path / "i.nii.gz", image, LPS), write(tmp_path / "l.nii.gz", label, LPS))
    sample = read_sample(files, classes=3)
    assert sample.image.shape == (1, 6, 7, 8)
    assert sample.image.dtype == torch.float32
    assert sample.label.dtype == torch.uint8
    assert torch.equal(sample.image[0] > 50, sample.label == 1)
    assert np.array_equal(sample.image[0], image[::-1, ::-1])
    assert (sample.spacing_mm, sample.origin) == ((1.0, 2.0, 3.0), "real")


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [((6, 7, 9), RAS, r"shape \(6, 7, 9\) but .*i\.nii has \(6, 7, 8\)"), ((6, 7, 8), LPS, "do not lie on each other")],
)
def test_a_label_that_does_not_lie_on_its_image_is_refused(tmp_path, shape, affine, message):
    label = write(tmp_path / "l.nii", np.zeros(shape, np.uint8), affine)
    with pytest.raises(ValueError, match=message) as caught:
        read_sample(CaseFiles("a", write(tmp_path / "i.nii", noise()), label), classes=3)
    assert str(label) in str(caught.value)


# -- cache ---------------------------------------------------------------------------------------------------------


class Builder:
    """Counts how often it had to build."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"values": torch.arange(6).view(2, 3).T}


def test_a_cached_result_is_built_once_per_key(tmp_path):
    build = Builder()
    results = [cached("things", {"a": 1, "b": [1, 2]}, build, str(tmp_path)) for _ in range(2)]
    assert build.calls == 1
    assert torch.equal(results[0]["values"], results[1]["values"])
    cached("things", {"a": 1, "b": [2, 1]}, build, str(tmp_path))
    cached("other", {"a": 1, "b": [1, 2]}, build, str(tmp_path))
    assert build.calls == 3


def test_the_cache_follows_its_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGARENA_CACHE", str(tmp_path / "here"))
    cached("things", {}, Builder())
    assert len(list((tmp_path / "here" / "things").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_damaged_cache_file_is_built_again(tmp_path, caplog, content):
    build = Builder()
    cached("things", {}, build, str(tmp_path))
    (path,) = (tmp_path / "things").iterdir()
    path.write_bytes(path.read_bytes()[:-8] if content is None else content)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cached("things", {}, build, str(tmp_path))["values"], torch.arange(6).view(2, 3).T)
    assert build.calls == 2
    assert "building it again" in caplog.text
    cached("things", {}, build, str(tmp_path))
    assert build.calls == 2


def test_a_cache_that_cannot_be_written_is_only_reported(tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        result = cached("things", {}, Builder(), str(tmp_path / "file"))
    assert result["values"].shape == (3, 2)
    assert "going on without it" in caplog.text
