"""Adaptation of segmenters to target images without labels: AdaBN, entropy minimisation, TI-ST and UDAS."""

import dataclasses
import math

import pytest
import segarena.common.fitting
import torch
import torch.nn.functional as F
from segarena.common.overlap import class_dice
from segarena.common.runs import Run
from segarena.datasets.images import ImagePool
from segarena.segmenters import tist, udas
from segarena.segmenters.adaptation import EntropyConfig, adabn, entropy, minimise_entropy
from segarena.segmenters.inference import probabilities, segment
from segarena.segmenters.tist import (
    BinaryPair,
    TistConfig,
    adjust_contrast,
    blur,
    cycled_rows,
    jitter,
    sharpen,
    source_term,
    target_term,
    tist_weight,
    train_tist,
)
from segarena.segmenters.training import SupervisedConfig, train_segmenter
from segarena.segmenters.udas import UdasConfig, both_logits, early_head, self_training_loss, train_udas
from segarena.segmenters.unet import UNet
from torch import nn

SIZE = 32


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unet(out_channels=3, *, seed=0, **rest):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(1, out_channels, init_channels=8, **rest)


def echo(number, seed=0, *, gain=1.0, lift=0.0):
    """A dark disc, LV, in a bright ring, MYO, on a grey ground with noise; another domain has other gain and lift."""
    draw = torch.rand(4, number, 1, 1, generator=generator(seed))
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    distance = ((y - 10 - 12 * draw[0]) ** 2 + (x - 10 - 12 * draw[1]) ** 2).sqrt()
    inner = 4 + 2 * draw[2]
    truth = torch.where(distance < inner, 1, torch.where(distance < inner + 2 + 2 * draw[3], 2, 0)).to(torch.uint8)
    noise = torch.randn(truth.shape, generator=generator(seed + 1))
    grey = torch.tensor([90.0, 50.0, 150.0])[truth.long()] + 12 * noise
    return ImagePool(
        images=(255 * lift + gain * grey).clamp(0, 255).to(torch.uint8)[:, None],
        labels=truth,
        ids=[f"toy{row}" for row in range(number)],
        groups=[f"toy{row}" for row in range(number)],
        tags={},
        spacing_mm=torch.full((number, 2), 0.5, dtype=torch.float64),
        classes=("background", "lv", "myo"),
        origin="phantom",
    )


def unlabelled(images):
    return dataclasses.replace(images, labels=None)


SOURCE, VAL = echo(64), echo(12, 50)
LIFTED, DIMMED = (unlabelled(echo(48, 200, **look)) for look in ({"gain": 0.6, "lift": 0.2}, {"gain": 0.7}))
LABELS = echo(48, 200).labels
"""Labels of both targets, for judgement only."""


def dice_of(net, images):
    """Mean Dice of LV and MYO on a target."""
    return float(class_dice(segment(net, images.images), LABELS, (1, 2)).mean())


def entropy_of(net, images):
    p = probabilities(net, images.images)
    return float(torch.special.entr(p).sum(dim=1).mean())


def state_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(before, net):
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def norm_names(net, *kinds):
    layers = [name for name, layer in net.named_modules() if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm)]
    return {f"{layer}.{kind}" for layer in layers for kind in kinds}


@pytest.fixture(scope="module")
def source_net(tmp_path_factory):
    """A segmenter that knows the source domain; no test may change it."""
    net, run = unet(), Run(tmp_path_factory.mktemp("source"))
    config = SupervisedConfig(epochs=14, batch_size=16, learning_rate=5e-3)
    assert train_segmenter(net, SOURCE, VAL, config, run, 0)["dice"] > 0.85
    run.close()
    before = state_of(net)
    yield net
    assert not changed(before, net)
    assert not net.training
    assert all(p.requires_grad for p in net.parameters())


class KilledError(Exception):
    pass


# -- AdaBN ---------------------------------------------------------------------------------------------------------


