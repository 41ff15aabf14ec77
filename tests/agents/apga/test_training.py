"""Whole runs: stages, exact resume, evaluation, pictures and predictions, as the commands make them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from joint_toys import Table, tiny, white_pool
from PIL import Image
from safetensors.torch import load_file
from segarena.agents.apga import evaluation, masks, training
from segarena.agents.apga.config import EvaluationConfig
from segarena.agents.apga.game import Players, look
from segarena.agents.apga.paper import PAPER
from segarena.agents.command_line import main
from segarena.agents.prediction import predict
from segarena.common import fitting
from segarena.common.runs import Run
from segarena.common.stopping import Stopped
from segarena.evaluation.deletion import deletion_curves

TINY = {
    "paper": "apga",
    "name": "APGA",
    "device": "cpu",
    "data": {"size": 32, "phantom_studies": {"train": 8, "val": 4, "test": 4}},
    "classifier": {"network": "small_cnn", "in_channels": 1, "epochs": 2},
    "agent": {"grid": 8, "width": 8, "init": "foreground", "foreground_epochs": 1},
    "warm_up": {"epochs": 1},
    "training": {"method": "reinforce", "epochs": 2, "batch_size": 8, "learning_rate": 0.001},
    "evaluation": {"pictures": 2},
}
CURVES = {
    *("apga/reward", "apga/gap", "apga/loss_orig", "apga/loss_adv", "apga/loss_aid", "apga/mask_area"),
    *("apga/mask_entropy", "apga/baseline", "apga/advantage_std", "apga/roi_iou", "apga/queries"),
    *("classifier/loss_plain", "classifier/loss_aid", "classifier/val_acc", "classifier/val_auroc"),
    *("classifier/val_kappa", "classifier/passes", "classifier/gradient_steps"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of REINFORCE and one of plain images, by the command line."""
    folder = tmp_path_factory.mktemp("apga")
    (folder / "reinforce.yaml").write_text(yaml.safe_dump(TINY))
    plain = {**TINY, "name": "none", "warm_up": {"epochs": 0}, "training": {"method": "none"}}
    (folder / "none.yaml").write_text(yaml.safe_dump(plain))
    for name in ("reinforce", "none"):
        assert main(["train", "--config", str(folder / f"{name}.yaml"), "--out", str(folder / name)]) == 0
    return folder


def test_a_run_has_its_stages_and_curves(runs):
    run = Run.open(runs / "reinforce")
    stages = [path.parent.name for path in run.folder.glob("*/manifest.json")]
    assert sorted(stages) == ["classifier", "foreground", "joint", "warm_up"]
    assert {*run.stage("joint").metrics()[-1]} == {"step", "apga/val_area", *CURVES}
    assert {path.name for path in (runs / "none").iterdir() if path.is_dir()} == {"classifier", "tensorboard"}
    first, after = (load_file(run.folder / one / "classifier.safetensors") for one in ("classifier", "joint"))
    assert not all(torch.equal(first[name], after[name]) for name in first)
    first, after = (load_file(run.folder / one / "agent.safetensors") for one in ("foreground", "warm_up"))
    assert not all(torch.equal(first[name], after[name]) for name in first)


def test_the_fit_to_what_is_bright_teaches_the_agent(tmp_path):
    experiment = tiny("reinforce", agent={"init": "foreground", "foreground_epochs": 8})
    context = training.Context(experiment, Run(tmp_path), trains=True)
    training.fitted_agent(context)
    lines = Run(tmp_path / "foreground").metrics()
    assert lines[-1]["foreground/val_bce"] < 0.8 * lines[0]["foreground/val_bce"]
    agent, x = training.first_agent(context), context.val.at(torch.arange(len(context.val)))
    bright = torch.nn.functional.avg_pool2d(masks.foreground(x), 4)
    p = look(agent, x)[0].detach().sigmoid()
    assert p[bright > 0.9].mean() > p[bright < 0.1].mean() + 0.2


@pytest.mark.parametrize("method", ["legacy", "ppo"])
def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_not_stopped(tmp_path, monkeypatch, method):
    experiment = tiny(method, warm_up=2 if method == "ppo" else 0, epochs=3)
    whole = PAPER.start(experiment, tmp_path / "whole", {})
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    epochs = {"left": 4}

    def stop():
        epochs["left"] -= 1
        if epochs["left"] == 0:
            raise Stopped(15)

    monkeypatch.setattr(fitting, "stop_if_asked", stop)
    with pytest.raises(Stopped):
        PAPER.start(experiment, tmp_path / "stopped", {})
    monkeypatch.setattr(fitting, "stop_if_asked", lambda: None)
    resumed = PAPER.resume(experiment, tmp_path / "stopped")
    for name in ("classifier", "agent"):
        one, other = (load_file(run.folder / "joint" / f"{name}.safetensors") for run in (whole, resumed))
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert whole.stage("joint").metrics() == resumed.stage("joint").metrics()


def test_a_changed_key_of_a_finished_stage_is_refused(runs, capsys):
    command = ["train", "--resume", str(runs / "reinforce"), "--reward.area_coef", "0.1"]
    assert main(command) == 2
    assert "reward.area_coef" in capsys.readouterr().err


