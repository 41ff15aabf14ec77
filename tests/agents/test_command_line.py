"""The command line: what it refuses and how, and the whole way from training to pictures on a run that is tiny."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import imageio.v3 as imageio
import nibabel as nib
import numpy as np
import pytest
import segarena
import torch
import yaml
from segarena.agents.command_line import main
from segarena.agents.configuration import read_experiment
from segarena.agents.experiment import EvaluateOptions
from segarena.agents.papers import PAPERS, POLICIES
from segarena.agents.spars.baselines import BASELINES, MapBaseline, score_map
from segarena.agents.spars.config import SparsExperiment
from segarena.agents.spars.rollouts import Maps
from segarena.common.locks import locked
from segarena.common.runs import Run
from segarena.envs import ENVIRONMENTS
from segarena.evaluation.results import read_results
from stable_baselines3 import PPO

MAPS = (
    *("score map (min)", "score map (mean)", "score map (max)"),
    *("best window", "union of the k best windows"),
)
TINY = {
    "paper": "spars",
    "name": "Tiny",
    "device": "cpu",
    "env": {"score_source": "oracle_fraction", "cases": ["phantom_02000"], "grid_shape": [32, 32, 24]},
    "validation": {"cases": ["phantom_01000"]},
    "test": {"cases": ["phantom_03000", "phantom_03001"]},
    "policy": "flatten_mlp",
    "ppo": {"total_timesteps": 128, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1},
    "evaluation": {"rollouts": 2, "pictures": 1},
}
CT = {"env.cases": "[liver_0]", "validation.cases": "[liver_0]", "test.cases": "[liver_1,liver_2,liver_3]"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working folder but for config.yaml, which holds TINY."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path


def call(*arguments):
    """Exit status of a command."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code


def train(*arguments):
    return call("train", "--config", "config.yaml", *arguments)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(status, capsys, *said):
    """Exit status 2, a message that says it all and no traceback, nothing written."""
    out, message = capsys.readouterr()
    assert status == 2, out + message
    for part in said:
        assert part in re.sub(r"\s+", " ", message)
    assert "Traceback" not in message


def liver_ct(number, shape=(20, 18, 16)):
    """A CT in HU, and its label: a liver with a tumour in it."""
    ct = np.random.default_rng(number).normal(60, 20, shape).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label[3:17, 3:15, 3:13] = 1
    label[6:11, 6:11, 5 + number : 9 + number] = 2
    ct[label == 2] -= 60
    return ct, label


def decathlon(folder, cases=4):
    """A folder in the layout of the Decathlon's liver task; its ids are liver_0, liver_1, ..."""
    entries = []
    for number in range(cases):
        for kind, data in zip(("imagesTr", "labelsTr"), liver_ct(number), strict=True):
            save(folder / kind / f"liver_{number}.nii.gz", data)
        entries.append({kind[:5]: f"./{kind}/liver_{number}.nii.gz" for kind in ("imagesTr", "labelsTr")})
    (folder / "dataset.json").write_text(json.dumps({"training": entries, "test": []}))
    return folder


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([1.5, 1.5, 2.0, 1.0])), path)


def on_ct(folder):
    """Options that train TINY on a folder."""
    options = {"env.data": folder, "env.grid_shape": "[20,18,16]", "env.window_size": "[8,8,8]", **CT}
    return [part for name, value in options.items() for part in (f"--{name}", value)]


# -- what is refused -----------------------------------------------------------------------------------------------

LEARNED = ["--env.score_source", "classifier", "--env.classifier", "train"]
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
        "paper is 'spar' but must be one of 'spars', 'rl4seg', 'rp_pgd', 'ppo'; did",
    ),
    "a run to continue that there is not": (["--resume", "gone"], "'gone' is no run: it has no config.yaml"),
    "a folder for a run that goes on": (["--resume", ".", "--out", "x"], "in its own folder; leave out --out"),
}


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
        ("paper: sparse", "config.yaml: paper is 'sparse' but must be one of 'spars', 'rl4seg', 'rp_pgd', 'ppo'; did"),
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
        ("gone.yaml", "`list --configs` prints the packaged ones"),
        ("spars/dmo", "did you mean spars/demo?"),
        ("configs/rl4seg/lop.yaml", "did you mean rl4seg/loop?"),
    ],
)
def test_a_missing_configuration_is_named(here, capsys, name, hint):
    said = f"config is '{name}', which is no file and no packaged configuration"
    assert_refused(call("train", "--config", name), capsys, said, hint)
    assert everything(here) == ["config.yaml"]


