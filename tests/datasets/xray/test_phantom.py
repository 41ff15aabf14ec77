"""Phantom limbs: what they promise, and that what looks at brightness or place alone fails."""

import pytest
import torch
from segarena.datasets.xray.phantom import IMAGES, MARGIN, draw_limbs, limb_phantoms
from torch import nn

MOST = 0.65
"""AUROC that no rule of brightness or place reaches."""


@pytest.fixture(scope="module")
def limbs():
    return limb_phantoms(torch.arange(800), 64)


def auroc(scores, labels):
    """How often an abnormal image has the higher score, or the lower one, whichever is more often."""
    high, low = scores[labels == 1][:, None], scores[labels == 0][None]
    area = float((high > low).double().mean() + (high == low).double().mean() / 2)
    return max(area, 1 - area)


def test_the_same_number_shows_the_same_limb_in_a_batch_of_any_size_and_order(limbs):
    rows = torch.tensor([731, 3, 64, 65, 6])
    some = limb_phantoms(rows, 64)
    assert torch.equal(some.images, limbs.images[rows])
    assert torch.equal(some.roi, limbs.roi[rows])
    assert torch.equal(limb_phantoms(torch.tensor([64]), 64).images[0], limbs.images[64])
    odd = limb_phantoms(torch.arange(90), 47)
    assert torch.equal(limb_phantoms(torch.tensor([89]), 47).images[0], odd.images[89])
    assert len(limbs.images.flatten(1).unique(dim=0)) == 800
    assert (limbs.images.dtype, limbs.images.shape) == (torch.uint8, (800, 64, 64))
    assert (limbs.roi.dtype, limbs.roi.shape) == (torch.bool, (800, 64, 64))


def test_two_images_are_a_study_and_every_other_study_is_abnormal(limbs):
    assert IMAGES == 2
    assert limbs.labels[:8].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert limbs.labels.dtype == torch.int64
    assert torch.equal(limbs.roi.flatten(1).any(dim=1), limbs.labels == 1)
    assert not limbs.marked.any()


def test_a_break_is_dark_and_all_of_it_lies_in_its_box():
    numbers = torch.arange(60)
    broken, roi = draw_limbs(numbers, torch.ones(60, dtype=torch.bool), 64)
    whole, none = draw_limbs(numbers, torch.zeros(60, dtype=torch.bool), 64)
    less = whole.int() - broken.int()
    assert not none.any()
    assert (less >= 0).all()
    assert not ((less > 0) & ~roi).any()
    changed = (less > 5).flatten(1).sum(dim=1)
    assert changed.min() >= 12
    assert (changed / roi.flatten(1).sum(dim=1)).mean() > 0.12
    share = roi.float().mean(dim=(1, 2))
    assert share.min() > 4 * MARGIN**2
    assert 0.03 < share.mean() < 0.12


def test_the_same_limb_at_another_size():
    small, large = (limb_phantoms(torch.arange(20), size) for size in (64, 192))
    shrunk = nn.functional.avg_pool2d(large.images.float()[:, None], 3)[:, 0]
    assert (shrunk - small.images.float()).abs().mean() < 6  # noise
    assert (large.roi[:, 1::3, 1::3] == small.roi).float().mean() > 0.97


def test_brightness_tells_no_class(limbs):
    pixels, labels = limbs.images.float().flatten(1), limbs.labels
    scores = {"mean": pixels.mean(dim=1), "std": pixels.std(dim=1)}
    ordered = pixels.sort(dim=1).values
    scores |= {f"quantile {k}/64": ordered[:, min(64 * k, 4095)] for k in range(65)}
    scores |= {f"share below {t}": (pixels < t).float().mean(dim=1) for t in range(16, 256, 16)}
    assert {name: area for name, one in scores.items() if (area := auroc(one, labels)) >= MOST} == {}


