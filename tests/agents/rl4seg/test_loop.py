"""RL4Seg as a whole, from the command line, on phantoms of 32 pixels: trained, interrupted, evaluated, shown, refused.

TINY is trained once, with all that it is compared with, and its source network is good enough to draw valid hearts.
QUICK is trained often; where it is, every mask counts as valid and as its own correction (`all_valid`).
"""

import contextlib
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

import imageio.v3 as imageio
import nibabel as nib
import numpy as np
import pytest
import segarena
import torch
import yaml
from safetensors.torch import load_file
from segarena.agents import command_line
from segarena.agents.command_line import main, read_experiment
from segarena.agents.dense_ppo.ppo import DensePPO
from segarena.agents.papers import PAPERS
from segarena.agents.rl4seg import stages as rl4seg_stages
from segarena.agents.rl4seg import training as rl4seg
from segarena.agents.rl4seg.config import RL4SegExperiment
from segarena.agents.rl4seg.context import Context
from segarena.common import checkpoints, fitting
from segarena.common.networks import load_network, save_network
from segarena.common.runs import Run
from segarena.datasets.echo.phantom import echo_phantom
from segarena.evaluation.results import read_results
from segarena.rewards.corrector import Corrector
from segarena.rewards.echo_validity import valid_masks
from segarena.segmenters.inference import segment
from segarena.segmenters.unet import UNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TINY = {
    "paper": "rl4seg",
    "name": "Tiny",
    "seed": 3,
    "device": "cpu",
    "source": {"size": 32, "phantom_patients": {"train": 6, "val": 2, "test": 0, "pred": 0}},
    "target": {"vendor": "b", "size": 32, "phantom_patients": {"train": 2, "val": 1, "test": 2, "pred": 5}},
    "network": {"init_channels": 8},
    "supervised": {"epochs": 30, "batch_size": 8, "learning_rate": 0.005},
    "shape_prior": {"epochs": 10, "init_channels": 4, "batch_size": 8, "learning_rate": 0.005, "attribute_weight": 1.0},
    "iterations": 2,
    "initial_images": 4,
    "new_images": 12,
    "reward_data": {"sim_threshold": 0.2},
    "reward_net": {"epochs": 2},
    "ppo": {"epochs": 2, "learner": {"n_epochs": 2}},
    "methods": [
        "entropy", "gold_self_training", "corrected_self_training", "tist", "udas", "policy_gradient", "oracle_rl",
        "target_supervised", "ensemble", "mc_dropout",
    ],
    "entropy": {"epochs": 1},
    "tist": {"epochs": 2},
    "udas": {"head_epochs": 1, "epochs": 1},
    "evaluation": {"mc_passes": 2, "tta_passes": 2, "ensemble": 2, "pictures": 1},
}  # fmt: skip
QUICK = {
    "paper": "rl4seg",
    "name": "Quick",
    "device": "cpu",
    "source": {"size": 32, "phantom_patients": {"train": 2, "val": 1, "test": 0, "pred": 0}},
    "target": {"vendor": "b", "size": 32, "phantom_patients": {"train": 1, "val": 1, "test": 1, "pred": 3}},
    "network": {"init_channels": 2},
    "supervised": {"epochs": 2, "batch_size": 4},
    "shape_prior": {"epochs": 2, "init_channels": 1, "latent": 8},
    "iterations": 2,
    "initial_images": 2,
    "new_images": 7,
    "reward_net": {"epochs": 2},
    "ppo": {"epochs": 2, "batch": {"c0": 4}, "learner": {"n_epochs": 2}},
    "entropy": {"epochs": 1},
    "tist": {"epochs": 2},
    "udas": {"head_epochs": 1, "epochs": 1},
    "evaluation": {"pictures": 1},
}
LOOP = ["supervised", "shape_prior", "adabn"]
LOOP += [f"iteration_{i}/{part}" for i in (1, 2) for part in ("reward_data", "reward_net", "ppo")]
CONFIGS = Path(segarena.__file__).parent / "configs" / "rl4seg"


@pytest.fixture(scope="module", autouse=True)
def one_parser():
    """The command line takes half a second to build, and is needed a hundred times."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parser", "experiment_parser"):
            patch.setattr(command_line, name, functools.cache(getattr(command_line, name)))
        yield


def call(*arguments):
    """Exit status of a command."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code


def merged(config, changes):
    """A nested configuration with some values changed: {"ppo.epochs": 0}."""
    config = json.loads(json.dumps(config))
    for name, value in changes.items():
        *path, last = name.split(".")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return config


def train(folder, config, *arguments, **changes):
    """Exit status of training folder / "run"; changes of the configuration: ppo__epochs=0."""
    folder.mkdir(parents=True, exist_ok=True)
    config = merged(config, {name.replace("__", "."): value for name, value in changes.items()})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return call("train", "--config", folder / "config.yaml", "--out", folder / "run", *arguments)


def trained(folder, config, *arguments, **changes):
    """The run, trained."""
    assert train(folder, config, *arguments, **changes) == 0
    return folder / "run"


def stages_of(run):
    """Every finished stage."""
    manifests = [path.parent for path in run.rglob("manifest.json") if path.parent.parent.name != "checkpoints"]
    return sorted(str(path.relative_to(run)) for path in manifests)