def test_a_training_without_configuration_or_paper_is_refused(here, capsys):
    said = "no configuration is given: --config NAME or FILE", "--paper with one of 'spars', 'rl4seg', 'rp_pgd', 'ppo'"
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
        (["schema", "--paper", "rl4sg"], "paper is 'rl4sg' but must be one of 'spars', 'rl4seg', 'rp_pgd', 'ppo'; did"),
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


# -- what it says --------------------------------------------------------------------------------------------------


def test_the_printed_configuration_prints_itself(capsys):
    assert train("--env.threshold", "0.5", "--print_config") == 0
    first = capsys.readouterr().out
    assert yaml.safe_load(first)["env"]["threshold"] == 0.5
    Path("again.yaml").write_text(first)
    assert call("train", "--config", "again.yaml", "--print_config") == 0
    assert capsys.readouterr().out == first


def test_help_shows_units_and_defaults(capsys):
    assert call("train", "--paper", "spars", "--help") == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for line in (
        "--env.window_size WINDOW_SIZE w in voxels (x, y, z), multiples of `step`.",
        "--env.step STEP h: length of a move in voxels. (type: int, default: 4)",
        "--env.spacing_mm [ITEM,...] Size of a voxel of the working grid in mm (x, y, z)",
        "1 never does. Profiles search and patch have none. (type: float, default:",
        "(type: int, default: 320000)",
        "of the normalised surface Dice, in mm; 7 is the Decathlon's",
    ):
        assert line.lower() in text.lower()


def test_every_option_has_a_help_text(capsys):
    call("train", "--paper", "spars", "--help")
    text = re.sub(r"\s+", " ", capsys.readouterr().out).partition(" options: ")[2]

    def leaves(config, prefix=""):
        for field in fields(config):
            value = getattr(config, field.name)
            if is_dataclass(value):
                yield from leaves(value, f"{prefix}{field.name}.")
            else:
                yield prefix + field.name

    names = list(leaves(SparsExperiment()))
    assert len(names) > 60
    for name in names:
        option = re.escape(f"--{name}")
        described = re.search(rf" {option} \S+(?:, {option}\+ \S+)? (.+?)(?= --|$)", text)
        assert described, f"no option --{name}"
        assert not described[1].startswith("(type"), f"--{name} has no help"


def test_list_prints_every_environment(capsys):
    assert call("list") == 0
    out = capsys.readouterr().out
    for name, entry in ENVIRONMENTS.items():
        assert name in out
        assert entry.paper in out
        assert f"  config        {entry.config.removeprefix('configs/').removesuffix('.yaml')}\n" in out
        assert (Path(segarena.__file__).parent / entry.config).is_file()
        assert all(f"{policy}: " in out for policy in POLICIES[name])
    for name, paper in PAPERS.items():
        assert f"paper {name}" in out
        assert all(f"{baseline}: {row.title}" in out for baseline, row in paper.baselines.items())


