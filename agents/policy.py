"""Reference policies, and `play`, which plays any policy: hand-written, trained, scripted, learned elsewhere.

A policy is a callable env -> actions [N, ...] for all N environments of a `BatchedEnv`. It may keep a memory for each
environment; where `env.t` is 0 an episode has just begun, so that its memory begins anew there. A paper's own rules
stand in `papers.POLICIES`, one table per environment id: evaluation and the command line play them by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from ..common.checks import check_choice
from ..envs import ENVIRONMENTS
from ..envs.adapters import class_of, to_numpy
from ..envs.core import BatchedEnv
from ..evaluation.films import Shot
from .recurrent import Memory

Env = TypeVar("Env", bound=BatchedEnv)
ActorCritic = ActorCriticPolicy | MaskableActorCriticPolicy
"""Network of a learner of Stable-Baselines3; the second takes masks of the actions."""
AnyEnv = TypeVar("AnyEnv", bound=BatchedEnv, contravariant=True)


class Policy(Protocol[AnyEnv]):
    """Acts in all environments at once; any function env -> actions is one."""

    def __call__(self, env: AnyEnv, /) -> Tensor:
        """Actions [N, ...] for the episodes as they stand, on the environment's device."""


@dataclass(frozen=True)
class Reference(Generic[Env]):
    """One row of a table of reference policies: a policy that needs the environment and a seed, but no training."""

    about: str
    """Description in one line."""
    make: Callable[[Env, int], Policy[Env]]
    """Makes the policy for an environment that has what it `needs`, from a seed; ValueError where it cannot play."""
    supervision: str = "none"
    """Labels that it uses: none, or target (of hearts) or voxel for one that looks at the truth."""
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Arguments of the environment without which it cannot play: their names, and the values that will do, of which
    `play` takes the first where none is given."""

    def lacking(self, env: BatchedEnv) -> dict[str, Any]:
        """The arguments that it needs and the environment has not, with the first value of each that will do."""
        return {name: values[0] for name, values in self.needs.items() if getattr(env.config, name) not in values}

    def fits(self, env: BatchedEnv) -> bool:
        """Whether the environment has what it needs."""
        return not self.lacking(env)

    def policy(self, env: Env, seed: int) -> Policy[Env]:
        """The policy for an environment.

        Raises:
            ValueError: it cannot play there.
        """
        if not self.fits(env):
            wanted = " and ".join(f"{name}={' or '.join(map(repr, values))}" for name, values in self.needs.items())
            given = ", ".join(repr(getattr(env.config, name)) for name in self.needs)
            raise ValueError(f"it plays with {wanted}, but these are {given}")
        return self.make(env, seed)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of an environment in which it can play."""
        return {name: values[0] for name, values in self.needs.items()}


class RandomPolicy:
    """Any action, uniformly and independently.

    Args:
        space: of the actions of one environment: Discrete or MultiDiscrete from 0, MultiBinary, or a bounded Box.
        seed: seed of its own generator, so that the environment's numbers stay; on the CPU, so that devices agree.
    """

    def __init__(self, space: spaces.Space[Any], seed: int) -> None:
        self._space = space
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, env: BatchedEnv) -> Tensor:
        space = self._space
        assert space.shape is not None
        drawn = torch.rand((env.num_envs, *space.shape), generator=self._generator, dtype=torch.float64)
        if isinstance(space, spaces.Box):
            low, high = (torch.as_tensor(end, dtype=torch.float64) for end in (space.low, space.high))
            return (low + (high - low) * drawn).float().to(env.device)
        if isinstance(space, spaces.MultiDiscrete):
            return (drawn * torch.as_tensor(space.nvec)).long().to(env.device)
        choices = int(space.n) if isinstance(space, spaces.Discrete) else 2
        return (drawn * choices).long().to(env.device)


@dataclass(frozen=True)
class TrainedPolicy:
    """The policy of a learner of Stable-Baselines3: the actions of its `predict`, without leaving the device.

    Draws from PyTorch's global generator unless deterministic. A recurrent policy remembers the episodes of one batch
    of environments, from their begin on.
    """

    policy: ActorCritic
    deterministic: bool = False
    """Take the likeliest action instead of a drawn one."""
    normalize: VecNormalize | None = None
    """The wrapper with the statistics by which it saw its observations normalised, if it did."""
    memory: list[Memory] = field(default_factory=list, repr=False)
    """Of a recurrent policy: one, once it has acted."""

    @torch.no_grad()
    def __call__(self, env: BatchedEnv) -> Tensor:
        obs: Any = env.observe()
        transposed = _shapes(self.policy.observation_space) != _shapes(env.single_observation_space)
        if self.normalize is not None or transposed:  # images with the channels last, which SB3 puts first
            seen = to_numpy(obs)
            obs, _ = self.policy.obs_to_tensor(self.normalize.normalize_obs(seen) if self.normalize else seen)
        self.policy.set_training_mode(False)
        space = self.policy.action_space
        assert space.shape is not None
        if isinstance(self.policy, RecurrentActorCriticPolicy):
            self.memory[:] = [Memory.fitting(next(iter(self.memory), None), self.policy, env.num_envs)]
            distribution = self.memory[0].distribution(self.policy, obs, env.t == 0)
        else:
            masked = isinstance(self.policy, MaskableActorCriticPolicy)
            masks: dict[str, Any] = {"action_masks": env.action_masks()} if masked else {}
            distribution = self.policy.get_distribution(obs, **masks)
        actions = distribution.get_actions(deterministic=self.deterministic)
        return within_space(self.policy)(actions.reshape(-1, *space.shape))


