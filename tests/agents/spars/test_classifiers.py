"""The configurations of classifiers: their cohorts, their labels, and that an agent plays against them."""

import json
from importlib import resources
from pathlib import Path

import pytest
import segarena
import torch
from segarena.agents.command_line import main
from segarena.agents.configuration import experiment_from, experiment_parser
from segarena.agents.papers import PAPERS
from segarena.agents.spars.training import env_of, trained_classifier
from segarena.agents.sweep import read_sweep
from segarena.classifiers.presence import PaperPresenceNet, supervision_of
from segarena.common.runs import Run
from segarena.datasets.liver.cases import liver_case_ids
from segarena.evaluation.results import read_results

FOLDER = Path(segarena.__file__).parent / "configs" / "spars"
COHORTS = [8, 12, 16, 20, 24]
SMALL = {
    "device": "cpu",
    "env.grid_shape": [24, 16, 16],
    "env.window_size": [8, 8, 4],
    "env.cases": ["phantom_02000"],
    "env.horizon": 4,
    "env.start": "centre",
    "test.cases": ["phantom_03000"],
    "presence.epochs": 1,
    "presence.batches_per_epoch": 1,
    "presence.volumes_per_batch": 2,
    "presence.validation_windows": 2,
    "ppo.total_timesteps": 8,
    "ppo.num_envs": 2,
    "ppo.n_steps": 4,
    "ppo.batch_size": 8,
    "ppo.n_epochs": 1,
    "evaluation.rollouts": 1,
    "evaluation.pictures": 1,
    "examine_every": 0,
}


def options(name, **changes):
    settings = {**SMALL, **changes}
    return [
        *("--config", str(FOLDER / f"{name}.yaml")),
        *(text for key, value in settings.items() for text in (f"--{key}", json.dumps(value).strip('"'))),
    ]


def experiment_of(arguments):
    paper = PAPERS["spars"]
    return experiment_from(paper, experiment_parser(paper).parse_args(arguments)).resolved()


def cohort(number, **changes):
    """The experiment that learns from the first `number` patients."""
    return read_sweep(FOLDER / "sweeps" / "cohorts_paper.yaml", changes).experiments[f"{number} patients"]


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory):
    """A folder with the names of the Decathlon's cases, and nothing in them."""
    folder = tmp_path_factory.mktemp("Task03_Liver")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
        for number in range(131):
            (folder / kind / f"liver_{number}.nii.gz").touch()
    return folder


@pytest.mark.parametrize("data", ["phantom", "decathlon"])
@pytest.mark.parametrize("number", COHORTS)
def test_a_cohort_is_the_first_patients_and_the_next_sixteen_validate(number, data, decathlon):
    experiment = cohort(number)
    env = experiment.env
    if data == "decathlon":
        env = cohort(number, **{"env.data": str(decathlon)}).env
    train, val = (liver_case_ids(choice.of(env)) for choice in (experiment.classifier_train, experiment.validation))
    assert (len(train), len(val)) == (number, 16)
    assert not set(train) & set(val)
    assert not {*train, *val} & {*liver_case_ids(experiment.test.of(env)), *liver_case_ids(env)}
    if data == "decathlon":
        splits = json.loads((resources.files("segarena.datasets.liver") / "splits" / "spars_v1.json").read_text())
        order = splits["classifier_train"] + splits["classifier_val"]
        assert (train, val) == (order[:number], order[number : number + 16])


@pytest.mark.parametrize("number", COHORTS)
def test_the_papers_classifier_is_trained_as_its_program_does(number):
    presence = cohort(number).presence
    assert (presence.network, presence.input_size, presence.batch) == ("paper", (256, 256, 180), "windows")
    assert (presence.patients_per_batch, presence.windows_per_batch) == (4, 40)
    assert (presence.batches_per_epoch, presence.epochs) == (number // 4, 32)
    assert (presence.learning_rate, presence.weight_decay, presence.schedule) == (1e-3, 0, "constant")
    assert presence.flip_probability == presence.hu_shift == presence.hu_scale == 0
    assert presence.gamma == presence.bias_hu == presence.noise_hu == 0


def test_the_papers_classifier_is_trained_in_a_run_and_an_agent_plays_against_it(tmp_path):
    small = {"presence.input_size": [108, 108, 108], "presence.windows_per_batch": 8}
    few = {"classifier_train.split": "classifier_train[:2]", "validation.split": "classifier_train[8:10]"}
    arguments = options("classifier_paper", **small, **few)
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 0
    experiment, run = experiment_of(arguments), Run(tmp_path / "run")
    assert supervision_of(trained_classifier(experiment, run)) == "window"
    (line,) = run.stage("classifier").metrics()
    assert {f"classifier/{name}" for name in ("acc", "auc", "sens", "spec", "precision", "f1", "ece")} <= set(line)
    env = env_of(experiment, run)
    assert isinstance(env.table._net, PaperPresenceNet)
    assert env.table._net.input_size == (108, 108, 108)
    assert bool(env.table.scores.isnan().all())  # lazy
    env.reset()
    env.step(torch.tensor([0]))
    seen = int(env.table.scores.isfinite().sum())
    assert 0 < seen <= 3  # the start, and a move of each


@pytest.mark.parametrize("supervision", ["patient", "slab"])
def test_results_say_from_which_labels_the_scores_come(tmp_path, supervision):
    few = {"classifier_train.split": "classifier_train[:4]", "validation.split": "classifier_val[:2]"}
    arguments = options("mil_patient", **few, **{"presence.supervision": supervision})
    run = tmp_path / "run"
    assert main(["train", *arguments, "--out", str(run)]) == 0
    assert main(["evaluate", "--run", str(run), "--policies", "random"]) == 0
    results = read_results(next((run / "evaluation").iterdir()))
    assert len(results) >= 4
    assert {result.supervision for result in results} == {supervision}
