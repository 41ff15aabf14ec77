"""Prototypes and their terms, against plain loops over resized features (docs/rp-pgd.md, Method 7)."""

import pytest
import torch
import torch.nn.functional as F
from segarena.attacks.prototypes import class_masks, inter_class, intra_class, pool_masks, prototypes, resize_matrix

MODES = ("linear", "bilinear", "trilinear")


def resized(features, spatial):
    return F.interpolate(features, size=spatial, mode=MODES[len(spatial) - 1], align_corners=True)


def sim(u, v):
    return (1 + F.cosine_similarity(u, v, dim=0)) / 2


def slow_prototypes(features, labels, inside):
    """Of one image: class -> mean of its pixels' resized features."""
    full = resized(features[None], labels.shape)[0].flatten(1)
    pixels = {}
    for p in range(labels.numel()):
        if inside.flatten()[p]:
            pixels.setdefault(int(labels.flatten()[p]), []).append(full[:, p])
    return {label: torch.stack(found).mean(dim=0) for label, found in pixels.items()}, pixels


def slow_inter(found):
    names = sorted(found)
    pairs = [sim(found[a], found[b]) for a in names for b in names if a < b]
    return torch.stack(pairs).mean() if pairs else torch.zeros(())


def slow_intra(found, pixels, skip):
    values = []
    for label in sorted(set(found) - set(skip)):
        near = [sim(p, found[label]) for p in pixels[label]]
        low, high = ([s for s in near if (s >= 0.9) == is_high] for is_high in (False, True))
        values.append(0.75 * (sum(low) / max(len(low), 1)) + 0.25 * (sum(high) / max(len(high), 1)))
    return sum(values) / max(len(values), 1), values


def of(vectors, present=None):
    """Prototypes of one image from a list of vectors, each that of one pixel."""
    features = torch.tensor(vectors).T[None]
    masks = torch.eye(len(vectors))[None] if present is None else torch.tensor(present)[None]
    return prototypes(features, masks)


@pytest.mark.parametrize(
    ("vectors", "value"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], 0.5),
        ([[1.0, 0.0], [-1.0, 0.0]], 0.0),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], 0.735702),
        ([[1.0, 0.0]], 0.0),
    ],
)
def test_the_inter_class_term(vectors, value):
    assert inter_class(of(vectors)).item() == pytest.approx(value, abs=1e-6)
    assert inter_class(of(vectors), "ordered").item() == pytest.approx(2 * value, abs=2e-6)


TWO_CLASSES = of(
    [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
    [[0.0] * 6, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]],
)


def test_the_intra_class_term():
    assert TWO_CLASSES.vectors[0, 1:].tolist() == [[0.5, 0.5], [0.75, 0.25]]
    assert intra_class(TWO_CLASSES, skip=(0, 2)).item() == pytest.approx(0.640165, abs=1e-6)
    assert intra_class(TWO_CLASSES, skip=(0, 1)).item() == pytest.approx(0.737171, abs=1e-6)


def test_the_intra_class_term_over_classes():
    assert intra_class(TWO_CLASSES).item() == pytest.approx(0.688668, abs=1e-6)
    assert intra_class(TWO_CLASSES, aggregate="last").item() == pytest.approx(0.737171, abs=1e-6)
    assert intra_class(TWO_CLASSES, skip=(0, 1, 2)).item() == 0


def test_skipped_classes_do_not_count():
    background = of([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]])
    assert intra_class(background, skip=(0,)).item() == 0
    assert intra_class(background, skip=()).item() == pytest.approx(0.640165, abs=1e-6)


