"""Reading and writing volumes, folders of cases, and the cache: what is accepted, and how the rest is refused."""

import gzip
import json
import logging
import os
import struct

import nibabel as nib
import numpy as np
import pytest
import torch
from segarena.datasets.cache import cache_entries, cached, clear_cache
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
    with pytest.raises(ValueError, match=r"ct\.mgz cannot be read as NIfTI \(its first \d+ bytes are no header"):
        read_nifti(tmp_path / "ct.mgz")
    with pytest.raises(FileNotFoundError, match=r"none\.nii does not exist"):
        read_nifti(tmp_path / "none.nii")


def test_labels_stored_as_floats_are_taken_and_may_be_constant(tmp_path):
    data = np.zeros((4, 4, 4), np.float32)
    label, _ = read_label(write(tmp_path / "empty.nii", data), classes=3)
    assert label.dtype == np.uint8
    assert not label.any()
    data[0], data[1] = 0.9999, 2.0001  # what scaling in float32 makes of 1 and 2
    label, _ = read_label(write(tmp_path / "label.nii", data), classes=3)
    assert [label[i, 0, 0] for i in range(3)] == [1, 2, 0]
    data[2, 0, 0] = 1.5
    with pytest.raises(ValueError, match=r"label\.nii has labels 1\.5 but the classes are 0\.\.2"):
        read_label(write(tmp_path / "label.nii", data), classes=3)


def header_with(offset, form, *values):
    """A NIfTI file of 6 x 7 x 8 float32 voxels whose header says something else at one place."""
    content = bytearray(nib.Nifti1Image(noise(), RAS).to_bytes())
    struct.pack_into(form, content, offset, *values)
    return bytes(content)


