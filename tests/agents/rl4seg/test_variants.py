"""Variants of RL4Seg: each configuration acts from its own stage on."""

from dataclasses import fields

import pytest
import torch
from rl4seg_runs import (
    CONFIGS,
    QUICK,
    assert_refused,
    call,
    context_of,
    differ,
    merged,
    stages_of,
    trained,
    weights,
)
from segarena.agents.configuration import experiment_parser
from segarena.agents.dense_ppo.ppo import DensePPO
from segarena.agents.papers import PAPERS
from segarena.agents.rl4seg import stages as rl4seg_stages
from segarena.agents.rl4seg.config import RL4SegExperiment
from segarena.common.networks import load_network
from segarena.common.runs import Run
from segarena.evaluation.results import read_results
from segarena.segmenters.inference import segment
from segarena.segmenters.unet import UNet


def test_the_schedules_of_the_paper():
    """docs/rl4seg.md, Method 5."""
    learners = [RL4SegExperiment().learner(i) for i in (1, 2, 3, 4)]
    assert [learner.num_envs for learner in learners] == [8, 16, 24, 32]
    assert [learner.ent_coef for learner in learners] == pytest.approx([0.15, 0.075, 0.05, 0.0375])
    assert [learner.kl_coef for learner in learners] == pytest.approx([0.05, 0.025, 0.016667, 0.0125], abs=1e-6)
    assert [RL4SegExperiment().pool_size(i) for i in (1, 2, 3, 4)] == [2600, 5100, 7600, 10100]
    assert [learner.total_timesteps for learner in learners] == [13000, 25500, 38000, 50500], "five epochs"


@pytest.mark.parametrize(
    ("changes", "first_changed"),
    [
        ({"network.norm_mode": "batch"}, "iteration_1/ppo"),
        ({"network.norm_mode": "group"}, "supervised"),
        ({"ppo.learner.critic": "none", "ppo.learner.group_size": 2, "ppo.batch.c0": 2}, "iteration_1/ppo"),
        ({"warm_start.kind": "keep"}, "iteration_2/ppo"),
    ],
    ids=str,
)
def test_a_variant_runs_and_acts_from_its_stage_on(tmp_path, all_valid, quick, changes, first_changed):
    run = trained(tmp_path, merged(QUICK, changes))
    order = ["supervised", "iteration_1/ppo", "iteration_2/ppo"]
    for stage in order:
        acts = order.index(stage) >= order.index(first_changed)
        assert differ(weights(quick, stage), weights(run, stage)) == acts, stage
    reference = load_network(run / "supervised" / "segmenter.safetensors", UNet)
    assert reference.norm == ("group" if changes.get("network.norm_mode") == "group" else "batch")
    assert (run / "iteration_2/ppo/critic.safetensors").exists() == ("ppo.learner.group_size" not in changes)


def test_gold_images_are_those_that_the_configuration_says(tmp_path, all_valid, quick):
    run = trained(tmp_path, QUICK, gold__source="gt", gold__fraction=0.5, ppo__epochs=0)
    context = context_of(run)
    gold, every = (rl4seg_stages._gold_for_ppo(one, 2, None) for one in (context, context_of(quick)))
    assert torch.equal(gold.masks, context.target_all.labels[gold.rows])
    assert 4 <= len(gold.rows) <= 12 < len(every.rows)
    assert not differ(weights(run, "adabn"), weights(run, "iteration_1/ppo")), "PPO without a pass leaves the policy"
    assert call("evaluate", "--run", run) == 0
    said = {result.method: result.supervision for result in read_results(next((run / "evaluation").iterdir()))}
    without = ("source only", "AdaBN", "corrector", "AdaBN + corrector", "AdaBN + corrector where invalid")
    assert said == dict.fromkeys(without, "source") | dict.fromkeys(("Quick", "Quick, softmax"), "source and target")


def test_refreshed_gold_masks_are_those_of_the_last_policy(tmp_path, all_valid, quick):
    run = trained(tmp_path, QUICK, gold__refresh=True)
    for folder, refreshed in ((quick, False), (run, True)):
        context = context_of(folder)
        gold = context.gold(2)
        assert gold.rows.tolist() == list(range(16)) if refreshed else list(range(2, 16))
        masks = segment(context.load(folder / "iteration_1/ppo"), context.target.images)[gold.rows]
        old = gold.rows < 9
        assert torch.equal(masks[~old], gold.masks[~old])
        assert torch.equal(masks[old], gold.masks[old]) == refreshed


