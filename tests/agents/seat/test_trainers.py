"""What a batch teaches: each training against a plain loop, and what its settings reach."""

import pytest
import torch
import torch.nn.functional as F
from seat_toys import DATA, toy_batch, toy_config, toy_network
from segarena.agents.seat.trainers import NoiseBuffer, Trainer
from segarena.agents.seat.training import Judge
from segarena.datasets.decathlon.cases import load_decathlon
from torch import nn

EPS = 16 / 255


def optimizer_of(net):
    return torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-5, amsgrad=True)


def trained(batches, iterations=3, net=None, **settings):
    """The network and its buffer after some batches, and the trainer."""
    net = net or toy_network()
    buffer = NoiseBuffer()
    trainer = Trainer(net, optimizer_of(net), toy_config(**settings), buffer)
    for images, labels in batches:
        trainer.batch(images, labels, iterations)
    return net, buffer, trainer


def dice_ce(logits, labels):
    """The loss of the batch, by its formula."""
    p = logits.softmax(dim=1)
    q = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).float()
    axes = (2, 3, 4)
    tp, fp, fn = (p * q).sum(axes), (p * (1 - q)).sum(axes), ((1 - p) * q).sum(axes)
    score = 2 * tp / (2 * tp + fp + fn + 1e-5)
    return 1 - score.mean(dim=0)[1:].mean() + F.cross_entropy(logits, labels)


def limits(images):
    axes = (2, 3, 4)
    return images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)


def clipped(images, delta):
    low, high = limits(images)
    radius = EPS * (high - low)
    delta = torch.minimum(torch.maximum(delta, -radius), radius)
    return torch.minimum(torch.maximum(images + delta, low), high) - images, radius


def plain_free(batches, iterations, share=0.5):
    net = toy_network()
    optimizer, carried = optimizer_of(net), None
    for images, labels in batches:
        delta, radius = clipped(images, torch.zeros_like(images) if carried is None else carried[: len(images)])
        for _ in range(iterations):
            leaf = (images + delta).requires_grad_()
            optimizer.zero_grad()
            dice_ce(net(leaf), labels).backward()
            optimizer.step()
            delta, _ = clipped(images, delta + share * radius * leaf.grad.sign())
        carried = delta
    return net, carried


def alike(net, other, atol=1e-5):
    for (name, mine), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol, msg=name)


def test_free_training_carries_its_noise_and_learns_from_every_pass():
    batches = [toy_batch(4, 0), toy_batch(4, 1)]
    net, buffer, trainer = trained(batches)
    plain, carried = plain_free(batches, 3)
    alike(net, plain)
    torch.testing.assert_close(buffer.delta, carried, rtol=0, atol=1e-5)
    assert float(buffer.delta.abs().max()) > 0.5 * EPS
    assert trainer.passes == 6


def test_without_noise_the_same_batch_is_learned_several_times():
    batches = [toy_batch()]
    net, buffer, trainer = trained(batches, noise=False, start="zero")
    plain = toy_network()
    optimizer = optimizer_of(plain)
    for _ in range(3):
        optimizer.zero_grad()
        dice_ce(plain(batches[0].images), batches[0].labels).backward()
        optimizer.step()
    alike(net, plain)
    assert buffer.delta is None
    assert float(trainer.sums["delta"]) == 0


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_pgd_training_learns_from_the_last_image_alone(mode):
    images, labels = toy_batch()
    net, _, trainer = trained([(images, labels)], method="pgd", start="zero", step_share=0.25, attack_mode=mode)
    plain = toy_network()
    optimizer, delta = optimizer_of(plain), torch.zeros_like(images)
    for _ in range(3):
        leaf = (images + delta).requires_grad_()
        (gradient,) = torch.autograd.grad(dice_ce(plain(leaf), labels), leaf)
        delta, radius = clipped(images, delta)
        delta, _ = clipped(images, delta + 0.25 * radius * gradient.sign())
    optimizer.zero_grad()
    dice_ce(plain(images + delta), labels).backward()
    optimizer.step()
    alike(net, plain)
    assert trainer.passes == 4


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("tau", [0, 1])
def test_fat_ends_the_attack_of_each_patch_some_steps_after_it_succeeded(mode, tau):
    images, labels = toy_batch()
    plain = toy_network()

    def dice_of(shown):
        ball = plain(shown).argmax(dim=1) == 1
        both = (ball & (labels == 1)).flatten(1).sum(1)
        return 2 * both / (ball.flatten(1).sum(1) + (labels == 1).flatten(1).sum(1))

    threshold = float(dice_of(images).median())  # of the clean patches some succeed at once
    settings = {"method": "pgd", "start": "zero", "step_share": 0.25, "attack_mode": mode}
    net, _, _ = trained([(images, labels)], tau=tau, dice_threshold=threshold, **settings)
    delta, succeeded, steps = torch.zeros_like(images), [None] * 4, [0] * 4
    for k in range(3):
        dice = dice_of(images + delta)
        leaf = (images + delta).requires_grad_()
        (gradient,) = torch.autograd.grad(dice_ce(plain(leaf), labels), leaf)
        moved, radius = clipped(images, delta)
        moved, _ = clipped(images, moved + 0.25 * radius * gradient.sign())
        for n in range(4):
            succeeded[n] = k if succeeded[n] is None and dice[n] <= threshold + 1e-4 else succeeded[n]
            if succeeded[n] is None or k - succeeded[n] < tau:
                delta[n], steps[n] = moved[n], steps[n] + 1
    assert min(steps) == tau, steps
    assert len(set(steps)) > 1, steps
    optimizer = optimizer_of(plain)
    optimizer.zero_grad()
    dice_ce(plain(images + delta), labels).backward()
    optimizer.step()
    alike(net, plain)


