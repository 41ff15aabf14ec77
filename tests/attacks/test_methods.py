"""The attacks by name: strength, equality with plain code, options, errors (docs/rp-pgd.md, Method 5, 8-10)."""

from dataclasses import astuple, fields, replace

import pytest
import torch
import torch.nn.functional as F
from attack_toys import EPS, TinyNet, accuracy, mean_loss, scene, trained
from segarena.attacks.budget import Epsilon, LinfBall, image_range
from segarena.attacks.core import AttackCore
from segarena.attacks.losses import jensen_shannon
from segarena.attacks.methods import ATTACKS, region, released_start
from segarena.attacks.options import RELEASED, RPOptions
from segarena.attacks.regions import region_schedule
from segarena.attacks.victim import Normalized
from segarena.segmenters.unet import UNet
from torch import nn

names = pytest.mark.parametrize("name", ATTACKS)
REGIONAL = [name for name, attack in ATTACKS.items() if attack.regional]


def noise(images, labels, eps=EPS, bounds=(0.0, 1.0)):
    """Each value moved by eps, up or down."""
    ball = LinfBall.around(images, eps, bounds)
    sign = torch.randn(images.shape, generator=torch.Generator().manual_seed(2)).sign()
    return ball.project(images + ball.radius * sign)


def attacked(name, images, labels, axes=2, net=None, **settings):
    settings = {"eps": EPS, "feature_layer": "features"} | settings
    return ATTACKS[name](trained(axes) if net is None else net, images, labels, **settings)


def test_the_toy_knows_its_scenes():
    for axes in (2, 3):
        images, labels = scene(4, axes, seed=99)
        assert accuracy(trained(axes), images, labels) > 0.9


@names
@pytest.mark.parametrize("axes", [2, 3])
def test_each_attack_is_stronger_than_noise_of_the_same_size(name, axes):
    """The loss rises and the accuracy falls; with a wrong sign both would improve."""
    images, labels = scene(4, axes, seed=99)
    net = trained(axes)
    steps = 1 if ATTACKS[name].single else 4
    found = attacked(name, images, labels, axes, steps=steps)
    assert (found - images).abs().amax() <= EPS + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    shaken = noise(images, labels)
    assert accuracy(net, found, labels) < accuracy(net, shaken, labels) - 0.2
    assert mean_loss(net, found, labels) > mean_loss(net, shaken, labels) + 0.3


@names
def test_steps_beyond_the_first_make_an_attack_stronger(name):
    images, labels = scene(8, seed=98)
    if ATTACKS[name].single:
        with pytest.raises(ValueError, match="steps is 5 but FGSM has one step; BIM is the same with more"):
            attacked(name, images, labels, steps=5)
        return
    one, many = (attacked(name, images, labels, steps=steps, random_start=False) for steps in (1, 12))
    assert accuracy(trained(), many, labels) < accuracy(trained(), one, labels)


@names
def test_a_linear_victim_is_attacked_to_the_optimum(name):
    """Logits (0, w x): the worst image is x - eps sign(w) where y = 1 and x + eps sign(w) where y = 0."""

    class Linear(nn.Module):
        def forward(self, x):
            value = (x * torch.tensor([2.0, -3.0, 0.5]).view(1, 3, *[1] * (x.dim() - 2))).sum(dim=1, keepdim=True)
            return torch.cat([torch.zeros_like(value), value + 0.2], dim=1)

    generator = torch.Generator().manual_seed(1)
    for spatial in ((4, 5), (3, 2, 4)):
        images = torch.rand(2, 3, *spatial, generator=generator)
        labels = torch.randint(0, 2, (2, *spatial), generator=generator)
        sign = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, *[1] * len(spatial))
        best = (images + 0.02 * sign * (1 - 2 * labels[:, None])).clamp(0, 1)
        if name in ("masked_ce", "segpgd", "cw_linf"):  # what is wrong from the start counts for nothing
            right = (Linear()(images).argmax(dim=1) == labels)[:, None]
            best = torch.where(right, best, images)
        if name in ("rp_pgd", "rp_pgd_pp"):  # they want more than the loss of each pixel
            continue
        found = ATTACKS[name](Linear(), images, labels, eps=0.02, steps=1, random_start=False)
        assert torch.allclose(found, best, atol=1e-6)


