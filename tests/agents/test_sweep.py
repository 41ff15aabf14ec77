"""Sweep files: which experiments they make, what is refused, what is kept; and a sweep without work."""

import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from segarena.agents.command_line import main
from segarena.agents.packaged import FOLDER, config_file, names
from segarena.agents.sweep import read_sweep
from segarena.common.reading import read_yaml
from segarena.datasets.liver.cases import liver_case_ids
from segarena.evaluation.results import read_results
from sweeps import GRID, TINY


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept(content, name="mine.yaml"):
    Path(name).write_text(yaml.safe_dump(content, sort_keys=False))
    return name


def refused(capsys, *arguments):
    """What a refused command says, in one line."""
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    (line,) = [line for line in message.splitlines() if line.startswith("error: ")]
    return line


# -- what a file makes -----------------------------------------------------------------------------------------------


def test_a_grid_makes_every_combination_and_seeds_make_trials(here):
    grid = {"env.threshold": [0.25, 0.5], "env.window_size": [[8, 8, 8], [16, 16, 8]]}
    sweep = read_sweep(kept({**GRID, "grid": grid}), {"ppo.gamma": 0.5})
    said = [
        f"threshold {threshold}, window_size {size}"
        for threshold in (0.25, 0.5)
        for size in ("8 x 8 x 8", "16 x 16 x 8")
    ]
    assert list(sweep.experiments) == said
    last = sweep.experiments[said[-1]]
    assert (last.env.threshold, last.env.window_size, last.ppo.gamma, last.env.cases) == (
        *(0.5, (16, 16, 8), 0.5),
        ["phantom_02000"],
    )
    trials = sweep.trials(here, "command")
    assert [(trial.variant, trial.experiment.seed) for trial in trials] == [
        (name, seed) for seed in (0, 3) for name in said
    ]
    assert trials[0].folder == here / "threshold_0_25_window_size_8_x_8_x_8_seed0"
    assert len({trial.folder for trial in trials}) == 8
    assert sweep.axis() is None, "two keys differ"


def test_a_variant_is_put_after_the_base_and_the_later_wins():
    Path("beside.yaml").write_text("paper: spars\nenv: {threshold: 0.7}\nppo: {gamma: 0.9}\n")
    variants = {
        "plain": {},
        "keys": {"env.threshold": 0.2},
        "file": "beside.yaml",
        "both": ["beside.yaml", {"env": {"threshold": 0.3}}],
        "named": "spars/single_agent",
    }
    made = read_sweep(kept({"paper": "spars", "base": ["spars/features", TINY], "variants": variants}), {}).experiments
    assert {name: one.env.threshold for name, one in made.items()} == dict(
        zip(variants, [0.3, 0.2, 0.7, 0.3, 0.3], strict=True)
    )
    assert [made["both"].ppo.gamma, made["named"].env.n_agents, made["named"].name] == [0.9, 1, "single-agent PPO"]
    assert all(one.env.obs_mode == "features" and one.policy == "flatten_mlp" for one in made.values())


@pytest.mark.parametrize(
    ("variants", "axis"),
    [
        ({"a": {"env.threshold": 0.2}, "b": {"env.threshold": 1}}, ("env.threshold", {"a": 0.2, "b": 1.0})),
        ({"a": {"env.window_size": [8, 8, 8]}, "b": {}}, None),
        ({"a": {"env.accumulate": "both"}, "b": {}}, None),
        ({"a": {"env.tie_reward": 1.0}, "b": {}}, ("env.tie_reward", {"a": 1.0, "b": 0.0})),
        ({"a": {"env.threshold": 0.2}, "b": {"ppo.gamma": 0.5}}, None),
        ({"a": {"evaluation.best": True}, "b": {}}, None),
    ],
)
def test_the_axis_is_the_one_number_in_which_the_variants_differ(variants, axis):
    assert read_sweep(kept({"paper": "spars", "base": [TINY], "variants": variants}), {}).axis() == axis


