"""Epsilon, ranges and the ball (docs/rp-pgd.md, Method 2)."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segarena.attacks.budget import Epsilon, LinfBall, as_bounds, image_range


@pytest.mark.parametrize(
    ("given", "value", "shown"),
    [
        (0.03, 0.03, "0.03 (7.65/255)"),
        ("0.03", 0.03, "0.03 (7.65/255)"),
        ("8/255", 8 / 255, "8/255 (0.0313725)"),
        (" 8/255 ", 8 / 255, "8/255 (0.0313725)"),
        (Fraction(2, 255), 2 / 255, "2/255 (0.00784314)"),
        (1, 1.0, "1 (255/255)"),
    ],
)
def test_epsilon_is_read_and_shown_as_given(given, value, shown):
    eps = Epsilon.parse(given)
    assert eps.value == pytest.approx(value, abs=1e-12)
    assert str(eps) == shown
    assert Epsilon.parse(eps) is eps


def test_the_two_usual_budgets_are_not_one():
    assert Epsilon.parse("0.03").grey_levels == pytest.approx(7.65)
    assert Epsilon.parse("8/255").value == pytest.approx(0.0313725, abs=1e-7)


@pytest.mark.parametrize("wrong", [0, -0.03, "0", "-8/255", 1.5, "nan", "inf", "8/0", "eight", None, True, ""])
def test_epsilon_outside_the_range_is_refused(wrong):
    with pytest.raises(ValueError, match=r"eps is .* but must be above 0 and at most 1"):
        Epsilon.parse(wrong)


def test_grey_levels_without_their_unit_get_a_hint():
    with pytest.raises(ValueError, match=r"8 grey levels are 8/255"):
        Epsilon.parse(8)


def test_projected_steps():
    """x = 0.5, eps = 0.03, four steps of + 0.01; and both ends of the range."""
    ball = LinfBall.around(torch.tensor([[[0.5, 0.995, 0.01]]]), 0.03)
    x, seen = ball.images, []
    for _ in range(4):
        x = ball.project(x + 0.01 * torch.tensor([1.0, 1.0, -1.0]))
        seen.append(x.flatten().tolist())
    values = torch.tensor(seen).T
    assert torch.allclose(values[0], torch.tensor([0.51, 0.52, 0.53, 0.53]), atol=1e-6)
    assert torch.equal(values[1], torch.ones(4))
    assert torch.equal(values[2], torch.zeros(4))


@settings(deadline=None, max_examples=40)
@given(axes=st.integers(1, 3), seed=st.integers(0, 10_000), eps=st.floats(1e-3, 1.0))
def test_projection_never_leaves_ball_or_range(axes, seed, eps):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, *torch.randint(1, 5, (axes,), generator=generator).tolist())
    images = torch.randn(shape, generator=generator) * 10 ** torch.randint(-2, 4, (3, *[1] * axes), generator=generator)
    low, high = image_range(images)
    ball = LinfBall.around(images, eps, (low, high))
    radius = eps * (high - low)
    for x in (ball.project(images + 3 * radius * torch.randn(shape, generator=generator)), ball.random(generator)):
        tolerance = 1e-6 * (1 + images.abs().amax())
        assert ((x - images).abs() <= radius + tolerance).all()
        assert ((x >= low) & (x <= high)).all()
        assert torch.equal(ball.project(x), x)
    assert torch.equal(ball.project(images), images)


def test_each_channel_has_its_own_epsilon_and_range():
    images = torch.tensor([[[0.0, 10.0], [5.0, 5.0], [-1.0, 1.0]]])
    ball = LinfBall.around(images, torch.tensor([0.1, 0.1, 0.5]).view(1, 3, 1), image_range(images))
    assert torch.equal(ball.radius.flatten(), torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(ball.project(images + 100), torch.tensor([[[1.0, 10.0], [5.0, 5.0], [0.0, 1.0]]]))


def test_a_ball_of_the_images_own_range_is_that_of_its_bounds():
    images = torch.randn(3, 2, 4, 4)
    checked = LinfBall.around(images, torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1), image_range(images))
    own = LinfBall.of_range(images, torch.tensor([0.1, 0.2, 0.3]))
    for name in ("images", "lower", "upper", "radius"):
        assert torch.equal(getattr(own, name), getattr(checked, name)), name


def test_a_window_is_what_epsilon_is_a_share_of_and_what_no_image_leaves():
    images = torch.randn(4, 1, 5, 5, 5)
    wide = LinfBall.of_range(images, 0.1, (-5.0, 5.0))
    checked = LinfBall.around(images, 0.1, (-5.0, 5.0))
    assert wide.radius.shape == image_range(images)[0].shape
    assert wide.radius.unique().tolist() == pytest.approx([1.0])
    for name in ("lower", "upper"):
        assert torch.equal(getattr(wide, name), getattr(checked, name)), name
    assert bool((wide.upper.amax(dim=(2, 3, 4)) > images.amax(dim=(2, 3, 4))).all()), "the own range may be left"
    narrow = LinfBall.of_range(images, 0.1, (-1.0, 1.0))
    assert torch.equal(narrow.upper.amax(), images.amax()), "a voxel outside of the window may stay"


def test_a_random_start_fills_the_ball_and_repeats():
    images = torch.full((1, 1, 40, 40), 0.5)
    ball = LinfBall.around(images, 0.1)
    first, second = (ball.random(torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    noise = first - images
    assert noise.min() < -0.099
    assert noise.max() > 0.099
    assert noise.mean().abs() < 0.01


@pytest.mark.parametrize(
    ("images", "bounds", "match"),
    [
        (torch.tensor([[[0.5, 1.5]]]), (0.0, 1.0), r"images have values in \[0.5, 1.5\]"),
        (torch.tensor([[[0.5, torch.nan]]]), (0.0, 1.0), "without NaN"),
        (torch.tensor([[[0.5]]]), (1.0, 0.0), "the lower one must be below"),
        (torch.tensor([[[0.5]]]), (0.5, 0.5), "the lower one must be below"),
    ],
)
def test_images_outside_of_their_bounds_are_refused(images, bounds, match):
    with pytest.raises(ValueError, match=match):
        as_bounds(images, bounds)


@pytest.mark.parametrize("images", [torch.zeros(2, 3), torch.zeros(2, 3, 4, dtype=torch.uint8)])
def test_images_of_another_shape_or_type_are_refused(images):
    with pytest.raises(ValueError, match="must be floating point"):
        LinfBall.around(images, 0.1)


def test_a_ball_without_radius_is_refused():
    with pytest.raises(ValueError, match=r"eps is .* but each must be above 0"):
        LinfBall.around(torch.rand(1, 2, 3), torch.tensor([0.1, 0.0]).view(1, 2, 1))
