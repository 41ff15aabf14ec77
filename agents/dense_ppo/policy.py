"""The networks of a policy that acts in every pixel: actor, critic and, if wanted, a frozen reference.

Symbols: x = image [B, in, height, width]; H, W = the grid of actions, of which height and width are multiples (as a
rule they are equal: one action per pixel; a "pixel" below is a place of the grid); V = value map [B, H, W]; l =
log-probability of the action of each pixel, [B, H, W], in nats.
"""

from copy import deepcopy
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from ...common.device import bfloat16_on_cuda
from ...segmenters.norms import NormMode, norm_of, set_norm_mode
from ...segmenters.unet import UNet
from .distribution import PixelCategorical

Head = Literal["categorical", "bernoulli"]
Critic = Literal["unet", "scalar", "none"]
ValueOutput = Literal["sigmoid", "linear"]


def map_shape(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], action_shape: tuple[int, int] | None = None
) -> tuple[int, int, int]:
    """C, H, W of an environment with images and one of C actions for each place of a grid H x W, row by row.

    action_shape: the grid; None: that of the images' pixels.

    Raises:
        ValueError: the spaces are others, or height and width of the images are no multiples of H and W.
    """
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 3:
        raise ValueError(f"observations are {observation_space} but must be images: a Box of shape (channels, H, W)")
    size = observation_space.shape[1:]
    height, width = action_shape or size
    if height < 1 or width < 1 or size[0] % height or size[1] % width:
        raise ValueError(
            f"action_shape is {action_shape} but height and width of the images, {size[0]} x {size[1]}, must be "
            f"multiples of it"
        )
    if isinstance(action_space, spaces.MultiDiscrete) and action_space.nvec.ndim == 1 and not action_space.start.any():
        counts = set(action_space.nvec.tolist())
    else:
        counts = {2} if isinstance(action_space, spaces.MultiBinary) else set()
    if len(counts) != 1 or action_space.shape != (height * width,) or max(counts) > 256:
        raise ValueError(
            f"actions are {action_space} but must be MultiDiscrete([C] * {height * width}) with C at most 256, or "
            f"MultiBinary({height * width}): one for each place of a grid of {height} x {width}; an environment with "
            f"fewer actions than pixels says their grid as its `action_shape`"
        )
    return counts.pop(), height, width


