"""Phantom scenes: what they promise, and that what looks at colour or place alone fails."""

import pytest
import torch
from scipy import ndimage
from segarena.datasets.images import IGNORED
from segarena.datasets.scenes.phantom import CLASSES, LARGEST, scene_phantom

MOST = 0.25
"""Mean IoU that no rule of colour or place reaches."""


@pytest.fixture(scope="module")
def scenes():
    return [scene_phantom(number, 96) for number in range(60)]


@pytest.fixture(scope="module")
def images(scenes):
    return torch.stack([scene.image for scene in scenes])


@pytest.fixture(scope="module")
def labels(scenes):
    return torch.stack([scene.label for scene in scenes])


def mean_iou(prediction, labels):
    """Mean IoU over all classes, of all pixels together."""
    valid, found = labels != IGNORED, []
    for k in range(len(CLASSES)):
        one, other = (prediction == k) & valid, (labels == k) & valid
        found.append(float((one & other).sum() / (one | other).sum()))
    return sum(found) / len(found)


def test_the_same_number_shows_the_same_scene_and_another_one_another():
    one, again, other = scene_phantom(7, 65), scene_phantom(7, 65), scene_phantom(8, 65)
    assert torch.equal(one.image, again.image)
    assert torch.equal(one.label, again.label)
    assert not torch.equal(one.image, other.image)
    assert (one.id, scene_phantom(200_000, 65).id) == ("scene_000007", "scene_200000")
    assert (one.image.dtype, one.image.shape) == (torch.uint8, (3, 65, 65))
    assert (one.label.dtype, one.label.shape) == (torch.uint8, (65, 65))


def test_the_same_scene_at_another_size():
    small, large = scene_phantom(3, 65), scene_phantom(3, 129)
    shrunk = large.label[::2, ::2]
    both = (small.label != IGNORED) & (shrunk != IGNORED)
    assert (small.label == shrunk)[both].float().mean() > 0.97
    assert scene_phantom(3, 473).image.shape == (3, 473, 473)


def test_every_class_is_often_there_and_small_and_large_objects_are(labels):
    present = [int((labels == k).flatten(1).any(dim=1).sum()) for k in range(len(CLASSES))]
    assert min(present) >= 20
    pieces = []
    for label in labels.numpy():
        for k in range(1, len(CLASSES)):
            parts, number = ndimage.label(label == k)
            pieces += ndimage.sum_labels(label == k, parts, range(1, number + 1)).tolist()
    shares = torch.tensor(pieces) / labels[0].numel()
    assert (shares < 0.005).sum() > 20
    assert (shares > 0.1).sum() > 20
    assert shares.max() < 4 * LARGEST**2


def test_borders_between_objects_are_ignored(labels):
    share = (labels == IGNORED).float().mean()
    assert 0.02 < share < 0.15
    for label in labels:
        row = label.int()
        edges = (row[:, 1:] != row[:, :-1]) & (row[:, 1:] != IGNORED) & (row[:, :-1] != IGNORED)
        assert not edges.any()


def test_the_best_threshold_of_each_class_fails(images, labels):
    """For each class the best interval of any colour channel or of brightness, chosen on the labels themselves."""
    channels = torch.cat([images.float(), images.float().mean(dim=1, keepdim=True)], dim=1)
    bins = (channels / 256 * 12).long()
    valid, best = labels != IGNORED, []
    for k in range(len(CLASSES)):
        inside, highest = (labels == k) & valid, 0.0
        for channel in range(4):
            mine = torch.bincount(bins[:, channel][inside], minlength=12).cumsum(0)
            everything = torch.bincount(bins[:, channel][valid], minlength=12).cumsum(0)
            mine, everything = (torch.cat([torch.zeros(1), counts]) for counts in (mine, everything))
            hit, predicted = (counts[None] - counts[:, None] for counts in (mine, everything))
            iou = hit / (predicted + inside.sum() - hit)
            highest = max(highest, float(iou.triu(1).max()))
        best.append(highest)
    assert best[0] > 0.5  # all of the image
    assert sum(best) / len(best) < MOST


def test_the_most_frequent_class_of_each_colour_fails(images, labels):
    """512 colours, learned from half of the scenes."""
    colours = (images.long() // 32 * torch.tensor([64, 8, 1])[:, None, None]).sum(dim=1)
    known = labels[:30] != IGNORED
    counts = torch.zeros(512, len(CLASSES))
    counts.index_put_((colours[:30][known], labels[:30][known].long()), torch.ones(()), accumulate=True)
    assert mean_iou(counts.argmax(dim=1)[colours[30:]], labels[30:]) < MOST


def test_the_mean_label_map_fails(labels):
    """The most frequent class of each place, of the scenes themselves."""
    places = torch.stack([(labels[:30] == k).sum(dim=0) for k in range(len(CLASSES))]).argmax(dim=0)
    assert mean_iou(places.expand(30, -1, -1), labels[30:]) < MOST
    assert mean_iou(labels, labels) == 1.0


def test_classes_have_different_textures(images, labels):
    """What a network can learn from: stripes run in one direction, grain has more of the finest differences, ..."""
    grey = images.float().mean(dim=1)
    steps = (grey[:, :, 1:] - grey[:, :, :-1]).abs()[:, 1:] + (grey[:, 1:] - grey[:, :-1]).abs()[:, :, 1:]
    inner = labels[:, 1:, 1:]
    busy = [float(steps[inner == k].mean()) for k in range(len(CLASSES))]
    assert min(busy[1:]) > 2 * busy[0]


@pytest.mark.parametrize(("number", "size"), [(-1, 64), (0, 15)])
def test_wrong_arguments_are_refused(number, size):
    with pytest.raises(ValueError, match=f"number {number} must not be negative, and size {size} must be at least 16"):
        scene_phantom(number, size)
