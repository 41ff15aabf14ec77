"""Echocardiograms from files: the layouts that are read, how images reach the network, and what is refused."""

import gzip
import logging
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from segarena.datasets.echo.images import LV, MYO, EchoDataConfig, load_echo
from segarena.datasets.echo.preparation import Acquisition, resize_mask, to_bytes
from segarena.datasets.folders import log_once

SHAPE = (48, 40)
"""(y, x) of the small images made here."""
SPACING = (0.5, 1.0)


@pytest.fixture
def camus():
    """Folder with the real samples of CAMUS, v1 and v2."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "data"
    if not (folder / "CAMUS").is_dir():
        pytest.skip("the real samples of ../shared/data are not here")
    return folder


def picture(seed=0):
    """uint8 [y, x]: bright above, dark below, a black margin at the left."""
    image = np.random.default_rng(seed).integers(100, 255, SHAPE, dtype=np.uint8)
    image[24:] //= 4
    image[:, :4] = 0
    return image


def truth():
    """uint8 [y, x] with a cavity, a wall and an atrium."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:32, 10:30] = 2
    mask[12:32, 15:25] = 1
    mask[33:40, 15:25] = 3
    return mask


def write_nifti(path, plane, spacing=SPACING):
    """A plane [y, x] as NIfTI, which stores (x, y)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.ascontiguousarray(plane.T), np.diag([spacing[1], spacing[0], 1, 1]))
    nib.save(image, path)
    return path


def write_mhd(path, plane, **fields):
    """A plane [y, x] as MetaImage; a field that is None is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = path.with_suffix(".raw")
    pixels.write_bytes(plane.tobytes())
    header = {
        "NDims": 3,
        "ElementSpacing": f"{SPACING[1]} {SPACING[0]} 1.5",
        "DimSize": f"{plane.shape[1]} {plane.shape[0]} 1",
        "ElementType": "MET_UCHAR",
        "ElementDataFile": pixels.name,
    } | fields
    path.write_text("".join(f"{name} = {value}\n" for name, value in header.items() if value is not None))
    return path


def small_camus(folder, patients=3):
    """CAMUS v2 of small images."""
    for patient in range(1, patients + 1):
        for kind in ("2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES"):
            stem = folder / "database_nifti" / f"patient{patient:04d}" / f"patient{patient:04d}_{kind}"
            write_nifti(Path(f"{stem}.nii.gz"), picture(patient))
            write_nifti(Path(f"{stem}_gt.nii.gz"), truth())
    return folder


def small_prepared(
    folder, rows=(("p1", "train", True), ("p2", "test", True), ("p3", "test", True), ("p4", "pred", False))
):
    """A prepared set: one 2CH image per (study, split, has a mask)."""
    lines = [",study,view,dicom_uuid,instant,split_0,Gt_0"]
    for number, (study, split, has_mask) in enumerate(rows):
        lines.append(f"{number},{study},2CH,uid{number},ED,{split},{has_mask}")
        place = Path(study, "2ch", f"uid{number}_ED.nii.gz")
        write_nifti(folder / "img" / place, (picture(number) / 255).astype(np.float32))
        if has_mask:
            write_nifti(folder / "gt" / place, np.where(truth() == 3, 0, truth()).astype(np.uint8))
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    return folder


def one(folder):
    """One image of the small set and its mask, as paths."""
    stem = folder / "database_nifti" / "patient0002" / "patient0002_2CH_ES"
    return Path(f"{stem}.nii.gz"), Path(f"{stem}_gt.nii.gz")


def load(folder, split="all", on_bad=None, option="", **settings):
    return load_echo(EchoDataConfig(data=str(folder), **settings), split, on_bad, option)


# -- CAMUS ---------------------------------------------------------------------------------------------------------


def test_both_releases_of_camus_hold_the_same_patients(camus):
    v1, v2 = load(camus / "CAMUS"), load(camus / "CAMUS_public", patients={"x": ["patient000[14]"]}, split="x")
    assert v1.ids == v2.ids
    assert v1.ids[:3] == ["patient0001_2CH_ED", "patient0001_2CH_ES", "patient0001_4CH_ED"]
    assert v1.groups[::4] == ["patient0001", "patient0004"]
    assert torch.equal(v1.images, v2.images)
    assert torch.equal(v1.labels, v2.labels)
    torch.testing.assert_close(v1.spacing_mm, v2.spacing_mm, rtol=1e-6, atol=0)
    assert v1.origin == "real"


