"""The rules of anatomy: known hearts, one case for every rule, and the fast path against a plain one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree
from segarena.rewards.echo_validity import (
    METRICS,
    anatomical_metrics,
    anatomical_reward,
    broken_rules,
    is_valid,
    valid_masks,
)

LV, MYO = 1, 2
EDGES = ndimage.generate_binary_structure(2, 1)
CORNERS = ndimage.generate_binary_structure(2, 2)


# -- the rules, word by word: docs/rl4seg.md, Method 9 -------------------------------------------------------------


def plain_metrics(mask):
    """The nine metrics as docs/rl4seg.md, Method 9, has them: on the whole image, every step as it stands there."""
    lv, myo = mask == LV, mask == MYO
    size = mask.shape[0] * mask.shape[1] / 2**14
    return dict(
        zip(
            METRICS,
            [
                0.0 if lv.any() else 1.0,
                plain_holes(lv),
                plain_disconnectivity(lv),
                plain_disconnectivity(myo),
                plain_erosion_ratio(myo, size),
                plain_holes(lv | myo),
                plain_holes_between(lv, myo, size),
                plain_width_ratio(lv, myo),
                plain_frontier_ratio(lv, mask == 0),
            ],
            strict=True,
        )
    )


def plain_verdict(m):
    zero = [name for name in METRICS if "ratio" not in name]
    return (
        all(m[name] == 0 for name in zero)
        and m["erosion_ratio_before_myo_split"] >= 0.12
        and m["width_ratio_between_lv_and_myo"] <= 4.15
        and 0.05 <= m["frontier_ratio_between_lv_and_bg"] <= 1.5
    )


def components(region, neighbours):
    labels, n = ndimage.label(region, neighbours)
    return [labels == number for number in range(1, n + 1)]


def plain_holes(structure):
    outside = np.pad(~structure, 1, constant_values=True)
    return float(sum(part.sum() for part in components(outside, CORNERS) if not part[0, 0]))


def plain_disconnectivity(structure):
    areas = [part.sum() for part in components(structure, CORNERS)]
    return float(sum(areas) - max(areas, default=0))


def plain_erosion_ratio(myo, size):
    if not myo.any() or myo.all():
        return math.nan
    depth, _ = cKDTree(np.argwhere(~myo)).query(np.argwhere(myo))
    n = 0
    while len(components(myo, CORNERS)) == 1:
        around = np.pad(myo, 1, constant_values=True)
        myo = np.lib.stride_tricks.sliding_window_view(around, (3, 3)).all(axis=(2, 3))
        for part in components(myo, EDGES):
            if part.sum() < size:
                myo = myo & ~part
        n += 1
    return n / depth.max()


def plain_holes_between(lv, myo, size):
    filled = np.zeros_like(lv)
    for structure, other in ((lv, myo), (myo, lv)):
        for hole in components(~structure, EDGES):
            if not hole[0, 0] and not (hole & other).any():
                filled |= hole
    rest = ~(lv | myo | filled)
    count = sum(part.sum() for part in components(rest, EDGES) if not part[0, 0])
    return float(count) if count > size else 0.0


def plain_width_ratio(lv, myo):
    if not (lv | myo).any():
        return math.nan
    row = int(np.argwhere(lv | myo)[:, 0].mean())
    return float(lv[row].sum() / myo[row].sum()) if lv[row].any() and myo[row].any() else math.nan


def plain_frontier_ratio(lv, background):
    if not lv.any():
        return math.nan
    beside = np.lib.stride_tricks.sliding_window_view(np.pad(background, 1), (3, 3)).any(axis=(2, 3))
    frontier = (lv & beside).sum()
    columns = np.argwhere(lv)[:, 1]
    return float(frontier / (columns.max() - columns.min() + 1)) if frontier > 1 else 0.0


# -- masks ---------------------------------------------------------------------------------------------------------


def box(mask, label, rows, columns):
    """Fill rows and columns, both ends included."""
    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = label
    return mask


def mini_heart():
    """16 × 16: a wall two pixels thick around a cavity that is open below."""
    return box(box(np.zeros((16, 16), np.uint8), MYO, (2, 12), (3, 12)), LV, (4, 12), (5, 10))


def wide_heart():
    """The mini heart from border to border."""
    return box(box(np.zeros((16, 16), np.uint8), MYO, (2, 12), (0, 15)), LV, (4, 12), (2, 13))


def large_heart():
    return box(box(np.zeros((64, 64), np.uint8), MYO, (2, 59), (2, 61)), LV, (26, 59), (26, 37))


def changed(mask, label, rows, columns):
    return box(mask.copy(), label, rows, columns)


def ellipse(shape, rng, low, high):
    """A filled ellipse anywhere, with half axes of `low` to `high` of the image."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    a, b = rng.uniform(low, high, 2) * shape
    v, u = rng.uniform(0.2, 0.8, 2) * shape
    return ((y - v) / a) ** 2 + ((x - u) / b) ** 2 < 1


