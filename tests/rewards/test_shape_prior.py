"""Shape prior of hearts: their attributes, the auto-encoder, the correction of masks."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from segarena.common.networks import load_network, save_network
from segarena.common.overlap import class_dice
from segarena.common.runs import Run
from segarena.rewards.corrector import Corrector
from segarena.rewards.morphology import biggest_components, clean_masks, fill_holes
from segarena.rewards.shape_attributes import ATTRIBUTES, attributes
from segarena.rewards.shape_prior import (
    ARVAE,
    ShapePriorConfig,
    augment_masks,
    loss_terms,
    train_shape_prior,
    weighted,
)

SIZE = 32
SMALL = {"init_channels": 8, "latent": 8}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def hearts(number, seed=0, size=SIZE):
    """Half ellipses of LV within MYO, open at the bottom, of random place, width, height and thickness."""
    share = torch.rand(5, number, 1, 1, generator=generator(seed))
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    base, middle = 0.75 + 0.1 * share[0], 0.42 + 0.16 * share[1]
    wide, tall, wall = 0.12 + 0.08 * share[2], 0.35 + 0.15 * share[3], 0.08 + 0.05 * share[4]
    inside = lambda a, b: ((x - middle) / a) ** 2 + ((y - base) / b) ** 2 < 1  # noqa: E731
    masks = torch.where(inside(wide, tall), 1, torch.where(inside(wide + wall, tall + wall), 2, 0))
    return torch.where(y <= base, masks, 0).byte()


def new_prior(seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ARVAE((SIZE, SIZE), **SMALL | settings).eval()


def train(folder, seed=0, number=48, **settings):
    config = ShapePriorConfig(**SMALL | {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3} | settings)
    run = Run(folder)
    try:
        return train_shape_prior(hearts(number), hearts(16, seed=1), config, run, seed)
    finally:
        run.close()


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return train(tmp_path_factory.mktemp("prior"), epochs=25, number=96, learning_rate=5e-3)


# -- network -------------------------------------------------------------------------------------------------------


def test_the_networks_size_is_the_papers():
    net = ARVAE()
    encoder = sum(p.numel() for part in (net.encoder, net.mu, net.logvar) for p in part.parameters())
    assert encoder == 2_903_456
    assert sum(p.numel() for p in net.parameters()) - encoder == 2_290_563


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_masks_of_any_multiple_of_32_go_through(size):
    net = ARVAE(size, **SMALL).eval()
    masks = torch.randint(3, (3, *size), dtype=torch.uint8)
    mu, logvar = net.encode(masks)
    assert mu.shape == logvar.shape == (3, 8)
    assert net.decode(mu).shape == (3, 3, *size)
    assert net.masks(mu).shape == masks.shape


@pytest.mark.parametrize("settings", [{"size": (48, 64)}, {"size": (0, 32)}, {"latent": 6}, {"init_channels": 0}])
def test_sizes_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=r"multiples of 32|at least 7"):
        ARVAE(**{"size": (SIZE, SIZE)} | settings)


def test_a_prior_comes_back_from_its_file(tmp_path):
    net, path = new_prior(), tmp_path / "prior.safetensors"
    save_network(path, net)
    loaded = load_network(path, ARVAE)
    assert torch.equal(loaded.encode(hearts(2))[0], net.encode(hearts(2))[0])
    assert (loaded.size, loaded.training) == ((SIZE, SIZE), False)


# -- attributes ----------------------------------------------------------------------------------------------------


def attribute(masks, name):
    return attributes(masks)[:, ATTRIBUTES.index(name)]


def test_the_measures_of_a_box_are_known():
    mask = torch.zeros(1, 40, 60, dtype=torch.uint8)
    mask[0, 5:35, 20:34] = 2
    mask[0, 10:35, 24:30] = 1  # 25 x 6
    diagonal = math.hypot(40, 60)
    expected = {
        "lv_area": 150 / 2400,
        "lv_base_width": 6 / diagonal,
        "lv_length": 25 / diagonal,
        "lv_orientation": 0,
        "myo_area": (30 * 14 - 150) / 2400,
        "epi_center_x": 26.5 / 60,
        "epi_center_y": 19.5 / 40,
    }
    assert tuple(expected) == ATTRIBUTES
    torch.testing.assert_close(attributes(mask)[0], torch.tensor(list(expected.values())), atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [-40, -10, 10, 40])
def test_the_orientation_is_the_angle_of_the_long_axis(degrees):
    y, x = torch.meshgrid(torch.arange(128.0) - 64, torch.arange(128.0) - 64, indexing="ij")
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    along, across = cos * y + sin * x, cos * x - sin * y
    mask = ((along / 40) ** 2 + (across / 15) ** 2 < 1).byte()[None]
    assert math.degrees(attribute(mask, "lv_orientation")) == pytest.approx(degrees, abs=1)
    assert float(attribute(mask, "lv_length")) * math.hypot(128, 128) == pytest.approx(80, abs=2)


def test_the_base_is_the_lower_end():
    mask = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    mask[:, 4:28, 14:18] = 1
    mask[0, 24:28, 10:22] = 1
    mask[1, 4:8, 10:22] = 1
    wide, narrow = attribute(mask, "lv_base_width").tolist()
    assert wide == pytest.approx(12 / math.hypot(SIZE, SIZE))
    assert narrow == pytest.approx(4 / math.hypot(SIZE, SIZE))


def test_masks_without_a_structure_have_finite_measures():
    masks = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    masks[1, 3:9] = 2
    masks[2, 3:9] = 1
    found = attributes(masks)
    assert bool(found.isfinite().all())
    assert not found[0].any()
    assert float(found[1, ATTRIBUTES.index("lv_length")]) == 0


# -- loss ----------------------------------------------------------------------------------------------------------


def terms_of(net, masks):
    mu, logvar = net.encode(masks)
    z = mu + torch.randn(mu.shape, generator=generator()) * (0.5 * logvar).exp()
    return loss_terms(net.decode(z), masks, mu, logvar, z, delta=1.0)


@pytest.mark.parametrize("term", ["dice", "ce", "kl", "attribute"])
def test_each_term_of_the_loss_acts(term):
    weights = {f"{name}_weight": 0.0 for name in ("dice", "ce", "kl", "attribute")}
    net = new_prior()
    terms = terms_of(net, hearts(8))
    loss = weighted(terms, ShapePriorConfig(**weights | {f"{term}_weight": 2.0}))
    torch.testing.assert_close(loss, 2 * terms[term])
    loss.backward()
    assert bool(net.encoder[0].weight.grad.any())


def test_the_terms_have_their_known_values():
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    masks[0, 4:28, 8:24], masks[0, 8:28, 12:20] = 2, 1
    masks[1, 6:28, 8:24], masks[1, 11:28, 12:20] = 2, 1  # smaller in areas and length, lower, else equal
    sure = 50 * torch.nn.functional.one_hot(masks.long(), 3).movedim(-1, 1).float()
    mu, logvar = torch.tensor([[1.0] * 8, [0.0] * 8]), torch.zeros(2, 8)
    terms = loss_terms(sure, masks, mu, logvar, mu, 1.0)
    for name in ("dice", "ce"):
        assert float(terms[name]) == pytest.approx(0, abs=1e-5)
    assert float(terms["kl"]) == pytest.approx(0.5 * 8 / 2)
    t = attributes(masks)
    signs = torch.sign(t[0] - t[1])
    assert signs.tolist() == [1, 0, 1, 0, 1, 0, -1]
    assert float(terms["attribute"]) == pytest.approx(float((math.tanh(1) - signs).abs().sum()) / 2)
    empty = loss_terms(sure, torch.zeros_like(masks), mu, logvar, mu, 1.0)
    assert float(empty["dice"]) == pytest.approx(1)


def test_the_seven_codes_grow_with_their_attributes(prior):
    masks = hearts(64, seed=5)
    with torch.no_grad():
        z, t = prior.encode(masks)[0], attributes(masks)
    for k, name in enumerate(ATTRIBUTES):
        if float(t[:, k].std()) > 1e-3 and name != "lv_orientation":  # the hearts here all stand upright
            assert float(torch.corrcoef(torch.stack([z[:, k], t[:, k]]))[0, 1]) > 0.5, name


# -- training ------------------------------------------------------------------------------------------------------


def test_the_prior_learns_to_reconstruct_hearts(prior):
    masks = hearts(32, seed=9)
    assert float(class_dice(prior.masks(prior.encode(masks)[0]), masks, (1, 2)).mean()) > 0.8
    assert not prior.training
    assert not any(p.requires_grad for p in prior.parameters())


def test_the_seed_decides_and_nothing_else_does(tmp_path):
    weights = [train(tmp_path / str(number), seed=seed).state_dict() for number, seed in enumerate((0, 0, 1))]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert any(not torch.equal(value, weights[2][name]) for name, value in weights[0].items())
    line = Run(tmp_path / "0").metrics()[0]
    names = ("loss", "dice", "ce", "kl", "attribute", "val_dice_lv", "val_dice_myo")
    assert {f"shape_prior/{name}" for name in names} <= set(line)


def test_augmentation_is_off_by_default_and_moves_masks_when_asked():
    masks = hearts(40)
    assert augment_masks(masks, ShapePriorConfig(), generator()) is masks
    for setting, name in (
        ({"shift": 0.15}, "epi_center_x"),
        ({"shift": 0.15}, "epi_center_y"),
        ({"scale": 0.3}, "lv_area"),
    ):
        change = attribute(augment_masks(masks, ShapePriorConfig(**setting), generator()), name) - attribute(
            masks, name
        )
        assert float(change.abs().max()) > 0.01
    bars = torch.zeros(20, 64, 64, dtype=torch.uint8)
    bars[:, 16:48, 28:36] = 1
    angles = attribute(augment_masks(bars, ShapePriorConfig(rotation_deg=30.0), generator()), "lv_orientation")
    assert math.radians(20) < float(angles.abs().max()) < math.radians(31)
    wide = torch.zeros(20, 64, 128, dtype=torch.uint8)
    wide[:, 22:42, 54:74] = 1  # turned within an image that is not square, it keeps its area
    turned = augment_masks(wide, ShapePriorConfig(rotation_deg=45.0), generator())
    assert float((attribute(turned, "lv_area") / attribute(wide, "lv_area") - 1).abs().max()) < 0.05


def test_too_few_masks_and_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 masks and 2 for validation"):
        train_shape_prior(hearts(1), hearts(2), ShapePriorConfig(), Run(tmp_path), 0)
    bad = {"epochs": -1, "batch_size": 1, "latent": 6, "delta": 0.0, "kl_weight": -1.0, "learning_rate": math.inf}
    for name, value in {**bad, "scale": 1.0}.items():
        with pytest.raises(ValueError, match=rf"{name} (is )?{value}"):
            ShapePriorConfig(**{name: value})


# -- morphology ----------------------------------------------------------------------------------------------------


def plain_clean(mask):
    """The same for one mask, step by step as on the paper's page."""
    regions = {}
    for label in (2, 1):
        components, number = ndimage.label(mask == label)
        sizes = np.bincount(components.ravel(), minlength=number + 1)[1:]
        kept = components == 1 + sizes.argmax() if number else components > 0
        regions[label] = ndimage.binary_fill_holes(kept)
    out = np.zeros_like(mask)
    out[regions[2]] = 2
    out[regions[1]] = 1
    out[ndimage.binary_fill_holes(out > 0) & (out == 0)] = 2
    return out


