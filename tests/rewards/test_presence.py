"""The score table: looking up is scoring, only faster; what is cached is what would be computed."""

import logging
from dataclasses import replace

import pytest
import torch
from segarena.classifiers.presence import DensePresenceNet
from segarena.datasets.liver.cases import LiverCase
from segarena.datasets.liver.lattice import WindowLattice
from segarena.rewards.presence import ScoreTable, oracle_fraction

FULL = (24, 20, 16)
LATTICE = WindowLattice(FULL, (8, 8, 8))


def toy_case(number, label=True):
    generator = torch.Generator().manual_seed(number)
    tumour = torch.zeros(FULL, dtype=torch.uint8)
    tumour[4 + number : 10, 6:9, 5:11] = 2
    return LiverCase(
        id=f"toy_{number}",
        origin="phantom",
        image=torch.randint(0, 256, FULL, dtype=torch.uint8, generator=generator),
        hu=None,
        label=tumour if label else None,
        spacing_mm=(1.0, 1.0, 1.0),
        digest=f"digest {number}",
        frame=None,
    )


def toy_net(seed=0):
    torch.manual_seed(seed)
    return DensePresenceNet((-17.0, 201.0), LATTICE.window).eval().requires_grad_(False)


def plane(case, corners):
    """The score of the toy environment (docs/spars.md, Method 3)."""
    return (corners * torch.tensor([1e-3, 2e-3, 3e-3])).sum(dim=-1)


CASES = [toy_case(number) for number in range(3)]
EVERYWHERE = torch.meshgrid(torch.arange(len(CASES)), torch.arange(LATTICE.size), indexing="ij")


class Counted(DensePresenceNet):
    """Notes how many windows each call scores."""

    def __init__(self):
        super().__init__((-17.0, 201.0), LATTICE.window)
        self.load_state_dict(toy_net().state_dict())
        self.eval()
        self.volumes, self.batches = 0, []

    def score_lattice(self, volume, lattice):
        self.volumes += 1
        return super().score_lattice(volume, lattice)

    def score_windows(self, volumes, case, corners, window):
        self.batches.append(len(case))
        return super().score_windows(volumes, case, corners, window)


def test_a_dense_table_holds_the_classifiers_scores_of_every_position(tmp_path):
    net = toy_net()
    table = ScoreTable(CASES, LATTICE, net, cache_dir=tmp_path)
    for number, case in enumerate(CASES):
        expected, _ = net.score_lattice(case.image, LATTICE)
        assert torch.equal(table.scores[number], expected)
        assert torch.equal(table.volume(number), expected.view(LATTICE.shape))
    case, ids = torch.tensor([[2, 0], [1, 2]]), torch.tensor([[7, 3], [0, LATTICE.size - 1]])
    assert torch.equal(table.lookup(case, ids), table.scores[case, ids])
    assert table.cache_hit == 1


def test_a_lazy_table_equals_a_dense_one(tmp_path):
    dense, lazy = (
        ScoreTable(CASES, LATTICE, toy_net(), engine=engine, features=True, cache_dir=tmp_path)
        for engine in ("dense", "lazy")
    )
    assert bool(lazy.scores.isnan().all())
    torch.testing.assert_close(lazy.lookup(*EVERYWHERE), dense.lookup(*EVERYWHERE), rtol=0, atol=1e-5)
    rows = dense.feature_rows(*EVERYWHERE)
    assert rows.dtype == torch.float16
    assert rows.shape == (len(CASES), LATTICE.size, 128)
    torch.testing.assert_close(lazy.feature_rows(*EVERYWHERE), rows, rtol=1e-2, atol=1e-3)
    pooled = torch.stack([toy_net().score_lattice(case.image, LATTICE)[1] for case in CASES])
    assert torch.equal(rows, pooled.half())


def test_a_sliding_table_equals_a_dense_one_and_a_lazy_one_and_is_kept_apart(tmp_path):
    dense = ScoreTable(CASES, LATTICE, toy_net(), engine="dense", features=True, cache_dir=tmp_path)
    net = Counted()
    sliding = ScoreTable(CASES, LATTICE, net, engine="sliding", features=True, cache_dir=tmp_path)
    assert (net.volumes, net.batches) == (0, [LATTICE.size] * len(CASES))
    torch.testing.assert_close(sliding.scores, dense.scores, rtol=0, atol=1e-5)
    lazy = ScoreTable(CASES, LATTICE, toy_net(), engine="lazy", features=True)
    assert torch.equal(lazy.lookup(*EVERYWHERE), sliding.scores)
    assert torch.equal(lazy.feature_rows(*EVERYWHERE), sliding.feature_rows(*EVERYWHERE))
    assert sliding.cache_hit == 1
    again = ScoreTable(CASES, LATTICE, Counted(), engine="sliding", features=True, cache_dir=tmp_path)
    assert again._net.batches == []
    assert torch.equal(again.scores, sliding.scores)


def test_a_lazy_lookup_scores_each_new_position_once_and_all_of_them_in_one_batch():
    net = Counted()
    table = ScoreTable(CASES, LATTICE, net, engine="lazy")
    table.lookup(torch.tensor([0, 0, 1, 2]), torch.tensor([5, 5, 5, 9]))
    assert net.batches == [3]
    table.lookup(torch.tensor([1, 2, 2, 0]), torch.tensor([5, 9, 8, 5]))
    assert net.batches == [3, 1]
    assert table.cache_hit == 1 - 4 / 8
    assert int(table.scores.isfinite().sum()) == 4


