"""Classifiers of X-rays, their maps and agents on a pretended CUDA device: the host seldom waits for it."""

from types import SimpleNamespace

import torch
from segarena.classifiers.gradcam import gradcam
from segarena.classifiers.train_xray import XrayTrainingConfig, build_classifier, train_xray
from segarena.classifiers.xray import probabilities
from segarena.common.runs import Run
from segarena.evaluation.classification import image_metrics, metric_intervals
from segarena.evaluation.deletion import deletion_curves
from segarena.segmenters.grid_network import GridNetwork

CUDA = torch.device("cuda")


def pool(number=64):
    images = torch.randint(256, (number, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return SimpleNamespace(images=images.to(CUDA), labels=(torch.arange(number) % 2).to(CUDA))


def classifier(**settings):
    config = XrayTrainingConfig(network="small_cnn", in_channels=1, batch_size=8, **settings)
    return build_classifier(config, 2, 0, CUDA), config


def test_an_epoch_waits_as_often_for_many_batches_as_for_few(police, tmp_path):
    waits = []
    for number in (16, 64):
        net, config = classifier(epochs=1)
        with police.count() as counted:
            train_xray(net, pool(number), pool(16), config, Run(tmp_path / str(number)), 0, metrics=image_metrics)
        waits.append(counted.total)
    assert waits[0] == waits[1]


def test_maps_agents_and_probabilities_do_not_wait(police):
    net, images = classifier()[0].eval(), pool(16).images
    agent = GridNetwork(16, 4, width=8).to(CUDA)
    with police.count() as counted, torch.no_grad():
        gradcam(net, images.float() / 255)
        agent.logits_and_values(images.float() / 255)
        probabilities(net, images, batch_size=4)
    assert counted.total == 0, counted.report()


def test_curves_of_deletion_wait_twice_whatever_the_steps(police):
    net, x, saliency = classifier()[0].eval(), pool(4).images.float() / 255, torch.rand(4, 16, 16).to(CUDA)
    for steps in (2, 16):
        with police.count() as counted:
            deletion_curves(lambda x: net(x).softmax(dim=1), x, saliency, steps=steps, batch_size=4)
        assert counted.total == 2, counted.report()  # is a map finite; the order of equal pixels


def test_metrics_take_predictions_of_the_device(police):
    found = pool(16)
    p = probabilities(classifier()[0].eval(), found.images)
    metric_intervals(p, found.labels, [n // 2 * 2 + n % 2 for n in range(16)], resamples=10)
