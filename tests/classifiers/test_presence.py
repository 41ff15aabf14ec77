"""The presence classifier: a volume's forward knows what every crop's forward knows (docs/spars.md, Method 6)."""

import contextlib
import pickle

import pytest
import torch
import torch.nn.functional as F
from segarena.classifiers import presence, stem
from segarena.classifiers.presence import DensePresenceNet, PresenceNet, gather_crops, load_presence
from segarena.classifiers.stem import Stem
from segarena.common.networks import save_network
from segarena.datasets.liver.lattice import WindowLattice

FULL = (64, 64, 48)
GRIDS = {(48, 48, 24): (5, 5, 7), (32, 32, 16): (9, 9, 9), (16, 16, 8): (13, 13, 11), (8, 8, 8): (15, 15, 11)}


def random_net(seed=0):
    """A network whose BatchNorm statistics and signs are not the trivial ones of a fresh network."""
    torch.manual_seed(seed)
    net = DensePresenceNet((-17.0, 201.0), (16, 16, 8)).eval()
    for layer in net.layers:
        layer.norm.running_mean.normal_(0, 0.1)
        layer.norm.running_var.uniform_(0.05, 0.2)
        layer.norm.weight.data.normal_()
        layer.norm.bias.data.normal_(0, 0.3)
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def net():
    return random_net()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_volume(full=FULL, seed=0):
    return torch.randint(0, 256, full, dtype=torch.uint8, generator=generator(seed))


def crops_of(volume, corners, window):
    """Crops with halo, one at a time from a padded volume."""
    padded = F.pad(volume, [9] * 6)
    return torch.stack(
        [
            padded[tuple(slice(int(p), int(p) + w + 18) for p, w in zip(corner, window, strict=True))][None] / 255
            for corner in corners
        ]
    )


def test_the_network_has_as_many_parameters_as_the_docs_say(net):
    assert sum(parameter.numel() for parameter in net.parameters()) == 106_018


@pytest.mark.parametrize("phase", [(0, 0, 0), (0, 0, 2)])
@pytest.mark.parametrize("window", GRIDS)
def test_one_forward_of_the_volume_equals_the_forward_of_every_crop(net, window, phase):
    lattice = WindowLattice(FULL, window, 4, phase)
    volume = random_volume()
    logits = net.dense_logits(volume[None, None] / 255, lattice)[0]
    assert logits.shape == (*lattice.shape, 2)
    if phase == (0, 0, 0):
        assert lattice.shape == GRIDS[window]
    ids = torch.cat((torch.tensor([0, lattice.size - 1]), torch.randperm(lattice.size)[:10]))  # two at the border
    plain = net(crops_of(volume, lattice.corners(ids), window))
    torch.testing.assert_close(logits.flatten(0, 2)[ids], plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("full", "window", "step", "phase"),
    [((35, 30, 27), (16, 12, 8), 4, (3, 1, 2)), ((50, 41, 33), (16, 16, 8), 8, (0, 5, 7)), (FULL, FULL, 4, (0, 0, 0))],
)
def test_grids_that_are_no_multiple_of_4_and_wider_steps_give_the_crops_too(net, full, window, step, phase):
    lattice, volume = WindowLattice(full, window, step, phase), random_volume(full)
    dense, pooled = net.score_lattice(volume, lattice)
    ids = torch.arange(lattice.size)
    scores, features = net.score_windows(volume[None], 0 * ids, lattice.corners(), window)
    torch.testing.assert_close(dense, scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled, features, rtol=0, atol=1e-5)
    assert pooled.shape == (lattice.size, net.num_features)


def test_a_lattice_between_the_feature_cells_is_scored_window_by_window(net):
    lattice, volume = WindowLattice((20, 18, 16), (8, 8, 8), 2), random_volume((20, 18, 16))
    assert not net.has_dense(lattice)
    scores, _ = net.score_lattice(volume, lattice)
    plain = net(crops_of(volume, lattice.corners(), lattice.window)).softmax(dim=-1)[:, 1]
    torch.testing.assert_close(scores, plain, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="step is 2 but a dense forward needs a multiple of 4"):
        net.dense_logits(volume[None, None] / 255, lattice)


def test_slabs_and_batches_give_what_the_whole_gives(net, monkeypatch):
    lattice, volume = WindowLattice(FULL, (16, 16, 8)), random_volume()
    whole, _ = net.score_lattice(volume, lattice)
    windows = (volume[None], torch.zeros(50, dtype=torch.int64), lattice.corners(torch.arange(50)), lattice.window)
    at_once, _ = net.score_windows(*windows)
    for module in (presence, stem):
        monkeypatch.setattr(module, "CHUNK_VOXELS", 30 * 82 * 66)
    slabs = []
    monkeypatch.setattr(net.layers, "forward", lambda x: slabs.append(x.shape) or Stem.forward(net.layers, x))
    torch.testing.assert_close(net.score_lattice(volume, lattice)[0], whole, rtol=0, atol=1e-6)
    assert len(slabs) == 6
    torch.testing.assert_close(net.score_windows(*windows)[0], at_once, rtol=0, atol=1e-6)
    assert len(slabs) == 6 + 10


