"""Metrics of X-ray classifiers by image and study, and their intervals (docs/apga.md, Method 9)."""

import math

import numpy as np
import pytest
import torch
from segarena.evaluation import classification
from segarena.evaluation.classification import (
    METRICS,
    image_metrics,
    level_metrics,
    metric_intervals,
    paired_differences,
    study_level,
)
from segarena.evaluation.metrics import auroc, classification_metrics


def of_scores(scores):
    """Probabilities of two classes of the scores of class 1."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    return torch.stack([1 - scores, scores], dim=-1)


def of_confusion(rows):
    """Probabilities and labels of a confusion matrix, rows true."""
    true, predicted = zip(
        *[(t, q) for t, row in enumerate(rows) for q, n in enumerate(row) for _ in range(n)], strict=True
    )
    return torch.eye(len(rows), dtype=torch.float64)[list(predicted)], torch.tensor(true)


def drawn(images=60, seeds=None, classes=2, seed=0):
    """Probabilities, labels and studies of 1 to 3 images."""
    generator = torch.Generator().manual_seed(seed)
    studies = torch.randint(1, 4, (images,), generator=generator)
    studies = torch.arange(images).repeat_interleave(studies)[:images].tolist()
    labels = torch.tensor([study % classes for study in studies])
    shape = (images, classes) if seeds is None else (seeds, images, classes)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (logits + torch.eye(classes)[labels]).softmax(dim=-1), labels, studies


# -- known numbers -----------------------------------------------------------------------------------------------------


def test_a_confusion_matrix_has_the_known_metrics():
    found = image_metrics(*of_confusion([[20, 5], [10, 15]]))
    expected = {"accuracy": 0.7, "balanced_accuracy": 0.7, "kappa": 0.4, "sensitivity": 0.6, "specificity": 0.8}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["f1"] == pytest.approx(30 / 45)


def test_scores_with_ties_have_the_known_auroc_and_kappa():
    found = image_metrics(of_scores([0.1, 0.6, 0.35, 0.6, 0.9]), torch.tensor([0, 0, 1, 1, 1]))
    assert found["auroc"] == pytest.approx(0.75)
    assert found["kappa"] == pytest.approx(1 / 6)


def test_a_study_is_the_mean_of_its_views():
    p, labels = study_level(of_scores([0.9, 0.2, 0.3, 0.8]), torch.tensor([0, 0, 0, 1]), ["a", "a", "a", "b"])
    torch.testing.assert_close(p[:, 1], torch.tensor([0.466667, 0.8], dtype=torch.float64), atol=1e-6, rtol=0)
    assert labels.tolist() == [0, 1]
    found = level_metrics(of_scores([0.9, 0.2, 0.3, 0.8]), torch.tensor([0, 0, 0, 1]), ["a", "a", "a", "b"])
    assert (found["accuracy"], found["study_accuracy"]) == (0.75, 1.0)


def test_positive_is_above_one_half():
    assert image_metrics(of_scores([0.5, 0.5001]), torch.tensor([0, 1]))["accuracy"] == 1


# -- definitions -------------------------------------------------------------------------------------------------------


def test_two_classes_are_judged_as_the_metrics_of_scores_are():
    p, labels, _ = drawn()
    found, expected = image_metrics(p, labels), classification_metrics(p[:, 1].clone(), labels.bool())
    for name in ("accuracy", "sensitivity", "specificity", "f1", "auroc"):
        assert found[name] == pytest.approx(expected[name])
    assert found["balanced_accuracy"] == pytest.approx((found["sensitivity"] + found["specificity"]) / 2)


def test_more_classes_are_means_of_one_against_all_others():
    p, labels, _ = drawn(classes=4)
    labels[labels == 3] = 0  # a class that does not occur
    found, predicted = image_metrics(p, labels), p.argmax(dim=1)
    alone = [classification_metrics((predicted == c).double(), labels == c) for c in range(3)]
    for name in ("sensitivity", "specificity", "f1"):
        assert found[name] == pytest.approx(np.mean([one[name] for one in alone]))
    assert found["auroc"] == pytest.approx(np.mean([auroc(p[:, c].clone(), labels == c) for c in range(3)]))
    assert found["accuracy"] == pytest.approx(float((predicted == labels).double().mean()))
    assert found["balanced_accuracy"] == found["sensitivity"]
    agreed = sum(float((labels == c).double().mean() * (predicted == c).double().mean()) for c in range(4))
    assert found["kappa"] == pytest.approx((found["accuracy"] - agreed) / (1 - agreed))


def test_of_one_class_alone_what_nothing_can_tell_is_nan():
    found = image_metrics(of_scores([0.1, 0.2]), torch.tensor([0, 0]))
    assert (found["accuracy"], found["specificity"]) == (1, 1)
    assert all(math.isnan(found[name]) for name in ("auroc", "kappa", "sensitivity", "f1"))
    assert image_metrics(of_scores([0.1, 0.8]), torch.tensor([0, 0]))["kappa"] == 0


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_a_resample_is_judged_as_its_images_are(monkeypatch):
    p, labels, studies = drawn(images=20)
    counts = classification.draw_counts(np.random.default_rng(3), len(set(studies)), 7)
    found = classification._Resampled(p, labels, studies, 7, seed=3)
    monkeypatch.setattr(classification, "MOST_NUMBERS", 40)
    blocks = classification._Resampled(p, labels, studies, 7, seed=3)
    for row, times in enumerate(counts):
        rows = [n for n, study in enumerate(studies) for _ in range(times[study])]
        copies = [f"{studies[n]}.{copy}" for n in range(20) for copy in range(times[studies[n]])]
        expected = level_metrics(p[rows], labels[rows], copies)
        for name, value in expected.items():
            assert found.drawn[name][0, row] == pytest.approx(value, nan_ok=True)
            assert blocks.drawn[name][0, row] == pytest.approx(value, nan_ok=True)


def test_intervals_hold_the_metric_and_narrow_with_more_studies():
    found = metric_intervals(*drawn(images=60), resamples=500)
    assert set(found) == {*METRICS, *(f"study_{name}" for name in METRICS)}
    whole = level_metrics(*drawn(images=60))
    more = metric_intervals(*drawn(images=600), resamples=500)
    for name, (mean, low, high) in found.items():
        assert mean == whole[name]
        assert low < mean < high
        assert more[name].high - more[name].low < high - low
    assert metric_intervals(*drawn(), resamples=100) == metric_intervals(*drawn(), resamples=100)


def test_images_of_one_study_are_drawn_together():
    p, labels, studies = drawn(images=40, seed=5)
    twice = (p.repeat(4, 1), labels.repeat(4))
    together = metric_intervals(*twice, studies * 4, resamples=2000)["accuracy"]
    once = metric_intervals(p, labels, studies, resamples=2000)["accuracy"]
    apart = metric_intervals(*twice, list(range(160)), resamples=2000)["accuracy"]
    assert together == pytest.approx(once)
    assert apart.high - apart.low < 0.7 * (together.high - together.low)


def test_seeds_are_drawn_too():
    p, labels, studies = drawn(images=200)
    unlucky = torch.stack([p, p.flip(-1)])  # the second seed has learned the opposite
    one = metric_intervals(p, labels, studies, resamples=500)["accuracy"]
    both = metric_intervals(unlucky, labels, studies, resamples=500)["accuracy"]
    assert both.mean == pytest.approx(0.5)
    assert both.high - both.low > 3 * (one.high - one.low)
    same = metric_intervals(torch.stack([p, p]), labels, studies, resamples=500)["accuracy"]
    assert same == pytest.approx(one)


def test_differences_are_paired():
    p, labels, studies = drawn(images=120)
    better = (p + 0.35 * torch.eye(2)[labels]) / 1.35
    found = paired_differences(better, p, labels, studies, resamples=500)
    a, b = level_metrics(better, labels, studies), level_metrics(p, labels, studies)
    for name in ("accuracy", "study_kappa", "auroc"):
        assert found[name].mean == pytest.approx(a[name] - b[name])
        assert 0 < found[name].low < found[name].mean < found[name].high
    same = paired_differences(p, p, labels, studies, resamples=100)
    assert all(interval == (0, 0, 0) for interval in same.values())
    back = paired_differences(p, better, labels, studies, resamples=500)["accuracy"]
    assert back == pytest.approx((-found["accuracy"].mean, -found["accuracy"].high, -found["accuracy"].low))


def test_what_is_hard_for_both_methods_cancels_out():
    p, labels, studies = drawn(images=120)
    near = (p.log() + 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))).softmax(dim=-1)
    for name in ("auroc", "study_auroc"):  # apart, the difference would be wider than either
        difference = paired_differences(near, p, labels, studies, resamples=500)[name]
        alone = metric_intervals(p, labels, studies, resamples=500)[name]
        assert difference.high - difference.low < 0.5 * (alone.high - alone.low)


def test_resamples_of_one_class_do_not_count_for_what_they_cannot_tell():
    found = metric_intervals(of_scores([0.2, 0.7, 0.9]), torch.tensor([0, 0, 1]), "abc", resamples=500)
    assert found["auroc"] == (1, 1, 1)
    assert np.isfinite(found["accuracy"].low)


def test_of_one_study_no_bounds_are_known():
    found = metric_intervals(of_scores([0.2, 0.7]), torch.tensor([1, 1]), "aa", resamples=10)
    assert found["accuracy"].mean == 0.5
    assert math.isnan(found["accuracy"].low)
    assert math.isnan(found["auroc"].mean)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "labels", "match"),
    [
        (torch.rand(3), [0, 1, 1], r"probabilities have shape \[3\]"),
        (of_scores([0.1, 0.2]), [0], r"and labels \[1\] but must be"),
        (torch.zeros(0, 2), [], "not empty"),
        (torch.ones(2, 2), [0, 1], "sum to 1 for each image; give a softmax"),
        (of_scores([0.1, math.nan]), [0, 1], "must be finite"),
        (of_scores([0.1, 1.2]), [0, 1], "at least 0"),
        (of_scores([0.1, 0.2]), [0, 2], r"labels are int64 from 0 to 2 but must be whole, 0\.\.1"),
        (of_scores([[0.1, 0.2]] * 2), [0, 1], r"\[2, 2, 2\] but must be \[N, K\]"),
    ],
)
def test_what_is_no_prediction_is_refused(p, labels, match):
    with pytest.raises(ValueError, match=match):
        image_metrics(p, torch.tensor(labels, dtype=torch.int64))


def test_studies_that_contradict_themselves_or_are_too_few_are_refused():
    p, labels = of_scores([0.1, 0.2, 0.3]), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="study 'b' has images of different labels"):
        study_level(p, labels, ["a", "b", "b"])
    with pytest.raises(ValueError, match="3 images need as many studies, got 2"):
        metric_intervals(p, labels, ["a", "b"])
    with pytest.raises(ValueError, match="the same images, classes and seeds"):
        paired_differences(p, p[:2], labels, ["a", "b", "c"])
    with pytest.raises(ValueError, match="level is 1"):
        metric_intervals(p, labels, ["a", "b", "c"], level=1, resamples=2)
    with pytest.raises(ValueError, match="resamples is 0"):
        metric_intervals(p, labels, ["a", "b", "c"], resamples=0)
