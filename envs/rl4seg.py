"""RL4Seg: one image, one segmentation, a reward for every pixel (Judge et al., MICCAI 2024, arXiv 2406.17902).

Symbols, as in the paper: x = image, a = mask (a label for every pixel), R(x, a) = map of rewards in [0, 1], here
`pixel_reward`. An episode is one step: observe x, act with a mask a, receive the mean of R. The KL penalty towards the
reference network is added by the learner (agents/dense_ppo/loss.py). The images stay on the device as bytes; a step
is a gather and one call of the reward for all environments.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..common.networks import load_network
from ..common.overlap import class_dice
from ..datasets.echo.images import CLASSES, LV, MYO, load_echo
from ..datasets.images import ImagePool
from ..evaluation.drawing import Legend, beside, heat_colour
from ..evaluation.echo_pictures import PREDICTION, TRUTH, echo_panel
from ..rewards.echo_validity import anatomical_reward, valid_masks
from ..rewards.reward_ensemble import as_one
from ..rewards.reward_net import RewardNet
from ..rewards.segmentation import RewardMap, accuracy, accuracy_map, dice_map, min_fusion, pixel_accuracy
from .core import BatchedEnv, Frame, Obs, notice_phantom
from .rl4seg_config import EchoEnvConfig
from .samplers import PerEnvSampler, SharedSampler, chosen_images

RewardFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""R float32 [N, H, W], or [N, 1, 1], of images float32 [N, 1, H, W] in [0, 1], masks uint8 [N, H, W] and the images'
numbers in the pool, int64 [N]."""
TRUTH_REWARDS: dict[str, RewardMap] = {
    "pixel_accuracy": pixel_accuracy,
    "accuracy_map": accuracy_map,
    "accuracy": accuracy,
    "dice": partial(dice_map, classes=(LV, MYO)),
}
"""R of masks and labels (docs/rl4seg.md, Method 6)."""
STATE = ("index", "mask", "pixel_reward", "is_valid")
"""Tensors that an episode consists of, beside those of the core and the sampler."""
DICE = ("dice_lv", "dice_myo", "dice_epi")
"""The columns of `structure_dice`."""
PANEL_PX = 256