@pytest.mark.parametrize(("reward", "labels"), [("pixel_accuracy", "source and target"), ("anatomical", "source")])
def test_a_reward_without_network_needs_no_reward_data(tmp_path, reward, labels):
    run = trained(tmp_path, QUICK, reward=reward, iterations=1)
    assert stages_of(run) == ["adabn", "iteration_1/ppo", "supervised"]
    assert call("evaluate", "--run", run, "--cases", "[phantom_b_200000]") == 0
    said = {result.method: result.supervision for result in read_results(next((run / "evaluation").iterdir()))}
    assert said == {"source only": "source", "AdaBN": "source", "Quick": labels}


def test_no_iteration_trains_the_source_network_only(tmp_path, capsys):
    config = {**QUICK, "iterations": 0, "target": {"data": "/is/not/read", "size": 32}}
    run = trained(tmp_path, config, "--export_sb3", tmp_path / "policy.zip")
    assert stages_of(run) == ["supervised"]
    assert len(DensePPO.load(tmp_path / "policy.zip", device="cpu").policy.actor.state_dict()) == len(
        weights(run, "supervised")
    )
    assert_refused(call("render", "--run", run), capsys, "iterations = 0")


@pytest.mark.parametrize("refresh", [False, True])
def test_corrected_masks_are_gold_where_the_reward_network_prefers_them(tmp_path, half_gold, refresh):
    run = trained(tmp_path, QUICK, gold__corrected=True, gold__refresh=refresh)
    context = context_of(run)
    own, corrected = context.gold(2), context.gold(2, "corrected.safetensors")
    start = context.load(run / "iteration_1/ppo")
    gold = rl4seg_stages._gold_for_ppo(context, 2, start)
    assert torch.equal(gold.rows[: len(own.rows)], own.rows)
    rest = gold.take(torch.arange(len(own.rows), len(gold.rows)))
    judge = rl4seg_stages.reward_function(context, 2)
    rows, masks = corrected.rows, segment(start, context.target.images[corrected.rows])
    worth = [judge(context.target.at(rows), some, rows).mean(dim=(1, 2)) for some in (corrected.masks, masks)]
    assert rest.rows.tolist() == rows[worth[0] > worth[1]].tolist()
    assert len(gold.rows.unique()) == len(gold.rows)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reward_data.model": False, "reward_data.image": False}, ["swap"]),
        ({"reward_data.model": False, "reward_data.image": False, "reward_data.swap": False}, ["correction"]),
        ({"reward_data.model": False, "reward_data.corrections": False}, ["contrast", "noise", "swap"]),
        ({"reward_data.identity": True, "reward_data.sampled": True, "reward_net.action_encoding": "onehot"}, None),
    ],
    ids=str,
)
def test_the_ablations_of_reward_data_run(tmp_path, half_gold, changes, expected):
    if expected == ["swap"]:
        changes = changes | {"reward_data.corrections": False}
    run = trained(tmp_path, merged(QUICK, changes), iterations=1, new_images=14)
    (said,) = Run(run / "iteration_1/reward_data").metrics()
    kinds = ["contrast", "correction", "identity", "noise", "sampled", "swap", "weights"]
    made_kinds = [kind for kind in kinds if said[f"reward_data/n_{kind}"]]
    assert made_kinds == (kinds if expected is None else expected)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_configuration_can_be_trained(path):
    """Alone, or after loop.yaml; on folders where it asks for them."""
    text = path.read_text()
    alone = path.stem in ("loop", "loop_paper", "camus", "supervised")
    files = [] if alone else [CONFIGS / "loop.yaml"]
    arguments = [part for file in (*files, path) for part in ("--config", str(file))]
    if "--target.data" in text:
        arguments += ["--source.data", "source", "--target.data", "target"]
    options = experiment_parser(PAPERS["rl4seg"])
    made = options.instantiate(options.parse_args(arguments))
    experiment = RL4SegExperiment(**{field.name: made[field.name] for field in fields(RL4SegExperiment)}).resolved()
    assert experiment.paper == "rl4seg"
