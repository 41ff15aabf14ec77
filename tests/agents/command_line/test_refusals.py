"""The command line refuses what is wrong before anything is written, and says what and why."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import LEARNED, assert_refused, call, everything, train

REFUSED = {
    "a threshold above 1": (["--env.threshold", "1.5"], "threshold is 1.5 but must lie in [0, 1]"),
    "a window larger than the volume": (
        ["--env.window_size", "[40,16,8]"],
        "window_size (40, 16, 8) (phase (0, 0, 0)) does not fit the volume (32, 32, 24) along x; use a smaller",
    ),
    "a window between two steps": (
        ["--env.window_size", "[16,18,8]"],
        "window_size (16, 18, 8) has 18 voxels along y but must be a positive multiple of step 4",
    ),
    "the same before a classifier is trained": ([*LEARNED, "--env.window_size", "[16,18,8]"], "has 18 voxels along y"),
    "a step that a dense classifier has not": (
        [*LEARNED, "--env.step", "2"],
        "env.step is 2 but presence.batch='dense' needs a multiple of 4; use 'windows'",
    ),
    "an unknown split": (
        ["--env.cases", "null", "--env.split", "tset"],
        "split is 'tset' but 'phantom' has classifier_train, classifier_val, rl_pool, test, all; name cases",
    ),
    "an unknown case": (["--env.cases", "[liver_7]"], "no case in 'phantom' is called 'liver_7'; it has phantom_00000"),
    "an unknown validation case": (["--validation.cases", "[liver_7]"], "is called 'liver_7'"),
    "an unknown test case": (["--test.cases", "[liver_7]"], "is called 'liver_7'"),
    "an unknown case for the classifier": ([*LEARNED, "--classifier_train.cases", "[liver_7]"], "called 'liver_7'"),
    "a missing folder": (["--env.data", "gone"], "gone does not exist or is no folder"),
    "a missing classifier": (
        ["--env.score_source", "classifier", "--env.classifier", "gone.safetensors"],
        "gone.safetensors' does not exist; it must be a .safetensors file",
    ),
    "a batch that does not divide the rollout": (
        ["--ppo.batch_size", "48"],
        "ppo.batch_size is 48 but must divide a rollout of num_envs x n_steps = 64 samples",
    ),
    "a batch of one": (["--ppo.batch_size", "1"], "ppo.batch_size is 1 but must be at least 2"),
    "no environments": (["--ppo.num_envs", "0"], "ppo.num_envs is 0 but must be at least 1"),
    "a discount that is no number": (["--ppo.gamma", ".nan"], "ppo.gamma is nan but must be a finite number"),
    "an infinite bonus": (["--ppo.ent_coef", ".inf"], "ppo.ent_coef is inf but must be a finite number"),
    "a bonus that is no number": (
        ["--env.terminal_bonus", ".nan"],
        "terminal_bonus is nan but must be a finite number",
    ),
    "an infinite reward": (["--env.tie_reward", ".inf"], "tie_reward is inf but must be a finite number"),
    "a window of no numbers": (["--env.hu_window", "[.nan, .nan]"], "hu_window is (nan, nan) but must be"),
    "an infinite window": (["--env.hu_window", "[-.inf, .inf]"], "hu_window is (-inf, inf) but must be"),
    "a voxel of no size": (["--env.spacing_mm", "[.nan, 1, 1]"], "spacing_mm is (nan, 1.0, 1.0) but must be"),
    "nothing to train": (["--ppo.total_timesteps", "0"], "nothing to train: ppo.total_timesteps is 0"),
    "features that are not shown": (
        ["--policy", "feature_mlp"],
        "policy 'feature_mlp' needs env.obs_mode='features', not observations Dict(",
    ),
    "windows that are not shown": (
        ["--policy", "window_cnn", "--env.obs_mode", "features"],
        "policy 'window_cnn' needs env.obs_mode='two_window' or 'own_window', not 'features'",
    ),
    "the same before a classifier is trained, too": (
        [*LEARNED, "--policy", "window_cnn", "--env.obs_mode", "features"],
        "policy 'window_cnn' needs env.obs_mode='two_window'",
    ),
    "an unknown policy": (["--policy", "transformer"], "window_cnn"),
    "an unknown device": (["--device", "gpu0"], "device is 'gpu0' but must be 'auto', 'cpu', 'cuda' or 'cuda:N'"),
    "a negative seed": (["--seed=-1"], "seed is -1 but must lie in [0, 4294967295]"),
    "no checkpoints": (["--checkpoint_every", "0"], "checkpoint_every is 0 but must be at least 1"),
    "an opponent that is always refreshed": (
        ["--self_play.refresh_every", "0"],
        "self_play.refresh_every is 0 but must be at least 1",
    ),
    "no rollouts": (["--evaluation.rollouts", "0"], "evaluation.rollouts is 0 but must be at least 1"),
    "a zip with another name": (["--export_sb3", "policy.pt"], "export_sb3 is 'policy.pt' but must end in .zip"),
    "a zip of no agent": (
        [*LEARNED, "--ppo.total_timesteps", "0", "--export_sb3", "policy.zip"],
        "export_sb3 needs an agent, but this run trains none",
    ),
    "an option that is a typo": (
        ["--env.windw_size", "[8,8,8]"],
        "paper 'spars' has no option --env.windw_size; did you mean --env.window_size?",
    ),
    "an abbreviation": (["--ppo.lr", "3"], "has no option --ppo.lr; did you mean --ppo.learning_rate?"),
    "an option of another section": (["--n_epochs", "3"], "has no option --n_epochs; did you mean --ppo.n_epochs?"),
    "a beginning of an option": (["--see", "3"], "has no option --see; did you mean --seed?"),
    "a word for a number": (["--seed", "three"], "seed is 'three' but must be a whole number"),
    "a word for an option": (["demo"], "'demo' is no option: options are given as --name value"),
    "a wrong choice": (["--env.obs_mode", "feature"], "but must be one of 'own_window', 'two_window', 'features'"),
    "an option without its value": (["--seed"], "argument --seed: expected one argument"),
    "no threads": (["--threads", "0"], "threads is 0 but must be at least 1"),
    "a configuration of another paper": (
        ["--config", "rl4seg/loop"],
        "is of paper 'rl4seg' but config.yaml of 'spars'",
    ),
    "another paper": (["--paper", "rl4seg"], "--paper is of paper 'rl4seg' but config.yaml of 'spars'"),
    "an unknown paper": (
        ["--paper", "spar"],
        "paper is 'spar' but must be one of 'spars', 'rl4seg', 'rp_pgd', 'seat', 'apga', 'ppo'; did",
    ),
    "a run to continue that there is not": (["--resume", "gone"], "'gone' is no run: it has no config.yaml"),
    "a folder for a run that goes on": (["--resume", ".", "--out", "x"], "in its own folder; leave out --out"),
}

KNOWN_PAPERS = "'spars', 'rl4seg', 'rp_pgd', 'seat', 'apga', 'ppo'"


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_value_is_refused_before_anything_is_written(here, capsys, what):
    arguments, said = REFUSED[what]
    assert_refused(train(*arguments), capsys, said)
    assert everything(here) == ["config.yaml"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_several_processes_in_one_run_are_refused(here, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train("--out", "run") == 2
    assert "torchrun started 2 processes but `train` trains in one" in capsys.readouterr().err
    assert not Path("run").exists()


def test_cuda_is_refused_where_there_is_none(here, capsys):
    said = "device is 'cuda' but this machine has no CUDA; use device='cpu' or 'auto'"
    assert_refused(train("--device", "cuda"), capsys, said)
    assert everything(here) == ["config.yaml"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "paper: spars\nenv: {obsmode: features}",
            "config.yaml: there is no env.obsmode; did you mean env.obs_mode?",
        ),
        ("paper: spars\nsed: 3", "config.yaml: there is no sed; did you mean seed?"),
        ("paper: spars\nppo: {lr: 3}", "config.yaml: there is no ppo.lr; did you mean ppo.learning_rate?"),
        (
            "paper: spars\nlr: 3",
            "config.yaml: there is no lr; did you mean env.lesion_rounds or presence.learning_rate",
        ),
        ("paper: spars\nenv: {threshold: high}", "config.yaml: env.threshold is 'high' but must be a number"),
        ("paper: spars\nenv: {cases: [[3]]}", "config.yaml: each of env.cases is [3] but must be a text"),
        ("paper: spars\nenv: 3", "config.yaml: env is 3 but must be a section (name: value)"),
        ("paper: spars\nenv:", "config.yaml: env is None but must be a section (name: value)"),
        ("env: {threshold: 0.3}", "config.yaml names no paper; add a line `paper: NAME` with one of 'spars', 'rl4seg'"),
        ("paper: sparse", f"config.yaml: paper is 'sparse' but must be one of {KNOWN_PAPERS}; did"),
        ("- 1", "config.yaml holds no configuration (name: value) but [1]"),
        ("", "config.yaml holds no configuration (name: value) but None"),
        ("env: {threshold: 0.3", "config.yaml, line 1, column 21: expected"),
        (
            "env: !!python/object/apply:os.mkdir [executed]",
            "config.yaml, line 1, column 6: could not determine a constructor for the tag",
        ),
    ],
)
def test_a_configuration_that_cannot_be_read_names_the_key(here, capsys, text, said):
    Path("config.yaml").write_text(text)
    assert_refused(train(), capsys, said)
    assert everything(here) == ["config.yaml"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("missing_file.yaml", "`list --configs` prints the packaged ones"),
        ("spars/dmo", "did you mean spars/demo?"),
        ("configs/rl4seg/lop.yaml", "did you mean rl4seg/loop?"),
    ],
)
def test_a_missing_configuration_is_named(here, capsys, name, hint):
    said = f"config is '{name}', which is no file and no packaged configuration"
    assert_refused(call("train", "--config", name), capsys, said, hint)
    assert everything(here) == ["config.yaml"]


def test_a_training_without_configuration_or_paper_is_refused(here, capsys):
    said = "no configuration is given: --config NAME or FILE", f"--paper with one of {KNOWN_PAPERS}"
    assert_refused(call("train"), capsys, *said)
    assert_refused(call("train", "--seed", "3"), capsys, *said)
    assert everything(here) == ["config.yaml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command is given; there are train, evaluate"),
        (["--version", "3"], "'3' is no option"),
        (["--verson"], "there is no option --verson; did you mean --version?"),
        (["trian"], "there is no command 'trian'; did you mean train?"),
        (["evaluate", "--runs", "x"], "there is no option --runs; did you mean --run?"),
        (["render"], "missing: --run"),
        (["predict", "--run", "x"], "missing: --input, --out"),
        (["evaluate", "--run", "x", "--cases", "liver_0"], "cases is liver_0 but must be a list in brackets, '[a, b]'"),
        (["play", "--id", "SPARS-LiverCT-v0", "--episodes", "ten"], "episodes is ten but must be a whole number"),
        (["play", "--env", "SPARS-LiverCT-v0"], "no option --env"),
        (["list", "--config"], "there is no option --config; did you mean --configs?"),
        (["schema", "--paper", "rl4sg"], f"paper is 'rl4sg' but must be one of {KNOWN_PAPERS}; did"),
        (["cache", "--claer"], "there is no option --claer; did you mean --clear?"),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_refused_in_one_line(here, capsys, arguments, said):
    assert call(*arguments) == 2
    out, message = capsys.readouterr()
    assert said in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert out == ""


def test_a_folder_that_is_not_empty_is_not_written_into(here, capsys):
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    said = "out is 'out', which is not empty; choose another, or continue it with --resume out"
    assert_refused(train("--out", "out"), capsys, said)
    assert everything(here) == ["config.yaml", "out", "out/notes.txt"]


@pytest.mark.parametrize("out", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_refused(here, capsys, out):
    Path("file").write_text("mine")
    assert_refused(train("--out", out), capsys, f"'{out}' cannot be written", "choose another with --out")
    assert everything(here) == ["config.yaml", "file"]


def test_a_refusal_is_the_same_in_a_process_of_its_own(here):
    command = [sys.executable, "-W", "error", "-m", "segarena.run_rl", "train", "--config", "config.yaml"]
    command += ["--env.threshold", "1.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "threshold is 1.5 but must lie in [0, 1]" in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(here) == ["config.yaml"]
