"""The folder in which every command of these tests is called, and runs that were trained once for all of them."""

import shutil
from pathlib import Path

import pytest
import yaml
from commands import TINY, train


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working folder but for config.yaml, which holds TINY."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path


@pytest.fixture(scope="session")
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
