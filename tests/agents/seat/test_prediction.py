"""Predictions of a run of SEAT: class numbers in the space of each file, of phantoms and of a real hippocampus."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from seat_toys import TINY
from segarena.agents.command_line import main
from segarena.agents.seat import prediction
from segarena.agents.seat.evaluation import _native
from segarena.attacks.victims import load_victim
from segarena.datasets.decathlon.cases import DecathlonConfig, PhantomCases, constants_of
from segarena.datasets.decathlon.fingerprint import Fingerprint
from segarena.datasets.decathlon.phantom import drawn_phantom
from segarena.datasets.decathlon.preparation import to_z
from segarena.datasets.decathlon.tasks import find_task
from segarena.segmenters.volume_windows import VolumeWindows

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "Task04_Hippocampus"
TURNED = np.array([[0, -1.0, 0, 20], [0, 0, 1.0, -7], [-1.0, 0, 0, 3], [0, 0, 0, 1.0]])
"""Axes of another order and direction."""


def trained(folder, **data):
    config = {**TINY, "data": {**TINY["data"], **data}, "training": {**TINY["training"], "epochs": 1}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on toy phantoms; never changed."""
    return trained(tmp_path_factory.mktemp("trained"))


def predict(run, *words, out):
    return main(["predict", "--run", str(run), "--input", *map(str, words), "--out", str(out)])


def save(path, stored, affine=None):
    path.parent.mkdir(exist_ok=True)
    image = nib.Nifti1Image(np.asarray(stored), np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def expected(run, image, task):
    """Class numbers that the run's network gives a volume of 1 mm in RAS+ order."""
    net = VolumeWindows(load_victim(run / "segmenter" / "victim.safetensors")[0], task.plan.val_size)
    with torch.no_grad():
        return net(to_z(image, task.fingerprint, ct=False)[None])[0].argmax(dim=0).numpy()


def stored(path):
    return nib.as_closest_canonical(nib.load(path))


def test_a_phantom_is_segmented_in_the_space_of_its_file_whatever_its_order(run, tmp_path, capsys):
    image = drawn_phantom("Toy", 100_000).image[:, :, :-2, :-4]  # of three sides
    save(tmp_path / "in" / "plain.nii.gz", image[0])
    ras = nib.Nifti1Image(np.asarray(image[0]), np.eye(4))
    turned = ras.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.io_orientation(TURNED))
    )
    nib.save(turned, tmp_path / "in" / "turned.nii.gz")
    assert predict(run, tmp_path / "in", out=tmp_path / "out") == 0
    assert "segmenter" in capsys.readouterr().out
    truth = expected(run, image, find_task("toy", phantom=True))
    assert 0 < truth.mean() < 1, "there is something to compare"
    for name in ("plain", "turned"):
        mask, given = (nib.load(tmp_path / of) for of in (f"out/{name}_mask.nii.gz", f"in/{name}.nii.gz"))
        assert mask.shape == given.shape
        assert mask.affine == pytest.approx(given.affine)
        assert mask.get_data_dtype() == np.uint8
        assert np.array_equal(stored(tmp_path / f"out/{name}_mask.nii.gz").dataobj, truth)
        assert (tmp_path / f"out/{name}_slices.png").is_file()
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["plain", "turned"]
    assert float(rows[0]["ball_ml"]) == pytest.approx(truth.sum() / 1000)
    assert rows[0]["mask_voxels"] == str(truth.sum())


def test_voxels_of_other_sizes_are_resampled_and_brought_back(run, tmp_path):
    image = drawn_phantom("Toy", 100_001).image[0].numpy()
    affine = np.array([[0.48, -0.28, 0, 5], [0.14, 0.96, 0, 0], [0, 0, 1.6, 2], [0, 0, 0, 1.0]])
    save(tmp_path / "fine.nii.gz", image.repeat(2, axis=0)[:, :, :10], affine)
    assert predict(run, tmp_path / "fine.nii.gz", out=tmp_path / "out") == 0
    mask = nib.load(tmp_path / "out" / "fine_mask.nii.gz")
    assert mask.shape == (32, 16, 10)
    assert mask.affine == pytest.approx(affine)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real hippocampi are not at {REAL}")
