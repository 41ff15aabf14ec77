"""Photographs on disk: layouts, lists, labels and their meaning, and what cannot be used."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segarena.datasets.images import IGNORED, IMAGENET_MEAN
from segarena.datasets.scenes import ade20k, cityscapes, voc
from segarena.datasets.scenes.images import PhantomScenes, SceneDataConfig, load_scenes

VOC_REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "VOCdevkit"


def write_image(path, height=12, width=16, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_label(path, values, height=12, width=16):
    """A palette PNG as VOC's: the values repeat along the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.resize(np.array(values, np.uint8), (height, width)))
    picture.putpalette(list(range(256)) * 3)
    picture.save(path)


def make_voc(root, train=("a", "b"), val=("c",), values=(0, 5, 20, 255)):
    for n, name in enumerate((*train, *val)):
        write_image(root / "JPEGImages" / f"{name}.jpg", seed=n)
        write_label(root / "SegmentationClass" / f"{name}.png", values)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in {"train": train, "val": val, "trainval": (*train, *val)}.items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def load(root, split="train", **fields):
    return load_scenes(SceneDataConfig(data=str(root), **fields), split)


# -- VOC -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_has_its_lists_as_splits(tmp_path, above):
    make_voc(tmp_path / above)
    assert {split: load(tmp_path, split).ids for split in ("train", "val", "trainval", "train[1:]", "all")} == {
        "train": ["a", "b"],
        "val": ["c"],
        "trainval": ["a", "b", "c"],
        "train[1:]": ["b"],
        "all": ["a", "b", "c"],
    }
    scene = load(tmp_path, "val")[0]
    assert (scene.image.dtype, scene.image.shape) == (torch.uint8, (3, 12, 16))
    assert scene.label[0, :4].tolist() == [0, 5, 20, 255]
    assert load(tmp_path, "val").classes == voc.CLASSES
    assert (len(voc.CLASSES), voc.CLASSES[15]) == (21, "person")


def test_sbd_adds_images_with_masks_that_are_not_in_val(tmp_path):
    root = make_voc(tmp_path)
    for n, name in enumerate("abcd"):
        write_label(root / "SegmentationClassAug" / f"{name}.png", [n + 1])
    write_image(root / "JPEGImages" / "d.jpg")
    more = load(root, "train_aug")
    assert more.ids == ["a", "b", "d"]
    assert [int(scene.label[0, 0]) for scene in more] == [1, 2, 4]  # the masks of SegmentationClassAug
    assert load(root, "train")[0].label[0, :2].tolist() == [0, 5]  # VOC's own
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("d\na\n")
    assert load(root, "train_aug").ids == ["d", "a"]
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("d\nc\n")
    with pytest.raises(ValueError, match=r"c is in train_aug and in val of .*Segmentation \(1 such\)"):
        load(root, "train")


def test_real_voc_photographs_have_their_sizes_and_classes():
    if not VOC_REAL.is_dir():
        pytest.skip("the real samples of ../shared/data are not here")
    scenes = load(VOC_REAL, "trainval", size=129)
    assert {tuple(scene.image.shape) for scene in scenes} == {(3, 338, 500), (3, 375, 500)}
    found = {scene.id: set(scene.label.unique().tolist()) for scene in scenes}
    assert found == {"2011_000003": {0, 5, 15, 255}, "2011_000006": {0, 9, 15, 18, 255}, "2011_000025": {0, 6, 7}}
    pool = scenes.pool().checked(channels=3, classes=21, ignored=True)
    assert pool.images.shape == (3, 3, 129, 129)
    assert set(pool.groups) == set(pool.ids)


# -- Cityscapes and ADE20K -----------------------------------------------------------------------------------------


