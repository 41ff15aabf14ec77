"""Baselines of SPARS: maps without an agent, and networks that are trained in a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from segarena.agents.command_line import main
from segarena.agents.configuration import read_experiment
from segarena.agents.experiment import baselines_of
from segarena.agents.prediction import predict
from segarena.agents.spars import baselines
from segarena.agents.spars.baselines import BASELINES, activation_map, best_windows, liver_intensity, stem_readout
from segarena.agents.spars.config import CaseChoice, SparsExperiment
from segarena.agents.spars.rollouts import VoxelMaps, choose_threshold
from segarena.agents.spars.rules import POLICIES
from segarena.classifiers.presence import load_presence
from segarena.common import fitting
from segarena.common.runs import Run
from segarena.common.workers import ONE_PROCESS
from segarena.datasets.liver.lattice import WindowLattice
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import SparsConfig
from segarena.evaluation.metrics import dice
from segarena.evaluation.results import read_results
from spars_toys import LINE, PLUS_X, case_of, line_env

PHANTOM = {"cases": ["phantom_02000"], "device": "cpu"}
SMALL = {
    "paper": "spars",
    "name": "no agent",
    "device": "cpu",
    "env": {"cases": ["phantom_02000"], "grid_shape": [32, 32, 24]},
    "classifier_train": {"cases": ["phantom_0000-0003"], "tumour_free": 0.5},
    "validation": {"cases": ["phantom_1000-1003"], "tumour_free": 0.5},
    "test": {"cases": ["phantom_03000"]},
    "presence": {"epochs": 2, "batches_per_epoch": 1, "volumes_per_batch": 2},
    "unet": {"channels": [4, 8], "epochs": 2, "batches_per_epoch": 2},
    "baselines": ["attention_mil", "unet", "stem_readout", "cam_grad", "liver_intensity"],
    "ppo": {"total_timesteps": 0},
    "evaluation": {"pictures": 1},
}


def config_file(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(SMALL | changes))
    return str(path)


# -- by the scores of windows --------------------------------------------------------------------------------------


def test_theta_chooses_how_many_windows_the_union_has():
    env = line_env({0: 0.1, 16: 0.8, 20: 0.7, 32: 0.75})  # ranks: 16, 32, 20
    maps = best_windows(env, 256)

    def mask(*corners):
        inside = torch.zeros(LINE["grid_shape"], dtype=torch.bool)
        for x in corners:
            inside[x : x + 8] = True
        return inside

    for theta, corners in ((0.99, (16,)), (0.5, (16,)), (0.49, (16, 32)), (0.34, (16, 32)), (0.33, (16, 32, 20))):
        assert torch.equal(maps.inside(0, theta), mask(*corners)), theta
    assert torch.equal(best_windows(env, 1).inside(0, 0.0), mask(16)), "the best window alone"


@pytest.mark.parametrize(("tumour", "windows"), [([16], 1), ([16, 32], 2), ([16, 24, 32], 3)])
def test_the_number_of_windows_comes_from_the_validation_cases(tumour, windows):
    held = [x + i for x in tumour for i in range(8)]
    env = line_env({16: 0.8, 32: 0.75, 24: 0.1}, volumes=[case_of(LINE["grid_shape"], held)])
    maps = best_windows(env, 256)
    assert int(maps.inside(0, choose_threshold(maps)).sum()) == windows * 8 * 8 * 8


def test_a_map_of_voxels_is_judged_voxel_by_voxel():
    env = line_env({16: 0.8}, tumour=(13, 22))
    values = torch.rand(1, *LINE["grid_shape"], generator=torch.Generator().manual_seed(0))
    values[0, 13:22] += 0.3
    maps = VoxelMaps(env, values, [{}])
    assert torch.equal(maps.values(0), values[0])
    thetas, truth = [0.0, 0.2, 0.9, 1.1], env.cases[0].label == 2
    expected = [dice(values[0] > theta, truth) for theta in thetas]
    assert maps.mean_dice(thetas).tolist() == pytest.approx(expected)
    best = choose_threshold(maps)
    assert float(maps.mean_dice([best])) >= max(expected) - 1e-9


# -- by the feature cells ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grad", "grad_plus_plus"])
def test_an_activation_map_of_the_packaged_classifier_points_at_tumours(kind):
    env = SparsEnv(**PHANTOM)
    maps = activation_map(env, kind)
    values, tumour = maps.values(0), env.cases[0].label == 2
    assert values.shape == tumour.shape
    assert 0 <= float(values.min()) < float(values.max()) <= 1
    assert float(values[tumour].mean()) > 3 * float(values[~tumour].mean())


def test_the_stem_is_read_out_cell_by_cell():
    env, net = SparsEnv(**PHANTOM, upsample="blocks"), load_presence()
    values, tumour = stem_readout(env).values(0), env.cases[0].label == 2
    cells = WindowLattice(env.lattice.full, (4, 4, 4), 4)
    ids = torch.tensor([0, 777, 1500, cells.size - 1])
    image = env.cases[0].image[None]
    scores, _ = net.score_windows(image, torch.zeros(4, dtype=torch.int64), cells.corners(ids), cells.window)
    for (x, y, z), score in zip(cells.corners(ids).tolist(), scores, strict=True):
        torch.testing.assert_close(values[x : x + 4, y : y + 4, z : z + 4], score.expand(4, 4, 4), atol=1e-5, rtol=0)
    assert float(values[tumour].mean()) > 2 * float(values[~tumour].mean())


@pytest.mark.parametrize(
    ("env", "presence", "said"),
    [
        ({"score_source": "oracle_fraction"}, {}, "needs a classifier, but env.score_source is 'oracle_fraction'"),
        ({"classifier": "train"}, {"network": "paper", "batch": "windows"}, "presence.network 'dense', but has the pa"),
        ({"step": 2}, {}, "env.step is 2, no multiple of 4"),
    ],
)
@pytest.mark.parametrize("name", ["cam_grad", "cam_score", "stem_readout"])
def test_where_there_are_no_feature_cells_the_baseline_is_refused(name, env, presence, said):
    experiment = SparsExperiment(env=SparsConfig(**env), baselines=[name])
    experiment = replace(experiment, presence=replace(experiment.presence, **presence))
    with pytest.raises(ValueError, match=f"baseline {name} .*{said}"):
        baselines_of(BASELINES, [name], experiment)


# -- by labels -----------------------------------------------------------------------------------------------------


def test_the_darkness_of_the_liver_ends_at_its_border():
    full = LINE["grid_shape"]
    label = torch.zeros(full, dtype=torch.uint8)
    label[8:32], label[20:24] = 1, 2
    image = torch.full(full, 10, dtype=torch.uint8)  # dark all around
    image[8:32], image[20:24] = 200, 100
    env = line_env({0: 0.1}, volumes=[case_of(full, image=image, label=label)])
    maps = liver_intensity(env)
    assert float(maps.values(0)[0, 0, 0]) == 0.0
    assert maps.values(0)[8, 0, 0] == pytest.approx(55 / 255)
    assert maps.values(0)[20, 0, 0] == pytest.approx(155 / 255)
    assert torch.equal(maps.inside(0, choose_threshold(maps)), label == 2)
    with pytest.raises(ValueError, match="toy has no label, and liver_intensity needs the mask of the liver"):
        liver_intensity(line_env({0: 0.1}, volumes=[case_of(full, label=None)]))


def test_the_oracles_path_is_the_shortest_to_the_window_with_the_most_tumour():
    """The tumour fills the window at x = 28; three moves of +x. The classifier sees most at x = 0."""
    env = line_env({0: 0.8}, tumour=(28, 36), horizon=3, threshold=1.0, n_agents=1)
    env.reset()
    policy = POLICIES["oracle_bfs"].policy(env, 0)
    assert policy(env).tolist() == [PLUS_X]
    assert float(policy.distance[0, env.at[0, 0]]) == 3
    for _ in range(3):
        env.step(policy(env))
    assert env.lattice.corners(env.at[0]).tolist() == [[28, 0, 0]]
    two = line_env({}, tumour=(0, 20), threshold=1.0, n_agents=1)  # the windows at 0, 4, 8, 12 are full of tumour
    assert float(POLICIES["oracle_bfs"].policy(two, 0).distance[0, 4]) == 1, "the nearest of the best"
    without = line_env({}, volumes=[case_of(LINE["grid_shape"], label=None)], n_agents=1)
    with pytest.raises(ValueError, match="toy has no label, which oracle_bfs needs"):
        POLICIES["oracle_bfs"].policy(without, 0)


def test_attention_needs_phantoms_with_and_without_tumours():
    experiment = SparsExperiment(baselines=["attention_mil"])
    with pytest.raises(ValueError, match=r"attention_mil needs patients .* classifier_train.tumour_free is 0.0"):
        baselines_of(BASELINES, ["attention_mil"], experiment)
    both = CaseChoice(split="classifier_train", tumour_free=0.5)
    baselines_of(BASELINES, ["attention_mil"], replace(experiment, classifier_train=both, validation=both))


# -- in a run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run without an agent that trained both networks, and was evaluated."""
    folder = tmp_path_factory.mktemp("baselines")
    assert main(["train", "--config", config_file(folder), "--out", str(folder / "run")]) == 0
    assert main(["evaluate", "--run", str(folder / "run"), "--policies", "oracle_bfs"]) == 0
    return folder / "run"


