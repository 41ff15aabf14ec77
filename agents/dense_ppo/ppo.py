"""PPO with an action, a reward and a ratio for every pixel, on top of SB3.

Eq. n.m are those of docs/rl4seg.md, Method n. Symbols: a = action map [B, H, W]; r = reward map; l, l_old, l_ref =
log-probability of a under the policy, under the one that drew a, and under the reference network; β, c_H = weights of
KL penalty and entropy; V = value map; ρ = penalised reward; A = advantage; q = ratio. B = images, T = steps of a
rollout, N = environments, K = passes over a rollout; an inner step is the gradient step on one batch of a pass.

The actions are one for each pixel of the observed image, or for each place of a coarser grid H x W, which the
environment names as its `action_shape`. Its `info` may have `pixel_reward` float32 [N, H, W], a reward for each action
(else the scalar reward is that of every action); and for imitation `gold` bool [N], images whose action is given, with
`gold_action` uint8 [N, H, W]. A rollout never leaves the device.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from ...common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, SHARE, check
from ...envs.adapters import BatchEnv, SingleEnv
from ...envs.core import Advance, BatchedEnv
from ...envs.learner_env import LearnerEnv
from ..ppo import Learner
from .buffer import DenseRolloutBuffer, Samples, dones_of_step, info_of_step
from .distribution import Exploration, PixelCategorical, explore
from .loss import Ratio, diagnostics, penalised_reward, policy_gradient, rescale_per_image, surrogate
from .policy import Critic, DensePolicy, Head, ValueOutput

Objective = Literal["ppo", "pg"]
ValueTarget = Literal["raw", "penalised"]


@dataclass(frozen=True)
class DensePPOConfig:
    """Hyper-parameters of PPO per pixel (docs/rl4seg.md, Method 4-5).

    No schedules, no advantage normalisation, no vf_coef (actor and critic have separate parameters).
    """

    total_timesteps: int = 50_000
    """Environment steps, summed over the environments (with one-step episodes: images shown); 0 trains no agent."""
    num_envs: int = 32
    """Images at once; the rollout of a one-step environment."""
    n_steps: int = 1
    """Steps of each environment per rollout."""
    batch_size: int | None = None
    """Images per inner step; null: the whole rollout (paper)."""
    n_epochs: int = 5
    """K, passes over a rollout; 1 for objective pg."""
    actor_lr: float = 5e-4
    """Adam learning rate of the actor."""
    critic_lr: float = 5e-4
    """Adam learning rate of the critic."""
    gamma: float = 1.0
    """Discount factor per step; without effect where an episode is one step."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation, 0 to 1; without effect where an episode is one step. Ignored without a
    critic (Monte Carlo returns)."""
    clip_range: float = 0.2
    """ε: the ratio of each pixel is clipped to 1 - ε .. 1 + ε."""
    ent_coef: float = 0.15
    """c_H: weight of the mean entropy per pixel in nats (paper: 0.15 in the first iteration)."""
    kl_coef: float = 0.05
    """β: weight of the penalty for leaving the reference network, per pixel (paper: 0.05 in the first iteration); 0: no
    reference network is kept. In longer episodes it is taken from the return of its own step; earlier steps do not see
    it."""
    imitate: bool = False
    """Imitate the actions that the environment gives for some images (info `gold`, `gold_action`): they take the place
    of the sampled ones, with reward 1 in every pixel."""
    max_grad_norm: float = 0.5
    """Largest 2-norm of the actor's gradient, which is scaled down to it; the critic's is not clipped."""
    objective: Objective = "ppo"
    """ppo: clipped surrogate; pg: -mean(l · standardised ρ), the policy-gradient baseline, without critic."""
    critic: Critic = "unet"
    """unet: a value per pixel; scalar: one per image, for the mean reward; none: for pg, or with group_size."""
    head: Head = "categorical"
    """categorical: a logit per class; bernoulli: a single logit, for two classes."""
    value_output: ValueOutput = "sigmoid"
    """Range of V. sigmoid: 0 to 1, for rewards in that range; linear: any number."""
    value_target: ValueTarget = "raw"
    """What the critic learns. raw: r of the action that was sampled (paper); penalised: ρ."""
    group_size: int = 1
    """G > 1: that many consecutive environments show the same image, and the mean of their r takes the place of V
    (GRPO)."""
    exploration: Exploration = "iid"
    """iid: a sample of each pixel (paper); argmax: the mode; correlated: a sample under a smooth random field."""
    exploration_scale: float = 1.0
    """τ: factor of the noise of correlated exploration, in logits."""
    exploration_sigma_px: float = 4.0
    """Standard deviation in pixels of the Gaussian kernel that smooths the field of correlated exploration."""
    eps_greedy: float = 0.0
    """Share of pixels that take the mode instead of the sample, 0 to 1 (paper: 0)."""
    stretch_reward: bool = False
    """Stretch each reward map to [0, 1] over its pixels (of the paper's successor)."""
    target_kl: float | None = None
    """Stop the inner steps once the mean KL per pixel from the rollout's policy, in nats, exceeds 1.5 times this; null:
    never. With ratio sum it is the KL of the whole map."""
    ratio: Ratio = "factored"
    """Ratio that objective ppo clips. factored: of each pixel (paper); of the map: mean, the geometric mean over its
    pixels; sum, their product, as in SB3, for at most some hundred actions."""

    def __post_init__(self) -> None:
        check(self, "", total_timesteps=AT_LEAST_0, num_envs=AT_LEAST_1, n_steps=AT_LEAST_1, n_epochs=AT_LEAST_1)
        check(self, "", actor_lr=SHARE, critic_lr=SHARE, gamma=SHARE, gae_lambda=SHARE, clip_range=SHARE)
        check(self, "", ent_coef=AT_LEAST_0, kl_coef=AT_LEAST_0, max_grad_norm=AT_LEAST_0, group_size=AT_LEAST_1)
        check(self, "", exploration_scale=(1e-6, math.inf), exploration_sigma_px=(0.1, 1e3), eps_greedy=SHARE)
        check(self, "", target_kl=POSITIVE, batch_size=AT_LEAST_1)
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


class DensePPO(Learner):
    """SB3's PPO over a `LearnerEnv` whose actions, rewards, ratios and values are maps.

    Differs from SB3: ratio, clip, advantage and entropy of every pixel; optionally a KL penalty in the reward and
    imitation of given actions; the advantage is taken anew in each inner step, with today's V and policy; only the
    actor's gradient is clipped; rollouts are played in the same mode as updates. `EchoEnv` has three lines that train.

    After each step callbacks find in their `locals` `dones`, a NumPy array bool [N] of the episodes that ended, and
    `step`, the `Advance` with tensors on the device, instead of SB3's `rewards` and `infos`.

    Args:
        policy: "DensePolicy", `DensePolicy` or a subclass.
        env: a `BatchedEnv` or one of its adapters; None only for a model that is loaded to predict.
        config: all hyper-parameters, see `DensePPOConfig`.
        policy_kwargs: what else the policy takes: init_channels, norm_mode.
        seed: seeds the global generators and the environment.
        device: "auto", "cpu", "cuda" or "cuda:N"; that of the environment.
        verbose: SB3's argument; 0 prints nothing.

    Raises:
        ValueError: an environment or settings that do not fit together.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"DensePolicy": DensePolicy}
    policy: DensePolicy
    rollout_buffer: DenseRolloutBuffer  # type: ignore[assignment] # made and used alike, but holds tensors

    def __init__(
        self,
        policy: str | type[DensePolicy],
        env: BatchedEnv | LearnerEnv | SingleEnv | BatchEnv | None,
        config: DensePPOConfig | None = None,
        *,
        policy_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
        device: str | torch.device = "auto",
        verbose: int = 0,
        _init_setup_model: bool = True,
    ) -> None:
        self.config = cfg = config or DensePPOConfig()
        env = env.batched if isinstance(env, SingleEnv | BatchEnv) else env
        env = LearnerEnv(env) if isinstance(env, BatchedEnv) else env
        if env is not None and not isinstance(env, LearnerEnv):
            raise ValueError(f"env is {env!r} but must be a BatchedEnv, such as EchoEnv(num_envs=8), or its LearnerEnv")
        grid = {"action_shape": env.batched.action_shape if env is not None else None}
        has_reference = cfg.kl_coef > 0
        super().__init__(
            policy,
            env,  # type: ignore[arg-type] # SB3 says Gym environments only, and takes its own vectors of them
            learning_rate=cfg.actor_lr,
            n_steps=cfg.n_steps,
            batch_size=1,  # set below, where the number of environments is known
            n_epochs=cfg.n_epochs,
            gamma=cfg.gamma,
            gae_lambda=1.0 if cfg.critic == "none" else cfg.gae_lambda,  # with V = 0 it would be a second discount
            clip_range=cfg.clip_range,
            normalize_advantage=False,
            ent_coef=cfg.ent_coef,
            vf_coef=1.0,
            max_grad_norm=cfg.max_grad_norm,
            rollout_buffer_class=DenseRolloutBuffer,  # type: ignore[arg-type]
            target_kl=cfg.target_kl,
            policy_kwargs={
                **(policy_kwargs or {}),
                **grid,
                "head": cfg.head,
                "critic": cfg.critic,
                "value_output": cfg.value_output,
                "reference": has_reference,
            },
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
                f"the environment plays {self.n_envs} episodes at once, but group_size {cfg.group_size} must divide "
                f"that number and batch_size {self.batch_size} a rollout of {rollout}"
            )
        for group in self.policy.optimizer.param_groups:
            group["lr"] = {"actor": cfg.actor_lr, "critic": cfg.critic_lr}[group["name"]]

    # -- rollout ---------------------------------------------------------------------------------------------------

    def collect_rollouts(  # type: ignore[override] # the buffer is another
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: DenseRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Play T steps in every environment; False where a callback stopped it."""
        assert isinstance(env, LearnerEnv)
        cfg, policy, batched, buffer = self.config, self.policy, env.batched, rollout_buffer
        reuse = n_rollout_steps == 1 and self.batch_size == env.num_envs  # the first inner step sees the same batch
        buffer.reset()
        pixels, episodes = [], [torch.zeros(0, 2, dtype=torch.float64, device=batched.device)]
        callback.on_rollout_start()
        policy.set_training_mode(True)  # callbacks may have looked at the policy in evaluation mode
        obs = batched.observe()  # [N, channels, height, width]
        for _ in range(n_rollout_steps):
            assert isinstance(obs, Tensor)
            with torch.set_grad_enabled(reuse):
                logits, values = policy.logits(obs), policy.predict_values(obs)  # [N, C, H, W], [N, H, W]
            buffer.forward_pass = (logits, values) if reuse else None
            with torch.no_grad():
                old = PixelCategorical(logits.detach())
                actions = self._explore(old)  # [N, H, W]

                step, ends = env.advance(actions.flatten(1))
                dones = dones_of_step(step)
                self.num_timesteps += env.num_envs
                callback.update_locals(locals())
                if not callback.on_step():
                    return False
                policy.set_training_mode(True)
                if ends:
                    episodes.append(torch.stack((ends["r"], ends["l"].double()), dim=1))

                reward = self._reward_map(step, values)  # of the actions that were played, not of those given below
                pixels.append(reward)
                actions, imitation_terms = self._imitated(step, actions)
                buffer.add(
                    observations=obs,
                    actions=actions,
                    old_log_prob=old.log_prob(actions),
                    rewards=self._bootstrapped(step, rescale_per_image(reward) if cfg.stretch_reward else reward),
                    old_values=values.detach(),
                    dones=step.terminated | step.truncated,
                    **imitation_terms,
                    **self._reference_terms(obs, actions, old),
                )
                obs = step.obs
        with torch.no_grad():
            assert isinstance(obs, Tensor)
            last_values = torch.zeros_like(values) if dones.all() else policy.predict_values(obs)
            buffer.compute_returns(last_values, cfg.group_size)
            self._record_rollout(torch.stack(pixels).flatten(), torch.cat(episodes))
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _reward_map(self, step: Advance, like: Tensor) -> Tensor:
        """r float32 [N, H, W] as `like`: the environment's `pixel_reward`, or its reward in every pixel."""
        reward = info_of_step(self._batched, step, "pixel_reward")
        if reward is None:
            return step.reward[:, None, None].expand_as(like)
        if reward.shape != like.shape:
            raise ValueError(
                f"info pixel_reward has shape {tuple(reward.shape)} but must have {tuple(like.shape)}: a number for "
                f"each action"
            )
        return reward.float()

    def _imitated(self, step: Advance, actions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions uint8 [N, H, W] with the given ones in place of those played; and `gold` bool [N] for the buffer."""
        if not self.config.imitate:
            return actions, {}
        gold, given = (info_of_step(self._batched, step, name) for name in ("gold", "gold_action"))
        if gold is None or given is None:
            raise ValueError("imitate is True but info has no gold and gold_action; let the environment tell them")
        return torch.where(gold[:, None, None], given, actions), {"gold": gold}

    def _reference_terms(self, obs: Tensor, actions: Tensor, old: PixelCategorical) -> dict[str, Tensor]:
        """l_ref [N, H, W] and the mean KL of each image [N], for the buffer; {} without a reference network."""
        if self.policy.reference is None:
            return {}
        reference = PixelCategorical(self.policy.logits(obs, self.policy.reference))
        return {"ref_log_prob": reference.log_prob(actions), "divergence": old.kl(reference).mean(dim=(1, 2))}

    @property
    def _batched(self) -> BatchedEnv:
        assert isinstance(self.env, LearnerEnv)
        return self.env.batched

    def _explore(self, distribution: PixelCategorical) -> Tensor:
        cfg = self.config
        scale, sigma_px = cfg.exploration_scale, cfg.exploration_sigma_px
        return explore(distribution, cfg.exploration, scale=scale, sigma_px=sigma_px, eps_greedy=cfg.eps_greedy)

    def _bootstrapped(self, step: Advance, reward: Tensor) -> Tensor:
        """Reward [N, H, W] plus γ V(last observation) where an episode was truncated (bootstrapping)."""
        if step.ended is None or self.policy.critic is None or self._batched.horizon == 1:
            return reward  # an episode of one step is never truncated: to ask would be to wait for the device
        if not bool(step.truncated.any()):
            return reward
        assert isinstance(step.ended.obs, Tensor)
        env_ids = step.ended.env_ids
        following = self.policy.predict_values(step.ended.obs) * step.truncated[env_ids][:, None, None]
        return reward.index_add(0, env_ids, self.config.gamma * following)

    def _record_rollout(self, pixels: Tensor, episodes: Tensor) -> None:
        """Log the lowest tenth of all pixels' r, and returns and lengths [E, 2] of the episodes that ended.

        Waits for the device, once.
        """
        assert self.ep_info_buffer is not None
        tenth = pixels.kthvalue(max(1, len(pixels) // 10)).values
        (p10, _), *ends = torch.cat((tenth.double().expand(1, 2), episodes)).tolist()
        self.logger.record("rollout/pixel_reward_p10", p10)
        self.ep_info_buffer.extend({"r": total, "l": int(length)} for total, length in ends)

    # -- update ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Update actor and critic by K epochs of clipped PPO on the rollout (docs/rl4seg.md, Eq. 4.1-4.5)."""
        cfg, policy, optimizer, buffer = self.config, self.policy, self.policy.optimizer, self.rollout_buffer
        policy.set_training_mode(True)
        steps: list[dict[str, Tensor]] = []
        go_on = True
        for _ in range(cfg.n_epochs):
            for batch in buffer.get(self.batch_size):
                forward_pass, buffer.forward_pass = buffer.forward_pass, None
                loss, scalars = self._loss(batch, forward_pass)
                steps.append(scalars)
                # the only wait for the device in an inner step, and only with a target
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
        if buffer.divergence is not None:
            means["kl_ref"] = buffer.divergence.mean()
        if buffer.gold is not None:
            means["gold_fraction"] = buffer.gold.float().mean()
        if policy.critic is not None:
            left = (buffer.returns - buffer.old_values).var(correction=0)
            spread = buffer.returns.var(correction=0)
            means["explained_variance"] = torch.where(spread > 0, 1 - left / spread, 0.0)  # 0: nothing to explain
        for name, value in zip(means, torch.stack(list(means.values())).tolist(), strict=True):
            self.logger.record(f"train/{name}", value)

    def _loss(self, batch: Samples, forward_pass: tuple[Tensor, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one inner step, and what is logged of it, detached."""
        cfg, policy = self.config, self.policy
        logits, values = forward_pass or (policy.logits(batch.observations), policy.predict_values(batch.observations))
        distribution = PixelCategorical(logits)
        log_prob = distribution.log_prob(batch.actions)  # [B, H, W]
        with torch.set_grad_enabled(cfg.ent_coef > 0):
            entropy = distribution.entropy().mean()
        # Eq. 4.1, [B, H, W]
        rho = penalised_reward(batch.returns, log_prob, batch.ref_log_prob, batch.gold, cfg.kl_coef)
        advantage = rho - (batch.old_values if policy.critic is None else values.detach())  # Eq. 4.2, [B, H, W]
        if cfg.objective == "pg":
            policy_loss = -policy_gradient(log_prob, rho).mean()  # mean over B, H, W
        else:
            # Eq. 4.3 and 4.4, mean over B, H, W
            policy_loss = -surrogate(log_prob, batch.old_log_prob, advantage, cfg.clip_range, cfg.ratio).mean()
        loss = policy_loss - cfg.ent_coef * entropy  # L_π, Eq. 4.4
        losses = {"policy_loss": policy_loss, "entropy": entropy}
        if policy.critic is not None:
            target = batch.returns if cfg.value_target == "raw" else rho  # [B, H, W]
            if policy.critic_kind == "scalar":
                target = target.mean(dim=(1, 2), keepdim=True).expand_as(target)
            losses["value_loss"] = F.mse_loss(values, target)  # L_V, Eq. 4.5, mean over B, H, W
            loss = loss + losses["value_loss"]
        scalars = {name: value.detach() for name, value in losses.items()}
        return loss, scalars | diagnostics(log_prob, batch.old_log_prob, advantage, cfg.clip_range, cfg.ratio)
