"""The table of methods: steps in their order, and the masks that each row teaches with."""

import pytest
import torch
from joint_toys import Table, tiny, toy
from segarena.agents.apga.methods import METHODS, view
from segarena.classifiers.gradcam import gradcam
from segarena.classifiers.train_xray import build_classifier

ORDER = ("agent", "plain", "masked")


def test_steps_are_taken_in_the_order_of_the_page():
    assert {name: row.steps for name, row in METHODS.items()} == {
        "none": (),
        "none_2x": ("plain", "plain"),
        **dict.fromkeys(("cutout", "foreground", "pixel_dropout"), ("plain", "masked")),
        "gradcam": ("masked", "plain"),
        "end2end": ("agent", "masked"),
        "legacy": ("plain", "agent", "masked"),
        **dict.fromkeys(("random", "shuffled", "relaxed", "reinforce", "arm", "disarm", "ppo"), ORDER),
    }
    erased = {name for name, row in METHODS.items() if row.train_on == "adv"}
    assert erased == {"cutout", "pixel_dropout"}


def seen(method, step="masked", logits=None):
    """What a row teaches with a batch of white images: name, and images [8, 1, 8, 8]."""
    game, row = toy(method)
    batch = game.batch(torch.arange(8))
    if logits is not None:
        batch.logits = logits
    torch.manual_seed(0)
    return view(game, batch, row, step)


def test_cutout_and_pixel_dropout_erase_what_they_draw():
    name, images = seen("cutout")
    assert name == "adv"
    assert 0.6 < float(images.mean()) < 1
    name, images = seen("pixel_dropout")
    assert name == "adv"
    assert float(images.mean()) == pytest.approx(1 - 0.5398, abs=0.05)
    name, images = seen("reinforce", step="cutout")
    assert name == "cutout"
    assert 0.6 < float(images.mean()) < 1


def test_the_program_selects_ties_by_the_agent_as_it_is_now():
    game, row = toy("legacy", agent=Table(torch.full((1, 1, 2, 2), -1.0)))
    batch = game.batch(torch.arange(8))
    assert not row.select(game, batch).any()
    with torch.no_grad():
        game.agent.logits += torch.tensor([[1.0, 0], [2, 0]])
    assert row.select(game, batch)[0, 0, ::4, ::4].tolist() == [[1, 0], [1, 0]]


def test_controls_take_the_masks_of_others_or_move_their_cells():
    logits = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    own, others, moved = (seen(method, logits=logits)[1] for method in ("reinforce", "shuffled", "random"))
    assert torch.equal(own[:, :, ::2, ::2], (logits > 0).float())
    assert torch.equal(others, own.roll(1, dims=0))
    assert torch.equal(moved.sum(dim=(1, 2, 3)), own.sum(dim=(1, 2, 3)))
    assert not torch.equal(moved, own)


def test_gradcam_keeps_what_speaks_for_the_class_before_the_loop():
    game, row = toy("gradcam")
    game.start = build_classifier(tiny("gradcam").classifier, 2, 0, torch.device("cpu")).eval()
    batch = game.batch(torch.arange(8))
    batch.x = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert row.looks_back
    assert torch.equal(row.select(game, batch)[:, 0], (gradcam(game.start, batch.x) > 0.5).float())


def test_two_views_at_once_are_one_step_of_their_mean():
    moved = []
    for number in (1, 2):
        game, _ = toy("reinforce")
        game.optimizer = torch.optim.SGD(game.players.classifier.parameters(), lr=1.0)
        before = game.players.classifier.weight.detach().clone()
        batch = game.batch(torch.arange(8))
        game.teach([("plain", batch.x)] * number, batch.y)
        moved.append(game.players.classifier.weight.detach() - before)
    torch.testing.assert_close(moved[0], moved[1])
