"""APGA: a mask that hides from a classifier what it needs (MICCAI 2019, arXiv 1909.04108).

Eq. n.m are those of docs/apga.md, Method n. Symbols, as in the paper: x = image, a = mask (1: selected), x_adv =
x (1 - a), x_aid = x a, R = reward. An episode is one mask of one radiograph, or in mode sequential one that grows cell
by cell. The radiographs stay on the device as bytes, and the classifier's logits of plain ones are kept until it
changes; a step is one call of it for all environments.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..classifiers.masked_images import erased, fill_of, kept
from ..classifiers.xray import PACKAGED, XrayClassifier
from ..common.device import bfloat16_on_cuda
from ..common.networks import load_network
from ..datasets.xray.images import XrayPool, load_xrays
from ..evaluation.drawing import Legend
from ..rewards.loss_gap import VIEWS, doubt, gap, reward_terms
from . import apga_pictures
from .apga_actions import MaskActions
from .apga_config import SEQUENTIAL_HORIZON, APGAConfig, side_of
from .core import BatchedEnv, Frame, Obs, notice_phantom
from .samplers import PerEnvSampler, SharedSampler, chosen_images

STATE = ("index", "cells", "filling", "plain")
"""Tensors that an episode consists of, beside those of the core and the sampler."""
TABLES = ("judged", "worth")
"""Tensors [N] by name that it consists of."""


class APGAEnv(BatchedEnv):
    """Select the part of a radiograph without which a classifier goes wrong.

    ## Description
    The environment shows one radiograph; the agent selects a part of it. A frozen classifier sees the radiograph with
    that part erased (or with nothing else), and the reward is by how much it doubts the true class more than before,
    less a price for large masks. Nothing tells the agent the class or where a lesion is.

    ## Action Space
    S = `size`, G = `grid`; rows first, from the top left.

    | `action_mode` | space | meaning |
    |---|---|---|
    | `patch` | `MultiBinary(G * G)` | 1 selects a cell of S / G pixels |
    | `pixel` | `MultiBinary(S * S)` | 1 selects a pixel |
    | `box` | `MultiDiscrete([G, G, G, G])` | top, left, height - 1, width - 1 in cells, cut at the border |
    | `beta` | `Box(0, 1, (G * G,))` | weight of each cell, interpolated |
    | `sequential` | `Discrete(G * G + 1)` | selects one cell more; the last action stops |

    In mode sequential `action_masks()` leaves out cells that are selected already.

    ## Observation Space
    `Box(0, 255, (1, S, S), uint8)`: the radiograph. In mode sequential `(2, S, S)`: with the mask as second plane.

    ## Rewards
    `gap`: what the mask is worth (`reward_mode`, `reward_kind`), cut at `reward_clip`; `area`: minus `area_coef` times
    the share that is selected; `tv`: minus `tv_coef` times its total variation. In mode sequential each is paid as it
    grows, so that the return is what one step with the last mask would have paid.

    ## Starting State
    A radiograph of the split, drawn without replacement; `reset(options={"index": 3})` shows number 3 in every
    environment, `{"index": [3, 0]}` one for each. Nothing is selected.

    `info` has `index`, the number of the radiograph, `label`, `loss_orig` and `prob_orig`, the cross-entropy and the
    probability of its class; after a step, and 0 before it, `gap`, `mask_area`, `mask_tv` and `loss_adv`, `prob_adv`,
    `loss_aid`, `prob_aid`, as far as the reward needs them or `log_aid` wants them; where lesions are known `roi_iou`,
    the mask's overlap with the box around the lesion, 0 where there is none. The end adds `case_id`, `study` and the
    name of the class, `class_name`.

    ## Episode End
    Terminated after one step. In mode sequential, terminated by the action that stops, truncated after `horizon` steps.

    ## Arguments
    The fields of `APGAConfig`, by name; `classifier` may be any module that gives logits [B, K] of images [B, 1, S, S]
    in [0, 1], and `images` an `XrayPool` to play on instead of `data`.

    >>> import gymnasium as gym, segarena
    >>> env = gym.make("APGA-MURA-v0", device="cpu")
    >>> image, info = env.reset(seed=0, options={"index": 3})
    >>> image.shape, info["index"], env.action_space
    ((1, 64, 64), 3, MultiBinary(64))
    >>> image, reward, terminated, truncated, info = env.step(env.action_space.sample() * 0)
    >>> reward, terminated, truncated
    (0.0, True, False)

    ## References
    Adversarial Policy Gradient Augmentation (MICCAI 2019, arXiv 1909.04108).

    ## Version History
    v0: first version.
    """

    config_class = APGAConfig
    config: APGAConfig

    def __init__(
        self,
        config: APGAConfig | None = None,
        *,
        classifier: str | Path | nn.Module | None = None,
        images: XrayPool | None = None,
        **settings: Any,
    ) -> None:
        if classifier is not None and not isinstance(classifier, nn.Module):
            settings["classifier"] = str(classifier)
        if images is not None:
            settings["size"] = side_of(images)
        super().__init__(config, **settings)
        cfg, num_envs = self.config, self.num_envs
        if num_envs % cfg.group:
            raise ValueError(f"num_envs is {num_envs} but must be a multiple of group, {cfg.group}")
        if images is None and cfg.data == "phantom" and cfg.csv is None:
            notice_phantom(
                "APGA-MURA-v0", "give data=<MURA folder> or csv=<table>, and classifier=<file>, for patients"
            )
        self.pool = (load_xrays(cfg, cfg.split) if images is None else images).to(self.device)
        self.origin = self.pool.origin
        grid = cfg.size if cfg.action_mode == "pixel" else cfg.grid
        self.mask_actions = MaskActions(cfg.action_mode, cfg.size, grid, cfg.blur_sigma_px)
        self.action_shape = (grid, grid) if cfg.action_mode == "patch" else None
        self.reward_weights = {"gap": 1.0, "area": cfg.area_coef, "tv": cfg.tv_coef}
        self._views = ("adv", "aid") if cfg.log_aid else VIEWS[cfg.reward_mode]
        planes = 2 if cfg.action_mode == "sequential" else 1
        self.single_observation_space = spaces.Box(0, 255, (planes, cfg.size, cfg.size), np.uint8)
        self.single_action_space = self.mask_actions.space
        self._sampler: PerEnvSampler | SharedSampler = (
            PerEnvSampler(len(self.pool), self.streams)
            if cfg.sampler == "per_env"
            else SharedSampler(len(self.pool), self.streams, cfg.group)
        )
        self.index = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.cells = self.mask_actions.none.to(self.device).repeat(num_envs, 1, 1, 1)
        """Cells that are selected in each environment, [N, 1, G, G]."""
        self.filling = torch.zeros(num_envs, 1, cfg.size, cfg.size, device=self.device)
        """What is seen where an image is erased, [N, 1, S, S] in [0, 1]."""
        self.plain = torch.zeros(num_envs, len(self.pool.classes), device=self.device)
        """Logits of the plain images, [N, K]."""
        facts = ("gap", "mask_area", "mask_tv", *(f"{of}_{view}" for view in self._views for of in ("loss", "prob")))
        self.judged = {name: torch.zeros(num_envs, device=self.device) for name in facts}
        """Facts of the masks as they are, each [N]; 0 where nothing has been selected yet."""
        self.worth = {name: torch.zeros(num_envs, device=self.device) for name in self.reward_weights}
        """Reward terms that the masks as they are would have been paid in one step, unweighted, each [N]."""
        self.set_classifier(classifier if isinstance(classifier, nn.Module) else self._packaged_or_file())

    def _resolved(self, config: APGAConfig) -> APGAConfig:
        steps = SEQUENTIAL_HORIZON if config.action_mode == "sequential" else 1
        return config if config.horizon else replace(config, horizon=steps)

    def _packaged_or_file(self) -> nn.Module:
        """The classifier of the configuration, whose classes must be as many as those of the data."""
        cfg, path = self.config, Path(self.config.classifier)
        if cfg.classifier == "packaged":
            if self.pool.origin != "phantom":
                raise ValueError(
                    "classifier is 'packaged', which has seen phantoms alone, but the radiographs are real; give the "
                    "file of a classifier that was trained on such radiographs, or a module"
                )
            path = PACKAGED
        return load_network(path, XrayClassifier, out_channels=len(self.pool.classes)).requires_grad_(False)

    # -- the classifier --------------------------------------------------------------------------------------------

    def set_classifier(self, classifier: nn.Module) -> None:
        """Play against another classifier: logits [B, K] of images [B, 1, S, S] in [0, 1]. It is always asked in
        evaluation mode and without gradient, and stays in the mode it is in."""
        self.classifier = classifier.to(self.device)
        self.classifier_changed()

    def classifier_changed(self) -> None:
        """Forget what the classifier said of plain images; to be called when its weights have changed."""
        self._table = torch.zeros(len(self.pool), len(self.pool.classes), device=self.device)
        self._known = torch.zeros(len(self.pool), dtype=torch.bool, device=self.device)
        self._missing = len(self.pool)
        if self.running:
            self.plain = self._plain_logits(self.index)
            begun = self.t > 0
            now, _ = self._judge(self.cells, self._all)
            self.worth = {name: torch.where(begun, term, 0.0) for name, term in now.items()}

    @torch.no_grad()
    def _logits(self, x: Tensor, *, masked: bool = False) -> Tensor:
        """z float32 [B, K] of images [B, 1, S, S] in one call."""
        net, count = self.classifier, len(x)
        if count == 1:  # so that an environment is the same alone: a CPU rounds otherwise for one image
            x = x.expand(2, -1, -1, -1)
        options = {"masked": True} if masked and isinstance(net, XrayClassifier) and net.split_bn else {}
        training = net.training
        if training:
            net.eval()
        try:
            with bfloat16_on_cuda(x.device):
                logits: Tensor = net(x, **options)
        finally:
            if training:
                net.train()
        if logits.shape != (len(x), len(self.pool.classes)):
            raise ValueError(
                f"the classifier gives logits of shape {tuple(logits.shape)} of {len(x)} images but must give "
                f"{(len(x), len(self.pool.classes))}, one for each of the classes {self.pool.classes}"
            )
        return logits[:count].float()

    def _plain_logits(self, index: Tensor) -> Tensor:
        """z [K', K] of plain images int64 [K']; those that the classifier has not seen yet by one call."""
        if self._missing:
            rows = torch.unique(index[~self._known[index]])
            if len(rows):
                self._table = self._table.index_copy(0, rows, self._logits(self.pool.at(rows)))
                self._known = self._known.index_fill(0, rows, True)
                self._missing -= len(rows)
        return self._table[index]

    def _judge(self, cells: Tensor, env_ids: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Reward terms without weights, and facts, each [K], of masks by their cells [K, 1, G, G] in the environments
        `env_ids` int64 [K], by one call of the classifier (Eq. 13.1-13.3)."""
        cfg, index = self.config, self.index[env_ids]
        x, filling, labels = self.pool.at(index), self.filling[env_ids], self.pool.labels[index]
        a = self.mask_actions.masks(cells).float()
        views = [(erased if view == "adv" else kept)(x, a, filling) for view in self._views]  # [K, 1, S, S]
        logits = self._logits(torch.cat(views), masked=True).tensor_split(len(views))
        seen = {"plain": self.plain[env_ids], **dict(zip(self._views, logits, strict=True))}
        worth = gap({view: doubt(z, labels, cfg.reward_kind) for view, z in seen.items()}, cfg.reward_mode)
        terms = reward_terms(worth, cells, cfg.reward_clip)
        facts = {"gap": worth, "mask_area": -terms["area"], "mask_tv": -terms["tv"]}
        for view in self._views:
            facts[f"loss_{view}"], facts[f"prob_{view}"] = _loss_and_prob(seen[view], labels)
        if cfg.reward_level == "batch":
            terms = {name: term.mean().expand(len(x)) for name, term in terms.items()}
        return terms, facts

    @torch.no_grad()
    def preview(self, cells: Tensor, env_ids: Tensor | None = None) -> Tensor:
        """What one step with other masks would be paid: rewards float32 [K]; nothing moves.

        Args:
            cells: [K, 1, G, G], bool, or float32 in [0, 1] of mode beta; the pixels of mode pixel.
            env_ids: int64 [K]: the environment whose image each mask is for; None: one mask for each environment.
        """
        terms, _ = self._judge(cells, self._all if env_ids is None else env_ids)
        return torch.stack([self.reward_weights[name] * term for name, term in terms.items()]).sum(dim=0)

    # -- the dynamics: docs/apga.md, Method 11 ---------------------------------------------------------------------

    def seed(self, seeds: Sequence[int]) -> None:
        """Seed every environment; the orders of the images are shuffled anew."""
        super().seed(seeds)
        self._sampler.restart()

    @torch.no_grad()
    def _reset(self, env_ids: Tensor, options: Mapping[str, Any]) -> None:
        if unknown := set(options) - {"index"}:
            raise ValueError(f"unknown reset options {sorted(unknown)}; known is 'index'")
        if "index" in options:
            index = chosen_images(options["index"], len(env_ids), len(self.pool), self.device)
        else:
            index = self._sampler.draw(env_ids)
        # new tensors: who holds those of the last step keeps them
        self.index = self.index.index_copy(0, env_ids, index)
        self.cells = self.cells.index_fill(0, env_ids, 0)
        self.plain = self.plain.index_copy(0, env_ids, self._plain_logits(index))
        if self.config.fill != "zero":
            self.filling = self.filling.index_copy(0, env_ids, self._drawn_filling(index, env_ids))
        self.judged, self.worth = (
            {name: value.index_fill(0, env_ids, 0.0) for name, value in table.items()}
            for table in (self.judged, self.worth)
        )

    def _drawn_filling(self, index: Tensor, env_ids: Tensor) -> Tensor:
        """What is seen where the images int64 [K] of the environments `env_ids` are erased, float32 [K, 1, S, S]."""
        x, size = self.pool.at(index), self.config.size
        noise = None
        if self.config.fill == "noise":
            uniform = self.streams.uniform(size * size, env_ids).clamp(min=1e-9)
            noise = (math.sqrt(2) * torch.erfinv(2 * uniform - 1)).float().view_as(x)
        filling = fill_of(x if len(x) > 1 else x.expand(2, -1, -1, -1), self.config.fill, noise)  # see `_logits`
        assert filling is not None
        return filling[: len(x)].expand_as(x)

    @torch.no_grad()
    def _step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        actions = actions.to(self.device)
        self.cells = self.mask_actions.cells(actions, self.cells)
        now, self.judged = self._judge(self.cells, self._all)
        self._check_finite(self.judged["gap"])
        terms = {name: term - self.worth[name] for name, term in now.items()}  # Eq. 13.4
        self.worth = now
        return terms, self.mask_actions.stops(actions)

    def _check_finite(self, worth: Tensor) -> None:
        """Refuse to go on with a reward that is no number; waits for the device once.

        Raises:
            ValueError: names the images.
        """
        finite = worth.isfinite()
        if not finite.all():
            rows = self.index[~finite].tolist()
            names = ", ".join(self.pool.ids[row] for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
            raise ValueError(
                f"the reward of {len(rows)} images is not finite: {names}; look for NaN in the classifier's weights"
            )

    def observe(self, env_ids: Tensor | None = None) -> Obs:
        """Radiographs uint8 [N, 1, S, S], in mode sequential with the mask [N, 2, S, S]; of `env_ids` only."""
        env_ids = self._all if env_ids is None else env_ids
        images = self.pool.images[self.index[env_ids]]
        if self.config.action_mode != "sequential":
            return images
        return torch.cat((images, 255 * self.mask_actions.masks(self.cells[env_ids]).to(torch.uint8)), dim=1)

    def action_masks(self) -> Tensor:
        """As `BatchedEnv.action_masks`; of mode sequential cells that are not selected, and to stop."""
        if self.config.action_mode != "sequential":
            return super().action_masks()
        return self.mask_actions.free(self.cells)

    def actions_for(self, masks: Tensor) -> Tensor:
        """Actions [N, ...] that come near to masks [N, 1, S, S], bool or in [0, 1]; see `MaskActions.nearest`."""
        return self.mask_actions.nearest(masks, self.cells)

    @property
    def mask(self) -> Tensor:
        """What is selected, [N, 1, S, S]: bool, or float32 of mode beta."""
        return self.mask_actions.masks(self.cells)

    # -- info --------------------------------------------------------------------------------------------------------

    def _info(self) -> dict[str, Tensor]:
        """The image, the classifier's doubts, and the mask; see the class."""
        labels = self.pool.labels[self.index]
        loss, prob = _loss_and_prob(self.plain, labels)
        known = {} if self.pool.roi is None else {"roi_iou": self._roi_iou(self.pool.roi[self.index])}
        return {"index": self.index, "label": labels, "loss_orig": loss, "prob_orig": prob, **self.judged, **known}

    def _roi_iou(self, roi: Tensor) -> Tensor:
        """Overlap with the lesions bool [N, S, S], float32 [N]; 0 where there is none."""
        selected = self.mask[:, 0] > 0.5
        both, either = (selected & roi).sum(dim=(1, 2)), (selected | roi).sum(dim=(1, 2))
        return both / either.clamp(min=1)

    def _episode_info(self, env_ids: Tensor) -> Callable[[], list[dict[str, Any]]]:
        """Identity and class of each image."""
        index = self.index[env_ids]
        pool = self.pool

        def made() -> list[dict[str, Any]]:
            return [
                {"case_id": pool.ids[row], "study": pool.studies[row], "class_name": pool.classes[label]}
                for row, label in zip(*torch.stack((index, pool.labels[index])).tolist(), strict=True)
            ]

        return made

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs, but for the classifier."""
        return {
            **super().state(),
            "sampler": self._sampler.state(),
            **{name: getattr(self, name) for name in (*STATE, *TABLES)},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        super().load_state(state)
        self._sampler.load_state(state["sampler"])
        for name in STATE:
            setattr(self, name, state[name].to(self.device, copy=True))
        for name in TABLES:
            setattr(self, name, {key: value.to(self.device, copy=True) for key, value in state[name].items()})

    def _render_frame(self, env_id: int) -> Frame:
        """Image, mask over it, the image without it, and with nothing else, side by side."""
        return apga_pictures.picture(self, env_id)

    def legend(self) -> Legend:
        """As `BatchedEnv.legend`."""
        return apga_pictures.legend(self)

    def caption(self, env_id: int) -> str:
        """The image and, after a step, the classifier's losses."""
        return apga_pictures.caption(self, env_id)


def _loss_and_prob(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats and probability of the class, each [K]."""
    return doubt(logits, labels, "loss"), -doubt(logits, labels, "prob")