def test_the_driver_is_also_a_script():
    driver = Path(segarena.__file__).parent / "run_rl.py"
    command = [sys.executable, "-W", "error", str(driver), "train", "--paper", "spars", "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["ppo"]["total_timesteps"] == 320_000


# -- the whole way -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of TINY, and the learner as a zip of SB3 in it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("--export_sb3", "deep/policy.zip") == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run."""
    return Path(shutil.copytree(trained / "runs" / "tiny-seed0", tmp_path / "run"))


def test_a_run_says_how_to_go_on(capsys):
    assert train("--out", "out", "--ppo.total_timesteps", "64") == 0
    out = capsys.readouterr().out
    assert "python run_rl.py evaluate --run out" in out
    assert "tensorboard --logdir out/tensorboard" in out


def test_the_configuration_of_a_run_is_complete_and_read_back_equal(run):
    def assert_complete(config, kind):
        assert list(config) == [field.name for field in fields(kind)]
        for field in fields(kind):
            value = getattr(kind, field.name)
            if is_dataclass(value):
                assert_complete(config[field.name], value)

    _, experiment = read_experiment(Run.open(run))
    assert_complete(Run.open(run).config, experiment)
    assert experiment.resolved() == experiment
    assert (experiment.name, experiment.ppo.num_envs, experiment.env.grid_shape) == ("Tiny", 4, (32, 32, 24))
    assert experiment.env.window_size == (16, 16, 8)
    assert experiment.test.cases == TINY["test"]["cases"]


def test_the_configuration_of_a_run_trains_the_same_run_again(run):
    assert call("train", "--config", run / "config.yaml", "--out", "again") == 0
    assert Run.open("again").config == Run.open(run).config
    first, second = Run.open(run).checkpoint().weights, Run.open("again").checkpoint().weights
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_run_names_its_machine_and_command(run):
    said = json.loads((run / "environment.json").read_text())
    assert said["command"] == "python run_rl.py train --config config.yaml --export_sb3 deep/policy.zip"
    assert said["packages"]["torch"] in torch.__version__


def test_stable_baselines_opens_the_exported_policy(trained, run):
    model = PPO.load(trained / "deep" / "policy.zip", device="cpu")
    weights = Run.open(run).checkpoint().weights
    assert all(torch.equal(value, weights[name]) for name, value in model.policy.state_dict().items())
    action, _ = model.predict(model.observation_space.sample(), deterministic=True)
    assert model.action_space.contains(action)
    assert [path.name for path in (trained / "deep").iterdir()] == ["policy.zip"]


def test_a_finished_run_can_still_be_exported(run):
    assert call("train", "--resume", run, "--export_sb3", "late.zip") == 0
    assert PPO.load("late.zip", device="cpu").num_timesteps == 128


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """Another copy, evaluated, and what was printed."""
    run = shutil.copytree(trained / "runs" / "tiny-seed0", tmp_path_factory.mktemp("evaluated") / "run")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert call("evaluate", "--run", run) == 0
    return run, out.getvalue()


def test_a_trained_run_is_evaluated(evaluated):
    run, out = evaluated
    results = read_results(run / "evaluation" / "test")
    methods = {result.method for result in results}
    assert {"Tiny", "random", "constant0", "greedy", "blind_walk", "bfs_to_tau", "position prior", *MAPS} == methods
    assert "Dice (%)" in out
    for method in methods:
        assert re.search(rf"^\| {re.escape(method)} ", out, re.MULTILINE)
    assert (run / "evaluation" / "test" / "table.md").read_text().strip() in out
    compared = (run / "evaluation" / "test" / "pairs.md").read_text()
    assert compared.count("\n| ") == 1 + len(methods) * (len(methods) - 1) // 2, "a rule, and a line for each pair"
    assert f"pairs      {run / 'evaluation' / 'test' / 'pairs.md'}" in out
    for result in results:
        assert [case["case_id"] for case in result.cases] == TINY["test"]["cases"]
        assert result.origins == {"phantom": 2}
        assert result.settings["protocol"]["rollouts"] == 2


def test_an_evaluation_draws_every_method(evaluated):
    run, out = evaluated
    pictures = sorted((run / "evaluation" / "test").glob("*.png"))
    assert len(pictures) == len(read_results(run / "evaluation" / "test"))
    for picture in pictures:
        assert f"picture    {picture}" in out
        pixels = imageio.imread(picture)
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 1


def test_an_evaluation_draws_its_cases_in_3d_where_it_is_asked_to(run, capsys, monkeypatch):
    pytest.importorskip("plotly", reason="plotly is not here: pip install 'segarena[viz]'")
    assert call("evaluate", "--run", run, "--policies", "--html") == 0
    printed = re.findall(r"^picture    (\S+\.html)$", capsys.readouterr().out, re.MULTILINE)
    folder = run / "evaluation" / "test"
    assert sorted(map(Path, printed)) == sorted(folder / f"{one.id}.html" for one in read_results(folder))
    for path in map(Path, printed):
        text = path.read_text(encoding="utf-8")
        assert [text.count(f'"name":"{name}"') for name in ("label", "prediction", "organ")] == [1, 1, 1]
        assert "phantom_03000: " in text
        assert "% (whole volume)" in text
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    assert_refused(call("evaluate", "--run", run, "--html"), capsys, "need plotly: pip install 'segarena[viz]'")


def test_an_evaluation_gives_the_same_numbers_again(evaluated, run):
    assert call("evaluate", "--run", run) == 0
    first, second = (read_results(folder / "evaluation" / "test") for folder in (evaluated[0], run))
    for one, other in zip(first, second, strict=True):
        assert one.settings == other.settings
        np.testing.assert_equal(one.cases, other.cases)


def choices(run):
    """The folders of results of a run."""
    return sorted(path.name for path in (run / "evaluation").iterdir() if path.is_dir())


def test_every_choice_of_cases_has_results_of_its_own(evaluated, tmp_path):
    run = shutil.copytree(evaluated[0], tmp_path / "run")
    before = everything(run / "evaluation" / "test")
    alone = ["evaluate", "--run", run, "--policies"]
    assert call(*alone, "--cases", "[phantom_03001]") == 0
    assert call(*alone, "--cases", "[phantom_03002]") == 0
    assert call(*alone, "--cases", "[phantom_03001]") == 0, "the same folder again"
    assert call(*alone, "--cases", "[phantom_03001]", "--out", "elsewhere") == 0
    assert everything(run / "evaluation" / "test") == before
    first, second, test = choices(run)
    assert (first[:20], second[:20], test) == ("cases_phantom_03001_", "cases_phantom_03002_", "test")
    for folder, case in ((run / "evaluation" / first, "phantom_03001"), (Path("elsewhere"), "phantom_03001")):
        results = read_results(folder)
        assert {result.method for result in results} == {"Tiny", "position prior", *MAPS}
        for result in results:
            assert [case["case_id"] for case in result.cases] == [case]
            assert (folder / f"{result.id}.png").is_file()
        assert (folder / "table.md").is_file()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (EvaluateOptions(), EvaluateOptions(split="test")),
        (EvaluateOptions(cases=["a b"]), EvaluateOptions(cases=["a", "b"])),
        (EvaluateOptions(cases=["x" * 99 + "1"]), EvaluateOptions(cases=["x" * 99 + "2"])),
        (EvaluateOptions(split="val"), EvaluateOptions(split="val", cases=["val"])),
        (EvaluateOptions(cases=["../a"]), EvaluateOptions(cases=["a"])),
    ],
)
def test_two_choices_of_cases_have_two_folders(one, other):
    assert one.choice.casefold() != other.choice.casefold()
    assert re.fullmatch(r"\w{4,60}", one.choice)
    assert re.fullmatch(r"\w{4,60}", other.choice)


