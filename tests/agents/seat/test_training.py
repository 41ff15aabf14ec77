"""A whole training: what makes it robust, what its schedule decides, that it resumes exactly, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from seat_toys import DATA, TINY, toy_config, toy_network, train_toy
from segarena.agents.command_line import main
from segarena.agents.seat import evaluation, training
from segarena.agents.seat.config import EvaluationConfig, NetworkConfig, SEATExperiment, TrainingConfig
from segarena.agents.seat.training import build_network, means, smoothed, train_network
from segarena.attacks.methods import ATTACKS
from segarena.attacks.victims import load_victim
from segarena.common import fitting
from segarena.common.overlap import class_counts, dice_case
from segarena.common.runs import Run
from segarena.common.workers import Workers
from segarena.datasets.decathlon.cases import DecathlonConfig, load_decathlon
from segarena.datasets.decathlon.preparation import to_z
from segarena.datasets.decathlon.sampling import PatchSampler
from segarena.datasets.decathlon.tasks import PHANTOM_TASKS, TASKS, find_task
from segarena.segmenters.volume_networks import TASK_PATCHES


def attacked_dice(net, eps="24/255", steps=10):
    """Dice of unseen phantoms under PGD."""
    pool = load_decathlon(DATA, "test+report")
    patches = pool.patches(torch.arange(len(pool)), torch.zeros(len(pool), 3, dtype=torch.int64), (16, 16, 16))
    low, high = patches.images.amin((2, 3, 4), keepdim=True), patches.images.amax((2, 3, 4), keepdim=True)
    moved = ATTACKS["pgd"](net, *patches, eps=eps, steps=steps, bounds=(low, high), random_start=False)
    with torch.no_grad():
        counts = class_counts(net(moved).argmax(dim=1), patches.labels, 2, 255)
    return float(dice_case(counts).mean())


@pytest.fixture(scope="module")
def robust(tmp_path_factory):
    """Networks after as many passes on clean and on attacked patches."""
    settings = {"learning_rate": 0.01, "most_iterations": 4, "epochs": 12, "eps": "24/255"}
    folder = tmp_path_factory.mktemp("robust")
    noise, _, _ = train_toy(folder / "free", **settings)
    clean, _, _ = train_toy(folder / "clean", noise=False, start="zero", **settings)
    return noise, clean


def test_noise_makes_robust_and_as_many_clean_passes_do_not(robust):
    noise, clean = (attacked_dice(net) for net in robust)
    assert noise > clean + 0.06, (noise, clean)


def test_the_schedule_decides_the_iterations_and_is_logged(tmp_path):
    _, _, run = train_toy(tmp_path / "seat", schedule="seat", most_iterations=5, epochs=4)
    lines = run.metrics()
    assert [line["segmenter/iterations"] for line in lines] == [1, 1, 1, 2]
    assert [line["segmenter/passes"] for line in lines] == [3, 6, 9, 15], "12 cases in batches of 4"
    last = lines[-1]
    assert last["segmenter/threshold"] == pytest.approx(1.1 * last["segmenter/grad_l1_raw"], rel=1e-5)
    for name in ("dice_clean", "dice_robust", "dice_clean_ball", "val_loss", "delta", "loss_gain", "grad_l1_rel", "lr"):
        assert f"segmenter/{name}" in last


def test_a_budget_of_passes_ends_it(tmp_path):
    _, _, run = train_toy(tmp_path / "short", budget=12, epochs=9)
    assert [line["segmenter/passes"] for line in run.metrics()] == [9, 18]


def test_the_learning_rate_follows_the_smoothed_validation_loss(tmp_path, monkeypatch):
    seen = []

    class Watched(training.ReduceLROnPlateau):
        def step(self, loss):
            seen.append(loss)
            super().step(loss)

    monkeypatch.setattr(training, "ReduceLROnPlateau", Watched)
    _, _, run = train_toy(tmp_path / "run", epochs=4, learning_rate=0.05)
    first, *others = (line["segmenter/val_loss"] for line in run.metrics())
    means = [first]
    for loss in others:
        means.append((means[-1] + loss) / 2)
    assert seen == pytest.approx(means)
    assert len({first, *others}) == 4


def test_it_ends_once_the_learning_rate_is_low_enough(tmp_path):
    settings = {
        "learning_rate": 1e-6,
        "patience": 1,
        "epochs": 9,
        "noise": False,
        "start": "zero",
        "most_iterations": 1,
    }
    _, _, run = train_toy(tmp_path / "half", stop_below=0.5, **settings)
    assert len(run.metrics()) == 3, "one epoch, and two without a lower loss"
    _, _, run = train_toy(tmp_path / "quarter", stop_below=0.25, **settings)
    rates = [line["segmenter/lr"] for line in run.metrics()]
    assert (rates[:3], {*rates[3:]}) == ([1e-6] * 3, {5e-7}), "none is learned with a rate that ends it"


def test_the_optimiser_is_that_of_the_program(tmp_path, monkeypatch):
    seen = {}

    class Watched(training.Adam):
        def __init__(self, parameters, **settings):
            seen.update(settings)
            super().__init__(parameters, **settings)

    monkeypatch.setattr(training, "Adam", Watched)
    program = TrainingConfig()
    train_toy(tmp_path, epochs=1, learning_rate=program.learning_rate)
    assert seen == {"lr": 1e-3, "weight_decay": 1e-5, "amsgrad": True}
    assert (program.epochs, program.patience, program.most_iterations) == (1000, 50, 5)
    assert (program.gamma, program.period, program.step_share) == (1.1, 3, 0.5)


def test_the_epoch_is_kept_that_the_validation_chooses(tmp_path):
    _, both, run = train_toy(tmp_path / "both", epochs=5, learning_rate=0.05)
    lines = run.metrics()
    scores = [0.5 * (line["segmenter/dice_clean"] + line["segmenter/dice_robust"]) for line in lines]
    assert both["epoch"] == 1 + max(range(5), key=scores.__getitem__)
    _, clean, run = train_toy(tmp_path / "clean", epochs=5, learning_rate=0.05, select="clean")
    values = [line["segmenter/dice_clean"] for line in run.metrics()]
    assert clean["dice_clean"] == pytest.approx(max(values))


@pytest.mark.parametrize("settings", [{"schedule": "seat"}, {"method": "trades", "trades_steps": 2}])
def test_a_resumed_training_ends_bit_for_bit_like_one_that_was_not_killed(tmp_path, monkeypatch, settings):
    settings = {"most_iterations": 2, "period": 1, "smoothing": 0.5, **settings}
    whole, _, _ = train_toy(tmp_path / "whole", epochs=4, **settings)
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    train_toy(tmp_path / "killed", epochs=2, **settings)
    resumed, _, run = train_toy(tmp_path / "killed", epochs=4, **settings)
    assert len(run.metrics()) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_probe_decides_where_it_is_asked(tmp_path):
    _, _, run = train_toy(tmp_path / "probe", magnitude="probe", units="relative", schedule="seat", period=1, epochs=3)
    last = run.metrics()[-1]
    assert last["segmenter/threshold"] > 0
    assert last["segmenter/grad_l1_rel"] > 0


def test_seat_plus_is_smoothed_relative_of_the_probe_and_has_a_band():
    plus = yaml.safe_load((Path(training.__file__).parents[2] / "configs" / "seat" / "seat_plus.yaml").read_text())
    assert plus["training"] == {"schedule": "seat_plus", "magnitude": "probe", "units": "relative", "smoothing": 0.5}


def test_means_and_smoothing_are_those_of_the_method():
    loss = float("nan")
    found = [loss := smoothed(loss, value) for value in (1.0, 0.8, 0.6, 0.7)]
    assert found == pytest.approx([1.0, 0.9, 0.75, 0.725])
    sums = {"images": 4.0, "measured": 8.0, "grad_l1_raw": 16.0, "loss": 2.0, "first_loss": 1.0}
    assert means(sums) == {"grad_l1_raw": 2.0, "loss": 0.5, "first_loss": 0.25, "loss_gain": 0.25}


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize("units", ["raw", "relative"])
def test_a_magnitude_that_is_not_finite_ends_no_training_and_leaves_no_trace(tmp_path, monkeypatch, smoothing, units):
    found = iter([2.0, 4.0, math.inf, 8.0])

    def measured(self):
        return dict.fromkeys(training.MAGNITUDES.values(), next(found))

    monkeypatch.setattr(training.Judge, "magnitudes", measured)
    settings = {"magnitude": "probe", "schedule": "seat", "period": 1, "units": units, "smoothing": smoothing}
    _, _, run = train_toy(tmp_path / "run", epochs=4, **settings)
    lines = run.metrics()
    assert [line["segmenter/skipped"] for line in lines] == [0, 0, 1, 1]
    after_two, after_four = (3.0, 5.5) if smoothing else (4.0, 8.0)
    expected = [0.0, 1.1 * after_two, 1.1 * after_two, 1.1 * after_four]
    assert [line["segmenter/threshold"] for line in lines] == pytest.approx(expected)
    assert "segmenter/grad_l1_raw" not in lines[2]
    assert lines[3]["segmenter/grad_l1_raw"] == 8.0


@pytest.mark.parametrize("task", [*TASKS.values(), *PHANTOM_TASKS.values()], ids=lambda one: f"{one.name} {one.batch}")
def test_no_prepared_voxel_leaves_the_window_of_its_task(task):
    known, channels = task.fingerprint, len(task.channels)
    ends = (-1e4, 1e4) if task.ct else (0.0, 1.0)
    image = torch.tensor(ends).view(2, 1, 1).expand(channels, 2, 1, 1)
    low, high = known.z_bounds()
    prepared = to_z(image, known, ct=task.ct)[None]
    assert bool((prepared >= low - 1e-5).all())
    assert bool((prepared <= high + 1e-5).all())


def test_the_window_of_a_task_is_in_z_units():
    low, high = find_task(9).fingerprint.z_bounds()
    assert float(high - low) == pytest.approx(5.904, abs=1e-3)
    assert float(high - low) * 8 / 255 == pytest.approx(0.185224, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eps": 0}, "training.eps"),
        ({"eps": -0.1}, "training.eps"),
        ({"gamma": 1.0}, "gamma"),
        ({"most_iterations": 0}, "iterations"),
        ({"method": "pgd", "noise": False}, "use replay"),
        ({"method": "trades", "start": "zero"}, "leave it out"),
        ({"method": "trades", "schedule": "seat"}, "give constant"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"tau": 1}, "training.tau is of pgd"),
        ({"method": "pgd", "tau": -1}, "tau"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        TrainingConfig(**settings)


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        (["transfer"], "has transfer but a run has no other models"),
        (["pgd", "rp_pgd_20"], "has rp_pgd_20 but prototypes are of networks of images"),
        (["pgd", "pgd"], "must name each attack once"),
        ("strct", "did you mean 'strict'"),
    ],
)
def test_attacks_that_a_run_cannot_be_judged_by_are_refused_before_it_trains(attacks, said):
    with pytest.raises(ValueError, match=said):
        EvaluationConfig(attacks=attacks)


def test_a_network_that_does_not_fit_is_refused(tmp_path):
    data = DATA
    sides = replace(data.resolved_plan(), p_size=(12, 12, 12), in_size=(12, 12, 12), val_size=(12, 12, 12))
    sides.save(tmp_path / "plan.json")
    other = replace(data, plan=str(tmp_path / "plan.json"))
    with pytest.raises(ValueError, match="multiples of"):
        training.check(SEATExperiment(data=other, network=NetworkConfig(kind="segresnet")))
    net, _, run = train_toy(tmp_path / "run", epochs=1)
    file = run.folder / "victim.safetensors"
    training.save_victim(file, training.Normalized(net, [0.0], [1.0]), ("background", "ball"))
    given, task, plan = NetworkConfig(kind="small3d", width=4, pretrained=str(file)), data.resolved_task, sides
    begun = build_network(given, task, plan, 5)
    assert all(torch.equal(a, b) for a, b in zip(begun.parameters(), net.parameters(), strict=True))
    with pytest.raises(ValueError, match="is needed; change `network`"):
        build_network(replace(given, width=8), task, plan, 5)
    with pytest.raises(ValueError, match="out_channels = 2 but 3 is needed; take another file"):
        build_network(given, find_task(4), plan, 5)
    with pytest.raises(ValueError, match=r"on the classes background, ball but Task09_Spleen has background, spleen"):
        build_network(given, find_task(9), plan, 5)


def test_workers_with_different_cases_are_refused(tmp_path):
    class Apart(Workers):
        def gather(self, value):
            return [value, (value[0], value[1][1:])]

    pool, val = (load_decathlon(DATA, split) for split in ("train", "select"))
    with pytest.raises(ValueError, match=r"12 and 2, 12 and 1 of them, by rank.*the same data folder"):
        train_network(
            toy_network(), PatchSampler(pool, DATA.resolved_plan(), seed=1), val, toy_config(), Run(tmp_path), 0,
            workers=Apart(),
        )  # fmt: skip


def test_workers_agree_on_what_decides_iterations_and_learning_rate(tmp_path, monkeypatch):
    """Their own numbers may differ: running statistics of batch normalisation, and what a device rounds."""

    class Apart(Workers):
        def mean(self, scalars):
            return {name: 2 * value for name, value in scalars.items()}

    seen = []

    class Watched(training.ReduceLROnPlateau):
        def step(self, loss):
            seen.append(loss)
            super().step(loss)

    monkeypatch.setattr(training, "ReduceLROnPlateau", Watched)
    monkeypatch.setattr(training.Judge, "magnitudes", lambda self: dict.fromkeys(training.MAGNITUDES.values(), 5.0))
    monkeypatch.setattr(training.Judge, "__call__", lambda self: {"val_loss": 3.0, "dice_clean": 0, "dice_robust": 0})
    pool, val = (load_decathlon(DATA, split) for split in ("train", "select"))
    given = toy_config(schedule="seat", period=1, magnitude="probe", epochs=2)
    sampler, run = PatchSampler(pool, DATA.resolved_plan(), seed=1), Run(tmp_path)
    train_network(toy_network(), sampler, val, given, run, 0, workers=Apart())
    run.close()
    assert run.metrics()[-1]["segmenter/threshold"] == pytest.approx(1.1 * 10)
    assert seen == pytest.approx([6.0, 6.0])


def test_a_dynunet_is_that_of_its_task():
    with torch.device("meta"):
        found = {
            task: build_network(NetworkConfig(kind="dynunet"), find_task(task), find_task(task).plan, 0).description
            for task in (4, 5, 9)
        }
    for task, described in found.items():
        assert (described["patch_size"], described["spacing"]) == TASK_PATCHES[task]
    assert found[5]["in_channels"] == 2


def test_the_command_line_trains_resumes_evaluates_and_draws(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    run = tmp_path / "run"
    assert main(["train", "--config", str(tmp_path / "tiny.yaml"), "--out", str(run)]) == 0
    assert main(["train", "--resume", str(run)]) == 0, "it is finished"
    victim, classes = load_victim(run / "segmenter" / "victim.safetensors")
    assert classes == ("background", "ball")
    weights = load_file(run / "segmenter" / "victim.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "PGD, 2 steps, ε = 8/255" in out
    (result,) = (run / "evaluation" / "test").glob("SEAT_seed0.json")
    found = yaml.safe_load(result.read_text())
    assert (found["settings"]["epochs"], found["settings"]["passes"]) == (2, 8), "8 cases in batches of 4, twice each"
    case = found["cases"][0]
    assert case["worst_dice"] == case["pgd_2_eps_8_255_dice"] <= case["clean_dice"] + 0.05
    assert {"dice", "dice_ball", "recall_ball", "hd95_mm_ball", "nsd"} <= case.keys()
    assert case["native_dice"] == pytest.approx(case["dice"]), "toys are not resampled"
    assert (run / "evaluation" / "test" / "SEAT_seed0.png").is_file()
    assert main(["render", "--run", str(run), "--out", str(tmp_path / "attack.gif")]) == 0
    assert victim.model.description["width"] == 4
    assert Run.open(run).stage("segmenter").metrics()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.data", "nothing", "--data.task", "4"], "no dataset.json in"),
        (["--data.folds", "11"], "10 patients with labels, so that of 11 folds some would be empty; set folds lower"),
        (["--training.eps", "0"], "training.eps is 0.0 but must be above 0 and at most 1"),
        (["--training.eps", "-0.1"], "training.eps is -0.1 but must be above 0 and at most 1"),
        (["--evaluation.eps", "[8/255, -1/255]"], "evaluation.eps is '-1/255' but must be above 0 and at most 1"),
        (["--data.plan", "nothing.json"], "nothing.json' does not exist"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["train", "--config", "tiny.yaml", "--out", "run", *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_paths_of_a_run_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = SEATExperiment(data=DecathlonConfig(data="task", splits="lists", plan="plan.json")).resolved().data
    assert (data.data, data.splits, data.plan) == tuple(str(tmp_path / name) for name in ("task", "lists", "plan.json"))


def test_the_worst_is_that_of_each_case_over_attacks_and_radii_without_the_clean_patch(tmp_path, monkeypatch):
    many = {**TINY, "evaluation": {"attacks": ["fgsm", "pgd_2"], "eps": ["4/255", "8/255"]}}
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(many))
    run = tmp_path / "run"
    assert main(["train", "--config", str(tmp_path / "many.yaml"), "--out", str(run)]) == 0
    values = iter([(0.1, 0.1), (0.6, 0.3), (0.5, 0.4), (0.4, 0.5), (0.3, 0.6)])  # by case: clean, then each attack
    monkeypatch.setattr(evaluation, "_dice", lambda counts: np.array(next(values)))
    assert main(["evaluate", "--run", str(run), "--split", "val"]) == 0
    (result,) = (run / "evaluation").glob("*/SEAT_seed0.json")
    found = yaml.safe_load(result.read_text())
    attacks = [f"{attack}_eps_{eps}_255_dice" for attack in ("fgsm", "pgd_2") for eps in (4, 8)]
    for case in found["cases"]:
        assert case["clean_dice"] == 0.1
        assert case["worst_dice"] == min(case[name] for name in attacks) == 0.3
        for eps in (4, 8):
            assert case[f"worst_eps_{eps}_255_dice"] == min(case[name] for name in attacks if f"eps_{eps}_" in name)
    assert found["metrics"]["worst_dice"] == pytest.approx(0.3), "the mean over attacks is 0.45"


def test_a_case_without_foreground_is_named_or_left_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    run = tmp_path / "run"
    assert main(["train", "--config", str(tmp_path / "tiny.yaml"), "--out", str(run)]) == 0

    def emptied(count):
        def load(*given):
            pool = load_decathlon(*given)
            return replace(pool, labels=torch.where(torch.arange(len(pool.labels)) < count * 16**3, 0, pool.labels))

        monkeypatch.setattr(evaluation, "load_decathlon", load)

    emptied(1)
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--split", "val"]) == 2
    assert "phantom_00" in (said := capsys.readouterr().err)
    assert "has no foreground" in said
    assert main(["evaluate", "--run", str(run), "--split", "val", "--on_error", "skip"]) == 1
    (result,) = (run / "evaluation").glob("*/SEAT_seed0.json")
    assert len(yaml.safe_load(result.read_text())["cases"]) == 1
    emptied(2)
    assert main(["evaluate", "--run", str(run), "--split", "val", "--on_error", "skip"]) == 2
    assert "none of the 2 cases has any foreground" in capsys.readouterr().err


def test_a_window_is_what_epsilon_is_a_share_of_in_every_attack(tmp_path):
    config = {**TINY, "training": {**TINY["training"], "epochs": 1, "eps_range": "window"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    assert main(["train", "--config", str(tmp_path / "tiny.yaml"), "--out", str(run)]) == 0
    assert main(["evaluate", "--run", str(run)]) == 0
    assert main(["render", "--run", str(run), "--out", str(tmp_path / "attack.gif")]) == 0
    (file,) = (run / "evaluation" / "test" / "robustness").glob("*pgd_2__*.json")
    farthest = yaml.safe_load(file.read_text())["farthest"]
    assert max(farthest) == pytest.approx(8 / 255, rel=1e-3), "a share of the window"


def test_networks_of_a_seed_are_alike():
    assert all(torch.equal(a, b) for a, b in zip(toy_network(1).parameters(), toy_network(1).parameters(), strict=True))
    assert not torch.equal(next(toy_network(1).parameters()), next(toy_network(2).parameters()))