def make_cityscapes(root, kind="labelTrainIds", values=(0, 18, 255)):
    for split, city in (("train", "aachen"), ("val", "frankfurt"), ("test", "berlin")):
        name = f"{city}_000000_000019"
        write_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        if split != "test":
            write_label(root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", values)
    return root


def test_cityscapes_reads_train_ids_and_maps_label_ids(tmp_path):
    trained = load(make_cityscapes(tmp_path / "a"), "val")
    assert (trained.ids, trained.groups) == (["frankfurt_000000_000019"], ["frankfurt"])
    assert trained[0].label[0, :3].tolist() == [0, 18, 255]
    # road 7, rider 25, bicycle 33; unlabelled 0, caravan 29 and licence plate -1 are ignored
    raw = load(make_cityscapes(tmp_path / "b", "labelIds", (7, 25, 33, 0, 29, 255)), "val")
    assert raw[0].label[0, :6].tolist() == [0, 12, 18, 255, 255, 255]
    assert (len(raw.classes), raw.classes[12]) == (19, "rider")
    assert load(tmp_path / "a", "test")[0].label is None
    assert load(tmp_path / "a", "test").pool().labels is None


def test_cityscapes_is_evaluated_at_half_its_size(tmp_path):
    root = make_cityscapes(tmp_path)
    write_image(root / "leftImg8bit/val/frankfurt/frankfurt_000000_000019_leftImg8bit.png", 32, 64)
    write_label(root / "gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_labelTrainIds.png", (3, 11), 32, 64)
    scene = load(root, "val", long_side=32)[0]
    assert (scene.image.shape, scene.label.shape) == ((3, 16, 32), (16, 32))
    assert set(scene.label.unique().tolist()) <= {3, 11}


def make_ade20k(root, values=(0, 1, 150)):
    for folder in ("training", "validation"):
        write_image(root / "images" / folder / "ADE_00000001.jpg".replace("ADE", f"ADE_{folder[:5]}"))
        write_label(root / "annotations" / folder / f"ADE_{folder[:5]}_00000001.png", values)
    return root


def test_ade20k_starts_at_0_and_its_other_pixels_are_ignored(tmp_path):
    """docs/rp-pgd.md, Method 14: raw 0 becomes 255, 1 becomes 0, 150 becomes 149."""
    scenes = load(make_ade20k(tmp_path / "raw"), "val")
    assert scenes[0].label[0, :3].tolist() == [255, 0, 149]
    assert (len(scenes.classes), scenes.classes[0], scenes.classes[149]) == (150, "wall", "flag")
    converted = load(make_ade20k(tmp_path / "converted", (255, 0, 149)), "train", ade20k_converted=True)
    assert converted[0].label[0, :3].tolist() == [255, 0, 149]
    with pytest.raises(
        ValueError, match=r"00000001.png has the label values 150 in 64 pixels but must have 0..149, 255"
    ):
        load(tmp_path / "raw", "train", ade20k_converted=True)[0]


def test_names_of_classes_are_unique():
    for classes, number in ((voc.CLASSES, 21), (cityscapes.CLASSES, 19), (ade20k.CLASSES, 150)):
        assert len(set(classes)) == len(classes) == number


# -- lists ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["/", ""])
def test_lists_name_image_and_label_below_the_folder(tmp_path, slash):
    root = make_voc(tmp_path / "voc")
    mine = tmp_path / "mine.txt"
    lines = [f"{slash}JPEGImages/{name}.jpg {slash}SegmentationClass/{name}.png" for name in "ca"]
    mine.write_text("\n\n".join(lines))
    scenes = load(root, "mine", lists={"mine": str(mine)})
    assert scenes.ids == ["c", "a"]
    assert scenes[0].label is not None
    mine.write_text(f"{slash}JPEGImages/b.jpg\n")
    assert load(root, "mine", lists={"mine": str(mine)})[0].label is None


@pytest.mark.parametrize("slash", ["/", ""])
@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["{}JPEGImages/x.jpg {}SegmentationClass/a.png"], r"'/?JPEGImages/x.jpg' in line 1; in all 1, in line 1"),
        (
            ["{}JPEGImages/a.jpg {}SegmentationClass/a.png", "", "{}JPEGImages/b.jpg {}SegmentationClass/x.png"],
            r"'/?SegmentationClass/x.png' in line 3; in all 1, in line 3",
        ),
        (
            ["{}JPEGImages/a.jpg {}SegmentationClass/a.png", "{}JPEGImages/b.jpg"],
            "no label path in line 2, but 1 other",
        ),
        (
            ["{}JPEGImages/a.jpg {}JPEGImages/b.jpg {}JPEGImages/c.jpg"],
            "line 1 of .* must be an image and a label path",
        ),
        (["{}JPEGImages/a.jpg"] * 2, "line 2 of .* names '/?JPEGImages/a.jpg', as line 1 does"),
        (["{}../secret.jpg"], "line 1 of .* must lie below"),
        ([""], "names no image"),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, slash, lines, error):
    root = make_voc(tmp_path / "voc")
    mine = tmp_path / "mine.txt"
    mine.write_text("\n".join(line.replace("{}", slash) for line in lines))
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        load(root, "mine", lists={"mine": str(mine)})