def test_the_cases_of_every_result_are_a_table_too(evaluated):
    for result in read_results(evaluated[0] / "evaluation" / "test"):
        with (evaluated[0] / "evaluation" / "test" / f"{result.id}.csv").open(newline="") as file:
            first, *lines = csv.reader(file)
        assert first[:3] == ["case_id", "origin", "dice"]
        assert "hd95_mm" in first
        for case, line in zip(result.cases, lines, strict=True):
            row = dict(zip(first, line, strict=True))
            for name, value in case.items():
                assert row[name] == ("" if value is None else str(value)), name


def unfinished(run):
    """The run as if it had been killed on its way: another total in its configuration is what tells."""
    config = Run.open(run).config
    config["ppo"]["total_timesteps"] = 4096
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


@pytest.mark.parametrize("command", ["evaluate", "render"])
def test_a_run_that_is_not_finished_is_refused(run, capsys, command):
    said = "'{}' is not finished: its last checkpoint is at step 128 of 4096; train it further with --resume"
    before = everything(unfinished(run))
    assert_refused(call(command, "--run", run), capsys, said.format(run), "--unfinished of evaluate or render")
    assert everything(run) == before


def test_a_run_that_is_not_finished_is_evaluated_as_such(run, capsys):
    assert call("evaluate", "--run", unfinished(run), "--unfinished", "--policies") == 0
    name = "Tiny (unfinished, step 128 of 4096)"
    results = {result.method: result for result in read_results(run / "evaluation" / "test")}
    assert results.keys() == {name, "position prior", *MAPS}
    for result in results.values():
        assert (result.settings["total_timesteps"], result.settings["unfinished"]) == (128, "step 128 of 4096")
    assert f"| {name} |" in capsys.readouterr().out
    assert call("render", "--run", run, "--unfinished", "--out", "x.gif") == 0


