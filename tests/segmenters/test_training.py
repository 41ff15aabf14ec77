"""The U-Net, its normalisation, its supervised training, its use and its file."""

import copy
import math
from dataclasses import replace

import pytest
import segarena.common.fitting
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet as MonaiUNet
from segarena.common.networks import load_network, save_network
from segarena.common.overlap import class_dice
from segarena.common.runs import Run
from segarena.datasets.images import ImagePool
from segarena.segmenters import training
from segarena.segmenters.inference import image_batches, probabilities, segment
from segarena.segmenters.norms import adapt_batchnorm, batchnorms, modes_kept, set_norm_mode, shrink_perturb
from segarena.segmenters.training import SupervisedConfig, supervised_loss, train_segmenter
from segarena.segmenters.unet import UNet
from torch import nn

CPU = torch.device("cpu")
SIZE = 32


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unet(in_channels=1, out_channels=3, *, seed=0, init_channels=8, **rest):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(in_channels, out_channels, init_channels=init_channels, **rest)


def echo(number, seed=0, labels=True):
    """A dark disc, LV, in a bright ring, MYO, anywhere on a grey ground with noise."""
    draw = torch.rand(4, number, 1, 1, generator=generator(seed))
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    distance = ((y - 10 - 12 * draw[0]) ** 2 + (x - 10 - 12 * draw[1]) ** 2).sqrt()
    inner = 4 + 2 * draw[2]
    truth = torch.where(distance < inner, 1, torch.where(distance < inner + 2 + 2 * draw[3], 2, 0)).to(torch.uint8)
    noise = torch.randn(truth.shape, generator=generator(seed + 1))
    images = (torch.tensor([90.0, 50.0, 150.0])[truth.long()] + 12 * noise).clamp(0, 255).to(torch.uint8)
    return ImagePool(
        images=images[:, None],
        labels=truth if labels else None,
        ids=[f"toy{row}_2CH_ED" for row in range(number)],
        groups=[f"toy{row}" for row in range(number)],
        tags={},
        spacing_mm=torch.full((number, 2), 0.5, dtype=torch.float64),
        classes=("background", "lv", "myo"),
        origin="phantom",
    )


def state_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(before, net):
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def norm_names(net, *kinds):
    """Names of the parameters or buffers `kinds` of the normalisation."""
    layers = [name for name, layer in net.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    return {f"{layer}.{kind}" for layer in layers for kind in kinds}


# -- the network ---------------------------------------------------------------------------------------------------


def test_each_layer_has_the_papers_number_of_parameters():
    net = UNet(1, 3)
    count = lambda *parts: sum(p.numel() for part in parts for p in part.parameters())  # noqa: E731
    counts = [count(net.early), *map(count, net.down), *map(count, net.up, net.merge), count(net.head)]
    down = [2_544, 14_016, 55_680, 221_952, 886_272, 3_542_016]
    assert counts == [*down, 2_295_552, 574_336, 143_808, 36_064, 9_072, 51]


@pytest.mark.parametrize(("channels", "parameters"), [((1, 3), 7_781_363), ((1, 1), 7_781_329), ((2, 1), 7_781_473)])
def test_each_role_has_the_papers_number_of_parameters_and_buffers(channels, parameters):
    net = UNet(*channels)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert sum(b.numel() for b in net.buffers()) == 6_038


def test_each_level_halves_the_image_and_doubles_the_maps():
    net, seen = UNet(1, 3).eval(), []
    for block in (net.early, *net.down, *net.merge):
        block.register_forward_hook(lambda _, inputs, out: seen.append(tuple(out.shape[1:])))
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 64, 64)).shape == (1, 3, 64, 64)
    levels = [(16, 64, 64), (32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert seen == levels + levels[-2::-1]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (63, 64), (100, 32), (95, 65)])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_images_of_any_size_from_32_on_keep_their_size(size, norm):
    with torch.no_grad():
        assert unet(norm=norm)(torch.rand(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(31, 64), (64, 16)])
def test_smaller_images_are_refused(size):
    with pytest.raises(ValueError, match="needs at least 32 x 32"):
        unet()(torch.zeros(1, 1, *size))


