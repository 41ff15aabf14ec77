"""Who plays in an evaluation: the trained policy with its trained opponent, rules alone (docs/spars.md, Method 13)."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from segarena.agents.command_line import main
from segarena.agents.ppo import PPOConfig
from segarena.agents.predictor import POLICY
from segarena.agents.spars.config import EvaluationConfig, SparsExperiment
from segarena.agents.spars.cost import ClassifierCost
from segarena.agents.spars.evaluation import native_metrics
from segarena.agents.spars.methods import Cases, Methods
from segarena.agents.spars.training import _fresh
from segarena.classifiers.presence import DensePresenceNet
from segarena.common.runs import Run
from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import SparsConfig
from segarena.evaluation.results import read_results
from spars_toys import LINE, MINUS_X, PLUS_X, case_of

TUMOUR = (24, 32)
"""Under the window at x = 24: two moves of +x from the start."""


def experiment_of(**settings):
    line = {name: value for name, value in LINE.items() if name != "device"}
    settings = {"threshold": 0.9, "horizon": 3, "obs_mode": "own_window", **settings}
    return SparsExperiment(
        device="cpu",
        env=SparsConfig(**line, score_source="oracle_fraction", cases=["phantom_02000"], **settings),
        policy="flatten_mlp",
        ppo=PPOConfig(num_envs=1, n_steps=2, batch_size=2, n_epochs=1, net_arch=[4]),
        evaluation=EvaluationConfig(rollouts=8, jitter_cells=0),
    ).resolved()


def prefer(policy, action):
    """Let the policy take this action, whatever it sees."""
    with torch.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.fill_(-1e3)[action] = 1e3


def run_of(experiment, folder, learner, opponent):
    """A run whose last checkpoint holds a learner and an opponent that take one action each."""
    training, run = _fresh(experiment, Run(folder)), Run(folder)
    policy = training.model.policy
    training.self_play.init_callback(training.model)
    prefer(policy, opponent)
    training.self_play.refresh()
    prefer(policy, learner)
    run.save(2, policy.state_dict(), training.state())
    return run


def facts_of(experiment, run, name):
    cases = Cases(experiment, run, experiment.env, [case_of(LINE["grid_shape"], slice(*TUMOUR))])
    return Methods(experiment, run).maps(name, cases).facts[0]


@pytest.mark.parametrize(
    ("learner", "opponent", "hit", "by_self"),
    [(MINUS_X, PLUS_X, 1.0, 0.0), (PLUS_X, MINUS_X, 1.0, 1.0), (MINUS_X, MINUS_X, 0.0, 0.0)],
)
def test_the_policy_is_evaluated_with_its_own_trained_opponent(tmp_path, learner, opponent, hit, by_self):
    experiment = experiment_of()
    facts = facts_of(experiment, run_of(experiment, tmp_path, learner, opponent), POLICY)
    assert (facts["terminal_hit"], facts["ended_by_self"], facts["truncated"]) == (hit, by_self, 1.0 - hit)


def test_a_rule_is_evaluated_alone(tmp_path):
    """`greedy` would find the tumour for `constant0`, which cannot move here, if it were its competitor."""
    experiment = experiment_of(opponent="greedy")
    facts = facts_of(experiment, Run(tmp_path), "constant0")
    assert (facts["terminal_hit"], facts["truncated"], facts["steps"]) == (0.0, 1.0, 3.0)
    assert facts_of(experiment, Run(tmp_path), "greedy")["terminal_hit"] == 1.0


# -- what looking costs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("all_of_them", [True, False])
def test_windows_cost_what_each_costs_alone_and_all_of_them_a_dense_forward_too(all_of_them):
    seconds = ClassifierCost(window=0.5, volume=8.0).of(32.0, all_of_them=all_of_them)
    assert seconds == {"one_by_one": 16.0, **({"dense": 8.0} if all_of_them else {})}


def test_the_cost_is_measured_one_window_at_a_time_and_by_the_dense_forward(monkeypatch):
    batches, dense = [], []
    score_windows, score_lattice = DensePresenceNet.score_windows, DensePresenceNet.score_lattice
    monkeypatch.setattr(
        DensePresenceNet,
        "score_windows",
        lambda self, volumes, case, *rest: batches.append(len(case)) or score_windows(self, volumes, case, *rest),
    )
    monkeypatch.setattr(
        DensePresenceNet, "score_lattice", lambda self, *rest: dense.append(rest) or score_lattice(self, *rest)
    )
    env = SparsEnv(cases=["phantom_02000"], device="cpu", score_engine="lazy")
    cost = ClassifierCost.measured(env)
    assert set(batches) == {1}
    assert len(dense) == 3
    assert (cost.window > 0, cost.volume > 0) == (True, True)
    other = SparsEnv(cases=["phantom_02000"], device="cpu", score_source="oracle_fraction")
    assert ClassifierCost.measured(other) is None


def test_every_result_says_how_many_windows_were_looked_at_and_what_they_cost(tmp_path):
    run = tmp_path / "run"
    settings = {"env.horizon": 4, "ppo.total_timesteps": 32, "ppo.num_envs": 2, "ppo.n_steps": 8, "ppo.batch_size": 8}
    settings |= {"validation.cases": ["phantom_1000"], "test.cases": ["phantom_3000"], "examine_every": 0}
    settings |= {"evaluation.rollouts": 2, "evaluation.pictures": 1, "policy": "flatten_mlp"}
    settings |= {"env.obs_mode": "own_window", "env.cases": ["phantom_2000"], "device": "cpu"}
    words = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value).strip('"'))]
    assert main(["train", "--paper", "spars", *words, "--out", str(run)]) == 0
    assert main(["evaluate", "--run", str(run)]) == 0
    results = {result.method: result for result in read_results(run / "evaluation" / "test")}
    windows = {method: result.metrics["windows"] for method, result in results.items()}
    assert windows["score map (min)"] == windows["score map (max)"] == 13 * 13 * 11
    assert windows["best window"] == 13 * 13 * 11, "it is the best of all"
    assert windows["position prior"] == 0
    assert 1 <= windows["SPARS"] <= 2 * 4
    for method, result in results.items():
        seconds = result.settings["classifier_seconds"]
        takes_all = windows[method] == 13 * 13 * 11
        assert set(seconds) == ({"one_by_one", "dense"} if takes_all else {"one_by_one"})
        assert 0 <= result.metrics["froc_0.125"] <= result.metrics["froc_8"] <= 1
        assert "native_dice" not in result.metrics


# -- on the voxels of the file ---------------------------------------------------------------------------------------

SHAPE = (40, 32, 24)
"""Voxels of the file: its axes run to the front (1 mm), to the head (1.5 mm) and to the left (3 mm)."""
AFFINE = np.array([[0.0, 0, -3, 30], [1, 0, 0, 40], [0, 1.5, 0, -50], [0, 0, 0, 1]])


def ct(folder, grid_shape):
    """A case of a NIfTI file of that shape with a tumour off every axis' middle, and its label, bool, from the file."""
    label = np.zeros(SHAPE, np.uint8)
    label[4:36, 4:28, 4:20], label[8:20, 6:14, 12:18] = 1, 2
    for kind, volume in (("images", np.where(label > 0, 60 * label, -1000).astype(np.int16)), ("labels", label)):
        (folder / kind).mkdir()
        nib.save(nib.Nifti1Image(volume, AFFINE), folder / kind / "a.nii.gz")
    (case,) = load_liver_cases(LiverDataConfig(data=str(folder), split="all", grid_shape=grid_shape))
    return case, label == 2


