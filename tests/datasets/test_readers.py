"""Images that a user names: which files they are, volumes in any orientation and kind, and what is refused."""

import shutil
import sys
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from segarena.datasets.echo.planes import find_planes
from segarena.datasets.nifti import write_volume
from segarena.datasets.readers import VOLUMES, ImageFiles, find_images, find_series, read_volume

SHAPE = (7, 6, 5)


def itk():
    return pytest.importorskip("SimpleITK", reason="the extra `io` is not installed")


def volume():
    """No two voxels alike, so that a turned axis shows."""
    return np.random.default_rng(0).permutation(np.arange(np.prod(SHAPE), dtype=np.int16)).reshape(SHAPE)


def find(*inputs):
    return find_images(inputs, VOLUMES, find_series)


def series(folder, stored=None, *, uid="1.2.3", number="4", z=range(5), modality="CT", tilt=0.0):
    """A DICOM series of `stored` [X, Y, Z], in files whose names run against their positions."""
    pytest.importorskip("pydicom", reason="DICOM files are made with pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    stored = volume() if stored is None else stored
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(stored.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"{uid}.{k + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID, one.SeriesInstanceUID = CTImageStorage, f"{uid}.{k + 1}", uid
        one.StudyInstanceUID, one.Modality, one.SeriesNumber, one.InstanceNumber = "1.2", modality, number, k + 1
        one.Rows, one.Columns, one.SamplesPerPixel = stored.shape[1], stored.shape[0], 1
        one.PhotometricInterpretation, one.PixelSpacing = "MONOCHROME2", [1.5, 0.75]  # rows, columns
        one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, 20 + tilt * k, 2.0 * z[k]]
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleIntercept, one.RescaleSlope = -1000, 2
        one.PixelData = np.ascontiguousarray(stored[:, :, k].T).astype("<i2").tobytes()
        one.save_as(folder / f"{uid}_{9 - k}.dcm", enforce_file_format=True)
    return folder


# -- volumes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_a_volume_in_any_orientation_goes_to_ras_and_back_voxel_by_voxel(tmp_path, signs):
    """Eight directions of the axes, turned about z and with an order of axes that is not x, y, z."""
    turn = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]) * signs
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.7, 1.5, 3.0)
    affine[:3, 3] = (5, -7, 11)
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = b"of the patient"
    image = nib.Nifti1Image(volume(), affine, header)
    image.set_qform(affine, "scanner")
    image.set_sform(affine, "mni")
    nib.save(image, tmp_path / "ct.nii.gz")
    sample, frame = read_volume(ImageFiles("ct", tmp_path / "ct.nii.gz"))
    for value in (0, 17, 205):  # a voxel lies where it lay: read in RAS+, by the file itself
        at = np.argwhere(sample.image[0].numpy() == value)[0]
        expected = affine @ [*np.argwhere(volume() == value)[0], 1]
        np.testing.assert_allclose(sample.affine @ [*at, 1], expected, atol=1e-5)
    write_volume(frame.from_ras(sample.image[0].numpy()), frame, tmp_path / "back.nii.gz")
    back = nib.load(tmp_path / "back.nii.gz")
    assert np.array_equal(np.asarray(back.dataobj), volume())
    assert np.array_equal(back.affine, nib.load(tmp_path / "ct.nii.gz").affine)
    assert back.header.get_xyzt_units() == ("mm", "sec")
    assert (back.header["qform_code"], back.header["sform_code"]) == (1, 4)
    assert bytes(back.header["descrip"]).strip(b"\0") == b"", "what is written tells nothing of the patient"


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nii.gz"])
def test_other_kinds_of_volumes_lie_where_simpleitk_says(tmp_path, suffix):
    sitk = itk()
    image = sitk.GetImageFromArray(volume().T)
    image.SetSpacing((0.7, 1.5, 3.0))
    image.SetOrigin((5.0, -7.0, 11.0))
    angle = np.deg2rad(10)
    turn = [np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, -1]
    image.SetDirection(turn)
    sitk.WriteImage(image, str(tmp_path / f"ct{suffix}"))
    (files,) = find(tmp_path)
    sample, frame = read_volume(files)
    assert files.id == "ct"
    for at in ((0, 0, 0), (6, 2, 1), (3, 5, 4)):
        np.testing.assert_allclose(
            (frame.affine @ [*at, 1])[:3], np.array(image.TransformIndexToPhysicalPoint(at)) * (-1, -1, 1), atol=1e-4
        )
    assert np.array_equal(frame.from_ras(sample.image[0].numpy()), volume())
    write_volume(volume().astype(np.float32), frame, tmp_path / "out" / "map.nii.gz")
    back = sitk.ReadImage(str(tmp_path / "out" / "map.nii.gz"))
    np.testing.assert_allclose(back.GetDirection(), turn, atol=1e-5)
    np.testing.assert_allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-4)
    assert np.array_equal(sitk.GetArrayFromImage(back).T, volume())


