"""Commands on a finished run: evaluation, pictures and films."""

import contextlib
import csv
import io
import re
import shutil
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import yaml
from commands import TINY, assert_refused, call, everything, train
from segarena.agents.experiment import EvaluateOptions
from segarena.agents.spars.baselines import BASELINES, MapBaseline, score_map
from segarena.agents.spars.rollouts import Maps
from segarena.common.runs import Run
from segarena.evaluation.results import read_results

MAPS = (
    *("score map (min)", "score map (mean)", "score map (max)"),
    *("best window", "union of the k best windows"),
)


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """Another copy, evaluated, and what was printed."""
    run = shutil.copytree(trained / "runs" / "tiny-seed0", tmp_path_factory.mktemp("evaluated") / "run")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert call("evaluate", "--run", run) == 0
    return run, out.getvalue()


def test_a_trained_run_is_evaluated(evaluated):
    run, out = evaluated
    results = read_results(run / "evaluation" / "test")
    methods = {result.method for result in results}
    assert {"Tiny", "random", "constant0", "greedy", "blind_walk", "bfs_to_tau", "position prior", *MAPS} == methods
    assert "Dice (%)" in out
    for method in methods:
        assert re.search(rf"^\| {re.escape(method)} ", out, re.MULTILINE)
    assert (run / "evaluation" / "test" / "table.md").read_text().strip() in out
    compared = (run / "evaluation" / "test" / "pairs.md").read_text()
    assert compared.count("\n| ") == 1 + len(methods) * (len(methods) - 1) // 2, "a rule, and a line for each pair"
    assert f"pairs      {run / 'evaluation' / 'test' / 'pairs.md'}" in out
    for result in results:
        assert [case["case_id"] for case in result.cases] == TINY["test"]["cases"]
        assert result.origins == {"phantom": 2}
        assert result.settings["protocol"]["rollouts"] == 2


def test_an_evaluation_draws_every_method(evaluated):
    run, out = evaluated
    pictures = sorted((run / "evaluation" / "test").glob("*.png"))
    assert len(pictures) == len(read_results(run / "evaluation" / "test"))
    for picture in pictures:
        assert f"picture    {picture}" in out
        pixels = imageio.imread(picture)
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 1


def test_an_evaluation_draws_its_cases_in_3d_where_it_is_asked_to(run, capsys, monkeypatch):
    pytest.importorskip("plotly", reason="plotly is not here: pip install 'segarena[viz]'")
    assert call("evaluate", "--run", run, "--policies", "--html") == 0
    printed = re.findall(r"^picture    (\S+\.html)$", capsys.readouterr().out, re.MULTILINE)
    folder = run / "evaluation" / "test"
    assert sorted(map(Path, printed)) == sorted(folder / f"{one.id}.html" for one in read_results(folder))
    for path in map(Path, printed):
        text = path.read_text(encoding="utf-8")
        assert [text.count(f'"name":"{name}"') for name in ("label", "prediction", "organ")] == [1, 1, 1]
        assert "phantom_03000: " in text
        assert "% (whole volume)" in text
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    assert_refused(call("evaluate", "--run", run, "--html"), capsys, "need plotly: pip install 'segarena[viz]'")


def test_an_evaluation_gives_the_same_numbers_again(evaluated, run):
    assert call("evaluate", "--run", run) == 0
    first, second = (read_results(folder / "evaluation" / "test") for folder in (evaluated[0], run))
    for one, other in zip(first, second, strict=True):
        assert one.settings == other.settings
        np.testing.assert_equal(one.cases, other.cases)


def choices(run):
    """The folders of results of a run."""
    return sorted(path.name for path in (run / "evaluation").iterdir() if path.is_dir())


