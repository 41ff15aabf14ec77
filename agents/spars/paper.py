"""SPARS as a row of the table of papers."""

from ...evaluation.curve_figures import Curve
from ..experiment import Paper
from . import baselines, evaluation, prediction, training
from .config import SparsExperiment

PAPER: Paper[SparsExperiment] = Paper(
    experiment=SparsExperiment,
    check=training.check,
    train=training.train,
    learner=training.learner,
    check_export=training.check_export,
    evaluate=evaluation.evaluate,
    render=evaluation.render,
    predictor=prediction.SparsPredictor.of,
    columns=evaluation.COLUMNS,
    baseline="score map (mean)",
    baselines=baselines.BASELINES,
    volumes=True,
    hparams=(
        *("seed", "policy", "env.reward", "env.threshold", "env.n_agents", "env.obs_mode", "env.horizon"),
        *("ppo.total_timesteps", "ppo.learning_rate", "ppo.ent_coef", "ppo.gamma", "self_play.refresh_every"),
    ),
    curves=(
        Curve("rollout/ep_rew_mean", "reward of an episode"),
        Curve("spars/dice_eval", "Dice, validation cases"),
        Curve("spars/terminal_hit", "episodes ended on tumour", "share"),
    ),
)
