"""Which volumes are loaded: phantoms, folders, folds, CSV lists, statistics, the cache, and what is refused."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from segarena.datasets.decathlon.cases import (
    DecathlonConfig,
    PhantomCases,
    constants_of,
    decathlon_case_ids,
    load_decathlon,
    recorded_labels,
)
from segarena.datasets.decathlon.fingerprint import measure
from segarena.datasets.decathlon.preparation import read_case, restored
from segarena.datasets.decathlon.sampling import PatchSampler, mass_corners
from segarena.datasets.decathlon.tasks import find_task
from segarena.datasets.msd import find_cases

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "Task04_Hippocampus"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real hippocampi are not at {REAL}")


def write_task(folder, names, shape=(12, 14, 10), labels=3, modality=("MRI",), spacing=1.0):
    """A task in the Decathlon's layout, with a test case."""
    rng = np.random.default_rng(0)
    affine = np.diag([spacing, spacing, spacing, 1])
    for kind in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name in [*names, "test_1"]:
        channels = () if len(modality) == 1 else (len(modality),)
        image = rng.integers(0, 1000, (*shape, *channels)).astype(np.int16)
        label = np.zeros(shape, np.uint8)
        for k in range(1, labels):
            label[3:8, 2 + k : 6 + k, 3:7] = k
        test = name.startswith("test")
        nib.save(nib.Nifti1Image(image, affine), folder / ("imagesTs" if test else "imagesTr") / f"{name}.nii.gz")
        if not test:
            nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"{name}.nii.gz")
    content = {
        "modality": {str(n): name for n, name in enumerate(modality)},
        "labels": {str(n): f"class {n}" for n in range(labels)},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": ["./imagesTs/test_1.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def change(folder, **values):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_lists(folder, train, val, test=("test_1",), fold=0):
    folder.mkdir(exist_ok=True)
    for split, names in (("train", train), ("val", val)):
        rows = [f"./imagesTr/{name}.nii.gz,./labelsTr/{name}.nii.gz" for name in names]
        (folder / f"{split}_fold{fold}.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    (folder / "test_paths.csv").write_text("\n".join(["image", *(f"./imagesTs/{name}.nii.gz" for name in test)]) + "\n")
    return folder


@pytest.fixture
def task_folder(tmp_path):
    return write_task(tmp_path / "Task04_Hippocampus", [f"h_{n:03d}" for n in range(12)])


def ids(config):
    return {split: decathlon_case_ids(config, split) for split in ("train", "val", "select", "report")}


# -- folds and splits ----------------------------------------------------------------------------------------------


def test_phantoms_are_divided_into_folds_and_test_phantoms_are_apart():
    splits = ids(DecathlonConfig())
    assert [len(found) for found in splits.values()] == [40, 10, 6, 4]
    assert sorted(splits["select"] + splits["report"]) == sorted(splits["val"])
    assert not set(splits["train"]) & set(splits["val"])
    assert decathlon_case_ids(DecathlonConfig(), "test[:2]") == ["phantom_100000", "phantom_100001"]
    assert len(decathlon_case_ids(DecathlonConfig(), "all")) == 70
    assert len(decathlon_case_ids(DecathlonConfig(), "train[:3]+report")) == 7
    folds = [set(decathlon_case_ids(DecathlonConfig(fold=fold), "val")) for fold in range(5)]
    assert set.union(*folds) == {f"phantom_{n:05d}" for n in range(50)}
    assert sum(map(len, folds)) == 50, "each case is in the validation of one fold"
    assert ids(DecathlonConfig(split_seed=1)) != splits


def test_a_phantom_pool_is_deterministic_and_prepared():
    for task, classes, channels in ((4, 3, 1), (1, 4, 4), ("toy", 2, 1)):
        config = DecathlonConfig(task=task)
        pool, again = load_decathlon(config, "report"), load_decathlon(config, "report")
        assert torch.equal(pool.images, again.images)
        assert pool.origin == "phantom"
        assert (len(pool.classes), len(pool.channels), len(pool)) == (classes, channels, 4)
        for channel, (low, high) in zip(pool.images, config.resolved_task.fingerprint.z_window(), strict=True):
            assert (channel.min().item(), channel.max().item()) == pytest.approx((low, high), abs=1e-4)


def test_patients_are_never_divided(tmp_path):
    names = [f"p{patient}_{visit}" for patient in range(10) for visit in range(3)]
    folder = write_task(tmp_path / "Task04_Hippocampus", names)
    for fold in range(5):
        config = DecathlonConfig(data=str(folder), patient_pattern=r"^p\d+", fold=fold)
        splits = ids(config)
        patients = {split: {name.split("_")[0] for name in found} for split, found in splits.items()}
        assert not patients["train"] & patients["val"]
        assert not patients["select"] & patients["report"]
        assert [len(found) for found in splits.values()] == [24, 6, 3, 3]
    assert load_decathlon(config, "val").groups == [name.split("_")[0] for name in splits["val"]]


def test_csv_lists_are_loaded_as_they_are(task_folder, tmp_path):
    lists = write_lists(tmp_path / "lists", ["h_003", "h_001"], [f"h_{n:03d}" for n in (5, 6, 7, 8, 9)])
    config = DecathlonConfig(data=str(task_folder.parent), splits=str(lists))
    assert decathlon_case_ids(config, "train") == ["h_003", "h_001"]
    assert decathlon_case_ids(config, "val") == [f"h_{n:03d}" for n in (5, 6, 7, 8, 9)]
    assert (len(decathlon_case_ids(config, "select")), len(decathlon_case_ids(config, "report"))) == (3, 2)
    test = load_decathlon(config, "test")
    assert (test.ids, test.labels) == (["test_1"], None)
    (lists / "test_paths.csv").unlink()
    with pytest.raises(ValueError, match=r"split 'test' .* has no case"):
        decathlon_case_ids(config, "test")


def test_a_folder_is_found_by_itself_or_below_another(task_folder):
    for data in (task_folder, task_folder.parent):
        pool = load_decathlon(DecathlonConfig(data=str(data)), "val")
        assert pool.origin == "real"
        assert pool[0].label.unique().tolist() == [0, 1, 2]


def test_two_channels_from_disk(tmp_path):
    folder = write_task(tmp_path, [f"p_{n}" for n in range(10)], modality=("T2", "ADC"), shape=(20, 20, 5))
    pool = load_decathlon(DecathlonConfig(data=str(folder), task=5), "select")
    assert pool.channels == ("T2", "ADC")
    assert len(pool[0].image) == 2
    assert pool.spacing_mm == (0.625, 0.625, 3.6)


# -- the cache, statistics -----------------------------------------------------------------------------------------


def test_a_volume_is_prepared_once_and_anew_when_its_file_or_the_constants_change(task_folder, tmp_path, caplog):
    config = DecathlonConfig(data=str(task_folder), cache_dir=str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO, "segarena.datasets.decathlon.preparation"):
        first = load_decathlon(config, "val")
        said = [record.getMessage() for record in caplog.records]
        assert len([text for text in said if text.startswith("preparing h_")]) == len(first)
        assert "(1 of 3), kept in the cache" in said[0]
        caplog.clear()
        assert torch.equal(load_decathlon(config, "val").images, first.images)
        assert caplog.records == []
        path = task_folder / "imagesTr" / f"{first.ids[0]}.nii.gz"
        image = np.asarray(nib.load(path).dataobj)[::-1].copy()
        nib.save(nib.Nifti1Image(image, np.eye(4)), path)
        changed = load_decathlon(config, "val")
        assert [record.args[0] for record in caplog.records] == [first.ids[0]]
        assert not torch.equal(changed.images, first.images)
        caplog.clear()
        corrected = load_decathlon(replace(config, stats="corrected"), "val")
        assert [record.msg.split()[0] for record in caplog.records] == ["measuring", *["preparing"] * 3]
        assert not torch.equal(corrected.images, changed.images)


def test_corrected_statistics_are_measured_on_the_training_cases_of_the_fold(task_folder):
    config = DecathlonConfig(data=str(task_folder), stats="corrected")
    task, cases = config.resolved_task, {case.id: case for case in find_cases(task_folder)}
    train = [read_case(cases[one], task) for one in decathlon_case_ids(config, "train")]
    expected = measure(train, 3, ct=False)
    found = constants_of(config)
    assert (found.mean, found.std, found.window) == (expected.mean, expected.std, expected.window)
    assert found.spacing_mm == task.fingerprint.spacing_mm
    assert constants_of(DecathlonConfig(data=str(task_folder))) == task.fingerprint
    other = constants_of(DecathlonConfig(data=str(task_folder), stats="corrected", fold=1))
    assert other.mean != found.mean
    phantom = constants_of(DecathlonConfig(task="toy", stats="corrected"))
    assert phantom.mean == pytest.approx(DecathlonConfig(task="toy").resolved_task.fingerprint.mean, abs=0.02)


def test_a_plan_of_ones_own(tmp_path):
    config = DecathlonConfig(task="toy")
    config.resolved_plan().save(tmp_path / "plan.json")
    assert DecathlonConfig(task="toy", plan=str(tmp_path / "plan.json")).resolved_plan() == config.resolved_plan()


# -- real hippocampi -----------------------------------------------------------------------------------------------


@needs_real
def test_real_hippocampi_are_loaded_whatever_their_type_and_scale():
    config = DecathlonConfig(data=str(REAL))
    splits = ids(config)
    assert [len(found) for found in splits.values()] == [48, 12, 7, 5]
    pool = load_decathlon(config, "all")
    assert len(pool) == 60
    low, high = config.resolved_task.fingerprint.z_window()[0]
    inside = []
    for row in range(60):
        case = pool[row]
        assert case.image.min().item() == pytest.approx(low, abs=1e-4)
        assert case.label.unique().tolist() == [0, 1, 2]
        inside.append(case.image[0][case.label > 0].mean().item())
    assert max(inside) < high
    assert abs(np.mean(inside)) < 0.15, "the foreground lies about 0, the mean of the table"
    assert np.std(inside) < 1
    plan = config.resolved_plan()
    patches = PatchSampler(pool, plan, seed=0).batch(torch.arange(22), 0)
    assert patches.images.shape == (22, 1, 32, 48, 32)
    assert (patches.labels[::2, 16, 24, 16] > 0).all()
    attacked = pool.patches(torch.arange(60), mass_corners(pool, plan.val_size), plan.val_size)
    shares = (attacked.labels > 0).flatten(1).sum(1) / torch.stack([(pool[n].label > 0).sum() for n in range(60)])
    assert shares.min() > 0.75, "the patch holds nearly all of the foreground"


@needs_real
def test_the_fingerprint_of_the_real_hippocampi_is_that_of_the_table():
    task = find_task(4)
    found = measure((read_case(case, task) for case in find_cases(REAL)), 3, ct=False)
    table = task.fingerprint
    assert found.small_size == table.small_size
    assert found.spacing_mm == table.spacing_mm
    assert found.mean_size == pytest.approx(table.mean_size, abs=1)
    assert found.small_volume == pytest.approx(table.small_volume, rel=0.05)
    assert np.array(found.window) == pytest.approx(np.array(table.window), abs=0.005)
    assert (found.mean[0], found.std[0]) == pytest.approx((table.mean[0], table.std[0]), abs=0.006)


# -- what is refused -----------------------------------------------------------------------------------------------


def test_folders_that_are_not_of_the_task_are_refused(task_folder, tmp_path):
    def refused(error, message, **settings):
        with pytest.raises(error, match=message):
            load_decathlon(DecathlonConfig(**{"data": str(task_folder)} | settings), "train")

    refused(FileNotFoundError, "data folder .*nowhere does not exist", data=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    refused(FileNotFoundError, "no dataset.json in .*empty.*unpack Task04_Hippocampus", data=str(tmp_path / "empty"))
    refused(ValueError, r"has the labels \{.*class 2.*\} but Task02_Heart has .*left atrium.*choose the task", task=2)
    refused(ValueError, "has the modality .* but Task03_Liver has CT", task=3)
    refused(ValueError, "has the labels .* but Task01_BrainTumour", task=1)
    change(task_folder, modality={"0": "MRI", "1": "ADC"})
    refused(ValueError, "has the modality .*ADC.* but Task04_Hippocampus has MR with the channels MR")
    change(task_folder, labels=3)
    refused(ValueError, "dataset.json is no description of Task04_Hippocampus")
    change(task_folder, labels=None)
    refused(ValueError, "dataset.json is no description of Task04_Hippocampus")


def test_wrong_files_are_refused_or_left_out(task_folder):
    config = DecathlonConfig(data=str(task_folder))
    first, second, third = decathlon_case_ids(config, "train")[:3]
    labels = task_folder / "labelsTr"
    nib.save(nib.Nifti1Image(np.zeros((12, 14, 11), np.uint8), np.eye(4)), labels / f"{first}.nii.gz")
    nib.save(nib.Nifti1Image(np.full((12, 14, 10), 3, np.uint8), np.eye(4)), labels / f"{second}.nii.gz")
    image = np.random.default_rng(0).random((12, 14, 10, 2))
    nib.save(nib.Nifti1Image(image, np.eye(4)), task_folder / "imagesTr" / f"{third}.nii.gz")
    with pytest.raises(ValueError, match=rf"{first}.nii.gz has shape \(12, 14, 11\) but .* has \(12, 14, 10\)"):
        load_decathlon(config, "train")
    bad = []
    pool = load_decathlon(config, "train", on_bad=bad.append)
    assert [one.id for one in bad] == [first, second, third]
    assert "has labels 3 but the classes are 0..2" in bad[1].reason
    assert "2 channel(s), but 1 are needed" in bad[2].reason
    assert len(pool) == len(decathlon_case_ids(config, "train")) - 3
    (task_folder / "imagesTr" / f"{third}.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"names .*{third}.nii.gz, which does not exist"):
        load_decathlon(config, "train")


def test_wrong_lists_are_refused_with_their_line(task_folder, tmp_path):
    good = ["h_000", "h_001"], ["h_002", "h_003"]

    def refused(error, message, text=None, split="train", **settings):
        lists = write_lists(tmp_path / "lists", *good)
        if text is not None:
            (lists / f"{split}_fold0.csv").write_text(text)
        with pytest.raises(error, match=message):
            decathlon_case_ids(DecathlonConfig(**{"data": str(task_folder), "splits": str(lists)} | settings), "train")

    row = "./imagesTr/h_000.nii.gz,./labelsTr/h_000.nii.gz\n"
    refused(FileNotFoundError, "train_fold3.csv.* does not exist", fold=3)
    refused(FileNotFoundError, r"train_fold0.csv, line 3, names .*h_077.nii.gz, which does not exist; add it", text=
            "image,label\n" + row + "./imagesTr/h_077.nii.gz,./labelsTr/h_077.nii.gz\n")  # fmt: skip
    refused(ValueError, "lacks image, label; its first line must be image,label", text=row)
    refused(ValueError, "line 2, has no label", text="image,label\n./imagesTr/h_000.nii.gz,\n")
    refused(ValueError, "line 2, has no label", text="image,label\n./imagesTr/h_000.nii.gz\n")
    refused(ValueError, "line 2, names .*must lie below", text="image,label\n../x.nii.gz,../y.nii.gz\n")
    refused(ValueError, "names the label .*h_001.*, but .*h_000",
            text="image,label\n./imagesTr/h_000.nii.gz,./labelsTr/h_001.nii.gz\n")  # fmt: skip
    refused(
        ValueError,
        "names .*h_000.*, which is no case of",
        text="image,label\n./labelsTr/h_000.nii.gz,./labelsTr/h_000.nii.gz\n",
    )
    refused(ValueError, "h_000 is in train and in val", text="image,label\n" + row * 2, split="val")
    refused(ValueError, "lists no case, so that fold 0 has no val side", text="image,label\n", split="val")
    refused(ValueError, "lists no case, so that fold 0 has no train side", text="image,label\n")
    refused(ValueError, r"has 1 validation case\(s\), but one patient is needed to choose by and another to report",
            text="image,label\n./imagesTr/h_002.nii.gz,./labelsTr/h_002.nii.gz\n", split="val")  # fmt: skip


def test_folds_with_an_empty_side_are_refused(task_folder):
    def refused(message, **settings):
        with pytest.raises(ValueError, match=message):
            decathlon_case_ids(DecathlonConfig(data=str(task_folder), **settings), "train")

    refused("has 12 patients with labels, so that of 13 folds some would be empty", folds=13)
    refused(r"fold 0 .* has 1 validation case\(s\)", folds=12)
    refused("has 1 patients with labels", patient_pattern="^h")


def test_wrong_settings_are_refused_by_name():
    for message, settings in {
        "fold is 5 but there are 5 folds": {"fold": 5},
        "folds is 1": {"folds": 1},
        "select_share is 1.0": {"select_share": 1.0},
        "of which there is no phantom": {"task": 9},
        "splits is 'lists' but phantoms have no files": {"splits": "lists"},
        "stats is 'right' but must be one of 'table', 'corrected'": {"stats": "right"},
        "patient_pattern is": {"patient_pattern": "("},
        "task is 'toy' but must be one of": {"task": "toy", "data": "folder"},
    }.items():
        with pytest.raises(ValueError, match=message):
            DecathlonConfig(**settings)
    with pytest.raises(ValueError, match=r"phantom_cases\.labelled is 1"):
        PhantomCases(labelled=1)
    with pytest.raises(ValueError, match="split is 'trian' but 'phantom' has train, val, select, report, test, all"):
        load_decathlon(DecathlonConfig(), "trian")


def test_labels_as_they_were_recorded_lie_on_what_was_prepared(tmp_path):
    folder = write_task(tmp_path / "Task04_Hippocampus", [f"case_{n}" for n in range(6)], spacing=2.0)
    pool = load_decathlon(DecathlonConfig(data=str(folder), cache_dir=str(tmp_path / "cache")), "val")
    again = load_decathlon(DecathlonConfig(data=str(folder), cache_dir=str(tmp_path / "cache")), "val")
    assert np.array_equal(pool.affines, again.affines), "the cache keeps where they lie"
    for row, (label, frame) in enumerate(recorded_labels(DecathlonConfig(data=str(folder)), pool.ids)):
        sample = pool[row]
        assert tuple(label.shape) == frame.shape == (12, 14, 10)
        assert tuple(sample.label.shape) == (24, 28, 20)
        back = restored(torch.nn.functional.one_hot(sample.label.long()).movedim(-1, 0).float(), sample, frame)
        assert (back != label).float().mean() < 0.01
    phantoms = DecathlonConfig(task="toy")
    pool = load_decathlon(phantoms, "val[:2]")
    for row, (label, frame) in enumerate(recorded_labels(phantoms, pool.ids)):
        assert torch.equal(label, pool[row].label)
        assert frame.ras_shape == tuple(label.shape)
    with pytest.raises(ValueError, match="test_1 has no label"):
        next(recorded_labels(DecathlonConfig(data=str(folder)), ["test_1"]))
