"""SPARS search from configuration to mask: trained, continued, evaluated, predicted (docs/spars.md, Method 15)."""

import shutil
from dataclasses import fields

import nibabel as nib
import pytest
import torch
import yaml
from segarena.agents.command_line import main
from segarena.agents.spars.config import SparsExperiment
from segarena.agents.spars.rollouts import roll_out
from segarena.agents.spars.search_policy import CandidatePolicy
from segarena.agents.spars.search_rules import SEARCH_POLICIES, known, sub_lattice
from segarena.agents.spars.training import AGENT_KEYS
from segarena.common.runs import Run
from segarena.datasets.liver.phantom import AFFINE, liver_phantom
from segarena.envs.spars import SparsEnv
from segarena.evaluation.results import read_results

ENV = {"profile": "search", "grid_shape": [32, 32, 24], "mask_threshold": 0.3, "horizon": 6}
TINY = {
    "paper": "spars",
    "name": "Seeker",
    "device": "cpu",
    "env": {**ENV, "cases": ["phantom_0200?"], "score_source": "oracle_fraction"},
    "validation": {"cases": ["phantom_0100?"]},
    "test": {"cases": ["phantom_03000", "phantom_03001"]},
    "policy": "candidates",
    "ppo": {"total_timesteps": 384, "num_envs": 4, "n_steps": 6, "batch_size": 24, "n_epochs": 2, "gamma": 0.9},
    "evaluation": {"rollouts": 1, "jitter_cells": 0, "deterministic": True, "pictures": 1},
    "checkpoint_every": 96,
    "examine_every": 192,
}


def train(folder, config, *more):
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(folder / "config.yaml"), "--out", str(folder / "run"), *more]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("search"), TINY)


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(run, tmp_path):
    """In self-play, in the middle of episodes, with the posterior of each."""
    copied = shutil.copytree(run, tmp_path / "run")
    last = max((copied / "checkpoints").iterdir())
    assert len(list((copied / "checkpoints").iterdir())) == 2
    shutil.rmtree(last)
    assert main(["train", "--resume", str(copied)]) == 0
    one, other = Run(run).checkpoint(), Run(copied).checkpoint()
    assert one.step == other.step == 384
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    known_steps = [row["step"] for row in Run(copied).metrics() if "spars/found" in row]
    assert known_steps == [192, 384]


def test_policy_rules_and_maps_are_evaluated_on_as_many_windows(run, capsys):
    assert main(["evaluate", "--run", str(run)]) == 0
    results = {result.method: result for result in read_results(run / "evaluation" / "test")}
    assert results.keys() == {
        *("Seeker", *SEARCH_POLICIES),
        *("position prior", "score map (min)", "score map (mean)", "score map (max)"),
        *("best window", "union of the k best windows"),
    }
    for name, result in results.items():
        if name in ("Seeker", *SEARCH_POLICIES):
            assert {case["windows"] for case in result.cases} == {12.0}, name
            assert 0 <= result.metrics["found"] <= 1
    found = {name: result.metrics["found"] for name, result in results.items() if "found" in result.metrics}
    assert found["search_clairvoyant"] == max(found.values()), "it is given all scores"
    assert "profiles default, search" in refusal_of_another_game(run, capsys)


