"""Echocardiograms that a user names: pictures, NIfTI, .mhd and DICOM, and what is written in their space."""

import imageio.v3 as imageio
import nibabel as nib
import numpy as np
import pytest
import torch
from segarena.datasets.echo.images import EchoDataConfig, load_echo, pool_of
from segarena.datasets.echo.planes import find_planes, read_plane
from segarena.datasets.echo.preparation import resize_mask, to_native

WIDTH, HEIGHT = 30, 40


def picture():
    """[Y, X], no two rows or columns alike."""
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, (HEIGHT, WIDTH)).astype(np.uint8)


def one(path):
    (files,) = find_planes([path])
    return read_plane(files)


def labels():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:20, 10:14], mask[20:33, 3:9] = 1, 2
    return mask


def ultrasound(path, frames, *, colour=False, spacing_mm=None, modality="US"):
    """A DICOM file of `frames` [T, Y, X]; spacing (y, x) by its ultrasound region, as scanners say it."""
    pytest.importorskip("SimpleITK", reason="the extra `io` is not installed")
    pytest.importorskip("pydicom", reason="DICOM files are made with pydicom")
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, UltrasoundMultiFrameImageStorage

    kind = UltrasoundMultiFrameImageStorage if len(frames) > 1 else UltrasoundImageStorage
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, "1.2.3.4"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID, file.Modality = kind, "1.2.3.4", modality
    file.Rows, file.Columns = frames.shape[1:]
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.SamplesPerPixel, file.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        file.PlanarConfiguration = 0
        frames = np.stack([frames] * 3, axis=-1)
    if len(frames) > 1:
        file.NumberOfFrames = len(frames)
    if spacing_mm:
        region = Dataset()
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
        region.PhysicalDeltaY, region.PhysicalDeltaX = (mm / 10 for mm in spacing_mm)
        file.SequenceOfUltrasoundRegions = [region]
    file.PixelData = frames.tobytes()
    file.save_as(path, enforce_file_format=True)
    return path


# -- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stored", "atol"),
    [
        ("a.png", lambda grey: grey, 1e-6),
        ("a.png", lambda grey: np.stack([grey] * 3, axis=-1), 1e-6),
        ("a.PNG", lambda grey: np.stack([grey] * 3 + [np.full_like(grey, 255)], axis=-1), 1e-6),
        ("a.png", lambda grey: grey.astype(np.uint16) * 257, 1e-6),
    ],
)
def test_a_picture_is_grey_in_0_to_1_whatever_its_channels_and_bits(tmp_path, name, stored, atol):
    array = stored(picture())
    imageio.imwrite(tmp_path / name, array)
    plane = one(tmp_path / name)
    grey = array if array.ndim == 2 else array[..., 0]
    np.testing.assert_allclose(plane.pixels, grey / (65535 if grey.dtype == np.uint16 else 255), atol=atol)
    assert plane.spacing_mm is None
    assert not plane.prepared


def test_what_is_predicted_of_a_picture_is_a_picture(tmp_path):
    imageio.imwrite(tmp_path / "a.png", picture())
    plane = one(tmp_path / "a.png")
    doubt = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    mask, sure = plane.save(labels(), tmp_path, "a_mask"), plane.save(doubt, tmp_path, "a_doubt")
    assert np.array_equal(imageio.imread(mask), labels())
    written = imageio.imread(sure)
    assert written.dtype == np.uint16
    np.testing.assert_allclose(written / 65535, doubt, atol=1e-5)
    assert [files.id for files in find_planes([tmp_path])] == ["a"], "a second call does not predict predictions"


@pytest.mark.parametrize(
    ("content", "said"), [(b"\x89PNG\r\n\x1a\nxxxx", "cannot be read"), (None, "holds the value 7 in every pixel")]
)
def test_a_picture_that_shows_nothing_is_refused(tmp_path, content, said):
    path = tmp_path / "a.png"
    imageio.imwrite(path, np.full((HEIGHT, WIDTH), 7, np.uint8))
    if content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        one(path)


