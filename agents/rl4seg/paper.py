"""RL4Seg as a row of the table of papers."""

from ...evaluation.curve_figures import Curve
from ..experiment import Paper
from . import baselines, evaluation, prediction, training
from .config import RL4SegExperiment

PAPER: Paper[RL4SegExperiment] = Paper(
    experiment=RL4SegExperiment,
    check=training.check,
    train=training.train,
    learner=training.learner,
    evaluate=evaluation.evaluate,
    render=evaluation.render,
    predictor=prediction.EchoPredictor.of,
    columns=evaluation.COLUMNS,
    settings=evaluation.SPENT,
    more_columns=evaluation.UNCERTAINTY_COLUMNS,
    differences=evaluation.differences,
    baseline=baselines.SOURCE_ONLY,
    baselines=baselines.BASELINES,
    hparams=(
        *("seed", "iterations", "reward", "network.init_channels", "network.norm_mode", "warm_start.kind"),
        *("ppo.epochs", "ppo.batch.c0", "ppo.ent_coef.c0", "ppo.kl_coef.c0", "ppo.learner.actor_lr"),
        "reward_data.sim_threshold",
    ),
    curves=(
        Curve("rollout/ep_rew_mean", "reward of an image", "mean R"),
        Curve("eval/val_reward_argmax", "reward, validation images", "mean R"),
        Curve("eval/anat_valid", "valid masks, validation images", "share"),
        Curve("eval/dice_epi", "Dice EPI, validation images"),
    ),
    lines=evaluation.lines,
    frame_ms=1000,
    threads=0,
)