def made(run):
    """What the stages made: the configuration in each manifest, and the bits of every tensor in each file."""
    found = {}
    for name in stages_of(run):
        manifest = json.loads((run / name / "manifest.json").read_text())
        tensors = {file: load_file(run / name / file) for file in manifest["sha256"]}
        bits = {
            file: {key: (str(x.dtype), x.shape, x.numpy().tobytes()) for key, x in t.items()}
            for file, t in tensors.items()
        }
        found[name] = (manifest["config"], bits)
    return found


def assert_same(run, expected):
    """Both runs made and logged the same; names the first stage that differs."""
    one, other = made(run), made(expected)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name
    one, other = logged(run), logged(expected)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name


def logged(run):
    """The lines of every metrics.jsonl but for the clock's."""
    return {
        str(path.relative_to(run)): [
            {name: value for name, value in line.items() if not name.startswith("time/")}
            for line in Run(path.parent).metrics()
        ]
        for path in sorted(run.rglob("metrics.jsonl"))
    }


def keys(run, stage):
    """All that a stage logged."""
    return {name for line in Run(run / stage).metrics() for name in line} - {"step"}


def weights(run, stage="iteration_2/ppo"):
    return load_file(run / stage / "segmenter.safetensors")


def differ(one, other):
    return one.keys() != other.keys() or any(not torch.equal(value, other[name]) for name, value in one.items())


def reconfigure(run, changes):
    """Edit the configuration of a run by hand."""
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), changes)))


def context_of(run):
    run = Run.open(run)
    return Context(read_experiment(run)[1].resolved(), run, trains=False)


def everything(folder):
    """Content and time of every file below a folder."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def assert_refused(status, capsys, *said):
    """Exit status 2 and a message that says it all, without traceback."""
    out, message = capsys.readouterr()
    assert status == 2, out + message
    for part in said:
        assert part in re.sub(r"\s+", " ", message)
    assert "Traceback" not in message


def count_all(patch):
    patch.setattr(rl4seg_stages, "valid_masks", lambda masks, **_: torch.ones(len(masks), dtype=torch.bool))
    patch.setattr(Corrector, "__call__", lambda self, masks: masks)


@pytest.fixture
def all_valid(monkeypatch):
    """Every mask is valid, and its own correction: an untrained network will do."""
    count_all(monkeypatch)


# -- the whole way -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The run of TINY; never changed."""
    folder = tmp_path_factory.mktemp("tiny")
    return trained(folder, TINY, "--export_sb3", folder / "policy.zip")


@pytest.fixture(scope="module")
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


def test_a_training_leaves_every_stage_finished_with_its_files(tiny):
    single = ["entropy", "gold_self_training", "corrected_self_training", "policy_gradient", "oracle_rl"]
    single += ["target_supervised", "mc_dropout"]
    methods = [
        f"methods/{name}" for name in (*single, "ensemble/1", "tist", "tist/lv", "tist/myo", "udas", "udas/head")
    ]
    assert stages_of(tiny) == sorted([*LOOP, *methods])
    files = {name: set(json.loads((tiny / name / "manifest.json").read_text())["sha256"]) for name in stages_of(tiny)}
    segmenter = {"segmenter.safetensors"}
    for i in (1, 2):
        assert files[f"iteration_{i}/reward_data"] == {
            f"{kind}.safetensors" for kind in ("triplets", "gold", "corrected")
        }
        assert files[f"iteration_{i}/reward_net"] == {"reward_net.safetensors"}
        assert files[f"iteration_{i}/ppo"] == segmenter | {"critic.safetensors"}
    assert files["supervised"] == files["adabn"] == files["methods/policy_gradient"] == segmenter
    assert files["methods/tist"] == {"lv/weights.safetensors", "myo/weights.safetensors"}
    assert not list(tiny.rglob(".*")), "nothing is left of what was half done"


def test_every_curve_of_the_page_is_logged(tiny):
    """Section 11.5."""
    train_keys = "policy_loss value_loss entropy approx_kl kl_ref clip_fraction ratio_mean adv_mean explained_variance"
    for i in (1, 2):
        shown = keys(tiny, f"iteration_{i}/ppo")
        assert {f"train/{key}" for key in [*train_keys.split(), "gold_fraction", "grad_norm_actor"]} <= shown
        assert {"rollout/ep_rew_mean", "rollout/pixel_reward_p10"} <= shown
        judged = "val_reward_argmax val_reward_sampled dice_endo dice_epi hd_endo hd_epi anat_valid"
        assert {f"eval/{key}" for key in judged.split()} <= shown
        nets = {f"reward_net/{key}" for key in ("val_bce", "ece", "temperature", "n_triplets")}
        assert nets <= keys(tiny, f"iteration_{i}/reward_net")
        counted = {f"reward_data/{key}" for key in ("n_images", "n_valid", "n_corrected", "n_dropped", "n_triplets")}
        assert counted <= keys(tiny, f"iteration_{i}/reward_data")
    assert "segmenter/dice" in keys(tiny, "supervised")


@pytest.mark.parametrize("stage", ["iteration_1/reward_net", "iteration_1/ppo", "methods/oracle_rl"])
def test_tensorboard_has_the_same_curves_and_pictures(tiny, stage):
    shown = EventAccumulator(str(tiny / stage / "tensorboard")).Reload()
    assert set(shown.Tags()["scalars"]) == keys(tiny, stage)
    if stage.endswith("net"):
        return
    assert set(shown.Tags()["images"]) == {"eval/mask", "eval/doubt"}
    for picture in shown.Images("eval/mask"):
        assert imageio.imread(picture.encoded_image_string).std() > 1