def test_weights_are_xavier_and_biases_pytorchs():
    net = UNet(1, 3)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            inside, outside = layer.weight[0].numel(), layer.weight[:, 0].numel()
            assert float(layer.weight.detach().abs().max()) <= math.sqrt(6 / (inside + outside)) + 1e-6
            assert layer.bias.any()
    big = net.down[-1][1][4].weight.detach()
    assert float(big.std()) == pytest.approx(math.sqrt(2 / (2 * 512 * 9)), rel=0.01)


@pytest.mark.parametrize("init_channels", [2, 6, 8, 20, 52])
def test_groups_have_at_most_8_maps_whatever_the_width(init_channels):
    net = unet(init_channels=init_channels, norm="group")
    layers = [layer for layer in net.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(layers) == 22
    assert not batchnorms(net)
    assert all(layer.num_channels % layer.num_groups == 0 for layer in layers)
    assert max(layer.num_channels // layer.num_groups for layer in layers) <= 8


def test_group_normalisation_does_not_depend_on_the_batch():
    net, x = unet(norm="group").train(), torch.rand(4, 1, 32, 32, generator=generator())
    torch.testing.assert_close(net(x)[:1], net(x[:1]))


def test_dropout_zeroes_its_share_of_single_values_in_train_mode_only():
    net, x = unet(dropout=0.25, norm="group"), torch.rand(2, 1, 32, 32, generator=generator())
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Dropout)]
    assert len(layers) == 22  # after each 3x3 convolution
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = layers[0](torch.ones(1, 8, 64, 64))
        assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
        assert float(dropped.max()) == pytest.approx(1 / 0.75)
        assert (dropped == 0).any(dim=1).logical_not().any()  # values, not whole maps
        assert not torch.equal(net(x), net(x))
        assert torch.equal(net.eval()(x), net(x))


def test_a_network_with_dropout_reads_the_weights_of_one_without():
    plain, dropping = unet(seed=1), unet(seed=2, dropout=0.25)
    dropping.load_state_dict(plain.state_dict())
    x = torch.rand(2, 1, 32, 32, generator=generator())
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), dropping.eval()(x))


@pytest.mark.parametrize(
    ("field", "value"), [("init_channels", 7), ("init_channels", 0), ("norm", "layer"), ("dropout", 1.0)]
)
def test_bad_architectures_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        UNet(1, 3, **{field: value})
    with pytest.raises(ValueError, match="out_channels is 0"):
        UNet(1, 0)


# -- normalisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("mode", "depends"), [("frozen", False), ("batch", True)])
def test_the_mode_decides_whether_an_image_depends_on_its_batch(mode, depends, training):
    net, x = unet(dropout=0.5), torch.rand(4, 1, 32, 32, generator=generator())
    set_norm_mode(net, mode, training=training)
    before = state_of(net)
    assert all(layer.training is training for layer in net.modules() if isinstance(layer, nn.Dropout))
    net.apply(lambda layer: layer.eval() if isinstance(layer, nn.Dropout) else None)
    with torch.no_grad():
        alone, among = net(x[:2])[0], net(x)[0]
    assert torch.allclose(alone, among, atol=1e-4) is not depends
    stays = set() if not depends else norm_names(net, "running_mean", "running_var", "num_batches_tracked")
    assert changed(before, net) == stays


def test_a_mode_that_does_not_fit_the_network_is_refused():
    set_norm_mode(unet(norm="group"), "group", training=True)
    for norm, modes in (("batch", ["group"]), ("group", ["frozen", "batch"])):
        for mode in modes:
            with pytest.raises(ValueError, match=f"norm_mode is '{mode}' but the network has"):
                set_norm_mode(unet(norm=norm), mode, training=False)
    with pytest.raises(ValueError, match="norm_mode is 'eval'"):
        set_norm_mode(unet(), "eval", training=False)


