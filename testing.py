"""The contract of an environment as a check that anybody can run on a `BatchedEnv` of their own, without pytest.

    from segarena.testing import check_env_contract
    check_env_contract(GuessEnv, horizon=20)

It plays a few hundred short steps and stops at the first rule that does not hold.
"""

import io
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from torch import Tensor

from .envs import ENVIRONMENTS
from .envs.adapters import BatchEnv, SingleEnv, class_of, of_env, to_numpy
from .envs.core import Advance, BatchedEnv, Obs


def check_env_contract(
    env: str | type[BatchedEnv],
    *,
    num_envs: int = 3,
    steps: int = 60,
    seed: int = 7,
    device: str = "cpu",
    independent: bool = True,
    **settings: Any,
) -> None:
    """Check that an environment keeps the contract of `BatchedEnv`, on which adapters, learners and checkpoints rely.

    Observations lie in their space, belong to the caller, and are the same asked for alone; rewards are their weighted
    terms; what ended is told before the next episode begins; a reset of some leaves the others alone; the same seed
    gives the same episodes, whatever PyTorch's, NumPy's and Python's global generators do; N environments at once play
    what each plays alone; a saved state continues them bit for bit, and holds nothing but tensors, numbers and strings;
    bad actions are refused; the checkers of Gymnasium and Stable-Baselines3 pass.

    Args:
        env: a subclass of `BatchedEnv`, or the id of a registered one.
        num_envs: N, episodes at once, at least 2.
        steps: moves of each game that is played.
        seed: of the episodes and the random actions.
        device: where the environment plays.
        independent: False for an environment in which, by design, the episodes of a batch depend on each other, so that
            none is the same alone.
        settings: arguments of the environment. Choose them so that episodes end within `steps`, say horizon=20.

    Raises:
        AssertionError: a rule that does not hold; says which, and what to look at.
        ValueError: no such environment, or a refusal of the environment itself, such as reward terms without weights.
    """
    if num_envs < 2:
        raise ValueError(f"num_envs is {num_envs} but must be at least 2, so that environments can be told apart")
    if isinstance(env, str):
        if env not in ENVIRONMENTS:
            raise ValueError(
                f"env is {env!r} but registered are {', '.join(ENVIRONMENTS)}; call segarena.register first"
            )
        env = class_of(ENVIRONMENTS[env].env_class)
    subject = _Subject(env, num_envs, steps, seed, device, settings)
    _check_spaces(subject)
    _check_steps(subject)
    _check_resets(subject)
    _check_seeds(subject)
    _check_state(subject)
    if independent:
        _check_alone(subject)
    _check_refusals(subject)
    _check_face(subject)


@dataclass(frozen=True)
class _Subject:
    """The environment under test, and how it is played."""

    env_class: type[BatchedEnv]
    num_envs: int
    steps: int
    seed: int
    device: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def make(self, num_envs: int | None = None) -> BatchedEnv:
        """New environments that have not begun."""
        return self.env_class(num_envs=num_envs or self.num_envs, device=self.device, **self.settings)

    def begun(self, shift: int = 0, num_envs: int | None = None) -> BatchedEnv:
        """Environments whose first episodes have begun, of the seeds seed + shift, ..."""
        env = self.make(num_envs)
        env.seed([self.seed + shift + n for n in range(env.num_envs)])
        env.reset()
        return env

    def actions(self) -> npt.NDArray[Any]:
        """Random actions [steps, N, ...], always the same."""
        space = self.make(1).single_action_space
        space.seed(self.seed)
        return np.array([[space.sample() for _ in range(self.num_envs)] for _ in range(self.steps)])

    def game(self, env: BatchedEnv, actions: npt.NDArray[Any]) -> Iterator[Advance]:
        """The steps of these actions."""
        return (env.advance(env.actions_from(action)) for action in actions)


def _require(holds: object, rule: str) -> None:
    if not holds:
        raise AssertionError(rule)


# -- the rules -----------------------------------------------------------------------------------------------------


def _check_spaces(subject: _Subject) -> None:
    env = subject.make()
    for name in ("single_observation_space", "single_action_space"):
        _require(
            isinstance(getattr(env, name, None), spaces.Space), f"the constructor must set {name}, a Gymnasium space"
        )
    kinds = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)
    _require(
        isinstance(env.single_action_space, kinds),
        f"single_action_space is {env.single_action_space} but must be Discrete, MultiDiscrete, MultiBinary or Box",
    )
    try:
        env.step(env.actions_from(subject.actions()[0]))
    except ResetNeeded:
        return
    raise AssertionError("a step before the first reset must be refused: leave `step` to BatchedEnv and write `_step`")


