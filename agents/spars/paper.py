"""SPARS as a row of the table of papers."""

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
)