def random_heart(shape, rng):
    """A shell around a cavity, cut at the base; small or so large that it leaves the image."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    center = rng.uniform(0.35, 0.65, 2) * shape
    inner = rng.uniform(0.1, 0.5, 2) * shape
    outer = inner + rng.uniform(1, 0.25 * shape[0])
    cavity = ((y - center[0]) / inner[0]) ** 2 + ((x - center[1]) / inner[1]) ** 2 < 1
    shell = ((y - center[0]) / outer[0]) ** 2 + ((x - center[1]) / outer[1]) ** 2 < 1
    mask = np.where(cavity, LV, np.where(shell, MYO, 0)).astype(np.uint8)
    mask[int(center[0] + rng.uniform(0.3, 1.1) * inner[0]) :] = 0
    return mask


def damaged(mask, rng):
    """Some boxes, ellipses or single pixels take another label."""
    mask = mask.copy()
    for _ in range(rng.integers(1, 5)):
        label = rng.integers(3)
        kind = rng.integers(4)
        if kind == 0:
            mask[ellipse(mask.shape, rng, 0.02, 0.15)] = label
        elif kind == 1:
            mask[rng.random(mask.shape) < rng.choice([0.001, 0.01, 0.1])] = label
        elif kind == 2:
            y, x = (int(rng.integers(n)) for n in mask.shape)
            mask[y : y + int(rng.integers(1, 24)), x : x + int(rng.integers(1, 4))] = label
        else:
            mask = np.roll(mask, tuple(rng.integers(-12, 13, 2)), axis=(0, 1))
    return mask


def random_mask(rng):
    """Something of every sort: hearts whole and broken, hearts at the borders, blobs, noise, one class, nothing."""
    shape = tuple(int(n) for n in rng.integers(30, 65, 2))
    kind = rng.choice(["heart", "damaged", "borders", "noise", "blobs", "one class", "open"])
    if kind == "heart":
        return random_heart(shape, rng)
    if kind == "damaged":
        return damaged(random_heart(shape, rng), rng)
    if kind == "borders":  # cut out so that the heart touches one to four borders
        mask = damaged(random_heart(shape, rng), rng) if rng.random() < 0.5 else random_heart(shape, rng)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not rows.size:
            return mask
        top, bottom = (rows[0], rows[-1] + 1) if rng.random() < 0.5 else (0, shape[0])
        left, right = (columns[0], columns[-1] + 1) if rng.random() < 0.7 else (0, shape[1])
        return mask[top : max(bottom - int(rng.integers(3)), top + 1), left:right]
    if kind == "noise":
        return rng.choice(3, shape, p=rng.dirichlet([1, 1, 1])).astype(np.uint8)
    if kind == "blobs":
        field = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, *rng.uniform(1, 6, 2)))
        return field.argmax(axis=0).astype(np.uint8)
    if kind == "one class":
        mask = np.zeros(shape, np.uint8)
        mask[ellipse(shape, rng, 0.05, 0.9)] = rng.integers(3)
        return mask
    mask = np.full(shape, rng.integers(3), np.uint8)  # what covers pixel (0, 0)
    mask[ellipse(shape, rng, 0.1, 0.6)] = rng.integers(3)
    mask[ellipse(shape, rng, 0.05, 0.3)] = rng.integers(3)
    return mask


def assert_same(mask):
    """Fast and plain path agree on everything about this mask; returns the verdict."""
    fast, plain = anatomical_metrics(mask), plain_metrics(mask)
    verdict = plain_verdict(plain)
    assert fast == pytest.approx(plain, rel=1e-12, abs=0, nan_ok=True)
    assert is_valid(mask) == verdict == (broken_rules(fast) == [])
    return verdict


# -- known hearts --------------------------------------------------------------------------------------------------

ALL_ZERO = dict.fromkeys(METRICS, 0.0)
HEART = ALL_ZERO | {
    "erosion_ratio_before_myo_split": 1 / math.sqrt(2),
    "width_ratio_between_lv_and_myo": 1.5,
    "frontier_ratio_between_lv_and_bg": 1.0,
}
"""The mini heart's nine values."""