def test_a_finished_run_has_no_word_of_it(evaluated):
    for result in read_results(evaluated[0] / "evaluation" / "test"):
        assert result.settings["total_timesteps"] == 128
        assert "unfinished" not in result.settings


def test_names_that_give_one_file_are_refused(run, capsys):
    config = Run.open(run).config
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "name": "Score Map mean"}))
    said = "'Score Map mean' and 'score map (mean)' would have one file of results"
    assert_refused(call("evaluate", "--run", run), capsys, said)
    assert not (run / "evaluation").exists()


def test_other_reference_policies_may_be_evaluated(run, capsys):
    assert call("evaluate", "--run", run, "--policies", "sweep", "greedy") == 0
    methods = {result.method for result in read_results(run / "evaluation" / "test")}
    assert methods == {"Tiny", "sweep", "greedy", "position prior", *MAPS}
    capsys.readouterr()
    said = "policy is 'sweap' but must be one of 'random', 'constant0', 'greedy', 'sweep', 'blind_walk', 'bfs_to_tau'"
    assert_refused(call("evaluate", "--run", run, "--policies", "sweap"), capsys, said, "did you mean 'sweep'?")


def test_a_run_is_not_called_like_another_row_of_its_table(run, capsys):
    config = Run.open(run).config
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "name": "greedy"}))
    assert_refused(call("evaluate", "--run", run), capsys, "greedy is the name of a run and of another row")


def test_a_new_baseline_of_spars_is_one_row_and_one_function(run, monkeypatch, capsys):
    def nothing(env, nets):
        return Maps(env, torch.zeros_like(score_map(env, "mean").blocks), [{} for _ in env.cases])

    row = MapBaseline("a toy", maps=nothing, supervision="none", included=lambda experiment: experiment.seed == 0)
    monkeypatch.setitem(BASELINES, "toy", row)
    assert call("evaluate", "--run", run, "--policies") == 0
    results = {result.method: result for result in read_results(run / "evaluation" / "test")}
    assert results.keys() == {"Tiny", "position prior", *MAPS, "a toy"}
    assert (results["a toy"].supervision, results["Tiny"].supervision) == ("none", "voxel")
    assert results["a toy"].metrics["dice"] == 0.0 < results["score map (mean)"].metrics["dice"]
    assert re.search(r"^\| a toy +\| none ", capsys.readouterr().out, re.MULTILINE)
    assert call("evaluate", "--run", run, "--cases", "[phantom_02000]", "--policies", "--out", "known") == 0
    modes = {result.method: result.mode for result in read_results("known")}
    assert modes["a toy"] == modes["Tiny"] == "transductive", "the case that the agent was trained on"
    assert modes["score map (mean)"] == "inductive"
    assert call("list") == 0
    assert "toy: a toy" in capsys.readouterr().out
    assert_refused(train("--name", "a toy", "--out", "out"), capsys, "a toy is the name of a run and of another row")
    assert not Path("out").exists()
    assert train("--name", "a toy", "--out", "out", "--seed", "1") == 0, "where the row is not included"