def test_dropout_is_off_in_the_attack_of_pgd_and_on_where_it_learns():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toy_network()

        def forward(self, x):
            seen.append(self.training)
            return self.inner(x)

    trained([toy_batch()], net=Watching(), method="pgd", start="uniform")
    assert seen == [False, False, False, True]


def test_trades_weighs_the_divergence(monkeypatch):
    images, labels = toy_batch()
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.ones(shape))
    net, _, trainer = trained([(images, labels)], method="trades", trades_steps=2, beta=6.0)
    plain = toy_network()
    low, high = limits(images)
    radius = EPS * (high - low)
    clean = plain(images).detach()
    delta, _ = clipped(images, 0.001 * (high - low) * torch.ones_like(images))

    def apart(first, second):
        log_p = first.log_softmax(dim=1)
        return (log_p.exp() * (log_p - second.log_softmax(dim=1))).sum(dim=1).mean()

    magnitudes = []
    for _ in range(2):
        leaf = (images + delta).requires_grad_()
        (gradient,) = torch.autograd.grad(apart(clean, plain(leaf)), leaf)
        magnitudes.append(float(gradient.abs().sum()))
        delta, _ = clipped(images, delta + 0.5 * radius * gradient.sign())
    optimizer = optimizer_of(plain)
    optimizer.zero_grad()
    before = plain(images)
    (dice_ce(before, labels) + 6 * apart(before, plain(images + delta))).backward()
    optimizer.step()
    alike(net, plain)
    assert trainer.passes == 5
    found = float(trainer.sums["grad_l1_raw"] / trainer.sums["measured"])
    assert found == pytest.approx(sum(magnitudes) / 2, rel=1e-3)
    other, _, _ = trained([(images, labels)], method="trades", trades_steps=2, beta=0.0)
    assert any(
        float((a - b).detach().abs().max()) > 1e-4 for a, b in zip(net.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_step_of_the_noise_reaches_the_weights(share):
    still, _, _ = trained([toy_batch()], noise=False, start="zero")
    moved, _, _ = trained([toy_batch()], step_share=share)
    change = max(
        float((a - b).detach().abs().max()) for a, b in zip(still.parameters(), moved.parameters(), strict=True)
    )
    assert (change > 1e-4) == (share > 0)


def test_the_enlarged_radius_is_for_training_alone():
    batches = [toy_batch(), toy_batch(4, 1)]
    large, _, _ = trained(batches, eps_enlarger=2.0)
    double, _, _ = trained(batches, eps="32/255")
    small, _, _ = trained(batches)
    pairs = [zip(large.parameters(), other.parameters(), strict=True) for other in (double, small)]
    assert all(torch.equal(a, b) for a, b in pairs[0])
    assert not all(torch.equal(a, b) for a, b in pairs[1])
    val = load_decathlon(DATA, "select")
    given = (toy_config(eps_enlarger=factor) for factor in (1.0, 2.0))
    judges = [Judge(large, val, (16, 16, 16), one, None) for one in given]
    assert torch.equal(judges[0].ball.radius, judges[1].ball.radius)


def test_the_probe_is_attacked_by_two_steps_of_half_the_radius_up_the_loss():
    val, net = load_decathlon(DATA, "select"), toy_network()
    judge = Judge(net, val, (16, 16, 16), toy_config(), None)
    found = judge()
    images, labels = judge.patches
    delta, radius = clipped(images, torch.zeros_like(images))
    for _ in range(2):
        leaf = (images + delta).requires_grad_()
        (gradient,) = torch.autograd.grad(dice_ce(net(leaf), labels), leaf)
        delta, _ = clipped(images, delta + 0.5 * radius * gradient.sign())
    torch.testing.assert_close(judge.adversarial, images + delta, rtol=0, atol=1e-5)
    for name, shown in (("clean", images), ("robust", images + delta)):
        ball = net(shown).argmax(dim=1) == 1
        dice = 2 * (ball & (labels == 1)).sum() / (ball.sum() + (labels == 1).sum())
        assert found[f"dice_{name}"] == pytest.approx(float(dice), abs=1e-3)
    assert found["val_loss"] == pytest.approx(float(dice_ce(net(images), labels).detach()), abs=1e-5)


def test_steps_may_shrink_with_the_iterations_down_to_a_least_one():
    config = toy_config(step_share=None, eps="8/255")
    assert [config.step(iterations) for iterations in (1, 2, 5)] == [1, 0.5, 0.2]
    deat = toy_config(step_share=None, eps="8/255", least_step=10 / 255)
    assert [deat.step(iterations) for iterations in (1, 5)] == pytest.approx([1.25, 1.25])
    assert toy_config(eps="16/255", least_step=10 / 255).step(5) == pytest.approx(0.625)
    plus = toy_config(step_share=None, eps="8/255", least_step=2 / 255)
    assert [plus.step(iterations) for iterations in (1, 3, 4, 5)] == pytest.approx([1, 1 / 3, 0.25, 0.25])
    halves, _, _ = trained([toy_batch()], iterations=2, step_share=None)
    fixed, _, _ = trained([toy_batch()], iterations=2, step_share=0.5)
    alike(halves, fixed, atol=0)


def test_the_buffer_keeps_what_a_smaller_batch_leaves():
    buffer = NoiseBuffer()
    images = torch.zeros(3, 1, 2, 2, 2)
    assert buffer.start(images) is images
    buffer.keep(torch.full_like(images, 0.5))
    buffer.keep(torch.full_like(images[:1], 0.25))
    assert buffer.delta[:, 0, 0, 0, 0].tolist() == [0.25, 0.5, 0.5]
    assert buffer.start(images[:2])[:, 0, 0, 0, 0].tolist() == [0.25, 0.5]
    assert buffer.start(torch.zeros(4, 1, 2, 2, 2))[:, 0, 0, 0, 0].tolist() == [0.25, 0.5, 0.5, 0.0]
    again = NoiseBuffer()
    again.load_state_dict(buffer.state_dict())
    torch.testing.assert_close(again.delta, buffer.delta)


@pytest.mark.parametrize(("kind", "count"), [("all", 3), ("last", 1), ("first", 1), ("probe", 0)])
def test_the_magnitude_is_that_of_the_chosen_passes(kind, count):
    _, _, trainer = trained([toy_batch()], magnitude=kind)
    measured = trainer.sums.get("measured")
    assert (0 if measured is None else float(measured)) == 4 * count


def test_the_magnitude_is_a_mean_over_images_and_the_relative_one_has_no_unit():
    images, labels = toy_batch()
    net = toy_network()
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(dice_ce(net(leaf), labels), leaf)
    _, _, trainer = trained([(images, labels)], iterations=1, noise=False, start="zero")
    raw, relative = (float(trainer.sums[f"grad_l1_{kind}"] / trainer.sums["measured"]) for kind in ("raw", "rel"))
    assert raw == pytest.approx(float(gradient.abs().sum()), rel=1e-4), "the norm of the batch's gradient"
    low, high = limits(images)
    assert relative == pytest.approx(float(((high - low) * gradient.abs()).sum()), rel=1e-4)


def test_a_patch_without_a_range_is_learned_as_it_is():
    images, labels = toy_batch()
    images[0] = 0.3
    net, buffer, _ = trained([(images, labels)])
    assert float(buffer.delta[0].abs().max()) == 0
    assert float(buffer.delta[1].abs().max()) > 0
    assert all(bool(value.isfinite().all()) for value in net.parameters())
