"""What a gradient step learns from: composition of the batch, losses, schedule, and what an attack leaves alone."""

import pytest
import torch
import torch.nn.functional as F
from adversarial_toys import EPS, SIDE, config, toy_victim, toys
from segarena.agents.rp_pgd.batches import Batch, draw_epoch
from segarena.agents.rp_pgd.config import TrainingConfig
from segarena.agents.rp_pgd.trainers import Mixed, Outputs, PolySchedule, Trainer, make_optimizer, poly
from segarena.attacks.methods import ATTACKS, Attack
from segarena.attacks.regions import GROUPS
from segarena.attacks.victim import Normalized
from segarena.common.workers import Workers
from segarena.segmenters.pspnet import PSPNet


def batch_of(number):
    scenes = list(toys(number))
    return Batch(torch.stack([s.image.float() / 255 for s in scenes]), torch.stack([s.label for s in scenes]))


@pytest.fixture
def attacked(monkeypatch):
    """The images that each attack was called on."""
    calls, original = [], Attack.__call__

    def call(self, model, images, labels, **arguments):
        calls.append((self.title, images.clone(), arguments))
        return original(self, model, images, labels, **arguments)

    monkeypatch.setattr(Attack, "__call__", call)
    return calls


def test_of_five_images_two_stay_clean_and_exactly_three_are_attacked(attacked):
    """docs/rp-pgd.md, Method 23."""
    trainer, batch = Trainer(toy_victim(), config(batch_size=5)), batch_of(5)
    assert (trainer.clean, trainer.attacked) == (2, 3)
    mixed = trainer.mix(batch)
    assert torch.equal(mixed.images[:2], batch.images[:2])
    assert torch.equal(mixed.labels, batch.labels.long())
    ((_, images, _),) = attacked
    assert torch.equal(images, batch.images[2:])
    change = (mixed.images[2:] - batch.images[2:]).abs()
    assert change.flatten(1).amax(dim=1).tolist() == pytest.approx([EPS] * 3, abs=1e-6), (
        "each has moved to the ball's end"
    )


@pytest.mark.parametrize(
    ("batch_size", "ratio", "parts"),
    [(16, 0.5, (8, 8)), (5, 0.5, (2, 3)), (10, 0.9, (1, 9)), (4, 1.0, (0, 4)), (3, 0.1, (2, 1)), (10, 0.7, (3, 7))],
)
def test_the_composition_of_a_batch(batch_size, ratio, parts):
    assert TrainingConfig(batch_size=batch_size, adv_ratio=ratio).composition == parts
    assert TrainingConfig(batch_size=batch_size, adv_ratio=ratio, method="none").composition == (batch_size, 0)


def test_all_are_attacked_with_ratio_one_and_none_without_a_method(attacked):
    trainer, batch = Trainer(toy_victim(), config(batch_size=3, adv_ratio=1.0)), batch_of(3)
    assert len(trainer.mix(batch).images) == 3
    assert len(attacked[0][1]) == 3
    assert torch.equal(Trainer(toy_victim(), config(batch_size=3, method="none")).mix(batch).images, batch.images)
    assert len(attacked) == 1


def test_paired_images_stand_in_the_batch_clean_and_attacked(attacked):
    settings = config(batch_size=6, pairing="paired")
    assert settings.drawn == (3,)
    batch = batch_of(3)
    mixed = Trainer(toy_victim(), settings).mix(batch)
    assert torch.equal(mixed.images[:3], batch.images)
    assert torch.equal(attacked[0][1], batch.images)
    assert torch.equal(mixed.labels[:3], mixed.labels[3:])
    assert not torch.equal(mixed.images[3:], batch.images)


@pytest.mark.parametrize(
    ("settings", "title", "step"),
    [
        ({"method": "sat"}, "BIM", EPS / 3),
        ({"method": "sat", "steps": 5}, "BIM", EPS / 5),
        ({"method": "at", "attack": "segpgd", "step_size": 0.02}, "SegPGD", 0.02),
        ({"method": "at", "attack": "rp_pgd_pp"}, "RP-PGD++", EPS / 3),
    ],
)
def test_the_inner_attack_and_its_step_size(attacked, monkeypatch, settings, title, step):
    shares, weigh = [], Trainer.__init__.__globals__["AttackCore"].weigh

    def spy(self, weighting, step_size, momentum=None):
        shares.append(step_size)
        return weigh(self, weighting, step_size, momentum)

    monkeypatch.setattr("segarena.attacks.core.AttackCore.weigh", spy)
    Trainer(toy_victim(), config(**settings)).mix(batch_of(4))
    assert attacked[0][0] == title
    assert shares == pytest.approx([step / EPS] * settings.get("steps", 3))


