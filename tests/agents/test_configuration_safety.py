"""A configuration holds values, never code."""

import sys

import pytest
from segarena.agents.command_line import main
from segarena.agents.configuration import experiment_parser
from segarena.agents.papers import PAPERS


@pytest.mark.parametrize(
    "text",
    [
        "env: planted.Mark",
        "env: {class_path: planted.Mark}",
        "test: {class_path: planted.Mark}",
        "ppo: {class_path: planted.Mark, init_args: {}}",
        "env: {implant_lesions: {class_path: planted.Mark}}",
        "env: {implant_lesions: planted.Mark}",
    ],
)
def test_a_configuration_that_names_code_is_refused_and_the_code_does_not_run(tmp_path, monkeypatch, capsys, text):
    (tmp_path / "planted.py").write_text("open('ran', 'w').close()\nclass Mark: pass\n")
    (tmp_path / "config.yaml").write_text(f"paper: spars\n{text}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    try:
        status = main(["train", "--config", "config.yaml", "--out", "out"])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert not (tmp_path / "ran").exists(), "the module of the configuration was imported"
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err


def test_a_nested_part_of_a_configuration_is_still_read(tmp_path):
    (tmp_path / "config.yaml").write_text("paper: spars\nenv: {data: x, implant_lesions: {number: [2, 4]}, copies: 3}")
    options = experiment_parser(PAPERS["spars"]).parse_args(["--config", str(tmp_path / "config.yaml")])
    assert list(options.env.implant_lesions.number) == [2, 4]
