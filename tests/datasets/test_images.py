"""A pool of images: rows stay together, and what does not belong together is refused."""

from dataclasses import replace

import pytest
import torch
from segarena.datasets.images import ImagePool, KnownLabels


def pool(number=4, height=3, width=5, channels=2, first=0, **changes):
    count = torch.arange(first, first + number, dtype=torch.uint8)
    fields = {
        "images": count[:, None, None, None].expand(number, channels, height, width).clone(),
        "labels": (count % 3)[:, None, None].expand(number, height, width).clone(),
        "ids": [f"image{n}" for n in count.tolist()],
        "groups": [f"patient{n // 2}" for n in count.tolist()],
        "tags": {"view": ["left", "right"] * (number // 2)},
        "spacing_mm": torch.full((number, 2), 0.5, dtype=torch.float64) + count[:, None],
        "classes": ("background", "left", "right"),
        "origin": "real",
    }
    return ImagePool(**(fields | changes))


def test_bytes_become_grey_values_between_0_and_1():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None]
    three = pool(3, 1, 1, 1, images=images, tags={})
    assert three.at(torch.tensor([2, 1])).flatten().tolist() == pytest.approx([1.0, 0.2])


def test_all_fields_of_a_row_move_together():
    taken = pool().take([3, 0])
    assert len(taken) == 2
    assert taken.images[:, 0, 0, 0].tolist() == [3, 0]
    assert taken.labels[:, 0, 0].tolist() == [0, 0]
    assert (taken.ids, taken.groups, taken.tags["view"]) == (
        ["image3", "image0"],
        ["patient1", "patient0"],
        ["right", "left"],
    )
    assert taken.spacing_mm[:, 0].tolist() == [3.5, 0.5]
    joined = ImagePool.concatenate([pool(2, first=2), pool(2)])
    again = ImagePool.concatenate([pool().take([2, 3]), pool().take([0, 1])])
    assert torch.equal(joined.images, again.images)
    assert torch.equal(joined.labels, again.labels)
    assert (joined.ids, joined.groups, joined.tags) == (again.ids, again.groups, again.tags)
    assert torch.equal(joined.spacing_mm, again.spacing_mm)


def test_labels_of_some_images_stay_with_their_rows():
    mixed = ImagePool.concatenate([pool(2).without_labels(), pool(2, first=2), pool(2, first=4)])
    assert mixed.labels is None
    assert mixed.some_labels.rows == [2, 3, 4, 5]
    assert mixed.unlabelled == ["image0", "image1"]
    assert (pool().unlabelled, pool(2).without_labels().unlabelled) == ([], ["image0", "image1"])
    taken = mixed.take([5, 0, 3])
    assert taken.known_labels.rows == [0, 2]
    assert taken.known_labels.labels[:, 0, 0].tolist() == [5 % 3, 3 % 3]
    assert mixed.take([4, 2]).labels[:, 0, 0].tolist() == [4 % 3, 2]
    assert mixed.take([4, 2]).some_labels is None
    assert mixed.take([1, 0]).known_labels is None
    assert mixed.without_labels().known_labels is None
    assert pool().known_labels.rows == [0, 1, 2, 3]
    assert ImagePool.concatenate([pool().without_labels()]).known_labels is None
    with pytest.raises(ValueError, match=r"labels reach 2 but must be 0\.\.1"):
        mixed.checked(channels=2, classes=2)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([0, 1, 2, 3], torch.zeros(4, 3, 5, dtype=torch.uint8), "names 4 of 4 images; of all of them give labels"),
        ([1, 0], torch.zeros(2, 3, 5, dtype=torch.uint8), r"rows of some_labels are \[1, 0\] but must ascend"),
        ([0, 4], torch.zeros(2, 3, 5, dtype=torch.uint8), r"lie in 0\.\.3"),
        ([0, 1], torch.zeros(3, 3, 5, dtype=torch.uint8), r"must be uint8 \(2, 3, 5\)"),
    ],
)
def test_some_labels_must_fit_the_images(rows, labels, message):
    with pytest.raises(ValueError, match=message):
        pool(labels=None, some_labels=KnownLabels(rows, labels))


@pytest.mark.parametrize(
    "other",
    [pool(height=4), pool(origin="phantom"), pool(tags={}), pool(classes=("background", "bone")), None],
    ids=["size", "origin", "tags", "classes", "nothing at all"],
)
def test_only_like_pools_are_joined(other):
    with pytest.raises(ValueError, match="pools of one size, origin, set of tags and classes"):
        ImagePool.concatenate([] if other is None else [pool(), other])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(4, 2, 3, 5)}, r"images are torch\.float32 \(4, 2, 3, 5\) but must be uint8"),
        ({"images": torch.zeros(4, 3, 5, dtype=torch.uint8)}, r"must be uint8 \[N, C, H, W\]"),
        ({"images": torch.zeros(0, 2, 3, 5, dtype=torch.uint8)}, "N at least 1"),
        ({"labels": torch.zeros(4, 3, 5)}, r"labels are torch\.float32"),
        ({"labels": torch.zeros(4, 5, 3, dtype=torch.uint8)}, r"labels are .* but must be uint8 \(4, 3, 5\)"),
        ({"labels": torch.zeros(4, 3, 5, dtype=torch.uint8, device="meta")}, "labels lie on meta but images on cpu"),
        ({"ids": ["a"]}, "ids has 1 entries but there are 4 images"),
        ({"groups": ["a"] * 5}, "groups has 5 entries"),
        ({"tags": {"view": []}}, "view has 0 entries"),
        ({"spacing_mm": torch.ones(4, 2)}, r"spacing_mm is torch\.float32 \(4, 2\) but must be float64 \(4, 2\)"),
        ({"spacing_mm": torch.ones(2, 4, dtype=torch.float64)}, r"must be float64 \(4, 2\)"),
        ({"spacing_mm": torch.zeros(4, 2, dtype=torch.float64)}, "not positive; write NaN"),
    ],
)
def test_fields_that_do_not_belong_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        pool(**changes)


def test_a_spacing_may_be_unknown():
    assert pool(spacing_mm=torch.full((4, 2), torch.nan, dtype=torch.float64)).spacing_mm.isnan().all()


def test_a_reader_can_ask_for_channels_and_classes():
    one = pool()
    assert one.checked(channels=2, classes=3) is one
    assert replace(one, labels=None).checked(channels=2, classes=1).labels is None
    with pytest.raises(ValueError, match="images have 2 channels but 1 is needed"):
        one.checked(channels=1, classes=3)
    with pytest.raises(ValueError, match=r"labels reach 2 but must be 0\.\.1"):
        one.checked(channels=2, classes=2)