def test_a_run_trains_and_evaluates_the_baselines_that_are_asked_for(run):
    results = {result.method: result for result in read_results(run / "evaluation" / "test")}
    asked = {"attention MIL", "3-D U-Net", "stem read-out", "Grad-CAM", "intensity in the liver"}
    assert asked <= results.keys()
    assert {"best window", "union of the k best windows", "oracle_bfs"} <= results.keys()
    labels = {name: results[name].supervision for name in (*asked, "oracle_bfs", "best window")}
    assert labels == {
        "attention MIL": "patient",
        "3-D U-Net": "voxel",
        "stem read-out": "window",
        "Grad-CAM": "window",
        "intensity in the liver": "liver of the test case",
        "oracle_bfs": "voxel",
        "best window": "window",
    }
    assert {result.mode for result in results.values()} == {"inductive"}
    kept = json.loads((run / "evaluation" / "thresholds.json").read_text())
    assert {"unet", "attention_mil", "cam_grad", "top_k_union"} <= kept["methods"].keys()
    assert kept["basis"]["baselines"].keys() == {"unet", "attention_mil"}
    for name in ("unet", "attention_mil"):
        assert (run / "baselines" / name / "manifest.json").is_file()
        assert len(Run(run / "baselines" / name).metrics()) == 2