def test_gold_masks_are_valid_and_stay_gold(tiny):
    first, second = (load_file(tiny / f"iteration_{i}/reward_data/gold.safetensors") for i in (1, 2))
    assert valid_masks(second["masks"]).all()
    assert first["rows"].min() >= 4, "the initial images give no reward data"
    assert first["rows"].max() < 16 <= second["rows"][len(first["rows"]) :].min()
    assert torch.equal(second["rows"][: len(first["rows"])], first["rows"])
    assert torch.equal(second["masks"][: len(first["rows"])], first["masks"])
    said = [Run(tiny / f"iteration_{i}/reward_data").metrics()[0] for i in (1, 2)]
    assert [line["reward_data/n_images"] for line in said] == [12, 12]
    assert sum(line["reward_data/n_valid"] for line in said) == len(second["rows"]) > len(first["rows"]) > 0


def test_the_policy_that_is_kept_had_the_best_reward_on_validation_images(tiny):
    run, i = context_of(tiny), 1
    lines = [line for line in Run(tiny / "iteration_1/ppo").metrics() if "eval/val_reward_argmax" in line]
    assert [line["step"] for line in lines] == [0, 16, 32]
    masks = segment(run.load(tiny / "iteration_1/ppo"), run.target_val.images)
    worth = rl4seg_stages.reward_function(run, i)(run.target_val.at(torch.arange(len(masks))), masks, None).mean()
    assert float(worth) == pytest.approx(max(line["eval/val_reward_argmax"] for line in lines[1:]), abs=1e-6)


METHODS = {
    "source only": "source",
    "test-time augmentation": "source",
    "AdaBN": "source",
    "corrector": "source",
    "entropy minimisation": "source",
    "gold self-training": "source",
    "gold and corrected self-training": "source",
    "TI-ST": "source",
    "UDAS": "source",
    "policy gradient": "source",
    "oracle RL": "source and target",
    "target-supervised": "target",
    "ensemble": "source",
    "MC dropout": "source",
    "Tiny, softmax": "source",
    "Tiny": "source",
}
"""All of section 10 that is trained here, and the labels that each has seen."""


def test_every_method_has_results_that_say_what_it_has_seen(evaluated):
    run, out = evaluated
    results = read_results(run / "evaluation")
    assert {result.method: result.supervision for result in results} == METHODS
    for result in results:
        assert (result.mode, result.origins, result.seed) == ("inductive", {"phantom": 8}, 3)
        assert {"dice_avg", "dice_endo", "dice_myo", "dice_epi", "hd_epi_mm", "valid", "dice_batch32"} <= set(
            result.metrics
        )
        assert (result.settings["source_images"], result.settings["target_images"]) == (24, 28)
        assert re.search(rf"^\| {re.escape(result.method)} ", out, re.MULTILINE)
    said = {result.method for result in results if "all_ece" in result.metrics}
    assert said == {"test-time augmentation", "ensemble", "MC dropout", "Tiny, softmax", "Tiny"}
    table = (run / "evaluation" / "table.md").read_text()
    assert table.strip() in out
    segmentation, uncertainty = table.split("| Method ")[1:]
    assert "Dice ENDO (%)" in segmentation
    assert "vs source only" in segmentation
    assert "ECE" in uncertainty
    assert all(f"| {name} " in uncertainty for name in said)
    assert "| AdaBN " not in uncertainty


def test_an_evaluation_draws_every_method(evaluated):
    run, out = evaluated
    pictures = sorted((run / "media").glob("*.png"))
    assert len(pictures) == len(METHODS) + 1, "and how well uncertainty is calibrated"
    for picture in pictures:
        assert f"picture    {picture}" in out
        pixels = imageio.imread(picture)
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 1


def test_an_evaluation_changes_no_stage(tiny, evaluated):
    run, _ = evaluated
    assert_same(run, tiny)


def test_images_that_were_adapted_to_are_said_to_be_so(copied):
    reconfigure(copied, {"methods": []})
    patient = context_of(copied).target.groups[0]
    assert call("evaluate", "--run", copied, "--cases", f"[{patient}]") == 0
    results = read_results(copied / "evaluation")
    assert {result.method: result.mode for result in results} == {
        "source only": "inductive",
        "corrector": "inductive",
        "AdaBN": "transductive",
        "Tiny, softmax": "transductive",
        "Tiny": "transductive",
    }
    assert {result.split for result in results} == {patient}
    assert {case["patient"] for result in results for case in result.cases} == {patient}


def test_an_image_is_rendered_as_every_policy_masks_it(copied, capsys):
    assert call("render", "--run", copied) == 0
    assert re.search(r"episode.gif: phantom_b_200000_2CH_ED, policies 0 to 2; Dice lv 0\.\d+", capsys.readouterr().out)
    frames = imageio.imread(copied / "media" / "episode.gif", index=None)
    assert len(frames) == 4, "the image, and three masks"
    assert all(frame.std() > 1 for frame in frames)
    case = "phantom_b_200001_4CH_ES"
    assert call("render", "--run", copied, "--case", case, "--out", copied / "deep" / "other.gif") == 0
    assert imageio.imread(copied / "deep" / "other.gif", index=0).std() > 1
    assert_refused(
        call("render", "--run", copied, "--case", "x"), capsys, "case is 'x' but the test images are phantom"
    )