@pytest.mark.parametrize(
    ("mask", "difference", "broken"),
    [
        pytest.param(mini_heart(), {}, [], id="A"),
        pytest.param(
            changed(mini_heart(), 0, (7, 7), (7, 7)),
            {
                "holes_in_lv": 1,
                "holes_in_epi": 1,
                "width_ratio_between_lv_and_myo": 1.25,
                "frontier_ratio_between_lv_and_bg": 14 / 6,
            },
            ["holes_in_lv", "holes_in_epi", "frontier_ratio_between_lv_and_bg"],
            id="B",
        ),
        pytest.param(
            changed(mini_heart(), MYO, (7, 7), (7, 7)),
            {
                "holes_in_lv": 1,
                "disconnectivity_in_myo": 1,
                "erosion_ratio_before_myo_split": 0,
                "width_ratio_between_lv_and_myo": 1.0,
            },
            ["holes_in_lv", "disconnectivity_in_myo", "erosion_ratio_before_myo_split"],
            id="C",
        ),
        pytest.param(
            changed(mini_heart(), MYO, (12, 12), (5, 10)),
            {"frontier_ratio_between_lv_and_bg": 0.0},
            ["frontier_ratio_between_lv_and_bg"],
            id="G",
        ),
        pytest.param(
            changed(mini_heart(), 0, (6, 7), (5, 5)),
            {
                "holes_in_epi": 2,
                "holes_between_lv_and_myo": 2,
                "width_ratio_between_lv_and_myo": 1.25,
                "frontier_ratio_between_lv_and_bg": 2.0,
            },
            ["holes_in_epi", "holes_between_lv_and_myo", "frontier_ratio_between_lv_and_bg"],
            id="H",
        ),
        pytest.param(
            wide_heart(),
            {
                "holes_between_lv_and_myo": 48,
                "erosion_ratio_before_myo_split": 0.5,
                "width_ratio_between_lv_and_myo": 3.0,
            },
            ["holes_between_lv_and_myo"],
            id="K",
        ),
    ],
)
def test_the_mini_heart_has_the_papers_values(mask, difference, broken):
    metrics = anatomical_metrics(mask)
    assert tuple(metrics) == METRICS
    assert metrics == pytest.approx(HEART | difference)
    assert broken_rules(metrics) == broken
    assert is_valid(mask) == (not broken)
    assert_same(mask)


@pytest.mark.parametrize(
    ("slit_rows", "ratio"), [(None, 0.8485), ((2, 23), 0.0707), ((2, 21), 0.1414)], ids=["whole", "deep", "shallow"]
)
def test_the_wall_of_the_large_heart_splits_after_the_papers_erosions(slit_rows, ratio):
    mask = large_heart() if slit_rows is None else changed(large_heart(), 0, slit_rows, (31, 31))
    metrics = anatomical_metrics(mask)
    assert metrics["erosion_ratio_before_myo_split"] == pytest.approx(ratio, abs=5e-5)
    assert broken_rules(metrics) == (["erosion_ratio_before_myo_split"] if ratio < 0.12 else [])
    assert is_valid(mask) == (ratio >= 0.12)
    assert_same(mask)


def test_the_depth_of_the_wall_is_euclidean():
    wall = box(box(np.zeros((64, 64), np.uint8), MYO, (2, 59), (2, 61)), LV, (16, 59), (16, 47))
    mask = changed(wall, 0, (2, 13), (31, 31))  # two rows are left: one erosion
    metrics = anatomical_metrics(mask)
    assert metrics["erosion_ratio_before_myo_split"] == 1 / math.hypot(6, 6)  # with a chessboard's 7: valid
    assert broken_rules(metrics) == ["erosion_ratio_before_myo_split"]
    assert not is_valid(mask)
    assert_same(mask)


@pytest.mark.parametrize(
    ("missing", "nan"),
    [
        ((LV,), {"width_ratio_between_lv_and_myo", "frontier_ratio_between_lv_and_bg"}),
        ((MYO,), {"width_ratio_between_lv_and_myo", "erosion_ratio_before_myo_split"}),
        ((LV, MYO), {name for name in METRICS if "ratio" in name}),
    ],
)
def test_a_mask_that_lacks_a_structure_is_invalid_and_no_error(missing, nan):
    mask = large_heart()
    mask[np.isin(mask, missing)] = 0
    metrics = anatomical_metrics(mask)
    assert {name for name, value in metrics.items() if math.isnan(value)} == nan
    assert metrics["lv_pixels"] == (LV in missing)
    assert all(value == 0 for name, value in metrics.items() if name not in nan | {"lv_pixels"} and "ratio" not in name)
    assert nan <= set(broken_rules(metrics))
    assert not is_valid(mask)
    assert_same(mask)


