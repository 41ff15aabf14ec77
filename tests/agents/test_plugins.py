"""Another package registers environment, reference policies and paper by entry points; a broken one disturbs nobody."""

import json
import os
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest
import segarena
from segarena.common.plugins import Table

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = '''
    """The corridor of the tests, its rules, and a paper that trains plain PPO on it by default."""

    from dataclasses import dataclass, replace

    import newcomer
    from segarena.agents import generic

    Corridor = newcomer.Corridor
    POLICIES = newcomer.RULES


    @dataclass(frozen=True)
    class Experiment(generic.PPOExperiment):
        """One walk."""

        paper: str = "walk"
        name: str = "walker"
        env: str = "Walk-v0"


    PAPER = replace(generic.PAPER, experiment=Experiment)
'''
POINTS = """
    [segarena.environments]
    Walk-v0 = walking:Corridor
    Gone-v0 = no_such_module:Env
    SPARS-LiverCT-v0 = walking:Corridor
    Not a name-v = walking:Corridor
    [segarena.policies]
    Walk-v0 = walking:POLICIES
    Gone-v0 = no_such_module:POLICIES
    [segarena.papers]
    walk = walking:PAPER
    torn = walking:NO_SUCH_NAME
"""
REGISTERED = """
import sys
import gymnasium as gym
adapters = "segarena.envs.adapters"
vector, settings = f"{adapters}:make_batch", {"env_class": "walking:Corridor"}
gym.register("Stroll-v0", entry_point=f"{adapters}:make_single", vector_entry_point=vector, kwargs=settings)
from segarena.agents.command_line import main
sys.exit(main(["list"]))
"""
"""Lists, where somebody has registered an environment with Gymnasium before."""
ONE_BY_ONE = """
import contextlib, io, json, sys
from segarena.agents.command_line import main
for arguments in json.loads(sys.argv[1]):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(arguments)
    print(json.dumps([status, out.getvalue(), error.getvalue()]))
"""
"""Some commands in one process; status, output and errors of each."""
BROKEN = [
    (["train", "--paper", "torn"], "paper 'torn' of package walking 1.2 (walking:NO_SUCH_NAME) cannot be loaded"),
    (["play", "--id", "Gone-v0"], "environment 'Gone-v0' of package walking 1.2 (no_such_module:Env) cannot be"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the distribution "walking 1.2", as pip leaves one."""
    site = tmp_path_factory.mktemp("site")
    (site / "walking.py").write_text(textwrap.dedent(PACKAGE))
    (site / "walking-1.2.dist-info").mkdir()
    (site / "walking-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: walking\nVersion: 1.2\n")
    (site / "walking-1.2.dist-info" / "entry_points.txt").write_text(textwrap.dedent(POINTS))
    return site


def program(site, cwd, *arguments, start=("-m", "segarena")):
    """What `python -m segarena` makes of the arguments, with the distribution installed."""
    paths = [str(site), str(TESTS), str(Path(segarena.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def test_a_package_is_listed_and_what_is_broken_of_it_is_named(site, tmp_path):
    done = program(site, tmp_path, start=("-c", REGISTERED))
    assert "Traceback" not in done.stderr
    assert done.returncode == 1, "something was left out"
    walk = done.stdout[done.stdout.index("Walk-v0") :]
    assert "  package       walking 1.2\n" in walk
    assert "  observations  Box(0.0, 1.0, (2,), float32)\n" in walk
    assert "  policy        to the door: The way.\n" in walk
    assert "Stroll-v0\n  paper         registered with Gymnasium\n" in done.stdout
    assert "paper walk\n  package       walking 1.2\n  experiment    One walk.\n" in done.stdout
    assert "left out   Gone-v0 cannot be made: ValueError: env_class (no_such_module:" in done.stderr
    assert "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'" in done.stderr
    torn = "left out   paper 'torn' of package walking 1.2 (walking:NO_SUCH_NAME) cannot be loaded: AttributeError"
    assert torn in done.stderr
    taken = "environment 'SPARS-LiverCT-v0' of package walking 1.2 is left out: there is an environment of this id"
    assert taken in done.stderr
    assert "environment 'Not a name-v' of package walking 1.2 is left out" in done.stderr
    assert "\nNot a name-v" not in done.stdout
    assert "policy        bfs_to_tau: " in done.stdout, "the package's own are as they were"


def test_the_program_trains_what_a_package_adds(site, tmp_path):
    quick = "--ppo.total_timesteps", "64", "--ppo.num_envs", "4", "--ppo.n_steps", "8", "--ppo.batch_size", "16"
    trained = program(site, tmp_path, "train", "--paper", "walk", "--device", "cpu", "--out", "run", *quick)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "config.yaml").read_text().startswith("paper: walk\nname: walker\n")
    assert "python -m segarena evaluate --run run" in trained.stdout.replace(str(Path(sys.executable).parent) + "/", "")

    wrong = program(site, tmp_path, "train", "--paper", "walk", "--ppo.lr", "3")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 3), wrong.stderr  # two environments that are left out
    assert "paper 'walk' has no option --ppo.lr; did you mean --ppo.learning_rate?" in wrong.stderr


def test_what_a_package_adds_is_played_and_what_is_broken_is_refused_with_its_name(site, tmp_path):
    play = ["play", "--id", "Walk-v0", "--episodes", "5", "--device", "cpu"]
    commands = json.dumps([play, *(arguments for arguments, _ in BROKEN)])
    done = program(site, tmp_path, commands, start=("-c", ONE_BY_ONE))
    assert done.returncode == 0, done.stderr
    (status, out, error), *refused = map(json.loads, done.stdout.splitlines())
    assert status == 0, error
    assert "| to the door " in out
    for (status, _, error), (_, said) in zip(refused, BROKEN, strict=True):
        assert status == 2
        assert said in error
        assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_row_is_imported_when_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(metadata, "entry_points", lambda group: ())
    table = Table("number", "no.such.group", {"e": "math:e", "gone": "math:gone"})
    assert (list(table), len(table), "e" in table, "pi" in table) == (["e", "gone"], 2, True, False)
    assert not table.is_loaded("e")
    assert table["e"] == pytest.approx(2.718, abs=0.001)
    assert table.is_loaded("e")
    assert table.is_own("e")
    with pytest.raises(ValueError, match=r"number 'gone' \(math:gone\) cannot be loaded: AttributeError"):
        table["gone"]
    with pytest.raises(KeyError):
        table["pi"]
    table["e"] = 3.0
    assert table["e"] == 3.0
    assert not table.is_own("e"), "another row took its place"
    del table["e"]
    assert list(table) == ["gone"]


def test_the_papers_are_loaded_when_they_are_used():
    code = """
import sys
from segarena.agents.papers import PAPERS
assert list(PAPERS)[:6] == ["spars", "rl4seg", "rp_pgd", "seat", "apga", "ppo"]
assert "torch" not in sys.modules
assert PAPERS["ppo"].experiment.__name__ == "PPOExperiment"
assert "segarena.agents.rl4seg.training" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
