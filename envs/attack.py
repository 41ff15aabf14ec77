"""RP-PGD: an attack on a segmentation network as an episode, one gradient step a move (docs/rp-pgd.md, Method 19).

Symbols: x = clean image, x_t = image after t steps, N = steps of the episode, m = measure of how right a prediction is.
The environments of a batch share one forward and one backward pass of the victim a step. Where an episode ends, the
next image is passed alone; the others keep their graphs.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..attacks.budget import Epsilon, LinfBall, per_image
from ..attacks.core import AttackCore
from ..attacks.losses import PixelLoss, cross_entropy, jensen_shannon, margin
from ..attacks.methods import PROTOTYPICAL
from ..attacks.options import RPOptions
from ..attacks.regions import GROUPS, groups
from ..attacks.victims import PACKAGED, feature_layer_of, load_victim
from ..datasets.images import IGNORED, ImagePool
from ..evaluation.drawing import Legend
from ..rewards.damage import measures
from . import attack_pictures
from .attack_actions import NUMBERS, action_space, decode, move, script, scripts_of
from .attack_config import AttackConfig
from .attack_observations import HIGHEST, MAPS, NUMBER, maps, summary
from .attack_starts import PairedBaseline, ball_of, may_start_at_random, start_of
from .core import BatchedEnv, Frame, Obs, notice_phantom
from .samplers import chosen_images

LOSSES: dict[str, PixelLoss] = {one.__name__: one for one in (cross_entropy, jensen_shannon, margin)}
TENSORS = ("index", "horizon_of", "numbers", "x_adv", "begun_at", "flipped", "turned", "baseline", "probed")
"""Tensors that an episode consists of, beside those of the environment's core and the attack's."""
FACTS = {"final_miou": "miou", "final_aacc": "aacc", "final_dice": "dice", "n_fwd": "n_fwd", "n_bwd": "n_bwd"}
"""What the end of an episode says in Python numbers, and the infos that it is."""


class AttackEnv(BatchedEnv):
    """Change an image within a small ball, one gradient step at a time, so that a segmentation network goes wrong.

    ## Description
    Each environment shows one image with its labels to a frozen network, the victim. A move chooses what the next
    gradient raises (weights of five groups of pixels and of two terms of class prototypes) and how far the image
    moves along its sign. Every attack of `segarena.attacks.methods.ATTACKS` is a policy here, with the same numbers.

    ## Action Space
    With `action_mode="schedule"`, `Box(-1, 1, (11,))`, decoded from a:

    | index | meaning | decoded | range |
    |---|---|---|---|
    | 0 | weight of pixels that have been right until now (T) | (a + 1) / 2 | [0, 1] |
    | 1, 2 | of those that were, and are wrong now, or right again (B) | (a + 1) / 2 | [0, 1] |
    | 3, 4 | of those wrong at the start, that are wrong now, or right (F) | (a + 1) / 2 | [0, 1] |
    | 5 | weight of the inter-class term | (a + 1) / 2 | [0, 1] |
    | 6 | weight of the intra-class term | a | [-1, 1] |
    | 7 | step size / epsilon | 10^(a - 1) | [0.01, 1] |
    | 8 | 0 divides by all valid pixels, 1 by those of the region | (a + 1) / 2 | [0, 1] |
    | 9 | exponent of the confidence | a + 1 | [0, 2] |
    | 10 | momentum | (a + 1) / 2 | [0, 1] |

    With `residual_to` half of the action is added to that of a scripted attack. Other modes: `gridweight`, `Box(-1, 1,
    (cells, cells))`, factors exp(2 a) of the weights of that script; `discrete`, `Discrete`, which of `env.scripts`
    makes this step; `signmap`, `MultiDiscrete([3] * (C * cells * cells))`, the direction of each cell, without any
    gradient.

    ## Observation Space
    `Box(-5, 5, (40,))`: time, budget, and of the five groups share, loss and probability; accuracy, damage, flips,
    prototypes, perturbation and the last action (docs/rp-pgd.md, Method 21). With `obs_mode="map"` a dictionary of
    these as `vec` and of `map`, `Box(-1, 1, (3 C + 8, map_size, map_size))`.

    ## Rewards
    `damage`: m(x_t) - m(x_{t+1}), where m is the measure `reward`; the return is the damage of the episode. With
    `paired_baseline` also `baseline`: in the last step, minus the damage of that attack from the same start.

    ## Starting State
    An image of the split, drawn uniformly; `reset(options={"index": 3})` shows image 3 in every environment, `{"index":
    [3, 0]}` one for each. A number of steps of `horizons`, drawn uniformly. The clean image, or with `rand_start` a
    random one of the ball.

    `info` has, of the image that counts, `miou`, `aacc`, `dice`, `p_y` and `linf`; `n_fwd` and `n_bwd`, the passes of
    this image; `region_frac`, the shares of the five groups; `alpha`, the step size; the terms of what was raised,
    `loss/pixels`, `loss/inter`, `loss/intra`; `index`, the number of the image in `env.pool`, and `steps`. The end adds
    `sample_id`, `damage`, `final_miou`, `final_aacc` and `final_dice`. `env.x_adv`: the images that count, until then.

    ## Episode End
    Terminated after N steps, which the observation tells, or when no valid pixel is right; never truncated.

    ## Arguments
    The fields of the configuration, by name; `model` may be any module that gives logits [B, K, H, W] of images [B, C,
    H, W] in [0, 1], and `images` an `ImagePool` to play on instead of `data`.

    ## References
    Zhang et al.: RP-PGD: Boosting Segmentation Robustness with a Region-and-Prototype Based Adversarial Attack (2025).

    ## Version History
    v0: first version.
    """

    config_class: ClassVar[type[Any]] = AttackConfig
    config: AttackConfig
    env_id = ""
    """Its id, for messages."""
    packaged = "scenes"
    """Which of the packaged victims is its own."""

    def __init_subclass__(cls, **given: Any) -> None:
        """Its documentation is its own first line, and what holds for all."""
        super().__init_subclass__(**given)
        cls.__doc__ = f"{cls.__doc__}\n{(AttackEnv.__doc__ or '').partition(chr(10))[2]}"

    def __init__(
        self,
        config: AttackConfig | None = None,
        *,
        model: str | Path | nn.Module | None = None,
        images: ImagePool | None = None,
        **settings: Any,
    ) -> None:
        if model is not None and not isinstance(model, nn.Module):
            settings["model"] = model
        super().__init__(config, **settings)
        cfg, num_envs = self.config, self.num_envs
        if images is None and getattr(cfg, "data", "") == "phantom":
            notice_phantom(self.env_id, "give data=<folder> and model=<victim> for photographs or CTs")
        pool = self._pool() if images is None else images
        if not isinstance(pool, ImagePool) or pool.labels is None:
            raise ValueError(f"images is {type(pool).__name__} but must be an ImagePool whose images all have labels")
        self.pool, self.origin = pool.to(self.device), pool.origin
        self.victim = self._victim(model).to(self.device)
        self.eps = Epsilon.parse(cfg.eps)
        layer = feature_layer_of(self.victim) if cfg.feature_layer == "auto" else cfg.feature_layer
        self.core = AttackCore(
            self.victim,
            ignore_index=IGNORED,
            loss=LOSSES[cfg.loss],
            feature_layer=layer,
            options=RPOptions(intra_skip=cfg.intra_skip),
            twice=self.device.type == "cpu",  # so that an environment is the same alone
        )
        self.scripts = scripts_of(self)
        self.tables = [self.script(name) for name in self.scripts]
        self.reward_weights = {"damage": 1.0} | ({"baseline": 1.0} if cfg.paired_baseline else {})
        shape = self.pool.images.shape[1:]
        self.single_action_space = action_space(self)
        numbers, size = spaces.Box(-HIGHEST, HIGHEST, (NUMBER,), np.float32), cfg.map_size
        seen = spaces.Box(-1.0, 1.0, (3 * shape[0] + MAPS, size, size), np.float32)
        self.single_observation_space = (
            numbers if cfg.obs_mode == "summary" else spaces.Dict({"map": seen, "vec": numbers})
        )
        self.horizons = torch.tensor(cfg.horizons, device=self.device)
        zero = torch.zeros(num_envs, device=self.device)
        self.index, self.horizon_of = zero.long(), zero.long()
        self.numbers = torch.zeros(num_envs, len(NUMBERS), dtype=torch.float64, device=self.device)
        self.x_adv = self.probed = torch.zeros(num_envs, *shape, device=self.device)
        self.now: dict[str, Tensor] = {}
        self.worth: dict[str, Tensor] = {}
        self.begun_at = self.turned = self.baseline = zero
        self.flipped = torch.zeros(num_envs, 2, device=self.device)
        self._paired = None if cfg.paired_baseline is None else PairedBaseline(self, self.script(cfg.paired_baseline))
        self._summary: Tensor | None = None

    def _pool(self) -> ImagePool:
        """The images of the configuration."""
        raise ValueError(f"{type(self).__name__} has no data of its own; give images, an ImagePool")

    def _victim(self, model: Any) -> nn.Module:
        """The module itself, or that of the configuration, whose classes must be those of the data."""
        if isinstance(model, nn.Module):
            return model
        path = PACKAGED[self.packaged] if self.config.model == "packaged" else self.config.model
        victim, names = load_victim(path)
        if names != self.pool.classes:
            raise ValueError(
                f"model is {self.config.model!r}, which tells {names} apart, but the images have {self.pool.classes}; "
                "give the file of a victim that was trained on such images, or a module"
            )
        return victim.requires_grad_(False)

    def script(self, name: str) -> Tensor:
        """The actions of an attack of `ATTACKS` here, float64 [horizons, longest, 11]; `scripted` picks those of now.

        Raises:
            ValueError: no such attack, or one that is no point of the action space with these arguments.
        """
        if name in PROTOTYPICAL and self.core.feature_layer is None:
            raise ValueError(f"{name} needs prototypes: give feature_layer, the name of a submodule of the victim")
        cfg, core = self.config, self.core
        table = script(
            name, cfg.horizons, self.eps, loss=core.loss.__name__, options=core.options, step_size=cfg.step_size
        )
        return table.to(self.device)

    def scripted(self, table: Tensor) -> Tensor:
        """The actions [N, 11] of a table of `script` for the episodes as they stand."""
        return table[self.horizon_of, self.t.clamp(max=table.shape[1] - 1)]

    @property
    def steps(self) -> Tensor:
        """Steps N of the running episodes, int64 [N]."""
        return self.horizons[self.horizon_of]

    # -- the dynamics: docs/rp-pgd.md, Method 3 and 19 -------------------------------------------------------------

    def _reset(self, env_ids: Tensor, options: Mapping[str, Any]) -> None:
        if unknown := set(options) - {"index"}:
            raise ValueError(f"unknown reset options {sorted(unknown)}; known is 'index'")
        first = not self.running
        if not first:
            self._check_finite()
        noise = int(self.pool.images[0].numel()) if may_start_at_random(self.config) else 0
        drawn = self.streams.uniform(2 + noise, env_ids)
        index = (drawn[:, 0] * len(self.pool)).long()
        if "index" in options:
            index = chosen_images(options["index"], len(env_ids), len(self.pool), self.device)
        self.index = self.index.index_copy(0, env_ids, index)
        horizon_of = (drawn[:, 1] * len(self.horizons)).long()
        self.horizon_of = self.horizon_of.index_copy(0, env_ids, horizon_of)
        ball, labels = self._subject(index)
        start = start_of(self.config, ball, drawn[:, 2:], self.horizons[horizon_of])
        if first:
            whole, of_all = self._subject(self.index)
            try:
                self.core.reset(whole, of_all, whole.images.index_copy(0, env_ids, start))
            except ValueError:
                self._check_finite()  # says it by the names of the images
                raise
            self.pool.checked(channels=ball.images.shape[1], classes=self.core.logits.shape[1], ignored=True)
        else:
            self.core.restart(env_ids, ball, labels, start, graph=self._wants_gradient)
        self.now = measures(self.core)
        kept = torch.ones_like(self.t, dtype=torch.bool).index_fill(0, env_ids, False)
        self.worth = self.now if first else _where(kept, self.worth, self.now)
        self.x_adv = torch.where(per_image(kept, self.x_adv), self.x_adv, self.core.adversarial)
        self.begun_at = torch.where(kept, self.begun_at, self.now[self.config.reward])
        self.numbers, self.flipped, self.turned = (
            last.index_fill(0, env_ids, 0) for last in (self.numbers, self.flipped, self.turned)
        )
        if self._paired is not None:
            damage = self._paired.damage(index, horizon_of, ball, labels, start)
            self.baseline = self.baseline.index_copy(0, env_ids, damage)
        self._look(~kept, self.probed)

    def _subject(self, index: Tensor) -> tuple[LinfBall, Tensor]:
        """Ball and labels int64 [K, H, W] of the images of the pool with these numbers, int64 [K]."""
        assert self.pool.labels is not None
        return ball_of(self.pool.at(index), self.eps.value), self.pool.labels[index].long()

    @property
    def _wants_gradient(self) -> bool:
        return self.config.action_mode != "signmap"

    def _step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        core, measure = self.core, self.config.reward
        right, sign = core.right, self._gradient().sign()
        move(self, actions.to(self.device))
        valid = core.valid.flatten(1).sum(dim=1).clamp(min=1)
        flips = [(one & core.valid).flatten(1).sum(dim=1) / valid for one in (right & ~core.right, ~right & core.right)]
        self.flipped, self.turned = torch.stack(flips, dim=1), _cosine(sign, self._gradient().sign())
        self.now, before = measures(core), self.worth
        counts = torch.ones_like(self.t, dtype=torch.bool)
        if self.config.best_iterate:
            counts = self.now[measure] < before[measure]
        self.worth = _where(counts, self.now, before)
        self.x_adv = torch.where(per_image(counts, self.x_adv), core.adversarial, self.x_adv)
        over = (self.t + 1 >= self.steps) | (core.accuracy() == 0) | core.broken_rows()
        terms = {"damage": before[measure] - self.worth[measure]}
        if self._paired is not None:
            terms["baseline"] = torch.where(over, -self.baseline, 0.0)
        self._look(~over, 0.0)
        return terms, over

    def _look(self, which: Tensor, elsewhere: Tensor | float) -> None:
        """Take the gradient that the maps show, where it is not the last one: a backward pass of the images `which`."""
        if self.config.obs_grad == "probe":
            self.probed = torch.where(per_image(which, self.x_adv), self.core.probe(), elsewhere)
            self.core.backwards = self.core.backwards + which
        self._summary = None

    def _gradient(self) -> Tensor:
        """The last one, [N, C, H, W]; 0 where none was taken."""
        return torch.zeros_like(self.x_adv) if self.core.gradient is None else self.core.gradient

    def shown_gradient(self) -> Tensor:
        """The gradient that the maps show, [N, C, H, W]."""
        return self.probed if self.config.obs_grad == "probe" else self._gradient()

    def _check_finite(self) -> None:
        """Refuse to go on where logits or gradients were not finite; waits for the device once.

        Raises:
            ValueError: names the images.
        """
        if broken := self.core.broken():
            index = self.index.tolist()
            raise ValueError(
                f"logits or gradients of {', '.join(self.pool.ids[index[row]] for row in broken)} are not finite after "
                f"{min(broken.values())} step(s); look for NaN in the weights of the victim, {self.config.model!r}"
            )

    # -- observation and info ----------------------------------------------------------------------------------------

    def observe(self, env_ids: Tensor | None = None) -> Obs:
        """The numbers float32 [N, 40], or {"map": [N, 3 C + 8, M, M], "vec": numbers}; of `env_ids` int64 [K] only."""
        if self._summary is None:
            self._summary = summary(self)
        env_ids = self._all if env_ids is None else env_ids
        vec = self._summary[env_ids]
        return vec if self.config.obs_mode == "summary" else {"map": maps(self, env_ids), "vec": vec}

    def _info(self) -> dict[str, Tensor]:
        """Facts of the image that counts and of the last step; see the class."""
        core = self.core
        group = groups(core.regions, core.right).flatten(1)
        sizes = torch.stack([(group == number).sum(dim=1) for number in range(1, 1 + len(GROUPS))], dim=1)
        none = torch.zeros_like(self.turned)
        return {
            **{"aacc" if name == "acc" else name: value for name, value in self.worth.items()},
            "linf": (self.x_adv - core.images).abs().flatten(1).amax(dim=1),
            "n_fwd": core.forwards,
            "n_bwd": core.backwards,
            "region_frac": sizes / sizes.sum(dim=1, keepdim=True).clamp(min=1),
            "alpha": self.eps.value * self.numbers[:, NUMBERS.index("step_size")].float(),
            **{f"loss/{name}": core.terms.get(name, none) for name in ("pixels", "inter", "intra")},
            "index": self.index,
            "steps": self.steps,
        }

    def _episode_info(self, env_ids: Tensor) -> Callable[[], list[dict[str, Any]]]:
        """Name of each image, and the damage that was done to its prediction."""
        index, damage = self.index[env_ids], (self.begun_at - self.worth[self.config.reward])[env_ids]
        info = self._info()
        facts = {name: info[known][env_ids] for name, known in FACTS.items()}
        x_adv = self.x_adv[env_ids] if self.config.expose_x_adv else None

        def made() -> list[dict[str, Any]]:
            self._check_finite()
            infos: list[dict[str, Any]] = [{"sample_id": self.pool.ids[number]} for number in index.tolist()]
            for name, values in {"damage": damage, **facts}.items():
                for info, value in zip(infos, values.tolist(), strict=True):
                    info[name] = value
            if x_adv is not None:
                for info, image in zip(infos, x_adv.cpu().numpy(), strict=True):
                    info["x_adv"] = image
            return infos

        return made

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs; the victim's passes are made anew."""
        core = self.core.state() if self.running else {}
        own = {name: getattr(self, name) for name in (*TENSORS, "now", "worth")}
        return {**super().state(), "core": core, **own}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        super().load_state(state)
        for name in TENSORS:
            setattr(self, name, state[name].to(self.device, copy=True))
        for name in ("now", "worth"):
            setattr(self, name, {key: value.to(self.device, copy=True) for key, value in state[name].items()})
        if self.running:
            self.core.resume(*self._subject(self.index), state["core"], graph=self._wants_gradient)
        self._summary = None

    # -- pictures ------------------------------------------------------------------------------------------------------

    def _render_frame(self, env_id: int) -> Frame:
        """Image, perturbation, regions and prediction, side by side."""
        return attack_pictures.picture(self, env_id)

    def legend(self) -> Legend:
        """As `BatchedEnv.legend`."""
        return attack_pictures.legend(self)

    def caption(self, env_id: int) -> str:
        """The image and how much of it is still right."""
        now = {name: float(values[env_id]) for name, values in self.now.items()}
        name = self.pool.ids[int(self.index[env_id])]
        return f"{name}: mIoU {now['miou']:.3f}, accuracy {now['acc']:.3f}, epsilon {self.eps}"

    def action_text(self, action: Tensor) -> str:
        """The eleven numbers; "" for other actions."""
        if self.config.action_mode != "schedule":
            return super().action_text(action)
        return " ".join(f"{number:.2f}" for number in decode(action).tolist())


def _where(which: Tensor, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.where(which, values, old[name]) for name, values in new.items()}


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of maps of signs, [N]; 0 where one is 0 everywhere."""
    norms = [x.abs().flatten(1).sum(dim=1) for x in (one, other)]
    return (one * other).flatten(1).sum(dim=1) / (norms[0] * norms[1]).sqrt().clamp(min=1)
