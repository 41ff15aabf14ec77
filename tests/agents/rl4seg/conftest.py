"""Fixtures of RL4Seg's tests: runs that several files look at are trained once."""

import contextlib
import functools
import io
import shutil
from pathlib import Path

import pytest
import torch
from rl4seg_runs import QUICK, TINY, call, count_all, prepared, trained
from segarena.agents import configuration
from segarena.agents.commands import train
from segarena.rewards.corrector import Corrector


@pytest.fixture(scope="module", autouse=True)
def one_parser():
    """The command line takes half a second to build, and is needed a hundred times."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((train, "parser"), (configuration, "experiment_parser")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


@pytest.fixture
def all_valid(monkeypatch):
    """Every mask is valid, and its own correction: an untrained network will do."""
    count_all(monkeypatch)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The run of TINY; never changed."""
    folder = tmp_path_factory.mktemp("tiny")
    return trained(folder, TINY, "--export_sb3", folder / "policy.zip")


@pytest.fixture(scope="session")
def evaluated(tiny, tmp_path_factory):
    """A copy of it, evaluated, and what was printed."""
    run = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("evaluated") / "run"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert call("evaluate", "--run", run) == 0
    return run, out.getvalue()


@pytest.fixture
def copied(tiny, tmp_path):
    """A copy of it to be changed, without what only an unfinished stage needs."""
    return Path(shutil.copytree(tiny, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard")))


@pytest.fixture
def recorded(tmp_path):
    """QUICK on two prepared sets; nothing in the target has a mask."""
    source = prepared(tmp_path / "source", "a", {"train": 2, "val": 1}, labelled=("train", "val"))
    target = prepared(tmp_path / "target", "b", {"train": 1, "val": 1, "test": 1, "pred": 3})
    domains = {"source": {"data": str(source), "size": 32}, "target": {"data": str(target), "size": 32}}
    return {**QUICK, **domains}


@pytest.fixture(scope="session")
def quick(tmp_path_factory):
    """The run of QUICK."""
    with pytest.MonkeyPatch.context() as patch:
        count_all(patch)
        return trained(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.fixture
def half_gold(monkeypatch, all_valid):
    """Every second mask is gold, and the others are corrected, to something else."""
    monkeypatch.setattr(Corrector, "__call__", lambda self, masks: 2 - masks)
    alike = lambda a, c, kind: (torch.arange(len(a)) + 1) % 2  # noqa: E731
    monkeypatch.setattr("segarena.rewards.reward_data.similarity", alike)
