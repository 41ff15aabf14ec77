"""SEAT: the attack inside a training step on a patch of a volume, as an episode (docs/seat.md, Method 18).

Symbols: x = patch, delta_t = perturbation after t steps, b = radius, L_t = loss and g_t = its gradient at x + delta_t.
A pass is one forward and one backward of the victim; the environments of a batch share it.

>>> import gymnasium as gym, segarena
>>> from segarena.agents.papers import POLICIES
>>> env = gym.make("SEATAttack-MSD-v0", price=0.0, device="cpu")
>>> obs, info = env.reset(seed=0, options={"index": 3})
>>> obs.shape, env.action_space
((16,), Discrete(6))
>>> policy = POLICIES["SEATAttack-MSD-v0"]["pgd"].policy(env.unwrapped.batched, seed=0)
>>> gain, terminated = 0.0, False
>>> while not terminated:
...     obs, reward, terminated, truncated, info = env.step(policy(env.unwrapped.batched)[0].numpy())
...     gain += reward
>>> info["n_fwd"], bool(gain > 0.05), bool(abs(gain - info["loss_gain"]) < 1e-5)
(6, True, True)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from ..attacks.budget import Epsilon, per_image
from ..attacks.replays import ImageLoss, Replays
from ..datasets.decathlon.cases import load_decathlon
from ..datasets.volumes import VolumePool
from ..evaluation.drawing import Legend
from ..segmenters.dice_ce import dice_ce_of_images
from . import seat_attack_pictures
from .core import BatchedEnv, Frame, Obs, notice_phantom
from .samplers import chosen_images
from .seat_attack_actions import action_space, action_text, decode
from .seat_attack_config import SEATAttackConfig
from .seat_attack_observations import HIGHEST, MAPS, NUMBER, changes, measures, radii, stats, volumes
from .seat_attack_patches import AttackedPatches
from .seat_attack_victims import Learner, victim_of

LAST_SHARE = 0.5
"""Share of the radius by which an attack that teaches moves once more where it stops, for the next one's start."""
TENSORS = ("index", "numbers", "changed", "over", "broken", "fresh", "carried")
"""Tensors that an episode consists of, beside those of the core and the passes."""
BEGUN = ("loss", "dice_hard", "grad_l1_rel")
"""Measures that are kept of the start of an episode."""
WORTH = {"loss": ("loss", 1), "dice": ("dice_hard", -1), "margin": ("margin", -1)}
"""The measure that a reward pays the change of, and its sign."""