def test_of_many_missing_files_the_first_lines_are_named(tmp_path):
    root = make_voc(tmp_path / "voc")
    (tmp_path / "mine.txt").write_text(
        "\n".join(f"/JPEGImages/x{n}.jpg /SegmentationClass/x{n}.png" for n in range(20))
    )
    with pytest.raises(FileNotFoundError, match=r"in all 40, in lines 1, 2, 3, 4, 5, 6, 7, 8, \.\.\."):
        load(root, "mine", lists={"mine": str(tmp_path / "mine.txt")})
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n\nx\ny\n")
    with pytest.raises(FileNotFoundError, match=r"line 3 of .*train.txt names 'x' .* \(2 such, the last in line 4\)"):
        load(root)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n../b\n")
    with pytest.raises(ValueError, match=r"line 2 of .*train.txt is '../b' but must be a name such as 2007_000032"):
        load(root)


# -- bad files -----------------------------------------------------------------------------------------------------


def test_a_value_without_meaning_is_named_with_its_file(tmp_path):
    root = make_voc(tmp_path, values=(0, 21, 77, 255))
    with pytest.raises(
        ValueError, match=r"SegmentationClass/a.png has the label values 21, 77 in 96 pixels but must have 0..20, 255"
    ):
        load(root)[0]


def test_labels_of_another_size_are_refused(tmp_path):
    root = make_voc(tmp_path)
    write_label(root / "SegmentationClass" / "a.png", [0, 1], 12, 15)
    with pytest.raises(ValueError, match=r"a.png has 12 x 15 pixels \(y, x\) but .*a.jpg has 12 x 16"):
        load(root)[0]


@pytest.mark.parametrize("file", ["JPEGImages/a.jpg", "SegmentationClass/a.png"])
@pytest.mark.parametrize("kept", [0, 20, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, file, kept):
    root = make_voc(tmp_path)
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"{file} cannot be read as .*; fetch or convert it again"):
        load(root)[0]


@pytest.mark.parametrize("file", ["JPEGImages/a.jpg", "SegmentationClass/a.png"])
def test_damaged_bytes_are_refused_by_name_or_give_a_whole_scene(tmp_path, file):
    root, rng = make_voc(tmp_path), np.random.default_rng(0)
    content, refused = (root / file).read_bytes(), list[str]()
    for _ in range(80):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(0, 256)
        (root / file).write_bytes(damaged)
        try:
            scene = load(root)[0]
        except ValueError as error:
            refused.append(str(error))
        else:
            assert scene.label.shape == scene.image.shape[1:]
            assert set(scene.label.unique().tolist()) <= {*range(21), IGNORED}
    assert len(refused) > 10
    assert all(Path(file).name in error for error in refused)


def test_a_list_that_is_no_text_is_refused(tmp_path):
    root = make_voc(tmp_path)
    for content, error in ((b"\xff\xfe\x00", "is no text in UTF-8"), (b"JPEGImages/a\0.jpg\n", "no file name")):
        (root / "ImageSets" / "Segmentation" / "train.txt").write_bytes(content)
        with pytest.raises(ValueError, match=error):
            load(root)