def test_a_result_on_a_case_that_the_network_learned_from_is_transductive(run, tmp_path):
    arguments = ["--cases", "[phantom_00001]", "--policies", "--out", str(tmp_path / "known")]
    assert main(["evaluate", "--run", str(run), *arguments]) == 0
    modes = {result.method: result.mode for result in read_results(tmp_path / "known")}
    assert modes["3-D U-Net"] == modes["attention MIL"] == "transductive"


def test_a_trained_baseline_segments_a_new_ct(run, tmp_path, liver_data):
    image = next(iter(sorted((liver_data / "imagesTr").glob("*.nii.gz"))))
    (done,) = predict(run, str(image), tmp_path / "out", method="unet")
    assert done.status == "done"
    said = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert said["settings"]["map"] == "3-D U-Net"
    for name in ("liver_intensity", "oracle_bfs"):
        with pytest.raises(ValueError, match=f"method '{name}' reads the labels"):
            predict(run, str(image), tmp_path / name, method=name)
    with pytest.raises(ValueError, match=r"'cam_score' is no baseline of this run; add it: train --resume .*cam_score"):
        predict(run, str(image), tmp_path / "other", method="cam_score")


def test_a_baseline_can_be_added_to_a_finished_run(run, capsys):
    named = "[attention_mil,unet,stem_readout,cam_grad,liver_intensity,cam_grad_plus_plus]"
    before = {path: path.read_bytes() for path in (run / "baselines").rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(run), "--baselines", named]) == 0
    assert {path: path.read_bytes() for path in (run / "baselines").rglob("*") if path.is_file()} == before
    assert "cam_grad_plus_plus" in read_experiment(Run(run))[1].baselines
    assert main(["train", "--resume", str(run), "--unet.learning_rate", "0.1"]) == 2
    assert "unet.learning_rate" in capsys.readouterr().err


def test_a_run_whose_baseline_was_interrupted_is_continued(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr("segarena.segmenters.volume_unet.descend", _stops_at(3))
    out = tmp_path / "run"
    assert main(["train", "--config", config_file(tmp_path), "--out", str(out)]) == 130
    monkeypatch.undo()
    assert main(["evaluate", "--run", str(out), "--policies"]) == 2
    assert "it lacks its baselines/unet; train it further with --resume" in capsys.readouterr().err
    assert main(["train", "--resume", str(out)]) == 0
    whole, again = (folder / "baselines" / "unet" / baselines.UNET for folder in (run, out))
    assert whole.read_bytes() == again.read_bytes()


def _stops_at(number):
    calls, descend = [], fitting.descend

    def stops(optimizer, loss, workers=ONE_PROCESS, rows=1):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        descend(optimizer, loss, workers, rows)

    return stops


def test_nothing_to_train_is_still_refused(tmp_path, capsys):
    assert main(["train", "--config", config_file(tmp_path, baselines=[]), "--out", str(tmp_path / "run")]) == 2
    assert "nothing to train: ppo.total_timesteps is 0" in capsys.readouterr().err
    assert not Path(tmp_path / "run").exists()