def _check_steps(subject: _Subject) -> None:
    """What a step gives: types, shapes, ranges, sums, and that later steps do not write to it."""
    env, n = subject.begun(), subject.num_envs
    names = [f"reward/{name}" for name in env.reward_weights]
    _check_obs(env, env.observe(), "after a reset")
    begun = env.info()
    _require(set(names) <= begun.keys(), f"info lacks {sorted(set(names) - begun.keys())}: write `_info`, not `info`")
    _require(
        not any(bool(begun[name].any()) for name in names), "reward terms in info must be 0 when an episode begins"
    )
    ends = 0
    last: tuple[Any, Any] | None = None
    for number, step in enumerate(subject.game(env, subject.actions())):
        where = f"after step {number + 1}"
        if last is not None:
            _same(last[0], last[1], f"what was told before step {number + 1} changed in it: give new tensors, no views")
        _check_obs(env, step.obs, where)
        for name, value, dtype in (
            ("reward", step.reward, torch.float32),
            ("terminated", step.terminated, torch.bool),
            ("truncated", step.truncated, torch.bool),
        ):
            _require(
                value.shape == (n,) and value.dtype == dtype,
                f"{name} is {value.dtype} {[*value.shape]} but must be {dtype} [{n}] {where}",
            )
        _require(bool(step.reward.isfinite().all()), f"reward is {step.reward.tolist()} {where} but must be finite")
        terms = sum(env.reward_terms.values(), torch.zeros(n, device=env.device))
        _require(
            torch.allclose(terms, step.reward, atol=1e-6),
            f"reward is not the sum of reward_terms {where}: let step add",
        )
        _require(not bool((step.terminated & step.truncated).any()), f"terminated and truncated at once {where}")
        info = env.info()
        _require(info.keys() == begun.keys(), f"info has {sorted(info)} {where} but had {sorted(begun)} at the start")
        for name, value in info.items():
            _require(value.shape[:1] == (n,), f"info {name} is {[*value.shape]} {where} but must be [{n}, ...]")
        over = (step.terminated | step.truncated).nonzero().flatten()
        _require(
            (step.ended is None) == (len(over) == 0) and (step.ended is None or torch.equal(step.ended.env_ids, over)),
            f"`ended` does not name the environments {over.tolist()} whose episodes ended {where}",
        )
        _require(not bool(env.t[over].any()), f"t must be 0 where a new episode began {where}")
        told: list[Any] = [step.obs, step.reward, step.terminated, step.truncated]
        if step.ended is not None:
            ends += len(over)
            _check_obs(env, step.ended.obs, f"at the end of episodes {where}", len(over))
            facts = step.ended.episode_info
            _require(
                len(facts) == len(over) and all(isinstance(one, dict) for one in facts),
                f"`_episode_info` must make one dictionary for each of {len(over)} episodes {where}",
            )
            told += [step.ended.obs, step.ended.info]
        last = told, _copied(told)
    _require(ends, f"no episode ended in {subject.steps} steps: give settings of short episodes, such as horizon=20")


def _check_obs(env: BatchedEnv, obs: Obs, where: str, count: int | None = None) -> None:
    space = env.single_observation_space
    found = to_numpy(obs)
    for k in range(env.num_envs if count is None else count):
        try:
            one = of_env(found, k)
        except IndexError:
            one = None
        _require(
            one is not None and space.contains(one),
            f"the observation of environment {k} {where} is not in {space}: look at shape, dtype and range; it is "
            f"{_described(one)}",
        )
    shapes = [len(part) for part in (found.values() if isinstance(found, dict) else [found])]
    _require(
        set(shapes) <= {env.num_envs if count is None else count}, f"observations {where} are of {shapes} environments"
    )
    if count is None:
        for env_ids in ([env.num_envs - 1, 0], [1]):
            chosen = torch.tensor(env_ids, device=env.device)
            alone = env.observe(chosen)
            _same(_rows(env.observe(), chosen), alone, f"observe({env_ids}) must be those rows of observe() {where}")


def _check_resets(subject: _Subject) -> None:
    """A reset of some environments leaves the others alone."""
    env = subject.begun()
    for _ in subject.game(env, subject.actions()[:3]):
        pass
    others, t, before = torch.arange(1, env.num_envs, device=env.device), env.t.clone(), _copied(env.observe())
    env.reset(torch.tensor([0], device=env.device))
    rule = "reset(env_ids) must leave the other environments alone: in `_reset` write to env_ids only"
    _same(_rows(before, others), _rows(env.observe(), others), rule)
    _require(torch.equal(env.t[1:], t[1:]) and int(env.t[0]) == 0, rule)


def _check_seeds(subject: _Subject) -> None:
    """The same seed gives the same episodes, and nothing else is drawn from."""
    games = []
    for other in (1, 2):
        with _global_seeds(other):
            games.append(_history(subject, subject.begun()))
    rule = "the same seed gave other episodes: draw by self.streams.uniform, never from a global generator"
    _same(games[0], games[1], rule)
    env = subject.begun()
    first = _history(subject, env)
    env.seed([subject.seed + n for n in range(env.num_envs)])
    env.reset()
    _same(
        first, _history(subject, env), "seeding anew and `reset` must begin the same episodes: something was left over"
    )


