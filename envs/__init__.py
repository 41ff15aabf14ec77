"""The table of environments. Importing it registers them with Gymnasium; doing so twice is harmless.

Another package adds its own by an entry point in the group segarena.environments, without being imported before one is
made; the name is the id, the value the class:

    [project.entry-points."segarena.environments"]
    "Mine-v0" = "mine.envs:MineEnv"

Those that were registered with Gymnasium alone before this is imported, with `adapters:make_single` as entry point, are
found too. (Gymnasium itself has no group of entry points any more, since 1.0.)
"""

import logging
from dataclasses import dataclass
from importlib.metadata import entry_points

import gymnasium as gym

from ..common.plugins import package_of

log = logging.getLogger(__name__)
ADAPTER = "segarena.envs.adapters:make_single"
"""What `gym.make` calls for each of them."""


@dataclass(frozen=True)
class Entry:
    """One environment: its class, its paper and the configuration that trains it."""

    env_class: str
    """Its `BatchedEnv`, as "module:Class"."""
    paper: str
    """Paper and subject, in one line."""
    config: str = ""
    """Configuration that trains it, from the root of the package or absolute; "": none is known."""
    package: str | None = None
    """The package that registered it, with its version; None: this one, or a driver."""


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
    "APGA-MURA-v0": Entry(
        env_class="segarena.envs.apga:APGAEnv",
        paper="APGA: a mask hides from a classifier what it needs of a radiograph (arXiv 1909.04108)",
        config="configs/ppo/apga_patch.yaml",
    ),
    "RPPGD-VOC-v0": Entry(
        env_class="segarena.envs.attack_tasks:VOCAttackEnv",
        paper="RP-PGD: region-and-prototype attack on segmentation of everyday scenes (AAAI 2025)",
        config="configs/ppo/attack.yaml",
    ),
    "RPPGD-Cityscapes-v0": Entry(
        env_class="segarena.envs.attack_tasks:CityscapesAttackEnv",
        paper="RP-PGD: region-and-prototype attack on segmentation of street scenes (AAAI 2025)",
        config="configs/ppo/attack.yaml",
    ),
    "RPPGD-ADE20K-v0": Entry(
        env_class="segarena.envs.attack_tasks:ADE20KAttackEnv",
        paper="RP-PGD: region-and-prototype attack on segmentation of scenes of any kind (AAAI 2025)",
        config="configs/ppo/attack.yaml",
    ),
    "RPPGD-LiverCT-v0": Entry(
        env_class="segarena.envs.attack_tasks:LiverAttackEnv",
        paper="RP-PGD: region-and-prototype attack on segmentation of liver tumours in slices of CTs (AAAI 2025)",
        config="configs/ppo/attack_liver.yaml",
    ),
    "SEATAttack-MSD-v0": Entry(
        env_class="segarena.envs.seat_attack:SEATAttackEnv",
        paper="SEAT: the attack inside a training step on a patch of a Decathlon volume (MICCAI 2023)",
        config="configs/ppo/seat_attack.yaml",
    ),
    "SEAT-MSD-v0": Entry(
        env_class="segarena.envs.seat:SEATEnv",
        paper="SEAT: self-adaptive adversarial training of 3-D segmentation, a segment a step (MICCAI 2023)",
        config="configs/ppo/seat.yaml",
    ),
}


def register(env_id: str, entry: Entry) -> None:
    """Add an environment to the table and to Gymnasium; doing so twice is harmless."""
    ENVIRONMENTS[env_id] = entry
    if env_id not in gym.registry:
        gym.register(
            env_id,
            entry_point=ADAPTER,
            vector_entry_point="segarena.envs.adapters:make_batch",
            kwargs={"env_class": entry.env_class},
            order_enforce=False,  # SingleEnv checks order and actions itself, in every step: without Gymnasium's
            disable_env_checker=True,  # wrappers gym.make gives the environment, with its own help and methods
        )


def _register_all() -> None:
    """The package's own environments, then those of others; one that cannot be registered is named and left out."""
    for env_id, spec in gym.registry.items():
        if spec.entry_point == ADAPTER and env_id not in ENVIRONMENTS:
            ENVIRONMENTS[env_id] = Entry(str(spec.kwargs["env_class"]), "registered with Gymnasium")
    for env_id, entry in list(ENVIRONMENTS.items()):
        register(env_id, entry)
    for point in entry_points(group="segarena.environments"):
        package = package_of(point)
        try:
            if point.name in ENVIRONMENTS:
                raise ValueError("there is an environment of this id already")
            register(point.name, Entry(f"{point.module}:{point.attr}", f"of package {package}", package=package))
        except Exception as error:  # of a package that is not ours: the others are not to suffer from it
            ENVIRONMENTS.pop(point.name, None) if isinstance(error, gym.error.Error) else None
            log.warning("environment %r of package %s is left out: %s", point.name, package, error)


_register_all()