def refusal_of_another_game(run, capsys):
    """What `evaluate` says of this run together with one of the paper's game."""
    other = run.parent / "other"
    if not other.exists():
        shutil.copytree(run, other)
        config = yaml.safe_load((other / "config.yaml").read_text())
        config["env"] |= {
            "profile": "default",
            "action_set": "axis6",
            "obs_mode": "own_window",
            "accumulate": "learner",
        }
        config |= {"policy": "flatten_mlp", "name": "Other"}
        (other / "config.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), str(other)]) == 2
    return capsys.readouterr().err


def test_a_search_with_a_trained_prior_segments_a_ct_of_its_own(tmp_path):
    """The stages classifier, score prior and agent; too few cases for a covariance, said once."""
    config = TINY | {
        "env": {**ENV, "cases": ["phantom_02000"], "classifier": "train", "fill": "train"},
        "presence": {"epochs": 1, "batches_per_epoch": 2, "volumes_per_batch": 1, "validation_windows": 16},
        "classifier_train": {"cases": ["phantom_00000"]},
        "prior_train": {"cases": ["phantom_20000-20002"]},
        "validation": {"cases": ["phantom_01000"]},
        "ppo": {**TINY["ppo"], "total_timesteps": 24},
    }
    run = train(tmp_path, config)
    assert (run / "score_prior" / "manifest.json").is_file()
    assert Run(run / "score_prior").metrics()[-1]["score_prior/cases"] == 3
    sample = liver_phantom(3005)
    nib.save(nib.Nifti1Image(sample.image[0].numpy(), AFFINE), tmp_path / "ct.nii.gz")
    arguments = ["predict", "--run", str(run), "--input", str(tmp_path / "ct.nii.gz"), "--out", str(tmp_path / "masks")]
    assert main(arguments) == 0
    mask, score = (nib.load(tmp_path / "masks" / f"ct_{kind}.nii.gz").get_fdata() for kind in ("mask", "score"))
    assert mask.shape == sample.image[0].shape
    assert 0 <= score.min() <= score.max() <= 1


def test_the_policy_learns_to_discover_and_a_turned_sign_would_not(tmp_path):
    """From equal chances for all unseen windows in reach; on cases that it has not learned on."""
    config = TINY | {
        "env": {**TINY["env"], "cases": ["phantom_2000-2015"], "n_agents": 1, "horizon": 10},
        "straddle": 0,
        "ppo": {**TINY["ppo"], "total_timesteps": 16_000, "num_envs": 40, "n_steps": 10, "batch_size": 100},
        "examine_every": 0,
    }
    config["ppo"] |= {"learning_rate": 0.003, "n_epochs": 4, "ent_coef": 0.002}
    run = train(tmp_path, config)
    first, last = (
        sum(row["reward/discovery"] for row in rows) / len(rows)
        for rows in (Run(run).metrics()[:3], Run(run).metrics()[-3:])
    )
    assert last > 1.3 * first > 0


def test_a_policy_starts_as_the_straddle_rule_among_the_windows_in_reach_or_from_equal_chances():
    """And its weight is learned: it has a gradient, which the logits of better windows pull upwards."""
    walk = SparsEnv(
        **ENV, cases=["phantom_2000-2003"], score_source="oracle_fraction", num_envs=4, device="cpu", eval_dice=False
    )
    walk.seed(range(4))
    walk.reset()
    for _ in range(2):
        walk.step(walk.action_masks().float().argmax(dim=1))
    obs, spaces = walk.observe(), (walk.single_observation_space, walk.single_action_space)
    worth = obs["candidates"][..., -2].masked_fill(~walk.action_masks(), -torch.inf)
    torch.manual_seed(0)
    rule, equal = (CandidatePolicy(*spaces, lambda _: 1e-3, straddle=straddle) for straddle in (10.0, 0.0))
    assert torch.equal(rule.get_distribution(obs).mode(), worth.argmax(dim=1))
    chances, free = equal.get_distribution(obs).distribution.probs, walk.action_masks().float()
    assert torch.allclose(chances, free / free.sum(dim=1, keepdim=True), atol=1e-6)
    rule.get_distribution(obs).log_prob(worth.argmax(dim=1)).sum().backward()
    assert float(rule.mlp_extractor.straddle.grad) > 0


def test_a_policy_that_observes_features_of_seen_windows_starts_as_the_same_rule_and_learns_to_read_them():
    walk = SparsEnv(
        **ENV, cases=["phantom_2000-2003"], obs_mode="features", num_envs=4, n_agents=1, device="cpu", eval_dice=False
    )
    walk.seed(range(4))
    walk.reset()
    walk.step(walk.action_masks().float().argmax(dim=1))
    obs, spaces = walk.observe(), (walk.single_observation_space, walk.single_action_space)
    torch.manual_seed(0)
    policy = CandidatePolicy(*spaces, lambda _: 1e-2, straddle=10.0)
    worth = obs["candidates"][..., -2].masked_fill(~walk.action_masks(), -torch.inf)
    assert torch.equal(policy.get_distribution(obs).mode(), worth.argmax(dim=1))
    for _ in range(2):  # in the first step only the last layer has a gradient
        policy.optimizer.zero_grad()
        loss = -policy.get_distribution(obs).log_prob(torch.full((4,), 7)).sum()
        loss.backward()
        policy.optimizer.step()
    read = policy.mlp_extractor.read[1].weight.grad.view(8, 3, -1)
    assert (read.abs().amax(dim=(0, 2)) > 0).all(), "own ones, mean and maximum"
    other = {**obs, "features": obs["features"].flip(2)}
    probs = [policy.get_distribution(one).distribution.probs for one in (obs, other)]
    assert not torch.equal(*probs)
    assert not torch.equal(policy.predict_values(obs), policy.predict_values(other))


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def env():
    made = SparsEnv(
        **{**ENV, "horizon": 20},
        action_set="anywhere",
        n_agents=1,
        cases=["phantom_2000-2007"],
        score_source="oracle_fraction",
        num_envs=8,
        device="cpu",
        eval_dice=False,
    )
    made.seed(range(8))
    made.reset()
    return made


@pytest.mark.parametrize("name", list(SEARCH_POLICIES))
def test_every_rule_looks_at_another_window_in_each_move(env, name):
    policy = SEARCH_POLICIES[name].make(env, 0)
    for step in range(20):
        env.step(policy(env))
        assert (env.posterior.seen.sum(dim=1) == step + 1).all()


def test_rules_do_what_they_say(env):
    everywhere = torch.arange(env.lattice.size)
    truth = torch.stack([env.table.lookup(torch.tensor(case), everywhere) for case in range(8)])[env.case]
    rules = {name: SEARCH_POLICIES[name].make(env, 0) for name in SEARCH_POLICIES}
    for _ in range(6):
        env.step(rules["search_random"](env))
    mean, sigma = env.posterior.mean, env.posterior.variance.sqrt()
    unseen = torch.where(env.posterior.seen, -torch.inf, 0.0)
    assert torch.equal(known(env), torch.where(env.posterior.seen, truth, -1.0))
    assert torch.equal(rules["search_gp_ucb"](env), (mean + 2 * sigma + unseen).argmax(1))
    assert torch.equal(rules["search_gp_straddle"](env), (2 * sigma - (mean - 0.3).abs() + unseen).argmax(1))
    chosen = rules["search_best_first"](env)
    cells = torch.stack(torch.unravel_index(everywhere, env.lattice.shape), dim=-1)
    for number in range(8):
        near = (cells - cells[chosen[number]]).abs().amax(dim=1) == 1
        border = torch.zeros(env.lattice.size, dtype=torch.bool)
        for place in env.posterior.seen[number].nonzero().flatten():
            border |= (cells - cells[place]).abs().amax(dim=1) == 1
        best = max(
            float(known(env)[number][(cells - cells[place]).abs().amax(1) == 1].max())
            for place in (border & ~env.posterior.seen[number]).nonzero().flatten()
        )
        assert float(known(env)[number][near].max()) == best


def test_a_sub_lattice_is_spread_over_all_of_the_lattice():
    shape = (13, 13, 11)
    for number in (1, 8, 32, 100):
        ids = sub_lattice(shape, number)
        assert len(ids.unique()) == number
        cells = torch.stack(torch.unravel_index(ids, shape), dim=-1).double()
        middle = (torch.tensor(shape) - 1) / 2
        assert (cells.mean(0) - middle).abs().max() < 1.5
    assert set(sub_lattice(shape, 13 * 13 * 11).tolist()) == set(range(13 * 13 * 11))


def test_a_rule_draws_by_the_seed(env):
    maps = roll_out(env, SEARCH_POLICIES["search_random"].make(env, 0), jitter_cells=0, seed=3)
    assert [facts["windows"] for facts in maps.facts] == [20.0] * 8
    assert torch.equal(
        maps.blocks, roll_out(env, SEARCH_POLICIES["search_random"].make(env, 0), jitter_cells=0, seed=3).blocks
    )


def test_a_resumed_agent_keeps_every_setting_that_it_learned_with():
    """Each field of an experiment is one of those, or one of what the agent does not learn by: `straddle` scales what
    is learned, so that another one would make another policy of the same weights."""
    other = {"paper", "name", "device", "presence", "classifier_train", "prior_train", "test", "baselines", "unet"}
    learned_with = {key.split(".")[0] for key in AGENT_KEYS}
    assert "straddle" in learned_with
    assert {field.name for field in fields(SparsExperiment)} == learned_with | other | {"checkpoint_every"}
