"""SegArena: Gymnasium environments for medical image segmentation, and what trains agents in them.

Importing it registers every environment with Gymnasium. The names below are the public ones; each loads its module when
it is first used, so that `import segarena` itself stays fast.

    import gymnasium as gym, segarena
    env = gym.make("SPARS-LiverCT-v0")                                      # one environment
    envs = gym.make_vec("SPARS-LiverCT-v0", num_envs=64, obs_mode="features")  # many, as tensors at once
    env = segarena.LearnerEnv(segarena.SparsEnv(num_envs=64))               # for Stable-Baselines3
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import envs as envs
from .envs import ENVIRONMENTS as ENVIRONMENTS
from .envs import Entry as Entry
from .envs import register as register

if TYPE_CHECKING:
    from .agents.dense_ppo.policy import DensePolicy as DensePolicy
    from .agents.dense_ppo.ppo import DensePPO as DensePPO
    from .agents.dense_ppo.ppo import DensePPOConfig as DensePPOConfig
    from .agents.generic import PPOExperiment as PPOExperiment
    from .agents.ppo import PPOConfig as PPOConfig
    from .agents.prediction import Prediction as Prediction
    from .agents.prediction import predict as predict
    from .agents.rl4seg.config import RL4SegExperiment as RL4SegExperiment
    from .agents.spars.config import SparsExperiment as SparsExperiment
    from .envs.adapters import BatchEnv as BatchEnv
    from .envs.adapters import SingleEnv as SingleEnv
    from .envs.apga import APGAEnv as APGAEnv
    from .envs.apga_config import APGAConfig as APGAConfig
    from .envs.attack import AttackEnv as AttackEnv
    from .envs.attack_config import AttackConfig as AttackConfig
    from .envs.core import BatchedEnv as BatchedEnv
    from .envs.core import EnvConfig as EnvConfig
    from .envs.learner_env import LearnerEnv as LearnerEnv
    from .envs.rl4seg import EchoEnv as EchoEnv
    from .envs.rl4seg_config import EchoEnvConfig as EchoEnvConfig
    from .envs.seat import SEATEnv as SEATEnv
    from .envs.seat_attack import SEATAttackEnv as SEATAttackEnv
    from .envs.seat_attack_config import SEATAttackConfig as SEATAttackConfig
    from .envs.seat_config import SEATConfig as SEATConfig
    from .envs.spars import SparsEnv as SparsEnv
    from .envs.spars_config import SparsConfig as SparsConfig
    from .envs.spars_parallel import SparsParallelEnv as SparsParallelEnv
    from .evaluation.robustness import robustness_report as robustness_report
    from .testing import check_env_contract as check_env_contract

__version__ = "0.1.0"

_MODULES = {
    "APGAConfig": "envs.apga_config",
    "APGAEnv": "envs.apga",
    "AttackConfig": "envs.attack_config",
    "AttackEnv": "envs.attack",
    "BatchEnv": "envs.adapters",
    "BatchedEnv": "envs.core",
    "DensePPO": "agents.dense_ppo.ppo",
    "DensePPOConfig": "agents.dense_ppo.ppo",
    "DensePolicy": "agents.dense_ppo.policy",
    "EchoEnv": "envs.rl4seg",
    "EchoEnvConfig": "envs.rl4seg_config",
    "EnvConfig": "envs.core",
    "LearnerEnv": "envs.learner_env",
    "PPOConfig": "agents.ppo",
    "PPOExperiment": "agents.generic",
    "Prediction": "agents.prediction",
    "RL4SegExperiment": "agents.rl4seg.config",
    "SEATAttackConfig": "envs.seat_attack_config",
    "SEATAttackEnv": "envs.seat_attack",
    "SEATConfig": "envs.seat_config",
    "SEATEnv": "envs.seat",
    "SingleEnv": "envs.adapters",
    "SparsConfig": "envs.spars_config",
    "SparsEnv": "envs.spars",
    "SparsExperiment": "agents.spars.config",
    "SparsParallelEnv": "envs.spars_parallel",
    "check_env_contract": "testing",
    "predict": "agents.prediction",
    "robustness_report": "evaluation.robustness",
}
"""Module of each public name, loaded when the name is first used; the imports above tell type checkers the same."""


if not TYPE_CHECKING:  # else every misspelled name would pass a type checker

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*_MODULES, "ENVIRONMENTS", "Entry", "envs", "register", "__version__", "__doc__", "__file__"})