def test_every_choice_of_cases_has_results_of_its_own(evaluated, tmp_path):
    run = shutil.copytree(evaluated[0], tmp_path / "run")
    before = everything(run / "evaluation" / "test")
    alone = ["evaluate", "--run", run, "--policies"]
    assert call(*alone, "--cases", "[phantom_03001]") == 0
    assert call(*alone, "--cases", "[phantom_03002]") == 0
    assert call(*alone, "--cases", "[phantom_03001]") == 0, "the same folder again"
    assert call(*alone, "--cases", "[phantom_03001]", "--out", "elsewhere") == 0
    assert everything(run / "evaluation" / "test") == before
    first, second, test = choices(run)
    assert (first[:20], second[:20], test) == ("cases_phantom_03001_", "cases_phantom_03002_", "test")
    for folder, case in ((run / "evaluation" / first, "phantom_03001"), (Path("elsewhere"), "phantom_03001")):
        results = read_results(folder)
        assert {result.method for result in results} == {"Tiny", "position prior", *MAPS}
        for result in results:
            assert [case["case_id"] for case in result.cases] == [case]
            assert (folder / f"{result.id}.png").is_file()
        assert (folder / "table.md").is_file()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (EvaluateOptions(), EvaluateOptions(split="test")),
        (EvaluateOptions(cases=["a b"]), EvaluateOptions(cases=["a", "b"])),
        (EvaluateOptions(cases=["x" * 99 + "1"]), EvaluateOptions(cases=["x" * 99 + "2"])),
        (EvaluateOptions(split="val"), EvaluateOptions(split="val", cases=["val"])),
        (EvaluateOptions(cases=["../a"]), EvaluateOptions(cases=["a"])),
    ],
)
def test_two_choices_of_cases_have_two_folders(one, other):
    assert one.choice.casefold() != other.choice.casefold()
    assert re.fullmatch(r"\w{4,60}", one.choice)
    assert re.fullmatch(r"\w{4,60}", other.choice)


def test_the_cases_of_every_result_are_a_table_too(evaluated):
    for result in read_results(evaluated[0] / "evaluation" / "test"):
        with (evaluated[0] / "evaluation" / "test" / f"{result.id}.csv").open(newline="") as file:
            first, *lines = csv.reader(file)
        assert first[:3] == ["case_id", "origin", "dice"]
        assert "hd95_mm" in first
        for case, line in zip(result.cases, lines, strict=True):
            row = dict(zip(first, line, strict=True))
            for name, value in case.items():
                assert row[name] == ("" if value is None else str(value)), name


def unfinished(run):
    """The run as if it had been killed on its way: another total in its configuration is what tells."""
    config = Run.open(run).config
    config["ppo"]["total_timesteps"] = 4096
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


@pytest.mark.parametrize("command", ["evaluate", "render"])
def test_a_run_that_is_not_finished_is_refused(run, capsys, command):
    said = "'{}' is not finished: its last checkpoint is at step 128 of 4096; train it further with --resume"
    before = everything(unfinished(run))
    assert_refused(call(command, "--run", run), capsys, said.format(run), "--unfinished of evaluate or render")
    assert everything(run) == before


def test_a_run_that_is_not_finished_is_evaluated_as_such(run, capsys):
    assert call("evaluate", "--run", unfinished(run), "--unfinished", "--policies") == 0
    name = "Tiny (unfinished, step 128 of 4096)"
    results = {result.method: result for result in read_results(run / "evaluation" / "test")}
    assert results.keys() == {name, "position prior", *MAPS}
    for result in results.values():
        assert (result.settings["total_timesteps"], result.settings["unfinished"]) == (128, "step 128 of 4096")
    assert f"| {name} |" in capsys.readouterr().out
    assert call("render", "--run", run, "--unfinished", "--out", "x.gif") == 0


def test_a_finished_run_has_no_word_of_it(evaluated):
    for result in read_results(evaluated[0] / "evaluation" / "test"):
        assert result.settings["total_timesteps"] == 128
        assert "unfinished" not in result.settings


def test_names_that_give_one_file_are_refused(run, capsys):
    config = Run.open(run).config
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "name": "Score Map mean"}))
    said = "'Score Map mean' and 'score map (mean)' would have one file of results"
    assert_refused(call("evaluate", "--run", run), capsys, said)
    assert not (run / "evaluation").exists()


def test_other_reference_policies_may_be_evaluated(run, capsys):
    assert call("evaluate", "--run", run, "--policies", "sweep", "greedy") == 0
    methods = {result.method for result in read_results(run / "evaluation" / "test")}
    assert methods == {"Tiny", "sweep", "greedy", "position prior", *MAPS}
    capsys.readouterr()
    said = "policy is 'sweap' but must be one of 'random', 'constant0', 'greedy', 'sweep', 'blind_walk', 'bfs_to_tau'"
    assert_refused(call("evaluate", "--run", run, "--policies", "sweap"), capsys, said, "did you mean 'sweep'?")


