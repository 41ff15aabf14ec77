"""What a mask does to a classifier, on numbers computed by hand (docs/apga.md, Method 13)."""

import pytest
import torch
from segarena.rewards.loss_gap import area, doubt, gap, reward_terms, total_variation

PLAIN, ADV = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
Y = torch.tensor([0])


@pytest.mark.parametrize(
    ("kind", "plain", "adv"),
    [("loss", 0.126928, 1.313262), ("prob", -0.880797, -0.268941), ("logit", -2.0, 1.0)],
)
def test_doubt_is_higher_where_the_classifier_is_worse(kind, plain, adv):
    torch.testing.assert_close(doubt(PLAIN, Y, kind), torch.tensor([plain]), atol=1e-5, rtol=0)
    torch.testing.assert_close(doubt(ADV, Y, kind), torch.tensor([adv]), atol=1e-5, rtol=0)


def test_the_margin_is_that_to_the_best_other_class():
    z = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert doubt(z, torch.tensor([1, 0]), "logit").tolist() == [-1.0, 2.0]


def test_each_mode_compares_its_two_views():
    doubts = {"plain": torch.tensor([1.0]), "adv": torch.tensor([4.0]), "aid": torch.tensor([0.5])}
    found = {mode: gap(doubts, mode).item() for mode in ("adversarial", "cooperative", "contrast")}
    assert found == {"adversarial": 3.0, "cooperative": 0.5, "contrast": 3.5}
    known = {"plain": doubt(PLAIN, Y, "loss"), "adv": doubt(ADV, Y, "loss")}
    torch.testing.assert_close(gap(known, "adversarial"), torch.tensor([1.186334]), atol=1e-5, rtol=0)


def test_area_and_variation_are_of_each_mask():
    masks = torch.tensor([[[[1, 0], [1, 0]]], [[[1, 1], [1, 1]]], [[[0, 0], [0, 1]]]]).bool()
    torch.testing.assert_close(area(masks), torch.tensor([0.5, 1.0, 0.25]))
    torch.testing.assert_close(total_variation(masks), torch.tensor([0.5, 0.0, 0.5]))
    torch.testing.assert_close(total_variation(masks.float() / 2), torch.tensor([0.25, 0.0, 0.25]))


def test_terms_are_the_cut_gap_and_what_is_taken_off_for_size_and_edges():
    masks, worth = torch.tensor([[[[1, 0], [1, 0]]], [[[1, 1], [1, 1]]]]).bool(), torch.tensor([7.0, -7.0])
    found = {name: term.tolist() for name, term in reward_terms(worth, masks, 5.0).items()}
    assert found == {"gap": [5.0, -5.0], "area": [-0.5, -1.0], "tv": [-0.5, 0.0]}
    assert reward_terms(worth, masks, None)["gap"].tolist() == [7.0, -7.0]
