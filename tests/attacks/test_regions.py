"""Regions, and the weight of each pixel (docs/rp-pgd.md, Method 4 and 5)."""

from dataclasses import replace

import pytest
import torch
from segarena.attacks.methods import cospgd, region, segpgd
from segarena.attacks.options import RPOptions
from segarena.attacks.regions import (
    BOUNDARY,
    FALSE,
    GROUPS,
    IGNORED,
    TRUE,
    Weighting,
    groups,
    next_regions,
    pixel_weights,
    region_schedule,
    start_regions,
)

X, T, F, B = IGNORED, TRUE, FALSE, BOUNDARY
LABELS = torch.tensor([[0, 1, 1, 2, 255, 0]])
PREDICTED = torch.tensor([[[0, 1, 0, 2, 1, 1]], [[1, 1, 1, 2, 0, 1]], [[0, 1, 1, 0, 2, 0]]])
LOSSES = torch.tensor([[0.1, 0.2, 2.0, 0.3, 0.0, 1.5]])


def automaton(**options):
    regions = [start_regions(PREDICTED[0] == LABELS, LABELS != 255, **options)]
    for predicted in PREDICTED[1:]:
        regions.append(next_regions(regions[-1], predicted == LABELS))
    return torch.stack(regions)[:, 0].tolist()


def test_the_automaton():
    assert automaton() == [[T, T, F, T, X, F], [B, T, F, T, X, F], [B, T, F, B, X, F]]


def test_ignored_pixels_can_count_as_false():
    assert automaton(ignore_as_false=True) == [[T, T, F, T, F, F], [B, T, F, T, F, F], [B, T, F, B, F, F]]


def test_groups_split_regions_by_what_is_right_now():
    found = groups(torch.tensor([[B, T, F, B, X, F]]), PREDICTED[2] == LABELS)
    names = [("ignored", *GROUPS)[number] for number in found[0].tolist()]
    assert names == ["boundary_right", "true", "false_right", "boundary_wrong", "ignored", "false_right"]


@pytest.mark.parametrize(
    ("t", "weights"),
    [(1, (5 / 6, 0, 1 / 6)), (2, (2 / 3, 1 / 6, 1 / 6)), (3, (1 / 2, 1 / 3, 1 / 6)), (0, (1, -1 / 6, 1 / 6))],
)
def test_the_schedule_of_regions(t, weights):
    assert region_schedule(t, 3) == pytest.approx(weights)
    assert sum(region_schedule(t, 3)) == pytest.approx(1)


def region_loss(t, options, regions):
    """The weighted sum of losses; `region` counts t from 0, and weighs all of them by w_region."""
    weighting = region(t, 3, replace(options, w_region=1.0))
    return (pixel_weights(torch.tensor([regions]), PREDICTED[1] == LABELS, weighting) * LOSSES).sum().item()


def test_the_region_loss():
    regions = [B, T, F, T, X, F]
    assert region_loss(1, RPOptions(), regions) == pytest.approx(0.475)
    assert region_loss(1, RPOptions(region_norm="global"), regions) == pytest.approx(0.186667, abs=1e-6)
    assert region_loss(1, RPOptions(), [B, T, F, T, F, F]) == pytest.approx(0.377778, abs=1e-6)
    assert region_loss(2, RPOptions(lambda_base=0), regions) == pytest.approx(0.475)


@pytest.mark.parametrize(("share", "ratio"), [(0.05, 3.8), (0.1, 1.8), (0.3, 0.466667), (1 / 6, 1.0)])
def test_means_of_regions_favour_false_pixels_while_they_are_few(share, ratio):
    pixels = 6000
    right = torch.arange(pixels)[None] >= round(share * pixels)
    weights = pixel_weights(start_regions(right, right | True), right, region(0, 3, RPOptions()))
    assert (weights[0, 0] / weights[0, -1]).item() == pytest.approx(ratio, abs=1e-5)


def test_segpgd_weighs_right_and_wrong_pixels():
    right = torch.tensor([[True, False]])
    weights = pixel_weights(start_regions(right, right | True), right, segpgd(2, 4, RPOptions()))
    assert (weights * torch.tensor([[0.2, 1.0]])).sum().item() == pytest.approx(0.2)


def slow_weights(regions, right, weighting, confidence, over_batch):
    """Pixel by pixel."""
    result = torch.zeros(regions.shape)
    for image in range(len(regions)):
        valid = sum(int(r) != X for r in regions[image].flatten())
        for p in range(regions[image].numel()):
            r, ok = int(regions[image].flatten()[p]), bool(right[image].flatten()[p])
            if r == X:
                continue
            name = {
                T: "true",
                B: "boundary_" + ("right" if ok else "wrong"),
                F: "false_" + ("right" if ok else "wrong"),
            }[r]
            weight, mean = getattr(weighting, name)[image], weighting.region_mean[image]
            size = sum(int(other) == r for other in (regions if over_batch else regions[image]).flatten())
            value = weight * (mean / size + (1 - mean) / valid)
            result[image].view(-1)[p] = value * confidence[image].flatten()[p] ** weighting.confidence[image]
    return result


@pytest.mark.parametrize("over_batch", [False, True])
@pytest.mark.parametrize("shape", [(2, 5), (2, 4, 3), (2, 3, 2, 2)])
def test_weights_are_those_of_a_loop_over_pixels(shape, over_batch):
    generator = torch.Generator().manual_seed(1)
    regions = torch.randint(0, 4, shape, generator=generator).to(torch.uint8)
    right = (torch.rand(shape, generator=generator) < 0.5) | (regions == T)
    confidence = torch.rand(shape, generator=generator)
    weighting = Weighting(*torch.rand(7, 2, generator=generator))
    fast = pixel_weights(regions, right, weighting, confidence=confidence, over_batch=over_batch)
    assert torch.allclose(fast, slow_weights(regions, right, weighting, confidence, over_batch), atol=1e-6)


def test_confidence_weighs_only_where_it_is_asked_for():
    right = torch.ones(1, 4, dtype=torch.bool)
    regions, sure = start_regions(right, right), torch.tensor([[0.0, 0.5, 1.0, 0.25]])
    assert torch.allclose(pixel_weights(regions, right, cospgd(0, 1, RPOptions()), confidence=sure), sure / 4)
    assert torch.allclose(pixel_weights(regions, right, Weighting(), confidence=sure), torch.full((1, 4), 0.25))


def test_no_pixel_counts_where_none_is_valid():
    right = torch.zeros(1, 4, dtype=torch.bool)
    regions = start_regions(right, right)
    assert torch.equal(pixel_weights(regions, right, Weighting(region_mean=0.5)), torch.zeros(1, 4))
