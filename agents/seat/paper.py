"""SEAT as a row of the table of papers."""

from ...evaluation.curve_figures import Curve
from ..experiment import Paper
from . import evaluation, training
from .config import SEATExperiment

PAPER: Paper[SEATExperiment] = Paper(
    experiment=SEATExperiment,
    check=training.check,
    train=training.train,
    learner=evaluation.learner,
    check_export=evaluation.check_export,
    evaluate=evaluation.evaluate,
    render=evaluation.render,
    victim=evaluation.trained_victim,
    columns=evaluation.COLUMNS,
    found_columns=evaluation.found_columns,
    baseline="clean",
    hparams=(
        *("seed", "data.task", "data.fold", "network.kind", "training.method", "training.schedule"),
        *("training.iterations", "training.eps", "training.start", "training.learning_rate", "training.epochs"),
        "training.budget",
    ),
    curves=(
        Curve("segmenter/dice_clean", "Dice, validation patches"),
        Curve("segmenter/dice_robust", "Dice, attacked validation patches"),
        Curve("segmenter/iterations", "adversarial iterations of an epoch"),
        Curve("segmenter/grad_l1_raw", "magnitude of the gradient"),
        Curve("segmenter/loss", "Dice + cross-entropy, training"),
    ),
    lines=evaluation.lines,
    frame_ms=1000,
    threads=0,
    parallel=True,
)