def test_cleaning_many_masks_is_cleaning_each():
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 3, (150, 17, 23)).astype(np.uint8)
    noisy = hearts(150).numpy()
    spots = draw.random(noisy.shape) < 0.15
    noisy[spots] = draw.integers(0, 3, int(spots.sum()))
    empty = np.zeros((2, 9, 9), dtype=np.uint8)
    one = np.concatenate([empty, np.ones((1, 9, 9), dtype=np.uint8), np.full((1, 9, 9), 2, dtype=np.uint8)])
    for masks in (noise, noisy, empty, one):
        before = masks.copy()
        cleaned = clean_masks(masks)
        assert np.array_equal(masks, before)
        for mask, found in zip(masks, cleaned, strict=True):
            assert np.array_equal(found, plain_clean(mask))


def test_the_biggest_piece_stays_and_corners_do_not_join():
    region = np.zeros((1, 6, 6), dtype=bool)
    region[0, 0:2, 0:2] = region[0, 2:4, 2:5] = True  # they touch at a corner
    kept = biggest_components(region)
    assert kept.sum() == 6
    assert kept[0, 2:4, 2:5].all()


def test_a_hole_is_what_touches_no_border():
    region = np.ones((1, 5, 6), dtype=bool)
    region[0, 2, 2] = region[0, 2, 5] = False
    filled = fill_holes(region)
    assert filled[0, 2, 2]
    assert not filled[0, 2, 5]


