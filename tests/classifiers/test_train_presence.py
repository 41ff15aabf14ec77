"""Training the presence classifier: labels, sampling, augmentation, learning, and stopping at any moment."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from segarena.classifiers import augmentation
from segarena.classifiers import train_presence as training
from segarena.classifiers.presence import DensePresenceNet, load_presence
from segarena.classifiers.presence_config import PresenceTrainingConfig
from segarena.classifiers.train_presence import WindowPool, train_presence
from segarena.common import fitting
from segarena.common.checkpoints import latest_checkpoint, load_weights
from segarena.common.runs import Run
from segarena.datasets.liver.cases import LiverCase
from segarena.datasets.liver.lattice import WindowLattice
from segarena.evaluation.metrics import classification_metrics

CPU = torch.device("cpu")
FULL = (20, 16, 16)
WINDOW = (8, 8, 8)
HU_WINDOW = (-17.0, 201.0)
TINY = PresenceTrainingConfig(
    windows_per_batch=8, volumes_per_batch=1, batches_per_epoch=2, epochs=3, validation_windows=16
)


@pytest.fixture
def kept_often(monkeypatch):
    """A checkpoint after every epoch."""
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Convolutions this small only wait for each other on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy_case(number):
    """Noise with a brighter block, the tumour, anywhere."""
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(60, 140, FULL, dtype=torch.uint8, generator=generator)
    label = torch.ones(FULL, dtype=torch.uint8)
    x, y, z = (int(torch.randint(n - 4, (), generator=generator)) for n in FULL)
    label[x : x + 4, y : y + 4, z : z + 4] = 2
    image[label == 2] += 110
    return case_of(image, label, f"toy_{number}")


def case_of(image, label, name="case"):
    return LiverCase(
        id=name,
        origin="phantom",
        image=image,
        hu=None,
        label=label,
        spacing_mm=(1.0, 1.0, 1.0),
        digest=name,
        frame=None,
    )


def label_case(*voxels, full=FULL):
    """A case with tumour in single voxels."""
    label = torch.zeros(full, dtype=torch.uint8)
    for voxel in voxels:
        label[voxel] = 2
    return case_of(torch.zeros(full, dtype=torch.uint8), label)


def pool_of(*cases, window=WINDOW, minimum=1):
    return WindowPool(cases, window, minimum, CPU)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def train(folder, config=TINY, cases=range(4), seed=0, metrics=classification_metrics, run_type=Run):
    run = run_type(folder)
    try:
        toys = [toy_case(number) for number in cases]
        val = [toy_case(100 + number) for number in range(3)]
        return train_presence(toys, val, WINDOW, 4, config, run, CPU, seed, metrics=metrics)
    finally:
        run.close()


# -- labels and sampling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("voxel", "inside"), [((4, 4, 4), True), ((11, 11, 11), True), ((12, 4, 4), False)])
def test_a_window_is_positive_when_one_tumour_voxel_lies_in_it_and_its_upper_border_is_open(voxel, inside):
    pool = pool_of(label_case(voxel))
    labels = pool.labels(pool.tumours[0], pool.starts).view(pool.starts.shape)
    assert bool(labels[4, 4, 4]) is inside


def test_the_least_number_of_tumour_voxels_decides():
    case = label_case((5, 5, 5), (5, 5, 6), (5, 5, 15))
    for minimum, count in ((1, 7), (2, 6)):  # along z at x = y = 5: starts 0..8 see voxel 5, 6 or (8) 15
        pool = pool_of(case, minimum=minimum)
        labels = pool.labels(pool.tumours[0], pool.starts).view(pool.starts.shape)
        assert int(labels[5, 5].sum()) == count + (minimum == 1)


def test_windows_are_drawn_uniformly_from_all_valid_starts_of_their_label():
    full, window = (9, 8, 8), (4, 4, 4)
    pool = pool_of(label_case((4, 3, 5), full=full), label_case((0, 0, 0), (8, 7, 7), full=full), window=window)
    truth = torch.stack([pool.labels(tumour, pool.starts) for tumour in pool.tumours])
    number = 200_000
    case, corners, labels = pool.draw(number, generator())
    ids = pool.starts.ids(corners)  # raises where a window would leave the volume
    assert torch.equal(truth[case, ids], labels)
    assert int(labels.sum()) == number // 2
    counts = torch.zeros(truth.shape).index_put_((case, ids), torch.ones(number), accumulate=True)
    per_class = truth.sum(dim=1, keepdim=True)
    expected = number / 4 / torch.where(truth, per_class, pool.starts.size - per_class)  # half a class, half a case
    chi2 = ((counts - expected) ** 2 / expected).sum() / truth.numel()
    assert 0.8 < float(chi2) < 1.2


def test_a_case_without_tumour_gives_negatives_only_and_a_full_one_positives_only():
    everywhere = case_of(torch.zeros(FULL, dtype=torch.uint8), torch.full(FULL, 2, dtype=torch.uint8))
    pool = pool_of(label_case(), everywhere)
    case, _, labels = pool.draw(100, generator())
    assert torch.equal(case.bool(), labels)


def test_the_papers_batch_takes_a_few_patients_with_as_many_windows_of_each_label():
    everywhere = case_of(torch.zeros(FULL, dtype=torch.uint8), torch.full(FULL, 2, dtype=torch.uint8))
    pool = pool_of(label_case((4, 4, 4)), label_case((19, 15, 15)), label_case(), everywhere)
    expected = {0: 5, 1: 5, 2: 0, 3: 10}  # positive windows of ten; the third has none, the fourth no others
    truth = torch.stack([pool.labels(tumour, pool.starts) for tumour in pool.tumours])
    seen = set()
    for seed in range(20):
        case, corners, labels = pool.draw(40, generator(seed), patients=4)
        assert torch.equal(truth[case, pool.starts.ids(corners)], labels)
        for ten, of_ten in zip(case.view(4, 10), labels.view(4, 10), strict=True):
            assert len(ten.unique()) == 1
            assert int(of_ten.sum()) == expected[int(ten[0])]
        seen.add(tuple(case.view(4, 10)[:, 0].tolist()))
    assert any(len(set(patients)) < 4 for patients in seen)  # with replacement
    assert {patient for patients in seen for patient in patients} == {0, 1, 2, 3}


def test_cases_that_teach_nothing_are_refused():
    everywhere = case_of(torch.zeros(FULL, dtype=torch.uint8), torch.full(FULL, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="the classifier needs cases with tumours"):
        pool_of(label_case(), label_case())
    with pytest.raises(ValueError, match="use smaller windows"):
        pool_of(everywhere)
    with pytest.raises(ValueError, match="case has no label"):
        pool_of(dataclasses.replace(everywhere, label=None))
    with pytest.raises(ValueError, match="cases of one shape"):
        pool_of(label_case((1, 1, 1)), label_case((1, 1, 1), full=(16, 16, 16)))
    with pytest.raises(ValueError, match="no case"):
        pool_of()


@pytest.mark.parametrize("batch", [training.windows_batch, training.dense_batch])
def test_the_labels_of_a_batch_are_those_of_its_windows(batch, monkeypatch):
    # the image is the tumour: a window is positive when its crop without halo has anything in it
    cases = [toy_case(number) for number in range(4)]
    pool = pool_of(*[case_of((case.label == 2).to(torch.uint8) * 255, case.label) for case in cases])
    net = DensePresenceNet(HU_WINDOW, WINDOW)
    seen = lambda x: (x[:, :, 9:-9, 9:-9, 9:-9].amax(dim=(1, 2, 3, 4)) > 0)[:, None].expand(-1, 2)  # noqa: E731

    def dense_logits(volumes, lattice):
        at = [tuple(slice(p, p + w) for p, w in zip(corner, WINDOW, strict=True)) for corner in lattice.corners()]
        present = torch.stack([torch.stack([volume[0][window].any() for window in at]) for volume in volumes])
        return present.view(len(volumes), *lattice.shape, 1).expand(-1, -1, -1, -1, 2)

    monkeypatch.setattr(net, "forward", seen)
    monkeypatch.setattr(net, "dense_logits", dense_logits)
    config = dataclasses.replace(TINY, volumes_per_batch=2)
    for seed in range(5):
        rest = (config, generator(seed))
        logits, labels = batch(net, pool, *rest) if batch is training.windows_batch else batch(net, pool, 4, *rest)
        assert torch.equal(logits[:, 1].bool(), labels)
        assert 0 < int(labels.sum()) < len(labels)


# -- loss and augmentation -----------------------------------------------------------------------------------------


def test_the_loss_is_the_papers_where_the_classes_are_equal_and_balances_them_where_not():
    logits = torch.randn(6, 2, generator=generator())
    half = torch.tensor([0, 1, 1, 0, 0, 1]).bool()
    torch.testing.assert_close(training.balanced_cross_entropy(logits, half), F.cross_entropy(logits, half.long()))
    few = torch.tensor([0, 0, 0, 0, 0, 1]).bool()
    nll = F.cross_entropy(logits, few.long(), reduction="none")
    torch.testing.assert_close(training.balanced_cross_entropy(logits, few), nll[:5].mean() / 2 + nll[5] / 2)
    torch.testing.assert_close(
        training.balanced_cross_entropy(logits, torch.zeros(6).bool()), -logits.log_softmax(dim=1)[:, 0].mean() / 2
    )


def test_each_window_of_each_label_has_a_gradient():
    logits = torch.zeros(6, 2, requires_grad=True)
    training.balanced_cross_entropy(logits, torch.tensor([0, 1, 0, 0, 0, 0]).bool()).backward()
    assert bool((logits.grad[:, 1] * torch.tensor([1, -1, 1, 1, 1, 1]) > 0).all())


def test_flips_turn_the_axes_of_their_own_sample():
    x = torch.rand(2, 1, 3, 4, 5, generator=generator())
    flips = torch.tensor([[True, False, True], [False, False, False]])
    y = augmentation.flip_axes(x, flips)
    assert torch.equal(y[0], x[0].flip(1, 3))
    assert torch.equal(y[1], x[1])


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_flips_are_as_frequent_as_configured(probability, share):
    config = dataclasses.replace(TINY, flip_probability=probability)
    flips = augmentation.draw_flips(4000, config, generator())
    assert float(flips.float().mean()) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 0.0), (10.0, 0.0), (0.0, 0.05), (10.0, 0.05)])
def test_intensities_change_like_those_of_another_scanner(shift, scale):
    low, high = HU_WINDOW
    hu = torch.tensor([-1000.0, 30.0, 60.0, 110.0, 150.0])
    x = ((hu - low) / (high - low)).clamp(0, 1).view(1, 1, 1, 1, -1).expand(500, -1, -1, -1, -1)
    config = dataclasses.replace(TINY, hu_shift=shift, hu_scale=scale)
    y = augmentation.jitter_intensity(x, HU_WINDOW, config, generator()).flatten(1)
    assert not y[:, 0].any()  # air stays air
    read = y[:, 1:] * (high - low) + low
    a = (read[:, 3] - read[:, 0]) / (hu[4] - hu[1])
    b = read[:, 0] - a * hu[1]
    for values, middle, width in ((a, 1, scale), (b, 0, shift)):
        assert float((values - middle).abs().max()) == pytest.approx(width, rel=0.02, abs=1e-3)
    torch.testing.assert_close(read, a[:, None] * hu[1:] + b[:, None], rtol=0, atol=1e-2)


def changed(x, **settings):
    config = dataclasses.replace(TINY, **{"hu_shift": 0.0, "hu_scale": 0.0, **settings})
    return augmentation.jitter_intensity(x, HU_WINDOW, config, generator())


def test_without_settings_for_it_no_intensity_changes():
    x = torch.rand(3, 1, 6, 6, 6, generator=generator())
    torch.testing.assert_close(changed(x), x)


def test_grey_values_are_bent_in_their_order_and_by_the_same_power_everywhere():
    x = torch.linspace(0, 1, 21).view(1, 1, 1, 1, -1).expand(500, -1, -1, -1, -1)
    y = changed(x, gamma=0.5).flatten(1)
    assert bool((y.diff(dim=1) > 0).all())
    powers = y[:, 1:-1].log() / x.flatten(1)[:, 1:-1].log()
    torch.testing.assert_close(powers, powers[:, :1].expand_as(powers), rtol=1e-3, atol=1e-3)
    assert float(powers.min()) == pytest.approx(1 / 1.5, rel=0.02)
    assert float(powers.max()) == pytest.approx(1.5, rel=0.02)
    assert float(powers.log().mean()) == pytest.approx(0, abs=0.05)


def test_shading_is_smooth_and_within_its_bound():
    x = torch.full((50, 1, 16, 16, 16), 0.5)
    shading = (changed(x, bias_hu=30.0) - x) * (HU_WINDOW[1] - HU_WINDOW[0])
    assert 20 < float(shading.abs().max()) <= 30
    assert float(shading.mean()) == pytest.approx(0, abs=1)
    steps = max(float(shading.diff(dim=axis).abs().max()) for axis in (2, 3, 4))
    assert steps <= 60 / 5 + 1e-3  # from one knot to the next, five voxels on
    assert float(shading.flatten(1).std(dim=1).min()) > 3  # another in each place


def test_noise_is_as_strong_as_configured_and_differs_from_voxel_to_voxel():
    x = torch.full((200, 1, 12, 12, 12), 0.5)
    noise = (changed(x, noise_hu=20.0) - x).flatten(1) * (HU_WINDOW[1] - HU_WINDOW[0])
    strength = noise.std(dim=1)
    assert float(strength.max()) == pytest.approx(20, rel=0.1)
    assert float(strength.mean()) == pytest.approx(10, rel=0.1)
    assert float((noise[:, 1:] * noise[:, :-1]).mean()) == pytest.approx(0, abs=3)
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("settings", [{"gamma": 0.5}, {"bias_hu": 30.0}, {"noise_hu": 20.0}])
def test_air_stays_air_and_no_value_leaves_the_range(settings):
    x = torch.rand(20, 1, 8, 8, 8, generator=generator()).round(decimals=1)
    y = changed(x, **settings)
    assert not y[x == 0].any()
    assert 0 <= float(y.min()) <= float(y.max()) <= 1


# -- training ------------------------------------------------------------------------------------------------------


LEARNERS = [
    {"batch": "windows", "batches_per_epoch": 25},
    {"batch": "windows", "batches_per_epoch": 25, "patients_per_batch": 4, "schedule": "constant"},
    {"batches_per_epoch": 60},
    {"batches_per_epoch": 60, "gamma": 0.3, "bias_hu": 10.0, "noise_hu": 5.0},
]


@pytest.mark.parametrize("settings", LEARNERS)
def test_the_classifier_learns_where_the_tumour_is(tmp_path, settings):
    fast = PresenceTrainingConfig(
        windows_per_batch=16, volumes_per_batch=4, epochs=2, learning_rate=3e-3, validation_windows=64
    )
    net = train(tmp_path, dataclasses.replace(fast, **settings), cases=range(16))
    pool = pool_of(*[toy_case(200 + number) for number in range(8)])
    unseen = training.lattice_scores(net, pool, 4)
    assert classification_metrics(*unseen)["auroc"] > 0.9


def test_a_run_leaves_curves_checkpoints_and_a_classifier(tmp_path, kept_often):
    net = train(tmp_path)
    lines = Run(tmp_path).metrics()
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {f"classifier/{name}" for name in ("loss", "acc", "auc", "sens", "spec", "auc_lattice")} <= set(lines[0])
    assert (net.hu_window, net.window_size, net.training) == (HU_WINDOW, WINDOW, False)
    assert load_presence(tmp_path / "presence.safetensors").digest() == net.digest()
    assert '"supervision": "window"' in load_weights(tmp_path / "presence.safetensors")[1]["training"]
    assert latest_checkpoint(tmp_path / "checkpoints").step == 3


def test_the_best_epoch_is_returned_and_the_last_is_kept(tmp_path, kept_often):
    aucs = iter([0.5, 0.5, 0.9, 0.5, 0.7, 0.5])  # of the windows and of the lattice in turn
    net = train(tmp_path, metrics=lambda scores, labels: {"auroc": next(aucs)})
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    best = checkpoint.state["best"]
    assert (best["epoch"], best["score"], best["scalars"]["auc"]) == (2, 0.9, 0.9)
    assert all(torch.equal(value, best["weights"][name]) for name, value in net.state_dict().items())
    assert any(not torch.equal(value, best["weights"][name]) for name, value in checkpoint.weights.items())


class KilledError(Exception):
    pass


def killed_in(method, epoch):
    """A run that dies when `method` is about to do its work of an epoch."""

    class DyingRun(Run):
        pass

    def die(self, step, *rest):
        if step == epoch:
            raise KilledError
        return getattr(Run, method)(self, step, *rest)

    setattr(DyingRun, method, die)
    return DyingRun


KINDS = {
    "windows": {"batch": "windows"},
    "dense": {},
    "paper's batches": {"batch": "windows", "patients_per_batch": 2, "schedule": "constant"},
    "slabs, all augmentations": {"supervision": "slab", "gamma": 0.3, "bias_hu": 10.0, "noise_hu": 5.0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "epoch"), [("log", 1), ("save", 1), ("log", 3), ("save", 3)])
def test_a_run_killed_at_any_moment_and_resumed_ends_with_the_same_weights(tmp_path, kept_often, kind, method, epoch):
    config = dataclasses.replace(TINY, **KINDS[kind])
    whole = train(tmp_path / "whole", config)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", config, run_type=killed_in(method, epoch))
    torch.rand(3)  # the global generator must not matter
    resumed = train(tmp_path / "killed", config)
    assert resumed.digest() == whole.digest()
    last = [latest_checkpoint(tmp_path / name / "checkpoints").weights for name in ("whole", "killed")]
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())
    assert Run(tmp_path / "killed").metrics() == Run(tmp_path / "whole").metrics()


def test_the_seed_decides_and_nothing_else_does(tmp_path):
    before = torch.get_rng_state()
    digests = [train(tmp_path / str(number), seed=seed).digest() for number, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_learning_rate_falls_along_a_cosine_or_stays(tmp_path, kept_often):
    for schedule, expected in (("cosine", 0.0), ("constant", TINY.learning_rate)):
        train(tmp_path / schedule, dataclasses.replace(TINY, schedule=schedule))
        kept = latest_checkpoint(tmp_path / schedule / "checkpoints").state["optimizer"]
        assert kept["param_groups"][0]["lr"] == pytest.approx(expected, abs=1e-9)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(ValueError, match="classifier: loss is nan in epoch 1; lower the learning rate"):
        train(tmp_path, dataclasses.replace(TINY, learning_rate=1e30, batches_per_epoch=4))
    assert latest_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", "patients"),
        ("windows_per_batch", 1),
        ("epochs", 0),
        ("volumes_per_batch", 0),
        ("min_tumour_voxels", 0),
        ("flip_probability", 1.5),
        ("hu_scale", 1.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("gamma", -0.1),
        ("bias_hu", -1.0),
        ("noise_hu", float("inf")),
        ("patients_per_batch", 0),
        ("schedule", "step"),
    ],
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        PresenceTrainingConfig(**{field: value})


def test_volumes_barely_larger_than_the_window_leave_the_phase_where_it_fits():
    full = (8, 16, 9)
    case = label_case((0, 0, 0), full=full)
    pool = pool_of(case, window=WINDOW)
    net = DensePresenceNet(HU_WINDOW, WINDOW).eval()
    for seed in range(8):
        logits, labels = training.dense_batch(net, pool, 4, TINY, generator(seed))
        assert len(logits) == len(labels) == len(WindowLattice(full, WINDOW).corners()) or len(logits) == 2
