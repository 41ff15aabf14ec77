"""Deletion and insertion curves of saliency maps (docs/apga.md, Method 9)."""

import math

import pytest
import torch
from segarena.evaluation.deletion import deletion_curves, ranks_of


def by_corner(x):
    """Class 1 is as likely as the mean of the upper left quarter."""
    score = x[:, 0, :2, :2].mean(dim=(1, 2))
    return torch.stack([1 - score, score], dim=1)


def quarter():
    mask = torch.zeros(1, 4, 4)
    mask[:, :2, :2] = 1
    return mask


def test_the_right_map_has_the_known_areas():
    curves = deletion_curves(by_corner, torch.ones(1, 1, 4, 4), quarter(), steps=4)
    assert curves.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curves.deletion.tolist() == [[1, 0, 0, 0, 0]]
    assert curves.insertion.tolist() == [[0, 1, 1, 1, 1]]
    assert curves.deletion_auc.item() == pytest.approx(0.125)
    assert curves.insertion_auc.item() == pytest.approx(0.875)


def test_the_opposite_map_has_the_opposite_areas():
    curves = deletion_curves(by_corner, torch.ones(1, 1, 4, 4), 1 - quarter(), steps=4)
    assert curves.deletion.tolist() == [[1, 1, 1, 1, 0]]
    assert curves.deletion_auc.item() == pytest.approx(0.875)
    assert curves.insertion_auc.item() == pytest.approx(0.125)


def test_a_map_that_says_nothing_is_random():
    curves = deletion_curves(by_corner, torch.ones(64, 1, 4, 4), torch.zeros(64, 4, 4), steps=16)
    assert curves.deletion_auc.mean().item() == pytest.approx(0.5, abs=0.05)
    assert curves.deletion_auc.std() > 0.05
    assert not torch.equal(curves.deletion[0], curves.deletion[1])


def test_the_class_is_that_of_the_whole_image():
    curves = deletion_curves(by_corner, torch.full((1, 1, 4, 4), 0.2), quarter(), steps=4)
    torch.testing.assert_close(curves.deletion, torch.tensor([[0.8, 1, 1, 1, 1]]).double())


def test_deleted_pixels_become_the_fill_and_batches_change_nothing():
    torch.manual_seed(0)
    x, saliency = torch.rand(3, 2, 8, 8), torch.rand(3, 8, 8)
    fill = torch.rand(3, 2, 8, 8)

    def probabilities(images):
        return images.flatten(1).cumsum(dim=1)[:, ::40].softmax(dim=1)

    one = deletion_curves(probabilities, x, saliency, steps=5, fill=fill)
    other = deletion_curves(probabilities, x, saliency, steps=5, fill=fill, batch_size=4)
    classes = probabilities(x).argmax(dim=1)
    ranks = saliency.flatten(1).argsort(dim=1, descending=True).argsort(dim=1).view(3, 1, 8, 8)
    for step, number in enumerate((0, 13, 26, 38, 51, 64)):
        gone = ranks < number
        for curve, images in ((one.deletion, torch.where(gone, fill, x)), (one.insertion, torch.where(gone, x, fill))):
            expected = probabilities(images)[range(3), classes].double()
            torch.testing.assert_close(curve[:, step], expected)
    torch.testing.assert_close(one.deletion, other.deletion)
    torch.testing.assert_close(one.insertion, other.insertion)


def test_ranks_are_places_from_the_highest_on_and_ties_are_random():
    assert ranks_of(torch.tensor([[0.1, 0.9, 0.5]]), seed=0).tolist() == [[2, 0, 1]]
    ties = ranks_of(torch.zeros(2, 50), seed=0)
    assert torch.equal(ties.sort(dim=1).values, torch.arange(50).expand(2, 50))
    assert not torch.equal(ties[0], torch.arange(50))
    assert torch.equal(ties, ranks_of(torch.zeros(2, 50), seed=0))


@pytest.mark.parametrize(
    ("saliency", "steps", "match"),
    [
        (torch.zeros(1, 3, 4), 4, r"need maps \[B, H, W\], not \[1, 3, 4\]"),
        (torch.full((1, 4, 4), math.nan), 4, "NaN or infinity"),
        (torch.zeros(1, 4, 4), 0, r"steps is 0 but must lie in \[1, 16\]"),
        (torch.zeros(1, 4, 4), 17, "steps is 17"),
    ],
)
def test_what_has_no_curve_is_refused(saliency, steps, match):
    with pytest.raises(ValueError, match=match):
        deletion_curves(by_corner, torch.ones(1, 1, 4, 4), saliency, steps=steps)
