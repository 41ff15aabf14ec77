"""The paper's presence classifier: its sizes, its resizing, and how it is played (docs/spars.md, Method 6)."""

import contextlib

import pytest
import torch
from segarena.classifiers import presence
from segarena.classifiers.presence import DensePresenceNet, PaperPresenceNet, load_presence
from segarena.common.networks import save_network
from segarena.datasets.liver.cases import LiverCase
from segarena.datasets.liver.lattice import WindowLattice
from segarena.rewards.presence import ScoreTable

HU_WINDOW = (-17.0, 201.0)
SMALLEST = (108, 108, 108)
WINDOW = (12, 8, 8)
FULL = (16, 12, 8)
LATTICE = WindowLattice(FULL, WINDOW)


def paper_net(input_size=SMALLEST, seed=0):
    """A network whose scores differ: BatchNorm has seen what it is given."""
    torch.manual_seed(seed)
    net = PaperPresenceNet(HU_WINDOW, WINDOW, input_size)
    with torch.no_grad():
        net.fc5.weight.mul_(20)
        net.train()(torch.rand(4, 1, *WINDOW))
    return net.eval().requires_grad_(False)


@pytest.fixture
def outlines(monkeypatch):
    """Tensors without memory, for sizes that would take seconds."""
    monkeypatch.setattr(presence, "bfloat16_on_cuda", lambda device, enabled: contextlib.nullcontext())
    with torch.device("meta"):
        yield


@pytest.fixture(scope="module")
def net():
    return paper_net()


def random_volumes(number=1, full=FULL):
    return torch.randint(0, 256, (number, *full), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def case_of(image):
    return LiverCase("case", "phantom", image, None, None, (1.0, 1.0, 1.0), str(hash(image)), None)


# -- architecture --------------------------------------------------------------------------------------------------


def test_it_has_the_parameters_and_blocks_of_the_paper(outlines):
    net = PaperPresenceNet(HU_WINDOW, (48, 48, 24)).eval()
    assert sum(parameter.numel() for parameter in net.parameters()) == 3_570_738
    assert sum(buffer.numel() for buffer in net.buffers()) == 244
    assert net.fc1.in_features == 1152
    shapes = []
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda layer, x, y, name=name: shapes.append((name, tuple(y.shape[1:]))))
    features = net.pool_crops(torch.rand(1, 1, 256, 256, 180))
    assert features.shape == (1, 128)
    convolved = {name: shape for name, shape in shapes if name.startswith("conv")}
    assert convolved == {
        "conv1": (8, 254, 254, 178),
        "conv2": (16, 63, 63, 44),
        "conv3": (32, 15, 15, 10),
        "conv4": (64, 3, 3, 2),
    }
    linear = [(net.get_submodule(f"fc{n}").in_features, net.get_submodule(f"fc{n}").out_features) for n in range(1, 6)]
    assert linear == [(1152, 1600), (1600, 800), (800, 400), (400, 128), (128, 2)]


@pytest.mark.parametrize("n", [108, 150, 171, 172, 180, 235, 236, 256])
def test_the_first_linear_layer_reads_what_the_convolutions_leave(n, outlines):
    cells = {108: 1, 150: 1, 171: 1, 172: 2, 180: 2, 235: 2, 236: 3, 256: 3}[n]
    net = PaperPresenceNet(HU_WINDOW, WINDOW, (n, 108, 256)).eval()
    assert net.fc1.in_features == 64 * cells * 1 * 3
    assert net(torch.rand(1, 1, *WINDOW)).shape == (1, 2)


@pytest.mark.parametrize(
    ("size", "axis"), [((96, 96, 64), "96 voxels along x"), ((256, 256, 107), "107 voxels along z")]
)
def test_an_input_of_which_nothing_is_left_is_refused(size, axis):
    with pytest.raises(ValueError, match=f"leave nothing of {axis}; give at least 108"):
        PaperPresenceNet(HU_WINDOW, WINDOW, size)


def test_the_logits_are_those_of_the_layers_one_after_the_other(net):
    x = torch.rand(2, 1, *SMALLEST, generator=torch.Generator().manual_seed(1))
    y = x
    for n in range(1, 5):
        y = net.get_submodule(f"bn{n}")(net.get_submodule(f"conv{n}")(y)).relu()
        y = torch.nn.functional.max_pool3d(y, 2, 2) if n < 4 else y
    y = y.flatten(1)
    for n in range(1, 5):
        y = net.get_submodule(f"fc{n}")(y).relu()
    torch.testing.assert_close(net(x), net.fc5(y), rtol=1e-4, atol=1e-5)
    features = net.pool_crops(x)
    torch.testing.assert_close(features, y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.score_features(features), net(x).softmax(dim=-1)[:, 1], rtol=1e-4, atol=1e-5)


