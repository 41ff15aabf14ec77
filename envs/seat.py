"""SEAT: an adversarial training as an episode, whose steps choose how long each minibatch is attacked
(docs/seat.md, Method 19).

Symbols: e = segments done, N = segments of an episode; K = iterations of a minibatch; M = magnitude of the gradient in
a segment. The victims of all environments learn together: one pass of the networks serves them all.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..attacks.budget import Epsilon
from ..attacks.victims import load_victim
from ..datasets.decathlon.cases import load_decathlon
from ..datasets.decathlon.plan import Triple
from ..datasets.decathlon.sampling import DRAWS, PatchSampler, centre_corners, mass_corners
from ..datasets.volumes import Patches, VolumePool
from ..evaluation.drawing import Legend
from ..segmenters.volume_networks import SmallVolumeNet
from . import seat_pictures
from .core import BatchedEnv, Frame, notice_phantom
from .seat_config import ENLARGED, SEATConfig
from .seat_victims import Victims, live_of

NUMBERS = 14
"""Of an observation."""
CURVES = ("iter", "mag", "train_loss", "val_loss", "dice_clean", "dice_robust")
"""What is kept of each segment; of the start all but the last three are 0."""
ITERATIONS, MAGNITUDE, TRAIN_LOSS, VAL_LOSS, CLEAN, ROBUST = range(len(CURVES))
TENSORS = ("curves", "iterations", "reference", "threshold", "n_passes", "rate", "smoothed", "lowest", "waited")
"""Tensors that an episode consists of, beside the victims and those of the environment's core."""
FALL, BETTER = 0.5, 1e-4
"""Factor of a learning rate that falls, and share by which a loss must be lower to count."""
HIGHEST = 10.0
"""Largest number of an observation, either way."""