# -- plain code of the same attacks ----------------------------------------------------------------------------------


def plain(net, x, y, eps, alpha, steps, loss, start=None):
    """Projected gradient ascent of a loss(logits, features, labels, memory, t), as the papers' pseudo-code has it."""
    adversarial, memory = (x if start is None else start).clone(), {}
    for t in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        kept = []
        handle = net.features.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
        logits = net(adversarial)
        handle.remove()
        loss(logits, kept[0], y, memory, t, steps).backward()
        moved = adversarial.detach() + alpha * adversarial.grad.sign()
        adversarial = torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
        net.zero_grad()
    return adversarial


def ce(logits, y):
    return F.cross_entropy(logits, y, ignore_index=255, reduction="none")


def plain_pgd(logits, features, y, memory, t, steps):
    return ce(logits, y).sum()


def plain_segpgd(logits, features, y, memory, t, steps):
    wrong, right = t / (2 * steps), logits.argmax(dim=1) == y
    return ((1 - wrong) * right * ce(logits, y) + wrong * ~right * ce(logits, y)).sum()


def plain_cospgd(logits, features, y, memory, t, steps):
    one_hot = F.one_hot(y.clamp(max=logits.shape[1] - 1), logits.shape[1]).movedim(-1, 1).float()
    return (F.cosine_similarity(logits.softmax(dim=1), one_hot, dim=1).detach() * ce(logits, y)).sum()


def plain_masked(logits, features, y, memory, t, steps):
    return ce(logits, y)[logits.argmax(dim=1) == y].sum()


def plain_js(logits, features, y, memory, t, steps):
    return jensen_shannon(logits, y.clamp(max=logits.shape[1] - 1))[y != 255].sum()


def plain_rp(logits, features, y, memory, t, steps, terms=0):
    """Image by image, region by region, with features resized to the labels."""
    t, right = t + 1, logits.argmax(dim=1) == y
    if not memory:
        memory["s"] = torch.where(y == 255, 0, torch.where(right, 1, 2))
    memory["s"] = torch.where((memory["s"] == 1) & ~right, 3, memory["s"])
    weights = dict(zip((1, 3, 2), region_schedule(t, steps), strict=True))
    full = F.interpolate(features, size=y.shape[1:], mode="bilinear", align_corners=True)
    total = 0.0
    for image in range(len(y)):
        state, losses = memory["s"][image], ce(logits, y)[image]
        for number, weight in weights.items():
            if (state == number).any():
                total = total + 0.5 * weight * losses[state == number].mean()
        kept = {int(k): full[image][:, (state == 1) & (y[image] == k)] for k in y[image][state == 1].unique()}
        means = {k: pixels.mean(dim=1) for k, pixels in kept.items()}
        pairs = [(1 + F.cosine_similarity(means[a], means[b], dim=0)) / 2 for a in means for b in means if a < b]
        if terms >= 1 and pairs:
            total = total + 0.5 * torch.stack(pairs).mean()
    return total


def plain_rp_pgd(*arguments):
    return plain_rp(*arguments, terms=1)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("bim", plain_pgd),
        ("pgd", plain_pgd),
        ("segpgd", plain_segpgd),
        ("cospgd", plain_cospgd),
        ("masked_ce", plain_masked),
        ("js", plain_js),
        ("rp_region", plain_rp),
        ("rp_pgd", plain_rp_pgd),
    ],
)
def test_each_attack_is_its_papers_pseudo_code(name, loss):
    images, labels = scene(3, seed=5)
    labels[:, :2] = 255
    steps = 4
    found = attacked(name, images, labels, steps=steps, step_size=EPS / steps)
    expected = plain(trained(), images, labels, EPS, EPS / steps, steps, loss)
    assert ((found - expected).abs() < 1e-6).float().mean() >= 0.999
    same = trained()(found).argmax(dim=1) == trained()(expected).argmax(dim=1)
    assert same.float().mean() >= 0.99