def test_the_exported_policy_gives_the_same_masks(tiny):
    model = DensePPO.load(tiny.parent / "policy.zip", device="cpu")
    context = context_of(tiny)
    images = context.target.images[:5]
    actions, _ = model.predict((images.float() / 255).numpy(), deterministic=True)
    masks = segment(context.load(tiny / "iteration_2/ppo"), images)
    assert torch.equal(torch.from_numpy(actions).view(5, 32, 32), masks.long())
    assert len(masks.unique()) == 3


# -- stages that are finished --------------------------------------------------------------------------------------


def test_a_finished_run_is_not_trained_again(copied, monkeypatch):
    before = everything(copied)
    for owner, name in ((torch.Tensor, "backward"), (Run, "log"), (Run, "finish"), (DensePPO, "learn")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("a finished stage is made again"))
    assert call("train", "--resume", copied) == 0
    assert everything(copied) == before


def test_a_stage_whose_manifest_is_lost_is_made_the_same_again(copied, tiny):
    lost = ["shape_prior", "iteration_1/reward_data", "iteration_2/reward_net", "iteration_2/ppo", "methods/tist"]
    for name in lost:
        (copied / name / "manifest.json").unlink()
    shutil.rmtree(copied / "methods" / "entropy")
    others = {path: seen for path, seen in everything(copied).items() if not any(name in str(path) for name in lost)}
    assert call("train", "--resume", copied) == 0
    assert_same(copied, tiny)
    assert {path: seen for path, seen in everything(copied).items() if path in others} == others


@pytest.mark.parametrize(
    ("command", "key", "value", "said"),
    [
        (
            ["train", "--resume"],
            "ppo.epochs",
            7,
            "iteration_1/ppo/manifest.json was made with ppo.epochs = 2 but the run ",
        ),
        (["evaluate", "--run"], "target.phantom_patients.pred", 9, "target.phantom_patients.pred = 5 but the run has "),
        (["render", "--run"], "gold.fraction", 0.5, "made with gold.fraction = 1.0 but the run has 0.5"),
    ],
)
def test_a_changed_configuration_is_refused_by_name(copied, capsys, command, key, value, said):
    reconfigure(copied, {key: value})
    before = everything(copied)
    assert_refused(call(*command, copied), capsys, said, "put it back, or start a new run with another --out")
    assert everything(copied) == before


