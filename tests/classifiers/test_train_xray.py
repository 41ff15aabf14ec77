"""Training of X-ray classifiers: what is learned, logged and kept, when it ends (docs/apga.md, Method 7)."""

import math
from types import SimpleNamespace

import pytest
import torch
from segarena.classifiers.train_xray import (
    FILE,
    XrayTrainingConfig,
    build_classifier,
    classifier_loss,
    train_xray,
)
from segarena.classifiers.xray import XrayClassifier, probabilities
from segarena.common import fitting
from segarena.common.networks import load_network
from segarena.common.runs import Run

CPU = torch.device("cpu")


class StoppedError(Exception):
    """Error that ends a training too early."""


def pool(number=48, seed=0):
    """Noise; images of class 1 have a bright square."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(100, (number, 1, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.arange(number) % 2
    images[labels == 1, :, 4:9, 4:9] += 100
    return SimpleNamespace(images=images, labels=labels)


def accuracy(found, labels):
    right = float((found.argmax(dim=1) == labels).float().mean())
    return {"accuracy": right, "auroc": right, "kappa": 2 * right - 1}


def train(folder, metrics=accuracy, train=None, val=None, seed=0, **settings):
    config = XrayTrainingConfig(**{"network": "small_cnn", "in_channels": 1, "epochs": 5, "batch_size": 16} | settings)
    net, run = build_classifier(config, 2, seed, CPU), Run(folder)
    best = train_xray(net, train or pool(), val or pool(16, seed=1), config, run, seed, metrics=metrics)
    return net, best, run.metrics()


def scripted(values):
    """Metrics whose accuracies are given, one an epoch."""
    left = iter(values)

    def metrics(found, labels):
        return {"accuracy": next(left), "auroc": 0.5, "kappa": 0.0}

    return metrics


# -- learning ----------------------------------------------------------------------------------------------------------


def test_it_learns_and_keeps_the_best_epoch(tmp_path):
    net, best, lines = train(tmp_path, epochs=12, learning_rate=1e-2)
    assert best["val_acc"] > 0.9
    assert not net.training
    val = pool(16, seed=1)
    assert accuracy(probabilities(net, val.images), val.labels)["accuracy"] == pytest.approx(best["val_acc"])
    assert best["val_acc"] == max(line["classifier/val_acc"] for line in lines)
    assert lines[-1]["classifier/loss_plain"] < 0.5 * lines[0]["classifier/loss_plain"]
    again = load_network(tmp_path / FILE, XrayClassifier, network="small_cnn")
    assert torch.equal(probabilities(again, val.images), probabilities(net, val.images))


def test_each_epoch_logs_loss_and_validation(tmp_path):
    lines = train(tmp_path, epochs=2)[2]
    names = {f"classifier/{name}" for name in ("loss_plain", "val_acc", "val_auroc", "val_kappa", "gradient_steps")}
    assert [set(line) for line in lines] == [{"step", *names}] * 2


def test_the_loss_is_cross_entropy_in_nats():
    net = XrayClassifier("small_cnn", 1)
    torch.nn.init.zeros_(net.head.weight)
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([2.0, 0.0]))
    x, zeros = torch.rand(3, 1, 16, 16), torch.zeros(3, dtype=torch.int64)
    assert classifier_loss(net, x, zeros).item() == pytest.approx(0.126928, abs=1e-6)
    assert classifier_loss(net, x, zeros + 1).item() == pytest.approx(2.126928, abs=1e-6)


def test_the_learning_rate_follows_from_the_weights_and_falls_along_a_cosine(tmp_path, monkeypatch):
    rates = []

    def noted(optimizer, loss):
        rates.append(optimizer.param_groups[0]["lr"])
        descend(optimizer, loss)

    descend = fitting.descend
    monkeypatch.setattr("segarena.classifiers.train_xray.descend", noted)
    train(tmp_path / "cosine", epochs=2)
    expected = [1e-3 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert rates == pytest.approx(expected)
    rates.clear()
    train(tmp_path / "on", epochs=1, schedule="constant", pretrained=str(tmp_path / "cosine" / FILE))
    assert rates == [1e-4] * 3
    assert XrayTrainingConfig(imagenet="a").first_rate == 1e-4
    assert XrayTrainingConfig(imagenet="a", learning_rate=0.5).first_rate == 0.5


def test_it_can_begin_as_an_earlier_classifier(tmp_path):
    net = train(tmp_path, epochs=1)[0]
    config = XrayTrainingConfig(network="small_cnn", in_channels=1, pretrained=str(tmp_path / FILE))
    again = build_classifier(config, 2, 5, CPU)
    assert torch.equal(again.head.weight, net.head.weight)
    with pytest.raises(ValueError, match="out_channels = 2 but 6 is needed"):
        build_classifier(config, 6, 5, CPU)


# -- patience ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "epochs", "best"),
    [
        ([0.5] * 100, 17, 1),
        ([0.0] * 100, 16, 0),
        ([0.5 + 0.01 * n for n in range(10)] + [0.4] * 90, 26, 10),
        ([0.5, *[0.4] * 15, 0.6, *[0.6] * 83], 33, 17),
        ([0.001 * n for n in range(1, 101)], 100, 100),
    ],
)
def test_it_ends_after_sixteen_epochs_without_an_improvement(accuracies, epochs, best, tmp_path):
    tiny = SimpleNamespace(images=torch.zeros(2, 1, 8, 8, dtype=torch.uint8), labels=torch.tensor([0, 1]))
    _, scalars, lines = train(tmp_path, scripted(accuracies), train=tiny, val=tiny, epochs=100)
    assert (len(lines), scalars["epoch"]) == (epochs, best)


# -- stopped and resumed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(stopped_after, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    whole = train(tmp_path / "whole")
    calls = []

    def stopping(found, labels):
        calls.append(1)
        if len(calls) > stopped_after:
            raise StoppedError
        return accuracy(found, labels)

    with pytest.raises(StoppedError):
        train(tmp_path / "run", stopping)
    again = train(tmp_path / "run")
    assert again[1:] == whole[1:]
    assert all(torch.equal(value, whole[0].state_dict()[name]) for name, value in again[0].state_dict().items())
    assert (tmp_path / "run" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["train", "val"])
def test_images_of_one_class_are_refused(purpose, tmp_path):
    one = pool(8)
    one.labels[:] = 1
    with pytest.raises(ValueError, match=r"all 8 (training|validation) images are of class 1, .* at least two classes"):
        train(tmp_path, **{purpose: one})


def test_a_label_that_is_no_class_is_refused(tmp_path):
    other = pool(8)
    other.labels[3] = 5
    with pytest.raises(ValueError, match=r"training images have the labels \[0, 1, 5\] but .* the classes 0\.\.1"):
        train(tmp_path, train=other)


def test_two_files_to_begin_with_are_refused():
    with pytest.raises(ValueError, match=r"classifier.imagenet is 'a' and classifier.pretrained is 'b' .* to null"):
        XrayTrainingConfig(imagenet="a", pretrained="b")


def test_images_are_mirrored_while_it_learns_and_not_when_it_is_judged(tmp_path):
    """Which side is bright cannot be learned from mirrored images."""

    def sides(number):
        images = torch.zeros(number, 1, 16, 16, dtype=torch.uint8)
        images[0::2, :, 5:11, 1:5] = images[1::2, :, 5:11, 11:15] = 200
        return SimpleNamespace(images=images, labels=torch.arange(number) % 2)

    found = {}
    for augment in ("none", "geometric"):
        _, best, lines = train(tmp_path / augment, train=sides(48), val=sides(16), epochs=8, augment=augment)
        found[augment] = (lines[-1]["classifier/loss_plain"], best["val_acc"])
    assert found["none"][0] < 0.3
    assert found["none"][1] == 1.0
    assert found["geometric"][0] > 0.6