def test_a_run_is_not_called_like_another_row_of_its_table(run, capsys):
    config = Run.open(run).config
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "name": "greedy"}))
    assert_refused(call("evaluate", "--run", run), capsys, "greedy is the name of a run and of another row")


def test_a_new_baseline_of_spars_is_one_row_and_one_function(run, monkeypatch, capsys):
    def nothing(env, nets):
        return Maps(env, torch.zeros_like(score_map(env, "mean").blocks), [{} for _ in env.cases])

    row = MapBaseline("a toy", maps=nothing, supervision="none", included=lambda experiment: experiment.seed == 0)
    monkeypatch.setitem(BASELINES, "toy", row)
    assert call("evaluate", "--run", run, "--policies") == 0
    results = {result.method: result for result in read_results(run / "evaluation" / "test")}
    assert results.keys() == {"Tiny", "position prior", *MAPS, "a toy"}
    assert (results["a toy"].supervision, results["Tiny"].supervision) == ("none", "voxel")
    assert results["a toy"].metrics["dice"] == 0.0 < results["score map (mean)"].metrics["dice"]
    assert re.search(r"^\| a toy +\| none ", capsys.readouterr().out, re.MULTILINE)
    assert call("evaluate", "--run", run, "--cases", "[phantom_02000]", "--policies", "--out", "known") == 0
    modes = {result.method: result.mode for result in read_results("known")}
    assert modes["a toy"] == modes["Tiny"] == "transductive", "the case that the agent was trained on"
    assert modes["score map (mean)"] == "inductive"
    assert call("list") == 0
    assert "toy: a toy" in capsys.readouterr().out
    assert_refused(train("--name", "a toy", "--out", "out"), capsys, "a toy is the name of a run and of another row")
    assert not Path("out").exists()
    assert train("--name", "a toy", "--out", "out", "--seed", "1") == 0, "where the row is not included"


def test_an_episode_is_rendered(run, capsys):
    assert call("render", "--run", run) == 0
    assert re.search(r"episode.gif: \d+ steps, ended by \w+, Dice \d", capsys.readouterr().out)
    frames = imageio.imread(run / "media" / "episode.gif", index=None)
    assert frames.ndim == 4
    assert len(frames) >= 2
    assert frames.std() > 1
    assert call("render", "--run", run, "--case", "phantom_03001", "--out", "deep/other.gif", "--seed", "3") == 0
    assert imageio.imread("deep/other.gif", index=0).std() > 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "--resume", "gone"], "'gone' is no run: it has no config.yaml"),
        (["evaluate", "--run", "gone"], "'gone' is no run: it has no config.yaml"),
        (["evaluate", "--run", "run", "--on_error", "ignore"], "must be one of 'stop', 'skip'"),
        (["evaluate", "--run", "run", "--cases", "[liver_7]"], "no case in 'phantom' is called 'liver_7'"),
        (["evaluate", "--run", "run", "--split", "tset"], "split is 'tset' but 'phantom' has"),
        (["render", "--run", "gone"], "'gone' is no run"),
        (["render", "--run", "run", "--case", "liver_7"], "'liver_7'"),
        (["render", "--run", "run", "--out", "config.yaml/episode.gif"], "config.yaml"),
        (["render", "--run", "run", "--out", "episode.xyz"], "episode.xyz"),
    ],
)
def test_what_cannot_be_evaluated_or_rendered_is_refused(here, run, capsys, command, said):
    before = everything(here)
    assert_refused(call(*command), capsys, said)
    assert everything(here) == before


def test_a_run_without_checkpoint_is_not_evaluated(run, capsys):
    shutil.rmtree(run / "checkpoints")
    assert_refused(
        call("evaluate", "--run", run), capsys, "has no whole checkpoint yet; train it further with --resume"
    )


def test_a_checkpoint_of_another_architecture_is_not_evaluated(run, capsys):
    config = Run.open(run).config
    config["env"]["window_size"] = [8, 8, 8]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    said = "is a checkpoint of another architecture: parameter 'mlp_extractor.policy_net.0.weight' is"
    assert_refused(call("evaluate", "--run", run), capsys, said)


def test_a_run_whose_configuration_was_spoilt_is_refused(run, capsys):
    config = Run.open(run).config
    config["env"]["windw_size"] = config["env"].pop("window_size")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert_refused(call("evaluate", "--run", run), capsys, "windw_size")