def test_a_dicom_series_is_one_volume_in_hu_ordered_by_position(tmp_path):
    itk()
    (files,) = find(series(tmp_path / "patient7"))
    sample, frame = read_volume(files)
    assert files.id == "patient7"
    assert len(files.slices) == 5
    stored = frame.from_ras(sample.image[0].numpy())
    assert np.array_equal(stored, volume() * 2.0 - 1000)
    np.testing.assert_allclose(frame.affine, [[-0.75, 0, 0, 10], [0, -1.5, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert sample.spacing_mm == (0.75, 1.5, 2.0)


def test_several_series_in_a_folder_are_several_cases(tmp_path):
    itk()
    series(tmp_path / "study", uid="1.2.3", number="4")
    series(tmp_path / "study", volume()[::-1], uid="1.2.5", number="2")
    found = find(tmp_path / "study")
    assert [files.id for files in found] == ["study_series4", "study_series2"]
    first, second = (read_volume(files)[0].image for files in found)
    assert np.array_equal(first[0], second[0].flip(0))
    (single,) = find(tmp_path / "study" / "1.2.5_*.dcm")
    assert single.slices == found[1].slices, "a pattern may choose among the files of a folder"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ({"z": (0, 1, 2, 4, 5)}, "slices are missing"),
        ({"tilt": 0.8}, "gantry was tilted"),
        ({"modality": "MR"}, "modality MR"),
    ],
)
def test_a_dicom_series_that_is_no_even_stack_of_ct_is_refused(tmp_path, harm, said):
    itk()
    (files,) = find(series(tmp_path / "ct", **harm))
    with pytest.raises(ValueError, match=said):
        read_volume(files)


def test_a_single_slice_is_no_volume(tmp_path):
    itk()
    series(tmp_path / "ct")
    (files,) = find(tmp_path / "ct" / "1.2.3_9.dcm")
    with pytest.raises(ValueError, match="name the folder"):
        read_volume(files)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("colour", "3 numbers per voxel"),
        ("four", "3-D volume"),
        ("damaged", "cannot be read"),
        ("constant", "no image"),
        ("nan", "NaN"),
    ],
)
def test_a_volume_of_another_kind_that_is_no_ct_is_refused_by_name(tmp_path, harm, said):
    sitk = itk()
    stored = volume().T.astype(np.float32)
    if harm == "nan":
        stored[0, 0, 0] = np.nan
    made = {
        "colour": lambda: sitk.GetImageFromArray(np.stack([stored] * 3, axis=-1), isVector=True),
        "four": lambda: sitk.JoinSeries([sitk.GetImageFromArray(stored)] * 2),
        "constant": lambda: sitk.GetImageFromArray(stored * 0),
    }
    path = tmp_path / "ct.nrrd"
    sitk.WriteImage(made.get(harm, lambda: sitk.GetImageFromArray(stored))(), str(path))
    if harm == "damaged":
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=said) as refused:
        read_volume(ImageFiles("ct", path))
    assert str(path) in str(refused.value)
    assert "/tmp/SimpleITK" not in str(refused.value)


def test_without_the_extra_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "ct.nrrd").write_bytes(b"NRRD0004\n")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ValueError, match=r"pip install 'segarena\[io\]'"):
        read_volume(*find(tmp_path))


# -- which files -----------------------------------------------------------------------------------------------------


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"?")


def test_folders_give_their_images_sorted_and_neither_labels_nor_predictions(tmp_path):
    touch(
        tmp_path, "b.nii.gz", "a.NII", "a_gt.nii.gz", "b_mask.nii.gz", "b_score.nii.gz", ".c.nii", "notes.txt", "d.raw"
    )
    assert [(files.id, files.path.name) for files in find(tmp_path)] == [("a", "a.NII"), ("b", "b.nii.gz")]


def test_patterns_and_lists_find_each_image_once(tmp_path, monkeypatch):
    touch(tmp_path, "x/1.nii", "x/2.nii", "y/3.nii")
    monkeypatch.chdir(tmp_path)
    found = find("y/3.nii", "*/*.nii", "x")
    assert [files.id for files in found] == ["3", "1", "2"]


def test_equal_names_take_the_name_of_the_folder_above(tmp_path):
    touch(tmp_path, "a/x.nii", "b/x.nii", "b/y.nii")
    assert [files.id for files in find(tmp_path / "a", tmp_path / "b")] == ["a_x", "b_x", "y"]


@pytest.mark.parametrize(
    ("names", "wanted", "error", "said"),
    [
        ((), "missing.nii", FileNotFoundError, "missing.nii does not exist"),
        ((), "*.nii", FileNotFoundError, "nothing fits the pattern"),
        (("a/b.txt",), "a", FileNotFoundError, "no image in"),
        (("a/b/c.nii",), "a", FileNotFoundError, "it has folders, b"),
        (("a.txt",), "a.txt", ValueError, "no image that is known here"),
        (("x.nii", "x.nrrd"), ".", ValueError, "would both be called"),
    ],
)
def test_inputs_that_name_no_image_are_refused(tmp_path, names, wanted, error, said):
    touch(tmp_path, *names)
    with pytest.raises(error, match=said):
        find(tmp_path / wanted)


def test_the_real_dicom_series_lie_where_simpleitk_says(liver_data):
    sitk = itk()
    shared = liver_data.parents[1]
    for folder in ("CHAOS_Train_Sets/Train_Sets/CT/3/DICOM_anon", "dcmqi_ct_3slice/ct-3slice"):
        (files,) = find(shared / folder)
        sample, frame = read_volume(files)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in files.slices])
        image = reader.Execute()
        for at in ((0, 0, 0), (511, 3, 2), (100, 400, 1)):
            point = np.array(image.TransformIndexToPhysicalPoint(at)) * (-1, -1, 1)
            np.testing.assert_allclose((frame.affine @ [*at, 1])[:3], point, atol=1e-6)
            assert frame.from_ras(sample.image[0].numpy())[at] == image.GetPixel(at)


def test_the_images_of_a_camus_patient_are_found_without_its_labels(liver_data, tmp_path):
    patient = liver_data.parents[1] / "CAMUS" / "training" / "patient0001"
    shutil.copytree(patient, tmp_path / "mine")
    names = [files.id for files in find_planes([tmp_path / "mine"])]
    assert names == [f"patient0001_{view}_{instant}" for view in ("2CH", "4CH") for instant in ("ED", "ES")]
    assert Path(tmp_path / "mine" / "patient0001_2CH_ED_gt.mhd").is_file()
