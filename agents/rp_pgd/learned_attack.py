"""The policy of a run of plain PPO on an environment of RP-PGD, as an attack on any model (docs/rp-pgd.md, Method 30).

segarena-rl train --config ppo/attack --out runs/attack
segarena-rl train --resume runs/robust --evaluation.attacks '[pgd_20, runs/attack]'    # then evaluate
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...attacks.budget import Bounds, Epsilon, LinfBall
from ...attacks.core import AttackCore
from ...attacks.named import NamedAttack, named_attack
from ...attacks.options import RPOptions
from ...common.checkpoints import load_weights
from ...common.names import slug
from ...common.runs import Run
from ...datasets.images import ImagePool
from ...envs import ENVIRONMENTS
from ...envs.adapters import class_of
from ...envs.attack import AttackEnv
from ...envs.attack_config import AttackConfig
from ...envs.attack_starts import ball_of
from ...evaluation.robustness_run import digest
from ..configuration import read_experiment
from ..experiment import reached
from ..generic import OPEN_LOOP, SCHEDULE, PPOExperiment, learner
from ..open_loop import OpenLoop
from ..policy import TrainedPolicy


class _GivenImages(AttackEnv):
    """The episodes of images that are given, whatever their values are."""

    given: Tensor
    truth: Tensor

    def _subject(self, index: Tensor) -> tuple[LinfBall, Tensor]:
        return ball_of(self.given[index], self.eps.value), self.truth[index]


@dataclass(frozen=True)
class LearnedAttack:
    """An attack whose every step a trained policy chooses, by its likeliest action; called like those of `ATTACKS`."""

    run: Run
    experiment: PPOExperiment
    control: bool = False
    """The run's open-loop schedule instead, the same actions for every image."""
    regional = True
    """It takes the layer of the prototypes."""
    single = False

    @classmethod
    def open(cls, folder: str | Path) -> "LearnedAttack":
        """The attack of a finished run, or of its open-loop schedule: `open_loop` in its folder.

        Raises:
            FileNotFoundError: there is no such run.
            ValueError: a run of another paper, or of an environment that is no attack of one number of steps.
        """
        control = Path(folder).name == OPEN_LOOP
        run = Run.open(Path(folder).parent if control else folder)
        _, experiment = read_experiment(run)
        env_class = _class_of(experiment) if isinstance(experiment, PPOExperiment) else None
        if env_class is None or not issubclass(env_class, AttackEnv):
            raise ValueError(f"run {str(folder)!r} trains no attack; name one of `paper: ppo` on an id of RP-PGD")
        horizons = experiment.settings.get("horizons", AttackConfig().horizons)
        if len(horizons) != 1:
            raise ValueError(f"run {str(folder)!r} attacks in {horizons} steps but an attack needs one number of steps")
        return cls(run, experiment, control)

    @property
    def title(self) -> str:
        """For tables and figures."""
        return f"{self.experiment.name}, open loop" if self.control else self.experiment.name

    def steps(self, steps: int | None = None) -> int:
        """The number of steps that it was trained for.

        Raises:
            ValueError: another one was asked for.
        """
        (own,) = self.experiment.settings.get("horizons", AttackConfig().horizons)
        if steps not in (None, own):
            raise ValueError(f"steps is {steps} but the attack of {str(self.run.folder)!r} was trained for {own}")
        return int(own)

    @cached_property
    def policy(self) -> TrainedPolicy | OpenLoop:
        """The trained policy, or the schedule.

        Raises:
            FileNotFoundError: the run has no schedule.
            ValueError: the policy is not trained to its end.
        """
        if self.control:
            return OpenLoop(load_weights(self.run.folder / OPEN_LOOP / SCHEDULE)[0]["schedule"])
        reached(self.run, self.experiment.ppo.total_timesteps)
        model = learner(self.experiment, self.run)
        return TrainedPolicy(model.policy, deterministic=True, normalize=model.get_vec_normalize_env())

    @torch.inference_mode(False)
    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        eps: float | str | Fraction | Epsilon,
        steps: int | None = None,
        step_size: float | str | Fraction | Epsilon | None = None,
        random_start: bool | None = None,
        bounds: Bounds = (0.0, 1.0),
        ignore_index: int = 255,
        feature_layer: str | None = None,
        options: RPOptions = RPOptions(),  # noqa: B008 (frozen)
        generator: torch.Generator | None = None,
        watch: Callable[[AttackCore], object] | None = None,
    ) -> Tensor:
        """Adversarial images [B, C, H, W] in [0, 1]; contract as that of `attacks.methods.Attack`.

        Raises:
            ValueError: what a policy cannot follow: another number of steps, a step size, a random start, options of
                RP-PGD, another range or label of ignored pixels; or what the environment refuses.
        """
        steps, budget = self.steps(steps), Epsilon.parse(eps)
        fixed = {"step_size": step_size, "random_start": random_start or None, "options": _other(options)}
        if wrong := [name for name, value in fixed.items() if value is not None]:
            raise ValueError(f"{', '.join(wrong)} cannot be chosen for a learned attack, whose policy decides it")
        low, high = (torch.as_tensor(end) for end in bounds)
        if ignore_index != 255 or bool((low != 0).any()) or bool((high != 1).any()):
            raise ValueError("a learned attack is of images in [0, 1] with 255 as the label of ignored pixels")
        known = {field.name for field in fields(AttackConfig)}
        chosen = {name: value for name, value in self.experiment.settings.items() if name in known - {"model"}}
        chosen |= {"eps": budget.given, "paired_baseline": None, "rand_start": False, "feature_layer": feature_layer}
        number, shape = len(images), images.shape[2:]
        names = [str(row) for row in range(number)]
        pool = ImagePool(
            images=torch.zeros(images.shape, dtype=torch.uint8, device=images.device),
            labels=torch.zeros((number, *shape), dtype=torch.uint8, device=images.device),
            ids=names, groups=names, tags={}, spacing_mm=torch.full((number, 2), torch.nan, dtype=torch.float64),
            classes=("",), origin="real",
        )  # fmt: skip
        env = _GivenImages(model=model, images=pool, num_envs=number, device=images.device, **chosen)
        env.given, env.truth = images.detach(), labels.long()
        env.reset(options={"index": list(range(number))})
        for _ in range(steps):
            if watch is not None:
                watch(env.core)
            env.step(self.policy(env))
        env.core.check_finite()
        return env.x_adv.detach()


def open_attack(name: str) -> NamedAttack:
    """An attack of `named_attack`, or that of the run whose folder is named.

    Raises:
        FileNotFoundError, ValueError: as `named_attack` and `LearnedAttack.open`.
    """
    if not is_run(name):
        return named_attack(name)
    attack = LearnedAttack.open(name)
    policy = attack.policy
    numbers = [policy.schedule] if isinstance(policy, OpenLoop) else policy.policy.state_dict().values()
    weights = digest(numbers)[:8]  # another run is another attack
    own = f"{slug(attack.title).lower()}_{weights}"
    return NamedAttack(own, attack.title, attack, family=own, steps=attack.steps(), needs=("feature_layer",))


def is_run(name: str) -> bool:
    """Whether an attack is named by the folder of a run."""
    return Path(name).is_dir()


def _class_of(experiment: PPOExperiment) -> type[Any] | None:
    entry = ENVIRONMENTS.get(experiment.env)
    return None if entry is None else class_of(entry.env_class, f"environment {experiment.env!r}")


def _other(options: RPOptions) -> RPOptions | None:
    return None if options == RPOptions() else options
