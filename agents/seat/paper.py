"""SEAT as a row of the table of papers."""

from functools import partial

from ...evaluation.curve_figures import Curve
from .. import robust_segmenters
from ..experiment import Paper
from . import evaluation, prediction, training
from .config import SEATExperiment

PAPER: Paper[SEATExperiment] = Paper(
    experiment=SEATExperiment,
    check=training.check,
    train=training.train,
    learner=robust_segmenters.learner,
    check_export=robust_segmenters.check_export,
    evaluate=evaluation.evaluate,
    render=evaluation.render,
    predictor=prediction.SEATPredictor.of,
    victim=evaluation.victim_of,
    columns=evaluation.COLUMNS,
    found_columns=partial(robust_segmenters.attack_columns, kinds={"dice": "Dice"}),
    baseline="clean",
    hparams=(
        *("seed", "data.task", "data.fold", "network.kind", "training.method", "training.schedule"),
        *("training.most_iterations", "training.eps", "training.start", "training.learning_rate", "training.epochs"),
        "training.budget",
    ),
    curves=(
        Curve("segmenter/dice_clean", "Dice, validation patches"),
        Curve("segmenter/dice_robust", "Dice, attacked validation patches"),
        Curve("segmenter/iterations", "adversarial iterations of an epoch"),
        Curve("segmenter/grad_l1_raw", "magnitude of the gradient"),
        Curve("segmenter/loss", "Dice + cross-entropy, training"),
    ),
    lines=robust_segmenters.lines,
    frame_ms=1000,
    threads=0,
    parallel=True,
)