def test_a_real_hippocampus_is_segmented(tmp_path):
    made = trained(tmp_path, task=4, phantom_cases={"labelled": 10, "test": 1})
    path = REAL / "imagesTr" / "hippocampus_001.nii.gz"
    assert predict(made, path, out=tmp_path / "out") == 0
    mask, given = nib.load(tmp_path / "out" / "hippocampus_001_mask.nii.gz"), nib.load(path)
    assert mask.shape == given.shape
    assert mask.affine == pytest.approx(given.affine)
    image = torch.from_numpy(np.asarray(stored(path).dataobj, np.float32).copy())[None]
    truth = expected(made, image, find_task(4, phantom=True))
    assert np.array_equal(stored(tmp_path / "out" / "hippocampus_001_mask.nii.gz").dataobj, truth)
    facts = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"][0]["facts"]
    assert facts["anterior_ml"] == pytest.approx((truth == 1).sum() / 1000)
    assert facts["posterior_ml"] == pytest.approx((truth == 2).sum() / 1000)


def test_what_was_measured_on_the_training_cases_is_kept_with_the_run(run, tmp_path, monkeypatch):
    made = trained(tmp_path, stats="corrected")
    measured = Fingerprint.load(made / "segmenter" / "constants.json")
    data = DecathlonConfig(task="toy", stats="corrected", phantom_cases=PhantomCases(labelled=10, test=2))
    assert measured == constants_of(data)
    assert (
        measured != Fingerprint.load(run / "segmenter" / "constants.json") == find_task("toy", phantom=True).fingerprint
    )

    def gone(config):
        raise FileNotFoundError("the training cases are gone")

    monkeypatch.setattr(prediction, "constants_of", gone)
    used, prepare = [], prediction.prepare
    monkeypatch.setattr(prediction, "prepare", lambda one, by, ct: used.append(by) or prepare(one, by, ct=ct))
    path = save(tmp_path / "one.nii.gz", drawn_phantom("Toy", 100_002).image[0])
    assert predict(made, path, out=tmp_path / "out") == 0
    assert used == [measured]


def test_a_bad_file_is_named_or_skipped(run, tmp_path, capsys):
    save(tmp_path / "in" / "good.nii.gz", drawn_phantom("Toy", 100_002).image[0])
    save(tmp_path / "in" / "bad.nii.gz", np.zeros((8, 8, 8, 3), np.float32) + np.arange(3, dtype=np.float32))
    assert predict(run, tmp_path / "in", out=tmp_path / "out") == 2
    assert "bad.nii.gz has shape (8, 8, 8, 3), 3 channel(s), but 1 are needed" in capsys.readouterr().err
    assert predict(run, tmp_path / "in", "--on_error", "skip", out=tmp_path / "out") == 1
    assert "skipped    bad: " in capsys.readouterr().err
    assert (tmp_path / "out" / "good_mask.nii.gz").is_file()
    assert not (tmp_path / "out" / "bad_mask.nii.gz").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--method", "policy"], "'segmenter'"),
        (["--threshold", "0.5"], "threshold is of SPARS's maps"),
        (["--spacing_mm", "[1.0,1.0]"], "spacing_mm is for pictures"),
    ],
)
def test_options_of_other_papers_are_refused(run, tmp_path, capsys, option, said):
    path = save(tmp_path / "one.nii.gz", drawn_phantom("Toy", 100_002).image[0])
    assert predict(run, path, *option, out=tmp_path / "out") == 2
    assert said in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_refused(run, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("config.yaml", "run.json"):
        if (run / name).is_file():
            (unfinished / name).write_bytes((run / name).read_bytes())
    path = save(tmp_path / "one.nii.gz", drawn_phantom("Toy", 100_002).image[0])
    assert predict(unfinished, path, out=tmp_path / "out") == 2
    assert "is not finished: it lacks segmenter" in capsys.readouterr().err


def test_metrics_in_the_space_of_a_file_are_in_its_mm():
    label, found = torch.zeros(10, 10, 10, dtype=torch.uint8), torch.zeros(10, 10, 10, dtype=torch.uint8)
    label[2:6, 2:6, 2:6] = 1
    found[2:6, 2:6, 3:7] = 1  # a voxel of 3 mm beside it
    metrics = _native(found, label, ("background", "a", "b"), (1.0, 1.0, 3.0), 1.0)
    assert metrics["native_dice_a"] == pytest.approx(0.75)
    assert metrics["hd95_mm_a"] == pytest.approx(3.0)
    assert 0 < metrics["nsd_a"] < 1
    assert _native(found, label, ("background", "a", "b"), (1.0, 1.0, 3.0), 3.5)["nsd_a"] == 1.0
    assert (metrics["native_dice_b"], metrics["hd95_mm_b"], metrics["nsd_b"]) == (1.0, 0.0, 1.0), "in neither"
    assert metrics["native_dice"] == pytest.approx(0.875)
    assert metrics["hd95_mm"] == pytest.approx(1.5)