def within_space(policy: ActorCritic) -> Callable[[Tensor], Tensor]:
    """A function that makes actions [N, ...] of the space from those that the policy's distribution gives."""
    space = policy.action_space
    if not isinstance(space, spaces.Box):
        return lambda actions: actions.long()  # of MultiBinary they are floats
    low, high = (torch.as_tensor(bound, device=policy.device) for bound in (space.low, space.high))
    if policy.squash_output:  # a tanh: -1..1 stand for low..high
        return lambda actions: low + 0.5 * (actions + 1.0) * (high - low)
    return lambda actions: actions.clamp(low, high)  # a Gaussian has no bounds


def _shapes(space: spaces.Space[Any]) -> Any:
    return {name: part.shape for name, part in space.items()} if isinstance(space, spaces.Dict) else space.shape


@dataclass(frozen=True)
class Episodes:
    """One episode of every environment, [N]; tensors stay on the device."""

    returns: Tensor
    """Sum of the rewards, float64 [N]."""
    lengths: Tensor
    """Steps, int64 [N]."""
    terminated: Tensor
    """bool [N]; the other episodes were truncated."""
    infos: list[dict[str, Any]]
    """`episode_info` of each."""


def play(env: Env, policy: Policy[Env], *, on_end: Callable[[Tensor], None] | None = None) -> Episodes:
    """Play the episodes that have begun in every environment to their ends; begin them by `env.reset()` before.

    An environment whose episode has ended is stepped on with the others until the last one ends; nothing of that
    counts.

    Args:
        env: N environments, reset.
        policy: acts in all of them.
        on_end: called with env_ids int64 [K] right after the step that ended their episodes, while `env` still shows
            how they ended.
    """
    returns = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)
    lengths = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
    by_term, over = (torch.zeros(env.num_envs, dtype=torch.bool, device=env.device) for _ in range(2))
    infos: list[dict[str, Any]] = [{} for _ in range(env.num_envs)]
    running = env.num_envs
    while running:
        reward, terminated, truncated = env.step(policy(env))
        returns += reward.double().masked_fill(over, 0.0)
        env_ids = ((terminated | truncated) & ~over).nonzero().flatten()
        if len(env_ids):
            lengths[env_ids], by_term[env_ids] = env.t[env_ids], terminated[env_ids]
            for number, info in zip(env_ids.tolist(), env.episode_info(env_ids), strict=True):
                infos[number] = info
            if on_end:
                on_end(env_ids)
            over = over.index_fill(0, env_ids, True)
            running -= len(env_ids)
    return Episodes(returns, lengths, by_term, infos)


def play_and_draw(env: Env, policy: Policy[Env]) -> tuple[list[Shot], Episodes]:
    """The film of one episode of a single environment (render_mode rgb_array), and what came of it.

    A picture for its start and one for each step, captioned with the step, the action that led there, its reward and
    what the environment says of itself.
    """
    shots: list[Shot] = []
    action: list[Tensor] = []

    def draw() -> None:
        picture = env.render()
        assert picture is not None
        shots.append(Shot(picture, _caption(env, action[-1] if action else None)))

    def drawn(env: Env) -> Tensor:
        draw()
        action.append(policy(env))
        return action[-1]

    env.reset()
    played = play(env, drawn, on_end=lambda _: draw())
    return shots, played


def _caption(env: BatchedEnv, action: Tensor | None) -> list[str]:
    """The lines under a picture of the first environment; action: [1, ...], of the last step."""
    parts = [f"step {int(env.t[0])} of at most {env.horizon}"]
    if action is not None:
        terms = {name: float(term[0]) for name, term in env.reward_terms.items()}
        parts += [f"action {text}"] if (text := env.action_text(action[0])) else []
        named = f" ({', '.join(f'{name} {term:.2f}' for name, term in terms.items())})" if len(terms) > 1 else ""
        parts.append(f"reward {sum(terms.values()):.2f}{named}")
    return [line for line in (",  ".join(parts), env.caption(0)) if line]


def make_env(env_id: str, chosen: Mapping[str, Any] | None = None, **settings: Any) -> BatchedEnv:
    """The environments behind an id.

    Args:
        env_id: a name in `ENVIRONMENTS`.
        chosen: arguments of the constructor that a user chose, without those of `BatchedEnv`.
        settings: more of them; num_envs, device, render_mode.

    Raises:
        ValueError: there is no such id, the constructor refuses an argument, or `chosen` has one of `BatchedEnv`.
    """
    check_choice("env", env_id, ENVIRONMENTS)
    if taken := [name for name in chosen or {} if name in ("num_envs", "device", "render_mode")]:
        raise ValueError(
            f"{', '.join(taken)} cannot stand among the arguments of {env_id}: device, the number of environments and "
            f"what draws them have options of their own"
        )
    entry = ENVIRONMENTS[env_id]
    package = f" of package {entry.package}" if entry.package else ""
    return class_of(entry.env_class, f"environment {env_id!r}{package}")(**{**(chosen or {}), **settings})


def reference(table: Mapping[str, Reference[Env]], name: str) -> Reference[Env]:
    """The row of a table that has this name.

    Raises:
        ValueError: there is none.
    """
    check_choice("policy", name, table)
    return table[name]
