"""Radiographs that are mirrored and turned while a network learns from them (docs/apga.md, Method 7)."""

import math

import pytest
import torch
from segarena.datasets.xray.augmentation import DRAWS, augmented, turned

STRAIGHT, RIGHT, LEFT = 0.5, 1.0, 0.0
MIRRORED, AS_IS = 0.2, 0.8


def spot(row, column, size=64):
    """A picture [1, 1, S, S] of one spot, its place in pixels from the middle."""
    x = torch.zeros(1, 1, size, size)
    top, left = row + size // 2 - 2, column + size // 2 - 2
    x[..., top : top + 4, left : left + 4] = 1
    return x


def middle(x):
    """Centre of mass (row, column) of a picture, in pixels from the middle."""
    places = torch.arange(x.shape[-1]) + 0.5 - x.shape[-1] / 2
    total = x.sum()
    return float((x.sum(dim=(0, 1, 3)) * places).sum() / total), float((x.sum(dim=(0, 1, 2)) * places).sum() / total)


@pytest.mark.parametrize(
    ("angle", "mirror", "place"),
    [
        (STRAIGHT, AS_IS, (-20, 8)),
        (STRAIGHT, MIRRORED, (-20, -8)),
        (RIGHT, AS_IS, (-20 * math.cos(math.pi / 6) + 8 * 0.5, 20 * 0.5 + 8 * math.cos(math.pi / 6))),
        (LEFT, AS_IS, (-20 * math.cos(math.pi / 6) - 8 * 0.5, -20 * 0.5 + 8 * math.cos(math.pi / 6))),
        (RIGHT, MIRRORED, (-20 * math.cos(math.pi / 6) - 8 * 0.5, 20 * 0.5 - 8 * math.cos(math.pi / 6))),
    ],
)
def test_a_spot_comes_to_the_place_that_is_computed_by_hand(angle, mirror, place):
    found = turned(spot(-20, 8), torch.tensor([[angle], [mirror]]))
    assert middle(found) == pytest.approx(place, abs=0.02)
    assert float(found.sum()) == pytest.approx(16, abs=0.2)


def test_an_image_that_is_not_turned_stays_and_black_comes_in():
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = turned(x, torch.tensor([[STRAIGHT, STRAIGHT], [AS_IS, MIRRORED]]))
    torch.testing.assert_close(found, torch.stack([x[0], x[1].flip(-1)]), atol=1e-5, rtol=0)
    white = turned(torch.ones(1, 1, 16, 16), torch.tensor([[RIGHT], [AS_IS]]))[0, 0]
    assert white[4:12, 4:12].min() > 0.999
    assert white[0, 0] == white[15, 15] == 0


def test_an_image_is_changed_alike_in_any_batch():
    generator = torch.Generator().manual_seed(1)
    x, draws = torch.rand(5, 1, 16, 16, generator=generator), torch.rand(DRAWS, 5, generator=generator)
    torch.testing.assert_close(turned(x, draws)[3:4], turned(x[3:4], draws[:, 3:4]), atol=1e-6, rtol=0)


def test_changes_are_drawn_from_pytorchs_generator_or_not_at_all():
    x = spot(0, 20, 64).repeat(64, 1, 1, 1)
    before = torch.get_rng_state()
    assert augmented(x, "none") is x
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = augmented(x, "geometric")
        torch.manual_seed(3)
        assert torch.equal(augmented(x, "geometric"), first)
    places = [middle(one[None]) for one in first]
    assert {column > 0 for _, column in places} == {True, False}
    assert max(abs(row) for row, _ in places) == pytest.approx(10, abs=1.5)  # 20 sin 30, nearly
    assert {row > 0 for row, _ in places} == {True, False}