def test_each_step_of_the_cleaning_does_its_part():
    mask = np.zeros((1, 20, 20), dtype=np.uint8)
    mask[0, 2:18, 2:18] = 2
    mask[0, 5:15, 5:15] = 1
    clean = mask.copy()
    mask[0, 0, 0] = 1  # a second piece of LV
    mask[0, 19, 19] = 2  # and of MYO
    mask[0, 8, 8] = 2  # MYO within LV: the hole is LV's
    mask[0, 10, 10] = 0  # a hole in LV
    mask[0, 3, 3] = 0  # a hole in MYO
    mask[0, 5, 6:9] = 0  # a gap between them is MYO's
    clean[0, 5, 6:9] = 2
    assert np.array_equal(clean_masks(mask), clean)


# -- corrector -----------------------------------------------------------------------------------------------------


def test_the_corrector_is_cleaning_and_then_the_priors_reconstruction(prior):
    masks = hearts(70, seed=3)
    masks[:, 0, 0] = 1
    corrected = Corrector(prior)(masks)
    assert (corrected.dtype, corrected.shape) == (torch.uint8, masks.shape)
    expected = prior.masks(prior.encode(torch.from_numpy(clean_masks(masks.numpy())))[0])
    assert float((corrected == expected).float().mean()) > 0.9999
    assert not (corrected[:, 0, 0] == 1).any()
    assert int(masks[0, 0, 0]) == 1
    assert Corrector(prior)(masks[:0]).shape == (0, SIZE, SIZE)


