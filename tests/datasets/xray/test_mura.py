"""MURA's lists: what is read, how patients are divided, and what is refused by file and line."""

import re

import pytest
from segarena.datasets.xray.files import XrayFile
from segarena.datasets.xray.mura import find_mura, mura_splits
from segarena.datasets.xray.parts import PARTS, PUBLISHED, counts_of, differences
from xray_toys import fake_mura, replace_line

IMAGES, STUDIES = "train_image_paths.csv", "train_labeled_studies.csv"


def test_the_first_line_is_no_header_and_every_line_is_read(tmp_path):
    root = fake_mura(tmp_path, numbers={("train", 0): 2, ("train", 1): 2, ("valid", 0): 1, ("valid", 1): 1})
    for place in (root, tmp_path):
        files = find_mura(place)
        assert len(files) == len((root / IMAGES).read_text().splitlines()) + 4 == 10
        first = files[0]
        assert first.id == "elbow_patient00001_study1_negative_image1"
        assert (first.label, first.patient, first.part, first.split) == (0, "patient00001", "elbow", "train")
        assert first.study == files[1].study == "elbow_patient00001_study1_negative"
        assert first.path == root / "train/XR_ELBOW/patient00001/study1_negative/image1.png"
        assert first.path.is_file()
        assert first.where == f"line 1 of {root / IMAGES}"
        assert [one.label for one in files] == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]


def test_names_that_begin_with_a_dot_are_skipped(tmp_path):
    root = fake_mura(tmp_path)
    number = len(find_mura(root))
    with (root / IMAGES).open("a") as file:
        file.write("MURA-v1.1/train/XR_ELBOW/patient00001/study1_negative/._image1.png\n\n")
    assert len(find_mura(root)) == number


@pytest.mark.parametrize(
    ("table", "number", "text", "message"),
    [
        (IMAGES, 2, "MURA-v1.1/train/XR_ELBOW/image.png", f"line 2 of .*{IMAGES} is .* but must be a path such as"),
        (IMAGES, 1, "path", f"line 1 of .*{IMAGES} is 'path' .* have no header"),
        (IMAGES, 3, "MURA-v1.1/valid/XR_ELBOW/patient00001/study1_negative/image1.png", f"line 3 of .*{IMAGES} is"),
        (IMAGES, 3, "MURA-v1.1/train/XR_KNEE/patient00001/study1_negative/image1.png", f"line 3 of .*{IMAGES} is"),
        (
            IMAGES,
            4,
            "MURA-v1.1/train/XR_ELBOW/patient00099/study1_negative/image1.png",
            f"line 4 of .*{IMAGES} is of a study that {STUDIES} does not list",
        ),
        (
            IMAGES,
            2,
            "MURA-v1.1/train/XR_ELBOW/patient00001/study1_negative/image1.png",
            f"line 2 of .*{IMAGES} is .* but line 1 is so",
        ),
        (IMAGES, 4, None, f"line 3 of .*{STUDIES} names the study 'XR_ELBOW/patient00003/study1_negative', of which"),
        (STUDIES, 1, "study,label", f"line 1 of .*{STUDIES} is 'study,label' but must be a study and its class"),
        (
            STUDIES,
            2,
            "MURA-v1.1/train/XR_ELBOW/patient00002/study1_negative/,1",
            f"line 2 of .*{STUDIES} gives the class 1 to a study whose folder is 'study1_negative'",
        ),
        (STUDIES, 2, "MURA-v1.1/train/XR_ELBOW/patient00002/study1_negative/,2", f"line 2 of .*{STUDIES} is"),
        (
            STUDIES,
            2,
            "MURA-v1.1/train/XR_ELBOW/patient00001/study1_negative/,0",
            f"line 2 of .*{STUDIES} names the study .* as line 1 does",
        ),
    ],
)
def test_a_wrong_line_is_refused_by_file_and_number(table, number, text, message, tmp_path):
    root = fake_mura(tmp_path)
    replace_line(root / table, number, text)
    with pytest.raises(ValueError, match=message):
        find_mura(root)