def test_adabn_mends_another_gain_by_statistics_alone(source_net):
    adapted = adabn(source_net, LIFTED)
    assert changed(state_of(source_net), adapted) == norm_names(source_net, "running_mean", "running_var")
    assert dice_of(source_net, LIFTED) < 0.5
    assert dice_of(adapted, LIFTED) > dice_of(source_net, LIFTED) + 0.3


# -- entropy -------------------------------------------------------------------------------------------------------


def test_entropy_of_known_pixels_in_nats():
    p = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [4, 2, 2]]).float().view(4, 3, 1, 1)
    known = [math.log(3), math.log(2), 0, 1.5 * math.log(2)]
    torch.testing.assert_close(entropy((p + 1e-30).log()).flatten(), torch.tensor(known))


ENTROPY = EntropyConfig(epochs=4, batch_size=16, learning_rate=1e-2)


def adapt_by_entropy(folder, net, target=LIFTED, config=ENTROPY, seed=0):
    run = Run(folder)
    try:
        return minimise_entropy(net, target, config, run, seed)
    finally:
        run.close()


def test_minimising_entropy_moves_the_normalisation_only_and_entropy_falls(source_net, tmp_path):
    adapted = adapt_by_entropy(tmp_path, source_net)
    moved = norm_names(source_net, "weight", "bias", "running_mean", "running_var")
    assert changed(state_of(source_net), adapted) == moved
    assert entropy_of(adapted, LIFTED) < 0.9 * entropy_of(adabn(source_net, LIFTED), LIFTED)
    assert dice_of(adapted, LIFTED) > 0.6
    lines = Run(tmp_path).metrics()
    assert len(lines) == 4
    assert lines[-1]["entropy/entropy"] == pytest.approx(entropy_of(adapted, LIFTED), rel=1e-4)
    assert lines[-1]["entropy/loss"] < lines[0]["entropy/loss"]


def test_all_parameters_move_where_asked(source_net, tmp_path):
    config = dataclasses.replace(ENTROPY, parameters="all", epochs=1, learning_rate=1e-3)
    adapted = adapt_by_entropy(tmp_path, source_net, config=config)
    names = {name for name, _ in source_net.named_parameters()}
    assert names - changed(state_of(source_net), adapted) <= {name for name in names if name.endswith("bias")}
    assert not adapted.training
    assert all(p.requires_grad for p in adapted.parameters())


def test_entropy_of_a_network_with_group_normalisation_falls_too(tmp_path):
    net = unet(norm="group", seed=1)
    adapted = adapt_by_entropy(tmp_path, net)
    assert changed(state_of(net), adapted) == norm_names(net, "weight", "bias")
    assert entropy_of(adapted, LIFTED) < 0.95 * entropy_of(net, LIFTED)


# -- TI-ST: terms --------------------------------------------------------------------------------------------------


def test_the_targets_weight_is_the_papers():
    known = {0: 0, 24: 0, 25: 0.067668, 30: 0.100948, 40: 0.224665, 49: 0.461558}
    assert {epoch: pytest.approx(tist_weight(epoch), abs=1e-6) for epoch in known} == known
    assert tist_weight(5, 10) == tist_weight(25)
    assert tist_weight(4, 10) == 0


def test_the_source_term_is_cross_entropy_and_of_one_channel_the_binary_one():
    logits, labels = torch.randn(2, 3, 4, 5, generator=generator()), torch.randint(0, 2, (2, 4, 5))
    torch.testing.assert_close(source_term(logits, labels), F.cross_entropy(logits, labels))
    binary = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    torch.testing.assert_close(source_term(logits[:, :1], labels.to(torch.uint8)), binary)


def test_the_target_term_is_the_papers_masked_cross_entropy():
    jittered, clean = 4 * torch.randn(2, 3, 1, 16, 16, generator=generator())
    p, q = jittered.sigmoid(), clean.sigmoid()
    m = (((p > 0.85) & (q > 0.85)) | ((p < 0.15) & (q < 0.15))).float()
    term, trusted = target_term(jittered, clean)
    torch.testing.assert_close(term, F.binary_cross_entropy(p * m, (p > 0.5).float() * m))
    torch.testing.assert_close(trusted, m.mean())
    assert 0.1 < float(trusted) < 0.9


