"""Victims on disk: what was written comes back, and what does not fit is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from segarena.attacks.victim import Normalized, logits_and_features
from segarena.attacks.victims import PACKAGED, feature_layer_of, load_victim, save_victim
from segarena.common.checkpoints import load_weights, save_weights
from segarena.segmenters.pspnet import PSPNet
from segarena.segmenters.unet import UNet


def test_a_victim_comes_back_with_its_normalisation_and_its_classes(tmp_path: Path) -> None:
    victim = Normalized(PSPNet(3, 4, backbone="resnet18"), [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]).eval()
    save_victim(tmp_path / "a.safetensors", victim, ["a", "b", "c", "d"], {"training": "none"})
    loaded, classes = load_victim(tmp_path / "a.safetensors", 4)
    images = torch.rand(1, 3, 33, 33)
    assert classes == ("a", "b", "c", "d")
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images), victim(images))
    with pytest.raises(ValueError, match="out_channels = 4 but 5 is needed"):
        load_victim(tmp_path / "a.safetensors", 5)


def test_what_is_no_victim_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_victim(path, Normalized(UNet(1, 2), [0.5], [0.25]), ["a", "b"])
    weights, metadata = load_weights(path)
    save_weights(path, weights, {**metadata, "classes": json.dumps(["a"])})
    with pytest.raises(ValueError, match="names 1 classes and 1 channels but its network has 2 and 1"):
        load_victim(path)
    save_weights(path, weights, {key: value for key, value in metadata.items() if key != "mean"})
    with pytest.raises(ValueError, match="how its images are normalised"):
        load_victim(path)
    with pytest.raises(TypeError, match="Linear but must be a Network"):
        save_victim(path, Normalized(torch.nn.Linear(1, 1), [0.5], [0.25]), ["a"])


@pytest.mark.parametrize(("name", "channels"), [("scenes", 3), ("liver", 1)])
def test_the_packaged_victims_are_small_and_ready(name: str, channels: int) -> None:
    victim, classes = load_victim(PACKAGED[name])
    assert PACKAGED[name].stat().st_size < 1.5e6
    assert PACKAGED[name].with_suffix(".md").is_file()
    size = 65 if channels == 3 else 64
    images = torch.rand(2, channels, size, size)
    logits, features = logits_and_features(victim, images, feature_layer_of(victim))
    assert logits.shape == (2, len(classes), size, size)
    assert features is not None
    assert features.shape[2:] == (8, 8)


def test_the_usual_features_are_known_of_each_network() -> None:
    victim = Normalized(PSPNet(3, 4, backbone="resnet18"), [0.5] * 3, [0.25] * 3)
    assert feature_layer_of(victim) == "model.layer4"
    with pytest.raises(ValueError, match="no feature_layer is known of a Linear; give the name of a submodule, or Non"):
        feature_layer_of(torch.nn.Linear(2, 2))