def test_masks_go_down_to_the_grid():
    mask = torch.tensor([[[1.0, 1.0, 0.0]]])
    assert torch.equal(resize_matrix(2, 3, mask), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    assert pool_masks(mask, torch.Size([2])).tolist() == [[[1.5, 0.5]]]
    found = prototypes(torch.tensor([[[4.0, 8.0]]]), mask)
    assert found.vectors.item() == pytest.approx(0.75 * 4 + 0.25 * 8)


@pytest.mark.parametrize(("grid", "full"), [((3,), (7,)), ((3, 5), (17, 9)), ((2, 3, 4), (5, 9, 7)), ((1, 4), (6, 4))])
def test_pooling_is_the_transposed_resize(grid, full):
    masks = (torch.rand(2, 3, *full, dtype=torch.float64) < 0.4).double()
    features = torch.randn(2, 3, *grid, dtype=torch.float64)
    there = (resized(features, full) * masks).flatten(2).sum(dim=2)
    here = (features * pool_masks(masks, torch.Size(grid))).flatten(2).sum(dim=2)
    assert torch.allclose(there, here, atol=1e-5)


@pytest.mark.parametrize(("grid", "full"), [((3, 4), (9, 10)), ((2, 3, 2), (5, 7, 4))])
def test_prototypes_and_terms_are_those_of_loops_over_pixels(grid, full):
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(2, 6, *grid, generator=generator) + 1
    labels = torch.randint(0, 4, (2, *full), generator=generator)
    inside = (torch.rand(2, *full, generator=generator) < 0.5) & (labels != 2)
    masks = class_masks(labels, inside, 4, features)
    fast, exact = prototypes(features, masks), prototypes(resized(features, full), masks)
    inter, intra = inter_class(fast), intra_class(exact)
    for image in range(2):
        found, pixels = slow_prototypes(features[image], labels[image], inside[image])
        assert fast.present[image].tolist() == [True, True, False, True]
        for label, vector in found.items():
            assert torch.allclose(fast.vectors[image, label], vector, atol=1e-5)
            assert torch.allclose(exact.vectors[image, label], vector, atol=1e-5)
        assert inter[image].item() == pytest.approx(slow_inter(found).item(), abs=1e-5)
        mean, values = slow_intra(found, pixels, skip=(0,))
        assert intra[image].item() == pytest.approx(mean.item(), abs=1e-5)
        last = intra_class(exact, aggregate="last")[image].item()
        assert last == pytest.approx(values[-1].item(), abs=1e-5)


def test_the_intra_class_term_on_the_grid_is_close_to_that_of_pixels():
    """Of smooth features, whose classes are larger than a cell of the grid."""
    generator = torch.Generator().manual_seed(6)
    features = resized(torch.randn(1, 8, 3, 3, generator=generator) + 0.5, (9, 9))
    labels = torch.arange(33).expand(33, 33)[None] // 11
    masks = class_masks(labels, labels >= 0, 3, features)
    near, exact = (intra_class(prototypes(x, masks)).item() for x in (features, resized(features, (33, 33))))
    assert near == pytest.approx(exact, abs=0.05)


def test_prototypes_of_a_batch_are_those_of_its_pixels_together():
    features, labels = torch.randn(3, 5, 4, 4), torch.randint(0, 3, (3, 7, 7))
    masks = class_masks(labels, labels != 0, 3, features)
    batch, images = prototypes(features, masks, "batch"), prototypes(features, masks)
    sizes = masks.flatten(2).sum(dim=2)
    mean = (images.vectors * sizes[..., None]).sum(dim=0) / sizes.sum(dim=0).clamp(min=1)[:, None]
    assert torch.allclose(batch.vectors[0], mean, atol=1e-5)
    joined = prototypes(
        features.transpose(0, 1).reshape(1, 5, 12, 4), masks.transpose(0, 1).reshape(1, 3, 21, 7), "image"
    )
    assert batch.present.tolist() == joined.present.tolist()
    assert inter_class(batch).shape == intra_class(batch).shape == (1,)
    assert intra_class(batch).item() != intra_class(images).mean().item()


def test_an_image_without_true_pixels_has_neither_terms_nor_gradients():
    features = torch.randn(2, 5, 4, 4, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 4))
    inside = torch.stack([torch.zeros(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)])
    found = prototypes(features, class_masks(labels, inside, 3, features))
    total = inter_class(found) + intra_class(found)
    assert total[0].item() == 0
    assert total[1].item() > 0
    (gradient,) = torch.autograd.grad(total.sum(), features)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[0], torch.zeros(5, 4, 4))
    assert gradient[1].abs().amax() > 0


def test_raising_the_terms_draws_features_together():
    """The inter-class term brings prototypes of two classes closer, the intra-class term a class to its prototype."""
    features = torch.tensor([[[1.0, 0.8, 0.1, -0.2], [0.1, -0.2, 1.0, 0.9]]], requires_grad=True)
    masks = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]])
    found = prototypes(features, masks)
    (gradient,) = torch.autograd.grad(inter_class(found).sum(), features)
    after = prototypes(features + 0.1 * gradient, masks)
    assert sim(after.vectors[0, 0], after.vectors[0, 1]) > sim(found.vectors[0, 0], found.vectors[0, 1])
    (gradient,) = torch.autograd.grad(intra_class(prototypes(features, masks), skip=()).sum(), features)
    moved = features + 0.1 * gradient
    assert sim(moved[0, :, 0], moved[0, :, 1]) > sim(features[0, :, 0], features[0, :, 1])
