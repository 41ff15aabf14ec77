"""Attacks with steps of their own, by other knowledge, and by name (docs/rp-pgd.md, Method 26)."""

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from attack_toys import EPS, TinyNet, accuracy, scene, trained
from segarena.attacks.budget import Epsilon, LinfBall, image_range
from segarena.attacks.dag import dag
from segarena.attacks.named import FAMILIES, PRESETS, NamedAttack, named_attack, preset
from segarena.attacks.padam import padam
from segarena.attacks.square import square
from segarena.attacks.transfer import transfer
from torch import nn


@cache
def another(axes=2, seed=5):
    """A victim that has learned other scenes of the same kind."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TinyNet(axes)
        images, labels = scene(16, axes, seed=seed)
        adam = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(40):
            adam.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            adam.step()
        adam.zero_grad()
    return net.eval()


def by(name, axes=2):
    """The attack of a name in few steps, with what it is told."""
    short = {"padam_ce": 30, "padam_cos": 30, "dag": 120, "dag_free": 100, "square": 60, "transfer": 5}
    attack = named_attack(f"{name}_{short[name]}")
    counts = torch.tensor([500, 100, 100])
    told = {"feature_layer": "features", "class_counts": counts, "surrogates": (another(axes), another(axes, 6))}
    return lambda net, x, y, **settings: attack(net, x, y, **{"eps": Epsilon.parse(EPS), **told, **settings})


RIVALS = ("padam_ce", "padam_cos", "dag", "square", "transfer")
rivals = pytest.mark.parametrize("name", RIVALS)


@rivals
@pytest.mark.parametrize("axes", [2, 3])
def test_each_rival_is_stronger_than_noise_of_its_size_and_stays_in_its_ball(name, axes):
    images, labels = scene(4, axes, seed=99)
    net, generator = trained(axes), torch.Generator().manual_seed(0)
    found = by(name, axes)(net, images, labels, generator=generator)
    noisy = named_attack("random")(net, images, labels, eps=Epsilon.parse(EPS), generator=generator)
    assert (found - images).abs().amax() <= EPS + 1e-6
    assert (found.min() >= 0) & (found.max() <= 1)
    assert accuracy(net, found, labels) < accuracy(net, noisy, labels) - 0.2


@rivals
def test_the_model_is_left_as_it_was(name):
    images, labels = scene(2, seed=98)
    net = TinyNet().train()
    net.head.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    by(name)(net, images, labels)
    assert net.training
    assert net.dropout.training
    assert [p.requires_grad for p in net.parameters()] == [p is not net.head.weight for p in net.parameters()]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in another().parameters())


@rivals
def test_what_is_ignored_counts_nowhere_and_an_image_of_it_alone_stays(name):
    images, labels = scene(3, seed=97)
    labels[1] = 255
    labels[0, :3] = 255
    found = by(name)(trained(), images, labels, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found[1], images[1])
    assert found.isfinite().all()
    other = labels.clone()
    other[labels == 255] = 254
    again = by(name)(trained(), images, other, ignore_index=254, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, again)


@rivals
def test_each_channel_and_image_has_its_own_range(name):
    images, labels = scene(2, seed=96)
    low, high = torch.tensor([-3.0, 0.0]).view(1, 2, 1, 1), torch.tensor([5.0, 1.0]).view(1, 2, 1, 1)
    stretched = low + images * (high - low)

    class Units(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net((x - low) / (high - low))

    surrogates = {"surrogates": (Units(another()),)} if name == "transfer" else {}
    plain = {"surrogates": (another(),)} if name == "transfer" else {}
    generator = torch.Generator().manual_seed(1)
    found = by(name)(Units(trained()), stretched, labels, bounds=(low, high), generator=generator, **surrogates)
    expected = by(name)(trained(), images, labels, generator=torch.Generator().manual_seed(1), **plain)
    share = ((found - stretched) / (high - low)).abs().amax(dim=(0, 2, 3))
    assert (share <= EPS + 1e-5).all()
    assert (share > 0.9 * EPS).all()
    assert ((found - low) / (high - low) - expected).abs().mean() < 0.25 * EPS  # signs of tiny gradients may differ
    own = by(name)(trained(), images, labels, bounds=image_range(images))
    assert (own.amax(dim=(2, 3)) <= images.amax(dim=(2, 3))).all()


@rivals
def test_nan_is_refused(name):
    images, labels = scene(2)
    net = TinyNet()
    with torch.no_grad():
        net.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        by(name)(net, images, labels)


def test_adam_goes_where_the_gradient_points():
    """Logits (0, w x) of one pixel: after one step each value has moved by the whole step size along its sign."""

    class Linear(nn.Module):
        def forward(self, x):
            value = (x * torch.tensor([2.0, -3.0, 0.5]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
            return torch.cat([torch.zeros_like(value), value], dim=1)

    images, labels = torch.full((1, 3, 2, 2), 0.5), torch.tensor([[[0, 1], [1, 0]]])
    sign = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1) * (1 - 2 * labels[:, None])
    for loss in ("ce", "cos"):
        found = padam(Linear(), images, labels, eps=0.1, steps=1, step_size=0.02, random_start=False, loss=loss)
        assert torch.allclose(found, images + 0.02 * sign, atol=1e-6)
        found = padam(Linear(), images, labels, eps=0.03, steps=9, step_size=0.02, random_start=False, loss=loss)
        assert torch.allclose(found, images + 0.03 * sign, atol=1e-6)
    with pytest.raises(ValueError, match="loss is 'js' but must be one of"):
        padam(Linear(), images, labels, eps=0.1, loss="js")


def test_amsgrad_is_that_of_torch(monkeypatch):
    """Of gradients whose largest value is 1, which rescaling leaves alone: one shrinks, so that its square was highest
    before."""
    slopes = [torch.tensor([[[[1.0, -0.9 * 0.8**t], [0.1, -1.0]]]]) for t in range(30)]
    images, labels = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 2, 2, dtype=torch.int64)
    change = torch.zeros_like(images, requires_grad=True)
    adam = torch.optim.Adam([change], lr=0.004, amsgrad=True, maximize=True)
    for slope in slopes:
        change.grad = slope.clone()
        adam.step()
        with torch.no_grad():
            change.clamp_(-0.1, 0.1)
    monkeypatch.setattr("segarena.attacks.core.AttackCore.differentiate", lambda core, spec: slopes.pop(0))
    found = padam(trained(), images.expand(1, 2, 2, 2), labels, eps=0.1, steps=30, step_size=0.004, random_start=False)
    assert torch.allclose(found - images, change.detach(), atol=1e-6)


def test_dag_stops_where_nearly_all_is_wrong_and_says_how_far_that_is():
    images, labels = scene(4, seed=95)
    net = trained()
    far = dag(net, images, labels, eps=1, step_size=0.002, steps=300)
    assert accuracy(net, far, labels) <= 0.01
    needed = (far - images).abs().flatten(1).amax(dim=1)
    assert ((needed > 0.03) & (needed < 0.5)).all()
    near = dag(net, images, labels, eps=0.05, step_size=0.002, steps=300)
    assert torch.allclose(near, LinfBall.around(images, 0.05).project(far), atol=1e-6)
    half = dag(net, images, labels, eps=1, step_size=0.002, steps=300, wrong=0.5)
    assert ((half - images).abs().flatten(1).amax(dim=1) < needed).all()
    assert 0.3 < accuracy(net, half, labels) <= 0.5
    with pytest.raises(ValueError, match="wrong is 2"):
        dag(net, images, labels, eps=1, wrong=2)


def test_a_square_search_takes_no_gradient_and_never_falls_back():
    images, labels = scene(3, seed=94)

    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen = trained(), 0

        def forward(self, x):
            self.seen += 1
            return self.net(x).detach().requires_grad_(x.requires_grad)

    blind = Blind()
    few = square(blind, images, labels, eps=EPS, steps=20, generator=torch.Generator().manual_seed(3))
    assert blind.seen == 22
    many = square(blind, images, labels, eps=EPS, steps=200, generator=torch.Generator().manual_seed(3))
    clean, few, many = (accuracy(trained(), one, labels) for one in (images, few, many))
    assert many < few < clean


def test_transfer_asks_the_model_as_often_as_it_may_and_takes_no_gradient_of_it():
    images, labels = scene(3, seed=93)

    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = 0

        def forward(self, x):
            self.seen += 1
            return trained()(x).detach().requires_grad_(x.requires_grad)

    deaf, found = Deaf(), {}
    for queries in (1, 9):
        deaf.seen = 0
        found[queries] = transfer(deaf, images, labels, eps=EPS, surrogates=[another(), another(2, 6)], queries=queries)
        assert deaf.seen == queries + 1
    first, last = (accuracy(trained(), found[queries], labels) for queries in (1, 9))
    assert last <= first < accuracy(trained(), images, labels) - 0.2
    with pytest.raises(ValueError, match="surrogates is empty"):
        transfer(deaf, images, labels, eps=EPS, surrogates=[])
    with pytest.raises(ValueError, match=r"a surrogate gives \[3, 4, 11, 11\] but the model gives logits \[3, 3, 11"):
        transfer(deaf, images, labels, eps=EPS, surrogates=[TinyNet(classes=4)])


def test_transfer_tries_weights_one_after_the_other_and_keeps_what_helps(monkeypatch):
    """Of four pixels 4 are right at first, 3 after the first attack, 2 from the lowering of the first weight on."""
    images, labels, left, tried = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 2, 2, dtype=torch.int64), [4, 3, 3], []

    class Scripted(nn.Module):
        def forward(self, x):
            right = torch.arange(4).view(1, 1, 2, 2) < (left.pop(0) if left else 2)
            return torch.cat([right, ~right], dim=1).float() + 0 * x

    def attack(self, start, weights, steps):
        tried.append((round(1000 * float((start - images).mean())), weights[0].tolist()))
        return start + 0.001

    monkeypatch.setattr("segarena.attacks.transfer._Ensemble.attack", attack)
    found = transfer(Scripted(), images, labels, eps=EPS, surrogates=[nn.Identity()] * 2, queries=10)
    kept = (0.475 / 0.975, 0.5 / 0.975)
    changes = [(kept, n, sign / 40) for n in (0, 1) for sign in (1, -1)]
    changes = [((0.5, 0.5), 0, 1 / 40), ((0.5, 0.5), 0, -1 / 40), *changes[2:], *changes, (kept, 0, 1 / 80)]
    assert [start for start, _ in tried] == [0, 1, 1, *[2] * 7], "from the best image so far"
    assert tried[0][1] == [0.5, 0.5]
    for (_, weights), (known, number, change) in zip(tried[1:], changes, strict=True):
        moved = [value + change * (n == number) for n, value in enumerate(known)]
        assert weights == pytest.approx([value / sum(moved) for value in moved], abs=1e-6)
    assert found.mean().item() == pytest.approx(0.502, abs=1e-6)


def test_windows_of_a_square_search_shrink_as_the_page_says(monkeypatch):
    shares = []

    def sides(share, spatial):
        shares.append(share)
        return [1] * len(spatial)

    monkeypatch.setattr("segarena.attacks.square.window_sides", sides)
    square(trained(), *scene(1), eps=EPS, steps=100, generator=torch.Generator().manual_seed(0))
    halved = {0: 0, 1: 2, 2: 3, 4: 3, 5: 4, 9: 4, 10: 5, 19: 5, 20: 6, 39: 6, 40: 7, 59: 7, 60: 8, 79: 8, 80: 9, 99: 9}
    assert {step: round(math.log2(0.8 / shares[step])) for step in halved} == halved


# -- names ---------------------------------------------------------------------------------------------------------


def test_a_name_says_family_and_steps():
    pgd = named_attack("pgd_20")
    assert (pgd.name, pgd.family, pgd.steps, pgd.kind, pgd.title) == ("pgd_20", "pgd", 20, "white", "PGD, 20 steps")
    assert named_attack("rp_pgd_pp_7").needs == ("feature_layer",)
    assert named_attack("apgd_masked_balanced_ce_30").arguments == {"steps": 30}
    assert named_attack("sea").steps == 300
    assert named_attack("bim2").steps is None
    assert named_attack("unbounded").eps.value == 1
    for name, wrong in {
        "pgd_0": "needs at least 1 step",
        "clean_3": "takes no number of steps",
        "fgsm_2": "takes no number of steps",
        "pdg_20": r"there is no attack 'pdg_20'.*did you mean 'pgd'",
    }.items():
        with pytest.raises(ValueError, match=wrong):
            named_attack(name)


def test_presets_name_attacks_that_there_are():
    assert [one.name for one in preset("reference")] == ["clean", "fgsm", "bim2"]
    grid = [one.name for one in preset("grid", [3, 7])]
    assert {"pgd_3", "pgd_7", "cw_linf_7", "rp_pgd_pp_3"} <= {*grid}
    assert all(one.steps == 300 for one in preset("sea")[1:])
    assert {one.family for name in PRESETS for one in preset(name)} <= FAMILIES.keys()
    with pytest.raises(ValueError, match="attacks is 'big' but must be one of"):
        preset("big")
    with pytest.raises(ValueError, match="steps is empty"):
        preset("grid", [])


def test_bim2_is_the_program_of_two_steps_of_a_hundredth():
    images, labels = scene(2, seed=92)
    found = named_attack("bim2")(trained(), images, labels, eps=Epsilon.parse(0.03))
    inside = (images > 0.03) & (images < 0.97)
    size = (found - images)[inside].abs()
    assert torch.isin((100 * size).round(), torch.tensor([0.0, 1.0, 2.0])).all()
    assert size.max() == pytest.approx(0.02, abs=1e-6)


def test_an_attack_of_ones_own_has_a_name_too():
    def mine(model, images, labels, *, eps, bounds, ignore_index, generator, class_counts):
        assert class_counts.tolist() == [1, 2]
        return images + eps.value

    attack = NamedAttack("mine", "Mine", mine, needs=("class_counts",))
    found = attack(
        nn.Identity(), torch.zeros(1, 1, 2, 2), None, eps=Epsilon.parse(0.5), class_counts=torch.tensor([1, 2])
    )
    assert (found == 0.5).all()
