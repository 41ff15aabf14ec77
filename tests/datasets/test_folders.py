"""Pairs of images and labels in a folder of one's own: what is taken, what is said, what is refused."""

import pytest
from segarena.datasets.folders import find_pairs, log_once

SUFFIXES = (".nii.gz", ".nii", ".png")


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_label_has_the_name_of_its_image_and_may_be_missing(tmp_path):
    fill(tmp_path, "images/b.1.nii.gz", "images/a.PNG", "images/.junk.png", "labels/b.1.png")
    pairs = find_pairs(tmp_path, SUFFIXES)
    assert [(pair.name, pair.label) for pair in pairs] == [("a", None), ("b.1", tmp_path / "labels" / "b.1.png")]
    assert pairs[1].image == tmp_path / "images" / "b.1.nii.gz"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["images/a.png", "labels/b.png"], r"labels.b\.png has no image of its name"),
        (["images/a.png", "images/a.nii"], r"images.a\.nii and .*images.a\.png have one name"),
        (["images/a.txt"], r"no image in .*images: expected files that end in \.nii\.gz, \.nii, \.png"),
    ],
)
def test_files_that_do_not_go_together_are_refused_by_name(tmp_path, names, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_pairs(fill(tmp_path, *names), SUFFIXES)


def test_files_that_are_not_read_are_named_once(tmp_path, caplog):
    log_once.cache_clear()
    fill(tmp_path, "images/a.png", "images/a.jpg", "images/b.jpg", "images/c.raw")
    for _ in range(2):
        find_pairs(tmp_path, SUFFIXES)
    assert [record.getMessage() for record in caplog.records] == [
        f"2 files in {tmp_path / 'images'} are not read (a.jpg): no .nii.gz, .nii, .png"
    ]
