"""Reference policies: one way to play them all, by name, without a trained run."""

from dataclasses import fields

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from gymnasium import spaces
from segarena.agents.command_line import main
from segarena.agents.papers import PAPERS, POLICIES
from segarena.agents.policy import RandomPolicy, TrainedPolicy, make_env, play, play_and_draw, reference
from segarena.agents.ppo import Learner
from segarena.envs import ENVIRONMENTS
from segarena.envs.core import BatchedEnv
from segarena.envs.learner_env import LearnerEnv

SPARS = {"cases": ["phantom_02000"], "score_source": "oracle_fraction", "device": "cpu", "threshold": 0.4}


def begun(env, seed=0):
    env.seed([seed + number for number in range(env.num_envs)])
    env.reset()
    return env


def test_an_episode_of_every_environment_is_played_to_its_end():
    env = begun(make_env("SPARS-LiverCT-v0", num_envs=12, horizon=15, n_agents=1, **SPARS))
    greedy = POLICIES["SPARS-LiverCT-v0"]["greedy"].make(env, 0)
    seen = []
    played = play(env, greedy, on_end=lambda env_ids: seen.append((env_ids.tolist(), env.at[0, env_ids].tolist())))
    assert sorted(number for env_ids, _ in seen for number in env_ids) == list(range(12)), "each episode ends once"
    assert len(seen) > 1, "episodes must end at different times"

    for number in range(12):  # the same episodes, one at a time, by the environment alone
        one = begun(make_env("SPARS-LiverCT-v0", horizon=15, n_agents=1, **SPARS), seed=number)
        total, steps, over, policy = 0.0, 0, False, POLICIES["SPARS-LiverCT-v0"]["greedy"].make(one, 0)
        while not over:
            reward, terminated, truncated = one.step(policy(one))
            total, steps, over = total + float(reward), steps + 1, bool(terminated | truncated)
        assert float(played.returns[number]) == pytest.approx(total)
        assert (int(played.lengths[number]), bool(played.terminated[number])) == (steps, bool(terminated))
        assert played.infos[number] == one.episode_info(torch.tensor([0]))[0]
        places = {at for env_ids, ats in seen for n, at in zip(env_ids, ats, strict=True) if n == number}
        assert places == {int(one.at[0, 0])}, "the hook sees how the episode ended"


@pytest.mark.parametrize(
    ("space", "values"),
    [
        (spaces.Discrete(3), [0, 1, 2]),
        (spaces.MultiDiscrete([2, 4]), [[0, 1], [0, 1, 2, 3]]),
        (spaces.Box(np.float32([-1, 2]), np.float32([1, 6])), None),
    ],
)
def test_random_actions_are_even_over_their_space_and_drawn_by_a_generator_of_their_own(space, values):
    class Many:
        num_envs, device = 4000, torch.device("cpu")

    before = torch.get_rng_state()
    policy = RandomPolicy(space, 3)
    first, second = policy(Many), policy(Many)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(RandomPolicy(space, 3)(Many), first)
    assert not torch.equal(first, second)
    assert all(space.contains(action) for action in first.numpy().astype(space.dtype)[:50])
    if isinstance(space, spaces.Box):
        torch.testing.assert_close(first.mean(dim=0), torch.tensor([0.0, 4.0]), atol=0.06, rtol=0)
        torch.testing.assert_close(first.std(dim=0), torch.tensor([2.0, 4.0]) / 12**0.5, atol=0.04, rtol=0)
        return
    columns = [first] if isinstance(space, spaces.Discrete) else first.unbind(1)
    for column, expected in zip(columns, [values] if isinstance(space, spaces.Discrete) else values, strict=True):
        found, counts = column.unique(return_counts=True)
        assert found.tolist() == expected
        assert (counts / len(column) - 1 / len(expected)).abs().max() < 0.03


def test_a_policy_may_keep_a_memory_that_begins_anew_with_each_episode():
    env = make_env("SPARS-LiverCT-v0", num_envs=3, horizon=5, **(SPARS | {"threshold": 1.0}))
    memory, told = torch.zeros(3, dtype=torch.int64), []

    def in_turn(env):
        memory[env.t == 0] = 0
        told.append(memory.clone())
        memory.add_(1)
        return memory % 6

    for _ in range(2):
        play(begun(env), in_turn)
    assert torch.stack(told)[:, 0].tolist() == [0, 1, 2, 3, 4] * 2


