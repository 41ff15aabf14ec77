"""Masked images: what is erased and kept adds up, cells become pixels, and fills are what they say."""

import pytest
import torch
from segarena.classifiers.masked_images import blurred, enlarge, erased, fill_of, kept
from segarena.envs import apga_actions


def test_erased_and_kept_add_up_to_the_image():
    x = torch.tensor([[10.0, 20.0], [30.0, 40.0]])[None, None]
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None]
    assert erased(x, mask)[0, 0].tolist() == [[0, 20], [0, 40]]
    assert kept(x, mask)[0, 0].tolist() == [[10, 0], [30, 0]]
    assert torch.equal(erased(x, mask) + kept(x, mask), x)
    fill = torch.full_like(x, 5.0)
    assert erased(x, mask, fill)[0, 0].tolist() == [[5, 20], [5, 40]]
    assert kept(x, mask > 0, fill)[0, 0].tolist() == [[10, 5], [30, 5]]
    soft = torch.full_like(x, 0.25, requires_grad=True)
    assert torch.allclose(erased(x, soft), 0.75 * x)
    (gradient,) = torch.autograd.grad(erased(x, soft).sum(), soft)
    assert torch.equal(gradient, -x)


def test_cells_become_squares_of_pixels():
    mask = enlarge(torch.tensor([[1, 0], [0, 1]])[None, None], 4)[0, 0]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    with pytest.raises(ValueError, match="grid is 3 but must divide the 8 pixels"):
        enlarge(torch.zeros(1, 1, 3, 3), 8)


def test_fills():
    torch.manual_seed(0)
    x = torch.rand(2, 1, 32, 32)
    assert fill_of(x, "zero") is None
    assert torch.allclose(fill_of(x, "mean")[:, 0, 0, 0], x.mean(dim=(1, 2, 3)))
    smooth, noise = fill_of(x, "blur"), fill_of(x, "noise")
    assert float(smooth.std()) < 0.3 * float(x.std())
    assert float(smooth.mean()) == pytest.approx(float(x.mean()), abs=0.02)
    assert torch.allclose(fill_of(torch.full((1, 1, 32, 32), 0.7), "blur"), torch.tensor(0.7))
    assert 0 <= float(noise.min()) < 0.05
    assert float(noise.mean()) == pytest.approx(float(x.mean()), abs=0.03)
    assert not torch.equal(noise, fill_of(x, "noise"))
    assert torch.equal(fill_of(x, "noise", torch.zeros_like(x)), fill_of(x, "mean").expand_as(x))
    with pytest.raises(ValueError, match="did you mean 'blur'"):
        fill_of(x, "blurr")


def test_a_blur_keeps_what_is_constant_and_spreads_a_point_evenly():
    torch.testing.assert_close(blurred(torch.full((2, 1, 5, 7), 0.3), 1.0, 1), torch.full((2, 1, 5, 7), 0.3))
    point = torch.zeros(1, 1, 7, 7)
    point[..., 3, 3] = 1
    spread = blurred(point, 1.0, 1)[0, 0]
    torch.testing.assert_close(spread, spread.T)
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0))
    assert (spread > 0).sum() == 9  # 2 radius_px + 1 a side
    torch.testing.assert_close(spread[3, 2] / spread[3, 3], torch.tensor(-0.5).exp())  # the Gaussian, one deviation off


@pytest.mark.parametrize("number", [2, 3, 8])
def test_a_blurred_image_is_the_same_alone_and_in_any_batch(number):
    x = torch.rand(number, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    together = fill_of(x, "blur")
    for one, alone in zip(together, x, strict=True):
        assert torch.equal(fill_of(alone[None], "blur")[0], one)


def test_the_environment_masks_and_smooths_by_the_same_functions():
    assert apga_actions.enlarge is enlarge
    assert apga_actions.blurred is blurred
    cells = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apga_actions.MaskActions("patch", 16, 4).masks(cells > 0.5), enlarge(cells > 0.5, 16))
    beta = apga_actions.MaskActions("beta", 16, 4)
    smooth = apga_actions.MaskActions("beta", 16, 4, blur_sigma_px=2.0).masks(cells)
    assert torch.equal(smooth, blurred(beta.masks(cells), 2.0, 2))
