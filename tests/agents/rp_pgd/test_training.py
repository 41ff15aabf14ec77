"""Adversarial training: it hardens, resumes bit for bit, shows its curves, and refuses by name."""

import pytest
import torch
from adversarial_toys import EPS, SIDE, WHOLE, config, draw, toy_victim, toys, train_toy
from segarena.agents.rp_pgd.batches import Crops, Resident, batches_of, draw_epoch
from segarena.agents.rp_pgd.validation import judge
from segarena.attacks import core
from segarena.attacks.methods import ATTACKS
from segarena.attacks.regions import GROUPS
from segarena.common import fitting
from segarena.common.finite import NotFiniteError
from segarena.common.runs import Run
from segarena.datasets.scenes.augmentation import AugmentationConfig
from segarena.datasets.scenes.files import Scene

TRAININGS = {
    "none": {"method": "none"},
    "SAT": {"method": "sat"},
    "SegPGD-AT": {"method": "at", "attack": "segpgd"},
    "CosPGD-AT": {"method": "at", "attack": "cospgd"},
    "RP-PGD-AT": {"method": "at", "attack": "rp_pgd"},
    "RP-PGD++-AT": {"method": "at", "attack": "rp_pgd_pp"},
    "all attacked": {"method": "sat", "adv_ratio": 1.0},
    "paired": {"method": "sat", "pairing": "paired"},
    "split statistics": {"method": "sat", "bn": "split"},
    "AdamW": {"method": "at", "attack": "pgd", "optimizer": "adamw", "learning_rate": 1e-3, "eps": "4/255", "steps": 5},
}


@pytest.mark.parametrize("settings", TRAININGS.values(), ids=list(TRAININGS))
def test_two_steps_change_the_weights(tmp_path, settings):
    before = {name: value.clone() for name, value in toy_victim().model.named_parameters()}
    victim, scalars, _ = train_toy(tmp_path, **{"epochs": 1, **settings})
    assert all(not torch.equal(value, before[name]) for name, value in victim.model.named_parameters())
    assert not victim.model.training
    assert scalars["epoch"] == 1
    assert ("attack_size" in scalars) == (settings["method"] != "none")


def test_sat_hardens_and_a_descending_attack_does_not(tmp_path, monkeypatch):
    val = toys(12, first=100).pool()
    long = {"epochs": 40, "batch_size": 8, "learning_rate": 0.1, "adv_ratio": 1.0}

    def robust(name, **settings):
        victim, *_ = train_toy(tmp_path / name, toy_victim(dropout=0.0), toys(16), **{**long, **settings})
        return judge(victim, val, ATTACKS["pgd"], {"eps": EPS, "steps": 10}, batch_size=12).means["miou"]

    none, sat = robust("none", method="none"), robust("sat")
    update = core.AttackCore.differentiate
    with monkeypatch.context() as wrong:
        wrong.setattr(core.AttackCore, "differentiate", lambda self, spec: -update(self, spec))
        descending_victim, *_ = train_toy(tmp_path / "wrong", toy_victim(dropout=0.0), toys(16), **long)
    descending = judge(descending_victim, val, ATTACKS["pgd"], {"eps": EPS, "steps": 10}, batch_size=12).means["miou"]
    assert sat > max(none, descending) + 0.2


def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """With dropout, momentum, random crops and random starts."""
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    settings = {"epochs": 4, "method": "at", "attack": "pgd", "random_start": True}
    augmentation = AugmentationConfig(crop=SIDE)
    whole, *_ = train_toy(tmp_path / "whole", augmentation=augmentation, **settings)
    monkeypatch.setattr(fitting, "stop_if_asked", stop_after(2))
    with pytest.raises(InterruptedError):
        train_toy(tmp_path / "stopped", augmentation=augmentation, **settings)
    monkeypatch.undo()
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    victim, *_ = train_toy(tmp_path / "stopped", toy_victim(seed=9), augmentation=augmentation, **settings)
    assert all(torch.equal(one, whole.state_dict()[name]) for name, one in victim.state_dict().items())
    assert Run(tmp_path / "stopped").metrics() == Run(tmp_path / "whole").metrics()
    other, *_ = train_toy(tmp_path / "other", augmentation=augmentation, seed=1, **settings)
    assert not torch.equal(other.model.head.weight, whole.model.head.weight)


def stop_after(epochs):
    seen = []

    def stop():
        seen.append(0)
        if len(seen) == epochs:
            raise InterruptedError

    return stop