def test_a_score_does_not_depend_on_the_windows_beside_it(net):
    lattice, volumes = WindowLattice(FULL, (8, 8, 8)), torch.stack([random_volume(seed=seed) for seed in range(2)])
    case, corners = torch.arange(40) % 2, lattice.corners(torch.randint(lattice.size, (40,), generator=generator()))
    scores, features = net.score_windows(volumes, case, corners, lattice.window)
    for size in (1, 2, 3, 7, 17):
        some = torch.randperm(40, generator=generator(size))[:size]
        again, rows = net.score_windows(volumes, case[some], corners[some], lattice.window)
        assert torch.equal(again, scores[some])
        assert torch.equal(rows, features[some])


def test_batchnorm_folded_into_the_convolution_changes_nothing(net):
    x = torch.rand(2, 1, 12, 12, 12)
    layer = net.layers[0]
    torch.testing.assert_close(layer(x), layer.norm(layer.conv(x)), rtol=1e-5, atol=1e-6)


def test_in_training_the_statistics_are_those_of_the_whole_volume(monkeypatch):
    monkeypatch.setattr(stem, "CHUNK_VOXELS", 1)
    net, lattice = random_net().train(), WindowLattice((16, 16, 16), (8, 8, 8))
    volume = random_volume((16, 16, 16))[None, None] / 255
    net.dense_logits(volume, lattice)
    assert int(net.layers[0].norm.num_batches_tracked) == 1


def test_crops_come_from_their_case_and_are_air_outside_the_volume():
    volumes = torch.stack([random_volume((12, 10, 8), seed) for seed in range(3)])
    case, corners = torch.tensor([2, 0, 1]), torch.tensor([[0, 0, 0], [4, 6, 4], [8, 2, 0]])
    crops = gather_crops(volumes, case, corners, (4, 4, 4))
    assert crops.shape == (3, 1, 22, 22, 22)
    for crop, number, corner in zip(crops, case, corners, strict=True):
        assert torch.equal(crop[None], crops_of(volumes[number], corner[None], (4, 4, 4)))


def test_a_window_between_the_cells_is_refused(net):
    with pytest.raises(ValueError, match="multiple of 4"):
        net.score_windows(random_volume()[None], torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3).long(), (8, 6, 8))


def test_a_volume_of_another_grid_is_refused(net):
    with pytest.raises(ValueError, match="lattice stands on"):
        net.dense_logits(torch.zeros(1, 1, 32, 32, 32), WindowLattice(FULL, (16, 16, 8)))


def test_bfloat16_is_for_training_only(monkeypatch):
    """It would shift scores by up to 0.015, and the paper's bound is 0.005."""
    asked = []
    told = lambda device, enabled: asked.append(enabled) or contextlib.nullcontext()  # noqa: E731
    for module in (presence, stem):
        monkeypatch.setattr(module, "bfloat16_on_cuda", told)
    net, crop = random_net(), torch.rand(2, 1, 34, 34, 26)
    net.score_lattice(random_volume(), WindowLattice(FULL, (16, 16, 8)))
    net.score_windows(random_volume()[None], torch.zeros(1).long(), torch.zeros(1, 3).long(), (16, 16, 8))
    assert asked
    assert not any(asked)
    net.train()(crop)
    assert asked[-1]


def test_every_weight_counts_in_the_digest(net):
    changed = random_net()
    assert changed.digest() == net.digest()
    changed.layers[2].norm.running_var[3] += 1e-3
    assert changed.digest() != net.digest()


def test_a_saved_classifier_comes_back_frozen_and_equal(net, tmp_path):
    save_network(tmp_path / "net.safetensors", net)
    loaded = load_presence(tmp_path / "net.safetensors")
    assert isinstance(loaded, PresenceNet)
    assert loaded.digest() == net.digest()
    assert (loaded.hu_window, loaded.window_size) == ((-17.0, 201.0), (16, 16, 8))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_packaged_classifier_loads():
    assert load_presence().digest() == load_presence("packaged").digest()


def test_bad_checkpoints_say_what_they_are(net, tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_presence(path)
    path.write_bytes(pickle.dumps(net.state_dict()))
    with pytest.raises(ValueError, match="pickled checkpoints are not read"):
        load_presence(path)
    save_network(path, net)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_presence(path)
    wide = random_net()
    wide.head[2] = torch.nn.Linear(64, 3)
    save_network(path, wide)
    with pytest.raises(ValueError, match=r"another architecture: parameter 'head\.2\.weight' is \[3, 64\]"):
        load_presence(path)
