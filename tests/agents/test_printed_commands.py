"""Every command that the program prints can be run as it is printed."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from adversarial_toys import TINY
from rl4seg_runs import QUICK, count_all
from segarena.agents.command_line import main
from segarena.agents.configuration import experiment_from, experiment_parser
from segarena.agents.packaged import names
from segarena.agents.papers import paper_named
from segarena.agents.policy import make_env
from segarena.agents.program import PROGRAM
from segarena.agents.rl4seg.evaluation import test_split as split_that_is_evaluated
from segarena.agents.rp_pgd.images import load_images
from segarena.common.runs import Run
from segarena.datasets.decathlon.cases import load_decathlon
from segarena.datasets.echo.images import echo_splits
from segarena.datasets.liver.cases import liver_case_ids
from segarena.datasets.xray.images import load_xrays
from segarena.evaluation.results import read_results

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [ROOT / "configs" / f"{name}.yaml" for name in names()]
SPARS = {
    "paper": "spars",
    "name": "Two words",
    "device": "cpu",
    "env": {"score_source": "oracle_fraction", "cases": ["phantom_02000"], "grid_shape": [32, 32, 24]},
    "validation": {"cases": ["phantom_01000"]},
    "test": {"cases": ["phantom_03000"]},
    "policy": "flatten_mlp",
    "ppo": {"total_timesteps": 128, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1},
    "evaluation": {"rollouts": 1, "pictures": 1},
    "examine_every": 64,
}
PPO = {
    "paper": "ppo",
    "device": "cpu",
    "env": "SPARS-LiverCT-v0",
    "settings": {
        "score_source": "oracle_fraction",
        "cases": ["phantom_02000"],
        "horizon": 8,
    },
    "ppo": {"total_timesteps": 64, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1},
    "episodes": 2,
}
RL4SEG = {
    **QUICK,
    "iterations": 1,
    "new_images": 2,
    "target": {**QUICK["target"], "phantom_patients": {"train": 1, "val": 1, "test": 0, "pred": 1}},
    **{name: {**QUICK[name], "epochs": 1} for name in ("supervised", "shape_prior", "reward_net", "ppo")},
}
"""Without a split test, as a CAMUS folder that is a part of it."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path / "a folder")
    return tmp_path / "a folder"


def printed(out):
    """The commands of an output, by the word before them."""
    lines = re.findall(r"^(\w+) +(\S.*)$", out, re.MULTILINE)
    of_program = len(shlex.split(PROGRAM))
    found = {}
    for word, text in lines:
        if word in ("run", "results", "picture", "table"):
            continue
        tokens = shlex.split(text)
        if word == "watch":
            program, option, folder = tokens
            assert shutil.which(program), program
            assert option == "--logdir"
            assert list(Path(folder).rglob("events.out.tfevents.*")), folder
        else:
            found[word] = tokens[of_program:]
    return found


@pytest.mark.parametrize("config", [SPARS, PPO, RL4SEG, TINY], ids=lambda config: config["paper"])
def test_what_a_training_prints_can_be_run(here, capsys, monkeypatch, config):
    if config["paper"] == "rl4seg":
        count_all(monkeypatch)
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", "config.yaml", "--out", "my run"]) == 0
    commands = printed(capsys.readouterr().out)
    assert list(commands) == ["evaluate", "render", "plot"]
    for command in commands.values():
        assert main(command) == 0, command
        printed(capsys.readouterr().out)
    assert read_results("my run/evaluation/test")
    assert Path("my run/media/curves.png").stat().st_size > 5_000
    assert Path("my run/media/curves.csv").read_text().startswith("metric,name,step,mean,low,high,seeds")
    assert Path("my run/media/episode.gif").stat().st_size > 1_000


def test_a_command_for_several_seeds_names_all_of_them(capsys):
    Path("config.yaml").write_text(yaml.safe_dump(SPARS))
    train = ["train", "--config", "config.yaml", "--seeds", "3", "1", "--out", "many"]
    assert main(train) == 0
    out = capsys.readouterr().out
    folders = ["many/two_words-seed3", "many/two_words-seed1"]
    assert re.findall(r"^run +(.*)$", out, re.MULTILINE) == folders
    commands = printed(out)
    assert commands["evaluate"] == ["evaluate", "--run", *folders]
    assert commands["plot"] == ["plot", "--run", *folders]
    assert [Run.open(folder).config["seed"] for folder in folders] == [3, 1]

    weights = {folder: Run(folder).checkpoint().weights for folder in folders}
    shutil.rmtree(f"{folders[0]}/checkpoints/step_000000000128")  # as if it had been killed on its way
    before = Path(folders[1], "metrics.jsonl").stat().st_mtime_ns
    assert main(train) == 0
    assert {folder: Run(folder).checkpoint().step for folder in folders} == dict.fromkeys(folders, 128)
    for folder, expected in weights.items():
        assert all(value.equal(expected[name]) for name, value in Run(folder).checkpoint().weights.items())
    assert len(Run(folders[1]).metrics()) == len(Run(folders[0]).metrics()), "no line twice"
    assert before <= Path(folders[1], "metrics.jsonl").stat().st_mtime_ns

    for command in ([*commands["evaluate"], "--policies"], commands["plot"]):
        assert main(command) == 0, command
    out = capsys.readouterr().out
    assert "seeds [1, 3]" in out
    table = Path(folders[0], "media", "curves.csv").read_text()
    assert re.search(r"rollout/ep_rew_mean,Two words,128,\S+,\S+,\S+,2\s", table)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seeds", "1", "1"], "seeds is [1, 1] but must name each seed once"),
        (["--seeds", "0", "--export_sb3", "x.zip"], "--seeds trains several runs; leave out --export_sb3"),
        (["--seeds", "0", "-1"], "-1"),
    ],
)
def test_seeds_that_cannot_be_are_refused_before_anything_is_written(here, capsys, more, said):
    Path("config.yaml").write_text(yaml.safe_dump(SPARS))
    assert main(["train", "--config", "config.yaml", *more]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_configuration_has_cases_that_evaluate_and_render_take(path):
    given = yaml.safe_load(path.read_text())
    if path.stem.startswith(("implanted", "best")):
        pytest.skip("needs a folder of real CTs")
    paper = paper_named(given["paper"])
    experiment = experiment_from(paper, experiment_parser(paper).parse_object(given)).resolved()
    if given["paper"] == "ppo":
        env = make_env(experiment.env, {**experiment.settings, **experiment.evaluate_settings}, num_envs=1)
        env.reset()
        return
    data = {"rl4seg": "target", "spars": "env", "rp_pgd": "data", "seat": "data", "apga": "data"}[given["paper"]]
    data = getattr(experiment, data)
    if data.data != "phantom" and getattr(data, "patients", None) is None:
        pytest.skip(f"needs the folder {data.data}")
    if getattr(data, "csv", None) is not None:
        pytest.skip(f"needs the table {data.csv}")
    if given["paper"] == "rl4seg":
        split = split_that_is_evaluated(experiment)
        assert split == "all" or split in echo_splits(experiment.target)
    elif given["paper"] == "rp_pgd":
        assert len(load_images(experiment, f"{experiment.test_split}[:1]"))
    elif given["paper"] == "apga":
        assert len(load_xrays(data, f"{experiment.test_split}[:2]"))
    elif given["paper"] == "seat":
        assert len(load_decathlon(data, f"{experiment.test_split}[:1]"))
    else:
        assert liver_case_ids(experiment.test.of(experiment.env))