def test_a_real_heart_stands_upright_with_its_spacing(camus):
    echo = load(camus / "CAMUS_public" / "database_nifti", size=128)
    assert echo.images.shape == (20, 1, 128, 128)
    torch.testing.assert_close(
        echo.spacing_mm[0], torch.tensor([0.154 * 778 / 128, 0.308 * 549 / 128], dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert set(echo.labels.unique().tolist()) == {0, LV, MYO}
    wide = torch.stack([(echo.images[:, 0, row] > 0).sum() for row in (5, 60)])
    assert wide[0] < wide[1]  # the sector widens downwards
    heart = (echo.labels > 0).float()
    rows = torch.arange(128.0)[:, None]
    centre = {k: ((echo.labels == k) * rows).sum() / (echo.labels == k).sum() for k in (LV, MYO)}
    assert centre[MYO] < centre[LV] < 64  # the wall closes the apex, which lies above
    assert heart[:, :, [0, -1]].sum() == 0


def test_a_changed_acquisition_of_real_images_keeps_their_truth(camus):
    settings = {"split": "x", "patients": {"x": ["patient0001"]}}
    change = Acquisition(speckle=0.3, wedges=2, attenuation=0.3, gamma=1.5)
    plain = load(camus / "CAMUS", **settings)
    changed, again = (load(camus / name, acquisition=change, **settings) for name in ("CAMUS", "CAMUS_public"))
    assert torch.equal(plain.labels, changed.labels)
    difference = (plain.images.float() - changed.images.float()).abs().mean(dim=(1, 2, 3))
    assert (difference > 5).all()
    gap = (changed.images.int() - again.images.int()).abs().max()  # the spacing of v2 is stored in single precision
    assert gap <= 1, "the image's id decides, not its folder"


@pytest.mark.parametrize("layout", ["above", "itself", "v1 above", "v1 itself"])
def test_camus_may_be_named_itself_or_by_the_folder_above(tmp_path, layout):
    if layout.startswith("v1"):
        for kind in ("2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES"):
            write_mhd(tmp_path / "training" / "patient0001" / f"patient0001_{kind}.mhd", picture(1))
            write_mhd(tmp_path / "training" / "patient0001" / f"patient0001_{kind}_gt.mhd", truth())
        folder = tmp_path if layout == "v1 above" else tmp_path / "training"
    else:
        small_camus(tmp_path, patients=1)
        folder = tmp_path if layout == "above" else tmp_path / "database_nifti"
    echo = load(folder, size=16, clahe=False)
    assert echo.ids == [f"patient0001_{kind}" for kind in ("2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES")]
    np.testing.assert_array_equal(echo.labels[0], resize_mask(np.where(truth() == 3, 0, truth()), 16))
    torch.testing.assert_close(echo.spacing_mm[0], torch.tensor([48 * 0.5 / 16, 40 * 1.0 / 16], dtype=torch.float64))
    assert echo.images[0, 0, :7].float().mean() > 2 * echo.images[0, 0, 9:].float().mean()


def test_the_lists_of_camus_are_its_splits_and_may_name_patients_that_are_not_there(tmp_path):
    small_camus(tmp_path)
    lists = tmp_path / "database_split"
    lists.mkdir()
    (lists / "subgroup_training.txt").write_text("patient0003\npatient0001\npatient0400\n")
    (lists / "subgroup_testing.txt").write_text("patient0002\n")
    (lists / "subgroup_validation.txt").write_text("patient0401\n")
    for folder in (tmp_path, tmp_path / "database_nifti"):
        assert load(folder, "train").groups[::4] == ["patient0003", "patient0001"]
        assert load(folder, "test").groups == ["patient0002"] * 4
    with pytest.raises(ValueError, match=r"split 'val' .* has no patient that is there; there are patient0001, "):
        load(tmp_path, "val")
    (lists / "subgroup_validation.txt").write_text("patient0002\n")
    with pytest.raises(ValueError, match=r"patient0002 is in val and in test"):
        load(tmp_path, "train")


def test_without_lists_the_patients_are_divided_by_ratio_and_said_once(tmp_path, caplog):
    log_once.cache_clear()
    small_camus(tmp_path, patients=5)
    with caplog.at_level(logging.INFO):
        groups = {split: set(load(tmp_path, split).groups) for split in ("train", "val", "test")}
    assert [len(groups[split]) for split in groups] == [3, 1, 1]
    assert set.union(*groups.values()) == {f"patient000{n}" for n in range(1, 6)}
    said = f"{tmp_path}: 5 patients were divided by ratio (split_seed 0): train 3, val 1, test 1"
    assert [record.getMessage() for record in caplog.records] == [said]
    other = {"split_ratios": {"train": 1, "pred": 4}}
    assert len(set(load(tmp_path, "pred", **other).groups)) == 4
    assert [load(tmp_path, "train", split_seed=seed, **other).groups[0] for seed in range(4)] != ["patient0001"] * 4
    with pytest.raises(ValueError, match=r"split is 'tset' but .* has train, val, test, all; or list the patients"):
        load(tmp_path, "tset")


def test_patients_may_be_named_instead(tmp_path):
    small_camus(tmp_path)
    named = {"train": ["*1", "patient0003"], "test": ["patient000[2]"]}
    assert load(tmp_path, "train", patients=named).groups[::4] == ["patient0001", "patient0003"]
    with pytest.raises(ValueError, match=r"no patient in .* is called '\*9'; it has .*; correct --target\.patients"):
        load(tmp_path, "train", option="--target.", patients={"train": ["*9"]})


def test_too_few_patients_say_which_split_would_be_empty_and_the_way_out_works(tmp_path):
    small_camus(tmp_path, patients=2)
    with pytest.raises(ValueError, match=r"2 patients are too few .*: val would be empty; divide them") as caught:
        load(tmp_path, "train", option="--source.")
    assert """--source.split_ratios '{"train": 1, "val": 1}'""" in str(caught.value)
    assert {len(load(tmp_path, split, split_ratios={"train": 1, "val": 1})) for split in ("train", "val")} == {4}


def test_lists_of_the_folder_win_over_ratios_unless_they_name_nobody(tmp_path, caplog):
    log_once.cache_clear()
    small_camus(tmp_path, patients=4)
    lists = tmp_path / "database_split"
    lists.mkdir()
    (lists / "subgroup_training.txt").write_text("patient0003\n")
    ratios = {"split_ratios": {"train": 1, "val": 1}}
    assert set(load(tmp_path, "train", **ratios).groups) == {"patient0003"}
    assert "has lists of its own: split_ratios is not used" in caplog.text
    (lists / "subgroup_training.txt").write_text("patient0400\n")
    assert len(set(load(tmp_path, "train", **ratios).groups)) == 2
    (lists / "subgroup_training.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"subgroup_training\.txt is no list of patients in UTF-8"):
        load(tmp_path, "train")


def test_a_patient_may_lack_views_instants_and_masks(tmp_path, caplog):
    log_once.cache_clear()
    small_camus(tmp_path)
    stem = tmp_path / "database_nifti" / "patient0001" / "patient0001"
    for name in ("2CH_ED", "2CH_ED_gt", "2CH_ES", "2CH_ES_gt", "4CH_ES_gt"):
        Path(f"{stem}_{name}.nii.gz").unlink()
    for path in (tmp_path / "database_nifti" / "patient0003").iterdir():
        path.unlink()
    with caplog.at_level(logging.INFO):
        echo = load(tmp_path)
    assert echo.ids[:3] == ["patient0001_4CH_ED", "patient0001_4CH_ES", "patient0002_2CH_ED"]
    assert len(echo) == 6
    assert echo.labels is None
    assert echo.known_labels.rows == [0, 2, 3, 4, 5]
    assert set(echo.known_labels.labels.unique().tolist()) == {0, LV, MYO}
    assert [record.getMessage() for record in caplog.records] == [
        f"{stem.parent.parent / 'patient0003'} has no image patient0003_<2CH|4CH>_<ED|ES> and is left out",
        f"{tmp_path}: 5 of 6 images of split 'all' have labels",
    ]
    for path in tmp_path.rglob("*_gt.nii.gz"):
        path.unlink()
    assert load(tmp_path).known_labels is None


def test_real_patients_without_masks_are_a_target(camus, tmp_path):
    for path in (camus / "CAMUS" / "training" / "patient0004").iterdir():
        if "_gt" not in path.name:
            shutil.copy(path, tmp_path)
    (tmp_path / "patient0004").mkdir()
    for path in tmp_path.glob("patient*_*"):
        path.rename(tmp_path / "patient0004" / path.name)
    echo, labelled = load(tmp_path), load(camus / "CAMUS", patients={"x": ["*4"]}, split="x")
    assert echo.known_labels is None
    assert torch.equal(echo.images, labelled.images)


def test_compressed_big_endian_metaimages_are_read(tmp_path):
    folder = tmp_path / "patient0001"
    for kind in ("2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES"):
        write_mhd(folder / f"patient0001_{kind}.mhd", picture(1))
        write_mhd(folder / f"patient0001_{kind}_gt.mhd", truth())
    plain = load(tmp_path)
    path = folder / "patient0001_2CH_ED.mhd"
    fields = {"ElementType": "MET_USHORT", "BinaryDataByteOrderMSB": True, "CompressedData": True}
    write_mhd(path, picture(1).astype(">u2"), **fields)
    pixels = path.with_suffix(".raw")
    pixels.write_bytes(zlib.compress(pixels.read_bytes()))
    assert torch.equal(load(tmp_path).images, plain.images)


def test_text_beside_the_sector_is_masked_out(tmp_path):
    small_camus(tmp_path, patients=1)
    texted = picture(1)
    texted[:, :12] = 0
    texted[5:8, :3] = 255
    write_nifti(tmp_path / "database_nifti" / "patient0001" / "patient0001_2CH_ED.nii.gz", texted)
    image = load(tmp_path, clahe=False, size=40).images[0, 0]
    assert (image[:, :11] == 0).all()
    assert image[:20, 14:].min() > 50


# -- prepared sets -------------------------------------------------------------------------------------------------


def test_a_prepared_set_is_read_as_it_is(tmp_path):
    echo = load(small_prepared(tmp_path), "test", size=48)
    assert echo.ids == ["uid1_ED", "uid2_ED"]
    assert echo.groups == ["p2", "p3"]
    assert echo.tags["view"] == ["2CH", "2CH"]
    assert echo.labels.max() == MYO
    square = echo.images[0, 0][:, 8:44].float().mean(1)
    assert square[:24].mean() > 2 * square[26:].mean()  # no CLAHE, and not lying on its side
    torch.testing.assert_close(echo.spacing_mm[0], torch.tensor([0.5, 40 / 48], dtype=torch.float64))


def test_clahe_of_a_prepared_set_must_be_asked_for(tmp_path):
    small_prepared(tmp_path)
    plain, default, equalised = (load(tmp_path, "test", clahe=clahe) for clahe in (False, None, True))
    assert torch.equal(plain.images, default.images)
    assert not torch.equal(plain.images, equalised.images)


def test_images_of_a_prepared_set_need_no_mask(tmp_path, caplog):
    small_prepared(tmp_path)
    assert load(tmp_path, "pred").known_labels is None
    assert not caplog.records
    assert load(tmp_path, "all").known_labels.rows == [0, 1, 2]


def test_ids_of_a_prepared_set_may_be_paths(tmp_path):
    small_prepared(tmp_path, [("patient0001", "train", True)])
    (tmp_path / "set.csv").write_text(
        "id,study,view,instant,split_0\npatient0001/2ch/uid0_ED,patient0001,2CH,ED,train\n"
    )
    assert load(tmp_path, "train").ids == ["uid0_ED"]
    (tmp_path / "set.csv").write_text("id,study,view,instant,split_0\n../2ch/uid0_ED,patient0001,2CH,ED,train\n")
    with pytest.raises(ValueError, match=r"names '\.\./2ch/uid0_ED\.nii\.gz', which must lie below .*img"):
        load(tmp_path, "train")


def test_of_several_tables_one_is_named(tmp_path):
    small_prepared(tmp_path)
    shutil.copy(tmp_path / "set.csv", tmp_path / "other.csv")
    with pytest.raises(FileNotFoundError, match=r"needs one CSV, but has other\.csv, set\.csv; name one: "):
        load(tmp_path)
    assert len(load(tmp_path / "set.csv")) == 4


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "study,view,instant\np1,2CH,ED\n",
            r"lacks the columns split_0, dicom_uuid \(or id\); it has study, view, instant",
        ),
        ("", r"lacks the columns study, view, instant, split_0, dicom_uuid \(or id\); it has none"),
        ("study,view,instant,split_0,dicom_uuid\np1,3CH,ED,train,u\n", r"line 2 of .* has study 'p1', view '3CH'"),
        ("study,view,instant,split_0,dicom_uuid\np1,2CH,ED\n", r"line 2 of .* split_0 None"),
        (
            "study,view,instant,split_0,dicom_uuid\np1,2CH,ED,train,u\np1,2CH,ES,test,u\n",
            "p1 is in train and in test, but images of one patient",
        ),
        (
            "study,view,instant,split_0,dicom_uuid\np1,2CH,ED,train,u\np2,2CH,ED,train,u\n",
            "line 3 of .* names 'u_ED' a second time",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, table, message):
    small_prepared(tmp_path)
    (tmp_path / "set.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_an_empty_table_is_refused(tmp_path):
    small_prepared(tmp_path)
    (tmp_path / "set.csv").write_text("study,view,instant,split_0,dicom_uuid\n")
    with pytest.raises(FileNotFoundError, match="lists no image"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, r"values 0\.\.1\.5 but must lie in 0\.\.1;"),
        (-0.2, r"values -0\.2\.\."),
        (np.nan, "1 voxels that are NaN"),
    ],
)
def test_values_that_are_no_grey_are_refused(tmp_path, value, message):
    small_prepared(tmp_path)
    image = (picture() / 255).astype(np.float32)
    image[20, 20] = value
    path = write_nifti(tmp_path / "img" / "p1" / "2ch" / "uid0_ED.nii.gz", image)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, "train")
    assert str(path) in str(caught.value)