# -- windows -------------------------------------------------------------------------------------------------------


def test_windows_are_resized_by_the_nearest_voxel_in_training_as_in_use(net):
    crops = torch.rand(2, 1, 48, 24, 8)
    x, y, z = ([size * i // 108 for i in range(108)] for size in crops.shape[2:])
    big = crops[:, :, x][:, :, :, y][..., z]
    assert torch.equal(net(crops), net(big))
    training = paper_net().train()
    assert torch.equal(training(crops), training(big))


def test_a_windows_score_is_that_of_its_voxels_whichever_windows_are_scored_with_it(net):
    volumes = random_volumes(2)
    case, corners = torch.tensor([0, 1, 1, 0, 1]), LATTICE.corners(torch.tensor([0, 3, 1, 2, 2]))
    scores, features = net.score_windows(volumes, case, corners, WINDOW)
    assert features.shape == (5, 128)
    assert len(scores.unique()) == 5
    for n, (number, corner) in enumerate(zip(case, corners, strict=True)):
        x, y, z = (slice(int(p), int(p) + w) for p, w in zip(corner, WINDOW, strict=True))
        plain = net(volumes[number, x, y, z][None, None] / 255).softmax(dim=-1)[:, 1]
        torch.testing.assert_close(scores[n : n + 1], plain, rtol=0, atol=1e-5)
        again, rows = net.score_windows(volumes, case[n : n + 1], corners[n : n + 1], WINDOW)
        assert torch.equal(again, scores[n : n + 1])
        assert torch.equal(rows, features[n : n + 1])


def test_batches_keep_to_the_memory_that_is_allowed(net, monkeypatch):
    monkeypatch.setattr(presence, "CHUNK_VOXELS", 2 * 108**3)
    batches = []
    monkeypatch.setattr(net, "pool_crops", lambda x: batches.append(len(x)) or PaperPresenceNet.pool_crops(net, x))
    net.score_windows(random_volumes(), torch.zeros(4).long(), LATTICE.corners(torch.arange(4)), WINDOW)
    assert batches == [2, 2]


def test_what_lies_beside_the_window_does_not_count(net):
    volume = random_volumes()
    changed = volume.clone()
    changed[:, WINDOW[0] :] = 0
    corner = torch.zeros(1, 3).long()
    scores = [net.score_windows(v, torch.zeros(1).long(), corner, WINDOW)[0] for v in (volume, changed)]
    assert torch.equal(*scores)


# -- files and play ------------------------------------------------------------------------------------------------


def test_it_is_saved_and_loaded_as_either_network_is(net, tmp_path):
    save_network(tmp_path / "net.safetensors", net)
    loaded = load_presence(tmp_path / "net.safetensors")
    assert isinstance(loaded, PaperPresenceNet)
    assert loaded.digest() == net.digest()
    assert (loaded.input_size, loaded.window_size, loaded.hu_window) == (SMALLEST, WINDOW, HU_WINDOW)
    assert not loaded.training
    names = {name.split(".")[0] for name in net.state_dict()}
    assert names == {
        *(f"conv{n}" for n in range(1, 5)),
        *(f"bn{n}" for n in range(1, 5)),
        *(f"fc{n}" for n in range(1, 6)),
    }
    assert isinstance(load_presence(), DensePresenceNet)


def test_the_size_of_the_input_counts_in_the_digest(net):
    other = PaperPresenceNet(HU_WINDOW, WINDOW, (109, 108, 108))
    other.load_state_dict(net.state_dict())
    assert other.digest() != net.digest()


def test_it_is_scored_when_visited_and_sliding_gives_the_same(net, tmp_path):
    cases = [case_of(image) for image in random_volumes(2)]
    lazy = ScoreTable(cases, LATTICE, net, features=True)
    assert bool(lazy.scores.isnan().all())
    sliding = ScoreTable(cases, LATTICE, net, engine="sliding", features=True, cache_dir=tmp_path)
    everywhere = torch.meshgrid(torch.arange(2), torch.arange(LATTICE.size), indexing="ij")
    torch.testing.assert_close(lazy.lookup(*everywhere), sliding.scores, rtol=0, atol=1e-5)
    assert torch.equal(lazy.feature_rows(*everywhere), sliding.feature_rows(*everywhere))
    assert sliding.cache_hit == 1
