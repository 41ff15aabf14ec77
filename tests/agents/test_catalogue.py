"""What is said of environments and papers without importing them is what they are; schemas and packaged files agree."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from jsonschema import Draft202012Validator
from segarena.agents import catalogue
from segarena.agents.command_line import main
from segarena.agents.commands import COMMANDS
from segarena.agents.packaged import FOLDER, config_file, names, packaged
from segarena.agents.papers import PAPERS
from segarena.agents.refusals import one_line
from segarena.agents.schema import keys, misfit, misfit_at
from segarena.envs import ENVIRONMENTS


def test_the_catalogue_is_that_of_the_code():
    made = json.loads(json.dumps(catalogue.made_from_code()))
    kept = json.loads(catalogue.FILE.read_text(encoding="utf-8"))
    assert kept == made, "a field, space, policy or baseline has changed: run `python -m segarena.agents.catalogue`"


@pytest.mark.parametrize("env_id", catalogue.own_environments())
def test_the_listed_spaces_are_those_of_the_default_environment(env_id):
    env = gym.make(env_id)
    said = catalogue.spaces_of(env_id)
    for kind, space in (("observations", env.observation_space), ("actions", env.action_space)):
        numpy = {"uint8": np.uint8, "float32": np.float32, "int64": np.int64}
        scope = {**vars(spaces), **numpy, "inf": np.inf, "state": "state", "windows": "windows"}
        text = said[kind].replace("windows:", "windows=").replace("state:", "state=")
        assert eval(text, scope) == space


def test_many_choices_of_one_size_are_said_in_short():
    assert catalogue.space_text(spaces.MultiDiscrete([3] * 4096)) == "MultiDiscrete([3] * 4096)"
    assert catalogue.space_text(spaces.MultiDiscrete([3, 2])) == "MultiDiscrete([3 2])"
    inner = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.MultiDiscrete([5, 5])})
    assert catalogue.space_text(inner) == "Dict(a: Discrete(2), b: MultiDiscrete([5] * 2))"


# -- configurations that come with the package -----------------------------------------------------------------------


def test_every_packaged_configuration_has_a_name_a_paper_and_a_sentence(capsys):
    rows = [*packaged(), *packaged(sweeps=True)]
    assert [row.name for row in rows] == [*names(), *names(sweeps=True)]
    assert len(rows) == len(list(FOLDER.rglob("*.yaml"))) > 30
    for row in rows:
        assert row.paper == row.name.split("/")[0]
        assert 20 < len(row.about) < 250, row
        assert row.about.endswith(".") or ":" in row.about, row
    assert main(["list", "--configs"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "/" in line.split(" ")[0]]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line.split()[:2] == [row.name, row.paper]
        assert row.about in line


def test_a_configuration_is_found_by_name_and_a_file_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = str(FOLDER / "spars" / "demo.yaml")
    assert [config_file(text) for text in ("spars/demo", "spars/demo.yaml", "configs/spars/demo.yaml")] == [demo] * 3
    Path("spars").mkdir()
    Path("spars/demo.yaml").write_text("paper: spars\n")
    assert config_file("spars/demo.yaml") == "spars/demo.yaml"
    with pytest.raises(FileNotFoundError, match="did you mean spars/default"):
        config_file("spars/defualt")


def test_a_packaged_configuration_is_read_from_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "spars/features", "--config=spars/single_agent", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["name"], printed["policy"], printed["env"]["n_agents"]) == ("single-agent PPO", "feature_mlp", 1)


# -- schemas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [FOLDER / f"{name}.yaml" for name in names()], ids=lambda path: path.stem)
def test_every_packaged_configuration_obeys_the_schema_of_its_paper(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema = catalogue.schema(config["paper"])
    Draft202012Validator(schema).validate(config)
    assert misfit(schema, config) is None


BAD = {
    "a key that there is not": (
        {"env": {"obsmode": "features"}},
        "there is no env.obsmode; did you mean env.obs_mode?",
    ),
    "a section that there is not": ({"environment": {}}, "there is no environment"),
    "a text for a number": ({"env": {"threshold": "high"}}, "env.threshold is 'high' but must be a number"),
    "a fraction for a whole number": ({"seed": 1.5}, "seed is 1.5 but must be a whole number"),
    "true for a number": ({"seed": True}, "seed is True but must be a whole number"),
    "a wrong choice": ({"policy": "window_cn"}, "did you mean 'window_cnn'?"),
    "a tuple of another length": (
        {"env": {"window_size": [1, 2]}},
        "env.window_size is [1, 2] but must be a list of 3",
    ),
    "a text in a list of numbers": (
        {"ppo": {"net_arch": [64, "x"]}},
        "each of ppo.net_arch is 'x' but must be a whole",
    ),
    "a number for a section": ({"ppo": 3}, "ppo is 3 but must be a section (name: value)"),
    "a number for a truth value": ({"evaluation": {"best": 1}}, "evaluation.best is 1 but must be true or false"),
    "a wrong key of an optional section": (
        {"env": {"implant_lesions": {"numbr": [1, 2]}}},
        "there is no env.implant_lesions.numbr; did you mean env.implant_lesions.number?",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_configuration_breaks_the_schema_and_is_named(what):
    config, said = BAD[what]
    schema = catalogue.schema("spars")
    assert not Draft202012Validator(schema).is_valid({"paper": "spars", **config})
    assert said in str(misfit(schema, {"paper": "spars", **config}))


def test_a_configuration_without_its_paper_or_with_an_unknown_baseline_breaks_the_schema():
    validator = Draft202012Validator(catalogue.schema("rl4seg"))
    assert validator.is_valid({"paper": "rl4seg", "baselines": ["entropy"], "$schema": "rl4seg.schema.json"})
    assert not validator.is_valid({"baselines": []})
    assert not validator.is_valid({"paper": "spars"})
    assert not validator.is_valid({"paper": "rl4seg", "baselines": ["entropie"]})


def test_what_the_dataclasses_take_is_not_refused_by_the_schema():
    schema = catalogue.schema("spars")
    for key, value in {
        "seed": 3.0,
        "name": 3,
        "ppo.learning_rate": "1e-4",
        "ppo.target_kl": None,
        "env.window_size": [16, 16, 8],
        "env.implant_lesions": {"number": [1, 2]},
        "env.cases": ["a", "b"],
    }.items():
        assert misfit_at(schema, key, value) is None, key
    assert {"env", "env.window_size", "env.implant_lesions.number", "ppo.gamma"} <= set(keys(schema))


def test_the_schema_tells_types_defaults_choices_and_help(capsys):
    assert main(["schema", "--paper", "spars"]) == 0
    schema = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(schema)
    assert schema == catalogue.schema("spars")
    step = schema["properties"]["env"]["properties"]["step"]
    assert step == {"type": "integer", "description": "h: length of a move in voxels.", "default": 4}
    assert schema["properties"]["policy"]["enum"] == ["window_cnn", "feature_mlp", "flatten_mlp", "candidates"]


def test_a_configuration_may_name_its_schema(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("$schema: spars.schema.json\npaper: spars\nseed: 5\n")
    assert main(["train", "--config", str(tmp_path / "mine.yaml"), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 5


def test_an_option_that_is_like_none_points_to_help():
    text = one_line("unrecognized arguments: --qqq 3", ["--seed"])
    assert text == "there is no option --qqq; --help prints all of them"


LIGHT = {
    0: (["--help"], ["--version"], ["list"], ["list", "--configs"], ["schema", "--paper", "rl4seg"]),
    2: (
        *([name, "--no_such_option", "3"] for name in COMMANDS if name != "train"),
        ["trian"],
        ["train"],
        ["train", "--config", "spars/demo", "--ppo.lr", "3"],
        ["train", "--config", "spars/dmo"],
        ["train", "--paper", "rl4seg", "--network", "{norm: x}"],
        ["play", "--id", "Spars"],
        ["play", "--id", "SPARS-LiverCT-v0", "--policy", "gredy"],
    ),
}
"""Command lines by exit status."""
HEAVY = ("torch", "stable_baselines3", "monai", "scipy", "matplotlib", "tensorboard")


def test_help_list_and_errors_import_nothing_heavy(tmp_path):
    """PyTorch and all that needs it; by what is imported, since a time would depend on the machine."""
    code = f"""
import contextlib, io, sys
from segarena.agents.command_line import main
from segarena.agents.commands import COMMANDS
for expected, lines in {LIGHT!r}.items():
    for line in lines:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                status = main(line)
            except SystemExit as left:
                status = left.code
        heavy = [name for name in {HEAVY!r} if name in sys.modules]
        assert (status, heavy) == (expected, []), (line, status, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_environments_that_are_listed_are_those_that_are_registered():
    assert set(catalogue.own_environments()) <= ENVIRONMENTS.keys() <= gym.registry.keys()
    assert {name for name in PAPERS if PAPERS.is_own(name)} == {"spars", "rl4seg", "rp_pgd", "seat", "apga", "ppo"}
