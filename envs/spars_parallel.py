"""SPARS for two learners: a `ParallelEnv` of PettingZoo, in which both windows are moved from outside.

It plays the very `SparsEnv` of gym.make: the second agent's action is handed to it as that of its competitor.
"""

import logging
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .adapters import of_env, to_numpy
from .core import Frame, Obs
from .spars import SparsEnv
from .spars_config import CONTINUOUS, RESET_OPTIONS, SparsConfig

try:
    from pettingzoo import ParallelEnv
except ImportError as missing:
    raise ImportError("two players need PettingZoo: pip install 'segarena[pettingzoo]'") from missing

log = logging.getLogger(__name__)

AGENTS = ("learner", "competitor")


class _Given:
    """A competitor whose next action was chosen outside."""

    action: Tensor

    def act(self, obs: Obs, deterministic: bool) -> Tensor:
        return self.action


class SparsParallelEnv(ParallelEnv[str, Any, Any]):  # type: ignore[misc] # PettingZoo has no types
    """Two agents, `learner` and `competitor`, move at the same time; one's reward is the other's loss.

    Spaces, reward terms, ends and options of `reset` are those of `SparsEnv`; each agent sees itself as the first. Both
    leave together, when the episode ends. infos have `action_mask`, bool [A] (see `SparsEnv.action_masks`), the scores
    `score_self` and `score_opp` from the agent's own side and, at the end, `case_id`, `reason` and the Dice of what
    `accumulate` says is painted.

    >>> import segarena
    >>> env = segarena.SparsParallelEnv(cases=["phantom_02000"])
    >>> obs, infos = env.reset(seed=0)
    >>> sorted(obs), obs["learner"]["windows"].shape
    (['competitor', 'learner'], (2, 16, 16, 8))
    >>> obs, rewards, terminations, truncations, infos = env.step({"learner": 4, "competitor": 0})
    >>> rewards["learner"] + rewards["competitor"]
    0.0

    Args:
        config: arguments of SPARS.
        device: "auto", "cpu", "cuda" or "cuda:N".
        render_mode: None, "rgb_array", or "human" where there is a display.
        settings: fields of `SparsConfig` by name; they replace those of `config`.

    Raises:
        ValueError: an argument that `SparsEnv` refuses, one agent only, or rewards that do not sum to 0.
    """

    metadata: ClassVar[dict[str, Any]] = {**SparsEnv.metadata, "name": "SPARS-LiverCT-v0", "is_parallelizable": True}

    def __init__(
        self,
        config: SparsConfig | None = None,
        *,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        self.batched = SparsEnv(config, device=device, render_mode=render_mode, **settings)
        cfg = self.batched.config
        if cfg.profile in ("search", "patch"):
            raise ValueError(
                f"profile is {cfg.profile!r}, in which agents act one after the other; here they move at once"
            )
        if cfg.action_set == CONTINUOUS:
            raise ValueError("action_set is 'continuous', which has no action masks; give one with moves")
        if cfg.n_agents != 2:
            raise ValueError(f"n_agents is {cfg.n_agents} but two agents play here; use gym.make for one")
        if cfg.reward not in ("sign", "diff") or cfg.tie_reward:
            raise ValueError(
                f"reward is {cfg.reward!r} and tie_reward {cfg.tie_reward!r}, but rewards sum to 0 only with "
                f"reward='sign' or 'diff' and tie_reward=0"
            )
        self._env_ids = torch.zeros(1, dtype=torch.int64, device=self.batched.device)
        self._given = _Given()
        self.batched.set_opponent(self._given)
        self.possible_agents, self.agents, self.render_mode = list(AGENTS), list[str](), render_mode
        single = self.batched.single_observation_space, self.batched.single_action_space
        self._spaces = {agent: deepcopy(single) for agent in AGENTS}  # each samples by its own seed
        self._seeds = np.random.SeedSequence()

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """Observation of an agent: that of `SparsEnv`."""
        return self._spaces[agent][0]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """Action of an agent: that of `SparsEnv`."""
        return self._spaces[agent][1]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin an episode; `seed` seeds all that is random from here on. Options that SPARS lacks are left out, as
        PettingZoo's own test expects, with a warning in the log."""
        if seed is not None or not self.batched.running:
            self.batched.seed([int(self._seeds.generate_state(1)[0]) if seed is None else seed])
        if unknown := sorted(set(options or {}) - RESET_OPTIONS):
            log.warning("reset options %s are not known and left out; known are %s", unknown, sorted(RESET_OPTIONS))
        self.batched.reset(options={name: value for name, value in (options or {}).items() if name in RESET_OPTIONS})
        self.agents = list(AGENTS)
        return self._observations(), self._infos({})

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """One move of both agents; {} for nobody, after the end.

        Raises:
            ValueError: an action is missing, or outside the action space.
        """
        if not self.agents:
            return {}, {}, {}, {}, {}
        if missing := sorted(set(self.agents) - set(actions)):
            raise ValueError(f"actions lack {missing}: both agents move at the same time")
        mine, self._given.action = (self.batched.actions_from(np.asarray(actions[agent])[None]) for agent in AGENTS)
        reward, terminated, truncated = (float(value) for value in self.batched.step(mine))
        over = bool(terminated or truncated)
        (facts,) = self.batched.episode_info(self._env_ids) if over else ({},)
        obs, infos = self._observations(), self._infos(facts)
        self.agents = [] if over else self.agents
        return (
            obs,
            {"learner": reward, "competitor": -reward},
            dict.fromkeys(AGENTS, bool(terminated)),
            dict.fromkeys(AGENTS, bool(truncated)),
            infos,
        )

    def _observations(self) -> dict[str, Any]:
        return {agent: of_env(to_numpy(self.batched.observe(player=n)), 0) for n, agent in enumerate(AGENTS)}

    def _infos(self, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
        scores = [float(score) for score in self.batched.duel[:, 0]]
        return {
            agent: {
                "action_mask": to_numpy(self.batched.action_masks(player=n))[0],
                "score_self": scores[n],
                "score_opp": scores[1 - n],
                **facts,
            }
            for n, agent in enumerate(AGENTS)
        }

    def render(self) -> Frame | None:
        """The picture of this step as uint8 [H, W, 3], or None where it is shown or no render_mode was chosen."""
        return None if self.render_mode is None else self.batched.render()

    def close(self) -> None:
        """Nothing is held that needs closing."""
