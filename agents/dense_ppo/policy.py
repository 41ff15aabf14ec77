"""A policy that acts in every pixel: distribution, networks, exploration (paper: RL4Seg, sections 3.1-3.3, 3.5, 12).

Symbols: x = observation [B, in, H, W]; a = action map [B, H, W] with values 0..C-1; π(a | x) = product over the pixels
p of Cat(a_p; softmax(logits_p)); V = value map [B, H, W]; l = log π(a_p | x) of each pixel, in nats.
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

Head = Literal["categorical", "bernoulli"]
Critic = Literal["unet", "scalar", "none"]
ValueOutput = Literal["sigmoid", "linear"]
Exploration = Literal["iid", "argmax", "correlated"]


class PixelCategorical:
    """One categorical per pixel, independent given the image; two classes with logits (0, z) are a Bernoulli.

    SB3's MultiCategorical keeps H·W distributions in a list and sums over them; this keeps one tensor and the map.

    Args:
        logits: float32 [B, C, H, W].
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.normaliser = logits.logsumexp(dim=1)  # [B, H, W]

    def log_prob(self, actions: Tensor) -> Tensor:
        """l, float32 [B, H, W]; actions: any integer type, [B, H, W] or [B, H·W] row by row."""
        chosen = self.logits.gather(1, actions.reshape(self.normaliser.shape)[:, None].long())  # [B, 1, H, W]
        return chosen[:, 0] - self.normaliser

    def joint_log_prob(self, actions: Tensor) -> Tensor:
        """log π(a | x), float32 [B]: the sum over the pixels, which is what SB3 calls log_prob."""
        return self.log_prob(actions).sum(dim=(1, 2))

    def entropy(self) -> Tensor:
        """Entropy of each pixel in nats, float32 [B, H, W]; at most log C."""
        log_p = self._log_p()
        return -(log_p.exp() * log_p).sum(dim=1)

    def kl(self, other: "PixelCategorical") -> Tensor:
        """KL(self || other) of each pixel in nats, float32 [B, H, W]."""
        log_p = self._log_p()
        return (log_p.exp() * (log_p - other._log_p())).sum(dim=1)

    def mode(self) -> Tensor:
        """The most probable action of each pixel (the first of several), uint8 [B, H, W]."""
        return self.logits.argmax(dim=1).byte()

    def sample(self, field: Tensor | None = None) -> Tensor:
        """Actions uint8 [B, H, W], from PyTorch's global generator by the Gumbel-max trick.

        field: added to the Gumbel noise, [B, C, H, W]; with one the sample is no longer exactly of this distribution.
        """
        noise = -torch.empty_like(self.logits).exponential_().log()
        return (self.logits + (noise if field is None else noise + field)).argmax(dim=1).byte()

    def get_actions(self, deterministic: bool = False) -> Tensor:
        """`mode` or `sample`, as SB3 asks for them."""
        return self.mode() if deterministic else self.sample()

    def _log_p(self) -> Tensor:
        return self.logits - self.normaliser[:, None]


@torch.no_grad()
def explore(
    distribution: PixelCategorical, exploration: Exploration, *, scale: float, sigma_px: float, eps_greedy: float
) -> Tensor:
    """Actions to try, uint8 [B, H, W].

    Args:
        distribution: the policy's.
        exploration: "iid": a sample; "argmax": the mode; "correlated": argmax(logits + τ (Gumbel noise + smooth
            field)), so that whole regions change together instead of grains (section 12).
        scale: τ, of "correlated".
        sigma_px: of the Gaussian kernel that smooths the field, in pixels.
        eps_greedy: share of pixels that take the mode instead, drawn independently.
    """
    if exploration == "argmax":
        return distribution.mode()
    if exploration == "correlated":
        sharper = PixelCategorical(distribution.logits / scale)  # argmax(logits + τ g) = argmax(logits / τ + g)
        actions = sharper.sample(smooth_field(distribution.logits, sigma_px))
    else:
        actions = distribution.sample()
    if eps_greedy:
        greedy = torch.rand_like(distribution.normaliser) < eps_greedy
        actions = torch.where(greedy, distribution.mode(), actions)
    return actions