def test_missing_folders_and_lists_are_named(tmp_path):
    root = fake_mura(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_mura(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{root / 'train'} has no train_image_paths.csv")):
        find_mura(root / "train")
    (root / "valid_labeled_studies.csv").write_text("")
    with pytest.raises(ValueError, match=r"valid_labeled_studies.csv names nothing"):
        find_mura(root)
    (root / "valid_labeled_studies.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"valid_labeled_studies.csv' does not exist"):
        find_mura(root)


def test_a_patient_in_both_official_splits_is_refused(tmp_path):
    root = fake_mura(tmp_path)
    for name in ("valid_image_paths.csv", "valid_labeled_studies.csv"):
        text = (root / name).read_text()
        (root / name).write_text(text.replace("patient00010", "patient00001"))
    with pytest.raises(ValueError, match="patient00001 is in train and in valid"):
        find_mura(root)


def many(patients):
    """Patients of two parts, one in four abnormal, some of them with studies of both parts; no files."""
    files = []
    for number in range(patients):
        name, label = f"patient{number:05d}", int(number % 4 == 0)
        for part in ("elbow", "wrist") if number % 10 == 0 else ("elbow",) if number % 3 == 0 else ("wrist",):
            one = f"{part}_{name}"
            files.append(XrayFile(one, label, one, name, part, "train", None, "line"))
    files.append(XrayFile("v", 0, "v", "patient99999", "elbow", "valid", None, "line"))
    return files


def test_protocol_clean_takes_a_tenth_of_each_part_and_class_by_patients():
    files = many(1200)
    splits = mura_splits(files, "clean", 0)
    train, val = set(splits["train"]), set(splits["val"])
    assert splits["test"] == ["patient99999"]
    assert not train & val
    assert len(train | val) == 1200
    for part in ("elbow", "wrist"):
        for label in (0, 1):
            mine = [one for one in files if (one.part, one.label, one.split) == (part, label, "train")]
            share = sum(one.patient in val for one in mine) / len(mine)
            assert share == pytest.approx(0.1, abs=0.02), (part, label)
    assert mura_splits(files, "clean", 0) == splits
    assert set(mura_splits(files, "clean", 1)["val"]) != val
    assert set(mura_splits(files[::-1], "clean", 0)["val"]) == val


def test_few_patients_leave_both_classes_on_both_sides(tmp_path):
    files = find_mura(fake_mura(tmp_path))
    for seed in range(20):
        splits = mura_splits(files, "clean", seed)
        for name in ("train", "val"):
            assert {one.label for one in files if one.patient in splits[name]} == {0, 1}


def test_protocol_paper_judges_on_what_it_tests(tmp_path):
    files = find_mura(fake_mura(tmp_path))
    splits = mura_splits(files, "paper", 0)
    assert splits["val"] == splits["test"] == list(dict.fromkeys(one.patient for one in files if one.split == "valid"))
    assert len(splits["train"]) == 9


def test_the_published_numbers_add_up():
    sums = [sum(sum(one[k]) for one in PUBLISHED.values()) for k in range(4)]
    assert sums == [36_808, 3_197, 13_457, 1_199]
    assert list(PUBLISHED) == list(PARTS)
    assert PARTS["humerus"] == "XR_HUMERUS"


def test_numbers_are_counted_and_compared_with_the_published_ones(tmp_path, monkeypatch):
    files = find_mura(fake_mura(tmp_path, ("XR_ELBOW", "XR_WRIST")))
    found = counts_of(files)
    assert found == dict.fromkeys(("elbow", "wrist"), ((5, 6), (3, 3), (4, 5), (2, 2)))
    assert len(differences(files)) == 7 * 4
    assert differences(files)[0] == "elbow: (5, 6) train images (negative, positive) instead of (2925, 2006)"
    monkeypatch.setattr("segarena.datasets.xray.parts.PUBLISHED", found)
    assert differences(files) == []
    assert len(differences(files[1:])) == 1  # an image less, the same studies
