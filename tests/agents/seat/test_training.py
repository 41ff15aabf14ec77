"""A whole training: what makes it robust, what its schedule decides, that it resumes exactly, and what is refused."""

from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from seat_toys import DATA, TINY, toy_network, train_toy
from segarena.agents.command_line import main
from segarena.agents.seat import training
from segarena.agents.seat.config import EvaluationConfig, NetworkConfig, SEATExperiment, TrainingConfig
from segarena.agents.seat.training import build_network, means, smoothed
from segarena.attacks.methods import ATTACKS
from segarena.attacks.victims import load_victim
from segarena.common import fitting
from segarena.common.overlap import class_counts, dice_case
from segarena.common.runs import Run
from segarena.datasets.decathlon.cases import load_decathlon
from segarena.datasets.decathlon.tasks import find_task


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
    settings = {"learning_rate": 0.01, "iterations": 4, "epochs": 12, "eps": "24/255"}
    folder = tmp_path_factory.mktemp("robust")
    noise, _, _ = train_toy(folder / "free", **settings)
    clean, _, _ = train_toy(folder / "clean", noise=False, start="zero", **settings)
    return noise, clean


def test_noise_makes_robust_and_as_many_clean_passes_do_not(robust):
    noise, clean = (attacked_dice(net) for net in robust)
    assert noise > clean + 0.06, (noise, clean)


def test_the_schedule_decides_the_iterations_and_is_logged(tmp_path):
    _, _, run = train_toy(tmp_path / "seat", schedule="seat", iterations=5, epochs=4)
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
    settings = {"iterations": 2, "period": 1, "smoothing": 0.5, **settings}
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


def test_means_and_smoothing_are_those_of_the_method():
    loss = float("nan")
    found = [loss := smoothed(loss, value) for value in (1.0, 0.8, 0.6, 0.7)]
    assert found == pytest.approx([1.0, 0.9, 0.75, 0.725])
    sums = {"images": 4.0, "measured": 8.0, "grad_l1_raw": 16.0, "loss": 2.0, "first_loss": 1.0}
    assert means(sums) == {"grad_l1_raw": 2.0, "loss": 0.5, "first_loss": 0.25, "loss_gain": 0.25}


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
        ({"iterations": 0}, "iterations"),
        ({"method": "pgd", "noise": False}, "use replay"),
        ({"method": "trades", "start": "zero"}, "leave it out"),
        ({"smoothing": 1.0}, "smoothing"),
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
    begun = build_network(NetworkConfig(kind="small3d", width=4, pretrained=str(file)), 1, 2, data.resolved_plan(), 5)
    assert all(torch.equal(a, b) for a, b in zip(begun.parameters(), net.parameters(), strict=True))
    with pytest.raises(ValueError, match="is needed; change `network`"):
        build_network(NetworkConfig(kind="small3d", pretrained=str(file)), 1, 2, data.resolved_plan(), 5)
    with pytest.raises(ValueError, match="3"):
        build_network(NetworkConfig(kind="small3d", width=4, pretrained=str(file)), 1, 3, data.resolved_plan(), 5)


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
    case = found["cases"][0]
    assert case["worst_dice"] == case["pgd_2_eps_8_255_dice"] <= case["clean_dice"] + 0.05
    assert {"dice", "dice_ball", "recall_ball"} <= case.keys()
    assert (run / "evaluation" / "test" / "SEAT_seed0.png").is_file()
    assert main(["render", "--run", str(run), "--out", str(tmp_path / "attack.gif")]) == 0
    assert main(["predict", "--run", str(run), "--input", str(tmp_path), "--out", str(tmp_path / "masks")]) == 2
    assert "volume_windows applies it to whole volumes" in capsys.readouterr().err
    assert victim.model.description["width"] == 4
    assert Run.open(run).stage("segmenter").metrics()


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
