"""Masked images: what is erased and kept adds up, cells become pixels, and fills are what they say."""

import pytest
import torch
from segarena.classifiers.masked_images import enlarge, erased, fill_of, kept


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
    blurred, noise = fill_of(x, "blur"), fill_of(x, "noise")
    assert float(blurred.std()) < 0.3 * float(x.std())
    assert float(blurred.mean()) == pytest.approx(float(x.mean()), abs=0.02)
    assert torch.allclose(fill_of(torch.full((1, 1, 32, 32), 0.7), "blur"), torch.tensor(0.7))
    assert 0 <= float(noise.min()) < 0.05
    assert float(noise.mean()) == pytest.approx(float(x.mean()), abs=0.03)
    assert not torch.equal(noise, fill_of(x, "noise"))
    assert torch.equal(fill_of(x, "noise", torch.zeros_like(x)), fill_of(x, "mean").expand_as(x))
    with pytest.raises(ValueError, match="did you mean 'blur'"):
        fill_of(x, "blurr")
