"""Passes that attack and teach at once: against plain loops, and the linear network that can be worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from segarena.attacks.budget import LinfBall, image_range
from segarena.attacks.replays import Replays
from torch import nn

EPS = 8 / 255


class Linear(nn.Module):
    """Logits (0, w x), w = 2."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return torch.cat([torch.zeros_like(images), self.weight * images], dim=1)


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none").flatten(1).mean(dim=1)


def by_hand():
    images = torch.tensor([[[0.5, -1.0, 0.0, 1.5]]], dtype=torch.float64)
    return LinfBall.around(images, EPS, image_range(images)), torch.tensor([[1, 0, 1, 0]])


@pytest.mark.parametrize(
    ("share", "losses"),
    [
        (0.5, [1.045481, 1.063323, 1.082034, 1.082034]),
        (0.25, [1.045481, 1.054295, 1.063323, 1.072569, 1.082034]),
        (1.0, [1.045481, 1.082034]),
    ],
)
def test_the_linear_network_loses_what_was_worked_out(share, losses):
    ball, labels = by_hand()
    replays = Replays(Linear().double(), cross_entropy)
    replays.begin(ball, labels)
    found = [replays.losses.item()]
    for _ in losses[1:]:
        replays.advance(share)
        found.append(replays.losses.item())
    assert found == pytest.approx(losses, abs=1e-6)
    assert replays.delta[0, 0, 3] == 0, "the voxel at the upper end may not rise"
    assert replays.passes.tolist() == [len(losses)]


def test_the_gradient_is_that_at_the_projected_image():
    ball, labels = by_hand()
    replays = Replays(Linear().double(), cross_entropy)
    replays.begin(ball, labels)
    norms = [replays.gradient.abs().sum().item()]
    for _ in range(2):
        replays.advance(0.5)
        norms.append(replays.gradient.abs().sum().item())
    assert norms == pytest.approx([0.920359, 0.942249, 0.964632], abs=1e-6)
    replays.begin(ball, labels)
    replays.advance(0.5)
    torch.testing.assert_close(
        replays.delta[0, 0], torch.tensor([-0.039216, 0.039216, -0.039216, 0.0]).double(), rtol=0, atol=1e-6
    )


def toy():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv3d(4, 3, 3, padding=1))
    images, labels = torch.randn(3, 2, 6, 5, 4), torch.randint(0, 3, (3, 6, 5, 4))
    return net, LinfBall.around(images, EPS, image_range(images)), labels


def optimizer_of(net):
    return torch.optim.Adam(net.parameters(), lr=0.01, amsgrad=True)


def plain_pass(net, ball, delta, labels):
    """L of the batch at clip(x + delta), g of each image's own loss, and the gradients of the weights in .grad."""
    low, high = image_range(ball.images)
    leaf = torch.minimum(torch.maximum(ball.images + delta, low), high).requires_grad_()
    loss = cross_entropy(net(leaf), labels).mean()
    loss.backward()
    return loss.item(), leaf.grad * len(leaf)


def projected(ball, delta):
    low, high = image_range(ball.images)
    moved = torch.minimum(torch.maximum(delta, -ball.radius), ball.radius)
    return torch.minimum(torch.maximum(ball.images + moved, low), high) - ball.images


def test_free_training_is_a_plain_loop_of_replays():
    net, ball, labels = toy()
    plain, _, _ = toy()
    optimizer, plain_optimizer = optimizer_of(net), optimizer_of(plain)
    replays = Replays(net, cross_entropy, "every_step")
    replays.begin(ball, labels)
    losses = [replays.losses.mean().item()]
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        replays.advance(0.5)
        losses.append(replays.losses.mean().item())
    optimizer.step()
    replays.move(0.5)
    delta, expected = torch.zeros_like(ball.images), []
    for _ in range(3):
        plain_optimizer.zero_grad()
        loss, gradient = plain_pass(plain, ball, delta, labels)
        expected.append(loss)
        plain_optimizer.step()
        delta = projected(ball, delta + 0.5 * ball.radius * gradient.sign())
    assert losses == pytest.approx(expected, abs=1e-6)
    assert losses[1] != pytest.approx(losses[0], abs=1e-6)
    torch.testing.assert_close(replays.delta, delta, rtol=0, atol=1e-6)
    for mine, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_training_on_the_last_image_alone_takes_the_gradient_there():
    net, ball, labels = toy()
    replays = Replays(net, cross_entropy, "at_end")
    replays.begin(ball, labels)
    for _ in range(2):
        replays.advance(0.5)
    assert all(parameter.grad is None for parameter in net.parameters()), "no pass of the attack teaches"
    replays.learn()
    found = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    cross_entropy(net(replays.adversarial), labels).mean().backward()
    for mine, parameter in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)
    with pytest.raises(RuntimeError, match="learn once"):
        replays.learn()