def test_the_target_term_trusts_only_what_both_are_sure_of():
    sure, other, unsure = ([6.0, 0, 0], [0, 6.0, 0], [1.0, 0, 0])
    pixels = lambda *values: torch.tensor(values).T[None, :, None]  # noqa: E731
    jittered = pixels(sure, sure, sure, unsure).requires_grad_()
    term, trusted = target_term(jittered, pixels(sure, other, unsure, sure))
    assert float(trusted) == 0.25
    term.backward()
    per_pixel = jittered.grad.abs().sum(dim=1).flatten()
    assert per_pixel[0] > 0
    assert not per_pixel[1:].any()
    assert jittered.grad[0, 0, 0, 0] < 0  # downhill: surer still


def test_target_rows_cycle_through_all_images_again_and_again():
    rows = cycled_rows(5, 13, generator())
    assert sorted(rows[:5].tolist()) == sorted(rows[5:10].tolist()) == list(range(5))
    assert rows[:5].tolist() != rows[5:10].tolist()
    assert set(rows.bincount().tolist()) == {2, 3}
    assert len(set(cycled_rows(100, 13, generator()).tolist())) == 13


@pytest.mark.parametrize(("overlap", "winner"), [("lv", 1), ("myo", 2)])
def test_two_binary_masks_merge_by_the_rule(overlap, winner):
    lv, myo = torch.tensor([[-1.0, 2, -3, 2, 5, -9]]), torch.tensor([[-2.0, -1, 4, 3, 4, 0.1]])
    fixed = lambda logits: lambda x: logits[:, None]  # noqa: E731
    pair = BinaryPair(nn.Identity(), nn.Identity(), overlap)
    pair.lv.forward, pair.myo.forward = fixed(lv), fixed(myo)
    logits = pair(torch.zeros(1))
    assert logits.shape == (1, 3, 6)
    assert logits.argmax(dim=1).tolist() == [[0, 1, 2, winner, winner, 2]]


# -- TI-ST: jitter -------------------------------------------------------------------------------------------------


def test_brightness_of_flat_images_is_scaled_by_0_4_to_1_6():
    flat = torch.full((400, 1, 8, 8), 0.5)
    out = jitter(flat, generator())
    torch.testing.assert_close(out, out[:, :, :1, :1].expand_as(out))  # contrast, blur, sharpening: nothing to change
    factors = out[:, 0, 0, 0] / 0.5
    assert float(factors.min()) == pytest.approx(0.4, abs=0.02)
    assert float(factors.max()) == pytest.approx(1.6, abs=0.02)


def test_contrast_moves_values_away_from_the_images_own_mean():
    x = torch.tensor([[0.2, 0.6], [0.4, 0.8]]).view(2, 1, 1, 2)
    out = adjust_contrast(x, torch.tensor([0.5, 1.5]).view(2, 1, 1, 1))
    torch.testing.assert_close(out.view(2, 2), torch.tensor([[0.3, 0.5], [0.3, 0.9]]))


def test_blur_is_the_gaussian_of_each_image():
    point = torch.zeros(2, 1, 9, 9)
    point[..., 4, 4] = 1
    sigma = torch.tensor([0.1, 1.5]).view(2, 1, 1, 1)
    out = blur(point, sigma)
    torch.testing.assert_close(out[0], point[0])
    along = torch.exp(-0.5 * (torch.arange(-2.0, 3) / 1.5) ** 2)
    kernel = torch.outer(along, along) / along.sum() ** 2
    torch.testing.assert_close(out[1, 0, 2:7, 2:7], kernel)
    assert float(out[1].sum()) == pytest.approx(1, abs=1e-6)