class EchoEnv(BatchedEnv):
    """Segment one image of the heart in one move; every pixel has its reward.

    ## Description
    The environment shows one echocardiographic image; the agent gives every pixel a label: 0 background, 1 cavity of
    the left ventricle (LV), 2 myocardium (MYO). The reward is computed from ground-truth labels, predicted by a reward
    network trained without labels of these images, or derived from anatomical rules.

    ## Action Space
    `MultiDiscrete([3] * (H * W))`: a label for every pixel, row by row. Masks of shape (H, W) are taken too, and any
    type of integers.

    ## Observation Space
    `Box(0, 1, (1, H, W), float32)`: the image, rows grow with depth.

    ## Rewards
    The mean over the pixels of R(x, a); `info["pixel_reward"]` is R itself. It is one term, named as the argument
    `reward` is (several: joined by "+"; of a `reward_function`: "reward_function").

    | reward | R at a pixel | uses |
    |---|---|---|
    | pixel_accuracy | 1 where the label is right, else 0 | truth |
    | accuracy, accuracy_map | share of right pixels of the image | truth |
    | dice | mean Dice of LV and MYO | truth |
    | anatomical | 1 where the mask is anatomically valid, else 0 | mask |
    | reward_net | probability that the label is right | image and mask |

    A list of several gives their minimum at each pixel.

    ## Starting State
    The next image in a shuffled order of all images. `reset(options={"index": 3})` shows image 3 in every environment,
    `{"index": [3, 0]}` one for each, and the order goes on afterwards as if nothing had been chosen. With
    `sampler="per_env"` each environment has an order of its own, so that N environments at once are N single ones; with
    `sampler="shared"` there is one order, shuffled by the seed of the first environment: a pass over all environments
    shows each image once.

    `info` has the same tensors at the start and at the end: `index`, number of the image in `env.pool`; `gold` and
    `gold_action`, whether there is a mask to imitate, and that mask or zeros (see `set_gold`); `pixel_reward` and, with
    `compute_validity`, `is_valid`, both zero until the mask is given. At the end it adds `case_id`, `view`, `instant`,
    `spacing_mm` (y, x) and, where the truth is known, `dice_lv`, `dice_myo` and `dice_epi` (both as one).

    ## Episode End
    Terminated after one step, always; never truncated. The last observation is the same image.

    ## Arguments
    The fields of `EchoEnvConfig`, by name; `images` may be an `ImagePool` to play on instead of `data`, and
    `reward_function` a function (images, masks, index) -> R instead of `reward`.

    >>> import gymnasium as gym, segarena
    >>> env = gym.make("RL4Seg-Echo-v0", reward="pixel_accuracy", device="cpu")
    >>> image, info = env.reset(seed=0, options={"index": 3})
    >>> image.shape, info["index"], env.action_space.shape
    ((1, 64, 64), 3, (4096,))
    >>> truth = env.unwrapped.batched.pool.labels[3].numpy()
    >>> image, reward, terminated, truncated, info = env.step(truth)
    >>> reward, terminated, info["pixel_reward"].shape, info["dice_lv"]
    (1.0, True, (64, 64), 1.0)

    Stock PPO takes a second for every image, since it sees thousands of separate actions; `DensePPO` learns from many
    images at once, each pixel by its own reward:

        env = segarena.EchoEnv(num_envs=8, reward="dice")
        model = segarena.DensePPO("DensePolicy", env, policy_kwargs={"init_channels": 8})
        model.learn(64)

    ## References
    Judge et al.: Domain Adaptation of Echocardiography Segmentation Via Reinforcement Learning (2024).

    ## Version History
    v0: first version.
    """

    config_class = EchoEnvConfig
    config: EchoEnvConfig

    def __init__(
        self,
        config: EchoEnvConfig | None = None,
        *,
        images: ImagePool | None = None,
        reward_function: RewardFunction | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(config, **settings)
        cfg, num_envs = self.config, self.num_envs
        if num_envs % cfg.group:
            raise ValueError(f"num_envs is {num_envs} but must be a multiple of group, {cfg.group}")
        if images is None and cfg.data == "phantom":
            notice_phantom("RL4Seg-Echo-v0", "give data=<CAMUS folder> to play on echocardiography")
        pool = load_echo(cfg, cfg.split) if images is None else images
        if not isinstance(pool, ImagePool):
            raise ValueError(f"images is {pool!r} but must be an ImagePool")
        self.pool = pool.checked(channels=1, classes=len(CLASSES)).to(self.device)
        self.origin = self.pool.origin
        self._rewards = [reward_function] if reward_function else [self._reward_named(name) for name in cfg.rewards]
        self._term = "reward_function" if reward_function else "+".join(cfg.rewards)
        self.reward_weights = {self._term: 1.0}
        self._sampler: PerEnvSampler | SharedSampler = (
            PerEnvSampler(len(self.pool), self.streams)
            if cfg.sampler == "per_env"
            else SharedSampler(len(self.pool), self.streams, cfg.group)
        )
        self.shape = height, width = self.pool.images.shape[2], self.pool.images.shape[3]
        self.single_observation_space = spaces.Box(0.0, 1.0, (1, height, width), np.float32)
        self.single_action_space = spaces.MultiDiscrete(np.full(height * width, len(CLASSES)))
        self.index = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.mask = torch.zeros(num_envs, height, width, dtype=torch.uint8, device=self.device)
        self.pixel_reward = torch.zeros(num_envs, height, width, device=self.device)
        self.is_valid = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self.set_gold(self.index[:0], self.mask[:0])

    def _reward_named(self, name: str) -> RewardFunction:
        if name == "anatomical":
            return lambda images, masks, index: anatomical_reward(masks)
        if name == "reward_net":
            assert self.config.reward_net is not None
            given = self.config.reward_net
            files = given if isinstance(given, list | tuple) else [given]
            members = [load_network(file, RewardNet, classes=len(CLASSES)) for file in files]
            net = as_one(members, fusion=self.config.fusion, width=self.config.lcb_width)
            net = net.requires_grad_(False).to(self.device)
            return lambda images, masks, index: net(images, masks)
        labels = self.pool.labels
        if labels is None:
            raise ValueError(
                f"reward {name!r} needs labels, which {self.pool.unlabelled[0]} lacks ({len(self.pool.unlabelled)} of "
                f"{len(self.pool)} images do); name labelled patients in `patients`, or use reward='reward_net' or "
                "'anatomical'"
            )
        return partial(_by_truth, TRUTH_REWARDS[name], labels)

    # -- the dynamics: docs/rl4seg.md, Method 2 --------------------------------------------------------------------

    def seed(self, seeds: Sequence[int]) -> None:
        """Seed every environment; the orders of the images are shuffled anew."""
        super().seed(seeds)
        self._sampler.restart()

    def _reset(self, env_ids: Tensor, options: Mapping[str, Any]) -> None:
        if unknown := set(options) - {"index"}:
            raise ValueError(f"unknown reset options {sorted(unknown)}; known is 'index'")
        if "index" in options:
            index = chosen_images(options["index"], len(env_ids), len(self.pool), self.device)
        else:
            index = self._sampler.draw(env_ids)
        # new tensors: who holds the map of the last step keeps it
        self.index = self.index.index_copy(0, env_ids, index)
        self.mask, self.pixel_reward, self.is_valid = (
            last.index_fill(0, env_ids, 0) for last in (self.mask, self.pixel_reward, self.is_valid)
        )

    def actions_from(self, actions: Any) -> Tensor:
        """Masks uint8 [N, H, W] of `actions` [N, H*W] or [N, H, W], which come from outside.

        Raises:
            ValueError: a wrong shape or type, or a label outside 0..2.
        """
        given = np.asarray(actions.cpu() if isinstance(actions, Tensor) else actions)
        if given.shape == (self.num_envs, *self.shape):
            given = given.reshape(self.num_envs, -1)
        return self._masks(super().actions_from(given))

    def _masks(self, actions: Tensor) -> Tensor:
        """uint8 [N, H, W]; only shape and type are looked at, since the values are on the device."""
        height, width = self.shape
        if actions.shape not in ((self.num_envs, height * width), (self.num_envs, height, width)):
            raise ValueError(
                f"actions have shape {tuple(actions.shape)} but must have {(self.num_envs, height * width)} or "
                f"{(self.num_envs, height, width)}"
            )
        if actions.dtype.is_floating_point or actions.dtype.is_complex or actions.dtype == torch.bool:
            raise ValueError(f"actions have dtype {actions.dtype} but must be integers, labels 0..{len(CLASSES) - 1}")
        masks = actions.reshape(self.num_envs, height, width)
        return masks.to(self.device, torch.uint8, copy=True)  # the caller may use the memory again

    @torch.no_grad()
    def _step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        self.mask = self._masks(actions)
        images = self.pool.at(self.index)
        worth = min_fusion(*(reward(images, self.mask, self.index) for reward in self._rewards))
        if worth.shape not in (self.mask.shape, (self.num_envs, 1, 1)):
            raise ValueError(
                f"the reward has shape {tuple(worth.shape)} but must have {tuple(self.mask.shape)}, a number for "
                f"every pixel, or {(self.num_envs, 1, 1)}, one for every image"
            )
        self.pixel_reward = worth.float().expand_as(self.mask).contiguous()
        if self.config.compute_validity:
            self.is_valid = valid_masks(self.mask).to(self.device)
        return {self._term: self.pixel_reward.mean(dim=(1, 2))}, torch.ones_like(self.is_valid)

    def observe(self, env_ids: Tensor | None = None) -> Obs:
        """The images float32 [N, 1, H, W] in [0, 1]; of the environments `env_ids` int64 [K] only, [K, 1, H, W]."""
        return self.pool.at(self.index if env_ids is None else self.index[env_ids])

    def set_gold(self, index: Tensor, masks: Tensor) -> None:
        """Choose the images that have a mask to imitate (docs/rl4seg.md, Method 7); replaces an earlier choice.

        The masks stand in `info`; no episode depends on them, so `state` leaves them out.

        Args:
            index: numbers of the images in `pool`, int64 [K], each once.
            masks: uint8 [K, H, W], labels 0..2.

        Raises:
            ValueError: numbers that are no images or come twice, masks of another shape, type or label.
        """
        if index.dtype != torch.int64 or index.ndim != 1 or len(set(index.tolist())) != len(index):
            raise ValueError(f"gold images are {index.dtype} {tuple(index.shape)} but must be int64 [K], each once")
        if len(index) and not (index.min() >= 0 and index.max() < len(self.pool)):
            raise ValueError(
                f"gold images lie in {int(index.min())}..{int(index.max())}, images in 0..{len(self.pool) - 1}"
            )
        if masks.dtype != torch.uint8 or masks.shape != (len(index), *self.shape):
            raise ValueError(
                f"gold masks are {masks.dtype} {tuple(masks.shape)} but must be uint8 {(len(index), *self.shape)}"
            )
        if len(masks) and masks.max() >= len(CLASSES):
            raise ValueError(f"gold masks have label {int(masks.max())} but labels are 0..{len(CLASSES) - 1}")
        none = torch.zeros(1, *self.shape, dtype=torch.uint8, device=self.device)
        self._gold_masks = torch.cat((none, masks.to(self.device)))  # [K + 1, H, W], the first is none
        self._gold_of = torch.zeros(len(self.pool), dtype=torch.int64, device=self.device)  # place in it
        self._gold_of[index.to(self.device)] = torch.arange(1, len(index) + 1, device=self.device)

    def truth(self) -> Tensor:
        """The right mask of every environment, uint8 [N, H, W].

        Raises:
            ValueError: it is not known.
        """
        if self.pool.labels is None:
            raise ValueError(f"no truth is known of {self.pool.unlabelled[0]} ({len(self.pool.unlabelled)} images)")
        return self.pool.labels[self.index]

    # -- info --------------------------------------------------------------------------------------------------------

    def _info(self) -> dict[str, Tensor]:
        """Number and gold mask of each image, R of the mask that was given, and whether it is valid."""
        gold = self._gold_of[self.index]
        validity = {"is_valid": self.is_valid} if self.config.compute_validity else {}
        return {
            "index": self.index,
            "pixel_reward": self.pixel_reward,
            "gold": gold > 0,
            "gold_action": self._gold_masks[gold],
            **validity,
        }

    def _episode_info(self, env_ids: Tensor) -> Callable[[], list[dict[str, Any]]]:
        """Identity of each image and, with expose_truth, the Dice of each mask."""
        index, masks = self.index[env_ids], self.mask  # a reset makes a new `mask`

        def made() -> list[dict[str, Any]]:
            infos: list[dict[str, Any]] = [
                {
                    "case_id": self.pool.ids[number],
                    "view": self.pool.tags["view"][number],
                    "instant": self.pool.tags["instant"][number],
                    "spacing_mm": self.pool.spacing_mm[number].numpy(),
                }
                for number in index.tolist()
            ]
            if self.config.expose_truth and self.pool.labels is not None:
                scores = structure_dice(masks[env_ids], self.pool.labels[index]).tolist()
                for info, dice in zip(infos, scores, strict=True):
                    info.update(zip(DICE, dice, strict=True))
            return infos

        return made

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs."""
        return {**super().state(), "sampler": self._sampler.state(), **{name: getattr(self, name) for name in STATE}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        super().load_state(state)
        self._sampler.load_state(state["sampler"])
        for name in STATE:
            setattr(self, name, state[name].to(self.device, copy=True))

    def _render_frame(self, env_id: int) -> Frame:
        """Image, mask, 1 - R and, where it is known, truth, side by side; before the step, mask and R are empty."""
        index, scale = int(self.index[env_id]), max(1, round(PANEL_PX / max(self.shape)))
        image, mask = self.pool.images[index, 0].cpu().numpy(), self.mask[env_id].cpu().numpy()
        doubt = (
            (1 - self.pixel_reward[env_id]).clamp(0, 1).cpu().numpy() if int(self.t[env_id]) else np.zeros(image.shape)
        )
        outline, layers = [], [[], [(mask, PREDICTION)], []]
        if self.pool.labels is not None and self.shows_truth:
            outline = [(self.pool.labels[index].cpu().numpy(), TRUTH)]
            layers.append([])
        panels = [
            echo_panel(image, masks=masks + outline * (n > 0), heat=doubt if n == 2 else None, scale=scale)
            for n, masks in enumerate(layers)
        ]
        return beside(panels)

    def legend(self) -> Legend:
        """As `BatchedEnv.legend`."""
        shown = [("mask", PREDICTION)]
        if self.pool.labels is not None and self.shows_truth:
            shown.append(("truth", TRUTH))
        rows = [(colour, f"{what}: {part}") for what, of in shown for part, colour in (("LV", of.lv), ("MYO", of.myo))]
        return (*rows, (heat_colour(0.5), "third picture: 1 - R, brighter where the reward R is lower"))

    def caption(self, env_id: int) -> str:
        """The image and, after the step, R."""
        name = self.pool.ids[int(self.index[env_id])]
        return f"{name}: mean R {float(self.pixel_reward[env_id].mean()):.3f}" if int(self.t[env_id]) else name


def structure_dice(masks: Tensor, labels: Tensor) -> Tensor:
    """Dice of LV, MYO and both as one (EPI), float32 [K, 3], of masks and labels uint8 [K, H, W]; both empty: 1."""
    return torch.cat((class_dice(masks, labels, (LV, MYO)), class_dice(masks > 0, labels > 0, (1,))), dim=1)


def _by_truth(reward: RewardMap, labels: Tensor, images: Tensor, masks: Tensor, index: Tensor) -> Tensor:
    return reward(masks, labels[index])
