"""The table of environments. Importing it registers them with Gymnasium; doing so twice is harmless."""

from dataclasses import dataclass

import gymnasium as gym


@dataclass(frozen=True)
class Entry:
    """One environment: its class, its paper and the configuration that trains it."""

    env_class: str
    paper: str
    config: str


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

for _id, _entry in ENVIRONMENTS.items():
    if _id not in gym.registry:
        gym.register(
            _id,
            entry_point="segarena.envs.adapters:make_single",
            vector_entry_point="segarena.envs.adapters:make_batch",
            kwargs={"env_class": _entry.env_class},
        )
