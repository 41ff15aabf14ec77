"""Callbacks of SPARS: curves of the duel, and validation cases that are segmented while it trains."""

import torch
from stable_baselines3.common.callbacks import BaseCallback

from ...common.device import forked_rng
from ...common.runs import Run
from ...datasets.liver.lesions import TUMOUR
from ...envs.spars import SparsEnv
from ...envs.spars_search import SearchEnv
from ...evaluation.volume_pictures import orthogonal_slices
from ..callbacks import Best
from ..policy import ActorCritic, TrainedPolicy
from .pool import Snapshot
from .rollouts import choose_threshold, roll_out
from .self_play import SelfPlay

LOGGED = ("terminal_hit", "found")
"""Means over the validation cases that are logged beside Dice, where the game has them."""


class DuelMetrics(BaseCallback):
    """Curves of the duel, per rollout.

    spars/win_rate: share of steps with s1 > s2 or, in a search, d1 > d2. spars/score_self, spars/score_opp: mean s1,
    s2. spars/terminated_frac: share of episodes that τ ended. spars/terminal_score: mean s1 at their end.
    spars/opponent_age: environment steps since the opponents were refreshed. spars/distinct_windows: share of the
    rollout's window positions that differ. spars/cache_hit: share of scores that were looked up, not computed.
    spars/pool_size: snapshots in the pool of opponents.
    """

    def __init__(self, env: SparsEnv, self_play: SelfPlay | None) -> None:
        super().__init__()
        self.env, self.self_play = env, self_play

    def _on_rollout_start(self) -> None:
        self._scores: list[torch.Tensor] = []
        self._places: list[torch.Tensor] = []
        self._won: list[torch.Tensor] = []
        self._ends: list[tuple[bool, float]] = []

    def _on_step(self) -> bool:
        at, scores = self.env.painting.last_step()
        self._scores.append(scores)
        self._places.append(at[0])
        duel = self.env.gains if isinstance(self.env, SearchEnv) else scores
        self._won.append(duel[0] > duel[-1])
        for row in self.locals["dones"].nonzero()[0]:
            info = self.locals["infos"][row]
            self._ends.append((info["reason"] != "time", float(info["score_self"])))
        return True

    def _on_rollout_end(self) -> None:
        scores, places = torch.stack(self._scores, dim=1), torch.cat(self._places)  # [P, steps, N]
        self.logger.record("spars/score_self", float(scores[0].mean()))
        self.logger.record("spars/distinct_windows", len(set(places.tolist())) / len(places))
        self.logger.record("spars/cache_hit", self.env.table.cache_hit)
        if len(scores) == 2:
            self.logger.record("spars/score_opp", float(scores[1].mean()))
            self.logger.record("spars/win_rate", float(torch.stack(self._won).float().mean()))
        if self._ends:
            self.logger.record("spars/terminated_frac", sum(by_score for by_score, _ in self._ends) / len(self._ends))
            self.logger.record("spars/terminal_score", sum(score for _, score in self._ends) / len(self._ends))
        if self.self_play:
            pool = self.self_play.pool
            self.logger.record("spars/opponent_age", self.num_timesteps - float(pool.births.double().mean()))
            self.logger.record("spars/pool_size", len(pool.snapshots))


class ValidationCallback(BaseCallback):
    """Segmentation of the validation cases, periodic and at the end: spars/dice_eval (at the best θ),
    spars/terminal_hit, a picture.

    The weights with the highest mean Dice go to `best`. It draws from generators of its own, so that it changes nothing
    in the training.
    """

    def __init__(
        self,
        env: SparsEnv,
        run: Run,
        every: int,
        self_play: SelfPlay | None,
        best: Best,
        *,
        deterministic: bool,
        jitter_cells: int,
        seen: int = 0,
    ) -> None:
        super().__init__()
        self.seen = seen
        """Step of the last validation; a resumed run does not repeat it."""
        self.env, self.run, self.every, self.self_play = env, run, every, self_play
        self.best, self.deterministic, self.jitter_cells = best, deterministic, jitter_cells
        self.learner: Snapshot | None = None

    def _on_rollout_start(self) -> None:
        step = self.model.num_timesteps
        before = step - self.model.n_steps * self.model.n_envs  # type: ignore[attr-defined]
        if step // self.every > before // self.every:
            self.look()

    def _on_training_end(self) -> None:
        self.look()

    def look(self) -> None:
        """Segment the validation cases with the policy as it is now, unless that was done."""
        step = self.model.num_timesteps
        if step > self.seen:
            self.seen = step
            with forked_rng(self.env.device):
                self._validate(step)

    def _validate(self, step: int) -> None:
        assert isinstance(self.model.policy, ActorCritic)
        self.learner = self.learner or Snapshot(self.model.policy)
        self.learner.refresh(self.model.policy)
        if self.self_play:
            self.self_play.join(self.env)
            self.self_play.examine(self.run, step)
        learner = self.learner
        torch.manual_seed(0)  # not before: to build the snapshot, the first time, draws numbers too
        policy = TrainedPolicy(learner.policy, self.deterministic)
        maps = roll_out(self.env, policy, jitter_cells=self.jitter_cells, seed=0)
        known = {name: [facts[name] for facts in maps.facts] for name in LOGGED if name in maps.facts[0]}
        theta = choose_threshold(maps)
        dice = float(maps.mean_dice([theta]))
        self.best.consider(dice, step, self.model.policy)
        means = {f"spars/{name}": sum(values) / len(values) for name, values in known.items()}
        self.run.log(step, {"spars/dice_eval": dice, **means})
        case, heat = self.env.cases[0], maps.values(0)
        truth = torch.zeros_like(case.image) if case.label is None else case.label
        tumour = truth == TUMOUR
        centre = (tumour.nonzero().float().mean(dim=0) if tumour.any() else torch.tensor(case.image.shape) / 2).int()
        picture = orthogonal_slices(
            case.image.numpy(),
            centre_ijk=centre.tolist(),
            heat=(heat / heat.max().clamp(min=1.0)).numpy(),
            contours=[(tumour.numpy(), (80, 255, 80)), (maps.inside(0, theta).numpy(), (255, 210, 60))],
            spacing_mm=case.spacing_mm,
        )
        self.run.log_image(f"spars/{case.id}", picture, step)

    def _on_step(self) -> bool:
        return True