class DensePolicy(ActorCriticPolicy):
    """Separate actor, critic and frozen reference networks over images (no shared weights).

    Args:
        observation_space: Box (channels, H, W); uint8 images are divided by 255.
        action_space: flat MultiDiscrete of equal numbers, or MultiBinary, one action for each pixel.
        lr_schedule: SB3's argument; the learner sets the learning rates of the groups "actor" and "critic" itself.
        action_shape: H, W of the grid of actions; None: one action for each pixel of the image. Logits, and the
            critic's output before its sigmoid, are averaged over each place of a coarser grid.
        init_channels: size of the U-Nets, see `UNet`.
        head: "categorical": C logits per pixel; "bernoulli": one logit, for two actions.
        critic: "unet": a value for each pixel; "scalar": one for the image, the U-Net's mean logit; "none": V = 0.
        value_output: "sigmoid" for rewards in [0, 1], "linear" for any other.
        norm_mode: "frozen": running statistics, never touched; "batch": those of each batch, in rollouts, updates and
            the reference alike; "group": GroupNorm.
        reference: keep a frozen copy of the actor, from which the KL divergence is measured.
        use_sde: SB3's argument; must be False.

    `actor`, `critic` (or None) and `reference` (or None) are plain modules: load weights into them at will.
    """

    actor: nn.Module
    critic: nn.Module | None
    reference: nn.Module | None

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        lr_schedule: Schedule,
        *,
        action_shape: tuple[int, int] | None = None,
        init_channels: int = 32,
        head: Head = "categorical",
        critic: Critic = "unet",
        value_output: ValueOutput = "sigmoid",
        norm_mode: NormMode = "frozen",
        reference: bool = False,
        use_sde: bool = False,
    ) -> None:
        if use_sde:
            raise ValueError("use_sde is True but state-dependent exploration is for continuous actions only")
        self.classes, self.height, self.width = map_shape(observation_space, action_space, action_shape)
        if head == "bernoulli" and self.classes != 2:
            raise ValueError(f"head is 'bernoulli' but there are {self.classes} actions per pixel; use 'categorical'")
        self.init_channels, self.head, self.critic_kind = init_channels, head, critic
        self.value_output, self.norm_mode, self.has_reference = value_output, norm_mode, reference
        fused = {"fused": True}  # Adam in one pass over the weights, which small networks notice
        super().__init__(observation_space, action_space, lr_schedule, optimizer_kwargs=fused)

    def make_networks(self) -> tuple[nn.Module, nn.Module | None]:
        """Actor: images -> logits [B, C or 1, ...], critic: images -> [B, 1, ...] without its sigmoid, or None.

        "..." is the size of the image or the grid of actions.
        """
        assert self.observation_space.shape is not None
        channels, norm = self.observation_space.shape[0], norm_of(self.norm_mode)
        unet = partial(UNet, channels, init_channels=self.init_channels, norm=norm)
        actor = unet(1 if self.head == "bernoulli" else self.classes)
        return actor, None if self.critic_kind == "none" else unet(1)

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor, self.critic = self.make_networks()
        self.reference = deepcopy(self.actor).requires_grad_(False) if self.has_reference else None
        groups: list[dict[str, Any]] = [{"name": "actor", "params": list(self.actor.parameters())}]
        if self.critic is not None:
            groups.append({"name": "critic", "params": list(self.critic.parameters())})
        # one Adam with two groups moves every weight as two Adams would: the gradients of the two losses are disjoint
        self.optimizer = self.optimizer_class(groups, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def set_training_mode(self, mode: bool) -> None:
        """Train mode, for rollouts and updates alike, so that their log-probabilities agree; or evaluation mode.

        Evaluation never looks at the batch: with norm_mode "batch" it uses the running statistics.
        """
        self.train(mode)
        for net in (self.actor, self.critic, self.reference):
            if mode and net is not None:
                set_norm_mode(net, self.norm_mode, training=True)

    # -- maps ------------------------------------------------------------------------------------------------------

    def logits(self, obs: Tensor, net: nn.Module | None = None) -> Tensor:
        """Logits of the actor (or of `net`, the reference network) float32 [B, C, H, W]."""
        out = self._run(net or self.actor, obs)
        return torch.cat((torch.zeros_like(out), out), dim=1) if self.head == "bernoulli" else out

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """V float32 [B, H, W]; the same in all pixels for critic "scalar", 0 without a critic."""
        assert isinstance(obs, Tensor)
        if self.critic is None:
            return torch.zeros(len(obs), self.height, self.width, device=obs.device)
        out = self._run(self.critic, obs)[:, 0]
        if self.critic_kind == "scalar":
            out = out.mean(dim=(1, 2), keepdim=True).expand_as(out)
        return out.sigmoid() if self.value_output == "sigmoid" else out

    def _run(self, net: nn.Module, obs: Tensor) -> Tensor:
        x = preprocess_obs(obs, self.observation_space)
        assert isinstance(x, Tensor)
        with bfloat16_on_cuda(x.device):
            out: Tensor = net(x)
        out = out.float()
        height, width = out.shape[2:]  # of the image, or of the grid already
        kernel = (height // self.height, width // self.width)
        return out if kernel == (1, 1) else F.avg_pool2d(out, kernel)  # [B, C, H, W]

    # -- what SB3 asks for -----------------------------------------------------------------------------------------

    def get_distribution(self, obs: PyTorchObs) -> PixelCategorical:  # type: ignore[override] # no Distribution of SB3's
        """π(. | x)."""
        assert isinstance(obs, Tensor)
        return PixelCategorical(self.logits(obs))

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions int64 [B, H·W], V [B, H, W] and l [B, H, W]."""
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic)
        return actions.flatten(1).long(), self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """V, l and entropy, each [B, H, W], of actions [B, H, W] or [B, H·W]."""
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Actions int64 [B, H·W]."""
        return self.get_distribution(observation).get_actions(deterministic).flatten(1).long()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "action_shape": (self.height, self.width),
            "init_channels": self.init_channels,
            "head": self.head,
            "critic": self.critic_kind,
            "value_output": self.value_output,
            "norm_mode": self.norm_mode,
            "reference": self.has_reference,
        }