def test_modes_come_back_as_they_were_even_after_an_error():
    net = unet()
    set_norm_mode(net, "frozen", training=True)
    before = [layer.training for layer in net.modules()]
    with pytest.raises(ZeroDivisionError), modes_kept(net):
        net.eval().training / 0
    assert [layer.training for layer in net.modules()] == before


def test_adapted_statistics_are_mean_and_variance_over_all_pixels_of_all_batches():
    net = nn.Sequential(nn.BatchNorm2d(2))
    x = torch.randn(7, 2, 5, 6, generator=generator()) * torch.tensor([3.0, 0.5]).view(2, 1, 1) + 10
    adapt_batchnorm(net, x.split([1, 4, 2]))  # unequal batches count by their pixels
    torch.testing.assert_close(net[0].running_mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(net[0].running_var, x.var(dim=(0, 2, 3)))


def test_after_adaptation_to_one_batch_eval_mode_does_what_the_batchs_own_statistics_do():
    net, x = unet(), torch.rand(32, 1, 64, 64, generator=generator())
    adapt_batchnorm(net, [x])
    with torch.no_grad():
        frozen = net.eval()(x)
        set_norm_mode(net, "batch", training=False)
        torch.testing.assert_close(frozen, net(x), atol=0.05, rtol=0)  # their variances: n - 1 and n


def test_adaptation_changes_the_statistics_and_nothing_else():
    net = unet(dropout=0.5)
    set_norm_mode(net, "frozen", training=True)
    net(torch.rand(2, 1, 32, 32))
    before, modes = state_of(net), [layer.training for layer in net.modules()]
    rng = torch.get_rng_state()
    adapt_batchnorm(net, (torch.rand(4, 1, 32, 32, generator=generator(seed)) for seed in range(3)))
    assert changed(before, net) == norm_names(net, "running_mean", "running_var")
    assert [layer.training for layer in net.modules()] == modes
    assert all(layer.momentum == 0.1 and layer.track_running_stats for layer in batchnorms(net))
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(layer._forward_pre_hooks for layer in batchnorms(net))
    adapted = state_of(net)
    adapt_batchnorm(net, (torch.rand(4, 1, 32, 32, generator=generator(seed)) for seed in range(3)))
    assert not changed(adapted, net)  # nothing of before is left in them


def test_adaptation_leaves_group_normalisation_and_needs_images_otherwise():
    net = unet(norm="group")
    before = state_of(net)
    adapt_batchnorm(net, [torch.rand(2, 1, 32, 32)])
    assert not changed(before, net)
    with pytest.raises(ValueError, match="no batch"):
        adapt_batchnorm(unet(), [])


def test_shrinking_halves_weights_and_leaves_biases():
    net = nn.Conv2d(1, 2, 1)
    net.weight.data, net.bias.data = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1), torch.tensor([3.0, 4.0])
    shrink_perturb(net, generator(), sigma=0.0)
    assert net.weight.flatten().tolist() == [0.5, -1.0]
    assert net.bias.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("include_norm", [True, False])
def test_perturbation_reaches_every_weight_and_no_bias_or_buffer(include_norm):
    net = unet(init_channels=16)
    before = state_of(net)
    shrink_perturb(net, generator(), include_norm=include_norm)
    weights = {name for name in before if name.endswith("weight")}
    assert changed(before, net) == weights - (set() if include_norm else norm_names(net, "weight"))
    noise = torch.cat([(net.state_dict()[name] - 0.5 * before[name]).flatten() for name in changed(before, net)])
    assert float(noise.std()) == pytest.approx(0.01, rel=0.02)
    assert abs(float(noise.mean())) < 1e-4
    other = unet(init_channels=16)
    shrink_perturb(other, generator(), include_norm=include_norm)
    assert not changed(state_of(net), other)  # the generator decides


# -- losses and Dice -----------------------------------------------------------------------------------------------


