"""What the usage of docs/apga.md shows can be done: its commands and programs run, at small sizes."""

import re
import shlex
from pathlib import Path

import pytest
from commands import call
from PIL import Image
from xray_toys import fake_hips, fake_mura, picture

PAGE = Path(__file__).resolve().parents[3] / "docs" / "apga.md"
USAGE = PAGE.read_text(encoding="utf-8").partition("\n## Usage\n")[2].partition("\n## ")[0]
PATIENTS = {("train", 0): 20, ("train", 1): 20, ("valid", 0): 2, ("valid", 1): 2}
PHANTOMS = "{train: 24, val: 4, test: 4}"
SMALLER = {
    "apga/phantom": ["--data.size", "32", "--data.phantom_studies", PHANTOMS, "--agent.grid", "8"],
    "apga/mura": [
        *("--data.size", "32", "--agent.grid", "8", "--agent.width", "8"),
        *("--classifier.network", "small_cnn", "--classifier.in_channels", "1"),
    ],
    "ppo/apga_patch": [
        *("--settings", "{split: 'train[:8]', size: 32}"),
        *("--ppo.total_timesteps", "64", "--ppo.num_envs", "4", "--ppo.batch_size", "16"),
    ],
}
"""Options after those of a `train` whose first configuration it is."""
FEWER = ["--classifier.epochs", "1", "--training.epochs", "1"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", USAGE, re.MULTILINE | re.DOTALL)


def commands():
    """Arguments of the program, of every command of the usage in its order."""
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            yield words[1:] if words[0] == "segarena-rl" else words[2:]


def smaller(words):
    """The same command in seconds; ImageNet's weights, which nobody has here, are left out."""
    if words[0] != "train":
        return words
    if "--classifier.imagenet" in words:
        at = words.index("--classifier.imagenet")
        words = words[:at] + words[at + 2 :]
    first = words[words.index("--config") + 1]
    return [*words, *SMALLER[first], *([] if first.startswith("ppo/") else FEWER)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_mura(tmp_path, numbers=PATIENTS)
    for name in ("hip", "my_films"):
        (tmp_path / name).mkdir()
    fake_hips(tmp_path / "hip")
    Image.fromarray(picture(0, 40, 30)).save(tmp_path / "my_films" / "film.png")
    return tmp_path


def test_every_command_runs_in_the_order_of_the_page(folder):
    shown = list(commands())
    assert len(shown) >= 11
    for words in shown:
        assert call(*smaller(words)) == 0, words
    assert (folder / "masks.gif").is_file()
    assert {path.name for path in (folder / "runs").iterdir()} >= {"none", "none_2x", "apga", "apga_20", "elbow", "hip"}
    assert (folder / "predictions" / "film_mask.png").is_file()
    assert (folder / "predictions" / "predictions.csv").is_file()


@pytest.mark.parametrize("mode", ["pixel", "box", "beta", "sequential"])
def test_every_action_mode_has_a_configuration_that_runs(mode, tmp_path):
    config = f"ppo/apga_{mode}"
    settings = f"{{split: 'train[:8]', size: 32, action_mode: {mode}}}"
    smallest = ["--ppo.total_timesteps", "16", "--ppo.num_envs", "4", "--ppo.n_steps", "4", "--ppo.batch_size", "16"]
    assert call("train", "--config", config, "--settings", settings, *smallest, "--out", tmp_path / "run") == 0


def test_every_program_runs(folder):
    shown = blocks("python")
    assert len(shown) >= 2
    for program in shown:
        found = {}
        exec(compile(program.replace("epochs=20", "epochs=1"), PAGE.name, "exec"), found)
        if "few" in found:
            assert found["few"].labels.bincount().tolist() == [20, 20]
        if "maps" in found:
            assert found["maps"].shape == (8, 64, 64)
            assert found["found"]["study_kappa"].low <= found["found"]["study_kappa"].high
