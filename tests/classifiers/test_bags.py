"""Labels of slabs and patients: how windows become a bag, and that a classifier learns from bags alone."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from segarena.classifiers import bags
from segarena.classifiers.presence import DensePresenceNet, supervision_of
from segarena.classifiers.presence_config import PresenceTrainingConfig
from segarena.classifiers.train_presence import WindowPool, bag_batch, lattice_scores, train_presence
from segarena.common.networks import save_network
from segarena.common.runs import Run
from segarena.datasets.liver.cases import LiverCase
from segarena.datasets.liver.lattice import WindowLattice
from segarena.evaluation.metrics import classification_metrics

CPU = torch.device("cpu")
FULL = (20, 16, 16)
WINDOW = (8, 8, 8)
HU_WINDOW = (-17.0, 201.0)
PATIENT = PresenceTrainingConfig(supervision="patient", volumes_per_batch=8, batches_per_epoch=2, epochs=2)
SLAB = dataclasses.replace(PATIENT, supervision="slab")
Z = torch.tensor([0.0, 0.0, 0.0, 1.0])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pooled(z, **settings):
    return bags.pool_logits(z, dataclasses.replace(PATIENT, **settings))


def toy_case(number, healthy=False):
    """Noise with a brighter block, the tumour, anywhere, or without one."""
    of_case = generator(number)
    image = torch.randint(60, 140, FULL, dtype=torch.uint8, generator=of_case)
    label = torch.ones(FULL, dtype=torch.uint8)
    x, y, z = (int(torch.randint(n - 4, (), generator=of_case)) for n in FULL)
    if not healthy:
        label[x : x + 4, y : y + 4, z : z + 4] = 2
        image[label == 2] += 110
    return LiverCase(f"toy_{number}", "phantom", image, None, label, (1.0, 1.0, 1.0), str(number), None)


def toy_cases(number, first=0):
    return [toy_case(first + n, healthy=n % 2 == 1) for n in range(number)]


def train(folder, config, cases=None, val=None):
    run = Run(folder)
    try:
        cases, val = cases or toy_cases(16), val or toy_cases(6, 100)
        return train_presence(cases, val, WINDOW, 4, config, run, CPU, 0, metrics=classification_metrics)
    finally:
        run.close()


# -- pooling -------------------------------------------------------------------------------------------------------


def test_the_soft_maximum_has_the_known_value():
    assert float(pooled(Z, sharpness=5.0)) == pytest.approx(math.log((3 + math.exp(5)) / 4) / 5)
    assert float(pooled(Z, sharpness=5.0)) == pytest.approx(0.726744, abs=1e-6)


def test_the_soft_maximum_lies_between_the_mean_and_the_maximum():
    assert float(pooled(Z.double(), sharpness=1e-6)) == pytest.approx(0.25, abs=1e-5)
    assert float(pooled(Z, sharpness=1e5)) == pytest.approx(1.0, abs=1e-4)
    values = [float(pooled(Z, sharpness=rho)) for rho in (0.1, 1.0, 5.0, 50.0)]
    assert 0.25 < values[0] < values[1] < values[2] < values[3] < 1.0


@pytest.mark.parametrize("pooling", ["logsumexp", "max", "topk"])
def test_the_order_of_the_windows_does_not_matter_and_a_shift_of_all_shifts_the_bag(pooling):
    z = torch.randn(3, 40, generator=generator(), dtype=torch.float64)
    bag = pooled(z, pooling=pooling)
    assert bag.shape == (3,)
    torch.testing.assert_close(pooled(z[:, torch.randperm(40, generator=generator())], pooling=pooling), bag)
    torch.testing.assert_close(pooled(z + 2.5, pooling=pooling), bag + 2.5)


def test_the_hard_poolings_are_the_maximum_and_the_mean_of_the_highest():
    z = torch.tensor([[3.0, 1.0, 2.0, -5.0]])
    assert pooled(z, pooling="max").tolist() == [3.0]
    assert pooled(z, pooling="topk", topk=2).tolist() == [2.5]
    assert pooled(z, pooling="topk", topk=16).tolist() == [0.25]  # fewer windows than k: all of them


def test_every_window_moves_a_soft_bag_upwards():
    z = torch.randn(2, 10, generator=generator()).requires_grad_()
    pooled(z).sum().backward()
    assert bool((z.grad > 0).all())
    torch.testing.assert_close(z.grad.sum(dim=1), torch.ones(2))


# -- bags and their labels -----------------------------------------------------------------------------------------


def test_a_patient_is_all_windows_and_a_slab_those_of_one_height():
    z = torch.arange(2.0 * 3 * 4 * 5).view(2, 3, 4, 5)
    hard = {name: dataclasses.replace(PATIENT, supervision=name, pooling="max") for name in ("patient", "slab")}
    assert torch.equal(bags.bag_logits(z, hard["patient"]), z.amax(dim=(1, 2, 3)))
    assert torch.equal(bags.bag_logits(z, hard["slab"]), z.amax(dim=(1, 2)))


@pytest.mark.parametrize("phase", [(0, 0, 0), (1, 2, 3)])
def test_a_slab_is_positive_where_one_tumour_voxel_lies_in_it(phase):
    lattice = WindowLattice(FULL, WINDOW, 4, phase)
    for z in range(FULL[2]):
        tumours = torch.zeros(3, *FULL, dtype=torch.bool)
        tumours[0, 3, 5, z] = True
        tumours[2] = True
        labels = bags.bag_labels(tumours, lattice, SLAB)
        lows = [phase[2] + 4 * n for n in range(lattice.shape[2])]
        assert labels.tolist() == [[low <= z < low + 8 for low in lows], [False] * len(lows), [True] * len(lows)]
        assert bags.bag_labels(tumours, lattice, PATIENT).tolist() == [True, False, True]
        two = dataclasses.replace(PATIENT, min_tumour_voxels=2)
        assert bags.bag_labels(tumours, lattice, two).tolist() == [False, False, True]


def test_the_loss_is_cross_entropy_in_which_both_kinds_weigh_the_same():
    logits, labels = torch.randn(8, generator=generator()), torch.tensor([1, 0, 0, 0, 1, 0, 0, 0]).bool()
    weight = bags.positive_weight(labels, "training", "patient")
    assert float(weight) == 3.0
    plain = -torch.where(labels, 3 * F.logsigmoid(logits), F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(bags.bag_loss(logits, labels, weight), plain)
    low, high = (bags.bag_loss(torch.full((8,), z), labels, weight) for z in (-0.1, 0.1))
    torch.testing.assert_close(low, high)  # with no knowledge, 0 is best


@pytest.mark.parametrize("config", [PATIENT, SLAB])
def test_the_bags_of_a_batch_belong_to_their_labels(config, monkeypatch):
    # the image is the tumour, and a window's logit says whether there is any
    cases = [dataclasses.replace(case, image=(case.label == 2).to(torch.uint8) * 255) for case in toy_cases(4)]
    pool, net = WindowPool(cases, WINDOW, 1, CPU), DensePresenceNet(HU_WINDOW, WINDOW)

    def dense_logits(volumes, lattice):
        found = torch.stack([lattice.window_sums(volume[0] > 0) > 0 for volume in volumes])
        z = found.view(len(volumes), *lattice.shape, 1).float()
        return torch.cat((-z, z), dim=-1)

    monkeypatch.setattr(net, "dense_logits", dense_logits)
    hard = dataclasses.replace(config, pooling="max")
    seen = []
    for seed in range(6):
        logits, labels = bag_batch(net, pool, 4, hard, generator(seed))
        assert not bool((logits[~labels] > 0).any())
        assert logits[logits > 0].tolist() == [2.0] * int((logits > 0).sum())  # class 1 minus class 0
        seen.append((logits > 0).float().mean())
    assert 0 < float(torch.stack(seen).mean()) < 1


# -- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PATIENT, SLAB])
def test_windows_with_tumour_are_found_from_labels_of_whole_bags(tmp_path, config):
    fast = dataclasses.replace(config, batches_per_epoch=40, learning_rate=3e-3, validation_windows=32)
    net = train(tmp_path, fast)
    pool = WindowPool(toy_cases(8, 200), WINDOW, 1, CPU)
    assert classification_metrics(*lattice_scores(net, pool, 4))["auroc"] > 0.85


def test_the_level_is_logged_and_stands_in_the_file(tmp_path):
    train(tmp_path, PATIENT)
    last = Run(tmp_path).metrics()[-1]
    assert {f"classifier/{name}_patient" for name in ("loss", "acc", "auc", "sens", "spec", "f1", "ece")} <= set(last)
    assert {"classifier/auc", "classifier/auc_lattice"} <= set(last)
    assert supervision_of(tmp_path / "presence.safetensors") == "patient"
    assert supervision_of() == "window"


@pytest.mark.parametrize(("config", "axes"), [(PATIENT, (0, 1, 2)), (SLAB, (0, 1))])
def test_where_in_its_bag_a_tumour_lies_reaches_neither_the_weights_nor_the_choice_of_them(tmp_path, config, axes):
    digests = []
    for name, moved in (("as it is", ()), ("moved", axes)):
        cases, val = (
            [dataclasses.replace(case, label=case.label.flip(moved) if moved else case.label) for case in toys]
            for toys in (toy_cases(6), toy_cases(6, 100))
        )
        still = dataclasses.replace(config, flip_probability=0.0)  # flips would move the slabs' tumours along z
        digests.append(train(tmp_path / name, still, cases, val).digest())
    assert digests[0] == digests[1]


def test_the_best_epoch_is_that_with_the_lowest_loss_of_the_validation_bags(tmp_path):
    net = train(tmp_path, dataclasses.replace(PATIENT, epochs=4))
    losses = [line["classifier/loss_patient"] for line in Run(tmp_path).metrics()]
    pool = WindowPool(toy_cases(6, 100), WINDOW, 1, CPU)
    lattice = WindowLattice(FULL, WINDOW, 4)
    with torch.no_grad():
        logits = net.dense_logits(pool.images[:, None].float() / 255, lattice)
    z = bags.bag_logits(logits[..., 1] - logits[..., 0], PATIENT)
    labels = bags.bag_labels(pool.tumours, lattice, PATIENT)
    assert float(bags.bag_loss(z, labels, torch.tensor(1.0))) == pytest.approx(min(losses), abs=1e-5)


@pytest.mark.parametrize("metadata", [{}, {"training": []}, {"training": {"supervision": ["window"]}}])
def test_a_file_that_does_not_name_its_level_is_of_an_unknown_one(tmp_path, metadata):
    save_network(tmp_path / "net.safetensors", DensePresenceNet(HU_WINDOW, WINDOW), metadata)
    assert supervision_of(tmp_path / "net.safetensors") == "unknown"


@pytest.mark.parametrize("purpose", ["training", "validation"])
def test_patients_of_one_kind_are_refused(tmp_path, purpose):
    cases = {"cases" if purpose == "training" else "val": [toy_case(number) for number in range(4)]}
    with pytest.raises(ValueError, match=f"4 of the 4 patients of the {purpose} cases hold tumour.*tumour_free"):
        train(tmp_path, PATIENT, **cases)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "paper"}, "presence.network is 'paper' but presence.batch is 'dense'.*--presence.batch windows"),
        ({"supervision": "slab", "batch": "windows"}, "supervision is 'slab' but .*--presence.batch dense"),
        ({"windows_per_batch": 40, "patients_per_batch": 3}, "windows_per_batch is 40 but must be a multiple of 6"),
        ({"input_size": (96, 96, 64)}, r"presence.input_size is \(96, 96, 64\) but .*at least 108"),
        ({"sharpness": 0.0}, "presence.sharpness is 0.0"),
        ({"topk": 0}, "presence.topk is 0"),
        ({"pooling": "mean"}, "presence.pooling is 'mean'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PresenceTrainingConfig(**settings)