def test_an_episode_is_drawn_from_its_start_to_its_end():
    env = make_env("SPARS-LiverCT-v0", render_mode="rgb_array", horizon=4, **(SPARS | {"threshold": 1.0}))
    env.seed([0])
    frames, played = play_and_draw(env, POLICIES["SPARS-LiverCT-v0"]["constant0"].make(env, 0))
    assert len(frames) == 1 + int(played.lengths[0]) == 5


@pytest.mark.parametrize(("env_id", "name"), [(env_id, name) for env_id in POLICIES for name in POLICIES[env_id]])
def test_every_reference_policy_acts_inside_the_action_space(env_id, name):
    row = POLICIES[env_id][name]
    env = begun(make_env(env_id, row.settings, num_envs=4, device="cpu"))
    assert row.fits(env)
    policy = row.make(env, 0)
    for _ in range(3):
        actions = policy(env)
        env.actions_from(actions.cpu().numpy())
        env.advance(actions)
    assert row.about


def test_every_environment_has_reference_policies():
    assert POLICIES.keys() == ENVIRONMENTS.keys()
    with pytest.raises(ValueError, match=r"policy is 'gredy' but must be one of .*did you mean 'greedy'"):
        reference(POLICIES["SPARS-LiverCT-v0"], "gredy")


@pytest.mark.parametrize("paper", PAPERS.values(), ids=PAPERS)
def test_every_baseline_can_be_chosen_and_its_settings_are_a_field_of_the_experiment(paper):
    known = {field.name for field in fields(paper.experiment)}
    titles = [row.title for row in paper.baselines.values()]
    assert len(set(titles)) == len(titles)
    for row in paper.baselines.values():
        assert row.title
        assert row.included or "baselines" in known
        assert row.section is None or row.section in known


class Slider(BatchedEnv):
    """Moves a point by a little; what it sees is a picture with the channels last."""

    def __init__(self, low=-0.1, high=0.2, **settings):
        super().__init__(horizon=4, **settings)
        self.single_observation_space = spaces.Box(0, 255, (4, 5, 3), np.uint8)
        self.single_action_space = spaces.Box(low, high, (2, 3), np.float32)
        self.seen = torch.zeros(self.num_envs, 4, 5, 3, dtype=torch.uint8, device=self.device)
        self.moves = []

    def _reset(self, env_ids, options):
        drawn = self.streams.uniform(60, env_ids) * 256
        self.seen[env_ids] = drawn.to(torch.uint8).view(-1, 4, 5, 3)

    def _step(self, actions):
        self.moves.append(actions)
        return {"reward": actions.mean(dim=(1, 2))}, torch.zeros(self.num_envs, dtype=torch.bool)

    def observe(self, env_ids=None):
        return self.seen.clone() if env_ids is None else self.seen[env_ids]

    def _render_frame(self, env_id):
        return self.seen[env_id].numpy()


