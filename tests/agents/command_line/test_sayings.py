"""What the command line prints: configurations, help and lists."""

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import segarena
import yaml
from commands import call, train
from segarena.agents.papers import PAPERS, POLICIES
from segarena.agents.spars.config import SparsExperiment
from segarena.envs import ENVIRONMENTS


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