@pytest.mark.parametrize("label", [0, LV, MYO])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (16, 16)])
def test_an_image_of_one_label_is_invalid(label, shape):
    assert not assert_same(np.full(shape, label, np.uint8))


# -- every rule decides --------------------------------------------------------------------------------------------


def myo_in_lv():
    """LV fills the image below a strip of background; the wall is an island in it."""
    mask = box(np.zeros((16, 16), np.uint8), LV, (3, 15), (0, 15))
    return box(mask, MYO, (6, 13), (5, 10))


def thin_heart():
    """A wall of one pixel beside a cavity of ten."""
    return box(box(np.zeros((16, 16), np.uint8), MYO, (2, 12), (2, 13)), LV, (4, 12), (3, 12))


def short_wall():
    """The cavity hangs out of a wall that ends too early."""
    return changed(changed(mini_heart(), 0, (10, 12), (3, 4)), 0, (10, 12), (11, 12))


@pytest.mark.parametrize(
    ("rule", "mask"),
    [
        ("holes_in_lv", myo_in_lv()),
        ("disconnectivity_in_lv", changed(large_heart(), LV, (10, 10), (10, 10))),
        ("erosion_ratio_before_myo_split", changed(large_heart(), 0, (2, 23), (31, 31))),
        ("holes_in_epi", changed(large_heart(), 0, (10, 10), (10, 10))),
        ("holes_between_lv_and_myo", wide_heart()),
        ("width_ratio_between_lv_and_myo", thin_heart()),
        ("frontier_ratio_between_lv_and_bg", changed(mini_heart(), MYO, (12, 12), (5, 10))),
        ("frontier_ratio_between_lv_and_bg", short_wall()),
    ],
)
def test_a_rule_alone_makes_a_mask_invalid(rule, mask):
    # a missing LV always fails the width ratio and a torn MYO the erosion ratio: those two rules never stand alone
    assert broken_rules(anatomical_metrics(mask)) == [rule]
    assert not is_valid(mask)
    assert_same(mask)


def test_a_missing_lv_and_a_torn_myo_have_their_rules_too():
    assert "lv_pixels" in broken_rules(HEART | {"lv_pixels": 1.0})
    torn = changed(mini_heart(), 0, (2, 3), (7, 7))
    assert anatomical_metrics(torn)["disconnectivity_in_myo"] == 26  # the right half has 28


@pytest.mark.parametrize(
    ("ratio", "inside", "outside"),
    [
        ("erosion_ratio_before_myo_split", (0.12, 1.0), (0.119, math.nan)),
        ("width_ratio_between_lv_and_myo", (0.1, 4.15), (4.16, math.nan)),
        ("frontier_ratio_between_lv_and_bg", (0.05, 1.5), (0.049, 1.51, math.nan)),
    ],
)
def test_the_limits_of_the_ratios_are_the_papers(ratio, inside, outside):
    assert [broken_rules(HEART | {ratio: value}) for value in inside] == [[]] * len(inside)
    assert [broken_rules(HEART | {ratio: value}) for value in outside] == [[ratio]] * len(outside)


# -- borders and size ----------------------------------------------------------------------------------------------


def test_a_padded_heart_may_touch_both_lateral_borders():
    assert not is_valid(wide_heart())
    assert is_valid(wide_heart(), border_policy="padded")
    assert valid_masks(wide_heart()[None], border_policy="padded").tolist() == [True]
    metrics = anatomical_metrics(wide_heart(), border_policy="padded")
    assert metrics == anatomical_metrics(np.pad(wide_heart(), 1))
    assert metrics["holes_between_lv_and_myo"] == 0


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("far", [1, 5, 20])
def test_what_a_heart_cuts_off_is_counted_to_the_last_pixel(turns, far):
    mask = np.rot90(np.pad(wide_heart()[2:13], ((4, far), (0, 0))), turns)
    cut_off = 16 * far if turns < 2 else 0  # turned further, the open base looks towards pixel (0, 0)
    assert anatomical_metrics(mask)["holes_between_lv_and_myo"] == cut_off
    assert_same(mask)


def test_a_gap_of_at_most_s_pixels_between_lv_and_myo_is_none():
    heart = np.kron(mini_heart(), np.ones((16, 16), np.uint8))  # 256 × 256: S is 4
    for size, counted in ((4, 0), (5, 5)):
        gap = changed(heart, 0, (100, 99 + size), (80, 80))
        assert anatomical_metrics(gap)["holes_between_lv_and_myo"] == counted
        assert_same(gap)


