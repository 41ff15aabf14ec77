"""The methods of an RL4Seg run, and the one way from images to the masks of each (docs/rl4seg.md, Method 11-12).

`evaluate` and `predict` both come here. u = uncertainty map in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ...datasets.images import ImagePool
from ...envs.rl4seg import EchoEnv
from ...envs.rl4seg_config import OF_TRUTH
from ...rewards.ranking import Judge
from ...segmenters.inference import probabilities
from ...segmenters.uncertainty import entropy_map
from ..experiment import baselines_of
from ..policy import Policy, play
from ..predictor import POLICY
from .baselines import BASELINES
from .context import AT_ONCE, Context
from .rules import POLICIES, NetworkPolicy
from .stages import policy_folder


@dataclass(frozen=True)
class MethodPrediction:
    """The masks of one method for some images."""

    method: str
    """Name in tables of results."""
    masks: Tensor
    """uint8 [N, H, W], the most probable labels."""
    uncertainty: Tensor | None = None
    """u, float32 [N, H, W]."""
    judge: Judge | None = None
    """The reward network by which it learned."""
    supervision: str = "source"
    """Labels that the method learned from."""
    sees_target: bool = True
    """Whether it learned from images of the target."""


OWN_ENTROPY = ", softmax"
"""After the name of the trained policy: its masks with the entropy of its own probabilities as u."""
Segment = Callable[[ImagePool], list[MethodPrediction]]
"""What a method says of images; the last one is its own, those before it are variants that are only evaluated."""


class Methods:
    """The methods of a run by name: `policy` is the trained one, others are reference policies and baselines."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @cached_property
    def titles(self) -> dict[str, str]:
        """Title of every method in tables of results, by the name that `predict --method` takes."""
        experiment = self.context.experiment
        baselines = baselines_of(BASELINES, experiment.baselines, experiment)
        own = {POLICY: experiment.name} if experiment.iterations else {}
        return {**{name: name for name in POLICIES}, **{name: row.title for name, row in baselines.items()}, **own}

    def load(self, name: str) -> Segment:
        """One method with its networks."""
        if name == POLICY:
            return self._policy()
        return self._reference(name) if name in POLICIES else self._baseline(name)

    def _reference(self, name: str) -> Segment:
        row = POLICIES[name]

        def segment(images: ImagePool) -> list[MethodPrediction]:
            env = _env(images)
            masks = _masks(env, row.policy(env, self.context.experiment.seed))
            return [MethodPrediction(name, masks, supervision=row.supervision, sees_target=False)]

        return segment

    def _baseline(self, name: str) -> Segment:
        context, row = self.context, BASELINES[name]
        nets = row.networks(context) if row.networks else []
        made = partial(MethodPrediction, row.title, supervision=row.supervision, sees_target=row.sees_target)
        if row.probabilities is None:
            policy = row.policy(context, nets)
            return lambda images: [made(_masks(_env(images), policy))]
        by = row.probabilities

        def segment(images: ImagePool) -> list[MethodPrediction]:
            mean = by(context, nets, images.images)
            return [made(mean.argmax(dim=1).byte(), entropy_map(mean))]

        return segment

    def _policy(self) -> Segment:
        """The last policy: with the entropy of its own probabilities, and with the reward network's uncertainty."""
        context, experiment = self.context, self.context.experiment
        labels = experiment.gold.source == "gt" or experiment.reward in OF_TRUTH
        supervision = "source and target" if labels else "source"
        net = context.load(policy_folder(context, experiment.iterations))
        judge = context.reward_net(experiment.iterations) if experiment.reward == "reward_net" else None

        def segment(images: ImagePool) -> list[MethodPrediction]:
            masks = _masks(_env(images), NetworkPolicy(net))
            if judge is None:
                return [MethodPrediction(experiment.name, masks, supervision=supervision)]
            with torch.no_grad():
                parts = torch.split(torch.arange(len(images), device=context.device), AT_ONCE)
                trust = [judge(images.at(part), masks[part], calibrated=True) for part in parts]
            own = entropy_map(probabilities(net, images.images))
            return [
                MethodPrediction(f"{experiment.name}{OWN_ENTROPY}", masks, own, supervision=supervision),
                MethodPrediction(experiment.name, masks, 1 - torch.cat(trust), judge, supervision),
            ]

        return segment


def _env(images: ImagePool) -> EchoEnv:
    """An environment for every image, without rewards."""
    return EchoEnv(
        images=images,
        num_envs=len(images),
        device=images.images.device,
        sampler="shared",
        expose_truth=False,
        reward_function=lambda images, masks, index: torch.zeros(len(masks), 1, 1, device=masks.device),
    )


def _masks(env: EchoEnv, policy: Policy[EchoEnv]) -> Tensor:
    env.reset(options={"index": list(range(env.num_envs))})  # every environment its image
    play(env, policy)
    return env.mask