def test_an_episode_is_rendered(run, capsys):
    assert call("render", "--run", run) == 0
    assert re.search(r"episode.gif: \d+ steps, ended by \w+, Dice \d", capsys.readouterr().out)
    frames = imageio.imread(run / "media" / "episode.gif", index=None)
    assert frames.ndim == 4
    assert len(frames) >= 2
    assert frames.std() > 1
    assert call("render", "--run", run, "--case", "phantom_03001", "--out", "deep/other.gif", "--seed", "3") == 0
    assert imageio.imread("deep/other.gif", index=0).std() > 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "--resume", "gone"], "'gone' is no run: it has no config.yaml"),
        (["evaluate", "--run", "gone"], "'gone' is no run: it has no config.yaml"),
        (["evaluate", "--run", "run", "--on_error", "ignore"], "must be one of 'stop', 'skip'"),
        (["evaluate", "--run", "run", "--cases", "[liver_7]"], "no case in 'phantom' is called 'liver_7'"),
        (["evaluate", "--run", "run", "--split", "tset"], "split is 'tset' but 'phantom' has"),
        (["render", "--run", "gone"], "'gone' is no run"),
        (["render", "--run", "run", "--case", "liver_7"], "'liver_7'"),
        (["render", "--run", "run", "--out", "config.yaml/episode.gif"], "config.yaml"),
        (["render", "--run", "run", "--out", "episode.xyz"], "episode.xyz"),
    ],
)
def test_what_cannot_be_evaluated_or_rendered_is_refused(here, run, capsys, command, said):
    before = everything(here)
    assert_refused(call(*command), capsys, said)
    assert everything(here) == before


def test_a_run_without_checkpoint_is_not_evaluated(run, capsys):
    shutil.rmtree(run / "checkpoints")
    assert_refused(
        call("evaluate", "--run", run), capsys, "has no whole checkpoint yet; train it further with --resume"
    )


def test_a_checkpoint_of_another_architecture_is_not_evaluated(run, capsys):
    config = Run.open(run).config
    config["env"]["window_size"] = [8, 8, 8]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    said = "is a checkpoint of another architecture: parameter 'mlp_extractor.policy_net.0.weight' is"
    assert_refused(call("evaluate", "--run", run), capsys, said)


def test_a_run_whose_configuration_was_spoilt_is_refused(run, capsys):
    config = Run.open(run).config
    config["env"]["windw_size"] = config["env"].pop("window_size")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert_refused(call("evaluate", "--run", run), capsys, "windw_size")


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


def test_a_run_trains_its_classifier_first_and_is_evaluated_with_it(here, capsys):
    data = decathlon(here / "data")
    learned = [*on_ct(data), *LEARNED, "--classifier_train.cases", "[liver_1,liver_2]"]
    quick = ["--presence.epochs", "1", "--presence.batches_per_epoch", "2", "--presence.validation_windows", "16"]
    assert train(*learned, *quick, "--env.obs_mode", "features", "--policy", "feature_mlp", "--out", "ct") == 0
    assert (here / "ct" / "classifier" / "presence.safetensors").is_file()
    assert call("evaluate", "--run", "ct") == 0
    assert "3 cases (0 phantom, 0 implanted, 3 real)" in capsys.readouterr().out


# -- one process at a time -----------------------------------------------------------------------------------------


def test_a_run_that_is_being_trained_in_is_not_trained_by_another_but_evaluated(here, capsys):
    assert train("--out", "run") == 0
    capsys.readouterr()
    last = Run("run").metrics()[-1]
    assert (last["step"], "spars/dice_eval" in last) == (128, True), "the look at the end, whatever examine_every is"
    before = everything(here / "run")
    with locked(here / "run"):
        said = f"'run' is being trained in by process {os.getpid()} on "
        assert_refused(call("train", "--resume", "run"), capsys, said, "wait until it ends, or stop it (kill")
        assert_refused(train("--out", "run"), capsys, "out is 'run', which is not empty")
        assert call("evaluate", "--run", "run") == 0
    assert {path for path in everything(here / "run") if not path.startswith(("evaluation", "media"))} == {*before}


def test_two_that_begin_in_one_folder_do_not_both_train(here, capsys):
    """The second one comes after the first has made the folder, and before it has written into it."""
    (here / "run").mkdir()
    with locked(here / "run"):
        assert_refused(train("--out", "run"), capsys, "'run' is being trained in by process", "choose another --out")
    assert train("--out", "run") == 0


def test_a_run_without_environment_is_described_when_it_goes_on(here):
    assert train("--out", "run") == 0
    Path("run/environment.json").unlink()
    assert call("train", "--resume", "run", "--name", "Other") == 0
    assert json.loads(Path("run/environment.json").read_text())["command"].endswith("train --resume run --name Other")
    assert Run("run").config["name"] == "Other"
    assert yaml.safe_load(Path("run/config_1.yaml").read_text())["name"] == "Tiny"
