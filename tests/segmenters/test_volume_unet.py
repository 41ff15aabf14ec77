"""The 3-D U-Net: any size, any spacing of the levels, and that it learns from voxels."""

import dataclasses

import pytest
import torch
from segarena.common import fitting
from segarena.common.networks import load_network, save_network
from segarena.common.runs import Run
from segarena.datasets.liver.cases import LiverCase
from segarena.segmenters import volume_unet
from segarena.segmenters.volume_unet import VolumeUNet, VolumeUNetConfig, train_volume_unet

FULL = (20, 16, 12)
SMALL = VolumeUNetConfig(channels=(8, 16), epochs=8, batches_per_epoch=10, learning_rate=1e-2)


def toy_case(number, tumour=True):
    """Noise; a liver, brighter; in it a tumour of 4x4x4 voxels, brighter still."""
    of_case = torch.Generator().manual_seed(number)
    image = torch.randint(0, 40, FULL, dtype=torch.uint8, generator=of_case)
    label = torch.zeros(FULL, dtype=torch.uint8)
    label[4:, 2:14, 2:] = 1
    if tumour:
        x, y, z = (
            int(torch.randint(low, high - 4, (), generator=of_case)) for low, high in ((4, 20), (2, 14), (2, 12))
        )
        label[x : x + 4, y : y + 4, z : z + 4] = 2
    image += 80 * label
    return LiverCase(f"toy_{number}", "phantom", image, None, label, (1.0, 1.0, 1.0), str(number), None)


def train(folder, config=SMALL, cases=None, val=None):
    run = Run(folder)
    try:
        cases, val = cases or [toy_case(n) for n in range(8)], val or [toy_case(100 + n) for n in range(2)]
        return train_volume_unet(cases, val, config, run, torch.device("cpu"), 0)
    finally:
        run.close()


def test_it_has_the_parameters_of_the_papers_comparator():
    assert sum(p.numel() for p in VolumeUNet().parameters()) == 4_807_482


@pytest.mark.parametrize("size", [(16, 16, 16), (5, 9, 16), (33, 17, 4)])
def test_a_volume_of_any_size_keeps_its_size(size):
    net = VolumeUNet((4, 8, 8)).eval()
    assert net(torch.rand(2, 1, *size)).shape == (2, 3, *size)
    found = net.tumour_probability(torch.randint(256, size, dtype=torch.uint8))
    assert found.shape == size
    assert 0 < float(found.min()) <= float(found.max()) < 1


def test_it_learns_where_tumours_are(tmp_path):
    net = train(tmp_path)
    metrics = Run(tmp_path).metrics()
    assert max(line["unet/dice"] for line in metrics) > 0.7
    assert metrics[-1]["unet/loss"] < metrics[0]["unet/loss"]
    case = toy_case(500)
    found, truth = net.tumour_probability(case.image), case.label == 2
    inside = found > 0.5
    assert float(2 * (inside & truth).sum() / (inside.sum() + truth.sum())) > 0.7
    assert float(found[truth].mean()) > 10 * float(found[~truth].mean())


def test_a_training_that_was_interrupted_ends_bit_for_bit_the_same(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, epochs=3, batches_per_epoch=2)
    whole = train(tmp_path / "whole", config)
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    descend, calls = volume_unet.descend, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return descend(*arguments)

    monkeypatch.setattr(volume_unet, "descend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "again", config)
    again = train(tmp_path / "again", config)
    assert len(calls) == 4 + 4, "the first epoch is not made again"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_it_is_read_as_it_was_written(tmp_path):
    net, x = VolumeUNet((4, 8)).eval(), torch.rand(1, 1, 8, 8, 8)
    save_network(tmp_path / "net.safetensors", net)
    assert torch.equal(load_network(tmp_path / "net.safetensors", VolumeUNet)(x), net(x))


@pytest.mark.parametrize(
    ("cases", "val", "said"),
    [
        ([dataclasses.replace(toy_case(0), label=None)], None, "toy_0 has no label"),
        (None, [toy_case(3, tumour=False)], "none of the 1 validation cases .* has a tumour"),
        ([toy_case(0), dataclasses.replace(toy_case(1), image=torch.zeros(4, 4, 4))], None, "cases of one shape"),
    ],
)
def test_cases_that_cannot_be_learned_from_are_refused(tmp_path, cases, val, said):
    with pytest.raises(ValueError, match=said):
        train(tmp_path, cases=cases, val=val)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"channels": (4,)}, r"unet.channels is \(4,\) but must have 2 to 8 levels"),
        ({"channels": (4, 0)}, "unet.channels is .* but each must be"),
        ({"epochs": 0}, "unet.epochs is 0"),
        ({"flip_probability": 1.5}, "unet.flip_probability is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        VolumeUNetConfig(**settings)
