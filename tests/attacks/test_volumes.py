"""Attacks on 3-D patches in units of their own, by Dice (docs/seat.md, Method 16)."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from attack_toys import scene, trained
from segarena.attacks.apgd import OBJECTIVES, ONE_RADIUS, SEA_LOSSES_V1, apgd, sea
from segarena.attacks.budget import Epsilon, LinfBall, image_range
from segarena.attacks.core import AttackCore, StepSpec
from segarena.attacks.dag import dag
from segarena.attacks.fab import fab
from segarena.attacks.losses import confidence, cross_entropy, dlr, jensen_shannon, spherical
from segarena.attacks.methods import ATTACKS
from segarena.attacks.named import FAMILIES, PRESETS, named_attack, preset
from segarena.attacks.options import RPOptions
from segarena.attacks.reach import measure
from segarena.attacks.regions import Weighting, pixel_weights, start_regions
from segarena.attacks.restarts import LOSSES, pgd_restarts, trades
from segarena.attacks.square import square, window_sides
from segarena.attacks.vafa import vafa
from segarena.common.overlap import class_counts, dice_batch
from segarena.evaluation.robustness import robustness_report
from segarena.rewards.lipschitz import magnitude, relative_magnitude
from segarena.segmenters.dice_ce import dice_ce_of_images, kl_divergence
from torch import nn

EPS = Epsilon.parse("8/255")


class Linear(nn.Module):
    """Logits (0, 2 x)."""

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), 2 * x], dim=1)


def four_voxels():
    return torch.tensor([0.5, -1, 0, 1.5]).view(1, 1, 1, 1, 4), torch.tensor([1, 0, 1, 0]).view(1, 1, 1, 4)


def begun(net, images, labels, eps="8/255"):
    core = AttackCore(net)
    core.reset(LinfBall.around(images, Epsilon.parse(eps).value, image_range(images)), labels)
    return core


def dice_of(net, images, labels, ignore_index=255):
    with torch.no_grad():
        logits = net(images)
    return dice_batch(class_counts(logits.argmax(dim=1), labels, logits.shape[1], ignore_index))


# -- a linear victim ---------------------------------------------------------------------------------------------------

WALKS = {
    0.5: ((1.045481, 0.920359), (1.063323, 0.942249), (1.082034, 0.964632), (1.082034, 0.964632)),
    0.25: ((1.045481, None), (1.054295, None), (1.063323, None), (1.072569, None), (1.082034, None)),
    1.0: ((1.045481, 0.920359), (1.082034, 0.964632), (1.082034, 0.964632)),
}
"""Step size as a share of the radius: loss and L1 norm of the gradient at each image that is reached."""


@pytest.mark.parametrize("share", WALKS)
def test_steps_on_a_linear_victim_have_their_known_losses_and_gradients(share):
    core = begun(Linear(), *four_voxels())
    assert core.ball.radius.item() == pytest.approx(0.0784314, abs=1e-7)
    for number, (loss, norm) in enumerate(WALKS[share]):
        assert core.losses.mean().item() == pytest.approx(loss, abs=1e-6)
        core.step(core.weigh(Weighting(), share))
        assert core.adversarial[..., 3].item() == 1.5  # at the highest intensity already
        if norm is not None:
            assert magnitude(core.gradient).item() == pytest.approx(norm, abs=1e-6)
        if number == 0:
            found = relative_magnitude(core.gradient, *image_range(core.images))
            assert found.item() == pytest.approx(2.300898, abs=1e-6)


def test_voxels_at_a_bound_move_inwards_alone():
    core = begun(Linear(), *four_voxels())
    changes = []
    for _ in range(3):
        core.step(core.weigh(Weighting(), 0.5))
        changes.append((core.adversarial - core.images).flatten().tolist())
    assert changes[0] == pytest.approx([-0.039216, 0.039216, -0.039216, 0], abs=1e-6)
    assert changes[1] == pytest.approx([-0.078431, 0.078431, -0.078431, 0], abs=1e-6)
    assert changes[2] == pytest.approx(changes[1], abs=1e-7)


def test_pgd_of_four_quarter_steps_gains_its_known_loss():
    images, labels = four_voxels()
    found = ATTACKS["pgd"](
        Linear(),
        images,
        labels,
        eps="8/255",
        steps=4,
        step_size="2/255",
        random_start=False,
        bounds=image_range(images),
    )
    gain = F.cross_entropy(Linear()(found), labels) - F.cross_entropy(Linear()(images), labels)
    assert gain.item() - 4 * 0.02 == pytest.approx(-0.043447, abs=1e-6)


def test_the_dice_term_is_that_of_the_training_loss():
    images, labels = four_voxels()
    core = begun(Linear(), images, labels)
    spec = core.weigh(Weighting(dice=1.0), 1.0)
    x = images.clone().requires_grad_()
    loss = dice_ce_of_images(Linear()(x), labels)
    (expected,) = torch.autograd.grad(loss.sum(), x)
    assert torch.allclose(core.differentiate(spec), expected, atol=1e-7)
    assert sum(core.terms.values()).item() == pytest.approx(loss.item()) == pytest.approx(1.4732744, abs=1e-6)
    assert magnitude(core.gradient).item() == pytest.approx(1.2566938, abs=1e-6)


def test_the_dice_term_alone_reaches_the_image_and_what_a_step_raises_is_the_loss_of_dice():
    images, labels = scene(3, 3, seed=40)
    labels[0, :2] = 255
    for weight in (1.0, -1.0):
        core = begun(trained(3), images, labels, "2/255")
        nothing = torch.zeros(labels.shape)
        core.step(StepSpec(nothing, 0.5, dice=torch.tensor([weight, weight, 0.0])))
        before = core.terms["dice"][:2].clone()
        assert (core.gradient[:2].flatten(1) != 0).any(dim=1).all()
        assert (core.gradient[2] == 0).all()
        core.differentiate(StepSpec(nothing, 0.5, dice=weight))
        assert (core.terms["dice"][:2] > before).all()  # weight x loss


def test_new_attacks_among_others_keep_the_graphs_of_both():
    images, labels = scene(3, 3, seed=41)
    core, other = (begun(trained(3), images, labels) for _ in range(2))
    ball = LinfBall.around(images[1:2] * 0.9, EPS.value, image_range(images[1:2] * 0.9))
    core.restart(torch.tensor([1]), ball, labels[1:2], ball.images)
    alone = begun(trained(3), images[1:2] * 0.9, labels[1:2])
    found = core.differentiate(core.weigh(Weighting(dice=1.0), 1.0))
    expected = other.differentiate(other.weigh(Weighting(dice=1.0), 1.0))
    assert torch.allclose(found[[0, 2]], expected[[0, 2]], atol=1e-6)
    assert torch.allclose(found[1:2], alone.differentiate(alone.weigh(Weighting(dice=1.0), 1.0)), atol=1e-6)


# -- losses ------------------------------------------------------------------------------------------------------------


def test_dlr_has_its_known_values():
    logits = torch.tensor([[3, 1, 0.5], [0.2, 2, 1]]).T.view(1, 3, 1, 1, 2)
    labels = torch.zeros(1, 1, 1, 2, dtype=torch.int64)
    found = dlr(logits, labels)
    assert found.flatten().tolist() == pytest.approx([-0.8, 1.0], abs=1e-6)
    assert found.mean().item() == pytest.approx(0.1, abs=1e-6)
    assert torch.allclose(dlr(7 * logits, labels), found, atol=1e-6)
    with pytest.raises(ValueError, match="needs at least 3 classes but there are 2"):
        dlr(logits[:, :2], labels)


def test_the_losses_of_sea_and_their_weights_have_their_known_values():
    logits, labels = torch.tensor([[2.0, 0], [0, 1]]).T.view(1, 2, 1, 1, 2), torch.zeros(1, 1, 1, 2, dtype=torch.int64)
    losses, right = cross_entropy(logits, labels), logits.argmax(dim=1) == labels
    regions, sure = start_regions(right, torch.ones_like(right)), confidence(logits, labels)

    def weighed(weighting, losses=losses):
        return (pixel_weights(regions, right, weighting, confidence=sure) * losses).sum().item()

    assert losses.flatten().tolist() == pytest.approx([0.1269280, 1.3132616], abs=1e-6)
    assert weighed(OBJECTIVES["masked_ce"].schedule(0, 1, RPOptions())) == pytest.approx(0.0634640, abs=1e-6)
    found = [weighed(ATTACKS["segpgd"].schedule(t, 2, RPOptions())) for t in (0, 1, 2)]
    assert found == pytest.approx([0.0634640, 0.2117557, 0.3600475], abs=1e-6)
    assert jensen_shannon(logits, labels).flatten().tolist() == pytest.approx([0.0432026, 0.3654318], abs=1e-6)
    assert jensen_shannon(logits, labels).mean().item() == pytest.approx(0.2043172, abs=1e-6)
    spheres = OBJECTIVES["masked_spherical"].schedule(0, 1, RPOptions())
    assert weighed(spheres, spherical(logits, labels)) == pytest.approx(-0.5, abs=1e-6)
    assert sure.flatten().tolist() == pytest.approx([0.9909661, 0.3452578], abs=1e-6)
    assert weighed(ATTACKS["cospgd"].schedule(0, 1, RPOptions())) == pytest.approx(0.2895976, abs=1e-6)


def test_measures_are_accuracy_and_dice():
    images, labels = scene(3, 3, seed=42)
    labels[0, :3], labels[2] = 255, 255
    core = begun(trained(3), images, labels)
    assert torch.allclose(measure(core, "dice"), dice_of(trained(3), images, labels))
    assert measure(core, "dice")[2] == 1
    assert torch.equal(measure(core, "accuracy"), core.accuracy())


def test_windows_are_cubes_that_are_cut_by_short_axes():
    for share, side, sides in ((0.8, 34, [32, 34, 32]), (0.4, 27, [27] * 3), (0.2, 21, [21] * 3)):
        assert window_sides(share, (32, 48, 32)) == sides
        assert max(window_sides(share, (32, 48, 32))) == side
    for share, side in ((0.8, 136), (0.4, 108), (0.2, 86)):
        assert window_sides(share, (256, 256, 48)) == [side, side, 48]
    assert window_sides(1e-6, (5, 5, 5)) == [1, 1, 1]


# -- attacks by Dice ---------------------------------------------------------------------------------------------------

SHORT = {
    "square_by_dice": 60,
    "sea_by_dice": 10,
    "apgd_ce_by_dice": 10,
    "apgd_dlr_by_dice": 10,
    "apgd_dice_ce_by_dice": 10,
}
BY_DICE = [name for name in FAMILIES if name.startswith("seat_") or name.endswith("_by_dice")]
volumes = pytest.mark.parametrize("axes", [2, 3])


def attacked(name, net, images, labels, **settings):
    steps = SHORT.get(name, 5)
    settings = {"eps": EPS, "bounds": image_range(images), "generator": torch.Generator().manual_seed(0), **settings}
    return named_attack(f"{name}_{steps}")(net, images, labels, **settings)


@volumes
@pytest.mark.parametrize("name", [*BY_DICE, "trades", "apgd_dlr", "apgd_dice_ce", "fab", "vafa_q20"])
def test_each_attack_by_dice_keeps_its_contract(name, axes):
    """Inside the ball of each patch's own range; constant and ignored images as they are; images alone."""
    images, labels = scene(4, axes, seed=43)
    images = 5 * images - 2
    images[1] = 0.7
    labels[2] = 255
    labels[0, :2] = 255
    net = Units(trained(axes))
    found = attacked(name, net, images, labels)
    free = named_attack(name).eps is not None
    ball = LinfBall.around(images, 1 if free else EPS.value, image_range(images))
    assert ((found - ball.project(found)).abs() <= 1e-6).all()
    assert torch.equal(found[1:3], images[1:3])
    assert not torch.equal(found[0], images[0])
    other, others = images.clone(), labels.clone()
    other[1:], others[1:] = (x.flip(0) for x in (images[1:], labels[1:]))
    again = attacked(name, net, other, others)
    assert torch.allclose(again[0], found[0], atol=1e-4)
    if name.startswith(("seat_pgd", "seat_apgd", "pgd", "apgd", "vafa")):
        assert (dice_of(net, found, labels)[[0, 3]] < dice_of(net, images, labels)[[0, 3]]).all()