def test_a_mask_that_is_exact_on_the_grid_is_exact_on_the_file(tmp_path):
    case, _ = ct(tmp_path, (12, 20, 16))  # half the voxels along each axis, in RAS+ order
    assert native_metrics(case, case.label == 2, tolerance_mm=0.0) == {
        "native_dice": 1.0,
        "native_iou": 1.0,
        "native_hd95_mm": 0.0,
        "native_nsd": 1.0,
    }
    (phantom,) = load_liver_cases(LiverDataConfig(cases=["phantom_3000"]))
    assert native_metrics(phantom, phantom.label == 2, tolerance_mm=7.0) == {}


@pytest.mark.parametrize(("axis", "mm"), [(0, 6.0), (1, 2.0), (2, 3.0)])
def test_native_distances_are_in_mm_along_the_right_axis(tmp_path, axis, mm):
    """One voxel of the grid is two of the file."""
    case, _ = ct(tmp_path, (12, 20, 16))
    moved = native_metrics(case, (case.label == 2).roll(1, axis), tolerance_mm=mm)
    assert moved["native_hd95_mm"] == pytest.approx(mm)
    assert moved["native_nsd"] == 1.0
    assert native_metrics(case, (case.label == 2).roll(1, axis), tolerance_mm=0.9 * mm)["native_nsd"] < 1.0


def by_coordinates(mask, shift=(0.0, 0.0, 0.0), turn=(0, 1, 2)):
    """`mask` at each voxel of the file, by where that lies in the patient: nearest. shift: in voxels of the file; turn:
    order in which the file's axes are taken for those of RAS+."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) + np.array(shift)
    world = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    extent = np.array([24 * 3.0, 40 * 1.0, 32 * 1.5])  # of the volume along x, y, z, in mm
    corner = (np.array([[0, 0, 23]]) - [[0.5, 0.5, -0.5]]) @ AFFINE[:3, :3].T + AFFINE[:3, 3]  # its lowest
    place = np.floor((world - corner) / extent * mask.shape).astype(int)[..., turn]
    return mask[tuple(np.clip(place[..., axis], 0, mask.shape[axis] - 1) for axis in range(3))]


def test_a_mask_comes_to_the_voxels_of_the_file_that_lie_where_it_lies(tmp_path):
    case, truth = ct(tmp_path, (17, 23, 21))
    mask = torch.rand(17, 23, 21, generator=torch.Generator().manual_seed(0)) > 0.5
    there = by_coordinates(mask.numpy())
    assert np.array_equal(case.to_native(mask), there)
    for wrong in ({"shift": (0.5, 0, 0)}, {"shift": (0, 0.5, 0)}, {"shift": (0, 0, 0.5)}, {"turn": (1, 0, 2)}):
        assert np.count_nonzero(there != by_coordinates(mask.numpy(), **wrong)) > 0.05 * there.size
    common = np.count_nonzero(there & truth)
    found = native_metrics(case, mask, tolerance_mm=7.0)
    assert found["native_dice"] == 2 * common / (np.count_nonzero(there) + np.count_nonzero(truth))
    assert found["native_iou"] == common / np.count_nonzero(there | truth)