def test_the_double_softmax_cannot_fall_to_zero_and_cross_entropy_can():
    logits, label = torch.tensor([10.0, 0, 0]).view(1, 3, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8)
    double = supervised_loss(logits, label, SupervisedConfig(loss="ce_double_softmax"))
    assert float(double) == pytest.approx(0.551502, abs=1e-6)
    assert float(supervised_loss(logits, label, SupervisedConfig())) == pytest.approx(9.0833e-5, rel=1e-3)
    smooth = supervised_loss(logits, label, SupervisedConfig(label_smoothing=0.3))
    assert float(smooth) == pytest.approx(9.0833e-5 + 0.2 * 10, rel=1e-4)  # 0.3 / 3 of the truth on each wrong class


def test_ignored_pixels_count_in_no_loss():
    logits = torch.tensor([[10.0, 0, 0], [0, 0, 0], [0, 5, 0]]).T.view(1, 3, 1, 3)
    labels = torch.tensor([0, 1, 255], dtype=torch.uint8).view(1, 1, 3)
    loss = supervised_loss(logits, labels, SupervisedConfig(), 255)
    assert float(loss) == pytest.approx((9.0833e-5 + math.log(3)) / 2, rel=1e-5)  # of two pixels, not of three
    shares = supervised_loss(logits, labels, SupervisedConfig(label_smoothing=0.3), 255)
    assert float(shares) == pytest.approx((9.0833e-5 + 0.2 * 10 + math.log(3)) / 2, rel=1e-5)


def test_ignored_pixels_count_in_no_dice():
    truth = torch.tensor([[[1, 1, 255, 0]], [[255, 0, 0, 0]]], dtype=torch.uint8)
    labels = torch.tensor([[[1, 0, 1, 0]], [[1, 0, 0, 0]]], dtype=torch.uint8)
    named = ("background", "car")
    assert training.dice_scalars(labels, truth, named, 255)["dice_car"] == pytest.approx((2 / 3 + 1) / 2)
    assert training.dice_scalars(labels, truth, named)["dice_car"] == pytest.approx((2 / 4 + 0) / 2)


# -- use -----------------------------------------------------------------------------------------------------------


