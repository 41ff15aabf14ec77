"""Pools of radiographs: files and phantoms alike, splits, few shots, sizes, the cache, and what is refused."""

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import segarena.datasets.xray.images as xray_images
import torch
from PIL import Image
from segarena.datasets.images import ImagePool
from segarena.datasets.xray.files import read_xray
from segarena.datasets.xray.images import PhantomStudies, XrayConfig, XrayPool, load_xrays
from segarena.datasets.xray.mura import find_mura
from segarena.datasets.xray.parts import differences
from xray_toys import fake_hips, fake_mura, picture, replace_line

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"
SMALL = PhantomStudies(train=20, val=4, test=6)


@pytest.fixture
def mura(tmp_path):
    return fake_mura(tmp_path, ("XR_ELBOW", "XR_WRIST"))


def config_of(root, **changes):
    return XrayConfig(data=str(root), size=32, **changes)


# -- phantoms --------------------------------------------------------------------------------------------------------


def test_phantoms_are_a_pool_with_regions():
    pool = load_xrays(XrayConfig(size=32, phantom_studies=SMALL), "train")
    assert (len(pool), pool.images.dtype, tuple(pool.images.shape)) == (40, torch.uint8, (40, 1, 32, 32))
    assert torch.equal(pool.roi.flatten(1).any(dim=1), pool.labels == 1)
    assert pool.labels.bincount().tolist() == [20, 20]
    assert (pool.ids[3], pool.studies[3], pool.patients[3], pool.parts[3]) == (
        "limb_000001_2",
        *["limb_000001"] * 2,
        "limb",
    )
    assert (pool.origin, pool.classes, pool.pool.classes) == (
        "phantom",
        ("normal", "abnormal"),
        ("background", "lesion"),
    )
    assert pool.study_rows[:6].tolist() == [0, 0, 1, 1, 2, 2]
    assert pool.at(torch.tensor([5])).max() <= 1
    assert not pool.marked.any()
    pair = pool.take([7, 0])
    assert (pair.ids, pair.labels.tolist()) == (["limb_000003_2", "limb_000000_1"], [1, 0])
    assert torch.equal(pair.roi, pool.roi[[7, 0]])
    assert torch.equal(pair.to(torch.device("cpu")).images, pool.images[[7, 0]])


def test_splits_of_phantoms_share_no_image_and_any_number_can_be_named():
    config = XrayConfig(size=32, phantom_studies=SMALL)
    pools = {split: load_xrays(config, split) for split in ("train", "val", "test")}
    images = torch.cat([pool.images for pool in pools.values()]).flatten(1)
    assert len(images.unique(dim=0)) == 60
    assert load_xrays(config, "all").ids == [one for pool in pools.values() for one in pool.ids]
    assert load_xrays(config, "val[:2]").ids == pools["val"].ids[:4]
    named = load_xrays(config, "limb_2-3")
    assert torch.equal(named.images, pools["train"].images[4:8])
    with pytest.raises(ValueError, match="split is 'tset' but 'phantom' has train, val, test, all"):
        load_xrays(config, "tset")


def test_markers_fit_the_class_in_train_and_say_nothing_elsewhere():
    config = XrayConfig(size=32, artefact=1.0, phantom_studies=PhantomStudies(train=100, val=100, test=100))
    train, test = load_xrays(config, "train"), load_xrays(config, "test")
    assert torch.equal(train.marked, train.labels == 1)
    assert float((test.marked == (test.labels == 1)).float().mean()) == pytest.approx(0.5, abs=0.12)
    plain = load_xrays(replace(config, artefact=None), "train")
    same = (plain.images == train.images).flatten(1).all(dim=1)
    assert torch.equal(same, ~train.marked)
    both = load_xrays(config, "train+test")
    assert torch.equal(both.marked, torch.cat([train.marked, test.marked]))


# -- few shots -------------------------------------------------------------------------------------------------------


def test_three_shots_of_a_part_with_five_and_four_images(tmp_path):
    numbers = {("train", 0): 3, ("train", 1): 4, ("valid", 0): 2, ("valid", 1): 2}
    root = fake_mura(tmp_path, numbers=numbers)
    config = config_of(root, protocol="paper", n_shot=3)
    whole = load_xrays(replace(config, n_shot=None), "train")
    assert whole.labels.bincount().tolist() == [4, 5]
    few = load_xrays(config, "train")
    assert few.labels.bincount().tolist() == [3, 3]
    assert len(set(few.ids)) == 6
    assert few.ids == [one for one in whole.ids if one in few.ids]
    with pytest.raises(
        ValueError, match=r"n_shot is 5 but split 'train' of .* has 4 images of class 'normal'; .*n_shot=4"
    ):
        load_xrays(replace(config, n_shot=5), "train")
    assert len(load_xrays(replace(config, n_shot=5), "val")) == 6