def test_what_is_kept_is_a_sweep_file_that_makes_the_same(here):
    variants = {"alone": "spars/single_agent", "two": {"env.threshold": 0.5}}
    first = read_sweep(kept({**GRID, "grid": None, "variants": variants}), {"ppo.gae_lambda": 0.5})
    first.keep(here / "sweep")
    text = (here / "sweep" / "sweep.yaml").read_text()
    again = read_sweep(here / "sweep" / "sweep.yaml", {})
    assert asdict(again.file) == asdict(first.file)
    assert again.experiments == first.experiments
    assert again.evaluation == first.evaluation
    again.keep(here / "sweep")
    assert (here / "sweep" / "sweep.yaml").read_text() == text
    changed = read_yaml(here / "sweep" / "sweep.yaml")["variants"]
    assert changed["alone"]["env.n_agents"] == 1
    assert set(changed["two"]) == set(changed["alone"]), "what all variants share stands in the base alone"


@pytest.mark.parametrize("name", names(sweeps=True))
def test_every_packaged_sweep_makes_experiments_that_differ(name):
    sweep = read_sweep(config_file(name, sweep=True), {})
    assert sweep.file.seeds == [0, 1, 2]
    assert len(sweep.experiments) >= 3
    configs = [repr(one) for one in sweep.experiments.values()]
    assert len(set(configs)) == len(configs)
    for one in sweep.experiments.values():
        size, grid = one.env.window_size, one.env.grid_shape
        assert all(2 * side <= whole for side, whole in zip(size, grid, strict=True)), "no room to move"


def test_the_sweeps_of_the_program_have_its_values():
    thresholds = read_sweep(FOLDER / "spars/sweeps/thresholds.yaml", {}).experiments.values()
    assert [one.env.threshold for one in thresholds] == [0.2, 0.3, 0.4, 0.5, 0.6]
    assert {one.env.window_size for one in thresholds} == {(16, 16, 8)}
    windows = read_sweep(FOLDER / "spars/sweeps/windows.yaml", {}).experiments.values()
    assert [one.env.window_size for one in windows] == [(8, 8, 8), (16, 16, 8), (24, 24, 12), (32, 32, 16)]
    assert {(one.env.threshold, one.env.classifier) for one in windows} == {(0.3, "train")}
    cohorts = read_sweep(FOLDER / "spars/sweeps/cohorts.yaml", {}).experiments.values()
    cases = [liver_case_ids(one.classifier_train.of(one.env)) for one in cohorts]
    assert [len(set(one)) for one in cases] == [8, 12, 16, 20, 24]
    assert set(cases[-1]) <= set(liver_case_ids(replace(next(iter(cohorts)).env, split="classifier_train")))
    rewards = read_sweep(FOLDER / "spars/sweeps/rewards.yaml", {}).experiments.values()
    found = [(one.env.terminal_bonus, one.env.tie_reward, one.env.accumulate, one.env.reward) for one in rewards]
    assert found == [
        (10, 0, "learner", "sign"),
        (0, 0, "learner", "sign"),
        (10, 1, "learner", "sign"),
        (10, 0, "both", "sign"),
        (10, 0, "learner", "diff"),
        (10, 0, "learner", "shaped"),
    ]


def test_list_shows_sweeps_apart(capsys):
    assert main(["list", "--configs"]) == 0
    configs, _, sweeps = capsys.readouterr().out.partition("\nsweeps, for sweep --config NAME\n")
    assert "spars/demo" in configs
    assert "sweeps" not in configs
    assert [line.split()[0] for line in sweeps.splitlines()] == names(sweeps=True)


# -- what is refused -------------------------------------------------------------------------------------------------