def test_the_attack_leaves_running_statistics_modes_and_gradients_alone():
    victim = toy_victim().train()
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    trainer = Trainer(victim, config(method="at", attack="rp_pgd_pp"))
    first, second = (trainer.attack(*batch_of(4)) for _ in range(2))
    assert torch.equal(first, second), "dropout would change it"
    assert all(torch.equal(value, before[name]) for name, value in victim.state_dict().items())
    assert victim.model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in victim.parameters())


def test_the_update_counts_statistics_and_reaches_every_weight():
    victim = toy_victim().train()
    trainer = Trainer(victim, config())
    mixed = trainer.mix(batch_of(4))
    mean = victim.model.stem[1].running_mean.clone()
    trainer.weighted(trainer.losses(trainer.outputs(mixed.images), mixed)).backward()
    assert not torch.equal(mean, victim.model.stem[1].running_mean)
    assert all(parameter.grad.abs().sum() > 0 for parameter in victim.parameters())


def test_shared_statistics_are_those_of_the_mixed_batch_and_split_ones_of_each_half():
    images = torch.cat([batch_of(2).images, 1 - batch_of(2).images])
    norm = {}
    for bn in ("shared", "split"):
        victim = toy_victim(dropout=0.0).train()
        seen = []
        victim.model.stem[1].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        norm[bn] = Trainer(victim, config(bn=bn)).outputs(images).logits
        assert seen == ([4] if bn == "shared" else [2, 2])
    assert norm["shared"].shape == norm["split"].shape == (4, 3, SIDE, SIDE)
    assert not torch.allclose(norm["shared"], norm["split"], atol=1e-3)


def test_the_loss_is_the_mean_over_valid_pixels_of_main_and_weighted_auxiliary_logits():
    trainer = Trainer(toy_victim(), config())
    generator = torch.Generator().manual_seed(3)
    main, aux = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator)
    labels[0, :3] = 255
    losses = trainer.losses(Outputs(main, aux, None), Mixed(main, labels, None))
    expected = [F.cross_entropy(one, labels, ignore_index=255) for one in (main, aux)]
    assert losses["loss_main"].item() == pytest.approx(expected[0].item(), abs=1e-6)
    assert trainer.weighted(losses).item() == pytest.approx((expected[0] + 0.4 * expected[1]).item(), abs=1e-6)
    nothing = trainer.losses(Outputs(main, aux, None), Mixed(main, torch.full_like(labels, 255), None))
    assert [loss.item() for loss in nothing.values()] == [0.0, 0.0]


def test_region_shares_and_size_of_the_inner_attack():
    victim = toy_victim()
    trainer, batch = Trainer(victim, config(steps=2)), batch_of(4)
    adversarial = trainer.attack(batch.images, batch.labels)
    found = {name: value.item() for name, value in trainer.look().items()}
    assert sum(found[f"attack_{name}"] for name in ("true", "boundary", "false")) == pytest.approx(1)
    assert found["attack_size"] == pytest.approx(((adversarial - batch.images).abs().mean() / EPS).item())
    with torch.no_grad():
        right = (victim.eval()(batch.images).argmax(dim=1) == batch.labels)[batch.labels != 255]
    assert found["attack_false"] == pytest.approx(1 - right.float().mean().item(), abs=1e-6)
    assert found["attack_boundary"] > 0
    for step in (1, 2):
        assert sum(found[f"attack/step_{step}_{name}"] for name in GROUPS) == pytest.approx(1)
    assert found["attack/step_1_true"] == pytest.approx(right.float().mean().item(), abs=1e-6)
    assert (
        found["attack/step_1_boundary_wrong"]
        == found["attack/step_1_boundary_right"]
        == found["attack/step_1_false_right"]
        == 0
    )
    assert found["attack/step_2_true"] == pytest.approx(found["attack_true"])
    assert found["attack/step_2_boundary_wrong"] == pytest.approx(
        found["attack/step_1_true"] - found["attack/step_2_true"], abs=1e-6
    )
    trainer.forget()
    assert trainer.look() == {}


# -- DDC-AT --------------------------------------------------------------------------------------------------------


