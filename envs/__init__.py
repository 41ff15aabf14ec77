"""The table of environments. Importing it registers them with Gymnasium; doing so twice is harmless."""

from dataclasses import dataclass

import gymnasium as gym


@dataclass(frozen=True)
class Entry:
    """One environment: its class, its paper and the configuration that trains it."""

    env_class: str
    """Its `BatchedEnv`, as "module:Class"."""
    paper: str
    """Paper and subject, in one line."""
    config: str
    """Configuration that trains it, from the root of the package or absolute."""


ENVIRONMENTS = {
    "SPARS-LiverCT-v0": Entry(
        env_class="segarena.envs.spars:SparsEnv",
        paper="SPARS: self-play adversarial RL for segmentation of liver tumours (arXiv 2505.18989)",
        config="configs/spars/default.yaml",
    ),
    "RL4Seg-Echo-v0": Entry(
        env_class="segarena.envs.rl4seg:EchoEnv",
        paper="RL4Seg: domain adaptation of echocardiography segmentation via RL (arXiv 2406.17902)",
        config="configs/rl4seg/loop.yaml",
    ),
}


def register(env_id: str, entry: Entry) -> None:
    """Add an environment to the table and to Gymnasium; doing so twice is harmless."""
    ENVIRONMENTS[env_id] = entry
    if env_id not in gym.registry:
        gym.register(
            env_id,
            entry_point="segarena.envs.adapters:make_single",
            vector_entry_point="segarena.envs.adapters:make_batch",
            kwargs={"env_class": entry.env_class},
            order_enforce=False,  # SingleEnv checks order and actions itself, in every step: without Gymnasium's
            disable_env_checker=True,  # wrappers gym.make gives the environment, with its own help and methods
        )


for _id, _entry in list(ENVIRONMENTS.items()):
    register(_id, _entry)