def test_the_corrector_gives_a_cavity_its_wall_back(prior):
    truth = hearts(32, seed=4)
    broken = truth * (truth == 1)
    before, after = (class_dice(masks, truth, (1, 2)).mean(dim=0) for masks in (broken, Corrector(prior)(broken)))
    assert before.tolist() == [1, 0]
    assert bool((after > 0.5).all())


def test_the_projection_to_the_nearest_valid_code_always_ends_valid(prior):
    train_masks, odd = hearts(40), torch.randint(3, (24, SIZE, SIZE), generator=generator(), dtype=torch.uint8)
    valid = lambda masks: (masks == 1).sum(dim=(1, 2)) > 90  # noqa: E731 (some hearts are, some are not)
    masks = torch.cat([odd, hearts(24, seed=7)])
    plain = Corrector(prior)(masks)
    projected = Corrector(prior, projection="nearest_valid", masks=train_masks, valid=valid)(masks)
    good = valid(plain)
    assert bool(good.any())
    assert not bool(good.all())
    assert torch.equal(projected[good], plain[good])
    assert bool(valid(projected).all())
    only_ends = Corrector(prior, projection="nearest_valid", masks=train_masks, valid=valid)._decoded
    on_the_way = [not (only_ends == mask).flatten(1).all(dim=1).any() for mask in projected[~good]]
    assert any(on_the_way), "the line search never stopped before its end"


def test_a_corrector_that_cannot_work_is_refused(prior):
    with pytest.raises(ValueError, match="projection is 'nearest'"):
        Corrector(prior, projection="nearest")
    with pytest.raises(ValueError, match="needs the training masks"):
        Corrector(prior, projection="nearest_valid", masks=hearts(2))
    nothing = lambda masks: torch.zeros(len(masks), dtype=torch.bool)  # noqa: E731
    with pytest.raises(ValueError, match="none of the 4 masks is valid"):
        Corrector(prior, projection="nearest_valid", masks=hearts(4), valid=nothing)
    with pytest.raises(ValueError, match=r"masks are torch.uint8 \[2, 64, 64\]"):
        Corrector(prior)(hearts(2, size=64))
    with pytest.raises(ValueError, match=r"torch\.int64"):
        Corrector(prior)(hearts(2).long())
