"""PPO with an action, a reward and a ratio for every pixel, on top of SB3 (paper: RL4Seg, sections 4 and 11.5).

Symbols: a = action map [B, H, W]; r = reward map; l, l_old, l_ref = log-probability of a under the policy, under the
one that drew a, and under the reference; β, c_H = weights of KL penalty and entropy; V = value map;
ρ = r - β (l - l_ref); A = ρ - V; q = exp(l - l_old). B = images, T = steps of a rollout, N = slots of the environment,
K = inner steps.

What an environment may say in `info`, beside its scalar reward: `pixel_reward` float32 [H, W], and of gold images,
those whose action is known, `gold` bool and `gold_action` uint8 [H, W]. A rollout never leaves the device.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from ...common.checks import AT_LEAST_0, AT_LEAST_1, SHARE, check
from ...envs.adapters import LearnerEnv
from ...envs.core import Advance
from .buffer import DenseRolloutBuffer, Samples, said, stretched
from .policy import Critic, DensePolicy, Exploration, Head, PixelCategorical, explore

Objective = Literal["ppo", "pg"]
ValueTarget = Literal["raw", "penalised"]


@dataclass(frozen=True)
class DensePPOConfig:
    """PPO per pixel (paper: RL4Seg, sections 4 and 5.1)."""

    total_timesteps: int = 50_000
    """Images shown, summed over the slots, if every episode is one step; 0 trains no agent."""
    num_envs: int = 32
    """Images at once; the rollout of a one-step environment."""
    n_steps: int = 1
    """Steps of each slot per rollout."""
    batch_size: int | None = None
    """Images per inner step; None: the whole rollout (paper)."""
    n_epochs: int = 5
    """K, passes over a rollout; 1 for objective pg."""
    actor_lr: float = 5e-4
    """Learning rate of the actor's Adam."""
    critic_lr: float = 5e-4
    """Learning rate of the critic's Adam."""
    gamma: float = 1.0
    """Discount; without meaning where an episode is one step."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation, likewise."""
    clip_range: float = 0.2
    """ε of the clipped ratio of each pixel."""
    ent_coef: float = 0.15
    """c_H, of the mean entropy per pixel in nats (paper: 0.15 in the first iteration)."""
    kl_coef: float = 0.05
    """β, of the divergence from the reference policy, per pixel (paper: 0.05 in the first iteration)."""
    max_grad_norm: float = 0.5
    """The actor's gradient is clipped to this norm; the critic's is not clipped."""
    objective: Objective = "ppo"
    """ppo: clipped surrogate; pg: -mean(l · standardised ρ), the policy-gradient baseline, without critic."""
    critic: Critic = "unet"
    """unet: a value per pixel; scalar: one per image, for the mean reward; none: for pg, or with group_size."""
    head: Head = "categorical"
    """categorical: a logit per class; bernoulli: a single logit, for two classes."""
    value_target: ValueTarget = "raw"
    """What the critic learns. raw: r of the action that was sampled (paper); penalised: ρ."""
    group_size: int = 1
    """G > 1: that many consecutive slots show the same image, and the mean of their r takes the place of V (GRPO)."""
    exploration: Exploration = "iid"
    """iid: a sample of each pixel (paper); argmax: the mode; correlated: a sample under a smooth random field."""
    exploration_scale: float = 1.0
    """τ, strength of the noise of correlated exploration."""
    exploration_sigma_px: float = 4.0
    """Smoothness of the field of correlated exploration: σ of its Gaussian kernel, in pixels."""
    eps_greedy: float = 0.0
    """Share of pixels that take the mode instead of the sample (paper: 0)."""
    stretch_reward: bool = False
    """Stretch each reward map to [0, 1] over its pixels (of the paper's successor)."""
    target_kl: float | None = None
    """Stop the inner steps once the mean KL per pixel from the rollout's policy exceeds 1.5 times this; None: never."""

    def __post_init__(self) -> None:
        check(self, "", total_timesteps=AT_LEAST_0, num_envs=AT_LEAST_1, n_steps=AT_LEAST_1, n_epochs=AT_LEAST_1)
        check(self, "", actor_lr=SHARE, critic_lr=SHARE, gamma=SHARE, gae_lambda=SHARE, clip_range=SHARE)
        check(self, "", ent_coef=AT_LEAST_0, kl_coef=AT_LEAST_0, max_grad_norm=AT_LEAST_0, group_size=AT_LEAST_1)
        check(self, "", exploration_scale=(1e-6, math.inf), exploration_sigma_px=(0.1, 1e3), eps_greedy=SHARE)
        check(self, "", target_kl=AT_LEAST_0, batch_size=AT_LEAST_1)
        rollout = self.num_envs * self.n_steps
        if self.batch_size is not None and rollout % self.batch_size:
            raise ValueError(f"batch_size is {self.batch_size} but must divide num_envs x n_steps = {rollout} images")
        if self.num_envs % self.group_size:
            raise ValueError(f"num_envs is {self.num_envs} but must be a multiple of group_size, {self.group_size}")
        needs_none = self.objective == "pg" or self.group_size > 1
        if needs_none != (self.critic == "none"):
            raise ValueError(
                f"critic is {self.critic!r} with objective {self.objective!r} and group_size {self.group_size}, "
                f"but 'none' belongs to objective 'pg' or a group_size above 1, and only to them"
            )
        if self.objective == "pg" and self.n_epochs != 1:
            raise ValueError(f"n_epochs is {self.n_epochs} but must be 1 for objective 'pg', which has no ratio")


