"""Actor-critics over what the environments show (docs/spars.md, Method 9), as SB3 policies.

P = windows shown (own, competitor), w = window size, F = features per window.
"""

from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from ..ppo import AlgorithmName, policy_alias
from .search_policy import CandidatePolicy, MaskableCandidatePolicy

PolicyName = Literal["window_cnn", "feature_mlp", "flatten_mlp", "candidates"]


class WindowCnn(BaseFeaturesExtractor):
    """One convolutional trunk for every window shown, then their codes and the state side by side: 128·P + |state|."""

    CODE = 128

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        windows = observation_space["windows"] if isinstance(observation_space, spaces.Dict) else observation_space
        state = observation_space["state"] if isinstance(observation_space, spaces.Dict) else None
        assert windows.shape is not None
        shown, *size = windows.shape
        extra = state.shape[0] if state is not None and state.shape else 0
        super().__init__(observation_space, shown * self.CODE + extra)
        trunk = nn.Sequential(
            nn.Conv3d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            flat = trunk(torch.zeros(1, 1, *size)).shape[1]  # (48, 48, 24) gives 6,912
        self.trunk = nn.Sequential(*trunk, nn.Linear(flat, self.CODE), nn.ReLU())

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Features [N, 128·P + |state|] of windows [N, P, *w] in 0..255 and state [N, |state|]."""
        windows = observations["windows"] if isinstance(observations, dict) else observations
        codes = self.trunk(windows.flatten(0, 1)[:, None].float() / 255.0).view(len(windows), -1)
        return torch.cat((codes, observations["state"]), dim=1) if isinstance(observations, dict) else codes


class Flat(BaseFeaturesExtractor):
    """Everything observed in one row, grey values divided by 255 (SB3 does so for images, but not for 4-D boxes)."""

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        super().__init__(observation_space, spaces.flatdim(observation_space))

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """[N, n] of windows [N, P, *w] in 0..255, and state [N, |state|] where it is observed."""
        windows = observations["windows"] if isinstance(observations, dict) else observations
        row = windows.flatten(1).float() / 255.0
        return torch.cat((row, observations["state"]), dim=1) if isinstance(observations, dict) else row


class NormalisedFeatures(BaseFeaturesExtractor):
    """The observed features, layer-normalised."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, observation_space.shape[0])
        self.norm = nn.LayerNorm(observation_space.shape[0])

    def forward(self, observations: Tensor) -> Tensor:
        """[N, 2F + 9], each row with mean 0 and variance 1 before the learned scale."""
        normalised: Tensor = self.norm(observations)
        return normalised


def policy_arguments(
    name: PolicyName, observation_space: gym.Space[Any], algorithm: AlgorithmName = "ppo"
) -> dict[str, Any]:
    """`policy` and `policy_kwargs` of the SB3 learner `algorithm`.

    window_cnn: shared trunk per window, heads 64-64. feature_mlp: LayerNorm, heads 128-64. flatten_mlp (paper): SB3's
    MlpPolicy on voxels in [0, 1], 2·(64n + 64 + 4160) + 390 + 65 parameters for n inputs and six actions.

    Raises:
        ValueError: a policy that cannot read these observations.
    """
    chooses = isinstance(observation_space, spaces.Dict) and "candidates" in observation_space.spaces
    if (name == "candidates") != chooses:
        raise ValueError(
            f"policy is {name!r} but observations are {observation_space}; 'candidates' is for env.profile='search' or "
            f"'patch', and for nothing else"
        )
    if chooses:
        return {"policy": MaskableCandidatePolicy if algorithm == "maskable" else CandidatePolicy, "policy_kwargs": {}}
    flat = isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1
    if name == "feature_mlp" and not flat:
        raise ValueError(f"policy 'feature_mlp' needs env.obs_mode='features', not observations {observation_space}")
    if name != "feature_mlp" and flat:
        raise ValueError(f"policy {name!r} needs env.obs_mode='two_window' or 'own_window', not 'features'")
    sb3 = policy_alias(observation_space, algorithm)
    if name == "flatten_mlp":
        return {"policy": sb3, "policy_kwargs": {"features_extractor_class": Flat}}
    extractor, heads = (WindowCnn, [64, 64]) if name == "window_cnn" else (NormalisedFeatures, [128, 64])
    kwargs = {"features_extractor_class": extractor, "net_arch": {"pi": heads, "vf": heads}}
    return {"policy": sb3, "policy_kwargs": kwargs}
