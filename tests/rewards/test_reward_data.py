"""Triplets made of unlabelled images: the paper's algorithm, in batches, without the paper's mistakes."""

import dataclasses
from collections import Counter

import pytest
import torch
from segarena.common.checkpoints import save_weights
from segarena.common.overlap import class_dice
from segarena.datasets.images import ImagePool
from segarena.rewards import reward_data as module
from segarena.rewards.reward_data import (
    ADAPTIVE_DICE,
    KINDS,
    Draws,
    RewardDataConfig,
    Triplets,
    add_noise,
    adjust_contrast,
    build_reward_data,
    gumbel,
    noisy_parameters,
    similarity,
)
from segarena.segmenters.unet import UNet
from torch import nn
from torch.func import functional_call

SIZE = 32
CPU = torch.device("cpu")
TINY = RewardDataConfig(batch_size=4)
NOTHING = {"swap": False, "model": False, "image": False, "corrections": False}
GREY = (20, 120, 220)


class GreyPolicy(nn.Module):
    """Labels each pixel by its grey alone: the same arithmetic for an image in any batch."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(GREY).float().view(1, 3, 1, 1) / 255)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return -20 * (x - self.centre).abs()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pool_of(number=10, seed=0):
    """Squares of LV within MYO in grey with noise; every fifth image is dark: the policy sees nothing in it."""
    draw, images = generator(seed), torch.full((number, SIZE, SIZE), GREY[0], dtype=torch.int32)
    for row, image in enumerate(images):
        y, x = torch.randint(1, 9, (2,), generator=draw).tolist()
        image[y : y + 20, x : x + 20], image[y + 5 : y + 20, x + 5 : x + 15] = GREY[2], GREY[1]
        if row % 5 == 4:
            image[:] = GREY[0]
    images = (images + torch.randint(-30, 31, images.shape, generator=draw)).clamp(0, 255).byte()
    names = [f"case{row}" for row in range(number)]
    patients = [f"patient{row // 2}" for row in range(number)]
    classes = ("background", "lv", "myo")
    return ImagePool(images[:, None], None, names, patients, {}, torch.ones(number, 2).double(), classes, "phantom")


def corrector(masks):
    """Takes the last rows away from masks whose LV begins in an odd row: they are like their correction no more."""
    odd = (masks == 1).any(dim=2).byte().argmax(dim=1) % 2 == 1
    out = masks.clone()
    out[odd, 14:] = 0
    return out


def valid(masks):
    return (masks == 1).flatten(1).sum(dim=1) > 20


def build(config=TINY, images=None, rows=None, net=None, seed=0, iteration=1, **functions):
    images = images or pool_of()
    rows = torch.arange(len(images)) if rows is None else rows
    functions = {"corrector": corrector, "valid": valid} | functions
    net = net or GreyPolicy()
    return build_reward_data(net, images, rows, functions["corrector"], functions["valid"], config, seed, iteration)


def of_kind(triplets, kind):
    return triplets.take(triplets.kind == KINDS.index(kind))


def same(a, b):
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(Triplets))


# -- the algorithm -------------------------------------------------------------------------------------------------


def plain_build(net, images, rows, config, seed, iteration):
    """docs/rl4seg.md, Method 7, image by image, one forward at a time; randomness is looked up where the batched
    version draws it."""
    found, gold, branches = [], {}, Counter()
    for first in range(0, len(rows), config.batch_size):
        batch = rows[first : first + config.batch_size].tolist()
        draw = Draws(CPU, seed, iteration, first // config.batch_size)
        logits = torch.cat([net(images.at(torch.tensor([row]))) for row in batch])
        samples = (logits + gumbel(logits, draw("sample"))).argmax(dim=1).byte()
        partners = torch.randint(len(batch), (len(batch),), generator=draw("swap")).tolist()
        golden = []
        for place, row in enumerate(batch):
            a = logits[place].argmax(dim=0).byte()
            c = corrector(a[None])[0]
            dice = []
            for label in (1, 2):
                in_a, in_c = a == label, c == label
                total = int(in_a.sum() + in_c.sum())
                dice.append(2 * int((in_a & in_c).sum()) / total if total else 1.0)
            if sum(dice) / 2 > config.sim_threshold and bool(valid(a[None])):
                branches["valid"] += 1
                gold[row] = a
                golden.append(row)
                found.append((row, "swap", a, samples[partners[place]]))
            elif bool(valid(c[None])):
                branches["corrected"] += 1
                found.append((row, "correction", c, samples[place]))
            else:
                branches["dropped"] += 1
        for number, m in enumerate(config.weight_noise):
            noisy = noisy_parameters(net, m, draw("weights", number))
            for row in golden:
                bad = functional_call(net, noisy, (images.at(torch.tensor([row])),))[0].argmax(dim=0).byte()
                found.append((row, "weights", gold[row], bad))
        for row in golden:
            x = images.images[row, 0].float() / 255
            for f in config.contrast:
                bad = net((x.mean() + f * (x - x.mean())).clamp(0, 1)[None, None])[0].argmax(dim=0).byte()
                found.append((row, "contrast", gold[row], bad))
        for number, s in enumerate(config.noise):
            noise = torch.randn(len(golden), 1, SIZE, SIZE, generator=draw("noise", number))
            for row, drawn in zip(golden, noise, strict=True):
                x = images.images[row, 0].float() / 255 + s * drawn[0]
                found.append((row, "noise", gold[row], net((x / x.max())[None, None])[0].argmax(dim=0).byte()))
    unfiltered = ("swap", "correction")
    return [t for t in found if t[1] in unfiltered or bool(t[3].any())], gold, branches


@torch.no_grad()
def test_the_batched_builder_makes_what_the_plain_algorithm_makes():
    images, net = pool_of(23), GreyPolicy()
    rows = torch.randperm(23, generator=generator(3))[:18]
    config = dataclasses.replace(TINY, weight_noise=(0.01, 0.05), contrast=(0.5, 0.8), noise=(0.1, 0.2))
    built = build(config, images, rows, net, seed=5, iteration=2)
    expected, gold, branches = plain_build(net, images, rows, config, 5, 2)
    assert min(branches.values()) > 0
    assert len(branches) == 3
    stats = built.stats
    assert (stats["n_valid"], stats["n_corrected"], stats["n_dropped"]) == (
        branches["valid"],
        branches["corrected"],
        branches["dropped"],
    )
    assert built.gold_rows.tolist() == list(gold)
    assert torch.equal(built.gold_masks, torch.stack(list(gold.values())))
    key = lambda row, kind, ref, bad: (row, kind, ref.numpy().tobytes(), bad.numpy().tobytes())  # noqa: E731
    t = built.triplets
    made = [key(int(t.images[i]), KINDS[int(t.kind[i])], t.a_ref[i], t.a_bad[i]) for i in range(len(t))]
    assert Counter(made) == Counter(key(*triplet) for triplet in expected)


def test_valid_and_like_its_correction_is_gold_and_else_a_valid_correction_counts():
    a = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    a[0, 5:25, 5:25], a[0, 10:25, 10:20] = 2, 1
    far = torch.zeros_like(a)
    far[0, 5:15, 5:25], far[0, 10:15, 10:20] = 2, 1
    images = dataclasses.replace(pool_of(1), images=torch.tensor(GREY, dtype=torch.uint8)[a.long()][:, None])
    table = [  # correction, mask valid, correction valid -> gold, corrected
        (a, True, True, 1, 0),
        (a, False, False, 0, 0),
        (far, True, True, 0, 1),
        (far, False, True, 0, 1),
        (far, True, False, 0, 0),
    ]
    for correction, mask_valid, correction_valid, gold, corrected in table:
        judge = lambda m, a=a, yes=mask_valid, c=correction_valid: torch.tensor([yes if torch.equal(m, a) else c])  # noqa: E731
        stats = build(images=images, corrector=lambda _, c=correction: c, valid=judge).stats
        assert (stats["n_valid"], stats["n_corrected"]) == (gold, corrected)
        assert stats["n_dropped"] == 1 - gold - corrected


def test_triplets_hold_the_clean_image_the_gold_mask_and_the_sampled_mask_of_the_correction():
    images = pool_of()
    built = build(images=images)
    gold = dict(zip(built.gold_rows.tolist(), built.gold_masks, strict=True))
    for kind in ("swap", "weights", "contrast", "noise"):
        part = of_kind(built.triplets, kind)
        assert len(part)
        assert all(torch.equal(ref, gold[row]) for row, ref in zip(part.images.tolist(), part.a_ref, strict=True))
    corrected = of_kind(built.triplets, "correction")
    assert not set(corrected.images.tolist()) & set(gold)
    with torch.no_grad():
        a = GreyPolicy()(images.at(corrected.images)).argmax(dim=1).byte()
    assert torch.equal(corrected.a_ref, corrector(a))
    assert not torch.equal(corrected.a_bad, a)
    assert float((corrected.a_bad == a).float().mean()) > 0.8  # a sample, not the argmax


def test_there_are_up_to_nine_triplets_per_gold_image():
    built = build()
    gold = built.stats["n_valid"]
    assert gold > 1
    counts = built.triplets.counts()
    assert [counts[kind] for kind in ("swap", "weights", "contrast", "noise")] == [gold, 4 * gold, 2 * gold, 2 * gold]
    assert built.stats["n_triplets"] == 9 * gold + counts["correction"] == len(built.triplets)
    assert built.stats["n_weights"] == counts["weights"]


@pytest.mark.parametrize(
    ("flag", "kinds"),
    [
        ("swap", {"swap"}),
        ("model", {"weights"}),
        ("image", {"contrast", "noise"}),
        ("corrections", {"correction"}),
        ("identity", {"identity"}),
        ("sampled", {"sampled"}),
        ("argmax", {"argmax"}),
    ],
)
def test_each_flag_switches_exactly_its_kinds(flag, kinds):
    alone = build(dataclasses.replace(TINY, **NOTHING | {flag: True}))
    assert {kind for kind, number in alone.triplets.counts().items() if number} == kinds
    everything = {"identity": True, "sampled": True, "argmax": True}
    full = build(dataclasses.replace(TINY, **everything)).triplets
    without = build(dataclasses.replace(TINY, **everything | {flag: False})).triplets
    rest = torch.tensor([KINDS[kind] not in kinds for kind in full.kind.tolist()])
    assert same(full.take(rest), without)  # one flag does not change the draws of another
    for kind in kinds:
        assert same(of_kind(alone.triplets, kind), of_kind(full, kind))


def test_our_own_triplets_are_good_masks_samples_of_gold_ones_and_what_was_corrected():
    built = build(dataclasses.replace(TINY, identity=True, sampled=True, argmax=True))
    identity, sampled, argmax, correction = (
        of_kind(built.triplets, kind) for kind in ("identity", "sampled", "argmax", "correction")
    )
    assert torch.equal(identity.a_ref, identity.a_bad)
    gold = torch.isin(identity.images, built.gold_rows)
    assert torch.equal(sampled.a_ref, identity.a_ref[gold])
    assert torch.equal(argmax.a_ref, identity.a_ref[~gold])
    assert torch.equal(argmax.a_ref, correction.a_ref)
    assert (argmax.a_bad != argmax.a_ref).any()
    wrong = (sampled.a_ref != sampled.a_bad).float().mean()
    assert 0 < float(wrong) < 0.3


def test_perturbations_that_leave_nothing_are_skipped_and_swaps_are_not():
    class Fragile(GreyPolicy):
        """Sees nothing as soon as the image or a weight is another."""

        def forward(self, x):
            changed = (x != (x * 255).round() / 255).any() | (self.centre != self.clean).any()
            return super().forward(x) - changed * torch.tensor([0.0, 1e6, 1e6]).view(1, 3, 1, 1)

    net = Fragile()
    net.clean = net.centre.detach().clone()
    built = build(net=net)
    assert built.stats["n_valid"] > 0
    kinds = {kind for kind, number in built.triplets.counts().items() if number}
    assert kinds == {"swap", "correction"}


def test_nothing_valid_gives_no_triplets_and_no_error():
    built = build(valid=lambda masks: torch.zeros(len(masks), dtype=torch.bool))
    assert len(built.triplets) == len(built.gold_rows) == 0
    assert built.triplets.a_ref.shape == (0, SIZE, SIZE)
    assert built.stats["n_dropped"] == built.stats["n_images"] == 10
    with pytest.raises(ValueError, match="at least one image"):
        build(rows=torch.zeros(0, dtype=torch.int64))


# -- what the paper's program got wrong ----------------------------------------------------------------------------


def test_the_policy_is_untouched_and_back_in_its_mode():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 3, init_channels=4)
    net.train()
    net.early.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    build(net=net, valid=lambda masks: torch.ones(len(masks), dtype=torch.bool), corrector=lambda masks: masks)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert not net.early.training
    assert net.head.training


def test_the_image_perturbations_see_the_clean_weights():
    images, net = pool_of(), GreyPolicy()
    built = build(images=images, net=net)
    part = of_kind(built.triplets, "contrast")
    with torch.no_grad():
        x = images.at(part.images)
        clean = {f: net(adjust_contrast(x, f)).argmax(dim=1).byte() for f in TINY.contrast}
    assert all(any(torch.equal(bad, masks[i]) for masks in clean.values()) for i, bad in enumerate(part.a_bad))


def test_the_four_weight_perturbations_have_four_directions_and_batches_their_own():
    net = UNet(1, 3, init_channels=4)
    names = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)]  # iteration, batch, perturbation
    noises = []
    for iteration, batch, number in names:
        noisy = noisy_parameters(net, 0.01, Draws(CPU, 0, iteration, batch)("weights", number))
        assert noisy.keys() == dict(net.named_parameters()).keys()
        noises.append(torch.cat([(noisy[name] - p).flatten() for name, p in net.named_parameters()]).detach())
    assert float(noises[0].std()) == pytest.approx(0.01, rel=0.02)
    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(len(names))
    assert float(correlation.abs().max()) < 0.02


def test_each_weight_perturbation_of_a_batch_has_a_direction_of_its_own(monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 3, init_channels=2)
    directions = []

    def watched(net, m, draw):
        noisy = noisy_parameters(net, m, draw)
        directions.append(torch.cat([(noisy[name] - p).detach().flatten() / m for name, p in net.named_parameters()]))
        return noisy

    monkeypatch.setattr(module, "noisy_parameters", watched)
    every = lambda masks: torch.ones(len(masks), dtype=torch.bool)  # noqa: E731
    config = dataclasses.replace(TINY, **NOTHING | {"model": True}, batch_size=10)
    build(config, net=net, valid=every, corrector=lambda masks: masks)
    assert len(directions) == len(TINY.weight_noise) == 4
    correlation = torch.corrcoef(torch.stack(directions)) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.1


def test_the_seed_decides_and_nothing_else_does():
    before = torch.get_rng_state()
    first = build()
    torch.rand(3)
    again = build()
    torch.set_rng_state(before)
    assert same(first.triplets, again.triplets)
    assert first.stats == again.stats
    for other in (build(seed=1), build(iteration=2)):
        assert torch.equal(first.gold_masks, other.gold_masks)
        assert not same(of_kind(first.triplets, "swap"), of_kind(other.triplets, "swap"))
        assert not same(of_kind(first.triplets, "noise"), of_kind(other.triplets, "noise"))


def test_the_global_generator_stays_where_it_was():
    before = torch.get_rng_state()
    build()
    assert torch.equal(torch.get_rng_state(), before)


def test_similarity_is_the_mean_of_both_classes_or_as_in_the_program_the_last():
    """docs/rl4seg.md, Method 7."""
    a = torch.zeros(1, 4, 4, dtype=torch.uint8)
    a[0, :2], a[0, 2] = 1, 2
    c = a.clone()
    c[0, 2, 3] = 0
    assert float(similarity(a, c, "mean")) == pytest.approx(0.928571, abs=1e-6)
    assert float(similarity(a, c, "last_label")) == pytest.approx(0.857143, abs=1e-6)
    images = dataclasses.replace(pool_of(1), images=torch.tensor(GREY, dtype=torch.uint8)[a.long()][:, None])
    for kind, gold in (("mean", 1), ("last_label", 0)):
        config = dataclasses.replace(TINY, similarity=kind, sim_threshold=0.9, **NOTHING)
        always = lambda masks: torch.ones(len(masks), dtype=torch.bool)  # noqa: E731
        assert build(config, images, corrector=lambda _: c, valid=always).stats["n_valid"] == gold


# -- perturbations -------------------------------------------------------------------------------------------------


def test_contrast_shrinks_towards_each_images_mean_and_stays_in_range():
    """docs/rl4seg.md, Method 7."""
    x = torch.tensor([[0.2, 0.6], [0.0, 0.0]]).view(2, 1, 1, 2)
    torch.testing.assert_close(adjust_contrast(x, 0.5)[0].flatten(), torch.tensor([0.3, 0.5]))
    torch.testing.assert_close(adjust_contrast(x, 1.0), x)
    assert not adjust_contrast(x, 0.5)[1].any()


def test_noise_is_added_and_each_image_scaled_to_its_maximum():
    x, noise = torch.tensor([0.2, 0.5]).view(2, 1, 1, 1).expand(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    noise[0, 0, 0, 0], noise[1, 0, 1, 1] = 0.3, -0.7
    y = add_noise(x, noise)
    assert y.amax(dim=(1, 2, 3)).tolist() == [1, 1]
    assert float(y[0, 0, 0, 1]) == pytest.approx(0.4)
    assert float(y[1, 0, 1, 1]) == pytest.approx(-0.4)  # not clipped at 0


def test_gumbel_noise_samples_the_softmax():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().view(1, 3, 1, 1).expand(1, 3, 200, 200)
    drawn = (logits + gumbel(logits, generator())).argmax(dim=1)
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.01, rtol=0)


@pytest.mark.parametrize(("m", "contrast", "noise"), [(0.005, 0.95, 0.01), (2.0, 0.05, 2.0)])
def test_adaptive_strength_finds_masks_that_are_wrong_but_not_absurd(m, contrast, noise):
    base = {"weight_noise": (m,), "contrast": (contrast,), "noise": (noise,)}
    config = dataclasses.replace(TINY, **NOTHING | {"model": True, "image": True}, **base)
    fixed, adaptive = (build(dataclasses.replace(config, adaptive=flag)).triplets for flag in (False, True))
    low, high = ADAPTIVE_DICE
    inside = lambda t: (lambda d: ((d >= low) & (d <= high)).sum())(class_dice(t.a_bad, t.a_ref, (1, 2)).mean(dim=1))  # noqa: E731
    assert len(adaptive) > 0
    assert int(inside(adaptive)) == len(adaptive)
    assert int(inside(adaptive)) > int(inside(fixed))


def test_adaptive_strength_leaves_good_strengths_alone_and_gives_up_on_the_impossible():
    good = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    good[:, 5:25, 5:25], good[:, 10:25, 10:20] = 2, 1
    calls = []

    def perturbed(at, scale):
        calls.append((at.tolist(), scale))
        bad = good[at].clone()
        cut = torch.tensor([4.0, 1.0, 0.0])[at] * scale  # rows: enough, too few, never
        for mask, rows in zip(bad, cut.long().tolist(), strict=True):
            mask[5 : 5 + rows] = 0
        return bad

    bad, kept = module._adapted(perturbed, good)
    assert kept.tolist() == [True, True, False]
    assert calls[0] == ([0, 1, 2], 1.0)
    assert all(0 not in at for at, _ in calls[1:])
    assert not bad[0, 5:9].any()
    assert bad[0, 9].any()


# -- triplets ------------------------------------------------------------------------------------------------------


def triplets_of(rows):
    number = len(rows)
    masks = torch.arange(number, dtype=torch.uint8).view(-1, 1, 1).expand(number, 2, 2)
    return Triplets(torch.tensor(rows), masks % 3, (masks + 1) % 3, torch.zeros(number, dtype=torch.uint8))


def test_no_patient_is_in_two_splits_and_the_shares_are_the_papers():
    patients = [f"p{row // 2}" for row in range(400)]
    triplets = triplets_of([row for row in torch.randperm(400, generator=generator()).tolist() for _ in range(3)])
    for seed in range(3):
        parts = triplets.split(patients, seed)
        names = [{patients[row] for row in part.images.tolist()} for part in parts]
        assert sum(len(part) for part in parts) == 1200
        assert [len(part) for part in names] == pytest.approx([162, 18, 20], abs=1)
        assert sum(len(part) for part in names) == len(set.union(*names)) == 200
    assert same(triplets.split(patients, 0)[1], triplets.split(patients, 0)[1])
    assert not torch.equal(triplets.split(patients, 0)[1].images, triplets.split(patients, 1)[1].images)


def test_even_seven_patients_fill_all_three_parts():
    for seed in range(100):
        parts = triplets_of(list(range(7))).split([f"p{row}" for row in range(7)], seed)
        assert all(len(part) for part in parts)


def test_later_iterations_move_no_patient():
    patients = [f"p{row}" for row in range(60)]
    first, second = triplets_of(list(range(0, 60, 2))), triplets_of(list(range(59, 0, -1)))
    before = first.split(patients, 4)
    after = Triplets.concatenate([first, second]).split(patients, 4)
    for early, late in zip(before, after, strict=True):
        assert set(early.images.tolist()) <= set(late.images.tolist())


def test_triplets_join_save_and_come_back(tmp_path):
    built = build()
    both = Triplets.concatenate([built.triplets, build(iteration=2).triplets])
    assert len(both) == 2 * len(built.triplets)
    assert same(both.take(torch.arange(len(built.triplets))), built.triplets)
    both.save(tmp_path / "t.safetensors")
    assert same(Triplets.load(tmp_path / "t.safetensors"), both)
    save_weights(tmp_path / "w.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="no triplets"):
        Triplets.load(tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Triplets.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("similarity", "last"),
        ("weight_noise", (0.0,)),
        ("contrast", (1.0,)),
        ("noise", (-0.1,)),
        ("sim_threshold", 1.5),
        ("batch_size", 0),
    ],
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is"):
        RewardDataConfig(**{field: value})
