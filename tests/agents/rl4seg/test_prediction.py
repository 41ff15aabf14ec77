"""Predictions of RL4Seg runs, end to end: masks, doubt and rules at the images' own size."""

import json
from pathlib import Path

import imageio.v3 as imageio
import nibabel as nib
import numpy as np
import pytest
import torch
from rl4seg_runs import QUICK, assert_refused, call, context_of, merged, prepared, trained
from segarena.agents.prediction import predict
from segarena.agents.rl4seg.methods import Methods
from segarena.datasets.echo.phantom import echo_phantom
from segarena.datasets.echo.preparation import resize_mask
from segarena.evaluation.echo import largest_heart
from segarena.evaluation.echo_figures import save_echo_figure
from segarena.rewards.echo_validity import anatomical_metrics, broken_rules, is_valid

HEIGHT, WIDTH = 90, 70


@pytest.fixture(autouse=True)
def plain_figures(monkeypatch):
    """A figure takes longer than all the rest; one test draws it."""
    monkeypatch.setattr("segarena.agents.rl4seg.prediction.save_echo_figure", lambda path, *_, **__: path.touch())


@pytest.fixture
def images(tmp_path):
    """One heart as PNG, and as NIfTI with its spacing."""
    grey = (echo_phantom("b", 200_000, "2CH", "ED", HEIGHT).image[:, :WIDTH] * 255).astype(np.uint8)
    (tmp_path / "mine").mkdir()
    imageio.imwrite(tmp_path / "mine" / "picture.png", grey)
    nib.save(nib.Nifti1Image(grey.T, np.diag([-0.4, -0.2, 1, 1])), tmp_path / "mine" / "volume.nii.gz")
    return tmp_path / "mine"


def read(path):
    return imageio.imread(path) if path.suffix == ".png" else np.asarray(nib.load(path).dataobj).T


def test_a_policy_gives_masks_doubt_and_rules_at_the_images_own_size(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr("segarena.agents.rl4seg.prediction.save_echo_figure", save_echo_figure)
    picture, volume = predict(tiny, images, tmp_path / "out")
    assert (picture.files["mask"].name, volume.files["mask"].name) == ("picture_mask.png", "volume_mask.nii.gz")
    source = nib.load(images / "volume.nii.gz")
    for kind in ("mask", "doubt"):
        file = nib.load(volume.files[kind])
        assert file.shape == source.shape == (WIDTH, HEIGHT)
        assert np.array_equal(file.affine, source.affine)
    masks = [read(one.files["mask"]) for one in (picture, volume)]
    assert np.array_equal(*masks), "the container changes nothing"
    doubt = read(volume.files["doubt"])
    np.testing.assert_allclose(read(picture.files["doubt"]) / 65535, doubt, atol=1e-4)
    assert 0 <= doubt.min() < doubt.max() <= 1
    small = resize_mask(masks[0], 32)
    for one in (picture, volume):
        assert one.facts["broken_rules"] == broken_rules(anatomical_metrics(small))
        assert one.facts["valid"] == is_valid(small) == (not one.facts["broken_rules"])
        assert imageio.imread(one.files["picture"]).shape[0] > 300
    assert volume.facts["lv_mm2"] == pytest.approx((masks[1] == 1).sum() * 0.4 * 0.2)
    assert picture.facts["lv_mm2"] is picture.facts["spacing_mm"] is None, "a PNG does not say it"
    (given,) = predict(tiny, images / "picture.png", tmp_path / "given", spacing_mm=(0.2, 0.4))
    assert given.facts["lv_mm2"] == pytest.approx(volume.facts["lv_mm2"])


def test_every_method_of_the_run_predicts(tiny, images, tmp_path):
    titles = Methods(context_of(tiny)).titles
    assert {"policy", "source_only", "adabn", "corrector", "test_time_augmentation", "ensemble"} < titles.keys()
    for method in titles.keys() - {"truth"}:
        (one,) = predict(tiny, images / "picture.png", tmp_path / method, method=method)
        sure = method in ("policy", "ensemble", "mc_dropout", "test_time_augmentation")
        assert ("doubt" in one.files) == sure, method
        written = json.loads((tmp_path / method / "predictions.json").read_text())
        assert written["settings"]["title"] == titles[method]


def test_what_evaluate_saves_is_what_predict_writes(tmp_path, capsys):
    """Of the target's own files, which hold prepared images."""
    source = prepared(tmp_path / "source", "a", {"train": 2, "val": 1}, labelled=("train", "val"))
    target = prepared(tmp_path / "target", "b", {"val": 3, "train": 1, "pred": 1, "test": 1})
    changes = {"source": {"data": str(source), "size": 32}, "target": {"data": str(target), "size": 32}}
    run = trained(tmp_path / "trained", {**merged(QUICK, {"iterations": 0}), **changes})
    assert call("evaluate", "--run", run, "--save_masks") == 0
    (saved,) = {path.parent for path in run.glob("evaluation/**/source_only/*_mask.nii.gz")}
    predictions = predict(run, str(target / "img" / "p6" / "*" / "*.nii.gz"), tmp_path / "out")
    assert len(predictions) == len(list(saved.glob("*_mask.nii.gz"))) == 4
    for one in predictions:
        assert np.array_equal(read(one.files["mask"]), read(saved / one.files["mask"].name))
    context = context_of(run)
    images = context._load("target", "test")
    masks = largest_heart(Methods(context).load("source_only")(images)[-1].masks)
    for number, image_id in enumerate(images.ids):
        native = read(saved / f"{image_id}_mask.nii.gz")
        assert torch.equal(torch.from_numpy(resize_mask(native, 32)), masks[number])


def test_masks_of_phantoms_are_saved_at_the_networks_size(copied):
    assert call("evaluate", "--run", copied, "--save_masks") == 0
    for method in ("Tiny", "Tiny_softmax", "source_only"):
        masks = sorted(copied.glob(f"evaluation/**/{method}/*_mask.png"))
        assert len(masks) == 8, method
        assert imageio.imread(masks[0]).shape == (32, 32)


def test_a_method_that_reads_the_truth_or_was_not_trained_is_refused(quick, images, tmp_path, capsys):
    arguments = ("predict", "--run", quick, "--input", images, "--out", tmp_path / "out", "--method")
    assert_refused(call(*arguments, "truth"), capsys, "method 'truth' reads the truth")
    assert_refused(call(*arguments, "udas"), capsys, "method 'udas' is not trained in this run", "source_only")
    assert_refused(call(*arguments, "source-only"), capsys, "did you mean 'source_only'?")
    assert_refused(call(*arguments, "policy", "--threshold", "0.5"), capsys, "threshold is for SPARS")
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_none_stops_the_call_or_is_skipped(quick, images, tmp_path, capsys):
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    arguments = ("predict", "--run", quick, "--input", images, "--out", tmp_path / "out", "--method", "source_only")
    assert_refused(call(*arguments), capsys, "broken.png cannot be read")
    assert call(*arguments, "--on_error", "skip") == 1
    printed = capsys.readouterr()
    assert "skipped    broken: " in printed.err
    assert Path(tmp_path / "out" / "picture_mask.png").is_file()
