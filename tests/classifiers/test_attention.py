"""Gated attention: its formula, and that it finds tumours that nobody showed it."""

import dataclasses

import pytest
import torch
from segarena.classifiers import attention
from segarena.classifiers.attention import AttentionNet, train_attention
from segarena.classifiers.presence_config import PresenceTrainingConfig
from segarena.common import fitting
from segarena.common.networks import load_network, save_network
from segarena.common.runs import Run
from segarena.datasets.liver.cases import LiverCase
from segarena.datasets.liver.lattice import WindowLattice
from segarena.evaluation.metrics import classification_metrics

FULL = (16, 16, 16)
CELLS = WindowLattice(FULL, (4, 4, 4), 4)
PATIENT = PresenceTrainingConfig(
    supervision="patient", volumes_per_batch=8, batches_per_epoch=8, epochs=8, learning_rate=3e-3
)


def toy_case(number, healthy=False):
    """Noise with a brighter block of 4x4x4 voxels, the tumour, anywhere, or without one."""
    of_case = torch.Generator().manual_seed(number)
    image = torch.randint(60, 140, FULL, dtype=torch.uint8, generator=of_case)
    label = torch.ones(FULL, dtype=torch.uint8)
    if not healthy:
        x, y, z = (int(torch.randint(n - 4, (), generator=of_case)) for n in FULL)
        label[x : x + 4, y : y + 4, z : z + 4] = 2
        image[label == 2] += 110
    return LiverCase(f"toy_{number}", "phantom", image, None, label, (1.0, 1.0, 1.0), str(number), None)


def toy_cases(number, first=0):
    return [toy_case(first + n, healthy=n % 2 == 1) for n in range(number)]


def train(folder, config=PATIENT, cases=None, val=None):
    run = Run(folder)
    try:
        cases, val = cases or toy_cases(24), val or toy_cases(8, 100)
        return train_attention(
            cases, val, (8, 8, 8), config, run, torch.device("cpu"), 0, metrics=classification_metrics
        )
    finally:
        run.close()


def test_the_logit_of_a_volume_is_the_attended_mean_of_its_cells():
    torch.manual_seed(0)
    net, volume = AttentionNet().eval(), torch.rand(1, 1, *FULL)
    with torch.no_grad():
        attended, logits = net(volume, CELLS)
        cells = net.layers.cells(volume, CELLS)[0].flatten(1).T  # [L, 64]
        said, own = [], []
        for h in cells:
            gated = torch.tanh(net.content.weight @ h + net.content.bias) * torch.sigmoid(
                net.gate.weight @ h + net.gate.bias
            )
            said.append((net.attention.weight @ gated + net.attention.bias)[0])
            own.append((net.classify.weight @ h + net.classify.bias)[0])
        a = torch.stack(said).exp() / torch.stack(said).exp().sum()
        torch.testing.assert_close(attended[0], a)
        torch.testing.assert_close(logits[0], torch.stack(own), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(net.volume_logits(volume, CELLS)[0], (a * torch.stack(own)).sum())
    grey = (volume[0, 0] * 255).round().to(torch.uint8)
    found = net.cell_map(grey, CELLS)
    assert found.shape == (CELLS.size,)
    assert 0 <= float(found.min()) < float(found.max()) <= 1


def test_it_finds_the_tumour_by_labels_of_patients_alone(tmp_path):
    net = train(tmp_path)
    metrics = Run(tmp_path).metrics()
    assert {"attention/loss", "attention/loss_val", "attention/auc"} <= metrics[-1].keys()
    assert max(line["attention/auc"] for line in metrics) > 0.9
    hits = []
    for case in toy_cases(20, 500)[::2]:
        best = int(net.cell_map(case.image, CELLS).argmax())
        held = CELLS.window_sums(case.label == 2)
        hits.append(bool(held[best] > 0))
    assert sum(hits) >= 8, "chance hits one cell in eight"
    with torch.no_grad():
        z = [float(net.volume_logits(case.image[None, None] / 255, CELLS)) for case in toy_cases(20, 500)]
    assert sum(z[::2]) > sum(z[1::2])


def test_a_training_that_was_interrupted_ends_bit_for_bit_the_same(tmp_path, monkeypatch):
    config = dataclasses.replace(PATIENT, epochs=3, batches_per_epoch=2, volumes_per_batch=2)
    whole = train(tmp_path / "whole", config)
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    draw, calls = attention.draw_volumes, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(attention, "draw_volumes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "again", config)
    again = train(tmp_path / "again", config)
    assert len(calls) == 4 + 4, "the first epoch is not made again"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_patients_of_both_kinds_are_needed(tmp_path):
    with pytest.raises(ValueError, match="8 of the 8 patients of the training cases hold tumour"):
        train(tmp_path, cases=[toy_case(n) for n in range(8)])


def test_it_is_read_as_it_was_written(tmp_path):
    net = AttentionNet((-100.0, 200.0)).eval()
    save_network(tmp_path / "net.safetensors", net)
    again = load_network(tmp_path / "net.safetensors", AttentionNet, hu_window=(-100.0, 200.0))
    image = toy_case(1).image
    assert torch.equal(net.cell_map(image, CELLS), again.cell_map(image, CELLS))
    with pytest.raises(ValueError, match="hu_window"):
        load_network(tmp_path / "net.safetensors", AttentionNet, hu_window=(-17.0, 201.0))