def test_a_draw_depends_on_its_own_seed_alone():
    config = XrayConfig(size=32, n_shot=6, phantom_studies=SMALL)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 (nothing may read it)
    first = load_xrays(config, "train")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert load_xrays(config, "train").ids == first.ids
    other = load_xrays(replace(config, shot_seed=1), "train")
    assert other.ids != first.ids
    assert other.labels.bincount().tolist() == [6, 6]
    whole = load_xrays(replace(config, n_shot=None), "train")
    rows = [whole.ids.index(one) for one in first.ids]
    assert torch.equal(whole.images[rows], first.images)
    assert len(load_xrays(config, "val")) == 8


def test_shots_of_studies_come_with_all_their_images():
    config = XrayConfig(size=32, n_shot=6, shot_unit="study", phantom_studies=SMALL)
    pool = load_xrays(config, "train")
    assert pool.labels.bincount().tolist() == [12, 12]
    assert int(pool.study_rows.max()) == 11
    with pytest.raises(
        ValueError, match="n_shot is 11 but split 'train' of 'phantom' has 10 studies of class 'normal'"
    ):
        load_xrays(replace(config, n_shot=11), "train")


# -- files -----------------------------------------------------------------------------------------------------------


def test_mura_is_a_pool_without_regions(mura):
    pool = load_xrays(config_of(mura, protocol="paper"), "train")
    assert (len(pool), pool.roi, pool.marked, pool.origin) == (22, None, None, "real")
    assert pool.labels.bincount().tolist() == [10, 12]
    assert set(pool.parts) == {"elbow", "wrist"}
    elbow = load_xrays(config_of(mura, protocol="paper", body_part="elbow"), "train")
    assert elbow.ids == [one for one in pool.ids if one.startswith("elbow")]
    assert load_xrays(config_of(mura, protocol="paper"), "val").ids == load_xrays(config_of(mura), "test").ids


def test_no_patient_is_on_both_sides_and_a_part_is_divided_as_the_whole_is(mura):
    train, val = (load_xrays(config_of(mura), split) for split in ("train", "val"))
    assert not set(train.patients) & set(val.patients)
    assert len(train) + len(val) == 22
    assert set(val.labels.tolist()) == {0, 1}
    for part in ("elbow", "wrist"):
        mine = [name for name, one in zip(train.ids, train.parts, strict=True) if one == part]
        assert load_xrays(config_of(mura, body_part=part), "train").ids == mine


def test_a_part_that_is_not_there_is_named(mura):
    with pytest.raises(ValueError, match="has no radiograph of body_part 'hand'"):
        load_xrays(config_of(mura, body_part="hand"), "train")


def test_hips_have_two_classes_or_six(tmp_path):
    config = XrayConfig(csv=str(fake_hips(tmp_path)), n_classes=6, size=32)
    pool = load_xrays(config, "train")
    assert pool.labels.bincount().tolist() == [2] * 6
    assert len(pool.classes) == 6
    two = load_xrays(replace(config, n_classes=2, n_shot=3), "train")
    assert (two.labels.bincount().tolist(), two.classes) == ([3, 3], ("no fracture", "fracture"))
    assert set(two.parts) == {"hip"}


# -- sizes -----------------------------------------------------------------------------------------------------------


def saved(folder, pixels, **options):
    Image.fromarray(pixels).save(folder / "x.png", **options)
    return folder / "x.png"


def test_the_first_channel_is_used_and_nothing_is_changed_at_its_own_size(tmp_path):
    for channels in (1, 3, 4):
        found = read_xray(saved(tmp_path, picture(1, 32, 32, channels)), 32)
        assert torch.equal(found, torch.from_numpy(picture(1, 32, 32)))


def test_stretched_images_are_smoothed_and_nearest_ones_keep_their_values(tmp_path):
    checks = np.kron(np.indices((64, 32)).sum(axis=0) % 2, np.ones((2, 2))).astype(np.uint8) * 200
    path = saved(tmp_path, checks)
    smooth = read_xray(path, 32)
    assert smooth.shape == (32, 32)
    assert abs(float(smooth[2:-2, 2:-2].float().mean()) - 100) < 3
    assert set(read_xray(path, 32, interpolation="nearest").unique().tolist()) <= {0, 200}
    assert smooth.float()[4:-4, 4:-4].std() < 60 < read_xray(path, 32, interpolation="nearest").float().std()


def test_padded_images_keep_their_aspect(tmp_path):
    tall = read_xray(saved(tmp_path, np.full((80, 40), 90, np.uint8)), 40, fit="pad")
    assert (tall[:, 10:30] == 90).all()
    assert not tall[:, :10].any()
    assert not tall[:, 30:].any()
    wide = read_xray(saved(tmp_path, np.full((40, 80), 90, np.uint8)), 40, fit="pad")
    assert torch.equal(wide, tall.T)
    assert (read_xray(saved(tmp_path, np.full((80, 40), 90, np.uint8)), 40) == 90).all()


# -- cache -----------------------------------------------------------------------------------------------------------