# -- the loss, pixel by pixel: section 4 ----------------------------------------------------------------------------


def penalised_reward(
    reward: Tensor, log_prob: Tensor, ref_log_prob: Tensor, gold: Tensor, kl_coef: float
) -> Tensor:  # all maps [B, H, W]
    """ρ = r - β (l - l_ref), without gradient; 1 in every pixel of the gold images. Maps [B, H, W]; gold: bool [B]."""
    rho = reward - kl_coef * (log_prob - ref_log_prob).detach()
    return rho.masked_fill(gold[:, None, None], 1.0)


def surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """min(A q, A clip(q, 1 - ε, 1 + ε)) of every pixel, to be maximised; A carries no gradient. Maps [B, H, W]."""
    ratio = (log_prob - old_log_prob).exp()  # q, one per pixel, never multiplied over the image
    return torch.min(advantage * ratio, advantage * ratio.clamp(1 - clip_range, 1 + clip_range))


def policy_gradient(log_prob: Tensor, rho: Tensor) -> Tensor:
    """l · (ρ - mean ρ) / std ρ of every pixel, mean and deviation over all pixels of the batch."""
    return log_prob * (rho - rho.mean()) / (rho.std() + 1e-8)


# -- the learner -------------------------------------------------------------------------------------------------------