def _check_state(subject: _Subject) -> None:
    """A saved state continues the same episodes."""
    env, actions = subject.begun(), subject.actions()
    half = len(actions) // 2
    for _ in subject.game(env, actions[:half]):
        pass
    buffer = io.BytesIO()
    try:
        torch.save(env.state(), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    except Exception as error:
        raise AssertionError(
            f"state() must hold tensors, numbers, strings, lists and dictionaries only: {error}"
        ) from error
    kept, other = _copied(state), subject.begun(shift=1000)
    other.load_state(state)
    rule = "state and load_state must hold all that an episode depends on; after loading, {} differ"
    _same(env.observe(), other.observe(), rule.format("observations"))
    _same(env.info(), other.info(), rule.format("infos"))
    games = [_history(subject, one, actions[half:]) for one in (env, other)]
    _same(games[0], games[1], rule.format("later steps"))
    _same(state, kept, "load_state must copy: playing on changed the state that was loaded")


def _check_alone(subject: _Subject) -> None:
    """Environment n of N plays what it plays alone with its seed, through the adapters of Gymnasium."""
    many = BatchEnv(subject.make())
    alone = [SingleEnv(subject.make(1)) for _ in range(subject.num_envs)]
    rule = "environment {} plays otherwise among {} than alone {}: numbers must not depend on who stands beside it"
    together, _ = many.reset(seed=subject.seed)
    for n, env in enumerate(alone):
        obs, _ = env.reset(seed=subject.seed + n)
        _same(of_env(together, n), obs, rule.format(n, subject.num_envs, "after reset"))
    for number, action in enumerate(subject.actions()):
        together, rewards, terminated, truncated, infos = many.step(action)
        for n, env in enumerate(alone):
            obs, reward, *over, info = env.step(action[n])
            where = rule.format(n, subject.num_envs, f"in step {number + 1}")
            _require((reward, *over) == (rewards[n], terminated[n], truncated[n]), where)
            if any(over):
                _same(infos["final_obs"][n], obs, where)
                final = infos["final_info"]
                _same({name: final[name][n] for name in info if name in final}, info, where)
                obs, _ = env.reset()
            _same(of_env(together, n), obs, where)


def _check_refusals(subject: _Subject) -> None:
    """Bad actions are refused, and nothing moves."""
    env = subject.begun()
    good = subject.actions()[0]
    bad = [("outside the space", np.full(good.shape, 10_000)), ("of one environment too few", good[:-1])]
    if env.single_action_space.dtype is not None and isinstance(env.single_action_space, spaces.Box):
        bad[0] = "NaN", np.full_like(good, np.nan)
    for what, action in bad:
        try:
            env.actions_from(action)
        except ValueError:
            continue
        raise AssertionError(f"actions {what} must be refused by actions_from with a ValueError")
    _require(not bool(env.t.any()), "actions_from must not move anything")


def _check_face(subject: _Subject) -> None:
    """Pictures, action masks, and the checkers of Gymnasium and Stable-Baselines3."""
    from gymnasium.utils.env_checker import check_env as gymnasium_check
    from stable_baselines3.common.env_checker import check_env as sb3_check  # loads slowly

    env = subject.begun()
    picture = env._render_frame(1)
    _require(
        isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3,
        f"_render_frame must give uint8 [height, width, 3] but gives {_described(picture)}",
    )
    if not isinstance(env.single_action_space, spaces.Box):
        masks, usual = env.action_masks(), BatchedEnv.action_masks(env)
        _require(
            masks.dtype == torch.bool and masks.shape == usual.shape and bool(masks.any(dim=1).all()),
            f"action_masks are {masks.dtype} {[*masks.shape]} but must be bool {[*usual.shape]}, a True in each row",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for check in (gymnasium_check, sb3_check):
            single = SingleEnv(subject.make(1))
            try:
                check(single, skip_render_check=True)
            except Exception as error:
                raise AssertionError(f"{check.__module__} refuses the single environment: {error}") from error


# -- what is compared ----------------------------------------------------------------------------------------------


def _history(subject: _Subject, env: BatchedEnv, actions: npt.NDArray[Any] | None = None) -> list[Any]:
    """All that a game tells."""
    seen: list[Any] = [_copied(env.observe())]
    for step in subject.game(env, subject.actions() if actions is None else actions):
        ended = [] if step.ended is None else [step.ended.obs, step.ended.info, step.ended.episode_info]
        seen.append(_copied([step.obs, step.reward, step.terminated, step.truncated, env.info(), ended]))
    return seen


@contextmanager
def _global_seeds(seed: int) -> Iterator[None]:
    """Other states of the global generators inside, the old ones afterwards."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        random.setstate(kept[2])


def _rows(obs: Any, env_ids: Tensor) -> Any:
    return {name: _rows(part, env_ids) for name, part in obs.items()} if isinstance(obs, dict) else obs[env_ids]


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list | tuple) else value


def _same(one: Any, other: Any, rule: str) -> None:
    _require(_equal(one, other), rule)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        one, other = one.detach().cpu().numpy(), other.detach().cpu().numpy()
    equal_nan = np.asarray(one).dtype.kind in "fc"
    return bool(np.array_equal(one, other, equal_nan=equal_nan))


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return str({name: _described(part) for name, part in value.items()})
    if isinstance(value, np.ndarray) and value.size:
        return f"{value.dtype} {[*value.shape]} in {value.min()}..{value.max()}"
    return repr(value)