class Units(nn.Module):
    """The toy victim, for images in units of their own."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x + 2) / 5)


@pytest.mark.parametrize("loss", LOSSES)
def test_restarts_and_steps_never_make_an_attack_weaker(loss):
    images, labels = scene(4, 3, seed=44)
    common = {"eps": "16/255", "loss": loss, "bounds": image_range(images)}

    def left(**settings):
        generator = torch.Generator().manual_seed(5)
        found = pgd_restarts(trained(3), images, labels, generator=generator, **common, **settings)
        return dice_of(trained(3), found, labels)

    one, several = left(restarts=1, steps=3), left(restarts=4, steps=3)
    assert (several <= one + 1e-6).all()
    assert several.mean() < dice_of(trained(3), images, labels).mean() - 0.05


@pytest.mark.parametrize("name", ["dice_ce", "ce"])
def test_restarts_of_apgd_keep_the_lowest_dice(name):
    images, labels = scene(4, 3, seed=45)
    common = {"eps": "6/255", "loss": name, "steps": 8, "radii": ONE_RADIUS, "bounds": image_range(images)}

    def left(keep, restarts):
        generator = torch.Generator().manual_seed(5)
        found = apgd(trained(3), images, labels, generator=generator, keep=keep, restarts=restarts, **common)
        return dice_of(trained(3), found, labels)

    one = left("dice", 1)
    assert (left("dice", 3) <= one + 1e-6).all()
    assert (one <= left("accuracy", 1) + 1e-6).all()


def test_where_the_background_outweighs_all_the_dice_term_takes_more_of_the_foreground():
    images, labels = scene(6, 3, side=15, seed=46)
    left = {}
    for loss in ("ce", "dice_ce"):
        generator = torch.Generator().manual_seed(1)
        found = apgd(
            trained(3), images, labels, eps="6/255", loss=loss, steps=15, radii=ONE_RADIUS, keep="dice",
            bounds=image_range(images), generator=generator,
        )  # fmt: skip
        left[loss] = dice_of(trained(3), found, labels).mean()
    assert left["dice_ce"] < left["ce"]


def test_a_square_search_by_dice_asks_as_often_as_it_says_and_never_raises_dice():
    images, labels = scene(3, 3, seed=47)
    asked = []

    class Asked(nn.Module):
        def forward(self, x):
            asked.append(x.requires_grad)
            return trained(3)(x)

    found = square(
        Asked(), images, labels, eps=0.1, steps=80, objective="dice", generator=torch.Generator().manual_seed(2)
    )
    assert len(asked) == 82
    before, after = dice_of(trained(3), images, labels), dice_of(trained(3), found, labels)
    assert (after <= before).all()
    assert after.mean() < before.mean() - 0.02


def test_the_released_square_begins_with_stripes_of_one_axis_and_never_shrinks_its_windows(monkeypatch):
    images, labels = four_voxels()[0].expand(2, 1, 4, 4, 4).clone(), four_voxels()[1].expand(2, 4, 4, 4)
    seen, shares = [], []

    class Watching(Linear):
        def forward(self, x):
            seen.append(x - images)
            return super().forward(x)

    def sides(share, spatial):
        shares.append(share)
        return window_sides(share, spatial)

    monkeypatch.setattr("segarena.attacks.square.window_sides", sides)
    for name in ("seat_square", "square_by_dice_5"):
        named_attack(name)(Watching(), images, labels, eps=EPS, bounds=(-2.0, 2.0), generator=torch.Generator())
    assert shares[:5] == [0.8] * 5
    assert shares[5:] == [0.8 / 2**halved for halved in (0, 6, 7, 8, 9)]
    stripes = seen[1]
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes))
    for axis in (3, 4):
        assert not torch.equal(stripes, stripes.narrow(axis, 0, 1).expand_as(stripes))
    torch.testing.assert_close(stripes.abs(), torch.full_like(stripes, 4 * EPS.value))


def test_rog_has_dlr_where_there_are_three_classes():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 6, 6, 6, generator=generator)
    left = {}
    for classes in (2, 3):
        model, labels = (
            nn.Conv3d(1, classes, 3, padding=1),
            torch.randint(0, classes, (2, 6, 6, 6), generator=generator),
        )
        report = robustness_report(
            model, images, labels, eps="8/255", attacks="rog", bounds="image", progress=False, sanity=False
        )
        left[classes] = (report.left_out, {one.attack for one in report.results})
    four = {"clean", "seat_apgd", "seat_pgd", "fab_5", "seat_square"}
    assert left == {2: (["seat_apgd_dlr"], four), 3: ([], four | {"seat_apgd_dlr"})}
    with pytest.raises(ValueError, match="'seat_apgd_dlr' needs three_classes: give it, or leave it out"):
        robustness_report(
            nn.Conv3d(1, 2, 3, padding=1),
            images,
            labels.clamp(max=1),
            eps="8/255",
            attacks=["seat_apgd_dlr"],
            bounds="image",
        )


def test_trades_moves_the_prediction_and_looks_at_no_label():
    images, labels = scene(3, 3, seed=48)
    common = {"eps": 0.05, "steps": 5}
    found = trades(trained(3), images, labels, generator=torch.Generator().manual_seed(3), **common)
    blind = trades(trained(3), images, 0 * labels, generator=torch.Generator().manual_seed(3), **common)
    assert torch.equal(found, blind)
    noise = LinfBall.around(images, 0.05).random(torch.Generator().manual_seed(3))
    with torch.no_grad():
        clean, far, near = (trained(3)(x) for x in (images, found, noise))
    moved, by_noise = (kl_divergence(clean, x).flatten(1).mean(dim=1) for x in (far, near))
    assert (moved > 3 * by_noise).all()


def test_presets_of_volumes_name_what_the_protocols_run():
    assert [one.name for one in preset("seat")] == ["clean", "seat_pgd", "seat_apgd", "seat_square"]
    assert all(one.steps == 5 for one in preset("seat")[1:])
    strict = {one.family: one.steps for one in preset("strict")[1:]}
    assert strict == {
        "pgd_by_dice": 20, "apgd_ce_by_dice": 50, "apgd_dice_ce_by_dice": 50, "square_by_dice": 1000,
        "segpgd_by_dice": 20, "cospgd_by_dice": 20, "sea_by_dice": 60,
    }  # fmt: skip
    assert not {one.kind for name in ("seat", "strict") for one in preset(name)} - {"none", "white", "black"}
    assert not any(one.needs for name in ("seat", "strict") for one in preset(name))
    assert {"seat", "strict", "rog"} <= PRESETS.keys()


ALONE = {
    "fgsm": ATTACKS["fgsm"],
    "pgd": partial(ATTACKS["pgd"], random_start=False),
    "segpgd": partial(ATTACKS["segpgd"], random_start=False),
    "apgd_dice_ce": partial(apgd, loss="dice_ce", steps=6, radii=ONE_RADIUS, random_start=False, keep="dice"),
    "apgd_dlr": partial(apgd, loss="dlr", steps=6, radii=ONE_RADIUS, random_start=False),
    "sea": partial(sea, losses=SEA_LOSSES_V1, steps=6, random_start=False, keep="dice"),
    "dag": partial(dag, steps=6),
    "fab": partial(fab, steps=3, restarts=1),
    "vafa": partial(vafa, steps=4),
}
"""Attacks in which nothing is drawn."""


@volumes
@pytest.mark.parametrize("name", ALONE)
def test_an_image_alone_is_attacked_as_in_a_batch(name, axes):
    images, labels = scene(3, axes, seed=53)
    images, labels, net = images.double(), labels.clone(), copy.deepcopy(trained(axes)).double()
    images[1] *= 0.5
    labels[2, :3] = 255
    images[0] = 0.25
    together = ALONE[name](net, images, labels, eps="8/255", bounds=image_range(images))
    assert torch.equal(together[0], images[0])
    for row in (1, 2):
        x = images[row : row + 1]
        alone = ALONE[name](net, x, labels[row : row + 1], eps="8/255", bounds=image_range(x))
        assert torch.allclose(alone, together[row : row + 1], atol=1e-6)


@pytest.mark.parametrize("name", [*sorted(ALONE.keys() - {"sea"}), "pgd_restarts", "trades", "square"])
def test_a_device_is_not_waited_for_in_a_step(name, police):
    images, labels = (x.to("cuda") for x in scene(2, 3))
    net, waits = copy.deepcopy(trained(3)).to("cuda"), []
    attacks = {"pgd_restarts": partial(pgd_restarts, restarts=1), "trades": trades}
    attacks["square"] = partial(square, objective="dice", generator=torch.Generator().manual_seed(0))
    attack = {**ALONE, **attacks}[name]
    for steps in (1, 1) if name == "fgsm" else (2, 2, 5):
        with police.count() as counted:
            attack(net, images, labels, eps=0.05, steps=steps)
        waits.append(counted.total)
    per_step = {"square": 6, "vafa": 1}.get(name, 0)  # what is drawn on the host, and MONAI's window, are copied
    assert waits[-1] <= waits[1] + 3 * per_step, counted.report()


def test_a_report_of_volumes_runs_the_released_protocol_and_the_checks_on_frequencies():
    images, labels = scene(3, 3, seed=49)
    attacks = [*preset("seat"), named_attack("vafa_q20_3"), named_attack("fab_1"), named_attack("trades_3")]
    report = robustness_report(
        trained(3), images, labels, eps="12/255", attacks=attacks, bounds="image", sanity=False, progress=False
    )
    dice = {one.attack: report.metrics(one.attack, eps=one.eps).dice for one in report.results}
    assert dice.keys() == {one.name for one in attacks}
    assert max(dice["seat_pgd"], dice["seat_apgd"]) < dice["clean"] - 0.05
    passes = {one.attack: (one.forwards, one.backwards) for one in report.results}
    assert passes["seat_pgd"] == (30, 25)
    assert passes["seat_apgd"] == (30, 25)
    assert passes["seat_square"] == (7, 0)
    assert passes["vafa_q20_3"] == (5, 3)
    assert passes["trades_3"] == (4, 3)
    assert passes["fab_1"] == (1 + 2 * 5 * 4, 2 * 5)


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [({"loss": "js"}, "loss is 'js'"), ({"keep": "iou"}, "keep is 'iou'"), ({"restarts": 0}, "restarts is 0"),
     ({"steps": 0}, "steps is 0")],
)  # fmt: skip
def test_what_restarts_cannot_do_is_refused(settings, wrong):
    images, labels = scene(1, 3)
    with pytest.raises(ValueError, match=wrong):
        pgd_restarts(trained(3), images, labels, eps=0.1, **settings)


def test_what_apgd_and_square_cannot_do_is_refused():
    images, labels = scene(1, 3)
    with pytest.raises(ValueError, match="keep is 'iou'"):
        apgd(trained(3), images, labels, eps=0.1, keep="iou")
    with pytest.raises(ValueError, match="objective is 'ce'"):
        square(trained(3), images, labels, eps=0.1, objective="ce")
    with pytest.raises(ValueError, match="needs at least 3 classes"):
        apgd(Linear(), *four_voxels(), eps=0.1, loss="dlr", bounds=image_range(four_voxels()[0]))
