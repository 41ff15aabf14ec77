"""The tutorials are true: what a reader copies from a page, in its order, runs in an empty folder.

A block with a title is a file; a block of bash is run, line by line; a block of Python without a title is a program.
"""

import csv
import os
import re
import shlex
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import segarena
from segarena.agents.command_line import main
from segarena.evaluation.results import read_results
from segarena.evaluation.robustness_results import read_attack_results

TUTORIALS = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
PACKAGE = Path(segarena.__file__).parents[1]
"""Where other processes find the package, installed or not."""
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    title: str
    text: str


def blocks_of(page):
    return [Block(*found) for found in BLOCK.findall((TUTORIALS / page).read_text(encoding="utf-8"))]


def follow(page, folder):
    """Do what the page says, in the folder, which is the current one."""
    for block in blocks_of(page):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), {"__name__": "__main__"})
        elif block.language == "bash":
            commands = [shlex.split(line, comments=True) for line in block.text.splitlines()]
            for program, same in groupby(commands, key=lambda words: words[0]):
                run(program, [words[1:] for words in same], folder / "installed")


def run(program, commands, installed):
    """Some commands of one program, each given by its arguments; those of the package in one process, so that PyTorch
    is imported once: in this one, or, once something is installed, in another, which finds it."""
    if program == "segarena-rl" and not installed.exists():
        assert [main(arguments) for arguments in commands] == [0] * len(commands)
        return
    if program == "segarena-rl":
        code = f"from segarena.agents.command_line import main; assert not any([main(a) for a in {commands!r}])"
        commands = [["-c", code]]
    elif program == "pip":
        pytest.importorskip("setuptools", minversion="77")
        offline = ["--no-deps", "--no-build-isolation", "--target", str(installed)]
        commands = [["-m", "pip", *arguments, *offline] for arguments in commands]
    else:
        assert program == "python", f"{program}: the test does not know this command"
    for arguments in commands:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{program} {arguments}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE))
    return tmp_path


def test_every_block_of_a_tutorial_is_known():
    pages = sorted(path.name for path in TUTORIALS.glob("*.md"))
    assert pages == [
        "is_your_segmenter_robust.md",
        "rl4seg_on_your_scanner.md",
        "spars_on_your_ct.md",
        "your_own_environment.md",
    ]
    for page in pages:
        blocks = blocks_of(page)
        fences = (TUTORIALS / page).read_text(encoding="utf-8").count("```")
        assert 2 * len(blocks) == fences, f"{page}: a block that is not run"
        assert {block.language for block in blocks if not block.title} <= {"python", "bash", "text"}


def test_spars_on_your_ct(folder, capsys):
    follow("spars_on_your_ct.md", folder)
    assert "voxels above the threshold" in capsys.readouterr().out
    methods = {result.method for path in results_below(folder) for result in read_results(path)}
    assert {"SPARS", "score map (mean)", "greedy"} <= methods
    ct, score = (nib.load(folder / name) for name in ("new/case08.nii.gz", "masks/case08_score.nii.gz"))
    assert score.shape == ct.shape
    assert np.array_equal(score.affine, ct.affine)
    assert score.get_fdata().max() > 0
    assert table_of(folder / "masks")[0]["id"] == "case08"
    assert (folder / "masks" / "case08_slices.png").is_file()


def test_rl4seg_on_your_scanner(folder, capsys):
    follow("rl4seg_on_your_scanner.md", folder)
    assert "broken rules: [" in capsys.readouterr().out
    methods = {result.method for path in results_below(folder) for result in read_results(path)}
    assert {"source only", "AdaBN", "RL4Seg"} <= methods
    assert table_of(folder / "masks")[0]["id"] == "p00_4CH_ED"
    for kind in ("mask", "doubt", "overlay"):
        assert (folder / "masks" / f"p00_4CH_ED_{kind}.png").is_file()


def test_is_your_segmenter_robust(folder, capsys):
    follow("is_your_segmenter_robust.md", folder)
    table = capsys.readouterr().out
    assert all(f"| {attack} " in table for attack in ("clean", "fgsm", "bim2", "worst case"))
    results = read_attack_results(folder / "robustness")
    assert {(one.attack, one.eps) for one in results} >= {("pgd_20", "2/255"), ("pgd_20", "8/255"), ("clean", "0")}
    assert (folder / "robustness" / "index.md").is_file()


def test_your_own_environment(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "installed"), str(PACKAGE)]))
    try:
        follow("your_own_environment.md", folder)
    finally:
        sys.modules.pop("threshold", None)
    code = next(block.text for block in blocks_of("your_own_environment.md") if block.title.endswith(".py"))
    assert len([line for line in code.splitlines() if line.strip()]) <= 50
    results = [result for path in results_below(folder) for result in read_results(path)]
    returns = {result.method: result.metrics["return"] for result in results}
    assert returns["random"] + 0.1 < returns["learner"] < returns["climb"]
    assert list(folder.glob("runs/threshold/media/*.gif"))


def table_of(folder):
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def results_below(folder):
    """Folders of the results of a run."""
    return {path.parent for path in folder.glob("runs/*/evaluation/**/*_seed0.json")}