def smooth_field(like: Tensor, sigma_px: float) -> Tensor:
    """Gaussian field of mean 0 and variance 1 everywhere, [B, C, H, W] as `like`, smooth on the scale of sigma_px."""
    radius = max(round(3 * sigma_px), 1)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=like.device) / sigma_px) ** 2)
    kernel = kernel / kernel.square().sum().sqrt()  # white noise keeps its variance
    batch, classes, height, width = like.shape
    white = torch.randn(batch * classes, 1, height + 2 * radius, width + 2 * radius, device=like.device)
    return F.conv2d(F.conv2d(white, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)).view_as(like)


def map_shape(observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> tuple[int, int, int]:
    """C, H, W of an environment with an image [in, H, W] and one of C actions for each of its pixels, row by row.

    Raises:
        ValueError: the spaces are others.
    """
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 3:
        raise ValueError(f"observations are {observation_space} but must be images: a Box of shape (channels, H, W)")
    height, width = observation_space.shape[1:]
    if isinstance(action_space, spaces.MultiDiscrete) and action_space.nvec.ndim == 1 and not action_space.start.any():
        counts = set(action_space.nvec.tolist())
    else:
        counts = {2} if isinstance(action_space, spaces.MultiBinary) else set()
    if len(counts) != 1 or action_space.shape != (height * width,) or max(counts) > 256:
        raise ValueError(
            f"actions are {action_space} but must be MultiDiscrete([C] * {height * width}) with C at most 256, or "
            f"MultiBinary({height * width}): one for each of the {height} x {width} pixels observed"
        )
    return counts.pop(), height, width


class DensePolicy(ActorCriticPolicy):
    """Actor, critic and frozen reference over images, three networks that share nothing.

    Args:
        observation_space: Box (channels, H, W); uint8 images are divided by 255.
        action_space: flat MultiDiscrete of equal numbers, or MultiBinary, one action for each pixel.
        lr_schedule: of SB3; the learner sets the learning rates of the groups "actor" and "critic" itself.
        init_channels: size of the U-Nets, see `UNet`.
        head: "categorical": C logits per pixel; "bernoulli": one logit, for two actions.
        critic: "unet": a value for each pixel; "scalar": one for the image, the U-Net's mean logit; "none": V = 0.
        value_output: "sigmoid" for rewards in [0, 1], "linear" for any other.
        norm_mode: "frozen": running statistics, never touched; "batch": those of each batch, in rollouts, updates and
            the reference alike; "group": GroupNorm.
        reference: keep a frozen copy of the actor, from which the KL divergence is measured.
        use_sde: of SB3; must be False.

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
        init_channels: int = 32,
        head: Head = "categorical",
        critic: Critic = "unet",
        value_output: ValueOutput = "sigmoid",
        norm_mode: NormMode = "frozen",
        reference: bool = True,
        use_sde: bool = False,
    ) -> None:
        if use_sde:
            raise ValueError("use_sde is True but state-dependent exploration is for continuous actions only")
        self.classes, self.height, self.width = map_shape(observation_space, action_space)
        if head == "bernoulli" and self.classes != 2:
            raise ValueError(f"head is 'bernoulli' but there are {self.classes} actions per pixel; use 'categorical'")
        self.init_channels, self.head, self.critic_kind = init_channels, head, critic
        self.value_output, self.norm_mode, self.has_reference = value_output, norm_mode, reference
        fused = {"fused": True}  # Adam in one pass over the weights, which small networks notice
        super().__init__(observation_space, action_space, lr_schedule, optimizer_kwargs=fused)

    def make_networks(self) -> tuple[nn.Module, nn.Module | None]:
        """Actor [B, in, H, W] -> logits [B, C or 1, H, W], and critic -> [B, 1, H, W] without its sigmoid, or None."""
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

    def anchor(self) -> None:
        """Make the reference a copy of the actor as it is now, statistics included."""
        if self.reference is None:
            raise ValueError("the policy was made with reference=False: there is nothing to anchor")
        self.reference.load_state_dict(self.actor.state_dict())

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
        """Logits of the actor (or of `net`, the reference) float32 [B, C, H, W]."""
        out = self._run(net or self.actor, obs)
        return torch.cat((torch.zeros_like(out), out), dim=1) if self.head == "bernoulli" else out

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """V float32 [B, H, W]; the same in all pixels for critic "scalar", 0 without one."""
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
        return out.float()

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
            "init_channels": self.init_channels,
            "head": self.head,
            "critic": self.critic_kind,
            "value_output": self.value_output,
            "norm_mode": self.norm_mode,
            "reference": self.has_reference,
        }