def test_batches_cover_the_images_in_order_and_are_of_nearly_equal_size():
    images = torch.arange(33, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    parts = list(image_batches(images, 32, CPU))
    assert [len(part) for part in parts] == [17, 16]
    assert torch.equal(torch.cat(parts) * 255, images.float())
    for bad in (images.float(), images[0], images[:0]):
        with pytest.raises(ValueError, match="must be uint8"):
            list(image_batches(bad, 32, CPU))


@pytest.mark.parametrize("out", [1, 3])
def test_labels_are_the_most_probable_class_and_do_not_depend_on_the_batches(out):
    net, images = unet(out_channels=out), echo(7).images
    adapt_batchnorm(net, image_batches(images, 7, CPU))
    set_norm_mode(net, "batch", training=True)
    before = state_of(net)
    labels, p = segment(net, images, batch_size=3), probabilities(net, images)
    assert labels.dtype == torch.uint8
    assert p.shape == (7, out, SIZE, SIZE)
    assert torch.equal(labels, segment(net, images))
    with torch.no_grad():
        logits = net.eval()(images / 255)
    if out == 1:
        torch.testing.assert_close(p, logits.sigmoid())
        assert torch.equal(labels.bool(), p[:, 0] > 0.5)
    else:
        torch.testing.assert_close(p, logits.softmax(dim=1))
        assert torch.equal(labels.long(), p.argmax(dim=1))
    assert 0 < int(labels.count_nonzero()) < labels.numel()
    assert not changed(before, net)  # eval mode: no statistics moved


def test_segmenting_leaves_the_mode_as_it_was():
    net = unet()
    set_norm_mode(net, "frozen", training=True)
    segment(net, echo(2).images)
    assert net.training
    assert not any(layer.training for layer in batchnorms(net))


# -- training ------------------------------------------------------------------------------------------------------

FAST = SupervisedConfig(epochs=3, batch_size=8)


def train(folder, config=FAST, seed=0, images=16, run_type=Run, **rest):
    net, run = unet(**rest), run_type(folder)
    try:
        return net, train_segmenter(net, echo(images), echo(8, seed=50), config, run, seed)
    finally:
        run.close()


@pytest.mark.parametrize("loss", ["ce", "ce_double_softmax"])
def test_a_segmenter_learns_rings_and_discs(tmp_path, loss):
    config = SupervisedConfig(epochs=12, batch_size=16, learning_rate=5e-3, loss=loss)
    net, scalars = train(tmp_path, config, images=64)
    unseen = echo(32, seed=100)
    dice = class_dice(segment(net, unseen.images), unseen.labels, (1, 2)).mean(dim=0)
    assert (dice > 0.75).all(), dice
    lines = Run(tmp_path).metrics()
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["segmenter/loss"] < lines[0]["segmenter/loss"]
    best = max(lines, key=lambda line: line["segmenter/dice"])
    assert scalars["epoch"] == best["step"]
    assert scalars["dice"] == best["segmenter/dice"] == pytest.approx((scalars["dice_lv"] + scalars["dice_myo"]) / 2)
    assert not net.training


def test_the_network_that_comes_back_is_that_of_the_best_epoch(tmp_path, monkeypatch):
    dice = iter([0.2, 0.9, 0.5])
    seen = []

    def judged(labels, truth, classes, ignore_index):
        seen.append(labels.clone())
        return {"dice": next(dice), "dice_lv": 0.0, "dice_myo": 0.0}

    monkeypatch.setattr(training, "dice_scalars", judged)
    net, scalars = train(tmp_path)
    assert (scalars["epoch"], scalars["dice"]) == (2, 0.9)
    assert torch.equal(segment(net, echo(8, seed=50).images), seen[1])


def test_without_validation_images_the_last_epoch_is_kept(tmp_path, monkeypatch):
    nets = []
    for epochs in (2, 3):
        net, run = unet(), Run(tmp_path / str(epochs))
        config = SupervisedConfig(epochs=epochs, batch_size=8)
        assert train_segmenter(net, echo(16), None, config, run, 0)["epoch"] == epochs
        run.close()
        nets.append(net)
    assert changed(state_of(nets[0]), nets[1])


def test_no_epochs_leave_the_network_as_it_is(tmp_path):
    net, scalars = train(tmp_path, SupervisedConfig(epochs=0))
    assert not changed(state_of(unet()), net)
    assert scalars == {"epoch": 0}


class KilledError(Exception):
    pass


class DyingRun(Run):
    """Dies when the third epoch is about to be logged."""

    def log(self, step, scalars):
        if step == 3:
            raise KilledError
        super().log(step, scalars)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_training_that_was_killed_and_resumed_ends_with_the_same_weights(tmp_path, monkeypatch, dropout):
    monkeypatch.setattr(segarena.common.fitting, "CHECKPOINT_SECONDS", 0.0)
    whole, _ = train(tmp_path / "whole", dropout=dropout)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", run_type=DyingRun, dropout=dropout)
    resumed, _ = train(tmp_path / "killed", dropout=dropout)
    assert not changed(state_of(whole), resumed)
    assert Run(tmp_path / "killed").metrics() == Run(tmp_path / "whole").metrics()


def bordered(pool, border=255):
    """The pool with another label in the outermost four pixels of each side."""
    labels = torch.full_like(pool.labels, border)
    labels[:, 4:-4, 4:-4] = pool.labels[:, 4:-4, 4:-4]
    return replace(pool, labels=labels)


def test_what_lies_below_the_ignored_label_changes_nothing_and_the_rest_is_learned(tmp_path):
    """A network of another library, a photograph's three channels."""

    def colour(pool):
        return replace(pool, images=pool.images.repeat(1, 3, 1, 1))

    def trained(name, border):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = MonaiUNet(2, in_channels=3, out_channels=3, channels=(8, 16, 32), strides=(2, 2))
        train, val = (colour(bordered(pool, border)) for pool in (echo(64), echo(8, seed=50)))
        config, run = SupervisedConfig(epochs=12, batch_size=16, learning_rate=5e-3), Run(tmp_path / name)
        scalars = train_segmenter(net, train, val, config, run, 0, ignore_index=border)
        run.close()
        return net, scalars

    (net, scalars), (other, same) = trained("255", 255), trained("7", 7)
    assert scalars == same
    assert not changed(state_of(net), other)
    unseen = echo(32, seed=100)
    inner = slice(None), slice(4, -4), slice(4, -4)
    dice = class_dice(segment(net, colour(unseen).images)[inner], unseen.labels[inner], (1, 2)).mean(dim=0)
    assert (dice > 0.75).all(), dice


def test_the_seed_decides_and_nothing_else_does(tmp_path):
    nets = [train(tmp_path / str(number), seed=seed)[0] for number, seed in enumerate((0, 0, 1))]
    assert not changed(state_of(nets[0]), nets[1])
    assert changed(state_of(nets[0]), nets[2])


def test_a_single_image_left_over_does_not_stop_the_training(tmp_path):
    _, scalars = train(tmp_path, SupervisedConfig(epochs=1, batch_size=8), images=17)
    assert math.isfinite(scalars["loss"])


def test_images_that_cannot_be_learned_from_are_refused(tmp_path):
    run, good = Run(tmp_path), echo(4)
    for train_images, val_images in ((echo(4, labels=False), good), (good, echo(4, labels=False))):
        with pytest.raises(ValueError, match="toy0_2CH_ED has no labels"):
            train_segmenter(unet(), train_images, val_images, FAST, run, 0)
    with pytest.raises(ValueError, match=r"labels go up to 2 but the network has the classes 0\.\.1"):
        train_segmenter(unet(out_channels=2), good, good, FAST, run, 0, classes=2)
    with pytest.raises(
        ValueError, match=r"logits are \[4, 2, 32, 32\] but must be \[4, 3, 32, 32\].* 3 output channels"
    ):
        train_segmenter(unet(out_channels=2), good, good, FAST, run, 0)
    with pytest.raises(ValueError, match=r"ignore_index is 2 but must lie in \[3, 255\]"):
        train_segmenter(unet(), good, good, FAST, run, 0, ignore_index=2)
    with pytest.raises(ValueError, match="classes is 1 but must lie in"):
        train_segmenter(unet(out_channels=1), good, good, FAST, run, 0, classes=1)
    with pytest.raises(ValueError, match=r"labels go up to 255 .* as ignore_index"):
        train_segmenter(unet(), bordered(good), good, FAST, run, 0)
    blank = replace(good, labels=torch.full_like(good.labels, 255))
    with pytest.raises(ValueError, match="toy0_2CH_ED has no label but ignore_index 255; take it out"):
        train_segmenter(unet(), good, blank, FAST, run, 0, ignore_index=255)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("batch_size", 0),
        ("loss", "dice"),
        ("label_smoothing", 1.0),
    ],
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        SupervisedConfig(**{field: value})