def test_fgsm_is_one_step_of_eps():
    images, labels = scene(2)
    expected = plain(trained(), images, labels, EPS, EPS, 1, plain_pgd)
    assert torch.allclose(attacked("fgsm", images, labels), expected, atol=1e-6)


def test_mi_fgsm_is_bim_with_momentum():
    images, labels = scene(2)
    bim, mi = (attacked(name, images, labels, steps=4) for name in ("bim", "mi_fgsm"))
    assert not torch.equal(bim, mi)
    assert torch.equal(*(attacked(name, images, labels, steps=1) for name in ("bim", "mi_fgsm")))


def test_rp_pgd_pp_without_its_intra_class_term_is_rp_pgd():
    images, labels = scene(2)
    zero = attacked("rp_pgd_pp", images, labels, steps=3, options=RPOptions(w_intra=0.0))
    assert torch.equal(zero, attacked("rp_pgd", images, labels, steps=3))


def test_detached_features_leave_the_region_attack():
    images, labels = scene(2)
    detached = attacked("rp_pgd_pp", images, labels, steps=3, options=RPOptions(detach_features=True))
    assert torch.equal(detached, attacked("rp_region", images, labels, steps=3))


def test_global_means_make_rp_global():
    images, labels = scene(2)
    options = RPOptions(region_norm="global")
    one = attacked("rp_region", images, labels, steps=3, options=options)
    assert torch.equal(one, attacked("rp_global", images, labels, steps=3))


# -- options ---------------------------------------------------------------------------------------------------------

CHANGES = {
    "w_region": 0.1,
    "w_inter": 5.0,
    "w_intra": -3.0,
    "lambda_base": 0,
    "region_norm": "batch",
    "proto_scope": "batch",
    "inter_norm": "ordered",
    "intra_agg": "last",
    "intra_skip": (0, 1),
    "detach_features": True,
    "ignore_as_false": True,
    "norm_clamp_start": True,
}


def wrong_at_first():
    """Images of three classes, with pixels that are ignored and pixels that are wrong from the start."""
    images, labels = scene(3, seed=12)
    labels[:, :2] = 255
    labels[0, 5:7] = 2
    return images, labels


class Behind(nn.Module):
    """The toy behind normalised images."""

    def __init__(self):
        super().__init__()
        self.net = trained()

    def forward(self, x):
        return self.net(x * 0.25 + 0.5)


def normalized():
    return Normalized(Behind(), [0.5, 0.5], [0.25, 0.25])


def test_every_option_has_a_change_that_is_tested():
    assert CHANGES.keys() == {field.name for field in fields(RPOptions)}
    same = {"w_region", "w_intra", "intra_skip"}
    for field in fields(RPOptions):
        assert (getattr(RELEASED, field.name) == getattr(RPOptions(), field.name)) == (field.name in same)


@pytest.mark.parametrize("option", CHANGES)
def test_each_option_changes_the_perturbation(option):
    images, labels = wrong_at_first()
    settings = {"net": normalized(), "steps": 3, "feature_layer": "model.net.features", "random_start": False}
    before, after = (
        attacked("rp_pgd_pp", images, labels, options=options, **settings)
        for options in (RPOptions(), RPOptions(**{option: CHANGES[option]}))
    )
    assert not torch.equal(before, after)
    assert (after - images).abs().amax() <= EPS + 1e-6