def cross_entropy_of_images(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the voxels of each image, [B]."""
    return F.cross_entropy(logits, labels, reduction="none").flatten(1).mean(dim=1)


LOSSES: dict[str, ImageLoss] = {"dice_ce": dice_ce_of_images, "cross_entropy": cross_entropy_of_images}


class SEATAttackEnv(BatchedEnv):
    """Change a patch of a volume within a small ball, one gradient step at a time, as long as that is worth its price.

    ## Description
    Each environment has a patch with its labels, and a network, the victim, which gives its loss and the gradient
    there. A move is a step along the sign of the gradient, of a size that is chosen, or the end of the attack. The
    victim is frozen (`update_victim="never"`), or it learns: from every pass (`every_step`, as Free-AT and SEAT do), or
    from the last image (`at_end`, as PGD-AT does). All environments share one victim; what learns is a copy,
    `env.victim`, which goes on from episode to episode until `seed`.

    ## Action Space
    | action_mode | space | meaning |
    |---|---|---|
    | `discrete` | `Discrete(6)` | 0 stops; 1 to 5: a step of 1/8, 1/4, 1/2, 1, 2 b |
    | `multi` | `MultiDiscrete([2, 5])` | whether to go on; which of these sizes |
    | `box` | `Box(-1, 1, (2,))` | stop if a0 < 0; else a step of 2^(3 a1 - 1) b, from b / 16 to 4 b |

    ## Observation Space
    `Box(-inf, inf, (16,))`; m is the relative magnitude of the gradient:

    | index | content | index | content |
    |---|---|---|---|
    | 0 | t / horizon | 8 | m_t / m_0 - 1 |
    | 1 | 255 epsilon / 16 | 9 | m_t / m_ref - 1, 0 without a reference |
    | 2 | min(L_t, 10) | 10 | cosine of g_t and g_{t-1} |
    | 3 | L_t - L_0 | 11 | share of voxels whose gradient changed its sign |
    | 4 | L_t - L_{t-1} | 12 | mean of abs(delta) / b |
    | 5 | soft Dice | 13 | share with abs(delta) = b |
    | 6 | Dice of hard labels | 14 | (L_t - L_{t-1}) / <g_{t-1}, delta_t - delta_{t-1}>, in [-2, 2] |
    | 7 | log10(m_t + 1e-12) | 15 | Dice of hard labels at the start |

    With `obs_mode="dict"` a dictionary of these as `stats`, and of `volume`, `Box(-10, 10, (C + classes + 2, 24, 24,
    24))`: image, probabilities, abs(delta) / b, abs(g) / its largest; `volume_full` has these at full size.

    ## Rewards
    `loss` (or `dice`, `margin`): the rise of the loss, L_{t+1} - L_t, or the fall of the Dice of hard labels, or of the
    mean margin, which is 0 for voxels that are wrong. `price`: minus the price of a step, 0.02. A stop gives 0. The
    return is L_T - L_0 - 0.02 T.

    ## Starting State
    A volume of the split, drawn uniformly; `reset(options={"index": 3})` shows volume 3 in every environment,
    `{"index": [3, 0]}` one for each. Its middle, or a patch as in a training (`patches`). `start` says what
    perturbation there is. One pass.

    `info` has `loss`, `loss0`, `dice_soft`, `dice_hard`, `dice_per_class`, `grad_l1`, `grad_l1_rel`, `delta_linf_rel`,
    `n_fwd` and `n_bwd`, the passes of this patch, `index`, the number of the volume in `env.pool`, and, with
    `return_delta`, `delta`. The end adds `sample_id`, `loss_gain` and `dice_lost`.

    ## Episode End
    Terminated by a stop, with `stop_on_success` where the Dice is at most `dice_threshold` after a step, and after
    `horizon` steps, which does what a stop does.

    ## Arguments
    The fields of the configuration, by name; `model` may be any module that gives logits [B, K, X, Y, Z] of patches,
    and `volumes` a `VolumePool` to play on instead of `data`.

    ## References
    Self-adaptive Adversarial Training for Robust Medical Segmentation (MICCAI 2023).

    ## Version History
    v0: first version.
    """

    config_class: ClassVar[type[Any]] = SEATAttackConfig
    config: SEATAttackConfig
    now: dict[str, Tensor]
    """Measures of the last pass of each environment."""

    def __init__(
        self,
        config: SEATAttackConfig | None = None,
        *,
        model: str | Path | nn.Module | None = None,
        volumes: VolumePool | None = None,
        **settings: Any,
    ) -> None:
        if model is not None and not isinstance(model, nn.Module):
            settings["model"] = str(model)
        super().__init__(config, **settings)
        cfg, num_envs = self.config, self.num_envs
        if volumes is None and cfg.phantom:
            notice_phantom("SEATAttack-MSD-v0", "give data=<folder of a Decathlon task> and model=<victim> for volumes")
        pool = load_decathlon(cfg, cfg.split) if volumes is None else volumes
        if not isinstance(pool, VolumePool) or pool.labels is None:
            raise ValueError(f"volumes is {type(pool).__name__} but must be a VolumePool whose volumes all have labels")
        network = model if isinstance(model, nn.Module) else victim_of(cfg.model, cfg.resolved_task, pool)
        self.pool, self.origin = pool.to(self.device), pool.origin
        self.learner = Learner(network.to(self.device), cfg.update_victim, cfg.learning_rate)
        self.iterations = cfg.iterations
        """K, which a controller may change; what scripted policies go by."""
        self.replays = Replays(self.victim, self._losses, cfg.update_victim, twice=True)
        self.reward_weights = {cfg.reward: 1.0, "price": 1.0}
        self.patches = AttackedPatches(self.pool, cfg)
        self.single_action_space = action_space(cfg.action_mode)
        self.single_observation_space = self._space()
        zero = torch.zeros(num_envs, device=self.device)
        self.index, self.over = zero.long(), zero.bool()
        self.broken = self.fresh = self.over
        self.numbers = torch.zeros(num_envs, self.patches.numbers, dtype=torch.float64, device=self.device)
        self.changed = torch.zeros(num_envs, 4, device=self.device)
        kept = num_envs if cfg.start == "carry" else 0
        self.carried = torch.zeros(kept, *self.patches.shape, device=self.device)
        self.now, self.begun_at = {}, dict[str, Tensor]()
        self._stats: Tensor | None = None

    @property
    def eps(self) -> Epsilon:
        """The radius as a share of the range."""
        return self.patches.eps

    @property
    def victim(self) -> nn.Module:
        """The network under attack, which may learn."""
        return self.learner.network

    def _space(self) -> spaces.Space[Any]:
        numbers, mode = spaces.Box(-np.inf, np.inf, (NUMBER,), np.float32), self.config.obs_mode
        if mode == "stats":
            return numbers
        size = self.patches.size if mode == "volume_full" else (self.config.volume_size,) * 3
        maps = len(self.pool.channels) + len(self.pool.classes) + MAPS
        return spaces.Dict({"stats": numbers, "volume": spaces.Box(-HIGHEST, HIGHEST, (maps, *size), np.float32)})

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        if logits.shape[1] != len(self.pool.classes):
            raise ValueError(
                f"the model tells {logits.shape[1]} classes apart but the volumes have {self.pool.classes}; give a "
                "victim that was trained on such volumes"
            )
        return LOSSES[self.config.loss](logits, labels)

    # -- the dynamics: docs/seat.md, Method 11 and 18 --------------------------------------------------------------

    def seed(self, seeds: Sequence[int]) -> None:
        """Seed every environment; the next `reset` begins from there, with the victim as it was at first."""
        super().seed(seeds)
        self.learner.restore()
        self.carried, self.fresh = torch.zeros_like(self.carried), torch.zeros_like(self.fresh)

    def _reset(self, env_ids: Tensor, options: Mapping[str, Any]) -> None:
        if unknown := set(options) - {"index"}:
            raise ValueError(f"unknown reset options {sorted(unknown)}; known is 'index'")
        cfg, number = self.config, len(env_ids)
        if self.running:
            self._check_finite()
        of_patch, shape = self.patches.numbers, self.patches.shape
        noise = math.prod(shape) if cfg.start == "uniform" else 0
        drawn = self.streams.uniform(1 + of_patch + noise, env_ids)
        index = (drawn[:, 0] * len(self.pool)).long()
        if "index" in options:
            index = chosen_images(options["index"], number, len(self.pool), self.device)
        self.index = self.index.index_copy(0, env_ids, index)
        self.numbers = self.numbers.index_copy(0, env_ids, drawn[:, 1 : 1 + of_patch])
        whole = number == self.num_envs or not self.running
        rows = self._all if whole else env_ids
        ball, labels = self.patches.at(self.index[rows], self.numbers[rows])
        start = self.carried[rows] + ball.images if cfg.start == "carry" else None
        if cfg.start == "uniform":
            signed = (2 * drawn[:, 1 + of_patch :] - 1).float().view(number, *shape)
            if whole:
                signed = torch.zeros_like(ball.images).index_copy(0, env_ids, signed)
            start = ball.images + ball.radius * signed
        if whole:
            self.learner.forget()
            self.replays.begin(ball, labels, start)
        else:
            self.replays.restart(env_ids, ball, labels, start)
        self.learner.pending = cfg.update_victim == "every_step"
        self.over, self.changed = (last.index_fill(0, env_ids, 0) for last in (self.over, self.changed))
        self.fresh = torch.ones_like(self.fresh) if whole else self.fresh.index_fill(0, env_ids, True)
        self._look()
        if not self.running:
            self._check_finite()
        begun = torch.zeros_like(self.over).index_fill(0, env_ids, True)
        first = self.begun_at or self.now
        self.begun_at = {name: torch.where(begun, self.now[name], first[name]) for name in BEGUN}

    def _step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        cfg, replays = self.config, self.replays
        going, share = decode(cfg.action_mode, actions.to(self.device))
        going, stopping = going & ~self.over, ~going & ~self.over
        before, gradient, delta = self.now, replays.gradient, replays.delta
        last = self._learn(stopping)
        self._pass(torch.where(going, share, last), going)
        risen = changes(replays, before["loss"], gradient, delta)
        self.changed = torch.where(going[:, None], risen, self.changed)
        success = torch.zeros_like(going)
        if cfg.stop_on_success:
            success = going & (self.now["dice_hard"] <= cfg.dice_threshold)
        cut = going & (success | self.broken | (self.t + 1 >= self.horizon))
        if cfg.update_victim != "never" and bool(cut.any()):
            replays.move(self._learn(cut))
        if cfg.start == "carry":
            self.carried = torch.where(per_image(stopping | cut, self.carried), replays.delta, self.carried)
        measure, sign = WORTH[cfg.reward]
        gain = sign * (self.now[measure] - before[measure])
        terms = {cfg.reward: torch.where(going, gain, 0.0), "price": torch.where(going, -cfg.price, 0.0)}
        terminated = self.over | stopping | cut
        self.over = terminated
        return terms, terminated

    def _pass(self, share: Tensor, rows: Tensor) -> None:
        """Move all by a share of the radius, float32 [N], and pass the rows bool [N]."""
        env_ids = rows.nonzero().flatten()
        if not len(env_ids):
            self.replays.move(share)
            self._stats = None
            return
        self.replays.advance(share, env_ids)
        self.learner.pending, self.fresh = self.config.update_victim == "every_step", rows
        self._look()

    def _learn(self, ending: Tensor) -> Tensor:
        """What the victim learns before a move, or where attacks end, bool [N]; the share by which those move."""
        update, still = self.config.update_victim, torch.zeros_like(self.now["loss"])
        if update == "every_step":
            if self.learner.pending:
                self.learner.step()
            return torch.where(ending, LAST_SHARE, still)
        if update == "at_end" and bool(ending.any()):
            if not bool(self.fresh[ending].all()):  # the weights have changed since, when another's attack ended
                self.replays.advance(0.0, ending.nonzero().flatten())
            self.replays.learn(ending)
            self.learner.step()
            self.fresh = torch.zeros_like(ending)
        return still

    def _look(self) -> None:
        self.now = measures(self.replays)
        self.broken = ~(self.now["loss"].isfinite() & self.now["grad_l1"].isfinite())
        self._stats = None

    def _check_finite(self) -> None:
        """Refuse to go on where a loss or a gradient was not finite; waits for the device once.

        Raises:
            ValueError: names the volumes.
        """
        if broken := [row for row, bad in enumerate(self.broken.tolist()) if bad]:
            index = self.index.tolist()
            names = ", ".join(self.pool.ids[index[row]] for row in broken)
            raise ValueError(
                f"loss or gradient of {names} is not finite; look for NaN in the weights of the victim, "
                f"{self.config.model!r}, or give a smaller learning_rate where it learns"
            )

    # -- observation and info --------------------------------------------------------------------------------------

    def observe(self, env_ids: Tensor | None = None) -> Obs:
        """The numbers float32 [N, 16], or {"stats": numbers, "volume": [N, C + K + 2, ...]}; of `env_ids` only."""
        if self._stats is None:
            self._stats = stats(self)
        env_ids = self._all if env_ids is None else env_ids
        numbers = self._stats[env_ids]
        return numbers if self.config.obs_mode == "stats" else {"stats": numbers, "volume": volumes(self, env_ids)}

    def _info(self) -> dict[str, Tensor]:
        """Facts of the last pass; see the class."""
        told = {name: value for name, value in self.now.items() if name != "margin"}
        passes = self.replays.passes
        found = {
            **told,
            "dice_per_class": told["dice_per_class"].clone(),  # a stop has no pass, and infos must not share arrays
            "loss0": self.begun_at["loss"],
            "delta_linf_rel": radii(self.replays).flatten(1).amax(dim=1),
            "n_fwd": passes,
            "n_bwd": passes,
            "index": self.index,
        }
        return {**found, "delta": self.replays.delta} if self.config.return_delta else found

    def _episode_info(self, env_ids: Tensor) -> Callable[[], list[dict[str, Any]]]:
        """Name of each volume, and what the attack has changed."""
        index, broken = self.index[env_ids], self.broken.any()
        gain = self.now["loss"][env_ids] - self.begun_at["loss"][env_ids]
        lost = self.begun_at["dice_hard"][env_ids] - self.now["dice_hard"][env_ids]

        def made() -> list[dict[str, Any]]:
            if bool(broken):
                self._check_finite()
            rows = zip(index.tolist(), gain.tolist(), lost.tolist(), strict=True)
            return [{"sample_id": self.pool.ids[n], "loss_gain": risen, "dice_lost": fell} for n, risen, fell in rows]

        return made

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs; images are cut anew."""
        own = {name: getattr(self, name) for name in (*TENSORS, "now", "begun_at")}
        passes = self.replays.state() if self.running else {}
        return {**super().state(), **own, "passes": passes, "victim": self.learner.state(), "k": self.iterations}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        super().load_state(state)
        for name in TENSORS:
            setattr(self, name, state[name].to(self.device, copy=True))
        for name in ("now", "begun_at"):
            setattr(self, name, {key: value.to(self.device, copy=True) for key, value in state[name].items()})
        self.learner.load_state(state["victim"])
        self.iterations = state["k"]
        if self.running:
            self.replays.resume(*self.patches.at(self.index, self.numbers), state["passes"])
        self._stats = None

    # -- pictures --------------------------------------------------------------------------------------------------

    def _render_frame(self, env_id: int) -> Frame:
        """Middle slice, perturbation, gradient and prediction, side by side."""
        return seat_attack_pictures.picture(self, env_id)

    def legend(self) -> Legend:
        """As `BatchedEnv.legend`."""
        return seat_attack_pictures.legend(self)

    def caption(self, env_id: int) -> str:
        """The volume, and how the attack stands."""
        now = {name: float(self.now[name][env_id]) for name in ("loss", "dice_hard")}
        name = self.pool.ids[int(self.index[env_id])]
        return f"{name}: loss {now['loss']:.3f}, Dice {now['dice_hard']:.3f}, epsilon {self.eps}"

    def action_text(self, action: Tensor) -> str:
        """Stop, or the step size."""
        return action_text(self.config.action_mode, action)
