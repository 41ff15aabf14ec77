"""The benchmarks run and say what they measured; no test here looks at a clock."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from segarena.agents.dense_ppo.ppo import DensePPOConfig
from segarena.agents.spars.config import SparsExperiment
from segarena.attacks.regions import BOUNDARY, FALSE, IGNORED, TRUE
from segarena.attacks.victims import PACKAGED
from segarena.classifiers.presence_config import PresenceTrainingConfig
from segarena.datasets.echo.images import EchoDataConfig, PhantomPatients, load_echo
from segarena.datasets.liver import phantom
from segarena.envs.spars_config import SparsConfig
from segarena.rewards.reward_net import RewardNet

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def measured(name, tmp_path):
    """The figures of a quick run on one thread of the CPU, after what holds for those of every benchmark."""
    out = tmp_path / "speed.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["id"] == f"{name.replace('_', '-')}-cpu"
    assert result["command"] == f"python benchmarks/{name}.py --device cpu --quick --threads 1"
    assert result["machine"]["threads"] == 1
    figures = [figure for rows in result["figures"].values() for figure in rows]
    assert done.stdout.count("\n") == len(figures) + 2
    for figure in figures:
        assert figure["min"] <= figure["median"] <= figure["max"]
        assert len(figure["values"]) >= 1
        assert (figure["met"] is None) == (figure["target"] is None)
    assert str(tmp_path) not in out.read_text()
    return result["figures"]


def named(figures, start):
    (figure,) = (figure for figure in figures if figure["what"].startswith(start))
    return figure


def test_ablations_of_an_attack_go_on_with_the_rows_that_are_new(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ablations = importlib.import_module("attack_ablations")
    regions = torch.tensor([[IGNORED, TRUE, TRUE, FALSE, FALSE, BOUNDARY, BOUNDARY]])
    right = torch.tensor([[True, True, False, True, False, True, False]])
    assert ablations.recomputed(regions, right).tolist() == [[IGNORED, TRUE, BOUNDARY, TRUE, FALSE, TRUE, BOUNDARY]]
    new = [ablations.RECOMPUTED, "start clamped after normalisation", "features without gradient"]
    monkeypatch.setattr(ablations, "STEPS", (2, 3))
    kept = {title: {"2": [[0.5, 0.5]], "3": [[0.5, 0.5]]} for title in ablations.VARIANTS if title not in new}
    kept |= {f"features of {layer}": kept[ablations.BASE] for layer in ablations.LAYERS}
    out = tmp_path / "found.json"
    out.write_text(json.dumps({"miou": kept}))
    monkeypatch.setattr(sys, "argv", ["", "--victim", str(PACKAGED["scenes"]), "--images", "2", "--out", str(out)])
    ablations.main()
    found = json.loads(out.read_text())["miou"]
    assert {title: found[title] for title in kept} == kept, "what is there is not computed again"
    values = [found[title][steps] for title in new for steps in ("2", "3")]
    assert len({str(one) for one in values}) == len(values), "each changes the attack"
    assert all(0 < miou < 1 for (network,) in values for miou in network)
    assert "| start clamped after normalisation |" in capsys.readouterr().out


def test_the_classifiers_of_one_phase_are_judged_on_all_and_the_phases_are_those_of_the_phantoms(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    phases = importlib.import_module("presence_phases")
    drawn = []

    class Seen(dict):
        def __getitem__(self, name):
            drawn.append(name)
            return super().__getitem__(name)

    with monkeypatch.context() as patched:
        patched.setattr(phantom, "PHASES", Seen(phantom.PHASES))
        for number in (0, 5, 1000, 3007):
            phantom.liver_phantom(number)
    assert drawn == [phases.phase_of(number) for number in (0, 5, 1000, 3007)]
    out = tmp_path / "phases.json"
    monkeypatch.setattr(sys, "argv", ["presence_phases.py", "--quick", "--out", str(out)])
    phases.main()
    rows = json.loads(out.read_text())["figures"]
    assert [(row["cohort"], row["augmentation"]) for row in rows] == [
        (cohort, name) for cohort in ("portal", "mixed") for name in ("none", "default", "wide")
    ]
    assert [any(row["intensities"].values()) for row in rows] == [False, True, True] * 2
    for row in rows:
        assert set(row["auc"]) == set(phantom.PHASES)
        assert all(0 <= auc <= 1 for of_phase in row["auc"].values() for auc in of_phase)
    assert capsys.readouterr().out.count("\n") == len(rows) + 2


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads its memory from /proc")
def test_the_speed_of_spars_is_measured_and_written(tmp_path):
    figures = measured("spars_speed", tmp_path)
    assert set(figures) == {
        *("raw_steps", "observed_steps", "single_steps", "ppo_ratio", "score_volume", "memory_of_training", "dice"),
        *("make_vec", "second_environment", "preparation", "search", "values", "engines"),
        *("ppo_features", "lattice_share"),
    }
    shares = figures["lattice_share"][1]["details"]
    assert len(shares["share"]) == 10
    assert 0 < shares["share"][0] <= shares["share"][-1] <= 1
    assert shares["share"] == sorted(shares["share"])
    gradients = [row for row in figures["ppo_features"] if row["what"].endswith("share of its gradient steps")]
    assert len(gradients) == 2
    assert all(0 < value < 1 for row in gradients for value in row["values"])
    rows = [row for row in figures["make_vec"] if row["what"].startswith("gym.make_vec")]
    timed = [row for row in rows if not row["what"].endswith("per CPU second")]
    assert len(timed) == 3
    assert all("steps_per_cpu_second" in row["details"] for row in timed)
    dice = figures["dice"][0]
    assert dice["values"] == [0]
    assert dice["details"]["block_dice"] == dice["details"]["voxel_dice"]
    assert max(dice["details"]["block_dice"]) > 0


def test_the_speed_of_rl4seg_is_measured_and_written(tmp_path):
    figures = measured("rl4seg_speed", tmp_path)
    assert set(figures) == {"distribution", "ppo", "validity", "reward_data"}
    difference = named(figures["distribution"], "ratio")["details"]["largest_difference"]
    assert difference["joint_log_prob"] < 1e-2  # of sums over 256 pixels
    assert difference["gradient"] < 1e-5
    agreed = [
        figure["details"]["same_verdicts"] for figure in figures["validity"] if figure["what"].startswith("ratio")
    ]
    assert agreed == [True, True]
    assert named(figures["validity"], "validity, 64 x 64, hearts")["details"] == {"valid": 4, "masks": 4}
    assert named(figures["validity"], "validity, 64 x 64, noise")["details"]["valid"] == 0
    assert named(figures["reward_data"], "triplets")["values"] == [9, 9]
    for figure in named(figures["reward_data"], "reward data"), named(figures["reward_data"], "as released"):
        spent = figure["details"]["parts_ms"]
        parts = [spent[part][0] for part in ("network", "corrections", "validity", "files")]
        assert sum(parts) == pytest.approx(spent["all"][0])
        assert min(parts) >= 0


@pytest.fixture
def rl4seg(monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("rl4seg_speed")


def test_the_work_of_an_iteration_is_that_of_the_paper(rl4seg):
    gflop = rl4seg.forward_flop(init_channels=32, size=256) / 1e9
    assert gflop == pytest.approx(7.457, abs=1e-3)
    assert round(rl4seg.NEEDED * gflop) == 239
    assert round(rl4seg.RELEASED * gflop) == 380


@pytest.mark.parametrize("as_released", [True, False])
def test_the_plain_ppo_has_the_losses_of_ours(rl4seg, as_released, monkeypatch, tmp_path):
    """Given our rollout, and with gradients that nobody clips: the released program clips those of two networks."""
    data = EchoDataConfig(size=32, phantom_patients=PhantomPatients(1, 0, 0, 0), cache_dir=str(tmp_path))
    torch.manual_seed(0)
    reward = RewardNet(classes=3, init_channels=4).requires_grad_(False)
    config = DensePPOConfig(num_envs=4, max_grad_norm=1e9)
    device, images = torch.device("cpu"), load_echo(data, "train")
    model = rl4seg.learner(images, lambda x, a, rows: reward(x, a), config, 4, device)
    plain = rl4seg.plain_ppo(model.policy, reward, config, as_released=as_released)
    ours, loss = [], model._loss

    def watched(*given):
        total, scalars = loss(*given)
        ours.append(scalars["policy_loss"])
        return total, scalars

    monkeypatch.setattr(model, "_loss", watched)
    model.learn(4)
    buffer = model.rollout_buffer
    x, a, r, l_old = (value[0] for value in (buffer.observations, buffer.actions, buffer.rewards, buffer.old_log_prob))
    torch.testing.assert_close(plain.reward(x, a), r)
    theirs = plain.update(x, a, r, l_old)
    assert len(ours) == len(theirs) == config.n_epochs
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), atol=1e-4, rtol=0)
    assert ours[-1] < ours[0] - 1e-3

    a, r, l_old = plain.rollout(x)
    assert a.shape == r.shape == l_old.shape == (4, 32, 32)
    assert (l_old < 0).all()
    assert set(a.unique().tolist()) == {0, 1, 2}


def test_the_cost_of_a_folder_of_cts_is_measured_and_extrapolated(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    liver_cost = importlib.import_module("liver_cost")
    volume = np.random.default_rng(0).normal(0, 100, (24, 20, 16)).astype(np.int16)
    for kind, voxels in (("images", volume), ("labels", (volume > 100).astype(np.uint8))):
        (tmp_path / kind).mkdir()
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / kind / "ct.nii.gz")
    env = SparsConfig(data=str(tmp_path), grid_shape=(16, 16, 12), window_size=(8, 8, 4), obs_mode="features")
    experiment = SparsExperiment(
        env=env, presence=PresenceTrainingConfig(batches_per_epoch=1, volumes_per_batch=2, epochs=100)
    )
    one = liver_cost.cost(experiment)
    assert all(one.values())
    assert one["voxels_m"] == 24 * 20 * 16 / 1e6
    assert one["packed_bytes"] == sum(path.stat().st_size for path in tmp_path.rglob("*.nii.gz"))
    one |= {"packed_bytes": 2e6, "voxels_m": 1.0, "read_s": 1.0, "prepare_s": 2.0, "learn_s": 10.0, "validate_s": 1.0}
    whole = {row[0]: row[2] for row in liver_cost.rows(experiment, one | {"score_s": 36.0})}
    assert whole["files, MB for a million voxels"] == "31 GB"  # 58,638 slices of 512 x 512
    assert whole["reading, s for a million voxels"] == "4.3 h"
    assert whole["classifier, all epochs"] == "100 epochs: 1.0 h"  # 2 volumes and 16 to validate, 36 s
    assert whole["scoring all windows of a case, s"] == "107 cases: 64 min"
    assert whole["all of this"] == "10.6 h"


def test_the_speed_of_training_against_attacks_is_measured_and_written(tmp_path):
    figures = measured("seat_speed", tmp_path)
    assert set(figures) == {"attack", "epoch", "ladder"}
    attack = named(figures["attack"], "attack: order of the released program")
    for one in (attack, figures["ladder"][0]):  # signs of gradients near 0 depend on rounding
        assert one["details"]["share of voxels that differ"] < 0.001, "both orders of work attack alike"


def test_the_speed_of_the_joint_loop_is_measured_and_written(tmp_path):
    figures = measured("apga_speed", tmp_path)
    assert set(figures) == {"joint", "gradcam", "cutout", "environment"}
    program, reinforce, light = (row for row in figures["joint"] if row["unit"] == "x")
    assert program["details"]["difference of the losses after all steps"] < 1e-4, "both orders of work learn alike"
    operations = [row["details"]["operations of the released order per ours"] for row in (program, reinforce, light)]
    assert 1 < operations[0] < operations[1] < operations[2]
    assert figures["gradcam"][0]["details"]["largest difference"] < 1e-4


def test_the_speed_of_attacks_is_measured_and_written(tmp_path):
    figures = measured("attack_speed", tmp_path)
    assert set(figures) == {"libraries", "step", "training", "prototypes", "memory", "environments"}
    pgd = named(figures["libraries"], "PGD, 20 steps")
    damage = pgd["details"]["mean_cross_entropy"]
    assert all(value == pytest.approx(damage["ours"], rel=0.02) for value in damage.values())
    assert damage["ours"] > pgd["details"]["clean"]
    pooled, resized = (named(figures["prototypes"], row) for row in ("prototype terms, peak", "… of features resized"))
    assert pooled["details"]["inter"] == pytest.approx(resized["details"]["inter"], abs=1e-4)
    assert named(figures["memory"], "memory gained in 200 steps")["target"] == 20


def test_the_ranking_of_reward_networks_is_measured_resumed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ranking = importlib.import_module("rl4seg_ranking")
    out, made, train = tmp_path / "ranking.json", [], ranking.training.train
    monkeypatch.setattr(ranking.training, "train", lambda *arguments: made.append(arguments) or train(*arguments))
    command = ["rl4seg_ranking.py", "--quick", "--seeds", "3", "--work", str(tmp_path / "work"), "--out", str(out)]
    for variants in (["loop"], ["loop", "local_reward+mixed_regions"]):
        monkeypatch.setattr(sys, "argv", [*command, "--variants", *variants])
        ranking.main()
    assert [run.folder.name for _, run in made] == ["loop_3", "local_reward+mixed_regions_3"], "each once"
    rows = json.loads(out.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["loop", "local_reward+mixed_regions"]
    for row in rows:
        assert (row["images"], row["patients"]) == (12, 3)
        for name in ("truth_preferred", "truth_preferred_regions"):
            mean, low, high = row[name]
            assert 0 <= low <= mean <= high <= 1
    shared = [experiment.shape_prior for experiment, _ in made]
    assert shared[0] == shared[1]
    assert [experiment.reward_net.levels for experiment, _ in made] == [6, 2]
    assert [experiment.reward_data.mix_regions for experiment, _ in made] == [0.0, 0.5]
    networks = [tmp_path / "work" / f"{row['variant']}_3" / "supervised" / "segmenter.safetensors" for row in rows]
    assert networks[0].read_bytes() == networks[1].read_bytes()
    assert "| local_reward+mixed_regions | 3 |" in capsys.readouterr().out
    assert str(tmp_path) not in out.read_text()
