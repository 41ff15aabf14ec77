"""Victims that learn together: against PyTorch's Adam, against each one alone, and against plain replays."""

import pytest
import torch
from schedule_toys import EPS, minibatches, taught, victims
from segarena.attacks.budget import LinfBall, image_range
from segarena.attacks.replays import Replays
from segarena.envs.seat_victims import Adam, Victims, adam_step
from segarena.rewards.lipschitz import magnitude
from segarena.segmenters.dice_ce import dice_ce_of_images
from segarena.segmenters.volume_networks import SmallVolumeNet
from torch import nn

KS = torch.tensor([1, 3, 2, 5])


def test_adam_is_that_of_pytorch():
    generator = torch.Generator().manual_seed(0)
    weights, rate = torch.randn(3, 7, generator=generator), torch.tensor([0.1, 0.01, 0.1])
    plain = [nn.Parameter(row.clone()) for row in weights]
    optimizers = [
        torch.optim.Adam([one], lr=float(lr), amsgrad=True, weight_decay=0.01)
        for one, lr in zip(plain, rate, strict=True)
    ]
    state = Adam.fresh(weights)
    for number in range(12):
        gradient = torch.randn(3, 7, generator=generator) * (1 + 10 * (number < 3))  # so that amsgrad matters
        weights, state = adam_step(weights, gradient, state, rate, weight_decay=0.01)
        for row, (one, optimizer) in enumerate(zip(plain, optimizers, strict=True)):
            one.grad = gradient[row].clone()
            optimizer.step()
    torch.testing.assert_close(weights, torch.stack([one.detach() for one in plain]), rtol=0, atol=1e-6)
    assert state.updates.tolist() == [12, 12, 12]
    assert not torch.equal(state.highest, state.square)


