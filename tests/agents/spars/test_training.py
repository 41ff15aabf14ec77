"""Players of SPARS: opponents, policies, rules, the protocol, and whether anything is learned."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from segarena.agents.experiment import EvaluateOptions
from segarena.agents.papers import PAPERS
from segarena.agents.policy import TrainedPolicy, play
from segarena.agents.ppo import PPOConfig
from segarena.agents.spars.baselines import BASELINES, score_map
from segarena.agents.spars.config import CaseChoice, EvaluationConfig, SparsExperiment
from segarena.agents.spars.evaluation import _result
from segarena.agents.spars.policies import policy_arguments
from segarena.agents.spars.pool import Snapshot
from segarena.agents.spars.rollouts import Maps, choose_threshold, roll_out, seed_of
from segarena.agents.spars.rules import POLICIES, BfsToTau, Sweep, sweep_path
from segarena.agents.spars.self_play import SelfPlay, SelfPlayConfig
from segarena.agents.spars.thresholds import Threshold, basis_of
from segarena.agents.spars.training import env_of, load_policies
from segarena.classifiers.presence_config import PresenceTrainingConfig
from segarena.common.runs import Run
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.spars import SparsEnv
from segarena.envs.spars_config import SparsConfig
from segarena.segmenters.expected_dice import Calibration, Presence
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

ONE = {"cases": ["phantom_02000"], "device": "cpu"}
ORACLE = {**ONE, "score_source": "oracle_fraction"}


def model_on(batched, policy="feature_mlp", **changes):
    env = LearnerEnv(batched)
    arguments = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, "device": "cpu", **changes}
    return PPO(env=env, **policy_arguments(policy, env.observation_space), **arguments)


def logits(policy, obs):
    with torch.no_grad():
        return policy.get_distribution(obs).distribution.logits


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


class Silent(BaseCallback):
    def _on_step(self):
        return True


# -- self-play -------------------------------------------------------------------------------------------------------


def test_the_opponent_stays_frozen_until_it_is_refreshed_and_then_equals_the_learner():
    """docs/spars.md, Method 10."""
    env = SparsEnv(**ONE, obs_mode="features", num_envs=2)
    model = model_on(env)
    opponent = Snapshot(model.policy)
    env.seed([0, 1])
    env.reset()
    obs = env.observe()
    before = logits(opponent.policy, obs)
    assert torch.equal(before, logits(model.policy, obs))
    loss = -model.policy.get_distribution(obs).log_prob(torch.tensor([1, 2])).sum()
    loss.backward()
    model.policy.optimizer.step()
    assert torch.equal(logits(opponent.policy, obs), before), "the opponent moved with the learner"
    assert not torch.equal(logits(model.policy, obs), before)
    opponent.refresh(model.policy)
    assert torch.equal(logits(opponent.policy, obs), logits(model.policy, obs))


@pytest.mark.parametrize(("refresh_every", "expected"), [(1, [0, 32, 64, 96]), (2, [0, 0, 64, 64])])
def test_one_learn_refreshes_the_opponent_every_k_rollouts(refresh_every, expected):
    env = SparsEnv(**ONE, obs_mode="features", num_envs=2)
    model, seen = model_on(env), []
    play = SelfPlay(env, SelfPlayConfig(refresh_every=refresh_every))

    class Look(Silent):
        def _on_rollout_start(self):
            fresh = same(play.snapshot.policy, model.policy)
            assert fresh is (play.snapshot.born == model.num_timesteps), "only a refresh copies"
            seen.append(play.snapshot.born)

        def _on_rollout_end(self):
            assert env._opponent is play.pool
            assert play.pool.snapshots == [play.snapshot]

    model.learn(128, callback=CallbackList([play, Look()]))
    assert seen == expected


@pytest.mark.parametrize("initial", ["constant0", "random"])
def test_before_the_first_refresh_the_named_rule_competes(initial):
    env = SparsEnv(**ONE, obs_mode="features", num_envs=2, threshold=1.0)
    model, moves = model_on(env), []
    play = SelfPlay(env, SelfPlayConfig(initial_opponent=initial))

    class Look(Silent):
        def _on_step(self):
            if self.num_timesteps <= 32:
                moves.append(env.painting.last_step()[0][1])
            return True

    model.learn(64, callback=CallbackList([play, Look()]))
    heights = torch.stack(moves) % env.lattice.shape[2]
    assert bool((heights.diff(dim=0) >= 0).all()) is (initial == "constant0")
    assert play.snapshot is not None, "from the second rollout on the learner's copy competes"


def test_a_single_agent_trains_without_an_opponent():
    env = SparsEnv(**ONE, obs_mode="features", n_agents=1, num_envs=2)
    model_on(env).learn(32)
    assert env._opponent is None


# -- policies --------------------------------------------------------------------------------------------------------


def test_the_flat_policy_has_the_papers_number_of_parameters():
    """docs/spars.md, Method 9, for the window (16, 16, 8) and by formula for (48, 48, 24)."""

    def formula(n):
        return 2 * (64 * n + 64 + 4160) + 390 + 65

    assert formula(48 * 48 * 24) == 7_086_791
    env = SparsEnv(**ORACLE, obs_mode="own_window")
    policy = model_on(env, "flatten_mlp").policy
    assert sum(p.numel() for p in policy.parameters()) == formula(16 * 16 * 8)


def test_the_window_network_has_the_papers_widths():
    env = SparsEnv(**ORACLE, obs_mode="two_window")
    extractor = model_on(env, "window_cnn").policy.features_extractor
    assert extractor.features_dim == 2 * 128 + 9 == 265
    own, other = (torch.randint(256, (3, 1, 16, 16, 8)).float() for _ in range(2))
    state = torch.rand(3, 9)
    code = extractor({"windows": torch.cat((own, other), dim=1), "state": state})
    swapped = extractor({"windows": torch.cat((other, own), dim=1), "state": state})
    torch.testing.assert_close(code[:, :128], swapped[:, 128:256]), "one trunk serves both windows"
    assert torch.equal(code[:, 256:], state)


@pytest.mark.parametrize(
    ("policy", "obs_mode"),
    [
        ("window_cnn", "two_window"),
        ("window_cnn", "own_window"),
        ("feature_mlp", "features"),
        ("flatten_mlp", "two_window"),
    ],
)
def test_every_weight_of_every_policy_gets_a_gradient(policy, obs_mode):
    env = SparsEnv(**ONE, obs_mode=obs_mode, num_envs=4, start="random_lattice")
    network = model_on(env, policy).policy
    env.seed(range(4))
    env.reset()
    values, log_prob, entropy = network.evaluate_actions(env.observe(), torch.tensor([0, 1, 2, 3]))
    (values.sum() + log_prob.sum() + entropy.sum()).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []


@pytest.mark.parametrize(("policy", "obs_mode"), [("feature_mlp", "two_window"), ("window_cnn", "features")])
def test_a_policy_that_cannot_read_the_observations_is_refused(policy, obs_mode):
    env = SparsEnv(**ONE, obs_mode=obs_mode)
    with pytest.raises(ValueError, match=f"policy '{policy}' needs env.obs_mode="):
        policy_arguments(policy, env.single_observation_space)


def test_shaping_with_another_discount_than_the_learners_is_refused():
    experiment = SparsExperiment(env=SparsConfig(reward="shaped", gamma=0.9))
    with pytest.raises(ValueError, match=r"env.gamma is 0.9 but ppo.gamma is 0.99"):
        experiment.resolved()
    assert replace(experiment, ppo=PPOConfig(gamma=0.9)).resolved().env.gamma == 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ppo": PPOConfig(normalize_observations=True)}, "ppo.normalize_observations is True but opponents"),
        ({"evaluation": EvaluationConfig(best=True), "examine_every": 0}, "evaluation.best is True but examine_every"),
    ],
)
def test_what_evaluation_could_not_use_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SparsExperiment(env=SparsConfig(score_source="oracle_fraction"), **changes).resolved()


def test_the_best_look_at_the_validation_cases_is_evaluated_where_that_is_asked_for(tmp_path):
    ppo = PPOConfig(total_timesteps=256, num_envs=4, n_steps=16, batch_size=32, n_epochs=1, net_arch=[8])
    experiment = SparsExperiment(
        device="cpu",
        env=SparsConfig(score_source="oracle_fraction", cases=["phantom_02000"], grid_shape=(32, 32, 24)),
        validation=CaseChoice(cases=["phantom_01000"]),
        test=CaseChoice(cases=["phantom_03000"]),
        policy="flatten_mlp",
        ppo=replace(ppo, normalize_rewards=True, learning_rate_schedule="linear"),
        evaluation=EvaluationConfig(rollouts=2),
        examine_every=64,
        checkpoint_every=64,
    )
    run = PAPERS["spars"].start(experiment, tmp_path / "run", {})
    looks = {line["step"]: line["spars/dice_eval"] for line in run.metrics() if "spars/dice_eval" in line}
    best = run.checkpoint().state["best"]
    assert best["score"] == max(looks.values()) == looks[best["step"]]
    env = env_of(experiment, run)
    last, _ = load_policies(experiment, run, env)
    chosen, _ = load_policies(replace(experiment, evaluation=EvaluationConfig(rollouts=2, best=True)), run, env)
    assert_weights(last.policy, run.checkpoint().weights)
    assert_weights(chosen.policy, best["weights"])
    assert not same(last.policy, chosen.policy)
    assert last.policy.action_net.in_features == 8


def assert_weights(policy, weights):
    for name, value in policy.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_batch_that_does_not_divide_the_rollout_is_refused():
    with pytest.raises(ValueError, match="batch_size is 100 but must divide a rollout of num_envs x n_steps = 2048"):
        PPOConfig(batch_size=100)


# -- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 2), (4, 1, 3), (1, 1, 4)])
def test_the_sweep_visits_every_position_once_by_single_moves(shape):
    path = sweep_path(shape)
    assert sorted(path.tolist()) == list(range(int(np.prod(shape))))
    cells = np.stack(np.unravel_index(path.numpy(), shape), axis=1)
    assert (np.abs(np.diff(cells, axis=0)).sum(axis=1) == 1).all()


def test_what_the_sweep_paints_is_the_score_map():
    settings = {**ORACLE, "grid_shape": (64, 64, 48), "window_size": (24, 24, 16), "threshold": 1.0, "n_agents": 1}
    env = SparsEnv(**settings, reduce="mean", horizon=20_000)
    rule = Sweep(env)
    env.seed([0])
    env.reset(options={"start": [0, 0, 0]})
    seen = []
    for _ in range(env.lattice.size):
        env.step(rule(env))
        seen.append(int(env.at[0]))
    assert sorted(seen) == list(range(env.lattice.size)), "every position, each once"
    torch.testing.assert_close(env.painting.block_map(), score_map(env, "mean").blocks[0], atol=1e-9, rtol=0)


def test_greedy_moves_to_the_best_neighbour():
    env = SparsEnv(**ORACLE, num_envs=50, start="random_lattice")
    env.seed(range(50))
    env.reset()
    chosen = POLICIES["greedy"].make(env, 0)(env)
    there = env.neighbours(env.at[0])
    scores = env.scores_at(there)
    best = scores.gather(0, chosen[None])[0]
    assert torch.equal(best, scores.amax(dim=0))
    for slot in range(50):
        assert chosen[slot] == int((scores[:, slot] == best[slot]).nonzero()[0]), "the lowest index among equals"


@pytest.mark.parametrize("action_set", ["axis6", "king26"])
def test_the_shortest_path_is_as_short_as_breadth_first_search_says(action_set):
    env = SparsEnv(**ORACLE, n_agents=1, num_envs=30, start="random_lattice", threshold=0.4, action_set=action_set)
    rule = BfsToTau(env)
    above = env.table.volume(0).flatten() > 0.4
    # plain breadth-first search over the table of moves
    distance = torch.full((env.lattice.size,), torch.inf)
    distance[above] = 0
    for _ in range(sum(env.lattice.shape)):
        distance = torch.minimum(distance, 1 + distance[env.neighbours(torch.arange(env.lattice.size))].amin(dim=0))
    assert torch.equal(rule.distance[0], distance)
    env.seed(range(30))
    env.reset()
    wanted = rule.optimal_steps(env)
    taken, over = torch.zeros(30), torch.zeros(30, dtype=torch.bool)
    for number in range(1, 60):
        _, terminated, _ = env.step(rule(env))
        taken[terminated & ~over] = number
        over |= terminated
    assert over.all()
    assert torch.equal(taken, wanted)


def test_where_tau_is_out_of_reach_the_distance_is_infinite():
    env = SparsEnv(**ORACLE, threshold=1.0)
    assert BfsToTau(env).distance.isinf().all()


# -- protocol --------------------------------------------------------------------------------------------------------


def test_rollouts_average_the_maps_of_their_episodes_case_by_case():
    settings = {"cases": ["phantom_02000", "phantom_02001"], "score_source": "oracle_fraction", "device": "cpu"}
    settings |= {"n_agents": 1, "horizon": 12, "threshold": 0.1, "start": "centre"}
    env = SparsEnv(**settings, num_envs=6, reduce="sum")
    greedy = POLICIES["greedy"].make(env, 0)
    maps = roll_out(env, greedy, jitter_cells=2, seed=1)
    assert torch.equal(maps.blocks, roll_out(env, greedy, jitter_cells=2, seed=1).blocks)
    assert not torch.equal(maps.blocks, roll_out(env, greedy, jitter_cells=2, seed=2).blocks), "jitter"
    assert {int(case["steps"]) for case in maps.facts} != {12}, "episodes must end at different times"

    env.seed([seed_of(case, 1) + k for case in env.cases for k in range(3)])  # the same again, one slot at a time
    env.begin(torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    painted, over = [None] * 6, torch.zeros(6, dtype=torch.bool)
    for _ in range(12):
        _, terminated, truncated = env.step(greedy(env))
        for slot in ((terminated | truncated) & ~over).nonzero().flatten().tolist():
            painted[slot] = env.painting.block_map(slot).clone()
        over |= terminated | truncated
    for number in range(2):
        torch.testing.assert_close(maps.blocks[number], sum(painted[3 * number : 3 * number + 3]) / 3)


@pytest.mark.parametrize("fill", ["none", "stationary"])
def test_rollouts_of_other_masks_are_one_map_of_all_windows_that_they_looked_at(fill):
    settings = {"cases": ["phantom_02000", "phantom_02001"], "score_source": "oracle_fraction", "device": "cpu"}
    env = SparsEnv(**settings, num_envs=6, n_agents=1, horizon=12, threshold=1.0, fill=fill)
    random = POLICIES["random"].make(env, 0)
    maps = roll_out(env, random, jitter_cells=0, seed=1)
    env.seed([seed_of(case, 1) + k for case in env.cases for k in range(3)])
    env.begin(torch.tensor([0, 0, 0, 1, 1, 1]))
    seen = torch.full((2, env.lattice.size), torch.nan)
    for _ in range(12):
        env.step(random(env))
        seen[env.case, env.at[0]] = env.scores[0]
    assert torch.equal(maps.blocks, env.masks.blocks(seen, [0, 1]))
    assert (~seen.isnan()).sum(dim=1).min() > 12, "more than one rollout sees"


@pytest.mark.parametrize("upsample", ["blocks", "trilinear"])
def test_the_chosen_threshold_is_the_best_and_its_dice_is_the_voxel_dice(upsample):
    settings = {"score_source": "oracle_fraction", "device": "cpu", "n_agents": 1, "upsample": upsample}
    env = SparsEnv(cases=["phantom_02000", "phantom_02003"], **settings)
    maps = score_map(env, "mean")
    theta = choose_threshold(maps)
    voxel = []
    for number, case in enumerate(env.cases):
        mask, truth = maps.inside(number, theta), case.label == 2
        voxel.append(2 * (mask & truth).sum().item() / (mask.sum().item() + truth.sum().item()))
    assert float(maps.mean_dice([theta])) == pytest.approx(np.mean(voxel))
    assert float(maps.mean_dice([theta])) >= float(maps.mean_dice([0.05, 0.1, 0.2, 0.5]).max())


def test_a_threshold_can_leave_a_very_small_mask():
    """A tumour of one block in a map that is positive everywhere: coarse quantiles could not single it out."""
    env = SparsEnv(**ONE, n_agents=1, upsample="blocks")
    label = torch.zeros_like(env.cases[0].label)
    label[20:24, 24:28, 16:20] = 2
    env.cases = [replace(env.cases[0], label=label)]
    blocks = torch.rand(1, *env.lattice.block_shape, dtype=torch.float64) * 0.5 + 0.1
    blocks[0, 5, 6, 4] = 0.7
    maps = Maps(env, blocks, [{}])
    assert float(maps.mean_dice([choose_threshold(maps)])) == 1.0


def test_no_threshold_is_chosen_without_a_tumour():
    env = SparsEnv(**ONE, n_agents=1)
    env.cases = [replace(env.cases[0], label=torch.zeros_like(env.cases[0].label))]
    with pytest.raises(ValueError, match="no validation case has a tumour"):
        choose_threshold(score_map(env, "max"))
    with pytest.raises(ValueError, match="no validation case has a tumour"):
        Threshold.of(score_map(env, "max"), "expected_dice")


@pytest.mark.parametrize("upsample", ["blocks", "trilinear"])
def test_each_case_gets_the_mask_of_the_highest_expected_dice(upsample):
    """By what the values said on the cases that chose it; a weak map has one too, where a fixed θ leaves nothing."""
    settings = {"score_source": "oracle_fraction", "device": "cpu", "n_agents": 1, "upsample": upsample}
    env = SparsEnv(cases=["phantom_02000", "phantom_02003"], **settings)
    maps = score_map(env, "mean")
    chosen = Threshold.of(maps, "expected_dice")
    counted = torch.zeros(2, dtype=torch.float64)
    voxel = []
    for number, case in enumerate(env.cases):
        values, truth = maps.values(number), case.label == 2
        counted += torch.tensor([values.numel(), int(truth.sum())])
        p = chosen.rule.probability(values).flatten().double()
        mask = (values > chosen.of_case(values)).flatten()
        ordered = p.sort(descending=True).values.cumsum(0)
        best = float((2 * ordered / (torch.arange(1, len(p) + 1) + p.sum())).max())
        assert float(2 * p[mask].sum() / (mask.sum() + p.sum())) == pytest.approx(best, rel=1e-6)
        voxel.append(2 * float(mask[truth.flatten()].sum()) / float(mask.sum() + truth.sum()))
    assert torch.equal(sum(maps.counted(number) for number in (0, 1)).sum(dim=1), counted), "every voxel once"
    assert chosen.dice == pytest.approx(np.mean(voxel))
    weak = replace(maps, blocks=maps.blocks * 0.2)
    theta = Threshold.of(maps, "threshold")
    assert not (weak.values(0) > theta.of_case(weak.values(0))).any()
    assert (weak.values(0) > chosen.of_case(weak.values(0))).any()


def test_a_threshold_is_read_as_it_was_written():
    curve = Calibration(1.5, -2.0)
    for one in (Threshold(0.25, 0.5), Threshold(curve, 0.75), Threshold(curve, 0.75, Presence(Calibration(1.0, 2.0)))):
        assert Threshold.read(json.loads(json.dumps(one.written()))) == one
    assert (str(Threshold(0.25, 0.5)), Threshold(0.25, 0.5).value) == ("θ = 0.25", 0.25)
    assert Threshold(Calibration(1.5, -2.0), 0.75).value is None


def test_a_case_that_probably_has_no_tumour_has_no_mask(tmp_path):
    cases = SparsConfig(cases=["phantom_01000", "phantom_01005", "phantom_01004", "phantom_01007"], tumour_free=0.5)
    env = SparsEnv(cases, num_envs=4, device="cpu", eval_dice=False)
    env.seed(range(4))
    maps = score_map(env, "mean")
    maps = replace(maps, blocks=maps.blocks * torch.tensor([1.0, 0.1, 1.0, 0.1])[:, None, None, None])  # some are ill
    always, chosen = (Threshold.of(maps, "expected_dice", may_be_empty=empty) for empty in (False, True))
    assert chosen.rule == always.rule == Calibration.fit(maps.counted(0) + maps.counted(2)), "of those with tumour"
    assert (always.presence, type(chosen.presence)) == (None, Presence)
    best = [always.rule.best(maps.values(number))[1] for number in range(4)]
    assert chosen.presence == Presence.fit(torch.tensor(best).double(), torch.tensor([True, False, True, False]))
    assert chosen.presence.curve.slope > 0, "the better the mask, the likelier a tumour"
    never = replace(chosen, presence=Presence(Calibration(0.0, -9.0)))
    for number in range(4):
        values = maps.values(number)
        assert (values > always.of_case(values)).any()
        assert not (values > never.of_case(values)).any()
    assert maps.dice_at(never.of_case) == 0.0
    no_agent = SparsExperiment(env=SparsConfig(classifier="train"), ppo=PPOConfig(total_timesteps=0)).resolved()
    one, other = (
        basis_of(replace(no_agent, evaluation=replace(no_agent.evaluation, may_be_empty=empty)), Run(tmp_path))
        for empty in (False, True)
    )
    assert one != other, "thresholds are chosen anew where masks may be empty"
    with pytest.raises(ValueError, match=r"evaluation.may_be_empty is True but evaluation.mask is 'threshold'"):
        SparsExperiment(evaluation=EvaluationConfig(mask="threshold", may_be_empty=True)).resolved()


def test_how_masks_are_made_follows_the_maps():
    assert SparsExperiment().resolved().evaluation.mask == "expected_dice"
    paper = SparsExperiment(env=SparsConfig(profile="paper"))
    assert paper.resolved().evaluation.mask == "threshold", "sums exceed 1"
    with pytest.raises(ValueError, match=r"evaluation.mask is 'expected_dice' but env.reduce is 'sum'"):
        replace(paper, evaluation=EvaluationConfig(mask="expected_dice")).resolved()


def test_theta_is_chosen_on_the_validation_cases_and_the_mode_names_shared_anatomy():
    shared = {"score_source": "oracle_fraction", "device": "cpu", "n_agents": 1, "obs_mode": "own_window"}
    experiment = SparsExperiment(
        env=SparsConfig(cases=["phantom_02000"], score_source="oracle_fraction"),
        validation=CaseChoice(cases=["phantom_01000", "phantom_01001"]),
    ).resolved()
    validation = score_map(SparsEnv(cases=["phantom_01000", "phantom_01001"], **shared), "mean")
    test = score_map(SparsEnv(cases=["phantom_03000", "phantom_03004"], **shared), "mean")
    assert choose_threshold(validation) != choose_threshold(test)

    def result(maps, learned):
        method, row = (experiment.name, None) if learned else ("score map (mean)", BASELINES["score_map_mean"])
        chosen, options = Threshold.of(validation, "threshold"), EvaluateOptions()
        made, _ = _result(experiment, method, row, maps, chosen, None, trained=learned, step=0, options=options)
        return made

    got = result(test, True)
    assert all("patient" not in case for case in got.cases)
    experiment = replace(experiment, env=replace(experiment.env, patient_pattern="^(phantom_[0-9]{3})"))
    assert {case["patient"] for case in result(test, True).cases} == {"phantom_030"}, "intervals are over patients"
    theta = got.settings["mask_threshold"]
    assert theta == choose_threshold(validation)
    assert got.metrics["dice"] == pytest.approx(float(test.mean_dice([theta])))
    assert got.mode == "inductive"
    assert got.supervision == "voxel"
    assert result(validation, False).mode == "transductive"
    seen = score_map(SparsEnv(cases=["phantom_02000"], **shared), "mean")
    assert result(seen, True).mode == "transductive"
    assert result(seen, False).mode == "inductive", "a rule does not learn from the agent's cases"
    taught = score_map(SparsEnv(cases=["phantom_00007"], **shared), "mean")
    assert result(taught, False).mode == "transductive", "the packaged classifier learned from it"


# -- learning: docs/spars.md, Method 12 ------------------------------------------------------------------------------


def test_a_policy_learns_to_reach_tau_far_more_often_than_chance():
    """docs/spars.md, Method 12: at least 90 % and three times `random` within 100 k steps, near the shortest path."""
    settings = {**ORACLE, "obs_mode": "features", "n_agents": 1, "start": "random_lattice", "eval_dice": False}
    settings |= {"threshold": 0.5, "horizon": 64, "reward": "shaped"}
    model = model_on(SparsEnv(**settings, num_envs=64), n_steps=32, batch_size=512, n_epochs=4, ent_coef=0.01)
    model.learn(98_304)
    judge = SparsEnv(**settings, num_envs=256)
    learned = reached(judge, TrainedPolicy(Snapshot(model.policy).policy))
    chance = reached(judge, POLICIES["random"].make(judge, 0))
    best = reached(judge, POLICIES["bfs_to_tau"].make(judge, 0))
    assert best[0] == 1.0
    assert learned[0] >= 0.9
    assert learned[0] >= 3 * chance[0]
    assert learned[1] <= 1.5 * best[1], "steps of the episodes that reach τ"


def test_self_play_learns_to_find_tumours_faster_than_chance():
    """The default env: two agents, +1 or -1 a step, ten for the find."""
    settings = {**ORACLE, "obs_mode": "features", "threshold": 0.5, "horizon": 64, "eval_dice": False}
    env = SparsEnv(**settings, num_envs=64)
    model = model_on(env, n_steps=32, batch_size=512, n_epochs=4, ent_coef=0.01)
    play = SelfPlay(env)
    model.learn(98_304, callback=play)
    judge = SparsEnv(**{**settings, "n_agents": 1, "reward": "score"}, num_envs=256)
    policy = Snapshot(model.policy)

    def learner(alone):  # the learner's own observation, with nobody else in the volume
        obs = alone.observe()
        features, state = obs[:, :128], obs[:, 128:]
        both = torch.cat(
            (features, features, state[:, :3], state[:, :3], state[:, 3:4], state[:, 3:4], state[:, 4:]), 1
        )
        return policy.act(both, deterministic=False)

    learned, chance = reached(judge, learner), reached(judge, POLICIES["random"].make(judge, 0))
    assert learned[0] >= 0.9
    assert learned[0] >= 3 * chance[0]


def reached(env, policy):
    """Share of episodes that τ ended, and their mean number of steps."""
    env.seed(range(env.num_envs))
    env.reset()
    torch.manual_seed(0)
    played = play(env, policy)
    return played.terminated.float().mean().item(), played.lengths[played.terminated].float().mean().item()


@pytest.mark.parametrize(
    ("env", "network", "paint"),
    [
        ({}, "dense", "cells"),
        ({"classifier": "train"}, "dense", "cells"),
        ({"classifier": "train"}, "paper", "windows"),
        ({"profile": "paper"}, "dense", "windows"),
        ({"score_source": "oracle_fraction"}, "dense", "windows"),
        ({"paint": "windows"}, "dense", "windows"),
        ({"step": 8}, "dense", "windows"),
    ],
)
def test_what_windows_are_painted_with_is_in_the_resolved_configuration(env, network, paint):
    presence = PresenceTrainingConfig(network=network, batch="windows" if network == "paper" else "dense")
    resolved = SparsExperiment(env=SparsConfig(**env), presence=presence).resolved()
    assert resolved.env.paint == paint
    assert resolved.resolved() == resolved
