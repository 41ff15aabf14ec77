"""A new environment with reference policies, as somebody outside the package writes it; newcomer.yaml trains it."""

import sys
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from segarena.agents.command_line import main
from segarena.agents.papers import POLICIES
from segarena.agents.policy import Reference
from segarena.envs import Entry, register
from segarena.envs.core import BatchedEnv


class Corridor(BatchedEnv):
    """Nine places in a row, one of which has the door; the agent sees its place and the door's, and walks."""

    def __init__(self, horizon=20, **settings):
        super().__init__(horizon=horizon, **settings)
        self.single_observation_space = spaces.Box(0, 1, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.places = torch.zeros(self.num_envs, 2, dtype=torch.int64, device=self.device)  # the agent's, the door's

    def _reset(self, env_ids, options):
        self.places[env_ids] = (self.streams.uniform(2, env_ids) * 9).long()

    def _step(self, actions):
        self.places[:, 0] = (self.places[:, 0] + 2 * actions - 1).clamp(0, 8)
        found = self.places[:, 0] == self.places[:, 1]
        return {"reward": torch.where(found, 1.0, -0.1)}, found

    def observe(self, env_ids=None):
        return self.places.float() / 8 if env_ids is None else self.places[env_ids].float() / 8

    def _render_frame(self, env_id):
        return np.kron(np.eye(9, dtype=np.uint8)[self.places[env_id]].T[..., None], np.full((16, 16, 3), 255, np.uint8))

    def state(self):
        return {**super().state(), "places": self.places}

    def load_state(self, state):
        super().load_state(state)
        self.places = state["places"].to(self.device, copy=True)


RULES = {
    "random": Reference("Left or right.", lambda env, seed: lambda env: (env.streams.tick() * 2).long()),
    "to the door": Reference("The way.", lambda env, seed: lambda env: (env.places[:, 1] > env.places[:, 0]).long()),
}
register("Corridor-v0", Entry(f"{__name__}:Corridor", "none", str(Path(__file__).with_suffix(".yaml"))))
POLICIES["Corridor-v0"] = RULES
if __name__ == "__main__":
    sys.exit(main())