@pytest.mark.parametrize("name", REGIONAL)
def test_the_released_preset_runs_in_every_region_attack(name):
    images, labels = wrong_at_first()
    labels[1] = 255
    found = attacked(
        name, images, labels, net=normalized(), steps=3, feature_layer="model.net.features", options=RELEASED
    )
    assert (found - images).abs().amax() <= EPS + 1e-6
    assert torch.equal(found[1], images[1])
    assert found.isfinite().all()


def test_the_released_weights_are_those_of_the_method():
    """A quarter of twice the mean is half the mean."""
    images, labels = wrong_at_first()
    doubled = attacked("rp_pgd", images, labels, steps=3, options=RPOptions(inter_norm="ordered", w_inter=0.25))
    assert torch.equal(doubled, attacked("rp_pgd", images, labels, steps=3))


def test_the_released_start():
    """The red channel at 0.2 becomes the mean; one step down is projected to 0.2 + eps."""

    class Down(nn.Module):
        def forward(self, x):
            return torch.cat([x, torch.zeros_like(x)], dim=1)

    model = Normalized(Down(), [0.485], [0.229])
    images, labels = torch.full((1, 1, 2, 2), 0.2), torch.zeros(1, 2, 2, dtype=torch.int64)
    assert model.normalize(images)[0, 0, 0, 0].item() == pytest.approx(-1.244541, abs=1e-6)
    start = released_start(model, images, Epsilon.parse(0.03))
    assert torch.allclose(start, torch.full_like(start, 0.485))
    core = AttackCore(model, options=RPOptions(norm_clamp_start=True))
    core.reset(LinfBall.around(images, 0.03), labels, start)
    spec = core.weigh(region(0, 3, RPOptions()), 1 / 3)
    assert (core.differentiate(spec) < 0).all()
    found = ATTACKS["rp_region"](
        model, images, labels, eps=0.03, steps=1, step_size=0.01, options=RPOptions(norm_clamp_start=True)
    )
    assert torch.allclose(found, torch.full_like(found, 0.23), atol=1e-6)
    with pytest.raises(ValueError, match="needs a model of class Normalized"):
        released_start(Down(), images, Epsilon.parse(0.03))


def test_options_are_for_region_attacks():
    images, labels = scene(1)
    with pytest.raises(ValueError, match="PGD takes no options"):
        attacked("pgd", images, labels, options=RELEASED)


