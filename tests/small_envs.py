"""Every registered environment, made small: its arguments, its actions, its first episodes."""

import numpy as np
import schedule_toys
from attack_toys import small_victim
from segarena.datasets.echo.images import PhantomPatients
from segarena.datasets.scenes.images import PhantomScenes
from segarena.datasets.xray.images import PhantomStudies
from segarena.envs import ENVIRONMENTS
from segarena.envs.adapters import make_batch

IDS = sorted(ENVIRONMENTS)
SMALL = {
    "RL4Seg-Echo-v0": {"size": 16, "phantom_patients": PhantomPatients(train=3)},
    "APGA-MURA-v0": {"size": 32, "phantom_studies": PhantomStudies(train=4), "grid": 4, "tv_coef": 0.1},
    "SPARS-LiverCT-v0": {
        "cases": ["phantom_02000", "phantom_02001"],
        "horizon": 20,
        "threshold": 0.9,
        "eval_dice": True,  # gym.make_vec would leave it out
    },
    "RPPGD-VOC-v0": {"size": 33, "phantom_scenes": PhantomScenes(val=3), "horizons": (2, 6)},
    **{
        f"RPPGD-{name}-v0": {
            "size": 16,  # whole vectors: what is left over is rounded otherwise
            "phantom_scenes": PhantomScenes(val=3),
            "horizons": (2, 6),
            "model": small_victim(),
            "feature_layer": "features",
        }
        for name in ("Cityscapes", "ADE20K")
    },
    "RPPGD-LiverCT-v0": {"cases": ["phantom_02000"], "grid_shape": (32, 32, 24), "horizons": (2, 6)},
    "SEATAttack-MSD-v0": {"split": "val[:3]", "horizon": 6},  # toy volumes
    "SEAT-MSD-v0": {**schedule_toys.SMALL, "budget": 14},
}
"""Arguments that keep an environment small; an id that is not named here plays with its defaults."""
SEED = 7
NEVER_CUT = [env_id for env_id in IDS if env_id.startswith(("RPPGD", "SEAT"))]
"""Environments of several steps that end by themselves: the observation tells when."""
STEPS = {env_id: 12 if env_id in (*NEVER_CUT, "APGA-MURA-v0") else 60 for env_id in IDS}
"""An attack has six at most here, and each passes a network; a mask is one step."""


def small(env_id, **settings):
    return {"device": "cpu", **SMALL.get(env_id, {}), **settings}


def flat(obs):
    """An observation as one row of numbers."""
    parts = obs.values() if isinstance(obs, dict) else [obs]
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])


def actions_for(space, steps, num_envs):
    space.seed(SEED)
    return np.array([[space.sample() for _ in range(num_envs)] for _ in range(steps)])


def begun(env_id, num_envs=3, **settings):
    env = make_batch(ENVIRONMENTS[env_id].env_class, num_envs, **small(env_id, **settings)).batched
    env.seed(range(num_envs))
    env.reset()
    return env
