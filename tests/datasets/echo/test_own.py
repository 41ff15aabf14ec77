"""Echocardiograms of one's own in images/ and labels/: formats, patients, pixel sizes, and what is refused."""

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from segarena.datasets.echo.images import EchoDataConfig, load_echo

SHAPE = (40, 32)
"""(y, x) of the small pictures made here."""


def grey(seed=0):
    """uint8 [y, x]: bright above, dark below."""
    image = np.random.default_rng(seed).integers(100, 255, SHAPE, dtype=np.uint8)
    image[20:] //= 4
    return image


def heart():
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:30, 8:24] = 2
    mask[12:30, 12:20] = 1
    return mask


def png(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path)
    return path


def nifti(path, plane, spacing=(0.5, 1.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(plane.T), np.diag([spacing[1], spacing[0], 1, 1])), path)
    return path


def load(folder, split="all", on_bad=None, **settings):
    settings = {"size": 32, "clahe": False, "spacing_mm": (0.4, 0.8)} | settings
    return load_echo(EchoDataConfig(data=str(folder), **settings), split, on_bad, "--target.")


def test_one_picture_in_every_format_is_one_image(tmp_path):
    folder = tmp_path / "images"
    deep = (grey().astype(np.uint16) * 257).astype(np.uint16)
    png(folder / "a_8bit.png", grey())
    png(folder / "b_16bit.png", deep)
    png(folder / "c_colour.png", grey(), mode="RGB")
    nifti(folder / "d_bytes.nii.gz", grey(), spacing=(0.4, 0.8))
    nifti(folder / "e_share.nii", (grey() / np.float32(255)).astype(np.float32), spacing=(0.4, 0.8))
    echo = load(tmp_path)
    assert echo.ids == ["a_8bit", "b_16bit", "c_colour", "d_bytes", "e_share"]
    for image in echo.images[1:]:
        assert (image.int() - echo.images[0].int()).abs().max() <= 1
    assert echo.images[0, 0, :12].float().mean() > 2 * echo.images[0, 0, 20:].float().mean(), "it lies on its side"
    torch.testing.assert_close(echo.spacing_mm[0], torch.tensor([0.4 * 40 / 32, 0.8], dtype=torch.float64))
    torch.testing.assert_close(echo.spacing_mm[3], echo.spacing_mm[0], rtol=1e-6, atol=0)
    assert (echo.known_labels, echo.groups, echo.origin) == (None, echo.ids, "real")


def test_the_file_decides_its_pixel_size_where_it_says_one(tmp_path):
    nifti(tmp_path / "images" / "a.nii", grey(), spacing=(0.5, 1.0))
    echo = load(tmp_path, spacing_mm=(9.0, 9.0))
    torch.testing.assert_close(echo.spacing_mm[0], torch.tensor([0.5 * 40 / 32, 1.0], dtype=torch.float64))


def test_masks_are_numbers_of_grey_values_or_of_a_palette(tmp_path):
    for name in ("grey", "palette", "colour", "nifti", "none"):
        png(tmp_path / "images" / f"{name}.png", grey())
    png(tmp_path / "labels" / "grey.png", heart())
    palette = Image.fromarray(heart())
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    assert palette.mode == "P"
    palette.save(tmp_path / "labels" / "palette.png")
    png(tmp_path / "labels" / "colour.png", heart(), mode="RGB")
    nifti(tmp_path / "labels" / "nifti.nii.gz", heart())
    echo = load(tmp_path)
    assert [echo.ids[row] for row in echo.known_labels.rows] == ["colour", "grey", "nifti", "palette"]
    for label in echo.known_labels.labels:
        assert torch.equal(label, echo.known_labels.labels[0])
        assert label.unique().tolist() == [0, 1, 2]


def test_a_pattern_finds_the_patients_and_no_patient_is_in_two_splits(tmp_path):
    for patient in range(6):
        for view in ("2CH_ED", "4ch-es"):
            png(tmp_path / "images" / f"P{patient}_{view}.png", grey(patient))
    splits = {name: load(tmp_path, name, patient_pattern="^P[0-9]+") for name in ("train", "val", "test")}
    groups = {name: set(pool.groups) for name, pool in splits.items()}
    assert [len(pool) for pool in splits.values()] == [8, 2, 2]
    assert set.union(*groups.values()) == {f"P{n}" for n in range(6)}
    assert sum(map(len, groups.values())) == 6
    assert set(zip(splits["train"].tags["view"], splits["train"].tags["instant"], strict=True)) == {
        ("2CH", "ED"),
        ("4CH", "ES"),
    }
    png(tmp_path / "images" / "x.png", grey())
    with pytest.raises(ValueError, match=r"finds no patient in the name 'x'"):
        load(tmp_path, patient_pattern="^P[0-9]+")
    assert load(tmp_path).tags["view"][-1] == "unknown"


def test_a_png_needs_a_pixel_size_and_the_error_says_where(tmp_path):
    path = png(tmp_path / "images" / "a.png", grey())
    with pytest.raises(
        ValueError, match=r"a\.png does not say how large its pixels are; .*--target\.spacing_mm '\["
    ) as no:
        load(tmp_path, spacing_mm=None)
    assert str(path) in str(no.value)


def cut(folder):
    path = folder / "images" / "b.png"
    path.write_bytes(path.read_bytes()[:-300])


def empty(folder):
    (folder / "images" / "b.png").write_bytes(b"")


def colour_the_mask(folder):
    coloured = np.stack([heart(), heart() * 3, heart()], axis=-1)
    png(folder / "labels" / "b.png", coloured)


def shrink_the_mask(folder):
    png(folder / "labels" / "b.png", heart()[:-1])


def blacken(folder):
    png(folder / "images" / "b.png", np.zeros(SHAPE, np.uint8))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, r"b\.png cannot be read as PNG"),
        (empty, r"b\.png cannot be read as PNG"),
        (colour_the_mask, r"labels.b\.png is a mask in colours"),
        (shrink_the_mask, r"labels.b\.png has shape \(39, 32\) \(y, x\) but .* has \(40, 32\)"),
        (blacken, r"b\.png holds the value 0 in every pixel"),
    ],
)
def test_a_bad_picture_is_refused_by_name_and_can_be_left_out(tmp_path, spoil, message):
    for name in "abc":
        png(tmp_path / "images" / f"{name}.png", grey())
        png(tmp_path / "labels" / f"{name}.png", heart())
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    bad = []
    assert load(tmp_path, on_bad=bad.append).ids == ["a", "c"]
    assert [image.id for image in bad] == ["b"]


def test_a_picture_that_is_larger_than_pillow_allows_is_refused(tmp_path, monkeypatch):
    png(tmp_path / "images" / "a.png", grey())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as PNG \(Image size \(1280 pixels\) exceeds"):
        load(tmp_path)