@pytest.mark.parametrize(
    ("command", "harm"),
    [
        (["train", "--resume"], os.unlink),
        (["evaluate", "--run"], lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!")),
    ],
)
def test_a_stage_whose_file_was_changed_or_lost_is_refused_with_advice(copied, capsys, command, harm):
    harm(copied / "iteration_1" / "reward_net" / "reward_net.safetensors")
    before = everything(copied)
    said = "iteration_1/reward_net/reward_net.safetensors is missing or differs from its manifest; delete"
    assert_refused(call(*command, copied), capsys, said, "to make it anew")
    assert everything(copied) == before


@pytest.mark.parametrize(
    ("command", "lost"), [("evaluate", "methods/tist"), ("evaluate", "iteration_2/ppo"), ("render", "supervised")]
)
def test_a_run_that_is_not_finished_is_neither_evaluated_nor_rendered(copied, capsys, lost, command):
    shutil.rmtree(copied / lost)
    before = everything(copied)
    assert_refused(call(command, "--run", copied), capsys, f"is not finished: it lacks {lost}; train it further with")
    assert everything(copied) == before


def test_methods_and_names_may_change_and_runs_of_one_seed_are_compared_in_one_table(copied, tmp_path, capsys):
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    reconfigure(copied, {"methods": ["entropy"]})
    reconfigure(other, {"methods": [], "name": "Other"})
    assert call("evaluate", "--run", copied, other) == 0
    table = (copied / "evaluation" / "table.md").read_text().split("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert rows == [
        "source only", "AdaBN", "corrector", "entropy minimisation", "Tiny, softmax", "Tiny", "Other, softmax", "Other",
    ]  # fmt: skip
    capsys.readouterr()
    assert_refused(call("evaluate", "--run", copied, copied), capsys, "two runs are called 'Tiny' with seed 3")
    reconfigure(other, {"name": "entropy minimisation"})
    said = "entropy minimisation is the name of a run and of another run's method; evaluate them apart"
    assert_refused(call("evaluate", "--run", copied, other), capsys, said)


# -- interrupted and resumed ---------------------------------------------------------------------------------------

RESUMED = merged(QUICK, {"methods": ["tist", "udas", "policy_gradient"]})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of RESUMED that was never interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        count_all(patch)
        patch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
        return trained(tmp_path_factory.mktemp("whole"), RESUMED)


def assert_ends_like(run, expected):
    """Everything that the stages made and logged is the same, and nothing is left of what was half done."""
    assert_same(run, expected)
    kept = [
        {str(path.relative_to(one)) for path in one.rglob("*") if "tensorboard" not in path.parts}
        for one in (run, expected)
    ]
    assert kept[0] == kept[1]


def go_on(run):
    """Resume the run until nothing interrupts it any more; how often that took."""
    experiment = read_experiment(Run.open(run))[1]
    for number in range(1, 99):
        with contextlib.suppress(KeyboardInterrupt):
            rl4seg.resume(experiment, run)
            return number
    pytest.fail("it is interrupted again and again")


def interrupting(patch, owner, name, decide):
    """`decide` sees every call of a function, before and after it, and may raise."""
    original = getattr(owner, name)

    def watched(*arguments, **named):
        decide("before", arguments)
        done = original(*arguments, **named)
        decide("after", arguments)
        return done

    patch.setattr(owner, name, watched)


def test_a_run_that_is_interrupted_in_and_after_every_stage_ends_like_one_that_was_not(
    tmp_path, monkeypatch, all_valid, whole
):
    """In a gradient step; and after the last one, before or after the stage is marked as finished."""
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    struck, steps, inside = set(), Counter(), []

    def strike(*moment):
        if moment not in struck:
            struck.add(moment)
            inside.clear()
            raise KeyboardInterrupt

    def enter_or_leave(when, arguments):
        inside.append(arguments[1]) if when == "before" else inside.pop()

    def step(when, arguments):
        steps[inside[-1], when] += 1
        if steps[inside[-1], when] == 2:
            strike(inside[-1], "training")

    def finish(when, arguments):
        name = str(arguments[0].folder.relative_to(tmp_path / "run"))
        if when == ("before", "after")[stages.index(name) % 2]:
            strike(name, when)

    stages = stages_of(whole)
    interrupting(monkeypatch, Context, "stage", enter_or_leave)
    interrupting(monkeypatch, torch.Tensor, "backward", step)
    interrupting(monkeypatch, Run, "finish", finish)
    assert train(tmp_path, RESUMED) == 130
    go_on(tmp_path / "run")
    assert {name for name, when in struck if when != "training"} == set(stages)
    without = ("adabn", "reward_data", "tist/lv", "tist/myo", "udas/head")  # the last three are within another one
    assert {name for name, when in struck if when == "training"} == {
        name for name in stages if not name.endswith(without)
    }
    assert_ends_like(tmp_path / "run", whole)


EVENTS = [
    (torch.Tensor, "backward"),
    (torch, "save"),
    (checkpoints, "save_file"),
    (Run, "log"),
    (Run, "save"),
    (Run, "finish"),
    (DensePPO, "train"),
    (DensePPO, "collect_rollouts"),
]


def test_a_run_that_is_interrupted_at_drawn_moments_ends_like_one_that_was_not(tmp_path, monkeypatch, all_valid, whole):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    draw = random.Random(5)
    left = [draw.randrange(1, 80)]

    def count(when, arguments):
        left[0] -= 1
        if left[0] == 0:
            left[0] = draw.randrange(1, 120)
            raise KeyboardInterrupt

    for owner, name in EVENTS:
        interrupting(monkeypatch, owner, name, count)
    assert train(tmp_path, RESUMED) == 130
    assert go_on(tmp_path / "run") > 5
    assert_ends_like(tmp_path / "run", whole)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_command_that_is_killed_from_outside_is_resumed_by_a_command(tmp_path):
    """ "Supervised RL", which needs no valid mask, in a process as a user starts it."""
    changes = {"reward": "pixel_accuracy", "iterations": 1, "ppo.epochs": 3}
    expected = trained(tmp_path / "whole", merged(QUICK, changes))
    config, run = tmp_path / "whole" / "config.yaml", tmp_path / "run"
    command = [sys.executable, "-W", "error", "-m", "segarena.run_rl", "train", "--config", config, "--out", run]
    where = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, **where) as process:
        while process.poll() is None and not list(run.glob("iteration_1/ppo/checkpoints/step_*")):
            time.sleep(0.005)
        process.kill()
        said = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, said
    assert call("train", "--resume", run) == 0
    assert_same(run, expected)


# -- what a policy can come to -------------------------------------------------------------------------------------


def collapsed(net):
    """The same network, but background everywhere."""
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    return net


def test_a_policy_that_sees_background_only_ends_the_loop_with_advice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rl4seg_stages, "train_segmenter", lambda net, *_: collapsed(net))
    assert_refused(
        train(tmp_path, QUICK), capsys, "iteration 1: no mask was valid", "7", "supervised.epochs", "norm_mode"
    )
    run = tmp_path / "run"
    assert stages_of(run) == ["adabn", "shape_prior", "supervised"]
    before = everything(run)
    assert_refused(call("train", "--resume", run), capsys, "iteration 1: no mask was valid")
    assert everything(run) == before
    assert_refused(call("evaluate", "--run", run), capsys, "is not finished: it lacks iteration_1/reward_data")


def test_a_policy_that_collapses_in_ppo_ends_the_next_iteration_with_advice(tmp_path, monkeypatch, capsys, all_valid):
    valid = lambda masks, **_: (masks > 0).flatten(1).any(dim=1)  # noqa: E731
    monkeypatch.setattr(rl4seg_stages, "valid_masks", valid)
    learn = rl4seg_stages.train_policy

    def learn_badly(context, stage, **settings):
        files = learn(context, stage, **settings)
        save_network(stage.folder / files[0], collapsed(context.load(stage.folder)))
        return files

    monkeypatch.setattr(rl4seg_stages, "train_policy", learn_badly)
    assert_refused(train(tmp_path, QUICK), capsys, "iteration 2: no mask was valid", "ppo.kl_coef")
    assert "iteration_1/ppo" in stages_of(tmp_path / "run")
    assert not (tmp_path / "run" / "iteration_2" / "reward_net").exists()


def test_gold_masks_without_triplets_are_told_apart(tmp_path, capsys, all_valid):
    """All masks are gold, so that nothing is left to correct."""
    off = {"reward_data.swap": False, "reward_data.model": False, "reward_data.image": False}
    assert_refused(
        train(tmp_path, merged(QUICK, off)), capsys, "iteration 1: 7 images gave 7 gold masks but no triplet"
    )


