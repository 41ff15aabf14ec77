"""Predictions of a SPARS run, end to end: the masks are those that are evaluated, whatever else is in the way."""

import contextlib
import csv
import io
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import imageio.v3 as imageio
import nibabel as nib
import numpy as np
import pytest
import yaml
from segarena.agents.command_line import main
from segarena.agents.configuration import read_experiment
from segarena.agents.generic import PPOExperiment
from segarena.agents.prediction import predict
from segarena.agents.spars import thresholds
from segarena.common.runs import Run, plain
from segarena.datasets.liver.cases import load_liver_cases
from segarena.evaluation.metrics import dice
from segarena.evaluation.results import read_results
from segarena.evaluation.volume_figures import save_prediction_figure

SHAPE = (24, 20, 18)
AFFINE = np.array([[-1.5, 0, 0, 30], [0, 0, 2, -12], [0, -1.5, 0, 7], [0, 0, 0, 1.0]])
"""Of no usual order and direction."""
METHODS = {"policy": "Tiny", "greedy": "greedy", "score_map_mean": "score map (mean)"}


def call(*arguments):
    """Exit status of a command."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code


def ct(number):
    """A CT in HU with air around it, and its label: a liver with a tumour in it."""
    image = np.random.default_rng(number).normal(60, 20, SHAPE).astype(np.int16)
    label = np.zeros(SHAPE, np.uint8)
    label[3:17, 3:15, 3:13] = 1
    label[6:11, 6:11, 5 + number : 9 + number] = 2
    image[label == 2] -= 60
    image[:2] = -1000
    return image, label


def save(path, stored):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(AFFINE, "scanner")
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("Task03_Liver")
    entries = []
    for number in range(4):
        for kind, stored in zip(("imagesTr", "labelsTr"), ct(number), strict=True):
            save(folder / kind / f"liver_{number}.nii.gz", stored)
        entries.append({kind[:5]: f"./{kind}/liver_{number}.nii.gz" for kind in ("imagesTr", "labelsTr")})
    (folder / "dataset.json").write_text(json.dumps({"training": entries, "test": []}))
    return folder


@pytest.fixture(scope="module")
def trained(decathlon, tmp_path_factory):
    """A run with a classifier of its own; never changed."""
    folder = tmp_path_factory.mktemp("trained")
    config = {
        "paper": "spars",
        "name": "Tiny",
        "device": "cpu",
        "env": {
            "data": str(decathlon),
            "cases": ["liver_0"],
            "grid_shape": [20, 16, 16],
            "window_size": [8, 8, 8],
            "classifier": "train",
            "paint": "windows",  # two batches teach it no cell that speaks for tumour
            "obs_mode": "features",
            "horizon": 20,
        },
        "presence": {"epochs": 1, "batches_per_epoch": 2, "validation_windows": 16},
        "classifier_train": {"cases": ["liver_1", "liver_2"]},
        "validation": {"cases": ["liver_1"]},
        "test": {"cases": ["liver_2", "liver_3"]},
        "policy": "feature_mlp",
        "ppo": {"total_timesteps": 128, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1},
        "evaluation": {"rollouts": 3, "pictures": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert call("train", "--config", folder / "config.yaml", "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """A copy of it, evaluated with its masks."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run"))
    with contextlib.redirect_stdout(io.StringIO()):
        assert call("evaluate", "--run", run, "--save_masks", "--policies", "greedy") == 0
    return run


@pytest.fixture
def run(evaluated, tmp_path):
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