def test_sharpening_is_an_edge_made_half_as_steep_again_inside_the_border():
    x = torch.rand(1, 1, 6, 7, generator=generator()) * 0.2 + 0.4
    kernel = torch.tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    inside = (x.unfold(2, 3, 1).unfold(3, 3, 1) * kernel).sum(dim=(-1, -2))
    out = sharpen(x)
    torch.testing.assert_close(out[..., 1:-1, 1:-1], 1.5 * x[..., 1:-1, 1:-1] - 0.5 * inside)
    out[..., 1:-1, 1:-1] = x[..., 1:-1, 1:-1]
    torch.testing.assert_close(out, x)


def test_jitter_blurs_half_of_the_images_and_sharpens_the_others_from_its_generator():
    x = torch.full((400, 1, 9, 9), 0.2)
    x[..., 4, 4] = 0.4
    out = jitter(x, generator(3))
    assert torch.equal(out, jitter(x, generator(3)))
    assert not torch.equal(out, jitter(x, generator(4)))
    assert (out >= 0).all()
    assert (out <= 1).all()
    ring = out[:, 0, 3:6, 3:6].sum(dim=(1, 2)) - out[:, 0, 4, 4]
    around = 8 * out[:, 0, 4, 0]  # pixels that neither reaches
    assert float((ring < around - 1e-3).float().mean()) == pytest.approx(0.5, abs=0.08)  # darker beside the point


# -- TI-ST: training -----------------------------------------------------------------------------------------------

TIST = TistConfig(nets="multi", epochs=16, batch_size=16, learning_rate=5e-3)


def train_by_tist(folder, net=None, config=TIST, target=LIFTED, seed=0, source=SOURCE):
    return train_tist(lambda out: unet(out), source, VAL, target, config, Run(folder), seed)


def test_tist_segments_the_target_and_its_target_term_acts_in_the_second_half(tmp_path):
    net = train_by_tist(tmp_path)
    assert not net.training
    assert dice_of(net, LIFTED) > 0.6
    lines = Run(tmp_path / "multi").metrics()
    assert [line["tist/weight"] for line in lines] == [tist_weight(epoch, 16) for epoch in range(16)]
    for line in lines:
        acts = line["step"] > 8
        assert (line["tist/trusted"] > 0) is acts
        assert (line["tist/target"] > 0) is acts
    assert lines[-1]["tist/source"] < 0.5 * lines[0]["tist/source"]
    assert lines[-1]["tist/trusted"] > lines[8]["tist/trusted"]


@pytest.mark.parametrize("term", ["source_term", "target_term"])
def test_each_term_of_tist_changes_the_network(tmp_path, monkeypatch, term):
    config = dataclasses.replace(TIST, epochs=2)
    whole = train_by_tist(tmp_path / "whole", config=config)
    plain = getattr(tist, term)
    if term == "source_term":
        monkeypatch.setattr(tist, term, lambda *given: 0 * plain(*given))
    else:
        monkeypatch.setattr(tist, term, lambda *given: (0 * plain(*given)[0], plain(*given)[1]))
    without = train_by_tist(tmp_path / "without", config=config)
    assert {name for name, _ in whole.named_parameters()} & changed(state_of(whole), without)


def test_an_epoch_without_the_target_is_never_kept(tmp_path, monkeypatch):
    dice = iter([0.9, 0.8, 0.3, 0.2])
    seen = []

    def scripted(labels, truth, classes):
        seen.append(labels.clone())
        return torch.full((1, 1), next(dice))

    monkeypatch.setattr(tist, "class_dice", scripted)
    monkeypatch.setattr(tist, "adapt_batchnorm", lambda net, images: None)
    net = train_by_tist(tmp_path, config=dataclasses.replace(TIST, epochs=4))
    assert torch.equal(segment(net, VAL.images), seen[2])