# -- recorded data -------------------------------------------------------------------------------------------------


def prepared(folder, vendor, splits, labelled=()):
    """A prepared set (section 6.1) of phantoms of one vendor: {split: patients}, four images of each."""
    lines, number = [",study,view,dicom_uuid,instant,split_0,Gt_0"], 0
    for split, patients in splits.items():
        for _ in range(patients):
            number += 1
            for view in ("2CH", "4CH"):
                for instant in ("ED", "ES"):
                    phantom = echo_phantom(vendor, number, view, instant, 40)
                    lines.append(f"{len(lines)},p{number},{view},{view}u{number},{instant},{split},{split in labelled}")
                    place = Path(f"p{number}", view.lower(), f"{view}u{number}_{instant}.nii.gz")
                    planes = {"img": phantom.image.astype(np.float32), "gt": phantom.label}
                    for kind in ("img", "gt") if split in labelled else ("img",):
                        (folder / kind / place).parent.mkdir(parents=True, exist_ok=True)
                        affine = np.diag([phantom.spacing_mm[1], phantom.spacing_mm[0], 1, 1])
                        nib.save(nib.Nifti1Image(np.ascontiguousarray(planes[kind].T), affine), folder / kind / place)
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def recorded(tmp_path):
    """QUICK on two prepared sets; nothing in the target has a mask."""
    source = prepared(tmp_path / "source", "a", {"train": 2, "val": 1}, labelled=("train", "val"))
    target = prepared(tmp_path / "target", "b", {"train": 1, "val": 1, "test": 1, "pred": 3})
    domains = {"source": {"data": str(source), "size": 32}, "target": {"data": str(target), "size": 32}}
    return {**QUICK, **domains}


def test_the_data_set_of_the_user_is_read_and_never_written(tmp_path, recorded, all_valid, capsys):
    folders = [tmp_path / "source", tmp_path / "target"]
    before = [everything(folder) for folder in folders]
    run = trained(tmp_path / "here", recorded)
    assert "eval/anat_valid" in keys(run, "iteration_2/ppo")
    assert not {"eval/dice_endo", "eval/hd_epi"} & keys(run, "iteration_2/ppo"), "no truth is known"
    assert call("evaluate", "--run", run) == 0
    results = read_results(run / "evaluation")
    assert {(result.data, result.mode, *result.origins.items()) for result in results} == {
        ("target", "inductive", ("real", 4))
    }
    assert {tuple(result.metrics) for result in results} == {("valid", "subject_valid")}
    (row,) = re.findall(r"^\| Quick  .*", capsys.readouterr().out, re.MULTILINE)
    assert row.count("| – ") == 6, "all but the validity"
    assert call("render", "--run", run) == 0
    assert re.search(r"episode.gif: 2CHu3_ED, policies 0 to 2$", capsys.readouterr().out, re.MULTILINE)
    assert [everything(folder) for folder in folders] == before


def test_a_run_on_data_that_moved_away_is_refused_by_key(tmp_path, recorded, all_valid, capsys):
    run = trained(tmp_path / "here", recorded, iterations=0)
    shutil.move(tmp_path / "source", tmp_path / "moved")
    reconfigure(run, {"source.data": str(tmp_path / "moved")})
    assert_refused(call("evaluate", "--run", run), capsys, "was made with source.data = ")


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": "pixel_accuracy"},
        {"gold.source": "gt"},
        {"methods": ["oracle_rl"]},
        {"methods": ["target_supervised"], "iterations": 0},
    ],
)
def test_what_needs_the_labels_of_the_target_is_refused_without_them(tmp_path, recorded, capsys, changes):
    assert_refused(
        train(tmp_path / "here", merged(recorded, changes)), capsys, "have no labels, which this configuration"
    )
    assert not (tmp_path / "here" / "run").exists()


# -- what is refused before anything is written --------------------------------------------------------------------

