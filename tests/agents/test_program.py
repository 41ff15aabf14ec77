"""The program as a whole: how it is called and calls itself, versions, completion, threads, cache, interruptions."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import segarena
import torch
from segarena.agents import program, threads
from segarena.agents.command_line import main
from segarena.agents.commands import COMMANDS
from segarena.datasets.cache import cached

ROOT = Path(segarena.__file__).parent


@pytest.mark.parametrize(
    ("argv0", "called"),
    [
        ("/usr/local/bin/segarena-rl", "segarena-rl"),
        ("segarena-rl.exe", "segarena-rl"),
        ("run_rl.py", "python run_rl.py"),
        ("../my driver.py", "python '../my driver.py'"),
        (str(Path(program.__file__).parents[1] / "__main__.py"), "python -m segarena"),
        ("/lib/pytest/__main__.py", "python run_rl.py"),
        ("", "python run_rl.py"),
    ],
)
def test_the_program_calls_itself_as_it_was_called(argv0, called):
    assert program.program_of(argv0) == called


@pytest.mark.parametrize(
    ("command", "called"),
    [(["-m", "segarena"], "python -m segarena"), ([str(ROOT / "run_rl.py")], f"python {ROOT / 'run_rl.py'}")],
)
def test_help_names_the_program_and_every_command(command, called, tmp_path):
    done = subprocess.run(
        [sys.executable, *command, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.startswith(f"usage: {called} COMMAND")
    for name, about in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert about in done.stdout
    assert done.stderr == ""


def test_versions_are_printed(capsys):
    assert main(["--version"]) == 0
    expected = f"segarena {segarena.__version__}, torch {torch.__version__}, Python {platform.python_version()}\n"
    assert capsys.readouterr().out == expected


def test_a_shell_completes_commands_options_and_names(capsys, tmp_path):
    assert main(["--print_completion", "bash"]) == 0
    script = capsys.readouterr().out
    for word in ("attack", "--model", "--training.attack", "rp_pgd/phantom"):
        assert word in script
    for word in ("--ppo.learning_rate", "--warm_start.kind", "spars/demo", "rl4seg/ablation/full", "RL4Seg-Echo-v0"):
        assert word in script
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not here")
    (tmp_path / "ask.sh").write_text(
        f"{script}\nCOMP_WORDS=(segarena-rl train --ppo.lea); COMP_CWORD=2\n"
        "_shtab_segarena_rl; printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run([bash, "ask.sh"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "--ppo.learning_rate" in done.stdout.split()
    ask = (tmp_path / "ask.sh").read_text().replace("train --ppo.lea", "attack --lab")
    (tmp_path / "ask.sh").write_text(ask)
    done = subprocess.run([bash, "ask.sh"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["--labels"]
    assert main(["--print_completion", "cmd"]) == 2
    assert "print_completion is 'cmd' but must be one of 'bash'" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["jsonargparse", "torch"])
def test_a_program_that_is_stopped_while_it_starts_says_so_without_a_traceback(tmp_path, module):
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt\n")
    paths = [str(tmp_path), str(ROOT.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    driver = tmp_path / "run_rl.py"
    driver.write_text((ROOT / "run_rl.py").read_text())
    for start in (["-m", "segarena"], [str(driver)]):
        command = [sys.executable, *start, "play", "--id", "SPARS-LiverCT-v0", "--policy", "random"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, done.stderr.strip()) == (130, "stopped")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    code = "import sys; from segarena.agents.command_line import main; sys.exit(main(['schema', '--paper', 'rl4seg']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()  # long before the first line is written
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert said == ""


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def set_threads(monkeypatch):
    """The numbers that PyTorch is told; it keeps its own."""
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    return told


@pytest.mark.parametrize(
    ("given", "kept", "default", "expected"),
    [(3, None, 1, 3), (3, 2, 1, 3), (None, 2, 1, 2), (None, None, 1, 1), (None, None, 0, os.cpu_count())],
)
def test_the_number_of_threads_is_the_users_else_the_runs_else_the_papers(set_threads, given, kept, default, expected):
    threads.use_threads(given, kept=kept, default=default)
    assert set_threads == [expected]


def test_a_number_of_threads_in_the_environment_comes_before_the_papers(set_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    threads.use_threads(None, default=0)
    assert set_threads == []


def test_another_number_of_threads_than_the_runs_is_said(set_threads, caplog):
    threads.use_threads(4, kept=2)
    assert "computed with 2 threads so far; with 4" in caplog.text


def test_the_number_of_threads_of_a_run_is_read_from_it(tmp_path):
    for text, expected in {'{"threads": 2}': 2, '{"threads": "x"}': None, "[]": None, "{": None, "{}": None}.items():
        (tmp_path / "environment.json").write_text(text)
        assert threads.threads_of(tmp_path) == expected
    assert threads.threads_of(tmp_path / "gone") is None


def test_a_command_computes_with_the_threads_that_it_is_told(capsys, set_threads):
    quick = ["--id", "SPARS-LiverCT-v0", "--policy", "constant0", "--episodes", "2", "--device", "cpu"]
    quick += ["--set", "cases=[phantom_02000]", "score_source=oracle_fraction", "horizon=3"]
    assert main(["play", *quick, "--threads", "2"]) == 0
    assert main(["play", *quick]) == 0
    assert set_threads == [2, 1]
    assert main(["play", *quick, "--threads", "0"]) == 2
    assert "threads is 0 but must be at least 1" in capsys.readouterr().err


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_the_cache_is_shown_and_cleared(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEGARENA_CACHE", str(tmp_path / "cache"))
    assert main(["cache"]) == 0
    assert "total                     0 files        0.0 MB" in capsys.readouterr().out
    for number in range(3):
        cached("volumes", {"number": number}, lambda: {"x": torch.zeros(500_000)})
    cached("scores", {}, lambda: {"x": torch.zeros(10)})
    (tmp_path / "cache" / "mine.txt").write_text("mine")
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert f"folder     {tmp_path / 'cache'}\n" in shown
    assert "volumes                   3 files        6.0 MB\n" in shown
    assert "total                     4 files        6.0 MB\n" in shown
    assert main(["cache", "--clear"]) == 0
    assert "freed                     4 files        6.0 MB\n" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["mine.txt"]
    assert main(["cache"]) == 0
    assert "total                     0 files" in capsys.readouterr().out


# -- a run that is resumed with options -------------------------------------------------------------------------------


def test_a_run_is_its_own_configuration_and_options_change_it(tmp_path, monkeypatch, capsys):
    from segarena.agents.configuration import read_experiment
    from segarena.agents.papers import PAPERS
    from segarena.common.runs import Run

    monkeypatch.chdir(tmp_path)
    assert main(["train", "--paper", "rl4seg", "--print_config"]) == 0
    config = capsys.readouterr().out.replace("seed: 0", "seed: 5", 1).replace("device: auto", "device: cpu", 1)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(config)
    Path("run/environment.json").write_text(json.dumps({"threads": 3}))
    resumed, told = [], []
    row = PAPERS["rl4seg"]
    monkeypatch.setattr(type(row), "resume", lambda self, one, out, *_: resumed.append(one) or Run.open(out))
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    assert main(["train", "--resume", "run", "--reward_data.sim_threshold", "0.25", "--iterations=2"]) == 0
    (experiment,) = resumed
    assert (experiment.seed, experiment.iterations, experiment.reward_data.sim_threshold) == (5, 2, 0.25)
    _, before = read_experiment(Run.open("run"))
    assert (before.iterations, before.network, before.ppo) == (4, experiment.network, experiment.ppo)
    assert told == [3], "the run keeps its number of threads"
    for arguments, said in {
        ("--reward_data.sim_treshold", "0.1"): "did you mean --reward_data.sim_threshold?",
        ("--out", "elsewhere"): "leave out --out",
        ("--paper", "spars"): "--paper is of paper 'spars' but run/config.yaml of 'rl4seg'",
        ("--config", "spars/demo"): "is of paper 'spars' but run/config.yaml of 'rl4seg'",
    }.items():
        assert main(["train", "--resume", "run", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert len(resumed) == 1
    Path("run/config.yaml").write_text(config.replace("paper: rl4seg\n", ""))
    assert main(["train", "--resume", "run"]) == 2
    assert "run/config.yaml names no paper" in capsys.readouterr().err
