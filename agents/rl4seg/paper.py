"""RL4Seg as a row of the table of papers."""

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
    more_columns=evaluation.UNCERTAINTY_COLUMNS,
    baseline=baselines.SOURCE_ONLY,
    baselines=baselines.BASELINES,
    frame_ms=1000,
    threads=0,
)