REFUSED = {
    "too few target images": (
        {"new_images": 8},
        "the loop needs 18 target images (initial_images 2 + iterations 2 x new_images 8) but the splits "
        "['train', 'pred'] of 'phantom' have 16; lower new_images",
    ),
    "an unknown paper": ({"paper": "rl5seg"}, "paper is 'rl5seg' but must be one of spars, rl4seg"),
    "sizes that differ": ({"target.size": 64}, "source.size is 32 but target.size is 64; they must be equal"),
    "images too small for the network": (
        {"source.size": 16, "target.size": 16},
        "source.size is 16 but the U-Net needs at least 32",
    ),
    "images that the shape prior cannot take": (
        {"source.size": 40, "target.size": 40},
        "source.size is 40 but the shape prior needs a multiple of 32",
    ),
    "a method twice": ({"methods": ["tist", "udas", "tist"]}, "methods names tist more than once"),
    "an unknown method": ({"methods": ["tent"]}, "tent"),
    "a method without its reward network": (
        {"methods": ["policy_gradient"], "reward": "anatomical"},
        "needs iterations > 0 and reward 'reward_net'",
    ),
    "a method without a loop": ({"methods": ["policy_gradient"], "iterations": 0}, "needs iterations > 0"),
    "a name that tables give to another": ({"name": "AdaBN"}, "name is 'AdaBN', as tables call another method"),
    "a coefficient in the wrong place": (
        {"ppo.learner.ent_coef": 0.3},
        "ppo.learner.ent_coef is decided by ppo.epochs, ppo.batch, ppo.ent_coef, ppo.kl_coef and gold",
    ),
    "a mini-batch that fits the second iteration only": (
        {"ppo.learner.batch_size": 8},
        "batch_size is 8 but must divide num_envs x n_steps = 4 images",
    ),
    "a mini-batch with statistics of the batch": (
        {"ppo.learner.batch_size": 4, "network.norm_mode": "batch"},
        "network.norm_mode is 'batch', so that an inner step must see the whole rollout",
    ),
    "a batch that shrinks away": (
        {"ppo.batch": {"kind": "inv_iter", "c0": 1}, "iterations": 3, "new_images": 4},
        "num_envs is 0 but must be at least 1",
    ),
    "one logit for three classes": ({"ppo.learner.head": "bernoulli"}, "three labels per pixel; use 'categorical'"),
    "groups with a critic": (
        {"ppo.learner.group_size": 2},
        "critic is 'unet' with objective 'ppo' and group_size 2",
    ),
    "an odd number of maps": ({"network.init_channels": 3}, "init_channels is 3 but must be even"),
    "no dropout to draw": ({"network.dropout": 0.0}, "dropout is 0.0 but must lie in (0, 1)"),
    "an empty pool": ({"pool": []}, "pool is [] but must name at least one split"),
    "a pool with images twice": ({"pool": ["train", "train"]}, "and each once"),
    "an unknown split": ({"pool": ["train", "prde"]}, "split is 'prde' but 'phantom' has"),
    "no validation images": ({"target.phantom_patients.val": 0}, "split 'val' of 'phantom' has no patient"),
    "a fraction above 1": ({"gold.fraction": 1.5}, "gold.fraction is 1.5 but must lie in [0, 1]"),
    "no images per iteration": ({"new_images": 0}, "new_images is 0 but must be at least 1"),
    "a network alone": ({"evaluation.ensemble": 1}, "evaluation.ensemble is 1 but must be at least 2"),
    "a missing folder": ({"target.data": "gone", "target.vendor": None}, "gone does not exist or is no folder"),
    "an unknown key": ({"ppo.epoch": 3}, "epoch"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_value_is_refused_with_the_rule_before_anything_is_written(tmp_path, monkeypatch, capsys, what):
    monkeypatch.chdir(tmp_path)
    changes, said = REFUSED[what]
    assert_refused(train(tmp_path, merged(QUICK, changes)), capsys, said)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_resumed_run_takes_no_other_options(copied, capsys):
    before = everything(copied)
    status = call("train", "--resume", copied, "--paper", "rl4seg", "--ppo.epochs", "3")
    assert_refused(status, capsys, "--resume continues a run as it was configured; leave out paper, ppo")
    assert everything(copied) == before


# -- variants ------------------------------------------------------------------------------------------------------


def test_the_schedules_of_the_paper():
    """O5 of section 13."""
    learners = [RL4SegExperiment().learner(i) for i in (1, 2, 3, 4)]
    assert [learner.num_envs for learner in learners] == [8, 16, 24, 32]
    assert [learner.ent_coef for learner in learners] == pytest.approx([0.15, 0.075, 0.05, 0.0375])
    assert [learner.kl_coef for learner in learners] == pytest.approx([0.05, 0.025, 0.016667, 0.0125], abs=1e-6)
    assert [RL4SegExperiment().pool_size(i) for i in (1, 2, 3, 4)] == [2600, 5100, 7600, 10100]
    assert [learner.total_timesteps for learner in learners] == [13000, 25500, 38000, 50500], "five epochs"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The run of QUICK."""
    with pytest.MonkeyPatch.context() as patch:
        count_all(patch)
        return trained(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.mark.parametrize(
    ("changes", "first_changed"),
    [
        ({"network.norm_mode": "batch"}, "iteration_1/ppo"),
        ({"network.norm_mode": "group"}, "supervised"),
        ({"ppo.learner.critic": "none", "ppo.learner.group_size": 2, "ppo.batch.c0": 2}, "iteration_1/ppo"),
        ({"warm_start.kind": "keep"}, "iteration_2/ppo"),
    ],
    ids=str,
)
def test_a_variant_runs_and_acts_from_its_stage_on(tmp_path, all_valid, quick, changes, first_changed):
    run = trained(tmp_path, merged(QUICK, changes))
    order = ["supervised", "iteration_1/ppo", "iteration_2/ppo"]
    for stage in order:
        acts = order.index(stage) >= order.index(first_changed)
        assert differ(weights(quick, stage), weights(run, stage)) == acts, stage
    reference = load_network(run / "supervised" / "segmenter.safetensors", UNet)
    assert reference.norm == ("group" if changes.get("network.norm_mode") == "group" else "batch")
    assert (run / "iteration_2/ppo/critic.safetensors").exists() == ("ppo.learner.group_size" not in changes)


def test_gold_images_are_those_that_the_configuration_says(tmp_path, all_valid, quick):
    run = trained(tmp_path, QUICK, gold__source="gt", gold__fraction=0.5, ppo__epochs=0)
    context = context_of(run)
    gold, every = (rl4seg_stages._gold_for_ppo(one, 2, None) for one in (context, context_of(quick)))
    assert torch.equal(gold.masks, context.target_all.labels[gold.rows])
    assert 4 <= len(gold.rows) <= 12 < len(every.rows)
    assert not differ(weights(run, "adabn"), weights(run, "iteration_1/ppo")), "PPO without a pass leaves the policy"
    assert call("evaluate", "--run", run) == 0
    said = {result.method: result.supervision for result in read_results(run / "evaluation")}
    assert said == dict.fromkeys(("source only", "AdaBN", "corrector"), "source") | dict.fromkeys(
        ("Quick", "Quick, softmax"), "source and target"
    )


def test_refreshed_gold_masks_are_those_of_the_last_policy(tmp_path, all_valid, quick):
    run = trained(tmp_path, QUICK, gold__refresh=True)
    for folder, refreshed in ((quick, False), (run, True)):
        context = context_of(folder)
        gold = context.gold(2)
        assert gold.rows.tolist() == list(range(16)) if refreshed else list(range(2, 16))
        masks = segment(context.load(folder / "iteration_1/ppo"), context.target.images)[gold.rows]
        old = gold.rows < 9
        assert torch.equal(masks[~old], gold.masks[~old])
        assert torch.equal(masks[old], gold.masks[old]) == refreshed


@pytest.mark.parametrize(("reward", "labels"), [("pixel_accuracy", "source and target"), ("anatomical", "source")])
def test_a_reward_without_network_needs_no_reward_data(tmp_path, reward, labels):
    run = trained(tmp_path, QUICK, reward=reward, iterations=1)
    assert stages_of(run) == ["adabn", "iteration_1/ppo", "supervised"]
    assert call("evaluate", "--run", run, "--cases", "[phantom_b_200000]") == 0
    said = {result.method: result.supervision for result in read_results(run / "evaluation")}
    assert said == {"source only": "source", "AdaBN": "source", "Quick": labels}


def test_no_iteration_trains_the_source_network_only(tmp_path, capsys):
    config = {**QUICK, "iterations": 0, "target": {"data": "/is/not/read", "size": 32}}
    run = trained(tmp_path, config, "--export_sb3", tmp_path / "policy.zip")
    assert stages_of(run) == ["supervised"]
    assert len(DensePPO.load(tmp_path / "policy.zip", device="cpu").policy.actor.state_dict()) == len(
        weights(run, "supervised")
    )
    assert_refused(call("render", "--run", run), capsys, "iterations = 0")


@pytest.fixture
def half_gold(monkeypatch, all_valid):
    """Every second mask is gold, and the others are corrected, to something else."""
    monkeypatch.setattr(Corrector, "__call__", lambda self, masks: 2 - masks)
    alike = lambda a, c, kind: (torch.arange(len(a)) + 1) % 2  # noqa: E731
    monkeypatch.setattr("segarena.rewards.reward_data.similarity", alike)


@pytest.mark.parametrize("refresh", [False, True])
def test_corrected_masks_are_gold_where_the_reward_network_prefers_them(tmp_path, half_gold, refresh):
    run = trained(tmp_path, QUICK, gold__corrected=True, gold__refresh=refresh)
    context = context_of(run)
    own, corrected = context.gold(2), context.gold(2, "corrected.safetensors")
    start = context.load(run / "iteration_1/ppo")
    gold = rl4seg_stages._gold_for_ppo(context, 2, start)
    assert torch.equal(gold.rows[: len(own.rows)], own.rows)
    rest = gold.take(torch.arange(len(own.rows), len(gold.rows)))
    judge = rl4seg_stages.reward_function(context, 2)
    rows, masks = corrected.rows, segment(start, context.target.images[corrected.rows])
    worth = [judge(context.target.at(rows), some, rows).mean(dim=(1, 2)) for some in (corrected.masks, masks)]
    assert rest.rows.tolist() == rows[worth[0] > worth[1]].tolist()
    assert len(gold.rows.unique()) == len(gold.rows)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reward_data.model": False, "reward_data.image": False}, {"swap"}),
        ({"reward_data.model": False, "reward_data.image": False, "reward_data.swap": False}, {"correction"}),
        ({"reward_data.model": False, "reward_data.corrections": False}, {"swap", "contrast", "noise"}),
        ({"reward_data.identity": True, "reward_data.sampled": True, "reward_net.action_encoding": "onehot"}, None),
    ],
    ids=str,
)
def test_the_ablations_of_reward_data_run(tmp_path, half_gold, changes, expected):
    if expected == {"swap"}:
        changes = changes | {"reward_data.corrections": False}
    run = trained(tmp_path, merged(QUICK, changes), iterations=1, new_images=14)
    (said,) = Run(run / "iteration_1/reward_data").metrics()
    kinds = {"swap", "weights", "contrast", "noise", "correction", "identity", "sampled"}
    made_kinds = {kind for kind in kinds if said[f"reward_data/n_{kind}"]}
    assert made_kinds == (kinds if expected is None else expected)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_configuration_can_be_trained(path):
    """Alone, or after loop.yaml; on folders where it asks for them."""
    text = path.read_text()
    files = [] if "paper: rl4seg" in text else [CONFIGS / "loop.yaml"]
    arguments = ["train", *(part for file in (*files, path) for part in ("--config", str(file)))]
    if "--target.data" in text:
        arguments += ["--source.data", "source", "--target.data", "target"]
    options = command_line.parser(PAPERS["rl4seg"]).parse_args(arguments).train
    made = command_line.experiment_parser(PAPERS["rl4seg"]).instantiate(options)
    experiment = RL4SegExperiment(**{field.name: made[field.name] for field in fields(RL4SegExperiment)}).resolved()
    assert experiment.paper == "rl4seg"
