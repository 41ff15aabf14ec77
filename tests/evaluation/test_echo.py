"""Metrics, reports and pictures of echocardiograms: hand-computed cases, brute force, patients, bad input."""

import math
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from segarena.datasets.echo.phantom import VENDORS, echo_phantom
from segarena.datasets.images import ImagePool, KnownLabels
from segarena.evaluation import metrics as m
from segarena.evaluation.echo import (
    METRICS,
    dice_batch32,
    echo_case_metrics,
    echo_cases,
    echo_metrics,
    largest_heart,
    subject_validity,
)
from segarena.evaluation.echo_figures import EchoView, save_echo_figure
from segarena.evaluation.echo_pictures import PREDICTION, TRUTH, echo_panel
from segarena.evaluation.hausdorff import hausdorff_mm
from segarena.evaluation.report import mean_metrics, p_values, table
from segarena.evaluation.results import Result, count_origins
from segarena.evaluation.statistics import bootstrap_interval, cluster_means, paired_wilcoxon

SPACING = (0.5, 0.3)
SHOWN = [METRICS[name] for name in ("dice_endo", "dice_myo", "dice_epi", "hd_endo_mm", "hd_epi_mm", "valid")]


def heart(lv_from: int = 3) -> torch.Tensor:
    """The truth of docs/rl4seg.md, Method 12; with 4 its prediction."""
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[2:7, 1:7] = 2
    mask[lv_from:7, 2:6] = 1
    return mask


def mini_heart() -> torch.Tensor:
    """The mini heart of docs/rl4seg.md, Method 9, uint8 [16, 16]."""
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[2:13, 3:13] = 2
    mask[4:13, 5:11] = 1
    return mask


def images(labels: torch.Tensor, patients: list[str], instants: list[str]) -> ImagePool:
    n = len(labels)
    return ImagePool(
        images=torch.zeros_like(labels)[:, None],
        labels=labels,
        ids=[f"{p}_2CH_{i}" for p, i in zip(patients, instants, strict=True)],
        groups=patients,
        tags={"view": ["2CH"] * n, "instant": instants},
        spacing_mm=torch.tensor([SPACING] * n, dtype=torch.float64),
        classes=("background", "lv", "myo"),
        origin="phantom",
    )


