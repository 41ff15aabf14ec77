"""The packaged classifier's card tells the truth: its numbers, measured again on phantoms that training never saw."""

import json
import re
from pathlib import Path

import pytest
import torch
from segarena.classifiers.presence import PACKAGED, load_presence
from segarena.classifiers.train_presence import WindowPool, lattice_scores, window_scores
from segarena.common.checkpoints import load_weights
from segarena.datasets.liver.cases import LiverDataConfig, load_liver_cases
from segarena.evaluation.metrics import auroc, classification_metrics

CARD = Path(PACKAGED).with_suffix(".md").read_text()
NUMBERS = json.loads(re.search(r"```json\n(.*?)```", CARD, re.DOTALL)[1])


def test_the_numbers_on_the_card_are_those_of_unseen_phantoms():
    net = load_presence()
    pool = WindowPool(load_liver_cases(LiverDataConfig(split="test")), net.window_size, 1, torch.device("cpu"))
    windows = pool.draw(NUMBERS["windows"], torch.Generator().manual_seed(0))
    scores, labels = window_scores(net, pool, windows)
    at_half, at_tau = (classification_metrics(scores, labels, threshold=threshold) for threshold in (0.5, 0.3))
    measured = {
        "cases": len(pool.images),
        "windows": len(scores),
        "auroc": at_half["auroc"],
        "ece": at_half["ece"],
        "sensitivity_0.5": at_half["sensitivity"],
        "specificity_0.5": at_half["specificity"],
        "sensitivity_0.3": at_tau["sensitivity"],
        "specificity_0.3": at_tau["specificity"],
        "auroc_lattice": auroc(*lattice_scores(net, pool, 4)),
    }
    measured = {name: round(value, 3) for name, value in measured.items()}
    assert measured == pytest.approx(NUMBERS, abs=0.004), f"the card should say {json.dumps(measured, indent=1)}"


def test_the_weights_name_their_supervision_and_are_small():
    training = json.loads(load_weights(PACKAGED)[1]["training"])
    assert training["supervision"] == "window"
    assert training["origins"] == ["phantom"]
    assert PACKAGED.stat().st_size < 2_000_000