@pytest.fixture(scope="module", autouse=True)
def plain_figures():
    """A figure takes longer than all the rest; one test draws it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segarena.agents.spars.prediction.save_prediction_figure", _blank)
        patch.setattr("segarena.agents.spars.evaluation.save_case_figure", _blank)
        yield


def _blank(path, *arguments, **settings):
    path.write_bytes(b"")


@pytest.fixture
def images(decathlon, tmp_path):
    """The test CTs without labels, under names of their own."""
    for number, name in ((2, "a.nii.gz"), (3, "b.nii.gz")):
        (tmp_path / "mine").mkdir(exist_ok=True)
        shutil.copy(decathlon / "imagesTr" / f"liver_{number}.nii.gz", tmp_path / "mine" / name)
    return tmp_path / "mine"


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def masks_of(run, method):
    """Folder of the masks that `evaluate --save_masks` wrote of a method."""
    (folder,) = {path.parent for path in run.glob(f"evaluation/**/{method}/*_mask.nii.gz")}
    return folder


def assert_refused(status, capsys, *said):
    out, message = capsys.readouterr()
    assert status == 2, out + message
    for part in said:
        assert part in re.sub(r"\s+", " ", message)
    assert "Traceback" not in message


# -- the same mask ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_mask_of_a_plain_file_is_the_one_that_is_evaluated(evaluated, images, tmp_path, capsys, method):
    """Bit for bit, for an image of another name among others than were evaluated together."""
    out = tmp_path / "out"
    assert call("predict", "--run", evaluated, "--input", images / "b.nii.gz", "--out", out, "--method", method) == 0
    saved = masks_of(evaluated, METHODS[method].replace("(", "").replace(")", "").replace(" ", "_"))
    for kind in ("mask", "score"):
        assert np.array_equal(voxels(out / f"b_{kind}.nii.gz"), voxels(saved / f"liver_3_{kind}.nii.gz"))
    content = json.loads((out / "predictions.json").read_text())
    theta = content["predictions"][0]["facts"]["threshold"]
    mask, score = voxels(out / "b_mask.nii.gz"), voxels(out / "b_score.nii.gz")
    assert np.array_equal(mask > 0, score > np.float32(theta)), "the mask is what of the map exceeds θ"

    (result,) = (r for r in read_results(_results(evaluated)) if r.method == METHODS[method])
    assert result.settings["calibration"] == content["settings"]["calibration"] is not None
    experiment = read_experiment(Run.open(evaluated))[1].resolved()
    case = {case.id: case for case in load_liver_cases(experiment.test.of(experiment.env))}["liver_3"]
    in_result = {one["case_id"]: one for one in result.cases}["liver_3"]["dice"]
    file = nib.load(saved / "liver_3_mask.nii.gz")
    on_grid = case.frame.label(_tensor(case.frame.file.to_ras(np.asarray(file.dataobj))))
    assert dice(on_grid == 1, case.label == 2) == pytest.approx(in_result)


def _results(run):
    return next(path.parent for path in run.glob("evaluation/**/Tiny_seed0.json"))


def _tensor(array):
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def test_what_is_written_lies_on_the_image_and_is_listed(evaluated, images, tmp_path, monkeypatch):
    monkeypatch.setattr("segarena.agents.spars.prediction.save_prediction_figure", save_prediction_figure)
    predictions = predict(evaluated, str(images / "*.nii.gz"), tmp_path / "out", method="score_map_max")
    assert [(one.id, one.status) for one in predictions] == [("a", "done"), ("b", "done")]
    for one in predictions:
        source = nib.load(images / f"{one.id}.nii.gz")
        for kind, dtype in (("mask", np.uint8), ("score", np.float32)):
            file = nib.load(one.files[kind])
            assert file.shape == source.shape
            assert np.array_equal(file.affine, source.affine)
            assert file.get_data_dtype() == dtype
            assert file.header.get_xyzt_units() == ("mm", "sec")
            for code in ("qform_code", "sform_code"):
                assert file.header[code] == source.header[code]
            assert np.array_equal(file.get_qform(), source.get_qform())
        mask, score = voxels(one.files["mask"]), voxels(one.files["score"])
        assert set(np.unique(mask)) <= {0, 1}
        assert one.facts["volume_ml"] == pytest.approx(mask.sum() * 1.5 * 1.5 * 2 / 1000)
        assert one.facts["max_score"] == pytest.approx(score.max())
        assert imageio.imread(one.files["picture"]).shape[0] > 300
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["mask"], row["method"]) for row in rows] == [
        (name, f"{name}_mask.nii.gz", "score_map_max") for name in "ab"
    ]


def test_a_ct_alone_and_among_others_gets_the_same_mask(trained, images, tmp_path):
    """The trained policy draws its actions."""
    both = predict(trained, images, tmp_path / "both", threshold=0.3)
    (alone,) = predict(trained, images / "b.nii.gz", tmp_path / "alone", threshold=0.3)
    assert np.array_equal(voxels(both[1].files["score"]), voxels(alone.files["score"]))
    assert not np.array_equal(voxels(both[0].files["score"]), voxels(both[1].files["score"]))


# -- the threshold ---------------------------------------------------------------------------------------------------


def test_a_run_that_was_never_evaluated_chooses_the_threshold_of_evaluate(trained, evaluated, images, tmp_path, capsys):
    fresh = Path(shutil.copytree(trained, tmp_path / "fresh"))
    assert call("predict", "--run", fresh, "--input", images, "--out", tmp_path / "out") == 0
    kept, chosen = (json.loads((run / thresholds.FILE).read_text())["methods"] for run in (evaluated, fresh))
    assert chosen["policy"] == kept["policy"]
    assert "validation Dice of policy" in capsys.readouterr().out


def test_without_the_runs_data_the_kept_threshold_serves_or_one_that_is_given(
    decathlon, run, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("segarena.agents.spars.methods.load_liver_cases", _gone)
    assert call("predict", "--run", run, "--input", images, "--out", tmp_path / "kept") == 0
    (run / thresholds.FILE).unlink()
    capsys.readouterr()
    arguments = ("predict", "--run", run, "--input", images, "--out", tmp_path / "given")
    assert_refused(call(*arguments), capsys, "has no mask threshold of policy", "is gone", "--threshold")
    assert not (tmp_path / "given").exists()
    assert call(*arguments, "--threshold", "0.25") == 0
    assert json.loads((tmp_path / "given" / "predictions.json").read_text())["settings"]["threshold"] == 0.25


def _gone(config):
    raise FileNotFoundError(f"data folder {config.data} is gone")


# -- methods ---------------------------------------------------------------------------------------------------------


def test_a_method_that_there_is_not_is_refused_with_the_closest(run, images, tmp_path, capsys):
    status = call("predict", "--run", run, "--input", images, "--out", tmp_path / "out", "--method", "scoremap_mean")
    assert_refused(status, capsys, "method is 'scoremap_mean'", "'policy'", "did you mean 'score_map_mean'?")


def test_scores_that_are_read_from_labels_are_refused(run, images, tmp_path, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["env"] |= {"score_source": "oracle_fraction", "obs_mode": "own_window"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    status = call("predict", "--run", run, "--input", images, "--out", tmp_path / "out")
    assert_refused(status, capsys, "reads its scores from labels", "a run with a classifier")


def test_plain_ppo_has_no_masks(images, tmp_path, capsys):
    config = plain(asdict(PPOExperiment(env="SPARS-LiverCT-v0")))
    Run.create(tmp_path / "ppo", config, {})
    status = call("predict", "--run", tmp_path / "ppo", "--input", images, "--out", tmp_path / "out")
    assert_refused(status, capsys, "run of paper 'ppo'", "no masks to predict")


def test_options_of_the_other_paper_are_refused(run, images, tmp_path, capsys):
    status = call("predict", "--run", run, "--input", images, "--out", tmp_path / "out", "--spacing_mm", "[1.0,1.0]")
    assert_refused(status, capsys, "spacing_mm is for pictures")
    status = call("predict", "--run", run, "--input", images, "--out", tmp_path / "out", "--threshold", "-1")
    assert_refused(status, capsys, "threshold is -1.0 but must be at least 0")


# -- what goes wrong -------------------------------------------------------------------------------------------------


def spoil(images, how):
    path = images / "a.nii.gz"
    if how == "damaged":
        path.write_bytes(path.read_bytes()[:-300])
    elif how == "four axes":
        save(path, np.zeros((4, 4, 4, 2), np.int16))
    elif how == "a plane":
        save(path, np.ones((4, 4), np.int16))
    return path


@pytest.mark.parametrize("how", ["damaged", "four axes", "a plane"])
def test_a_bad_image_stops_the_call_or_is_skipped_and_named(run, images, tmp_path, capsys, how):
    path, out = spoil(images, how), tmp_path / "out"
    arguments = ("predict", "--run", run, "--input", images, "--out", out, "--method", "score_map_mean")
    assert_refused(call(*arguments), capsys, str(path))
    assert not out.exists() or not any(out.iterdir()), "nothing is written of it"
    assert call(*arguments, "--on_error", "skip") == 1
    printed = capsys.readouterr()
    assert "skipped    a: " in printed.err
    assert str(out / "b_mask.nii.gz") in printed.out
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["b_mask.nii.gz", "b_score.nii.gz"]
    a, b = json.loads((out / "predictions.json").read_text())["predictions"]
    assert (a["status"], b["status"]) == ("skipped", "done")
    assert str(path) in a["reason"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("missing.nii.gz", "does not exist"), ("*.nrrd", "nothing fits the pattern"), ("empty", "no image in")],
)
def test_inputs_that_name_no_image_are_refused(run, images, tmp_path, capsys, wanted, said):
    (images / "empty").mkdir()
    status = call("predict", "--run", run, "--input", images / wanted, "--out", tmp_path / "out")
    assert_refused(status, capsys, said)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_call_goes_on_and_other_predictions_are_not_mixed_with_it(run, images, tmp_path, capsys):
    out = tmp_path / "out"
    predict(run, images / "a.nii.gz", out, method="score_map_mean")
    first = {path: path.stat().st_mtime_ns for path in out.glob("a_*")}
    again = predict(run, images, out, method="score_map_mean")
    assert [(one.id, one.status) for one in again] == [("a", "kept"), ("b", "done")]
    assert {path: path.stat().st_mtime_ns for path in out.glob("a_*")} == first
    assert again[0].facts["volume_ml"] >= 0
    with pytest.raises(ValueError, match=r"map = 'score map \(mean\)', not 'score map \(max\)'; .* --overwrite"):
        predict(run, images, out, method="score_map_max")
    done = predict(run, images, out, method="score_map_max", overwrite=True)
    assert [one.status for one in done] == ["done", "done"]
    shutil.copy(images / "b.nii.gz", images / "a.nii.gz")  # another image of the same name
    assert [one.status for one in predict(run, images, out, method="score_map_max")] == ["done", "kept"]


def test_a_folder_of_something_else_is_not_written_into(run, images, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    arguments = ("predict", "--run", run, "--input", images, "--out", tmp_path / "out", "--method", "score_map_mean")
    assert_refused(call(*arguments), capsys, "is not empty", "--overwrite")
    assert call(*arguments, "--overwrite") == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