def test_an_atrium_in_a_prepared_mask_is_refused(tmp_path):
    small_prepared(tmp_path)
    write_nifti(tmp_path / "gt" / "p1" / "2ch" / "uid0_ED.nii.gz", truth())
    with pytest.raises(ValueError, match=r"uid0_ED\.nii\.gz has labels 3 but the classes are 0\.\.2"):
        load(tmp_path, "train")


# -- bad files -----------------------------------------------------------------------------------------------------


def spoil_label(folder):
    write_nifti(one(folder)[1], np.where(truth() == 3, 4, truth()).astype(np.uint8))


def soften_label(folder):
    write_nifti(one(folder)[1], truth() * np.float32(0.5))


def shrink_label(folder):
    write_nifti(one(folder)[1], truth()[:-1])


def blacken(folder):
    write_nifti(one(folder)[0], np.zeros(SHAPE, np.uint8))


def lose_image(folder):
    one(folder)[0].unlink()


def empty(folder):
    one(folder)[0].write_bytes(b"")


def cut(folder):
    path = one(folder)[0]
    path.write_bytes(path.read_bytes()[:-40])


def stack(folder):
    nib.save(nib.Nifti1Image(np.stack([picture()] * 3, axis=-1), np.eye(4)), one(folder)[0])


def forget_spacing(folder):
    path = one(folder)[0]
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[80:84] = np.float32(0).tobytes()  # pixdim[1]
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_label, r"_gt\.nii\.gz has labels 4 but the classes are 0\.\.3"),
        (soften_label, r"_gt\.nii\.gz has labels 0\.5, 1\.5 but the classes"),
        (shrink_label, r"_gt\.nii\.gz has shape \(47, 40\) \(y, x\) but .* has \(48, 40\)"),
        (blacken, r"holds the value 0 in every pixel"),
        (lose_image, r"_2CH_ES\.nii\.gz does not exist"),
        (empty, r"_2CH_ES\.nii\.gz cannot be read as NIfTI \(its first 0 bytes"),
        (cut, r"is truncated or damaged"),
        (stack, r"has shape \(48, 40, 3\) but one plane is needed"),
        (forget_spacing, r"gives its pixels the size 0\.5 x 0 mm \(y, x\)"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_a_batch_goes_on_without_it(tmp_path, spoil, message):
    small_camus(tmp_path)
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(tmp_path)
    assert "patient0002_2CH_ES" in str(caught.value)
    bad = []
    echo = load(tmp_path, on_bad=bad.append)
    assert [image.id for image in bad] == ["patient0002_2CH_ES"]
    assert bad[0].reason == str(caught.value)
    assert len(echo) == len(echo.ids) == len(echo.labels) == len(echo.spacing_mm) == 11
    assert "patient0002_2CH_ES" not in echo.ids


@pytest.mark.parametrize(
    ("fields", "kept", "message"),
    [
        ({"ElementSpacing": None}, None, r"gives its pixels the size 0 x 0 mm"),
        ({"ElementSpacing": "0.3 0 1"}, None, r"gives its pixels the size 0 x 0\.3 mm"),
        ({"DimSize": None}, None, r"lacks DimSize: it is no complete \.mhd"),
        ({"ElementType": "MET_OTHER"}, None, r"truncated or damaged \('MET_OTHER'\)"),
        ({"ElementDataFile": "n" * 4000}, None, r"_2CH_ED\.mhd names the pixels 'n{60}' but they must be one"),
        ({"ElementDataFile": "gone.raw"}, None, r"names the pixels .*gone\.raw, which do not exist"),
        ({}, 100, r"patient0001_2CH_ED\.raw is truncated or damaged .*has 100 bytes but .* say 1,920"),
        ({"BinaryData": "False"}, None, r"BinaryData is not True"),
        ({"ElementNumberOfChannels": "3"}, None, r"ElementNumberOfChannels is 3 but must be 1"),
        ({"ElementSpacing": "1e-9 1e-9 1"}, None, r"the size 1e-09 x 1e-09 mm .* need sizes of 0\.001 to 100 mm"),
        ({"DimSize": "9999999999999 9999999999999 1", "CompressedData": "True"}, None, r"\(DimSize is 9999"),
        ({"CompressedData": "True"}, None, r"is truncated or damaged"),
    ],
)
def test_a_bad_metaimage_is_refused(tmp_path, fields, kept, message):
    folder = tmp_path / "training" / "patient0001"
    for kind in ("2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES"):
        write_mhd(folder / f"patient0001_{kind}.mhd", picture())
        write_mhd(folder / f"patient0001_{kind}_gt.mhd", truth())
    path = write_mhd(folder / "patient0001_2CH_ED.mhd", picture(), **fields)
    if kept:
        path.with_suffix(".raw").write_bytes(path.with_suffix(".raw").read_bytes()[:kept])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(tmp_path)


def test_a_folder_without_echocardiograms_says_what_was_expected_and_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected patientXXXX folders .* found an empty folder"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"found notes\.txt"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist or is no folder"):
        load(tmp_path / "nowhere")


