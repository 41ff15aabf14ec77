"""The command line refuses bad folders and volumes, or skips them and names them."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from commands import LEARNED, assert_refused, call, decathlon, everything, liver_ct, on_ct, save, train
from segarena.evaluation.results import read_results


def test_an_empty_data_folder_is_refused(here, capsys):
    Path("data").mkdir()
    said = "data: expected dataset.json with cases (or Task03_Liver/dataset.json), images/ (and labels/) with NIfTI"
    assert_refused(train(*on_ct("data")), capsys, said, "found an empty folder")
    assert everything(here) == ["config.yaml", "data"]


def with_voxel(value):
    def harm(data):
        ct = liver_ct(0)[0].astype(np.float32)
        ct[1, 2, 3] = value
        save(data / "imagesTr" / "liver_0.nii.gz", ct)

    return harm


def label_of(label):
    return lambda data: save(data / "labelsTr" / "liver_0.nii.gz", label)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


HARMS = {
    "NaN": (with_voxel(np.nan), "liver_0.nii.gz has 1 voxels that are NaN or infinite"),
    "constant": (
        lambda data: save(data / "imagesTr" / "liver_0.nii.gz", np.full((20, 18, 16), 7, np.int16)),
        "liver_0.nii.gz holds the value 7 in every voxel: it is no image",
    ),
    "truncated": (
        lambda data: truncate(data / "imagesTr" / "liver_0.nii.gz"),
        "liver_0.nii.gz is truncated or damaged",
    ),
    "no NIfTI": (
        lambda data: (data / "imagesTr" / "liver_0.nii.gz").write_text("text"),
        "liver_0.nii.gz cannot be read as NIfTI",
    ),
    "of another shape than its label": (
        label_of(np.zeros((20, 18, 15), np.uint8)),
        "liver_0.nii.gz has shape (20, 18, 15)",
    ),
    "labelled outside the classes": (
        label_of(np.full((20, 18, 16), 7, np.uint8)),
        "has labels 7 but the classes are 0..2",
    ),
    "missing": (lambda data: (data / "labelsTr" / "liver_0.nii.gz").unlink(), "liver_0.nii.gz, which does not exist"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_volume_that_is_bad_is_refused_before_anything_is_written(here, capsys, harm):
    data = decathlon(here / "data")
    spoil, said = HARMS[harm]
    spoil(data)
    before = everything(here)
    assert_refused(train(*on_ct(data)), capsys, said)
    assert everything(here) == before


def test_a_bad_volume_for_the_classifier_is_refused_before_anything_is_written(here, capsys):
    data = decathlon(here / "data")
    truncate(data / "imagesTr" / "liver_3.nii.gz")
    before = everything(here)
    learned = [*on_ct(data), *LEARNED, "--classifier_train.cases", "[liver_1,liver_3]"]
    assert_refused(train(*learned), capsys, "liver_3.nii.gz is truncated or damaged")
    assert everything(here) == before


def test_a_bad_file_stops_an_evaluation_or_is_skipped_and_named(here, capsys):
    data = decathlon(here / "data")
    assert train(*on_ct(data), "--out", "ct") == 0
    truncate(data / "imagesTr" / "liver_2.nii.gz")
    before = everything(here)
    capsys.readouterr()
    assert_refused(call("evaluate", "--run", "ct", "--on_error", "stop"), capsys, "liver_2.nii.gz is truncated")
    assert everything(here) == before

    assert call("evaluate", "--run", "ct", "--on_error", "skip") == 1
    out, message = capsys.readouterr()
    assert re.search(r"^skipped    liver_2: .*liver_2.nii.gz is truncated or damaged", message, re.MULTILINE)
    assert "2 cases (0 phantom, 0 implanted, 2 real)" in out
    for result in read_results(Path("ct/evaluation/test")):
        assert [case["case_id"] for case in result.cases] == ["liver_1", "liver_3"]