def psp(ddc_at=True, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = PSPNet(3, 3, backbone="resnet18", ddc_at=ddc_at)
    return Normalized(net, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_the_mask_of_ddc_at_is_where_the_attack_changes_what_is_predicted_of_clean_images(attacked):
    victim, batch = psp(), batch_of(4)
    trainer = Trainer(victim, TrainingConfig(method="ddc_at", eps="16/255", batch_size=4))
    mixed = trainer.mix(batch)
    ((title, images, _),) = attacked
    assert title == "BIM"
    assert torch.equal(images, batch.images), "the clean half too, for the mask"
    assert torch.equal(mixed.images[:2], batch.images[:2])
    assert not torch.equal(mixed.images[2:], batch.images[2:])
    assert (mixed.mask == 255).equal(batch.labels == 255)
    assert not mixed.mask[2:][batch.labels[2:] != 255].any(), "0 for the attacked images"
    adversarial = ATTACKS["bim"](victim, batch.images, batch.labels, eps="16/255", steps=3)
    with torch.no_grad():
        before, after = (
            victim.eval().model.training_outputs(victim.normalize(x)).logits.argmax(dim=1)
            for x in (batch.images[:2], adversarial[:2])
        )
    valid = batch.labels[:2] != 255
    assert torch.equal(mixed.mask[:2][valid], (before != after)[valid].long())
    assert mixed.mask[:2][valid].any()


def test_ddc_at_reaches_all_heads():
    victim = psp().train()
    trainer = Trainer(victim, TrainingConfig(method="ddc_at", batch_size=4))
    mixed = trainer.mix(batch_of(4))
    losses = trainer.losses(trainer.outputs(mixed.images), mixed)
    assert list(losses) == ["loss_main", "loss_aux", "loss_mask"]
    trainer.weighted(losses).backward()
    net = victim.model
    for head in (net.auxiliary_head, net.mask_head):
        assert head[-1].weight.grad.abs().sum() > 0
    assert (net.head[-1].weight.grad.abs().sum() + net.adversarial_head[-1].weight.grad.abs().sum()) > 0


# -- optimiser -----------------------------------------------------------------------------------------------------


def test_the_poly_schedule_of_hundred_steps():
    net = psp(ddc_at=False).model
    optimizer = make_optimizer(net, TrainingConfig())
    schedule = PolySchedule(optimizer, 100, 0.9)
    rates = []
    for _ in range(100):
        assert schedule.advance() == optimizer.param_groups[0]["lr"]
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert [rates[step - 1][0] for step in (1, 50, 100)] == pytest.approx([0.00990995, 0.00535887, 0.0], abs=5e-9)
    assert [heads for _, heads in rates] == pytest.approx([10 * backbone for backbone, _ in rates])
    again = PolySchedule(make_optimizer(net, TrainingConfig()), 100, 0.9)
    again.load_state_dict({"made": 49})
    assert again.advance() == pytest.approx(rates[49][0])
    assert poly(2, 10, 1.0, warmup=4) == pytest.approx(0.8 * 0.5)
    assert poly(5, 10, 1.0, warmup=4) == pytest.approx(0.5)


def test_the_stages_have_the_low_rate_and_all_else_ten_times_as_much():
    net = psp().model
    optimizer = make_optimizer(net, TrainingConfig())
    stages, heads = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert stages == {
        id(p) for layer in (net.layer0, net.layer1, net.layer2, net.layer3, net.layer4) for p in layer.parameters()
    }
    assert stages | heads == {id(p) for p in net.parameters()}
    assert not stages & heads
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1])
    assert all(group["momentum"] == 0.9 and group["weight_decay"] == 1e-4 for group in optimizer.param_groups)
    adamw = make_optimizer(toy_victim().model, TrainingConfig(optimizer="adamw", learning_rate=1e-3, weight_decay=0.01))
    assert isinstance(adamw, torch.optim.AdamW)
    assert [(group["lr"], group["weight_decay"]) for group in adamw.param_groups] == [(1e-3, 0.01)]


# -- batches -------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_each_image_once_at_most_and_the_same_to_workers_together():
    whole = draw_epoch(11, (2, 2), torch.Generator().manual_seed(5))
    rows = [row for one in whole for row in one.rows]
    assert len(whole) == 2
    assert len(rows) == len(set(rows)) == 8
    assert len({seed for one in whole for seed in one.seeds}) == 8
    assert draw_epoch(11, (2, 2), torch.Generator().manual_seed(5)) == whole
    assert draw_epoch(11, (2, 2), torch.Generator().manual_seed(6)) != whole

    class Told(Workers):
        """What rank 0 would tell."""

        def broadcast(self, value):
            return value

    shares = [draw_epoch(11, (1, 1), torch.Generator().manual_seed(5), Told(rank, 2)) for rank in (0, 1)]
    for one, first, second in zip(whole, *shares, strict=True):
        assert [first.rows[0], second.rows[0], first.rows[1], second.rows[1]] == one.rows, "clean ones stay clean"
    with pytest.raises(ValueError, match=r"a batch needs 12 images but there are 11; lower training\.batch_size"):
        draw_epoch(11, (6, 6), torch.Generator())