def test_dense_is_chosen_where_one_forward_gives_a_volume(tmp_path):
    net = Counted()
    ScoreTable(CASES, LATTICE, net, cache_dir=tmp_path)
    assert (net.volumes, net.batches) == (3, [])
    between = WindowLattice(FULL, LATTICE.window, step=2)
    assert bool(ScoreTable(CASES, between, net, cache_dir=tmp_path).scores.isnan().all())
    forced = ScoreTable(CASES[:1], between, net, engine="dense", cache_dir=tmp_path)
    assert net.batches == [between.size]
    torch.testing.assert_close(
        forced.volume(0)[::2, ::2, ::2].flatten(), net.score_lattice(CASES[0].image, LATTICE)[0], rtol=0, atol=1e-5
    )


def test_the_oracle_is_the_share_of_the_tumour_inside_the_window(caplog):
    healthy = replace(CASES[0], id="healthy", label=torch.ones(FULL, dtype=torch.uint8))
    with caplog.at_level(logging.WARNING):
        table = ScoreTable([*CASES, healthy], LATTICE, "oracle_fraction")
    assert "reads the labels" in caplog.text
    for number, case in enumerate(CASES):
        tumour = case.label == 2
        plain = [
            int(tumour[tuple(slice(p, p + 8) for p in corner)].sum()) / int(tumour.sum())
            for corner in LATTICE.corners().tolist()
        ]
        torch.testing.assert_close(table.scores[number], torch.tensor(plain))
    assert not table.scores[-1].any()


def test_the_oracle_needs_labels():
    with pytest.raises(ValueError, match="toy_1 has no label"):
        ScoreTable([CASES[0], toy_case(1, label=False)], LATTICE, "oracle_fraction")


@pytest.mark.parametrize("engine", ["auto", "dense", "sliding", "lazy"])
def test_a_function_of_case_and_corners_is_a_scorer(engine):
    table = ScoreTable(CASES, LATTICE, plane, engine=engine)
    torch.testing.assert_close(table.lookup(*EVERYWHERE), plane(None, LATTICE.corners()).expand(3, -1))
    assert table.scores.dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1])
def test_a_score_outside_0_to_1_is_refused_and_the_case_named(value):
    def bad(case, corners):
        return torch.where(torch.arange(len(corners)) == 4, value if case.id == "toy_1" else 0.5, 0.5)

    with pytest.raises(ValueError, match=r"the scorer gives .* on toy_1 but scores must lie in \[0, 1\]"):
        ScoreTable(CASES, LATTICE, bad, engine="dense")


def test_the_labels_do_not_reach_a_classifiers_scores(tmp_path):
    shuffled = [replace(case, label=case.label.flip(0)) for case in CASES]
    tables = [ScoreTable(cases, LATTICE, toy_net(), cache_dir=tmp_path) for cases in (CASES, shuffled)]
    assert torch.equal(tables[0].scores, tables[1].scores)


def test_scores_are_computed_once_and_then_read_from_the_cache(tmp_path):
    first, second = Counted(), Counted()
    tables = [ScoreTable(CASES, LATTICE, net, features=True, cache_dir=tmp_path) for net in (first, second)]
    assert (first.volumes, second.volumes) == (3, 0)
    assert torch.equal(tables[0].scores, tables[1].scores)
    assert torch.equal(tables[0].feature_rows(*EVERYWHERE), tables[1].feature_rows(*EVERYWHERE))


def test_the_cache_tells_apart_whatever_changes_a_score(tmp_path):
    def misses(case=CASES[0], lattice=LATTICE, features=False, changed=False):
        net = Counted()
        if changed:
            net.head[2].bias[0] += 1e-4
        ScoreTable([case], lattice, net, features=features, engine="dense", cache_dir=tmp_path)
        return net.volumes

    with torch.no_grad():
        assert misses() == 1
        assert misses() == 0
        assert misses(changed=True) == 1
        assert misses(case=CASES[1]) == 1
        assert misses(features=True) == 1
        assert misses(lattice=WindowLattice(FULL, (12, 8, 8))) == 1
        assert misses(lattice=WindowLattice(FULL, (8, 8, 8), step=8)) == 1
        assert misses(lattice=WindowLattice(FULL, (8, 8, 8), phase=(0, 0, 2))) == 1
        assert misses(changed=True) == 0


def test_a_classifier_of_another_window_is_named(tmp_path, caplog):
    ScoreTable(CASES, WindowLattice(FULL, (12, 12, 8)), toy_net(), cache_dir=tmp_path)
    assert "trained for windows of (8, 8, 8) but scores (12, 12, 8)" in caplog.text


def test_bad_tables_say_what_is_wrong():
    with pytest.raises(ValueError, match="at least one case"):
        ScoreTable([], LATTICE, plane)
    with pytest.raises(ValueError, match=r"toy_0 is \(24, 20, 16\) but the lattice stands on \(32, 20, 16\)"):
        ScoreTable(CASES, WindowLattice((32, 20, 16), (8, 8, 8)), plane)
    with pytest.raises(ValueError, match="training mode"):
        ScoreTable(CASES, LATTICE, toy_net().train())
    with pytest.raises(ValueError, match="features come from a classifier"):
        ScoreTable(CASES, LATTICE, plane, features=True)
    with pytest.raises(ValueError, match="scorer is 'oracle' but must be"):
        ScoreTable(CASES, LATTICE, "oracle")
    with pytest.raises(ValueError, match="score_engine is 'fast' but must be"):
        ScoreTable(CASES, LATTICE, plane, engine="fast")


def test_oracle_scores_need_positions_of_the_lattice():
    with pytest.raises(ValueError, match="not on the lattice"):
        oracle_fraction(LATTICE)(CASES[0], torch.tensor([[1, 0, 0]]))