def test_if_every_image_is_bad_the_split_is_refused(tmp_path):
    small_camus(tmp_path, patients=1)
    for path in tmp_path.rglob("*_gt.nii.gz"):
        Path(str(path).replace("_gt", "")).unlink()
    with pytest.raises(ValueError, match=r"none of the 4 images of split 'all' in .* can be used"):
        load(tmp_path, on_bad=lambda _: None)


def test_the_data_set_is_never_written_and_its_cache_follows_its_content(tmp_path):
    small_camus(tmp_path / "data", patients=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    settings = {"size": 32, "cache_dir": str(tmp_path / "cache")}
    first = load(tmp_path / "data", **settings)
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.*") if path.is_file()} == before
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert torch.equal(load(tmp_path / "moved", **settings).images, first.images)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4
    path = tmp_path / "moved" / "database_nifti" / "patient0001" / "patient0001_2CH_ED.nii.gz"
    write_nifti(path, picture(9))
    assert not torch.equal(load(tmp_path / "moved", **settings).images[0], first.images[0])


def test_bytes_of_camus_are_read_unchanged_without_clahe(tmp_path):
    small_camus(tmp_path, patients=1)
    square = picture()[:40]
    path = tmp_path / "database_nifti" / "patient0001" / "patient0001_2CH_ED.nii.gz"
    write_nifti(path, square)
    write_nifti(Path(str(path).replace(".nii.gz", "_gt.nii.gz")), truth()[:40])
    echo = load(tmp_path, size=40, clahe=False)
    np.testing.assert_array_equal(echo.images[0, 0], square)
    equalised = load(tmp_path, size=40)
    np.testing.assert_array_equal(equalised.images[0, 0], to_bytes(square / np.float32(255), clahe=True))