@pytest.mark.parametrize("squashed", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_trained_policy_plays_the_actions_that_stable_baselines_predicts(squashed, deterministic):
    env = Slider(num_envs=16, device="cpu")
    kwargs = {"squash_output": True, "log_std_init": 0.0} if squashed else {"log_std_init": 0.5}
    model = Learner("MlpPolicy", LearnerEnv(env), seed=0, device="cpu", use_sde=squashed, policy_kwargs=kwargs)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(200)  # as a trained policy, beyond the bounds
    policy = TrainedPolicy(model.policy, deterministic)
    torch.manual_seed(1)
    played = play(begun(env), policy)
    torch.manual_seed(1)
    expected = [model.predict(env.observe().numpy(), deterministic=deterministic)[0] for _ in range(4)]
    assert torch.equal(torch.stack(env.moves), torch.from_numpy(np.stack(expected)))
    lowest, highest = float(np.min(expected)), float(np.max(expected))
    assert -0.1001 < lowest < -0.05 < 0.1 < highest < 0.2001
    if not squashed:
        assert (lowest, highest) == pytest.approx((-0.1, 0.2)), "some actions must be clipped"
    assert -0.401 < played.returns.min() < played.returns.max() < 0.801


def test_an_environment_without_reference_policies_is_not_played_by_none(monkeypatch, capsys):
    monkeypatch.delitem(POLICIES, "RL4Seg-Echo-v0")
    assert main(["play", "--id", "RL4Seg-Echo-v0", "--episodes", "1", "--device", "cpu"]) == 2
    assert "RL4Seg-Echo-v0 has no reference policies to play" in capsys.readouterr().err


# -- the command line ----------------------------------------------------------------------------------------------


def rows_of(out):
    """The cells of the printed table, by policy and column."""
    lines = [line for line in out.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


PLAY = ["play", "--id", "SPARS-LiverCT-v0", "--episodes", "6", "--device", "cpu", "--set"]
SET = ["cases=[phantom_02000]", "score_source=oracle_fraction", "horizon=12"]


def test_reference_policies_are_played_without_a_run(capsys):
    assert main([*PLAY, *SET]) == 0
    played = rows_of(capsys.readouterr().out)
    rules = ["random", "constant0", "greedy", "sweep", "blind_walk", "bfs_to_tau", "oracle_bfs", "value_iteration"]
    assert list(played) == rules
    assert {"return", "steps", "terminated", "dice", "precision", "recall"} <= played["greedy"].keys()
    assert main([*PLAY, *SET, "threshold=1", "--policy", "greedy", "--seed", "3"]) == 0
    assert rows_of(capsys.readouterr().out)["greedy"]["steps"] == "12 [12, 12]"
    assert main(["play", "--id", "RL4Seg-Echo-v0", "--policy", "truth", "--episodes", "3"]) == 0
    assert rows_of(capsys.readouterr().out)["truth"]["return"] == "1 [1, 1]"


def test_a_policy_that_cannot_play_is_named_and_left_out(capsys):
    assert main([*PLAY, *SET, "action_set=king26"]) == 1
    out, message = capsys.readouterr()
    assert "sweep" not in rows_of(out)
    assert "left out   sweep: sweep needs action_set='axis6' or 'axis7', not 'king26'" in message
    assert main([*PLAY, *SET, "action_set=king26", "--policy", "sweep"]) == 2


def test_policies_that_need_other_arguments_are_named_with_these(capsys):
    assert main(["play", "--id", "SEATAttack-MSD-v0", "--episodes", "1", "--set", "split=val[:1]", "horizon=2"]) == 0
    out = capsys.readouterr().out
    assert "not played free, seat: --set update_victim=every_step start=carry\n" in out
    assert "not played deat: --set action_mode=box\n" in out
    assert not {"free", "seat", "deat"} & rows_of(out).keys()


def test_the_first_episode_of_a_reference_policy_is_filmed(tmp_path, capsys):
    film = tmp_path / "deep" / "greedy.gif"
    assert main([*PLAY, *SET, "threshold=1", "--policy", "greedy", "--out", str(film)]) == 0
    out = capsys.readouterr().out
    assert rows_of(out)["greedy"]["steps"] == "12 [12, 12]"
    assert f"film       {film}" in out
    frames = imageio.imread(film, index=None)
    assert len(frames) == 13, "the start, and a picture of every step"
    assert frames.std() > 1
    assert main([*PLAY, *SET, "--out", str(film)]) == 2
    assert "one policy is shown: name it with --policy" in capsys.readouterr().err
    assert main([*PLAY, *SET, "--policy", "greedy", "--out", "greedy.xyz"]) == 2
    assert "greedy.xyz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--id", "SPARS-LiverCT"], "id is 'SPARS-LiverCT' but must be one of"),
        (["--id", "SPARS-LiverCT-v0", "--policy", "gredy"], "did you mean 'greedy'?"),
        (["--id", "SPARS-LiverCT-v0", "--episodes", "0"], "0 but must be an integer, at least 1"),
        (["--id", "SPARS-LiverCT-v0", "--set", "num_envs=3"], "num_envs cannot stand among the arguments"),
        (["--id", "SPARS-LiverCT-v0", "--set", "horizon"], "set has 'horizon' but each must be name=value"),
        (["--id", "SPARS-LiverCT-v0", "--set", "horizn=3"], "did you mean 'horizon'?"),
        (["--id", "SPARS-LiverCT-v0", "--set", "cases=[x"], "whose value is not YAML"),
    ],
)
def test_what_cannot_be_played_is_refused(arguments, said, capsys):
    assert main(["play", *arguments]) == 2
    assert said in capsys.readouterr().err