@pytest.mark.parametrize(("bud", "erosions"), [((3, 5), None), ((3, 6), 1)], ids=["speck", "piece"])
def test_a_speck_that_an_erosion_leaves_does_not_count_as_a_piece(bud, erosions):
    heart = np.kron(mini_heart(), np.ones((16, 16), np.uint8))  # 256 × 256: S is 4
    whole = anatomical_metrics(heart)["erosion_ratio_before_myo_split"]
    stalk = changed(heart, MYO, (101, 101), (30, 47))
    grown = changed(stalk, MYO, (100, 99 + bud[0]), (30, 29 + bud[1]))  # the first erosion leaves 3 or 4 pixels
    depth = ndimage.distance_transform_edt(heart == MYO).max()
    expected = whole if erosions is None else erosions / depth
    assert anatomical_metrics(grown)["erosion_ratio_before_myo_split"] == pytest.approx(expected)
    assert_same(grown)


def test_a_speck_that_was_there_before_the_first_erosion_counts_as_a_piece():
    heart = np.kron(mini_heart(), np.ones((16, 16), np.uint8))
    metrics = anatomical_metrics(changed(heart, MYO, (5, 5), (5, 5)))
    assert metrics["disconnectivity_in_myo"] == 1
    assert metrics["erosion_ratio_before_myo_split"] == 0


# -- the fast path is the plain one --------------------------------------------------------------------------------


def test_two_thousand_random_masks_have_the_values_of_the_plain_version():
    rng = np.random.default_rng(0)
    valid = [assert_same(random_mask(rng)) for _ in range(2000)]
    assert 0.05 < np.mean(valid) < 0.95


def test_padded_masks_have_the_verdict_of_the_plain_version_on_the_larger_image():
    rng = np.random.default_rng(2)
    for _ in range(200):
        mask = random_mask(rng)
        assert is_valid(mask, border_policy="padded") == plain_verdict(plain_metrics(np.pad(mask, 1)))


def test_large_masks_have_the_values_of_the_plain_version():
    rng = np.random.default_rng(1)
    for _ in range(10):
        mask = random_heart((256, 256), rng)
        assert_same(damaged(mask, rng) if rng.random() < 0.7 else mask)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
        lambda shape: st.lists(st.integers(0, 2), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
            lambda labels: np.array(labels, np.uint8).reshape(shape)
        )
    )
)
def test_tiny_masks_have_the_values_of_the_plain_version(mask):
    assert_same(mask)


# -- many masks ----------------------------------------------------------------------------------------------------


def test_many_masks_are_judged_one_by_one():
    masks = np.stack([mini_heart(), wide_heart(), thin_heart(), np.zeros((16, 16), np.uint8), mini_heart()])
    expected = [True, False, False, False, True]
    assert valid_masks(masks).tolist() == valid_masks(torch.from_numpy(masks)).tolist() == expected
    none = valid_masks(torch.zeros(0, 16, 16, dtype=torch.uint8))
    assert none.dtype == torch.bool
    assert none.shape == (0,)


def test_the_reward_is_the_verdict_at_every_pixel():
    actions = torch.from_numpy(np.stack([mini_heart(), thin_heart()]))
    before = actions.clone()
    reward = anatomical_reward(actions)
    assert reward.dtype == torch.float32
    assert reward.is_contiguous()  # and so may be written to
    assert torch.equal(reward, torch.tensor([1.0, 0.0])[:, None, None].expand(2, 16, 16))
    assert torch.equal(actions, before)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (mini_heart() + 1, "label 3"),
        (mini_heart().astype(np.int64), "int64"),
        (mini_heart()[None], r"\[1, 16, 16\]"),
        (np.zeros((0, 4), np.uint8), r"\[0, 4\]"),
        (mini_heart().tolist(), "list"),
    ],
)
def test_what_is_no_mask_is_refused(mask, message):
    for judge in (is_valid, anatomical_metrics):
        with pytest.raises(ValueError, match=message):
            judge(mask)


def test_many_masks_of_the_wrong_kind_are_refused():
    actions = torch.zeros(2, 4, 4, dtype=torch.uint8)
    for bad, message in ((actions.long(), "int64"), (actions[0], r"\[4, 4\]"), (actions + 7, "label 7")):
        with pytest.raises(ValueError, match=message):
            anatomical_reward(bad)
    with pytest.raises(ValueError, match="'mirror'"):
        valid_masks(actions, border_policy="mirror")