def test_a_binary_network_is_trained_for_each_class_and_a_finished_one_is_read(tmp_path, monkeypatch):
    config = dataclasses.replace(TIST, nets="binary", epochs=6, overlap="myo")
    pair = train_by_tist(tmp_path, config=config)
    lv, myo = (segment(net, VAL.images) for net in (pair.lv, pair.myo))
    assert torch.equal(segment(pair, VAL.images), torch.where(myo == 1, 2, lv))
    for name, label in (("lv", 1), ("myo", 2)):
        lines = Run(tmp_path / name).metrics()
        assert lines[-1]["tist/source"] < 0.6 * lines[0]["tist/source"]
        ahead = [class_dice(LABELS.eq(k).byte(), segment(getattr(pair, name), LIFTED.images), (1,)) for k in (1, 2)]
        assert float(ahead[label - 1].mean()) > float(ahead[2 - label].mean())
    monkeypatch.setattr(tist, "_train_one", lambda *given: pytest.fail("it is finished"))
    again = train_by_tist(tmp_path, config=config)
    assert not changed(state_of(pair), again)
    assert not again.training
    with pytest.raises(ValueError, match=r"lv/manifest.json was made with tist\.batch_size = 16 but the run has 8"):
        train_by_tist(tmp_path, config=dataclasses.replace(config, batch_size=8))


# -- UDAS ----------------------------------------------------------------------------------------------------------


def test_head_and_teacher_are_those_of_the_network_and_only_the_head_has_a_gradient(source_net):
    head, x = early_head(source_net), VAL.at(torch.arange(4))
    assert [layer.out_channels for layer in head if isinstance(layer, nn.Conv2d)] == [12, 8, 3]
    student, teacher = both_logits(source_net, head, x)
    with torch.no_grad():
        torch.testing.assert_close(teacher, source_net(x))
        torch.testing.assert_close(student, head(source_net.early(x)))
    assert student.requires_grad
    assert not teacher.requires_grad


def test_the_loss_is_the_cross_entropy_from_the_teachers_probabilities():
    student = torch.tensor([0.5, 0.3, 0.2]).log().view(1, 3, 1, 1).requires_grad_()
    teacher = torch.tensor([0.1, 0.6, 0.3]).log().view(1, 3, 1, 1).requires_grad_()
    loss = self_training_loss(student, teacher)
    assert float(loss.detach()) == pytest.approx(-(0.1 * math.log(0.5) + 0.6 * math.log(0.3) + 0.3 * math.log(0.2)))
    loss.backward()
    torch.testing.assert_close(student.grad.flatten(), torch.tensor([0.4, -0.3, -0.1]))
    assert teacher.grad is None


UDAS = UdasConfig(head_epochs=10, head_learning_rate=5e-3, epochs=6, learning_rate=1e-3, batch_size=16, tolerance=0)


def train_by_udas(folder, net, config=UDAS, target=DIMMED, seed=0, source=SOURCE):
    return train_udas(net, source, VAL, target, config, Run(folder), seed)


def test_udas_moves_the_first_block_only_and_head_and_teacher_agree_better(source_net, tmp_path):
    adapted = train_by_udas(tmp_path, source_net)
    early = {name for name in source_net.state_dict() if name.startswith("early.")}
    assert changed(state_of(source_net), adapted) == early
    assert not adapted.training
    assert all(p.requires_grad for p in adapted.parameters())
    head, lines = Run(tmp_path / "head").metrics(), Run(tmp_path / "early").metrics()
    assert head[-1]["udas_head/loss"] < 0.5 * head[0]["udas_head/loss"]
    before = lines[0]["udas/agreement"] - lines[0]["udas/change"]
    assert lines[-1]["udas/agreement"] > before + 0.1
    assert lines[-1]["udas/loss"] < lines[0]["udas/loss"]
    assert dice_of(adapted, DIMMED) > dice_of(source_net, DIMMED) + 0.1