def test_only_the_images_that_are_named_teach():
    net, ball, labels = toy()
    replays = Replays(net, cross_entropy, "at_end")
    replays.begin(ball, labels)
    replays.learn(torch.tensor([False, True, False]))
    found = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    cross_entropy(net(ball.images[1:2]), labels[1:2]).mean().backward()
    for mine, parameter in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_an_attack_alone_leaves_the_network_as_it_was():
    net = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3), nn.Dropout3d(0.5))
    _, ball, labels = toy()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    replays = Replays(net, cross_entropy)
    replays.begin(ball, labels)
    replays.advance(1.0)
    assert net.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_images_do_not_depend_on_each_other():
    net, ball, labels = toy()
    whole, single = Replays(net, cross_entropy), Replays(net, cross_entropy)
    whole.begin(ball, labels)
    whole.advance(torch.tensor([0.25, 0.5, 1.0]))
    alone = LinfBall(*(part[1:2] for part in (ball.images, ball.lower, ball.upper, ball.radius)))
    single.begin(alone, labels[1:2])
    single.advance(0.5)
    torch.testing.assert_close(whole.delta[1:2], single.delta)
    torch.testing.assert_close(whole.losses[1:2], single.losses)


def test_rows_that_begin_anew_are_those_of_a_batch_that_began_there():
    net, ball, labels = toy()
    other = LinfBall.around(ball.images.flip(0) * 0.5, EPS, image_range(ball.images.flip(0) * 0.5))
    parts = (ball.images, ball.lower, ball.upper, ball.radius)
    others = (other.images, other.lower, other.upper, other.radius)
    replays, expected = Replays(net, cross_entropy), Replays(net, cross_entropy)
    replays.begin(ball, labels)
    replays.advance(0.5, torch.tensor([0, 2]))
    rows = torch.tensor([1])
    replays.restart(rows, LinfBall(*(part[rows] for part in others)), labels.flip(0)[rows])
    assert replays.passes.tolist() == [2, 1, 2]
    expected.begin(LinfBall(*(torch.cat([a[:1], b[1:2], a[2:]]) for a, b in zip(parts, others, strict=True))), labels)
    torch.testing.assert_close(replays.gradient[1], expected.gradient[1])
    replays.advance(0.5)
    for _ in range(2):
        expected.advance(torch.tensor([0.5, 0.0, 0.5]))
    torch.testing.assert_close(replays.gradient[::2], expected.gradient[::2])
    torch.testing.assert_close(replays.delta[::2], expected.delta[::2])


def test_rows_that_are_passed_apart_teach_the_mean_of_all():
    net, ball, labels = toy()
    whole, apart = Replays(net, cross_entropy, "every_step"), Replays(net, cross_entropy, "every_step")
    whole.begin(ball, labels)
    apart.begin(ball, labels)
    net.zero_grad()
    whole.advance(0.5)
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    apart.advance(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0, 1]))
    last = torch.tensor([2])
    ball_of_last = LinfBall(*(part[last] for part in (ball.images, ball.lower, ball.upper, ball.radius)))
    apart.restart(last, ball_of_last, labels[last], whole.adversarial[last])
    for parameter, one in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, one)
    torch.testing.assert_close(apart.gradient, whole.gradient)


def test_an_image_is_the_same_alone_as_among_others_where_it_is_passed_twice():
    net, ball, labels = toy()
    whole, apart = (Replays(net, cross_entropy, twice=True) for _ in range(2))
    whole.begin(ball, labels)
    apart.begin(ball, labels)
    whole.advance(0.5)
    for row in range(3):
        apart.advance(torch.where(torch.arange(3) == row, 0.5, 0.0), torch.tensor([row]))
    assert apart.logits.shape == whole.logits.shape
    for name in ("losses", "logits", "gradient", "adversarial", "passes"):
        assert torch.equal(getattr(apart, name), getattr(whole, name)), name


@pytest.mark.parametrize("update", ["never", "every_step", "at_end"])
def test_a_state_continues_the_same_passes(update):
    net, ball, labels = toy()
    replays, other = Replays(net, cross_entropy, update), Replays(net, cross_entropy, update)
    replays.begin(ball, labels)
    replays.advance(0.25)
    other.resume(ball, labels, replays.state())
    assert other.passes.tolist() == [2, 2, 2]
    net.zero_grad()
    if update == "at_end":
        found = []
        for one in (replays, other):
            net.zero_grad()
            one.learn()
            found.append([parameter.grad.clone() for parameter in net.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    replays.advance(0.5)
    other.advance(0.5)
    assert torch.equal(replays.delta, other.delta)
    assert torch.equal(replays.losses, other.losses)
