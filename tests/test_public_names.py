"""What `import segarena` gives: the public names, loaded when they are first used."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import segarena

SOURCE = ast.parse(Path(segarena.__file__).read_text(encoding="utf-8"))


def test_every_public_name_is_there_and_shown_by_dir():
    for name, module in segarena._MODULES.items():
        if name == "SparsParallelEnv":
            pytest.importorskip("pettingzoo")
        assert getattr(segarena, name).__name__ == name
        assert getattr(segarena, name).__module__ == f"segarena.{module}"
        assert inspect.getdoc(getattr(segarena, name))
    assert {"SparsEnv", "EchoEnv", "LearnerEnv", "DensePPO", "register", "Entry", *segarena._MODULES} <= set(
        dir(segarena)
    )


def test_type_checkers_are_told_of_the_same_names_and_modules():
    """The imports below TYPE_CHECKING are what mypy and editors see."""
    (told,) = (node for node in SOURCE.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    names = {alias.name: node.module for node in told.body for alias in node.names}
    assert names == segarena._MODULES
    assert all(alias.asname == alias.name for node in told.body for alias in node.names), (
        "re-exported for mypy --strict"
    )


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'SparsGame'"):
        segarena.SparsGame  # noqa: B018


def loaded_by(code, modules):
    """Which of the modules a fresh process has loaded after running `code`."""
    ask = f"import sys; print([name for name in {modules} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{ask}"], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout.splitlines()[-1])


HEAVY = ["monai", "matplotlib", "stable_baselines3", "skimage", "pandas", "tensorboard"]


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import segarena", ["torch", *HEAVY]) == []


def test_making_and_playing_an_environment_loads_no_learner_and_no_plotting():
    code = (
        "import gymnasium as gym, segarena\n"
        "env = gym.make('SPARS-LiverCT-v0', cases=['phantom_02000'], score_source='oracle_fraction')\n"
        "env.reset(seed=0); env.step(0)"
    )
    assert loaded_by(code, HEAVY) == []
