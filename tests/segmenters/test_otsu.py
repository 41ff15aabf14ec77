"""Otsu's threshold."""

import numpy as np
import torch
from segarena.segmenters.otsu import otsu_masks, otsu_thresholds
from skimage.filters import threshold_otsu


def test_thresholds_are_those_of_scikit_image():
    generator = torch.Generator().manual_seed(0)
    dark = torch.randint(0, 90, (6, 1, 12, 10), generator=generator)
    images = torch.where(torch.rand(dark.shape, generator=generator) < 0.3, dark + 120, dark).to(torch.uint8)
    for image, found in zip(images, otsu_thresholds(images), strict=True):
        pixels = image.numpy()
        expected = threshold_otsu(pixels)
        assert np.array_equal(pixels > expected, pixels > int(found))


def test_a_constant_image_has_no_foreground():
    images = torch.full((2, 1, 4, 4), 200, dtype=torch.uint8)
    images[1, 0, 0, 0] = 255
    assert otsu_masks(images).flatten(1).sum(dim=1).tolist() == [0, 1]
