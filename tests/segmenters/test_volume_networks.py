"""Networks of 3-D patches: known sizes, sides, files, and the published layout of ROG (docs/seat.md, Method 8)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segarena.attacks.victim import Normalized
from segarena.attacks.victims import NETWORKS, load_victim, save_victim
from segarena.common.networks import load_network, save_network
from segarena.common.published import read_state_dict
from segarena.segmenters.pretrained import load_rog
from segarena.segmenters.rog import DOWN, ROG, SAME, UP, Cell, Norm, enlarged
from segarena.segmenters.volume_networks import TASK_PATCHES, DynUNet, SegResNet, UNet3D, kernels_and_strides
from torch import nn

SPLEEN = {"s0": (2, 2, 1), "s1": (2, 2, 1), "s2": (2, 2, 2)}
PROSTATE = {"s0": (1, 1, 1), "s1": (2, 2, 1), "s2": (2, 2, 1)}
TASKS = {
    1: (4, 4, 2_596_556), 2: (1, 2, 2_596_315), 3: (1, 3, 2_596_347), 4: (1, 3, 2_596_347), 5: (2, 3, 2_596_406),
    6: (1, 2, 2_596_315), 7: (1, 3, 2_596_347), 8: (1, 3, 2_596_347), 9: (1, 2, 2_596_315), 10: (1, 2, 2_596_315),
}  # fmt: skip
"""Channels, classes and parameters of ROG."""


def parameters(net):
    return sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize(("channels", "classes", "number"), TASKS.values(), ids=TASKS)
def test_rog_has_the_published_number_of_parameters(channels, classes, number):
    with torch.device("meta"):
        assert parameters(ROG(channels, classes)) == number == 2_596_192 + 59 * channels + 32 * classes


def test_each_part_of_rog_has_its_number_of_parameters():
    with torch.device("meta"):
        net = ROG(1, 2)
    assert [parameters(stem) for stem in net.stem] == [2075, 4992]
    found = [[parameters(cell) for cell in column.cells] for column in net.backbone]
    first, second, third, last = 20_352, 81_792, 311_040, 685_568
    assert found[:6:2] == [[first], [first, third], [first, third]]
    assert found[1:4:2] == [[second], [second, last]]
    assert found[6:] == [[first, 178_944], [48_512], [14_016]]
    assert (parameters(net.combination), parameters(net.final)) == (27_712, 64)


@pytest.mark.parametrize(
    ("channels", "strides", "sides", "small", "levels"),
    [
        (1, SPLEEN, (192, 192, 48), (96, 96, 48), [(48, 48, 48), (24, 24, 24), (12, 12, 12), (6, 6, 6)]),
        (2, PROSTATE, (96, 96, 16), (96, 96, 16), [(48, 48, 16), (24, 24, 16), (12, 12, 8), (6, 6, 4)]),
    ],
)
def test_the_lattice_has_the_known_shapes_and_sums(channels, strides, sides, small, levels):
    seen, summed = {}, []
    with torch.device("meta"):
        net = ROG(channels, 2, **strides)
        for depth, column in enumerate(net.backbone):
            column.register_forward_pre_hook(
                lambda module, inputs, depth=depth: summed.append(
                    {level: len(inputs[0][level]) for level in module.levels}
                )
            )
            for level, cell in zip(column.levels, column.cells, strict=True):
                cell.register_forward_pre_hook(
                    lambda module, inputs, level=level: seen.setdefault(level, set()).add(tuple(inputs[0].shape[1:]))
                )
        net.stem[0].register_forward_hook(lambda m, i, output: seen.update(small=tuple(output.shape[1:])))
        assert net(torch.empty(3, channels, *sides)).shape == (3, 2, *sides)
    assert seen.pop("small") == (32, *small)
    assert seen == {level: {(64 * 2**level, *shape)} for level, shape in enumerate(levels)}
    assert summed == [
        {0: 1}, {1: 1}, {0: 2, 2: 1}, {1: 3, 3: 1}, {0: 2, 2: 3}, {1: 3, 3: 2}, {0: 2, 2: 3}, {1: 3}, {0: 2}
    ]  # fmt: skip


def test_layers_give_known_values():
    assert nn.SiLU()(torch.tensor(1.0)).item() == pytest.approx(0.7310586, abs=1e-6)
    given = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 1, 4)
    expected = torch.tensor([-1.3416354, -0.4472117, 0.4472119, 1.3416355])
    assert torch.allclose(Norm(1)(given).flatten(), expected, atol=1e-6)
    found = enlarged(torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2), (1, 1, 2))
    assert torch.allclose(found.flatten(), torch.tensor([0, 1 / 3, 2 / 3, 1]), atol=1e-6)
    assert found.shape == (1, 1, 1, 1, 4)


def test_a_cell_keeps_what_it_is_given_and_its_edges_follow_a_swish():
    torch.manual_seed(1)
    cell, x = Cell(8, (UP, SAME, DOWN), (1, 2, 2), (2, 2, 1)), torch.randn(2, 8, 4, 4, 4)
    z = x + cell.core(x)
    found = cell(x)
    torch.testing.assert_close(found[SAME], z)
    up, down = (edge[2](edge[1](F.silu(z))) for edge in (cell.up, cell.down))
    torch.testing.assert_close(found[UP], F.interpolate(up, (4, 8, 8), mode="trilinear", align_corners=True))
    torch.testing.assert_close(found[DOWN], down)
    assert found[DOWN].shape == (2, 16, 2, 2, 4)


def test_the_head_is_given_the_first_stem_beside_the_lattice():
    torch.manual_seed(2)
    net, seen = ROG(1, 2, **SPLEEN), {}
    net.stem[0].register_forward_hook(lambda m, i, output: seen.update(small=output))
    net.backbone[-1].register_forward_hook(lambda m, i, output: seen.update(lattice=output[-1][0]))
    net.combination.register_forward_pre_hook(lambda m, inputs: seen.update(head=inputs[0]))
    with torch.no_grad():
        net(torch.randn(1, 1, 64, 64, 16))
    torch.testing.assert_close(seen["head"], seen["small"] + seen["lattice"])


@pytest.mark.parametrize("make", [ROG, SegResNet, DynUNet])
def test_every_weight_is_used_and_an_image_is_the_same_alone(make):
    torch.manual_seed(0)
    net = make(1, 2)
    x = torch.randn(2, 1, 16, 16, 16)
    F.cross_entropy(net(x), torch.randint(2, (2, 16, 16, 16))).backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in net.parameters())
    net.eval()
    with torch.no_grad():
        assert torch.allclose(net(x)[1:], net(x[1:]), atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "classes", "residual", "unet"),
    [(1, 2, 4_700_914, 76_859_845), (1, 3, 4_700_931, 76_863_440), (4, 4, 4_702_244, 76_877_457),
     (2, 3, 4_701_363, 76_866_896)],
)  # fmt: skip
def test_monais_networks_have_the_known_number_of_parameters(channels, classes, residual, unet):
    with torch.device("meta"):
        assert parameters(SegResNet(channels, classes)) == residual == 4_700_448 + 432 * channels + 17 * classes
        assert parameters(UNet3D(channels, classes)) == unet


def test_dynunet_is_planned_from_patch_and_spacing():
    kernels, strides = kernels_and_strides(*TASK_PATCHES[5])
    assert strides == [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2], [2, 2, 1], [2, 2, 1]]
    assert kernels == [[3, 3, 1], [3, 3, 1], *[[3, 3, 3]] * 5]
    assert kernels_and_strides(*TASK_PATCHES[4]) == ([[3, 3, 3]] * 4, [[1, 1, 1], *[[2, 2, 2]] * 3])
    with torch.device("meta"):
        units = {task: DynUNet(1, 2, *row).unit for task, row in TASK_PATCHES.items()}
    assert units[5] == (64, 64, 4)
    assert units[10] == (32, 32, 8)
    with pytest.raises(ValueError, match=r"spacing is \(0.0, 1.0, 1.0\)"):
        kernels_and_strides((40, 56, 40), (0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"patch_size is \(8, 8, 8\) but a DynUNet needs one that can be halved twice"):
        DynUNet(1, 2, (8, 8, 8))


@pytest.mark.parametrize(
    ("make", "sides", "unit"),
    [(lambda: ROG(1, 2, **SPLEEN), (192, 192, 20), "(32, 32, 8)"), (SegResNet, (16, 12, 16), "(8, 8, 8)"),
     (UNet3D, (32, 24, 32), "(16, 16, 16)"), (DynUNet, (16, 16, 20), "(8, 8, 8)"), (ROG, (16, 16), "(8, 8, 8)")],
)  # fmt: skip
def test_sides_that_cannot_be_halved_are_refused(make, sides, unit):
    with torch.device("meta"):
        net, x = make(), torch.empty(1, 1, *sides)
    with pytest.raises(ValueError, match="with sides that are multiples of") as caught:
        net(x)
    assert unit in str(caught.value)


def test_patches_of_which_one_voxel_is_left_and_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"sides \(8, 8, 8\) but ROG needs a larger one"):
        ROG()(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(ValueError, match="out_channels is 0"):
        ROG(1, 0)
    with pytest.raises(ValueError, match=r"s1 is \(2, 2\) but must be three strides"):
        ROG(s1=(2, 2))
    with pytest.raises(ValueError, match="in_channels is 0"):
        SegResNet(0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("rog", {"s1": (2, 2, 1)}), ("segresnet", {}), ("dynunet", {"patch_size": (40, 56, 40), "spacing": (1.0, 1, 1)})],
)
def test_each_network_comes_back_from_its_file(name, arguments, tmp_path):
    torch.manual_seed(1)
    net = NETWORKS[name](1, 3, **arguments).eval()
    save_victim(tmp_path / "v.safetensors", Normalized(net, [0.0], [1.0]), ["a", "b", "c"])
    loaded, _ = load_victim(tmp_path / "v.safetensors", classes=3)
    assert loaded.model.description == net.description
    assert NETWORKS.keys() >= {"rog", "segresnet", "unet3d", "dynunet"}
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), net(x))
    save_network(tmp_path / "n.safetensors", net)
    with pytest.raises(ValueError, match="out_channels = 3 but 4 is needed"):
        load_network(tmp_path / "n.safetensors", type(net), out_channels=4)


# -- the published layout of ROG ---------------------------------------------------------------------------------------


def published(net):
    """A checkpoint as the programs of ROG and SEAT write it."""
    return {
        "epoch": 7,
        "state_dict": {f"module.ROG.{name}": value.clone() for name, value in net.state_dict().items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]},
        "scheduler": {"best": np.float64(0.5), "mode_worse": float("inf")},
        "rng": [np.random.RandomState(0).get_state(), torch.get_rng_state()],
        "loss": [0.4, np.float32(0.5)],
        "lr": 1e-3, "iter": 3, "threshold": 12.5, "mag": 11.0, "dice": np.array([0.8, 0.7]),
        "best_dice": np.float64(0.8),
    }  # fmt: skip


def test_a_published_checkpoint_gives_its_weights_alone(tmp_path):
    torch.manual_seed(2)
    trained, net = ROG(1, 2, **SPLEEN), ROG(1, 2, **SPLEEN)
    checkpoint = published(trained)
    assert len(checkpoint["state_dict"]) == 189
    torch.save(checkpoint, tmp_path / "best_dice.pth.tar")
    load_rog(net, tmp_path / "best_dice.pth.tar")
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in trained.state_dict().items())
    names = set(checkpoint["state_dict"])
    for name in (
        "stem.0.0.conv.weight", "stem.0.4.norm.bias", "stem.1.3.pointwise.weight",
        "backbone.0.cells.0.down.2.norm.weight", "backbone.2.cells.1.up.1.weight",
        "backbone.3.cells.1.core.4.pointwise.weight", "backbone.8.cells.0.core.2.norm.bias",
        "combination.1.weight", "combination.2.norm.bias", "final.1.weight",
    ):  # fmt: skip
        assert f"module.ROG.{name}" in names


def test_a_checkpoint_of_another_task_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(published(ROG(1, 2)), path)
    with pytest.raises(ValueError, match="is of a task with 2 classes but the network has 3; build ROG with out_chan"):
        load_rog(ROG(1, 3), path)
    with pytest.raises(ValueError, match="is of a task with 1 channels but the network has 4; build ROG with in_chan"):
        load_rog(ROG(4, 2), path)
    torch.save({"state_dict": SegResNet().state_dict()}, path)
    with pytest.raises(ValueError, match=r"does not fit ROG: missing 'stem\.0\.0\.conv\.weight'.* unexpected 'body\."):
        load_rog(ROG(), path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_rog(ROG(), tmp_path / "none.pth")


class Code:
    """What makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    torch.save({**published(ROG()), "dice": np.array([Code(tmp_path / "made")], dtype=object)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds more than tensors, numbers and text"):
        read_state_dict(tmp_path / "a.pth")
    assert not (tmp_path / "made").exists()