def test_curves_and_pictures(tmp_path):
    val = toys(3, first=50).pool()
    _, _, run = train_toy(tmp_path, val=val, epochs=5, validate_every=2)
    lines = run.metrics()
    assert [("segmenter/adv_miou" in line) for line in lines] == [False, True, False, True, True], "the last one, too"
    of_all = {"loss_main", "lr", "attack_true", "attack_boundary", "attack_false", "attack_size"}  # SGD counts no steps
    judged = {f"{kind}_{name}" for kind in ("clean", "adv") for name in ("miou", "macc", "aacc")}
    shares = {f"attack/step_{step}_{name}" for step in (1, 2, 3) for name in GROUPS}
    assert lines[-1].keys() == {"step"} | {f"segmenter/{name}" for name in of_all | judged} | shares
    assert lines[0]["segmenter/lr"] == pytest.approx(0.05 * (1 - 2 / 10) ** 0.9)
    assert lines[-1]["segmenter/lr"] == 0
    assert lines[-1]["segmenter/adv_miou"] <= lines[-1]["segmenter/clean_miou"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in tmp_path.rglob("events.*")}
    shown = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert [one.step for one in shown.Images("segmenter/attack")] == [2, 4, 5]
    side = 8 * SIDE  # small images are enlarged
    assert {(one.width, one.height) for one in shown.Images("segmenter/attack")} == {(6 * side + 5 * 4, 2 * side + 4)}


def test_what_stays_in_memory_gives_the_same_batches_as_what_is_read():
    scenes, drawn = toys(9), draw_epoch(9, (2, 2), torch.Generator().manual_seed(1))
    quick = batches_of(scenes, WHOLE, torch.device("cpu"), 2)
    assert isinstance(quick, Resident)
    assert isinstance(batches_of(scenes, AugmentationConfig(crop=SIDE), torch.device("cpu"), 2), Crops)
    for loaders in (0, 3):
        slow = Crops(scenes, WHOLE, torch.device("cpu"), loaders)
        for one, other in zip(quick(drawn), slow(drawn), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert one.images.shape == (4, 3, SIDE, SIDE)
    flips = [not torch.equal(b.labels[0], scenes[d.rows[0]].label) for b, d in zip(quick(drawn), drawn, strict=True)]
    assert len(set(flips)) == 2, "some are mirrored"


def test_an_image_that_cannot_be_read_stops_the_threads():
    def broken(name):
        if name == "toy_3":
            raise ValueError("toy_3 is damaged")
        return draw(int(name[4:]))

    drawn = draw_epoch(8, (4,), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="toy_3 is damaged"):
        list(Crops(toys(8, load=broken), WHOLE, torch.device("cpu"), 2)(drawn))
    bare = toys(4, load=lambda name: Scene(name, torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), None))
    with pytest.raises(ValueError, match="toy_0 has no labels, which training needs"):
        Crops(bare, WHOLE, torch.device("cpu"), 0).crop(0, 1)


def test_crops_without_a_valid_pixel_give_no_nan(tmp_path):
    blank = torch.full((SIDE, SIDE), 255, dtype=torch.uint8)
    scenes = toys(8, load=lambda name: Scene(name, draw(0).image, blank))
    victim, scalars, _ = train_toy(tmp_path, scenes=scenes, epochs=1, weight_decay=0.0)
    assert scalars["loss_main"] == 0
    assert torch.equal(victim.model.head.weight, toy_victim().model.head.weight), "nothing is learned"


@pytest.mark.parametrize("method", ["none", "sat"])
def test_logits_that_are_not_finite_stop_the_training_and_name_the_images(tmp_path, method):
    victim = toy_victim()
    victim.model.head.bias.data[1] = torch.nan
    kind = NotFiniteError if method == "none" else ValueError
    with pytest.raises(kind, match=r"not finite.*the batch (of|is) toy_\d, toy_\d, toy_\d, toy_\d"):
        train_toy(tmp_path, victim, method=method)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "pgdd"}, "training.attack is 'pgdd' but must be one of 'fgsm', .*did you mean 'pgd'"),
        ({"val_attack": "x"}, "training.val_attack is 'x' but must be one of"),
        ({"eps": 0.0}, "training.eps is 0.0 but must be above 0 and at most 1"),
        ({"eps": "8"}, "training.eps is '8' but .*8 grey levels are 8/255"),
        ({"step_size": "0"}, "training.step_size is '0' but must be above 0"),
        ({"adv_ratio": 0.0}, r"training.adv_ratio is 0.0 but must lie in \(0, 1\]"),
        ({"method": "fat"}, "training.method is 'fat' but must be one of 'none', 'sat', 'ddc_at', 'at'"),
        ({"method": "at", "attack": "fgsm"}, "steps is 3 but FGSM has one step"),
        ({"warmup_epochs": 3}, "training.warmup_epochs is 3 but must be below epochs, 3"),
        ({"method": "ddc_at", "pairing": "paired"}, "training.pairing is 'paired' but ddc_at"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)