class SEATEnv(BatchedEnv):
    """Train a segmentation network under attack, and choose after each segment how long its images are attacked.

    ## Description
    Each environment trains a small network of its own, the victim, from new weights. A step is one segment of its
    training, some minibatches of patches. Each is attacked and learned from K times: every backward pass gives the
    gradient of the images, for the next step of the attack, and that of the weights, for the optimiser; the
    perturbation is carried on to the next minibatch. More iterations make a victim more robust, and cost more. SEAT's
    controller, constant K and their rivals are policies here.

    ## Action Space
    `Discrete(3)`: K - 1, K or K + 1 in the next segment, within 1 .. K_max; with `action_mode="absolute"`,
    `Discrete(K_max)`: K = 1 .. K_max. With `eps_enlarger` a second part, `MultiDiscrete([3, 3])`: epsilon times 1, 1.25
    or 1.5 while the victim learns.

    ## Observation Space
    `Box(-10, 10, (14,))`; what is larger is cut:

    | index | meaning |
    |---|---|
    | 0 | e / N |
    | 1 | K / K_max |
    | 2 | log10 of M; 0 before the first segment |
    | 3 | M / M_ref - 1, M_ref that after which K was last changed, or the first |
    | 4 | log10 of M over that of the segment before |
    | 5 | training loss |
    | 6, 7 | validation loss and Dice, of clean patches |
    | 8 | Dice of the probe under attack |
    | 9, 10, 11 | changes of 6, 7 and 8 in the last segment |
    | 12 | share of the passes that is spent |
    | 13 | learning rate, as a share of that at the start |

    ## Rewards
    `robust`: change of the mean Dice of a fixed probe of validation patches under PGD; `clean`: change of the mean Dice
    of clean validation patches; `price`: -K / K_max. Weighted by `robust_weight`, `clean_weight` and `price`.

    ## Starting State
    New weights, or those of `model`; a fresh optimiser, no perturbation, K = 1; the victim is judged once.

    `info` has of the last segment `mag`, M; `iter`, K; `train_loss`; of the victim as it is `val_loss`, `dice_clean`
    and `dice_robust`; `n_passes`, the passes of minibatches until now, in which those that judge are not counted;
    `threshold`, with which the controller that plays compares M, or 0. The end adds `mean_iter`, the mean K,
    `final_dice_clean`, `final_dice_robust` and `final_passes`.

    ## Episode End
    Terminated after N segments, or when `budget` passes are spent, which may be exceeded in the last segment.

    ## Arguments
    The fields of the configuration, by name.

    ## References
    Self-adaptive Adversarial Training for Robust Medical Segmentation (MICCAI 2023).

    ## Version History
    v0: first version.
    """

    config_class: ClassVar[type[Any]] = SEATConfig
    config: SEATConfig

    def __init__(self, config: SEATConfig | None = None, **settings: Any) -> None:
        super().__init__(config, **settings)
        cfg, num_envs, device = self.config, self.num_envs, self.device
        if cfg.phantom:
            notice_phantom("SEAT-MSD-v0", "give data=<folder> and task=<number> for volumes of the Decathlon")
        plan, eps = cfg.resolved_plan(), Epsilon.parse(cfg.eps)
        pool, judged = load_decathlon(cfg, cfg.split).to(device), load_decathlon(cfg, cfg.validation_split)
        self.sampler, self.origin, self.classes = PatchSampler(pool, plan, seed=0), pool.origin, pool.classes
        probed = judged.take(range(min(cfg.probe, len(judged))))
        self.validation = _patches(judged, centre_corners(judged, plan.val_size), plan.val_size, device)
        self.probe = _patches(probed, mass_corners(probed, plan.val_size), plan.val_size, device)
        self.eps = eps.value
        self.batches = cfg.segment or -(-len(pool) // cfg.batch_size)
        self.victims = Victims(
            self._network(pool),
            num_envs,
            (cfg.batch_size, len(pool.channels), *plan.in_size),
            device,
            weight_decay=cfg.weight_decay,
            drawn=cfg.model is None,
        )
        choices = 3 if cfg.action_mode == "relative" else cfg.most_iterations
        self.single_action_space = (
            spaces.MultiDiscrete([choices, len(ENLARGED)]) if cfg.eps_enlarger else spaces.Discrete(choices)
        )
        self.single_observation_space = spaces.Box(-HIGHEST, HIGHEST, (NUMBERS,), np.float32)
        self.reward_weights = {"robust": cfg.robust_weight, "clean": cfg.clean_weight, "price": cfg.price}
        zero, one = torch.zeros(num_envs, device=device), torch.ones(num_envs, dtype=torch.int64, device=device)
        self.iterations, self.n_passes, self.waited = one, 0 * one, 0 * one
        self.curves = torch.zeros(num_envs, cfg.horizon + 1, len(CURVES), device=device)
        self.reference = self.threshold = self.rate = self.smoothed = self.lowest = zero
        self.enlarged = torch.tensor(ENLARGED, device=device)

    def _network(self, pool: VolumePool) -> nn.Module:
        """A victim: that of the file `model`, whose classes must be those of the data, or a small one."""
        if self.config.model is None:
            return SmallVolumeNet(len(pool.channels), len(pool.classes), self.config.width)
        victim, names = load_victim(self.config.model)
        if names != pool.classes:
            raise ValueError(
                f"model is {self.config.model!r}, which tells {names} apart, but the volumes have {pool.classes}; give "
                "the file of a victim that was trained on such volumes"
            )
        return victim

    # -- the dynamics: docs/seat.md, Method 11, 12 and 19 --------------------------------------------------------------

    def _reset(self, env_ids: Tensor, options: Mapping[str, Any]) -> None:
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; there is none")
        self.victims.begin(env_ids, self.streams.uniform(self.victims.size, env_ids))
        first = torch.zeros(len(env_ids), self.config.horizon + 1, len(CURVES), device=self.device)
        first[:, 0, VAL_LOSS:] = self._judged(env_ids)
        self.curves = self.curves.index_copy(0, env_ids, first)
        for name, value in {"iterations": 1, "rate": self.config.learning_rate, "lowest": torch.inf}.items():
            setattr(self, name, getattr(self, name).index_fill(0, env_ids, value))
        for name in ("reference", "threshold", "n_passes", "smoothed", "waited"):
            setattr(self, name, getattr(self, name).index_fill(0, env_ids, 0))

    def _judged(self, env_ids: Tensor | None = None) -> Tensor:
        """Validation loss and Dice, and Dice of the probe under attack, float32 [K, 3], of the victims int64 [K]."""
        loss, clean = self.victims.judge(*self.validation, env_ids)
        reached = self.victims.attacked(*self.probe, self.eps, self.config.probe_steps, env_ids)
        return torch.stack((loss, clean, self.victims.judge(reached, self.probe.labels, env_ids)[1]), dim=1)

    def _step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        cfg, before, changed = self.config, self.now, self.iterations
        actions = actions.to(self.device).view(self.num_envs, -1)
        chosen = actions[:, 0] + (self.iterations - 1 if cfg.action_mode == "relative" else 1)
        self.iterations = chosen.clamp(1, cfg.most_iterations)
        factor = self.enlarged[actions[:, 1]] if cfg.eps_enlarger else torch.ones_like(self.rate)
        running = (
            self.t < self.horizon if cfg.budget is None else (self.t < self.horizon) & (self.n_passes < cfg.budget)
        )
        iterations = torch.where(running, self.iterations, 0)  # an episode that is over costs nothing
        losses, magnitudes = self._train(iterations, self.eps * factor)
        passes = (self.batches * iterations).clamp(min=1)
        self.n_passes = self.n_passes + self.batches * iterations
        judged = self._judged()
        row = torch.stack((self.iterations, magnitudes / passes, losses / passes), dim=1)
        row = torch.cat((row.float(), judged), dim=1)  # in the order of CURVES
        place = (self.t + 1).clamp(max=cfg.horizon)
        self.curves = self.curves.scatter(1, place.view(-1, 1, 1).expand(-1, 1, len(CURVES)), row[:, None])
        kept = torch.where(changed == self.iterations, self.reference, before[:, MAGNITUDE])
        self.reference = torch.where(self.t == 0, row[:, MAGNITUDE], kept)
        self._lower_rate(row[:, VAL_LOSS])
        change = row - before
        terms = {
            "robust": change[:, ROBUST],
            "clean": change[:, CLEAN],
            "price": -self.iterations / cfg.most_iterations,
        }
        ended = self.t + 1 >= self.horizon
        return terms, ended if cfg.budget is None else ended | (self.n_passes >= cfg.budget)

    def _train(self, iterations: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """One segment of every victim, of K int64 [N]; eps: [N]. Sums over its passes of loss and magnitude, [N]
        each."""
        cfg, live = self.config, live_of(iterations)  # the one wait for the device
        rounds = -(-self.batches * cfg.batch_size // len(self.sampler.pool))  # how often each volume may be needed
        volumes = len(self.sampler.pool)
        drawn = self.streams.uniform(rounds * volumes + self.batches * cfg.batch_size * DRAWS)
        order = drawn[:, : rounds * volumes].view(self.num_envs, rounds, volumes).argsort(dim=2, stable=True)
        rows = order.flatten(1)[:, : self.batches * cfg.batch_size].view(self.num_envs, self.batches, cfg.batch_size)
        numbers = drawn[:, rounds * volumes :].view(self.num_envs, self.batches, cfg.batch_size, DRAWS)
        losses = magnitudes = torch.zeros_like(self.rate)
        for number in range(self.batches):
            of_batch = rows[:, number].flatten()
            foreground = (of_batch + self.t.repeat_interleave(cfg.batch_size)) % 2 == 0
            images, labels = self.sampler.draw(of_batch, foreground, numbers[:, number].flatten(0, 1))
            wide = (self.num_envs, cfg.batch_size)
            loss, magnitude = self.victims.replay(
                images.view(*wide, *images.shape[1:]),
                labels.view(*wide, *labels.shape[1:]),
                eps,
                cfg.step_share,
                live,
                self.rate,
            )
            losses, magnitudes = losses + loss, magnitudes + magnitude
        return losses, magnitudes

    def _lower_rate(self, loss: Tensor) -> None:
        """Halve the learning rate where the smoothed validation loss [N] has not fallen for more than `patience`."""
        self.smoothed = torch.where(self.t == 0, loss, (self.smoothed + loss) / 2)
        better = self.smoothed < self.lowest * (1 - BETTER)
        self.lowest = torch.where(better, self.smoothed, self.lowest)
        waited = torch.where(better, 0, self.waited + 1)
        late = waited > self.config.patience
        self.rate, self.waited = torch.where(late, FALL * self.rate, self.rate), torch.where(late, 0, waited)

    # -- observation and info ------------------------------------------------------------------------------------------

    @property
    def now(self) -> Tensor:
        """What is known of the last segment, float32 [N, 6], in the order of `CURVES`."""
        return self.curves[self._all, self.t.clamp(max=self.horizon)]

    def observe(self, env_ids: Tensor | None = None) -> Tensor:
        """The numbers float32 [N, 14]; of `env_ids` int64 [K] only."""
        cfg, now = self.config, self.now
        last = self.curves[self._all, (self.t - 1).clamp(min=0, max=self.horizon)]
        mag, before, tiny = now[:, MAGNITUDE], last[:, MAGNITUDE], 1e-12
        begun, second = self.t > 0, self.t > 1
        change = now - last
        most = cfg.budget or cfg.horizon * self.batches * cfg.most_iterations
        columns = (
            self.t / cfg.horizon,
            self.iterations / cfg.most_iterations,
            torch.where(begun, (mag + tiny).log10(), 0.0),
            torch.where(begun, mag / (self.reference + tiny) - 1, 0.0),
            torch.where(second, (mag + tiny).log10() - (before + tiny).log10(), 0.0),
            *now[:, TRAIN_LOSS:].unbind(1),
            *change[:, VAL_LOSS:].unbind(1),
            self.n_passes / most,
            self.rate / cfg.learning_rate,
        )
        seen = torch.stack([column.float() for column in columns], dim=1).nan_to_num(HIGHEST).clamp(-HIGHEST, HIGHEST)
        return seen if env_ids is None else seen[env_ids]

    def _info(self) -> dict[str, Tensor]:
        """Facts of the last segment; see the class."""
        of_last = dict(zip(CURVES, self.now.unbind(1), strict=True))
        return {**of_last, "threshold": self.threshold, "n_passes": self.n_passes}

    def _episode_info(self, env_ids: Tensor) -> Callable[[], list[dict[str, Any]]]:
        """How good the victim has become, and what that cost."""
        now, passes = self.now[env_ids], self.n_passes[env_ids]
        mean = passes / (self.t[env_ids] * self.batches)
        dice = {"final_dice_clean": now[:, CLEAN], "final_dice_robust": now[:, ROBUST]}
        facts = {**dice, "final_passes": passes, "mean_iter": mean}

        def made() -> list[dict[str, Any]]:
            columns = [values.tolist() for values in facts.values()]
            return [dict(zip(facts, row, strict=True)) for row in zip(*columns, strict=True)]

        return made

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs."""
        own = {name: getattr(self, name) for name in TENSORS}
        return {**super().state(), **own, "victims": self.victims.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was read."""
        super().load_state(state)
        for name in TENSORS:
            setattr(self, name, state[name].to(self.device, copy=True))
        self.victims.load_state(state["victims"])

    # -- pictures ------------------------------------------------------------------------------------------------------

    def _render_frame(self, env_id: int) -> Frame:
        """Curves of the training so far, and a patch of the probe with what is said of it, clean and under attack."""
        return seat_pictures.picture(self, env_id)

    def legend(self) -> Legend:
        """As `BatchedEnv.legend`."""
        return seat_pictures.legend(self)

    def caption(self, env_id: int) -> str:
        """How good the victim is."""
        now = self.now[env_id].tolist()
        return f"K {int(self.iterations[env_id])}, Dice {now[CLEAN]:.3f}, under attack {now[ROBUST]:.3f}"

    def action_text(self, action: Tensor) -> str:
        """K, or how it changes, and the factor of epsilon."""
        choice, *factor = action.flatten().tolist()
        text = f"K {choice - 1:+d}" if self.config.action_mode == "relative" else f"K = {choice + 1}"
        return text + (f", epsilon times {ENLARGED[factor[0]]:g}" if factor else "")


def _patches(pool: VolumePool, corners: Tensor, size: Triple, device: torch.device) -> Patches:
    """A patch of each volume, on the device."""
    cut = pool.patches(torch.arange(len(pool)), corners, size)
    return Patches(*(one.to(device) for one in cut))