COMPLEX = nib.Nifti1Image(noise().astype(np.complex64), RAS).to_bytes()
RGB = nib.Nifti1Image(np.zeros((6, 7, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")]), RAS).to_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (COMPLEX, "voxels of the type complex64, but one number each is needed"),
        (RGB, "voxels of the type .*, but one number each is needed"),
        (header_with(70, "<h", 9999), "voxels of the unknown type 9999"),
        (header_with(72, "<h", 64), "voxels of 64 bits, but those of the type float32 have 32"),
        (header_with(108, "<f", float("inf")), "at byte inf, which lies in its header"),
        (header_with(108, "<f", 0.0), "at byte 0, which lies in its header"),
        (header_with(108, "<f", 1e30), "its header says 1,0.* bytes but it has 1,"),
        (header_with(40, "<4h", 3, 32767, 32767, 32767), "has 32767 x 32767 x 32767 voxels, more than"),
        (header_with(40, "<4h", 3, 6, -7, 8), "has the dimensions .*, which are none"),
        (header_with(40, "<4h", 3, 6, 7, 9), r"its header says 1,864 bytes but it has 1,696"),
        (header_with(40, "<4h", 3, 6, 7, 7), r"its header says 1,528 bytes but it has more"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_lies_is_refused_by_name(tmp_path, suffix, content, message):
    path = tmp_path / f"ct{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    with pytest.raises(ValueError, match=message) as caught:
        read_nifti(path)
    assert str(path) in str(caught.value)


def test_of_a_packed_file_no_more_is_read_than_its_header_says(tmp_path, monkeypatch):
    path = write(tmp_path / "ct.nii.gz", noise())
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(1 << 20)))
    read = []
    original = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: read.append(size) or original(self, size))
    with pytest.raises(ValueError, match="bytes but it has more"):
        read_nifti(path)
    assert max(read) == 352 + 6 * 7 * 8 * 4 + 1
    assert min(read) > 0


@pytest.mark.parametrize("size", [1000.0, 1e-9])
def test_voxels_in_another_unit_than_mm_are_refused(tmp_path, size):
    path = write(tmp_path / "ct.nii", noise(), np.diag([size, 1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=rf"gives its voxels the size {size:g} x 1 x 1 mm, .* in mm"):
        read_frame(path)


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


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("../elsewhere/liver_1.nii.gz", r"names '\.\./elsewhere/liver_1\.nii\.gz', which must lie below"),
        ("{root}/elsewhere/liver_1.nii.gz", "which must lie below"),
        ("nul\0.nii.gz", "which is no file name"),
    ],
)
def test_dataset_json_does_not_lead_out_of_its_folder(tmp_path, image, message):
    folder = decathlon(tmp_path / "Task03_Liver", ["liver_0"])
    write(tmp_path / "elsewhere" / "liver_1.nii.gz", noise())
    entry = {"image": image.format(root=tmp_path), "label": "./labelsTr/liver_0.nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(ValueError, match=message) as caught:
        find_cases(folder)
    assert "dataset.json names" in str(caught.value)


def test_files_may_be_links_to_another_disk(tmp_path):
    folder = decathlon(tmp_path / "Task03_Liver", ["liver_0"])
    image = folder / "imagesTr" / "liver_0.nii.gz"
    (tmp_path / "disk").mkdir()
    image.symlink_to(image.rename(tmp_path / "disk" / "ct.nii.gz"))
    assert [case.id for case in find_cases(folder)] == ["liver_0"]
    assert read_sample(find_cases(folder)[0], classes=3).id == "liver_0"


def test_two_cases_of_one_name_are_refused_and_dots_belong_to_the_name(tmp_path):
    folder = decathlon(tmp_path, ["ct.1.2", "ct.1.3"])
    assert [case.id for case in find_cases(folder)] == ["ct.1.2", "ct.1.3"]
    write(folder / "imagesTs" / "ct.1.2.nii.gz", noise())
    description = json.loads((folder / "dataset.json").read_text()) | {"test": ["imagesTs/ct.1.2.nii.gz"]}
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"two cases 'ct\.1\.2', .*imagesTr.* and .*imagesTs"):
        find_cases(folder)


def test_volumes_of_ones_own_are_found_with_the_labels_that_there_are(tmp_path):
    for name in ("b_10", "b_9", "a.5"):
        write(tmp_path / "images" / f"{name}.nii.gz", noise())
    write(tmp_path / "labels" / "b_9.nii", np.zeros((6, 7, 8), np.uint8))
    cases = find_cases(tmp_path)
    assert [case.id for case in cases] == ["a.5", "b_9", "b_10"]
    assert [case.label for case in cases] == [None, tmp_path / "labels" / "b_9.nii", None]
    assert read_sample(cases[1], classes=3).label is not None


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


def test_one_number_of_a_larger_tensor_can_be_cached(tmp_path):
    """As the score of the only window of a volume, which is a column of the logits' softmax."""
    one = torch.tensor([[0.25, 0.75]])[:, 1]
    assert one.stride() == (2,)
    for _ in range(2):
        assert cached("things", {}, lambda: {"score": one}, str(tmp_path))["score"].tolist() == [0.75]


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


@pytest.mark.parametrize("where", ["values", "name", "checksum"])
def test_a_bit_that_flipped_in_the_cache_is_noticed(tmp_path, caplog, where):
    build = Builder()
    cached("things", {}, build, str(tmp_path))
    (path,) = (tmp_path / "things").iterdir()
    content = bytearray(path.read_bytes())
    at = {"values": len(content) - 8, "name": content.index(b"values"), "checksum": content.index(b'"sha256":"') + 12}
    content[at[where]] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cached("things", {}, build, str(tmp_path))["values"], torch.arange(6).view(2, 3).T)
    assert (build.calls, "building it again" in caplog.text) == (2, True)


def test_a_cache_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        cached("things", {}, Builder(), str(tmp_path))
    finally:
        os.umask(before)
    (path,) = (tmp_path / "things").iterdir()
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_cache_is_counted_and_cleared_by_kind_and_nothing_else_is_touched(tmp_path):
    assert cache_entries(str(tmp_path / "none")) == clear_cache(cache_dir=str(tmp_path / "none")) == []
    for kind, keys in {"things": 2, "others": 1}.items():
        for key in range(keys):
            cached(kind, {"key": key}, Builder(), str(tmp_path))
    mine = tmp_path / "things" / "mine.safetensors"
    mine.write_bytes(b"mine")
    entries = cache_entries(str(tmp_path))
    assert [entry.kind for entry in entries] == ["others", "things", "things"]
    assert all(entry.bytes == entry.path.stat().st_size > 0 for entry in entries)
    assert clear_cache("others", str(tmp_path)) == entries[:1]
    assert not (tmp_path / "others").exists()
    assert clear_cache(cache_dir=str(tmp_path)) == entries[1:]
    assert list(tmp_path.rglob("*.*")) == [mine]


def test_a_cache_that_cannot_be_written_is_only_reported(tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        result = cached("things", {}, Builder(), str(tmp_path / "file"))
    assert result["values"].shape == (3, 2)
    assert "going on without it" in caplog.text