@pytest.mark.parametrize(
    "wrong", [{"lambda_base": 2}, {"region_norm": "all"}, {"w_region": -1.0}, {"intra_skip": (-1,)}]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RPOptions(**wrong)


# -- arguments -------------------------------------------------------------------------------------------------------


@names
def test_an_attack_is_pure(name):
    images, labels = scene(2)
    net = TinyNet().train()
    before = [images.clone(), labels.clone(), *(value.clone() for value in net.state_dict().values())]
    settings = {"net": net, "random_start": True}
    first, second = (
        attacked(name, images, labels, generator=torch.Generator().manual_seed(8), **settings) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert net.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    after = [images, labels, *net.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_attack_needs_no_gradients_of_its_caller(mode):
    images, labels = scene(1)
    with mode():
        found = attacked("rp_pgd", images.clone(), labels.clone(), steps=2)
    assert torch.equal(found, attacked("rp_pgd", images, labels, steps=2))


@names
@pytest.mark.parametrize("axes", [2, 3])
def test_any_range_and_number_of_axes(name, axes):
    """Images in units of their own, with a range for each image and channel, as the same ones in [0, 1]."""
    images, labels = scene(2, axes, seed=99)
    scale = torch.tensor([400.0, 3.0]).view(1, 2, *[1] * axes)
    shift = torch.tensor([-1000.0, 2.0]).view(1, 2, *[1] * axes)
    net = Normalized(trained(axes), shift.flatten().tolist(), scale.flatten().tolist())
    low, high = image_range(images * scale + shift)
    found = ATTACKS[name](
        net, (images * scale + shift).clamp(low, high), labels, eps=0.2, bounds=(low, high),
        feature_layer="model.features",
    )  # fmt: skip
    moved = (found - shift) / scale - images
    radius = 0.2 * (high - low) / scale
    assert (moved.abs() <= radius + 1e-4).all()
    assert ((found >= low) & (found <= high)).all()
    assert (moved.abs() > 0.9 * radius).float().mean() > 0.3
    assert accuracy(net, found, labels) < accuracy(trained(axes), images, labels) - 0.1


@names
def test_an_image_without_a_valid_pixel_is_returned_unchanged(name):
    images, labels = scene(2)
    labels[1] = 255
    found = attacked(name, images, labels, random_start=True)
    assert torch.equal(found[1], images[1])
    assert not torch.equal(found[0], images[0])
    assert torch.equal(attacked(name, images[1:], labels[1:]), images[1:])


def test_a_random_start_is_the_default_of_long_attacks_alone():
    images, labels = scene(1)

    def drawn(name, **settings):
        first, second = (
            attacked(name, images, labels, generator=torch.Generator().manual_seed(seed), **settings) for seed in (1, 2)
        )
        return not torch.equal(first, second)

    assert drawn("pgd", steps=10)
    assert not drawn("pgd", steps=9)
    assert drawn("pgd", steps=3, random_start=True)
    assert not drawn("pgd", steps=10, random_start=False)
    assert not drawn("bim", steps=10)


@pytest.mark.parametrize(
    ("name", "steps", "size", "share"),
    [
        ("fgsm", 1, None, 1.0),
        ("pgd", 3, None, 1 / 3),
        ("pgd", 10, None, 0.125),
        ("pgd", 4, None, 0.25),
        ("rp_pgd", 3, None, 1 / 3),
        ("rp_pgd", 10, None, 0.125),
        ("rp_pgd_pp", 40, None, 0.125),
        ("rp_global", 10, None, 0.125),
        ("pgd", 10, "2/255", 2 / 255 / EPS),
    ],
)
def test_step_sizes(name, steps, size, share):
    assert ATTACKS[name].step_share(Epsilon.parse(EPS), steps, size) == pytest.approx(share)


def test_a_default_step_is_at_most_eps():
    assert ATTACKS["pgd"].step_share(Epsilon.parse("2/255"), 10) == 1


def test_momentum_and_step_size_change_the_perturbation():
    images, labels = scene(1)
    first, second = (attacked("pgd", images, labels, steps=2, step_size=size) for size in ("2/255", 0.02))
    assert not torch.equal(first, second)
    assert (first - images).abs().amax().item() == pytest.approx(4 / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"eps": 0}, "eps is 0 but must be above 0"),
        ({"eps": 8}, "8 grey levels are 8/255"),
        ({"steps": 0}, "steps is 0 but must be"),
        ({"steps": 2.5}, "steps is 2.5 but must be an integer"),
        ({"step_size": -1}, "step_size is -1 but must be above 0"),
        ({"bounds": (0.4, 0.6)}, "must lie within bounds"),
        ({"feature_layer": "none"}, "no such module"),
        ({"ignore_index": 2, "labels": 9}, r"labels have values \[9\]"),
    ],
)
def test_wrong_arguments_are_refused_by_name(wrong, match):
    images, labels = scene(1)
    wrong = dict(wrong)
    if "labels" in wrong:
        labels[0, 0, 0] = wrong.pop("labels")
    with pytest.raises(ValueError, match=match):
        attacked("pgd", images, labels, **wrong)


def test_rp_pgd_without_features_is_refused():
    images, labels = scene(1)
    with pytest.raises(ValueError, match="give feature_layer"):
        attacked("rp_pgd", images, labels, feature_layer=None)


def test_a_network_of_nan_is_refused():
    net = TinyNet()
    with torch.no_grad():
        net.head.bias[0] = torch.nan
    images, labels = scene(1)
    with pytest.raises(ValueError, match="not finite after 0 step"):
        attacked("pgd", images, labels, net=net)