# -- on disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"norm": "group", "init_channels": 4}, {"dropout": 0.25}])
def test_a_saved_segmenter_comes_back_with_its_architecture_and_its_masks(tmp_path, settings):
    net, images = unet(**settings), echo(3).images
    adapt_batchnorm(net, image_batches(images, 3, CPU))
    save_network(tmp_path / "net.safetensors", net)
    loaded = load_network(tmp_path / "net.safetensors", UNet)
    assert not changed(state_of(net), loaded)
    assert (loaded.norm, loaded.init_channels, loaded.dropout) == (net.norm, net.init_channels, net.dropout)
    assert not loaded.training
    assert torch.equal(segment(net, images), segment(loaded, images))


def test_a_critic_is_refused_where_a_segmenter_is_needed(tmp_path):
    save_network(tmp_path / "net.safetensors", unet(2, 1))
    with pytest.raises(ValueError, match=r"holds a UNet with out_channels = 1 but 3 is needed"):
        load_network(tmp_path / "net.safetensors", UNet, out_channels=3)


def test_a_copy_trains_apart_from_its_original():
    net = unet()
    other, before = copy.deepcopy(net), state_of(net)
    F.cross_entropy(other(torch.rand(2, 1, 32, 32)), torch.zeros(2, 32, 32, dtype=torch.long)).backward()
    assert not changed({name: before[name] for name in before}, net)
    assert all(p.grad is None for p in net.parameters())