def noisy_masks(n: int, size: int = 20) -> torch.Tensor:
    """Blobs with specks, some images without one label or both."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (n, size, size), generator=generator, dtype=torch.uint8)
    masks *= torch.rand(n, size, size, generator=generator) < torch.rand(n, 1, 1, generator=generator) ** 2
    masks[::7] *= masks[::7] == 2
    masks[::11] = 0
    return masks


# -- metrics of an image -------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_docs():
    """docs/rl4seg.md, Method 12."""
    found = echo_case_metrics(heart(4), heart(3), SPACING)
    names = ("dice_endo", "dice_myo", "dice_epi", "hd_endo_mm", "hd_myo_mm", "hd_epi_mm")
    assert [found[name] for name in names] == pytest.approx([6 / 7, 0.875, 1, 0.5, 0.5, 0])
    assert found["dice"] == pytest.approx((6 / 7 + 0.875) / 2)
    assert found["dice_avg"] == pytest.approx((6 / 7 + 1) / 2)
    assert found["pixel_accuracy"] == 60 / 64
    assert found["empty"] == 0


def test_distances_are_in_mm_along_either_axis():
    truth = heart()
    for shift, axis, expected in ((1, 0, 0.5), (1, 1, 0.3)):
        assert echo_case_metrics(truth.roll(shift, axis), truth, SPACING)["hd_epi_mm"] == pytest.approx(expected)


def test_a_missing_structure_costs_the_diagonal_and_is_counted():
    diagonal = math.hypot(8 * 0.5, 8 * 0.3)
    nothing, no_lv = torch.zeros_like(heart()), heart() * (heart() == 2)
    found = echo_case_metrics(nothing, heart(), SPACING)
    assert [found[f"hd_{name}_mm"] for name in ("endo", "myo", "epi")] == pytest.approx([diagonal] * 3)
    assert (found["dice"], found["dice_epi"], found["valid"], found["empty"]) == (0, 0, 0, 1)
    found = echo_case_metrics(no_lv, heart(), SPACING)
    assert (found["hd_endo_mm"], found["hd_myo_mm"], found["empty"]) == (pytest.approx(diagonal), 0, 1)
    found = echo_case_metrics(no_lv, no_lv, SPACING)
    assert (found["dice_endo"], found["hd_endo_mm"]) == (1, 0)


def test_the_diagonal_is_that_of_each_image_with_its_own_sides_and_pixels():
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    masks[:, 1, 1] = True
    spacing = torch.tensor([[1.0, 1.0], [4.0, 4.0]])
    for preds, truths in ((masks, ~masks & masks), (~masks & masks, masks)):
        assert hausdorff_mm(preds, truths, spacing).tolist() == [5.0, 20.0]
    stretched = torch.tensor([[4.0, 1.25], [5.0, 5.0]])
    assert hausdorff_mm(masks, torch.zeros_like(masks), stretched).tolist() == [13.0, 25.0]


def test_validity_is_that_of_the_anatomical_rules():
    valid, hole = mini_heart(), mini_heart()
    hole[7, 7] = 0
    found = echo_metrics(torch.stack([valid, hole]), torch.stack([valid, valid]), torch.ones(2, 2))
    assert found["valid"].tolist() == [1, 0]


def test_batches_give_what_the_plain_metrics_give_one_by_one():
    preds, truths = noisy_masks(40), noisy_masks(40).flip(0)
    spacing = torch.rand(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.2
    found = echo_metrics(preds, truths, spacing)
    for n, (p, g) in enumerate(zip(preds, truths, strict=True)):
        for name, a, b in (("endo", p == 1, g == 1), ("myo", p == 2, g == 2), ("epi", p > 0, g > 0)):
            assert float(found[f"dice_{name}"][n]) == pytest.approx(m.dice(a, b))
            expected = m.hd95_mm(a, b, spacing[n].tolist(), percentile=100)
            assert float(found[f"hd_{name}_mm"][n]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("pred", "truth", "spacing", "message"),
    [
        (heart().long(), heart(), SPACING, "uint8"),
        (heart(), heart()[:4], SPACING, "one shape"),
        (heart() + 1, heart(), SPACING, "label 3"),
        (heart(), heart(), (0.5, 0.0), "positive"),
        (heart(), heart(), (0.5,), "positive"),
        (heart()[:0], heart()[:0], SPACING, "empty arrays"),
    ],
)
def test_bad_masks_are_rejected(pred, truth, spacing, message):
    with pytest.raises(ValueError, match=message):
        echo_case_metrics(pred, truth, spacing)


def test_distances_need_bool_masks():
    with pytest.raises(ValueError, match="bool"):
        hausdorff_mm(heart()[None], heart()[None], torch.ones(1, 2))


# -- post-processing -----------------------------------------------------------------------------------------------


def test_the_largest_heart_stays_and_specks_go():
    mask = mini_heart()
    mask[0, 0], mask[13, 13] = 1, 2  # the second touches by a corner only
    masks = torch.stack([torch.zeros_like(mask), mask, mini_heart()])
    assert torch.equal(largest_heart(masks), torch.stack([torch.zeros_like(mask), mini_heart(), mini_heart()]))


def test_lv_and_myo_count_as_one_part():
    mask = torch.zeros(1, 4, 7, dtype=torch.uint8)
    mask[0, 0, :3], mask[0, 1, :2], mask[0, 2:, 3:5] = 1, 2, 1  # 3 + 2 pixels against 4
    kept = largest_heart(mask)
    assert (kept > 0).sum() == 5
    assert set(kept.unique().tolist()) == {0, 1, 2}


def test_of_equal_parts_the_first_stays():
    mask = torch.tensor([[[1, 0, 2], [0, 0, 0], [2, 0, 1]]], dtype=torch.uint8)
    assert largest_heart(mask).nonzero().tolist() == [[0, 0, 0]]


def test_images_are_processed_apart():
    masks = noisy_masks(30)
    one_by_one = torch.cat([largest_heart(mask[None]) for mask in masks])
    assert torch.equal(largest_heart(masks), one_by_one)
    assert torch.equal(largest_heart(one_by_one), one_by_one)


# -- cases ---------------------------------------------------------------------------------------------------------


def test_cases_carry_names_and_the_metrics_of_the_processed_masks():
    labels = torch.stack([mini_heart()] * 2)
    preds = labels.clone()
    preds[1, 15, 15] = 1
    cases = echo_cases(images(labels, ["p1", "p1"], ["ED", "ES"]), preds)
    assert [case["case_id"] for case in cases] == ["p1_2CH_ED", "p1_2CH_ES"]
    assert [(case["origin"], case["patient"], case["view"], case["instant"]) for case in cases] == [
        ("phantom", "p1", "2CH", "ED"),
        ("phantom", "p1", "2CH", "ES"),
    ]
    means = mean_metrics(cases)
    assert (means["dice_endo"], means["hd_endo_mm"], means["valid"], means["empty"]) == (1, 0, 1, 0)
    assert not {"patient", "view", "instant"} & means.keys()


def test_images_without_labels_have_their_validity_and_means_are_over_the_labelled_ones():
    labels = torch.stack([mini_heart()] * 2)
    data = images(labels, ["p1", "p2"], ["ED", "ES"])
    preds = torch.stack([torch.zeros_like(labels[0]), labels[1]])
    cases = echo_cases(data.without_labels(), preds)
    assert [case["valid"] for case in cases] == [0, 1]
    assert mean_metrics(cases) == {"valid": 0.5}
    mixed = replace(data, labels=None, some_labels=KnownLabels([1], labels[1:]))
    cases = echo_cases(mixed, preds)
    assert "dice" not in cases[0]
    means = mean_metrics(cases)
    assert (means["dice"], means["hd_endo_mm"], means["valid"], means["labelled"]) == (1, 0, 0.5, 0.5)
    assert means["dice"] == mean_metrics(echo_cases(data.take([1]), preds[1:]))["dice"]
    with pytest.raises(ValueError, match="one shape"):
        echo_cases(data, labels[:1])


def test_a_subject_is_valid_when_all_its_images_are():
    said = (("a", 1.0), ("a", 1.0), ("b", 1.0), ("b", 0.0), ("c", 1.0), ("d", 0.0))
    assert subject_validity([{"patient": patient, "valid": valid} for patient, valid in said]) == 0.5
    with pytest.raises(ValueError, match="no cases"):
        subject_validity([])


def test_pooled_dice_is_over_pixels_of_32_images():
    """The first batch: 31 perfect images and one with half the LV; the second: one image without any overlap."""
    truths = torch.zeros(33, 2, 4, dtype=torch.uint8)
    truths[:, 0] = 1
    preds = truths.clone()
    preds[31, 0, :2] = 0
    preds[32] = preds[32].flip(0)
    found = dice_batch32(preds, truths)
    first = 2 * 126 / (126 + 128)
    assert found["dice_batch32_endo"] == pytest.approx(first / 2)
    assert found["dice_batch32_myo"] == 1
    assert found["dice_batch32"] == pytest.approx((first / 2 + 1) / 2)
    assert found["dice_batch32_epi"] == pytest.approx(first / 2)


# -- reports over patients -----------------------------------------------------------------------------------------


def case(patient: str | None, instant: str, dice: float) -> dict:
    values = {"dice_endo": dice, "dice_myo": dice, "dice_epi": dice, "hd_endo_mm": 4.0, "hd_epi_mm": 5.0, "valid": 1.0}
    named = {} if patient is None else {"patient": patient, "instant": instant}
    return {"case_id": f"{patient}_{instant}", "origin": "phantom", **named, **values}


def result(method: str, cases: list[dict], seed: int = 0) -> Result:
    names = {"paper": "RL4Seg", "env": "RL4Seg-Synthetic-v0", "data": "echo phantom", "split": "test"}
    return Result(
        id=f"{method}-{seed}",
        method=method,
        seed=seed,
        supervision="none",
        mode="transductive",
        origins=count_origins(cases),
        metrics=dict(mean_metrics(cases)),
        cases=cases,
        settings={},
        command="run_rl.py",
        revision="abc",
        machine={},
        date="2026-01-01T00:00:00+00:00",
        **names,
    )


def test_the_interval_draws_patients_with_all_their_images():
    """Patients a (0, 0) and b (1): of four draws one is aa, mean 0, two are ab, mean 1/3, and one is bb, mean 1."""
    values, patients = [0.0, 1.0, 0.0], ["a", "b", "a"]
    mean, low, high = bootstrap_interval(values, clusters=patients)
    assert (mean, low, high) == pytest.approx((1 / 3, 0, 1))
    assert bootstrap_interval(values, level=0.4, clusters=patients) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert bootstrap_interval([values, values], clusters=patients) == pytest.approx((1 / 3, 0, 1))


def test_a_patient_per_case_is_no_patients_at_all():
    values = np.random.default_rng(0).normal(size=(2, 30))
    assert bootstrap_interval(values, clusters=range(30)) == bootstrap_interval(values)


def test_copies_of_a_case_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=40)
    four = bootstrap_interval(values.repeat(4), clusters=np.arange(40).repeat(4).tolist())
    assert four == pytest.approx(bootstrap_interval(values))
    naive = bootstrap_interval(values.repeat(4))
    assert four.high - four.low > 1.7 * (naive.high - naive.low)


def test_one_patient_has_no_interval_and_patients_must_match_the_cases():
    assert math.isnan(bootstrap_interval([0.0, 1.0], clusters=["a", "a"]).low)
    with pytest.raises(ValueError, match="2 cases need as many clusters, got 1"):
        bootstrap_interval([0.0, 1.0], clusters=["a"])
    assert cluster_means([1.0, 5.0, 3.0], ["b", "a", "b"]).tolist() == [2, 5]


def test_methods_are_compared_over_patients():
    """Six patients gain 1 to 6 points on average, though one of their two images may lose: p = 2 / 64."""
    instants = (("ED", 0.1), ("ES", -0.1))
    patients = [f"p{n}" for n in range(6)]
    theirs = [case(p, i, 0.5) for p in patients for i, _ in instants]
    ours = [case(p, i, 0.5 + 0.01 * (n + 1) + d) for n, p in enumerate(patients) for i, d in instants]
    found = p_values([result("ppo", ours), result("source only", theirs)], "source only", "dice_endo")["ppo"]
    assert found == pytest.approx(2 / 64)
    assert found != paired_wilcoxon([c["dice_endo"] for c in ours], [c["dice_endo"] for c in theirs])


def test_the_table_shows_echo_metrics_and_counts_patients():
    cases = [case(p, i, d) for p, d in (("a", 0.8), ("b", 0.9)) for i in ("ED", "ES")]
    text = table([result("ppo", cases), result("source only", cases)], SHOWN, baseline="source only")
    header = [cell.strip() for cell in text.splitlines()[0].strip("|").split("|")]
    assert header[4:9] == ["Dice ENDO (%)", "Dice MYO (%)", "Dice EPI (%)", "HD ENDO (mm)", "HD EPI (mm)"]
    assert header[9:] == ["Anatomically valid (%)", "p (Dice ENDO vs source only)"]
    assert "100.0 [100.0, 100.0]" in text
    assert "85.0 [80.0, 90.0]" in text
    assert "4 cases of 2 patients (4 phantom, 0 implanted, 0 real)" in text
    assert "interval over patients and" in text
    assert "[–]" in table([result("ppo", cases[:2])], SHOWN)


def test_patients_are_named_by_all_cases_or_none_and_alike_by_all_methods():
    whole, half = [case("a", "ED", 0.8), case("b", "ES", 0.9)], [case("a", "ED", 0.8), case(None, "ES", 0.9)]
    with pytest.raises(ValueError, match=r"None_ES.* name no patient"):
        table([result("ppo", half)], SHOWN)
    other = [whole[0], whole[1] | {"patient": "c"}]
    with pytest.raises(ValueError, match=r"differ in the cases .'b_ES'"):
        table([result("ppo", whole), result("source only", other)], SHOWN)


# -- pictures ------------------------------------------------------------------------------------------------------


def test_a_panel_is_in_true_proportions_and_of_even_width():
    image = np.zeros((20, 30), np.uint8)
    assert echo_panel(image, scale=2).shape == (40, 60, 3)
    assert echo_panel(image, scale=2, spacing_mm=(0.5, 1.0)).shape == (40, 120, 3)
    assert echo_panel(image, scale=3, spacing_mm=(1.0, 0.55)).shape == (60, 50, 3)


def test_a_panel_lies_as_the_image_does():
    image = np.zeros((4, 6), np.uint8)
    image[0, 5] = 255
    picture = echo_panel(image, scale=2)
    assert picture.dtype == np.uint8
    assert np.argwhere(picture.any(axis=-1)).tolist() == [[0, 10], [0, 11], [1, 10], [1, 11]]


def test_lines_run_inside_each_structure_and_fill_only_where_asked():
    mask = mini_heart().numpy()
    image = np.full((16, 16), 100, np.uint8)
    outline = echo_panel(image, masks=[(mask, TRUTH)], scale=4)
    lv, myo = ((outline == np.array(colour)).all(axis=-1) for colour in (TRUTH.lv, TRUTH.myo))
    large = mask.repeat(4, axis=0).repeat(4, axis=1)
    assert lv.any()
    assert myo.any()
    assert (large[lv] == 1).all()
    assert (large[myo] == 2).all()
    assert (outline[~lv & ~myo] == 100).all()
    assert not myo[4 * 4 : 4 * 12, 4 * 5 - 1].any()  # MYO's border to LV is LV's line
    filled = echo_panel(image, masks=[(mask, PREDICTION)], scale=4)
    assert (filled[large > 0] != 100).any(axis=-1).all()
    assert (filled[large == 0] == 100).all()


def test_heat_is_transparent_at_zero():
    image = np.full((4, 4), 100, np.uint8)
    heat = np.zeros((4, 4))
    heat[1, 2] = 0.5
    changed = (echo_panel(image, heat=heat, scale=1) != 100).any(axis=-1)
    assert np.argwhere(changed).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 4))}, "image is float64"),
        ({"masks": [(np.zeros((3, 4), np.uint8), TRUTH)]}, "a mask is"),
        ({"masks": [(np.full((4, 4), 3, np.uint8), TRUTH)]}, "labels 0..2"),
        ({"heat": np.full((4, 4), 1.5)}, "heat lies in"),
        ({"heat": np.full((4, 4), np.nan)}, "without NaN"),
        ({"heat": np.zeros((4, 4), int)}, "heat is int64"),
        ({"scale": 0}, "scale is 0"),
        ({"spacing_mm": (0.0, 1.0)}, "two positive lengths"),
    ],
)
def test_bad_arrays_are_not_drawn(changes, message):
    arguments = {"image": np.zeros((4, 4), np.uint8)} | changes
    with pytest.raises(ValueError, match=message):
        echo_panel(arguments.pop("image"), **arguments)


def test_the_figure_has_a_row_per_view_and_a_column_for_maps(tmp_path):
    phantom = echo_phantom(next(iter(VENDORS)), 1, "2CH", "ED", 32)
    image = np.rint(phantom.image * 255).astype(np.uint8)
    heat = np.linspace(0, 1, image.size).reshape(image.shape)
    full = EchoView("p1_2CH_ED", image, phantom.label, phantom.label, heat, phantom.spacing_mm)
    bare = replace(full, label=None, heat=None)
    assert full.verdict == "Dice ENDO 100.0, EPI 100.0 %; HD EPI 0.0 mm\nvalid"
    assert replace(bare, pred=phantom.label * 0).verdict == "not valid (lv pixels and 3 more)"
    shapes = []
    for name, views in (("both", [full, bare]), ("full", [full]), ("bare", [bare])):
        save_echo_figure(tmp_path / f"{name}.png", views, title="phantom", heat_name="1 - r")
        shapes.append(imageio.imread(tmp_path / f"{name}.png").shape)
    both, one, narrow = shapes
    assert both[0] > 1.5 * one[0]
    assert both[1] == one[1] > narrow[1]
    with pytest.raises(ValueError, match="no views"):
        save_echo_figure(tmp_path / "none.png", [], title="nothing")
    with pytest.raises(ValueError, match="a mask is"):
        save_echo_figure(tmp_path / "bad.png", [replace(full, pred=full.pred[:4])], title="bad")
