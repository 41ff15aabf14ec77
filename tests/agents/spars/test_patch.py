"""The patch game from configuration to mask: trained with and without masks, continued, evaluated (docs/spars.md,
Method 16)."""

import shutil
from pathlib import Path

import pytest
import segarena
import torch
import yaml
from segarena.agents.command_line import main
from segarena.agents.configuration import experiment_from, experiment_parser
from segarena.agents.papers import PAPERS
from segarena.agents.spars.patch_rules import PATCH_POLICIES
from segarena.agents.spars.rollouts import roll_out
from segarena.agents.spars.search_policy import CandidatePolicy, MaskableCandidatePolicy
from segarena.common.runs import Run
from segarena.envs.spars import SparsEnv
from segarena.evaluation.results import read_results

TINY = {
    "paper": "spars",
    "name": "Chooser",
    "device": "cpu",
    "env": {
        "profile": "patch",
        "grid_shape": [32, 32, 24],
        "window_size": [8, 8, 8],
        "horizon": 6,
        "cases": ["phantom_0200?"],
        "score_source": "oracle_fraction",
    },
    "validation": {"cases": ["phantom_0100?"]},
    "test": {"cases": ["phantom_03000", "phantom_03001"]},
    "policy": "candidates",
    "ppo": {
        "total_timesteps": 384,
        "num_envs": 4,
        "n_steps": 6,
        "batch_size": 24,
        "n_epochs": 2,
        "normalize_rewards": True,
    },
    "evaluation": {"rollouts": 2, "jitter_cells": 0, "pictures": 1},
    "checkpoint_every": 96,
    "examine_every": 192,
}


def train(folder, config, *more):
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(folder / "config.yaml"), "--out", str(folder / "run"), *more]) == 0
    return folder / "run"


@pytest.fixture(scope="module", params=["ppo", "maskable"])
def run(request, tmp_path_factory):
    return train(tmp_path_factory.mktemp("patch"), TINY, "--ppo.algorithm", request.param)


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(run, tmp_path):
    """In self-play, in the middle of episodes, with the patches that were blanked."""
    copied = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(max((copied / "checkpoints").iterdir()))
    assert main(["train", "--resume", str(copied)]) == 0
    one, other = Run(run).checkpoint(), Run(copied).checkpoint()
    assert one.step == other.step == 384
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_the_policy_and_the_rules_are_evaluated_and_drawn(run, tmp_path):
    assert main(["evaluate", "--run", str(run)]) == 0
    results = {result.method: result for result in read_results(run / "evaluation" / "test")}
    maps = ("position prior", "score map (min)", "score map (mean)", "score map (max)")
    assert results.keys() == {"Chooser", *PATCH_POLICIES, *maps, "best window", "union of the k best windows"}
    for name in PATCH_POLICIES:
        assert {case["steps"] for case in results[name].cases} == {12.0}, "as many patches as two agents look at"
        assert results[name].metrics["truncated"] == 1.0
    assert 0 <= results["Chooser"].metrics["terminal_hit"] <= 1
    assert {case["windows"] for case in results["patch_clairvoyant"].cases} == {12.0}
    logged = Run(run).metrics()[-1].keys() | Run(run).metrics()[0].keys()
    assert {f"reward/{term}" for term in ("duel", "end", "early", "late", "blank")} <= logged
    assert main(["render", "--run", str(run), "--out", str(tmp_path / "episode.gif")]) == 0


def test_the_rules_play_from_the_command_line(capsys):
    settings = ["profile=patch", "n_agents=1", "horizon=5", "score_source=oracle_fraction", "cases=[phantom_02000]"]
    assert main(["play", "--id", "SPARS-LiverCT-v0", "--episodes", "4", "--set", *settings]) == 0
    rows = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("| patch")]
    assert rows == list(PATCH_POLICIES)