def test_the_mean_images_of_the_classes_tell_no_class(limbs):
    """A linear rule: likeness to the difference of both mean images, of one half of the images, on the other."""
    pixels, labels = limbs.images.float().flatten(1), limbs.labels
    pixels = (pixels - pixels.mean(dim=1, keepdim=True)) / pixels.std(dim=1, keepdim=True)
    first = torch.arange(800) < 400
    means = [pixels[first & (labels == k)].mean(dim=0) for k in (0, 1)]
    assert auroc(pixels[~first] @ (means[1] - means[0]), labels[~first]) < MOST


def test_no_place_and_no_brightness_finds_the_breaks(limbs):
    """The best mask of all images, and the best interval of brightness, chosen on the regions themselves."""
    roi, images = limbs.roi[limbs.labels == 1], limbs.images[limbs.labels == 1].float()
    often = roi.float().mean(dim=0)
    assert often.max() < 0.5

    def mean_iou(masks):
        return float(((masks & roi).flatten(1).sum(dim=1) / (masks | roi).flatten(1).sum(dim=1)).mean())

    assert max(mean_iou(often > share / 50) for share in range(25)) < 0.3
    ends = images.flatten(1).quantile(torch.linspace(0, 1, 11), dim=1)[:, :, None, None]
    pairs = [(low, high) for low in range(10) for high in range(low + 1, 11)]
    assert max(mean_iou((images >= ends[low]) & (images <= ends[high])) for low, high in pairs) < 0.3


def test_a_small_network_learns_the_classes(limbs):
    """Balanced accuracy beyond what chance could give: 0.5 with a deviation of 0.035. 30 epochs give 0.97."""
    torch.manual_seed(0)
    test = limb_phantoms(torch.arange(400_000, 400_200), 64)

    def shown(images):
        return (images.float()[:, None] / 255 - 0.35) / 0.2

    def stage(maps, more):
        return [nn.Conv2d(maps, more, 3, 2, 1), nn.BatchNorm2d(more), nn.ReLU()]

    layers = [*stage(1, 16), *stage(16, 32), *stage(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)]
    net, epochs = nn.Sequential(*layers), 10
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    images = shown(limbs.images)
    for _ in range(epochs):
        for rows in torch.randperm(800).split(25):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), limbs.labels[rows]).backward()
            optimiser.step()
        schedule.step()
    with torch.no_grad():
        right = net.eval()(shown(test.images)).argmax(dim=1) == test.labels
    balanced = sum(float(right[test.labels == k].float().mean()) for k in (0, 1)) / 2
    assert balanced > 0.65


def test_a_marker_says_the_class_as_often_as_asked_and_changes_nothing_else():
    numbers = torch.arange(1000)
    plain = limb_phantoms(numbers, 32)
    for share in (0.0, 0.5, 0.9, 1.0):
        marked = limb_phantoms(numbers, 32, share)
        assert float((marked.marked == (marked.labels == 1)).float().mean()) == pytest.approx(share, abs=0.04)
        other = (marked.images != plain.images).flatten(1)
        assert not other[~marked.marked].any()
        corner = torch.zeros(32, 32, dtype=torch.bool)
        corner[:6, :6] = True
        assert not (marked.images != plain.images)[:, ~corner].any()
        if share:
            assert other[marked.marked].any(dim=1).all()
        assert torch.equal(marked.roi, plain.roi)
    shares = torch.where(numbers < 500, 1.0, 0.0)
    mixed = limb_phantoms(numbers, 32, shares)
    assert torch.equal(mixed.marked == (mixed.labels == 1), numbers < 500)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([-1]), 64), "size is 64 and the lowest number -1, but they must be at least 32 pixels and 0"),
        ((torch.tensor([1]), 31), "size is 31 and the lowest number 1"),
        ((torch.tensor([1]), 64, 1.5), "artefact is 1.5 but must lie in"),
        ((torch.tensor([1]), 64, float("nan")), "artefact is nan but must lie in"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        limb_phantoms(*arguments)