def test_labels_in_colours_and_missing_labels_are_refused(tmp_path):
    root = make_voc(tmp_path)
    write_image(root / "SegmentationClass" / "a.png")
    with pytest.raises(ValueError, match=r"a.png holds labels in colours"):
        load(root)[0]
    (root / "SegmentationClass" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"SegmentationClass/a.png does not exist"):
        load(root)[0]
    bad = []
    pool = load(root, "trainval", size=17).pool(bad.append)
    assert pool.ids == ["b", "c"]
    assert [one.id for one in bad] == ["a"]
    with pytest.raises(ValueError, match=r"none of the 1 scenes of .* can be used"):
        load(root, "train[:1]", size=17).pool(bad.append)


def test_a_grey_photograph_gets_three_channels(tmp_path):
    root = make_voc(tmp_path)
    Image.fromarray(np.full((12, 16), 9, np.uint8)).save(root / "JPEGImages" / "a.jpg")
    assert load(root)[0].image.shape == (3, 12, 16)


@pytest.mark.parametrize(
    ("folder", "error"),
    [
        ("JPEGImages", "has no list such as train.txt"),
        ("leftImg8bit", "no image in .*leftImg8bit"),
        ("annotations", "no image in .*images"),
        ("photos", r"no scenes in .*: expected JPEGImages .* found photos"),
    ],
)
def test_a_folder_without_images_is_refused(tmp_path, folder, error):
    (tmp_path / folder).mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist or is no folder"):
        load(tmp_path / "nowhere")


def test_an_unknown_split_is_refused(tmp_path):
    make_voc(tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "test.txt").write_text("not_there\n")
    with pytest.raises(ValueError, match=r"split is 'test' but .* has train, val, trainval, all; choose one of these"):
        load(tmp_path, "test")
    with pytest.raises(ValueError, match=r"lists and long_side belong to photographs"):
        SceneDataConfig(long_side=100)


# -- pools and phantoms --------------------------------------------------------------------------------------------


def test_a_pool_shows_whole_photographs_or_their_middle(tmp_path):
    root = make_voc(tmp_path)  # 12 x 16
    whole = load(root, size=16).pool()
    assert (whole.labels[:, :2] == IGNORED).all()
    assert (whole.labels[:, 14:] == IGNORED).all()
    mean = [round(255 * value) for value in IMAGENET_MEAN]
    assert whole.images[0, :, 0, 0].tolist() == mean
    assert torch.equal(whole.images[0, :, 2:14], load(root)[0].image)
    middle = load(root, size=16, fit="crop", long_side=32).pool()
    assert not (middle.labels[:, :, 0] == IGNORED).all()
    assert middle.images.shape == (2, 3, 16, 16)
    assert math.isnan(float(whole.spacing_mm[0, 0]))
    assert whole.checked(channels=3, classes=21, ignored=True) is whole
    with pytest.raises(ValueError, match="labels reach 255"):
        whole.checked(channels=3, classes=21)


def test_phantom_splits_lie_apart_and_any_number_can_be_named():
    config = SceneDataConfig(size=33, phantom_scenes=PhantomScenes(train=3, val=2, test=1))
    ids = {split: load_scenes(config, split).ids for split in ("train", "val", "test")}
    assert ids == {
        "train": ["scene_000000", "scene_000001", "scene_000002"],
        "val": ["scene_100000", "scene_100001"],
        "test": ["scene_200000"],
    }
    named = load_scenes(config, "scene_41-43")
    assert named.ids == ["scene_000041", "scene_000042", "scene_000043"]
    assert torch.equal(named[1].image, load_scenes(config, "scene_42")[0].image)
    pool = load_scenes(config, "train").pool()
    assert torch.equal(pool.images[2], load_scenes(config, "train")[2].image)
    assert (pool.origin, pool.groups) == ("phantom", pool.ids)
    with pytest.raises(ValueError, match="split is 'pred'"):
        load_scenes(config, "pred")
    with pytest.raises(ValueError, match=r"phantom_scenes.train is 100001"):
        PhantomScenes(train=100_001)
    with pytest.raises(ValueError, match="none in any split"):
        PhantomScenes(0, 0, 0)