def test_evaluate_judges_images_and_studies(runs, capsys):
    folders = [str(runs / name) for name in ("none", "reinforce")]
    assert main(["evaluate", "--run", *folders, "--out", str(runs / "results")]) == 0
    said = capsys.readouterr().out
    assert "Accuracy (%)" in said
    result = json.loads((runs / "results" / "APGA_seed0.json").read_text())
    assert len(result["cases"]) == 8
    known = {"accuracy", "accuracy_masked", "accuracy_averaged", "auroc", "study_kappa", "mask_area", "gap"}
    assert known <= result["metrics"].keys()
    case = result["cases"][0]
    assert case["p_averaged"] == pytest.approx((case["p"] + case["p_masked"]) / 2, abs=1e-6)
    assert {"deletion", "insertion_gradcam"} <= case.keys()
    assert ["roi_iou" in case for case in result["cases"]] == [case["label"] == 1 for case in result["cases"]]
    (row,) = (line.split("|") for line in said.splitlines() if line.startswith("| APGA "))
    shown = [float(cell.split()[0]) for cell in row[5:8]]  # of all images, though `none` has no masked ones
    metrics = [100 * result["metrics"][f"accuracy{end}"] for end in ("", "_masked", "_averaged")]
    assert shown == pytest.approx(metrics, abs=0.06)
    page = (runs / "results" / "classification.md").read_text()
    assert "Difference from none" in page
    assert (runs / "results" / "APGA_seed0.png").is_file()


class Two(torch.nn.Module):
    """Other logits for masked images than for plain ones."""

    def forward(self, x, *, masked=False):
        return torch.tensor([[0.0, 3.0] if masked else [1.0, 0.0]]).expand(len(x), 2)


def test_averaging_two_softmaxes_may_change_a_class():
    players = Players(Two(), Table(torch.zeros(1, 1, 2, 2)))
    ways, _ = evaluation.predicted(SimpleNamespace(experiment=tiny("reinforce")), players, white_pool(2))
    assert ways["averaged"][0].tolist() == pytest.approx([0.389242, 0.610758], abs=1e-6)
    assert {way: int(p[0].argmax()) for way, p in ways.items()} == {"plain": 0, "masked": 1, "averaged": 1}


def test_the_gap_is_what_erasing_does_to_the_loss():
    experiment = replace(tiny("reinforce"), evaluation=EvaluationConfig(saliency=False))
    context, pool = SimpleNamespace(experiment=experiment, seed=lambda name: 0), white_pool(2)
    players = Players(Two(), Table(torch.tensor([[1.0, -1], [-1, -1]])[None, None]))
    found = evaluation._mask_metrics(context, players, pool, evaluation.select_all(players, pool))
    assert found["gap"].tolist() == pytest.approx([-1.313262 + 0.048587] * 2, abs=1e-5)
    assert found["mask_area"].tolist() == [0.25, 0.25]


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_deleted_pixels_become_the_fill_of_the_training(monkeypatch, fill):
    experiment = tiny("reinforce")
    experiment = replace(experiment, training=replace(experiment.training, fill=fill))
    pool, fills = white_pool(2), []
    pool.images[:, :, 0] = 0
    expected = {"zero": 0.0, "mean": float(pool.at(torch.arange(2)).mean())}[fill]

    def noted(probabilities, x, saliency, *, steps, fill):
        fills.append(torch.as_tensor(fill).expand_as(x))
        return deletion_curves(probabilities, x, saliency, steps=steps, fill=fill)

    monkeypatch.setattr(evaluation, "deletion_curves", noted)
    monkeypatch.setattr(evaluation, "gradcam", lambda net, x: x[:, 0])
    context = SimpleNamespace(experiment=experiment, seed=lambda name: 0)
    players = Players(Two(), Table(torch.zeros(1, 1, 2, 2)))
    evaluation._mask_metrics(context, players, pool, evaluation.select_all(players, pool))
    assert len(fills) == 3, "of the agent's mask, a random one and GradCAM"
    assert all(float(one.mean()) == pytest.approx(expected) for one in fills)


def test_render_shows_images_and_needs_an_agent(runs, capsys):
    assert main(["render", "--run", str(runs / "reinforce"), "--out", str(runs / "panel.gif")]) == 0
    assert (runs / "panel.gif").stat().st_size > 1000
    assert main(["render", "--run", str(runs / "none")]) == 2
    assert "has no agent" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"policies": ["cutout"]}, {"save_masks": True}, {"unfinished": True}])
def test_options_of_other_papers_are_refused(options):
    with pytest.raises(ValueError, match="is not for paper 'apga'"):
        evaluation.evaluate([], evaluation.EvaluateOptions(**options))


def test_a_policy_for_stable_baselines_is_refused():
    with pytest.raises(ValueError, match="its file is joint/agent"):
        PAPER.check_export(tiny("reinforce"))


def test_predict_gives_probability_mask_and_overlay(runs, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "hand.png")
    (one,) = predict(runs / "reinforce", tmp_path / "hand.png", tmp_path / "out")
    with Image.open(one.files["mask"]) as picture:
        mask = np.asarray(picture)
    assert mask.shape == (50, 70)
    assert set(np.unique(mask)) <= {0, 255}
    assert one.facts["probability_normal"] + one.facts["probability_abnormal"] == pytest.approx(1.0)
    assert one.facts["class"] == ("abnormal" if one.facts["probability_abnormal"] > 0.5 else "normal")
    with Image.open(one.files["picture"]) as picture:
        assert picture.size[0] > 4 * 200
    (other,) = predict(runs / "none", tmp_path / "hand.png", tmp_path / "cam")
    assert 0 <= other.facts["mask_area"] <= 1
    with pytest.raises(ValueError, match="method is 'policy'"):
        predict(runs / "none", tmp_path / "hand.png", tmp_path / "no", method="policy")
    with pytest.raises(ValueError, match="threshold is not for"):
        predict(runs / "none", tmp_path / "hand.png", tmp_path / "no", threshold=0.3)