BAD = {
    "a key that there is not": ({"sedes": [0]}, "a sweep has no sedes; did you mean seeds?"),
    "a key of the experiment": (
        {"grid": {"env.treshold": [1]}},
        "there is no env.treshold; did you mean env.threshold?",
    ),
    "a value that does not fit": (
        {"grid": {"env.threshold": ["high"]}},
        "env.threshold is 'high' but must be a number",
    ),
    "a value out of its range": ({"grid": {"env.threshold": [0.5, 1.5]}}, "threshold is 1.5 but must lie in [0, 1]"),
    "a part of a value": (
        {"paper": "ppo", "base": [{"env": "SPARS-LiverCT-v0"}], "grid": {"settings.horizon": [4, 8]}},
        "settings.horizon is a part of settings, which is one value: give all of it, as settings",
    ),
    "no values": ({"grid": {"env.threshold": []}}, "grid.env.threshold has no values"),
    "a grid without keys": ({"grid": {}}, "the variants are '': each needs a name of its own"),
    "no list of values": ({"grid": {"env.threshold": 0.5}}, "grid is {'env.threshold': 0.5} but must be"),
    "variants and a grid": ({"variants": {"a": {}}}, "has either `variants: {name: {key: value}}` or `grid:"),
    "no variants": ({"grid": None}, "has either `variants:"),
    "two variants of one folder": (
        {"grid": None, "variants": {"a.b": {}, "A b": {}}},
        "the variants are 'a.b', 'A b': each needs a name of its own",
    ),
    "a seed twice": ({"seeds": [1, 1]}, "seeds is [1, 1] but must name at least one seed, and each once"),
    "no seeds": ({"seeds": []}, "seeds is [] but must name at least one seed"),
    "a seed in a variant": ({"grid": {"seed": [1, 2]}}, "has a seed; the seeds of a sweep stand in `seeds`"),
    "a metric that there is not": ({"metric": "dise"}, "metric is 'dise' but must be one of"),
    "an evaluation's key": ({"evaluation": {"polices": []}}, "did you mean 'policies'?"),
    "a configuration that there is not": ({"base": ["spars/fatures"]}, "did you mean spars/features?"),
    "a sweep as its base": ({"base": ["spars/sweeps/windows"]}, "which is a sweep"),
    "a configuration of another paper": ({"base": ["rl4seg/loop"]}, "is of paper 'rl4seg' but --paper of 'spars'"),
    "a paper that there is not": ({"paper": "spar"}, "paper is 'spar' but must be one of"),
    "no case": (
        {"base": [TINY, {"env.cases": ["liver_7"]}]},
        "variant 'threshold 0.25': no case in 'phantom' is called 'liver_7'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_sweep_is_refused_before_anything_is_written(name, here, capsys):
    change, said = BAD[name]
    if said.startswith("variant"):  # experiments are checked when there is something to train them with
        pytest.importorskip("ray.tune", reason="Ray Tune is not here: pip install 'segarena[sweep]'")
    path = kept({**GRID, **change})
    message = refused(capsys, "sweep", "--config", path, "--out", "out")
    assert said in message
    assert sorted(one.name for one in here.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs either --config NAME or FILE, or --resume FOLDER"),
        (["--resume", "gone"], "'gone' is no sweep: it has no sweep.yaml"),
        (["--config", "mine.yaml", "--at_once", "0"], "at_once is 0 but must be at least 1"),
        (["--config", "mine.yaml", "--retries", "-1"], "retries is -1 but must be at least 0"),
        (["--config", "mine.yaml", "--set", "env.treshold=1"], "there is no env.treshold; did you mean env.threshold?"),
        (
            ["--config", "mine.yaml", "--ray_address", "127.0.0.1:9"],
            "ray_address is '127.0.0.1:9', where no Ray cluster answers",
        ),
        (["--config", "spars/phantom"], "which is a configuration: `train` takes it"),
        (["--config", "spars/sweeps/windos"], "no packaged sweep; did you mean spars/sweeps/windows?"),
    ],
)
def test_a_wrong_command_is_refused(arguments, said, capsys):
    kept(GRID)
    assert said in refused(capsys, "sweep", *arguments)
    assert not Path("runs").exists()


def test_train_says_that_a_sweep_is_no_configuration(capsys):
    said = refused(capsys, "train", "--config", "spars/sweeps/windows")
    assert "which is a sweep: `sweep --config spars/sweeps/windows` trains it" in said


def test_without_ray_it_says_how_to_install_it(monkeypatch, capsys):
    for name in ("ray", "ray.tune"):
        monkeypatch.setitem(sys.modules, name, None)
    said = refused(capsys, "sweep", "--config", kept(GRID), "--out", "out")
    assert said == "error: a sweep needs Ray Tune: pip install 'segarena[sweep]'"
    assert not Path("out").exists()


# -- trials and the page ---------------------------------------------------------------------------------------------


def test_trials_are_runs_and_a_sweep_without_work_needs_no_ray(here, monkeypatch, capsys):
    sweep = read_sweep(kept({**GRID, "metric": "recall", "seeds": [3]}), {})
    folder = here / "out"
    sweep.keep(folder)
    trials = sweep.trials(folder, "the command")
    assert not any(trial.finished for trial in trials)
    for trial in trials:
        trial.run(threads=1)
    assert all(trial.finished for trial in trials)
    assert main(["train", "--config", str(trials[1].folder / "config.yaml"), "--out", "alone"]) == 0
    assert main(["evaluate", "--run", "alone", "--policies"]) == 0
    same = [
        {one.method: one.cases for one in read_results(where)}
        for where in (trials[1].results, Path("alone/evaluation/test"))
    ]
    assert same[0] == same[1], "as train and evaluate make it"
    assert {one.command for one in read_results(trials[0].results)} == {"the command"}

    monkeypatch.setitem(sys.modules, "ray", None)
    capsys.readouterr()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["sweep", "--config", "mine.yaml", "--out", "out"]) == 0
    assert capsys.readouterr().out == "page       out/index.md\n"
    assert main(["sweep", "--resume", "out"]) == 0
    after = {path for path in folder.rglob("*") if path.is_file()}
    assert {path.name for path in after - before.keys()} == {"index.md", "recall.png"}
    assert all(path.read_bytes() == content for path, content in before.items())
    page = (folder / "index.md").read_text()
    assert "![Recall against env.threshold](recall.png)" in page
    sections = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert sections[0] == "Tiny"
    maps = {f"score map ({reduce})" for reduce in ("min", "mean", "max")}
    assert set(sections[1:]) == {"position prior", *maps, "best window", "union of the k best windows"}
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| thr")] == [
        "threshold 0.25",
        "threshold 0.5",
    ] * len(sections)

    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert "metric is 'recall' there but 'dice' here" in refused(
        capsys, "sweep", "--config", kept(GRID), "--out", "out"
    )


def test_a_folder_of_another_sweep_is_refused_with_the_difference(here, capsys):
    read_sweep(kept(GRID), {}).keep(here / "out")
    for change, said in [
        ({"ppo.gamma=0.5"}, "base.ppo.gamma is 0.99 there but 0.5 here"),
        ({"env.threshold=0.5"}, "base.env.threshold is 'absent' there but 0.5 here"),
    ]:
        message = refused(capsys, "sweep", "--config", "mine.yaml", "--out", "out", "--set", *change)
        assert f"out is 'out', which holds another sweep: {said}; choose another --out" in message
    path = kept({**GRID, "name": "mine", "seeds": [0]}, "other.yaml")
    assert "seeds is '[0, 3]' there but '[0]' here" in refused(capsys, "sweep", "--config", path, "--out", "out")
    (here / "full").mkdir()
    (here / "full" / "a.txt").touch()
    assert "which is not empty" in refused(capsys, "sweep", "--config", "mine.yaml", "--out", "full")