# -- files with a geometry -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(WIDTH, HEIGHT), (WIDTH, HEIGHT, 1)])
def test_what_is_predicted_of_nifti_lies_on_it(tmp_path, shape):
    affine = np.diag([-0.3, -0.15, 1, 1])
    affine[:3, 3] = (4, 5, 6)
    image = nib.Nifti1Image(picture().T.reshape(shape), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, "aligned")
    nib.save(image, tmp_path / "a.nii.gz")
    plane = one(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(plane.pixels, picture() / 255, atol=1e-6)
    assert plane.spacing_mm == pytest.approx((0.15, 0.3))
    back = nib.load(plane.save(labels(), tmp_path, "a_mask"))
    assert back.shape == shape
    assert np.array_equal(back.affine, nib.load(tmp_path / "a.nii.gz").affine)
    assert np.array_equal(np.asarray(back.dataobj).reshape(WIDTH, HEIGHT).T, labels())
    assert back.get_data_dtype() == np.uint8
    assert back.header.get_xyzt_units() == ("mm", "sec")
    assert back.header["qform_code"] == image.header["qform_code"]


@pytest.mark.parametrize("number", [2, 3])
def test_what_is_predicted_of_mhd_lies_where_simpleitk_says(tmp_path, number):
    sitk = pytest.importorskip("SimpleITK", reason="the extra `io` is not installed")
    image = sitk.GetImageFromArray(picture() if number == 2 else picture()[None])
    image.SetSpacing((0.3, 0.15, 1.5)[:number])
    image.SetOrigin((4.0, 5.0, 6.0)[:number])
    angle = np.deg2rad(20)
    turn = np.eye(number)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image.SetDirection(turn.flatten())
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    plane = one(tmp_path / "a.mhd")
    np.testing.assert_allclose(plane.pixels, picture() / 255, atol=1e-6)
    back = nib.load(plane.save(labels(), tmp_path, "a_mask"))
    assert back.shape == image.GetSize()
    for at in ((0, 0, 0), (WIDTH - 1, 3, 0), (7, HEIGHT - 1, 0)):
        x, y = image.TransformIndexToPhysicalPoint(at[:number])[:2]
        np.testing.assert_allclose((back.affine @ [*at, 1])[:2], (-x, -y), atol=1e-4)


def test_values_up_to_1_are_an_image_that_was_prepared_before(tmp_path):
    for name, values in (("raw", picture()), ("prepared", picture() / np.float32(255))):
        nib.save(nib.Nifti1Image(values.T, np.diag([0.3, 0.15, 1, 1])), tmp_path / f"{name}.nii.gz")
    prepared, raw = (read_plane(files) for files in find_planes([tmp_path]))
    assert (prepared.prepared, raw.prepared) == (True, False)
    np.testing.assert_allclose(prepared.pixels, raw.pixels, atol=1e-6)
    as_it_is = pool_of(prepared, EchoDataConfig(data="x", size=32)).images
    assert not torch.equal(as_it_is, pool_of(raw, EchoDataConfig(data="x", size=32)).images), "it had its CLAHE"


# -- DICOM -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [False, True])
def test_a_frame_of_ultrasound_is_one_image_with_its_spacing(tmp_path, colour):
    plane = one(ultrasound(tmp_path / "heart.dcm", picture()[None], colour=colour, spacing_mm=(0.2, 0.4)))
    assert plane.id == "heart"
    np.testing.assert_allclose(plane.pixels, picture() / 255, atol=1e-5)
    assert plane.spacing_mm == pytest.approx((0.2, 0.4))
    assert plane.save(labels(), tmp_path, "heart_mask").suffix == ".png"


def test_every_frame_of_a_sequence_is_an_image(tmp_path):
    frames = np.stack([picture(), picture()[::-1], picture()[:, ::-1]])
    ultrasound(tmp_path / "IM0001", frames, colour=True)
    found = find_planes([tmp_path])
    assert [files.id for files in found] == [f"IM0001_frame{k:03d}" for k in range(3)]
    for files, frame in zip(found, frames, strict=True):
        plane = read_plane(files)
        np.testing.assert_allclose(plane.pixels, frame / 255, atol=1e-5)
        assert plane.spacing_mm is None


def test_dicom_that_is_no_ultrasound_or_damaged_is_refused(tmp_path):
    with pytest.raises(ValueError, match="modality CT"):
        one(ultrasound(tmp_path / "ct.dcm", picture()[None], modality="CT"))
    path = ultrasound(tmp_path / "cut.dcm", picture()[None])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cut\.dcm cannot be read"):
        one(path)


# -- the way to the network and back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(778, 549), (64, 64), (65, 100), (91, 64)])
def test_a_mask_at_native_size_is_the_networks_mask_when_it_is_prepared_again(shape):
    small = np.random.default_rng(1).integers(0, 3, (64, 64)).astype(np.uint8)
    native = to_native(small, shape)
    assert native.shape == shape
    assert np.array_equal(resize_mask(native, 64), small)


def test_an_image_that_is_named_is_prepared_as_that_of_a_data_set(liver_data):
    camus = liver_data.parents[1] / "CAMUS_public"
    config = EchoDataConfig(data=str(camus), size=64, patients={"mine": ["patient0004"]})
    pool = load_echo(config, "mine")
    planes = [read_plane(files) for files in find_planes([camus / "database_nifti" / "patient0004"])]
    assert [plane.id for plane in planes] == pool.ids
    for number, plane in enumerate(planes):
        alone = pool_of(plane, config)
        assert torch.equal(alone.images[0], pool.images[number])
        assert torch.equal(alone.spacing_mm[0], pool.spacing_mm[number])
    old = [read_plane(files) for files in find_planes([camus.parent / "CAMUS" / "training" / "patient0004"])]
    for before, plane in zip(old, planes, strict=True):
        assert np.array_equal(before.pixels, plane.pixels), "the same image as .mhd"