def test_a_split_is_decoded_once_per_setting(mura, tmp_path, monkeypatch):
    calls = []

    def counted(path, *arguments):
        calls.append(path)
        return read_xray(path, *arguments)

    monkeypatch.setattr(xray_images, "read_xray", counted)
    config = config_of(mura, protocol="paper", cache_dir=str(tmp_path / "cache"))
    first = load_xrays(config, "train")
    assert len(calls) == 22
    assert torch.equal(load_xrays(config, "train").images, first.images)
    assert len(calls) == 22
    load_xrays(replace(config, fit="pad"), "train")
    assert len(calls) == 44
    changed = mura / "train/XR_ELBOW/patient00001/study1_negative/image1.png"
    Image.fromarray(picture(77)).save(changed)
    assert not torch.equal(load_xrays(config, "train").images[0], first.images[0])


# -- what is refused -------------------------------------------------------------------------------------------------


def empty_png():
    """A PNG that says it has no column."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 0, 8, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def deep_png():
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"no picture", empty_png(), deep_png(), b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_file_that_is_no_radiograph_is_refused_with_its_line(content, mura, tmp_path):
    path = mura / "train/XR_ELBOW/patient00002/study1_negative/image1.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"line 3 of .*train_image_paths.csv: {path} cannot be read as PNG or JPEG"):
        load_xrays(config_of(mura, protocol="paper", cache_dir=str(tmp_path / "cache")), "train")


def test_a_missing_file_is_named_with_its_line_if_it_is_needed(mura):
    path = mura / "train/XR_ELBOW/patient00002/study1_negative/image1.png"
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"line 3 of .*train_image_paths.csv names '{path}', which does not exist"
    ):
        load_xrays(config_of(mura, protocol="paper"), "train")
    assert len(load_xrays(config_of(mura, protocol="paper"), "test")) == 12
    assert len(load_xrays(config_of(mura, protocol="paper", body_part="wrist"), "train")) == 11


def test_a_missing_file_of_a_table_is_named_with_its_line(tmp_path):
    table = fake_hips(tmp_path)
    replace_line(table, 5, "nowhere.png,1,someone,train")
    with pytest.raises(FileNotFoundError, match=rf"line 5 of {table} names .*nowhere.png"):
        load_xrays(XrayConfig(csv=str(table), size=32), "train")


def test_one_class_only_is_refused(tmp_path):
    table = fake_hips(tmp_path)
    lines = [line for line in table.read_text().splitlines() if not line.endswith("val") or ",1," in line]
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"split 'val' of .* has 2 images of class 'fracture' alone; two are needed"):
        load_xrays(XrayConfig(csv=str(table), size=32), "val")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 16}, "size is 16 but must be at least 32"),
        ({"n_shot": 0}, "n_shot is 0 but must be at least 1"),
        ({"artefact": 1.2}, "artefact is 1.2 but must lie in"),
        ({"body_part": "elbow"}, "body_part 'elbow' and protocol 'clean' belong to MURA"),
        ({"data": "x", "body_part": "knee"}, "body_part is 'knee' but must be one of"),
        ({"protocol": "paper"}, "belong to MURA"),
        ({"csv": "x.csv", "data": "y"}, "csv is 'x.csv' and data 'y'"),
        ({"n_classes": 6}, "n_classes is 6 but only a table"),
        ({"data": "x", "artefact": 0.5}, "artefact is 0.5 but markers are drawn into phantoms alone"),
        ({"fit": "crop"}, "fit is 'crop' but must be one of 'stretch', 'pad'"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        XrayConfig(**fields)


def test_a_pool_has_a_label_of_each_image():
    pool = load_xrays(XrayConfig(size=32, phantom_studies=SMALL), "val")
    assert isinstance(pool.pool, ImagePool)
    with pytest.raises(ValueError, match=r"labels is torch.int64 \(3,\) but must be torch.int64 \(8,\)"):
        replace(pool, labels=pool.labels[:3])
    with pytest.raises(ValueError, match="marked is torch"):
        XrayPool(pool.pool, pool.labels, pool.classes, pool.labels)


# -- real files ------------------------------------------------------------------------------------------------------


def test_the_layout_of_mura_loads_with_real_films():
    root = REAL / "standins" / "MURA-v1.1"
    if not root.is_dir():
        pytest.skip("the real samples of ../shared/data are not here")
    config = XrayConfig(data=str(root), protocol="paper", size=64)
    train, test = load_xrays(config, "train"), load_xrays(config, "test")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 1], [0, 1])
    for pool in (train, test):
        assert pool.images.float().flatten(1).std(dim=1).min() > 20
        assert pool.parts == ["elbow"] * len(pool)
    assert len(differences(find_mura(root))) == 28


def test_the_numbers_of_mura_are_the_published_ones():
    root = REAL / "MURA-v1.1"
    if not root.is_dir():
        pytest.skip("MURA v1.1 is not here")
    assert differences(find_mura(root)) == []