class DensePPO(PPO):
    """SB3's PPO over a `LearnerEnv` whose actions, rewards, ratios and values are maps.

    Differs from SB3: ratio, clip, advantage and entropy of every pixel; a KL penalty in the reward; the advantage is
    taken anew in each inner step, with today's V and policy; only the actor's gradient is clipped; rollouts are played
    in the same mode as updates; one step of a slot is one image, so that `num_timesteps` counts images.

    Args:
        policy: `DensePolicy` or a subclass.
        env: a `LearnerEnv`; None only for a model that is loaded to predict.
        config: all hyper-parameters.
        policy_kwargs: init_channels, norm_mode, reference and value_output of the policy.
        seed: of SB3: of the global generators and the environment.
        device: "auto", "cpu", "cuda" or "cuda:N"; that of the environment.
        verbose: of SB3.

    Raises:
        ValueError: an environment or settings that do not fit together.
    """

    policy: DensePolicy
    rollout_buffer: DenseRolloutBuffer  # type: ignore[assignment] # made and used alike, but holds tensors

    def __init__(
        self,
        policy: type[DensePolicy],
        env: LearnerEnv | None,
        config: DensePPOConfig | None = None,
        *,
        policy_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
        device: str | torch.device = "auto",
        verbose: int = 0,
        _init_setup_model: bool = True,
    ) -> None:
        self.config = cfg = config or DensePPOConfig()
        if env is not None and not isinstance(env, LearnerEnv):
            raise ValueError(f"env is {env!r} but must be a LearnerEnv: LearnerEnv(env), env being a BatchedEnv")
        super().__init__(
            policy,
            env,  # type: ignore[arg-type] # SB3 says Gym environments only, and takes its own vectors of them
            learning_rate=cfg.actor_lr,
            n_steps=cfg.n_steps,
            batch_size=1,  # set below, where the number of slots is known
            n_epochs=cfg.n_epochs,
            gamma=cfg.gamma,
            gae_lambda=cfg.gae_lambda,
            clip_range=cfg.clip_range,
            normalize_advantage=False,
            ent_coef=cfg.ent_coef,
            vf_coef=1.0,
            max_grad_norm=cfg.max_grad_norm,
            rollout_buffer_class=DenseRolloutBuffer,  # type: ignore[arg-type]
            target_kl=cfg.target_kl,
            policy_kwargs={"critic": cfg.critic, "head": cfg.head, **(policy_kwargs or {})},
            seed=seed,
            device=device,
            verbose=verbose,
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        cfg, rollout = self.config, self.n_steps * self.n_envs
        self.batch_size = cfg.batch_size or rollout
        if self.policy.norm_mode == "batch" and (self.batch_size, self.n_steps) != (rollout, 1):
            raise ValueError(
                f"norm_mode is 'batch', so that an inner step must see the very batch of the rollout, but batch_size "
                f"is {self.batch_size} and n_steps {self.n_steps}; use batch_size=None and n_steps=1, or another mode"
            )
        if self.n_envs % cfg.group_size or rollout % self.batch_size:
            raise ValueError(
                f"the environment has {self.n_envs} slots, but group_size {cfg.group_size} must divide them and "
                f"batch_size {self.batch_size} a rollout of {rollout}"
            )
        if cfg.kl_coef and self.policy.reference is None:
            raise ValueError(
                f"kl_coef is {cfg.kl_coef} but the policy has no reference; use reference=True or kl_coef=0"
            )
        for group in self.policy.optimizer.param_groups:
            group["lr"] = {"actor": cfg.actor_lr, "critic": cfg.critic_lr}[group["name"]]

    # -- rollout ---------------------------------------------------------------------------------------------------

    def collect_rollouts(  # type: ignore[override] # the buffer is another
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: DenseRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Play T steps in every slot; False where a callback stopped it."""
        assert isinstance(env, LearnerEnv)
        policy, batched, buffer = self.policy, env.batched, rollout_buffer
        reuse = n_rollout_steps == 1 and self.batch_size == env.num_envs  # the first inner step sees the same batch
        buffer.reset()
        pixels, episodes = [], [torch.zeros(0, 2, dtype=torch.float64, device=batched.device)]
        callback.on_rollout_start()
        policy.set_training_mode(True)  # callbacks may have looked at the policy in evaluation mode
        for _ in range(n_rollout_steps):
            obs = batched.observe()
            assert isinstance(obs, Tensor)
            with torch.set_grad_enabled(reuse):
                logits, values = policy.logits(obs), policy.predict_values(obs)
            buffer.forward_pass = (logits, values) if reuse else None
            with torch.no_grad():
                old = PixelCategorical(logits.detach())
                actions = self._explore(old)
                lengths = batched.t + 1
                step = batched.advance(actions.flatten(1))
                self.num_timesteps += env.num_envs
                callback.update_locals(locals())
                if not callback.on_step():
                    return False
                policy.set_training_mode(True)
                reward = said(batched, step, "pixel_reward")
                reward = step.reward[:, None, None].expand_as(values) if reward is None else reward.float()
                pixels.append(reward)
                gold, gold_action = said(batched, step, "gold"), said(batched, step, "gold_action")
                if gold is None or gold_action is None:
                    gold = torch.zeros_like(step.terminated)
                else:  # after the reward was computed: r is that of the action that was played
                    actions = torch.where(gold[:, None, None], gold_action, actions)
                log_probs = old.log_prob(actions)
                anchor = old if policy.reference is None else PixelCategorical(policy.logits(obs, policy.reference))
                returns = env.count(step)
                if step.ended is not None:
                    rows = step.ended.rows
                    episodes.append(torch.stack((returns[rows], lengths[rows].double()), dim=1))
                buffer.add(
                    observations=obs,
                    actions=actions,
                    log_probs=log_probs,
                    ref_log_probs=anchor.log_prob(actions),
                    divergence=old.kl(anchor).mean(dim=(1, 2)),
                    rewards=self._beyond(step, stretched(reward) if self.config.stretch_reward else reward),
                    values=values.detach(),
                    gold=gold,
                    dones=step.terminated | step.truncated,
                )
        with torch.no_grad():
            all_ended = step.ended is not None and len(step.ended.rows) == env.num_envs
            assert isinstance(step.obs, Tensor)
            last_values = torch.zeros_like(values) if all_ended else policy.predict_values(step.obs)
            buffer.compute_returns(last_values, self.config.group_size)
            self._record_rollout(torch.stack(pixels).flatten(), torch.cat(episodes))
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _explore(self, distribution: PixelCategorical) -> Tensor:
        cfg = self.config
        scale, sigma_px = cfg.exploration_scale, cfg.exploration_sigma_px
        return explore(distribution, cfg.exploration, scale=scale, sigma_px=sigma_px, eps_greedy=cfg.eps_greedy)

    def _beyond(self, step: Advance, reward: Tensor) -> Tensor:
        """r [N, H, W], plus γ V of what is last observed of an episode that was cut off rather than over."""
        if step.ended is None or self.policy.critic is None or not bool(step.truncated.any()):
            return reward
        assert isinstance(step.ended.obs, Tensor)
        rows = step.ended.rows
        following = self.policy.predict_values(step.ended.obs) * step.truncated[rows][:, None, None]
        return reward.index_add(0, rows, self.config.gamma * following)

    def _record_rollout(self, pixels: Tensor, episodes: Tensor) -> None:
        """Log all pixels' r, and the episodes' returns and lengths [E, 2]; waits for the device."""
        assert self.ep_info_buffer is not None
        tenth = pixels.kthvalue(max(1, len(pixels) // 10)).values
        (p10, _), *ends = torch.cat((tenth.double().expand(1, 2), episodes)).tolist()
        self.logger.record("rollout/pixel_reward_p10", p10)
        self.ep_info_buffer.extend({"r": total, "l": int(length)} for total, length in ends)

    # -- update ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """K passes over the rollout."""
        cfg, policy, buffer = self.config, self.policy, self.rollout_buffer
        policy.set_training_mode(True)
        optimizer = policy.optimizer
        steps: list[dict[str, Tensor]] = []
        go_on = True
        for _ in range(cfg.n_epochs):
            for batch in buffer.get(self.batch_size):
                forward_pass, buffer.forward_pass = buffer.forward_pass, None
                loss, scalars = self._loss(batch, forward_pass)
                steps.append(scalars)
                # this is the only wait for the device in an inner step, and only where it is asked for
                if cfg.target_kl is not None and float(scalars["approx_kl"]) > 1.5 * cfg.target_kl:
                    go_on = False
                    break
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                scalars["grad_norm_actor"] = nn.utils.clip_grad_norm_(policy.actor.parameters(), cfg.max_grad_norm)
                optimizer.step()
            self._n_updates += 1
            if not go_on:
                break
        means = {name: torch.stack([scalars[name] for scalars in steps if name in scalars]).mean() for name in steps[0]}
        means |= {"kl_ref": buffer.divergence.mean(), "gold_fraction": buffer.gold.float().mean()}
        if policy.critic is not None:
            left = (buffer.returns - buffer.values).var(correction=0)
            spread = buffer.returns.var(correction=0)
            means["explained_variance"] = torch.where(spread > 0, 1 - left / spread, 0.0)  # 0: nothing to explain
        for name, value in zip(means, torch.stack(list(means.values())).tolist(), strict=True):
            self.logger.record(f"train/{name}", value)

    def _loss(self, batch: Samples, forward_pass: tuple[Tensor, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """What one inner step descends, and what is logged of it."""
        cfg, policy = self.config, self.policy
        logits, values = forward_pass or (policy.logits(batch.observations), policy.predict_values(batch.observations))
        distribution = PixelCategorical(logits)
        log_prob = distribution.log_prob(batch.actions)  # [B, H, W]
        with torch.set_grad_enabled(cfg.ent_coef > 0):
            entropy = distribution.entropy().mean()
        rho = penalised_reward(batch.returns, log_prob, batch.ref_log_prob, batch.gold, cfg.kl_coef)
        advantage = rho - (batch.old_values if policy.critic is None else values.detach())
        if cfg.objective == "pg":
            policy_loss = -policy_gradient(log_prob, rho).mean()
        else:
            policy_loss = -surrogate(log_prob, batch.old_log_prob, advantage, cfg.clip_range).mean()
        loss = policy_loss - cfg.ent_coef * entropy
        with torch.no_grad():
            log_ratio = log_prob - batch.old_log_prob
            ratio = log_ratio.exp()
            scalars = {
                "policy_loss": policy_loss.detach(),
                "entropy": entropy.detach(),
                "approx_kl": (ratio - 1 - log_ratio).mean(),
                "clip_fraction": ((ratio - 1).abs() > cfg.clip_range).float().mean(),
                "ratio_mean": ratio.mean(),
                "adv_mean": advantage.mean(),
            }
        if policy.critic is not None:
            target = batch.returns if cfg.value_target == "raw" else rho
            if policy.critic_kind == "scalar":
                target = target.mean(dim=(1, 2), keepdim=True).expand_as(target)
            value_loss = F.mse_loss(values, target)
            loss = loss + value_loss
            scalars["value_loss"] = value_loss.detach()
        return loss, scalars
