"""A run with more reward data than the paper's, and with several reward networks of another kind."""

import shutil

import pytest
import torch
from rl4seg_runs import QUICK, assert_same, call, context_of, keys, merged, stages_of, trained
from segarena.agents.rl4seg import stages
from segarena.common.runs import Run
from segarena.rewards.corrector import Corrector
from segarena.rewards.error_triplets import mixed
from segarena.rewards.reward_data import KINDS, Triplets
from segarena.rewards.reward_ensemble import RewardEnsemble
from segarena.segmenters.inference import segment

CHANGES = {
    "reward_data": {
        "source_triplets": True,
        "hard_negatives": True,
        "mix_regions": 0.5,
        "argmax": True,
        "image": False,
        "weight_noise": [0.02],
    },
    "reward_net": {
        "epochs": 2,
        "levels": 2,
        "ranking": 0.5,
        "members": 2,
        "fusion": "lcb",
        "lcb_width": 0.5,
        "warm_start": True,
    },
    "ppo.epochs": 1,
    "baselines": ["policy_gradient"],
}


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """The run of CHANGES; every second target mask is gold and the others are corrected, to something else."""
    with pytest.MonkeyPatch.context() as patch:
        half_of_them(patch)
        yield trained(tmp_path_factory.mktemp("variant"), merged(QUICK, CHANGES))


def half_of_them(patch):
    patch.setattr(stages, "valid_masks", lambda masks, **_: torch.ones(len(masks), dtype=torch.bool))
    patch.setattr(Corrector, "__call__", lambda self, masks: 2 - masks)
    alike = lambda a, c, kind: (torch.arange(len(a)) + 1) % 2  # noqa: E731
    patch.setattr("segarena.rewards.reward_data.similarity", alike)


def triplets_of(run, i):
    return Triplets.load(run / f"iteration_{i}/reward_data/triplets.safetensors")


def test_source_triplets_are_of_training_images_with_their_labels_each_in_one_iteration(variant):
    context = context_of(variant)
    first, seen = len(context.target), set()
    for i in (1, 2):
        made = triplets_of(variant, i)
        of_source = made.take(made.images >= first)
        rows = of_source.images - first
        assert torch.equal(of_source.a_ref, context.source.labels[rows])
        assert not seen & set(rows.tolist())
        seen |= set(rows.tolist())
        (said,) = Run(variant / f"iteration_{i}/reward_data").metrics()
        assert said["reward_data/n_source"] == len(of_source) > 0
        assert said["reward_data/n_triplets"] == len(made)
        assert torch.equal(context.judged.images[of_source.images], context.source.images[rows])
    assert seen == set(range(len(context.source)))
    assert torch.equal(context.judged.images[:first], context.target.images)
    assert context.judged.known_labels is None


def test_hard_negatives_are_of_earlier_images_where_argmax_has_the_new_ones(variant):
    hard = [triplets_of(variant, i) for i in (1, 2)]
    first, second = (one.take(one.kind == KINDS.index("hard")) for one in hard)
    assert len(first) == 0
    context = context_of(variant)
    known = context.gold(1).join(context.gold(1, "corrected.safetensors"))
    good = {int(row): mask for row, mask in zip(known.rows, known.masks, strict=True)}
    own = segment(context.load(variant / "iteration_1/ppo"), context.target.images)
    differ = [row for row, mask in good.items() if not torch.equal(own[row], mask)]
    assert set(second.images.tolist()) == set(differ)
    assert len(differ) >= 3, "the corrected ones, at least"
    for row, ref, bad in zip(second.images.tolist(), second.a_ref, second.a_bad, strict=True):
        assert torch.equal(ref, good[row])
        assert ((bad == ref) | (bad == own[row])).all(), "the present mask, some regions put right"


def test_triplets_of_target_and_source_are_mixed_together(variant, monkeypatch):
    """Of hard negatives and argmax masks of corrected images, wrong in every pixel but LV's, some pixels are right."""
    context, asked = context_of(variant), []
    monkeypatch.setattr(
        "segarena.agents.rl4seg.triplets.mixed", lambda *arguments: asked.append(arguments) or mixed(*arguments)
    )
    with pytest.MonkeyPatch.context() as patch:
        half_of_them(patch)
        shutil.rmtree(variant / "again", ignore_errors=True)
        stages._reward_data(context, 1, Run(variant / "again"))
    ((before, probability, _),) = asked
    after = Triplets.load(variant / "again" / "triplets.safetensors")
    shutil.rmtree(variant / "again")
    assert probability == 0.5
    for where in (before.images >= len(context.target), before.images < len(context.target)):
        put_right = (after.a_bad != before.a_bad)[where]
        assert put_right.any()
        assert (after.a_bad == before.a_ref)[where][put_right].all()
    assert torch.equal(after.a_bad, triplets_of(variant, 1).a_bad), "and always the same"


def test_every_member_is_a_stage_and_ppo_is_given_their_fused_maps(variant):
    context = context_of(variant)
    assert {f"iteration_{i}/reward_net{k}" for i in (1, 2) for k in ("", "_2")} < set(stages_of(variant))
    names = {"reward_net/truth_preferred", "reward_net/truth_preferred_regions", "reward_net/ece"}
    assert all(names < keys(variant, f"iteration_2/reward_net{k}") for k in ("", "_2"))
    fused = context.reward_net(2)
    assert isinstance(fused, RewardEnsemble)
    assert (fused.fusion, fused.width, fused.members[0].levels) == ("lcb", 0.5, 2)
    one, other = (dict(member.named_parameters()) for member in fused.members)
    assert any(not torch.equal(value, other[name]) for name, value in one.items())
    rows = torch.arange(3)
    x, masks = context.target.at(rows), segment(context.load(variant / "iteration_2/ppo"), context.target.images)[rows]
    maps = torch.stack([context.reward_member(f"iteration_2/reward_net{k}")(x, masks) for k in ("", "_2")])
    expected = (maps.mean(dim=0) - 0.5 * maps.std(dim=0, correction=0)).clamp(min=0)
    torch.testing.assert_close(stages.reward_function(context, 2)(x, masks, rows), expected)
    assert call("evaluate", "--run", variant, "--cases", "[phantom_b_200000]") == 0


def test_stages_that_are_lost_are_made_the_same_again(variant, tmp_path, monkeypatch):
    half_of_them(monkeypatch)
    run = tmp_path / "run"
    shutil.copytree(variant, run, ignore=shutil.ignore_patterns("tensorboard", "evaluation"))
    for name in ("iteration_1/reward_net_2", "iteration_2/reward_data"):
        (run / name / "manifest.json").unlink()
    shutil.rmtree(run / "iteration_2/reward_net_2")
    assert call("train", "--resume", run) == 0
    assert_same(run, variant)


def test_the_policy_gradient_depends_on_every_member(variant, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(variant, run, ignore=shutil.ignore_patterns("tensorboard", "evaluation"))
    shutil.rmtree(run / "iteration_2/reward_net_2")
    assert call("evaluate", "--run", run) == 2
    assert "it lacks iteration_2/reward_net_2" in capsys.readouterr().err