def test_the_configuration_is_of_this_game_with_and_without_masks():
    file = Path(segarena.__file__).parent / "configs" / "spars" / "patch.yaml"
    paper = PAPERS["spars"]
    for algorithm, kind in (("ppo", CandidatePolicy), ("maskable", MaskableCandidatePolicy)):
        arguments = ["--config", str(file), "--ppo.algorithm", algorithm]
        experiment = experiment_from(paper, experiment_parser(paper).parse_args(arguments)).resolved()
        assert (experiment.env.profile, experiment.env.horizon, experiment.ppo.algorithm) == ("patch", 16, algorithm)
        env = SparsEnv(experiment.env, device="cpu")
        made = kind(env.single_observation_space, env.single_action_space, lambda _: 1e-3)
        env.seed([0])
        env.reset()
        env.blanked[:, 3:] = True
        masks = {"action_masks": env.action_masks()} if kind is MaskableCandidatePolicy else {}
        actions = torch.cat([made.get_distribution(env.observe(), **masks).get_actions() for _ in range(50)])
        assert set(actions[:, 0].tolist()) == {0, 1, 2}, "blanked patches are never chosen"
        assert set(actions[:, 1].tolist()) == {0, 1}


def test_the_policy_learns_to_win_the_last_round_and_a_turned_sign_would_not(tmp_path):
    """Against a competitor that chooses at random: it looks for the tumour and ends the episode with it."""
    config = TINY | {
        "env": {**TINY["env"], "cases": ["phantom_2000-2015"], "opponent": "random"},
        "ppo": {**TINY["ppo"], "total_timesteps": 24_000, "num_envs": 40, "n_steps": 10, "batch_size": 100},
        "examine_every": 0,
    }
    config["ppo"] |= {"learning_rate": 0.003, "n_epochs": 4}
    metrics = Run(train(tmp_path, config)).metrics()
    first, last = (
        {name: sum(row[f"reward/{name}"] for row in rows) / len(rows) for name in ("duel", "end")}
        for rows in (metrics[:3], metrics[-3:])
    )
    assert abs(first["duel"]) < 0.25
    assert last["duel"] > 0.5
    assert last["end"] > 20 > 2 * abs(first["end"])


@pytest.mark.parametrize("name", list(PATCH_POLICIES))
def test_every_rule_chooses_another_patch_in_each_round_and_draws_by_the_seed(name):
    settings = {key: value for key, value in TINY["env"].items() if key != "cases"}
    env = SparsEnv(**settings, cases=["phantom_2000-2003"], n_agents=1, num_envs=4, device="cpu", eval_dice=False)
    policy = PATCH_POLICIES[name].policy(env, 0)
    maps = roll_out(env, policy, jitter_cells=0, seed=3)
    assert [facts["windows"] for facts in maps.facts] == [6.0] * 4
    assert [facts["truncated"] for facts in maps.facts] == [1.0] * 4
    assert torch.equal(maps.blocks, roll_out(env, policy, jitter_cells=0, seed=3).blocks)


def test_the_clairvoyant_rule_goes_down_the_scores_and_the_blind_one_looks_at_none():
    env = SparsEnv(**TINY["env"] | {"cases": ["phantom_2000-2001"]}, n_agents=1, num_envs=2, device="cpu")
    env.seed([0, 0])
    env.begin(torch.tensor([0, 1]))
    best = PATCH_POLICIES["patch_clairvoyant"].policy(env, 0)
    truth = env.table.lookup(env.case[:, None].expand_as(env.blanked), env.patches.expand_as(env.blanked))
    for rank in range(6):
        env.step(best(env))
        assert torch.equal(env.scores[0], truth.sort(dim=1, descending=True).values[:, rank])
    env.begin(torch.tensor([0, 1]))
    blind = PATCH_POLICIES["patch_prior"].policy(env, 0)
    for _ in range(6):
        chosen = blind(env)
        assert torch.equal(chosen[0], chosen[1]), "the same for every image"
        env.step(chosen)