def test_victims_together_are_each_one_alone():
    together = victims(4)
    of = list(minibatches(4, 5))
    start = together.weights.clone()
    losses, magnitudes = taught(together, of, KS)
    for number in range(4):
        alone = victims(1)
        alone.weights = start[number : number + 1].clone()
        own = [(images[number : number + 1], labels[number : number + 1]) for images, labels in of]
        loss, size = taught(alone, own, KS[number : number + 1])
        torch.testing.assert_close(together.weights[number], alone.weights[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.noise[number], alone.noise[0], rtol=0, atol=1e-5)
        torch.testing.assert_close((losses[number], magnitudes[number]), (loss[0], size[0]), rtol=1e-5, atol=1e-5)
    assert together.adam.updates.tolist() == (5 * KS).tolist()


def test_a_segment_is_a_plain_loop_of_replays():
    """Passes of `Replays`, and PyTorch's optimiser, on a network of its own."""
    made = victims(1)
    of, iterations = list(minibatches(1, 4)), 3
    network = SmallVolumeNet(1, 2, 4)
    nn.utils.vector_to_parameters(made.weights[0].clone(), network.parameters())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, amsgrad=True, weight_decay=made.weight_decay)
    replays, delta = Replays(network, dice_ce_of_images, "every_step"), torch.zeros(2, 1, 6, 6, 6)
    losses, sizes = [], []
    for images, labels in of:
        optimizer.zero_grad()
        replays.begin(LinfBall.around(images[0], EPS, image_range(images[0])), labels[0], images[0] + delta)
        for number in range(iterations):
            losses.append(replays.losses.mean())
            sizes.append(magnitude(replays.gradient).mean())
            optimizer.step()
            optimizer.zero_grad()
            if number + 1 < iterations:
                replays.advance(0.5)
        replays.move(0.5)
        delta = replays.delta
    loss, size = taught(made, of, torch.tensor([iterations]))
    plain = nn.utils.parameters_to_vector(network.parameters()).detach()
    torch.testing.assert_close(made.weights[0], plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(made.noise[0], delta, rtol=0, atol=1e-5)
    assert made.noise.abs().max() > 0
    assert loss.item() == pytest.approx(float(sum(losses)), abs=1e-4)
    assert size.item() == pytest.approx(float(sum(sizes)), rel=1e-4)


def test_a_victim_that_is_done_stays_as_it_is_while_others_go_on():
    of = list(minibatches(2, 3))
    few, many = victims(2), victims(2)
    taught(few, of, torch.tensor([2, 2]))
    taught(many, of, torch.tensor([2, 5]))
    for one, other in zip(few.state().values(), many.state().values(), strict=True):
        assert torch.equal(one[0], other[0])
    assert not torch.equal(few.weights[1], many.weights[1])
    assert not torch.equal(few.noise[1], many.noise[1])


def test_a_victim_that_is_done_costs_no_pass(monkeypatch):
    made, seen = victims(4), []
    run = made.run
    monkeypatch.setattr(
        made, "run", lambda weights, *given, **named: seen.append(len(weights)) or run(weights, *given, **named)
    )
    taught(made, list(minibatches(4, 1)), KS)
    assert seen == [4, 3, 2, 1, 1]
    taught(made, list(minibatches(4, 1)), torch.tensor([0, 0, 2, 0]))
    assert seen[5:] == [1, 1]


def test_a_victim_is_the_same_bit_for_bit_whoever_else_is_passed():
    of = list(minibatches(4, 2))
    whole = victims(4)
    taught(whole, of, KS)
    for kept in ([3], [1, 3], [0, 1, 3]):
        part = victims(4)
        taught(part, of, torch.tensor([int(KS[e]) if e in kept else 0 for e in range(4)]))
        for one, other in zip(whole.state().values(), part.state().values(), strict=True):
            assert torch.equal(one[3], other[3]), kept


def test_the_noise_keeps_to_the_ball_of_each_victim():
    made, of = victims(2), list(minibatches(2, 1))
    images, labels = of[0]
    taught(made, of, torch.tensor([4, 4]))
    low, high = image_range(images.flatten(0, 1))
    reached = (images + made.noise).flatten(0, 1)
    assert ((reached >= low) & (reached <= high)).all()
    share = (made.noise.flatten(0, 1).abs() / (high - low)).amax(dim=(1, 2, 3, 4))
    assert share.tolist() == pytest.approx([EPS] * 4, rel=1e-4)
    made.replay(images, labels, torch.tensor([0.0, EPS]), 0.5, [torch.tensor([0, 1])], torch.zeros(2))
    assert made.noise.flatten(1).abs().amax(dim=1).gt(0).tolist() == [False, True]


def test_an_attack_raises_the_loss_of_each_victim_and_leaves_it_as_it_was():
    made = victims(3)
    images, labels = next(iter(minibatches(1, 1)))
    images, labels = images[0], labels[0]
    before = made.state()
    reached = made.attacked(images, labels, EPS, 3)
    assert reached.shape == (3, *images.shape)
    low, high = image_range(images)
    assert ((reached - images).abs() <= EPS * (high - low) + 1e-6).all()
    attacked, clean = made.judge(reached, labels)[0], made.judge(images, labels)[0]
    assert (attacked > clean).all()
    assert (made.judge(images, labels, torch.tensor([2]))[0] - clean[2]).abs() < 1e-6
    for one, other in zip(before.values(), made.state().values(), strict=True):
        assert torch.equal(one, other)


def test_weights_begin_as_pytorch_draws_those_of_a_convolution():
    made = victims(200)
    parts = dict(zip(made._shapes, made.weights.split([s.numel() for s in made._shapes.values()], dim=1), strict=True))
    assert (parts["body.1.weight"] == 1).all(), "the scale of a normalisation"
    assert (parts["body.1.bias"] == 0).all()
    for name, inputs in {"body.0.weight": 27, "body.0.bias": 27, "body.3.weight": 108, "body.9.bias": 108}.items():
        bound = inputs**-0.5
        assert parts[name].abs().max() <= bound
        assert parts[name].abs().max() > 0.95 * bound
        assert abs(float(parts[name].mean())) < 0.1 * bound
        own = torch.cat([dict(SmallVolumeNet(1, 2, 4).named_parameters())[name].flatten() for _ in range(50)])
        assert float(own.detach().abs().max()) == pytest.approx(bound, rel=0.1), "PyTorch's"


def test_a_victim_can_begin_anew_beside_others():
    made = victims(2)
    taught(made, list(minibatches(2, 2)), torch.tensor([2, 2]))
    before = {name: value.clone() for name, value in made.state().items()}
    made.begin(torch.tensor([1]), torch.full((1, made.size), 0.5, dtype=torch.float64))
    for name, value in made.state().items():
        assert torch.equal(value[0], before[name][0])
        assert name == "weights" or not value[1].any()
    assert not torch.equal(made.weights[1], before["weights"][1])


@pytest.mark.parametrize("layer", [nn.BatchNorm3d(1), nn.Dropout3d(0.1)])
def test_networks_that_draw_or_look_at_other_images_are_refused(layer):
    network = nn.Sequential(nn.Conv3d(1, 1, 1), layer)
    with pytest.raises(ValueError, match=f"1 is a {type(layer).__name__}, but victims must not"):
        Victims(network, 1, (1, 1, 4, 4, 4), torch.device("cpu"), weight_decay=0.0)