@pytest.mark.parametrize("name", ["pgd", "cospgd", "mi_fgsm", "rp_pgd_pp"])
def test_the_host_does_not_wait_for_a_step(name, police):
    images, labels = (x.to("cuda") for x in scene(2))
    net, waits = TinyNet().to("cuda"), []
    for steps in (1, 2, 5):
        with police.count() as counted:
            attacked(name, images, labels, net=net, steps=steps, random_start=False)
        waits.append(counted.total)
    assert waits[1] == waits[2] <= waits[0], counted.report()


TABLE = {
    "fgsm": (1, 1, 1, 1, 1, 0, None, None, None),
    "bim": (1, 1, 1, 1, 1, 0, None, None, None),
    "pgd": (1, 1, 1, 1, 1, 0, None, None, None),
    "mi_fgsm": (1, 1, 1, 1, 1, 0, None, None, None),
    "js": (1, 1, 1, 1, 1, 0, None, None, None),
    "cw_linf": (1, 1, 1, 1, 1, 0, None, None, None),
    "segpgd": (0.75, 0.25, 0.75, 0.25, 0.75, 0, None, None, None),
    "cospgd": (1, 1, 1, 1, 1, 0, 1, None, None),
    "masked_ce": (1, 0, 1, 0, 1, 0, None, None, None),
    "rp_region": (0.3125, 0.125, 0.125, 0.0625, 0.0625, 1, None, None, None),
    "rp_pgd": (0.3125, 0.125, 0.125, 0.0625, 0.0625, 1, None, 0.5, None),
    "rp_pgd_pp": (0.3125, 0.125, 0.125, 0.0625, 0.0625, 1, None, 0.5, 0.25),
    "rp_global": (0.3125, 0.125, 0.125, 0.0625, 0.0625, 0, None, None, None),
}
"""The third of four steps: groups, region mean, exponent of the confidence, both terms; regions by a half."""


def test_the_schedules_are_the_table_of_the_page():
    assert TABLE.keys() == ATTACKS.keys()
    for name, numbers in TABLE.items():
        found = astuple(ATTACKS[name].schedule(2, 4, RPOptions()))
        assert found == pytest.approx((*numbers, None)), name  # none has a Dice term


def test_a_network_of_the_package_is_attacked_through_its_lowest_level():
    """The features of 32 x 32 pixels are one position, which all of a class's pixels share."""
    torch.manual_seed(0)
    net = UNet(2, 3, init_channels=4)
    images, labels = scene(2, side=32)
    found = attacked("rp_pgd_pp", images, labels, net=net, steps=2, feature_layer="down.4")
    assert mean_loss(net.eval(), found, labels) > mean_loss(net, images, labels)


def test_schedules_say_what_is_computed():
    assert ATTACKS["rp_region"].schedule(0, 3, RPOptions()).inter is None
    weighting = ATTACKS["rp_pgd_pp"].schedule(0, 3, RPOptions())
    assert (weighting.inter, weighting.intra, weighting.region_mean) == (0.5, 0.25, 1.0)
    assert replace(weighting, inter=None, intra=None) == ATTACKS["rp_region"].schedule(0, 3, RPOptions())


@names
def test_who_watches_sees_the_state_before_each_step_and_changes_nothing(name):
    images, labels = scene(2, seed=5)
    seen = []

    def watch(core):
        seen.append((int(core.backwards[0]), core.adversarial.detach().clone(), core.regions.clone()))

    steps = 1 if ATTACKS[name].single else 3
    found = attacked(name, images, labels, steps=steps, watch=watch)
    assert [backwards for backwards, *_ in seen] == list(range(steps))
    assert torch.equal(seen[0][1], images)
    assert all(not torch.equal(image, found) for _, image, _ in seen)
    assert torch.equal(found, attacked(name, images, labels, steps=steps))