def test_udas_stops_when_the_agreement_no_longer_changes(source_net, tmp_path, monkeypatch):
    agreed = iter([0.5, 0.6, 0.55, 0.552])
    monkeypatch.setattr(udas, "agreement", lambda *given: next(agreed))
    config = dataclasses.replace(UDAS, epochs=9, head_epochs=1, tolerance=0.005)
    train_by_udas(tmp_path, source_net, config)
    changes = [line["udas/change"] for line in Run(tmp_path / "early").metrics()]
    assert changes == pytest.approx([0.1, -0.05, 0.002])


def test_a_head_that_is_trained_is_read(source_net, tmp_path, monkeypatch):
    config = dataclasses.replace(UDAS, head_epochs=1, epochs=1)
    first = train_by_udas(tmp_path, source_net, config)
    monkeypatch.setattr(udas, "_train_head", lambda *given: pytest.fail("it is finished"))
    assert not changed(state_of(first), train_by_udas(tmp_path, source_net, config))


# -- what all share ------------------------------------------------------------------------------------------------

FEW, OTHERS = SOURCE.take(range(20)), LIFTED.take(range(12))
SHORT = {
    "entropy": (adapt_by_entropy, {"config": dataclasses.replace(ENTROPY, epochs=3)}),
    "tist": (train_by_tist, {"config": dataclasses.replace(TIST, epochs=4), "source": FEW}),
    "udas": (train_by_udas, {"config": dataclasses.replace(UDAS, head_epochs=2, epochs=3), "source": FEW}),
}


def adapt(method, folder, net, **rest):
    """A short run of a method, on few images."""
    function, settings = SHORT[method]
    return function(folder, net, **{"target": OTHERS, **settings, **rest})


by_method = pytest.mark.parametrize("method", SHORT)


@by_method
def test_no_label_of_the_target_is_read_and_the_seed_decides(source_net, tmp_path, method):
    lying = dataclasses.replace(OTHERS, labels=torch.full_like(OTHERS.images[:, 0], 77))
    nets = [
        adapt(method, tmp_path / str(number), source_net, target=target, seed=seed)
        for number, (target, seed) in enumerate([(OTHERS, 0), (lying, 0), (OTHERS, 1)])
    ]
    assert not changed(state_of(nets[0]), nets[1])
    assert changed(state_of(nets[0]), nets[2])


@by_method
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_weights(source_net, tmp_path, monkeypatch, method):
    monkeypatch.setattr(segarena.common.fitting, "CHECKPOINT_SECONDS", 0.0)
    whole = adapt(method, tmp_path / "whole", source_net)
    log = Run.log

    def dying(self, step, scalars):
        if step == 3:
            raise KilledError
        log(self, step, scalars)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", dying)
        with pytest.raises(KilledError):
            adapt(method, tmp_path / "killed", source_net)
    torch.rand(3)  # the global generator must not matter
    resumed = adapt(method, tmp_path / "killed", source_net)
    assert not changed(state_of(whole), resumed)
    for folder in ("", "multi", "head", "early"):
        assert Run(tmp_path / "killed" / folder).metrics() == Run(tmp_path / "whole" / folder).metrics()


def test_source_images_without_labels_are_refused(source_net, tmp_path):
    with pytest.raises(ValueError, match="toy0 has no labels"):
        train_udas(source_net, unlabelled(SOURCE), VAL, LIFTED, UDAS, Run(tmp_path / "udas"), 0)
    with pytest.raises(ValueError, match="toy0 has no labels"):
        train_tist(lambda out: unet(out), unlabelled(SOURCE), VAL, LIFTED, TIST, Run(tmp_path / "tist"), 0)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (EntropyConfig, "parameters", "bias"),
        (EntropyConfig, "learning_rate", -1.0),
        (TistConfig, "nets", "both"),
        (TistConfig, "overlap", "bg"),
        (TistConfig, "epochs", 1),
        (UdasConfig, "tolerance", 2.0),
        (UdasConfig, "batch_size", 0),
    ],
)
def test_bad_settings_are_refused_by_name(config, field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        config(**{field: value})
