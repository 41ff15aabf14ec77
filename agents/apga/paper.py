"""APGA as a row of the table of papers."""

from ...evaluation.curve_figures import Curve
from ..experiment import Paper
from . import evaluation, prediction, training
from .config import APGAExperiment

PAPER: Paper[APGAExperiment] = Paper(
    experiment=APGAExperiment,
    check=training.check,
    train=training.train,
    learner=training.learner,
    check_export=training.check_export,
    evaluate=evaluation.evaluate,
    render=evaluation.render,
    predictor=prediction.XrayPredictor.of,
    columns=evaluation.COLUMNS,
    baseline="none",
    hparams=(
        *("seed", "data.body_part", "data.n_shot", "classifier.network", "training.method", "training.train_on"),
        *("training.learning_rate", "training.epochs", "agent.kind", "agent.grid", "reward.area_coef"),
        "update.learning_rate",
    ),
    curves=(
        Curve("classifier/val_acc", "accuracy, validation images"),
        Curve("classifier/val_auroc", "AUROC, validation images"),
        Curve("apga/reward", "reward of a mask"),
        Curve("apga/mask_area", "area of a mask", "share"),
    ),
    lines=training.lines,
    frame_ms=1000,
    threads=0,
)
