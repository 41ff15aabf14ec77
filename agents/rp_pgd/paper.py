"""RP-PGD as a row of the table of papers."""

from ...evaluation.curve_figures import Curve
from ..experiment import Paper
from . import evaluation, training
from .config import RPPGDExperiment

PAPER: Paper[RPPGDExperiment] = Paper(
    experiment=RPPGDExperiment,
    check=training.check,
    train=training.train,
    learner=evaluation.learner,
    check_export=evaluation.check_export,
    evaluate=evaluation.evaluate,
    render=evaluation.render,
    predictor=evaluation.no_masks,
    victim=evaluation.victim_of,
    columns=evaluation.COLUMNS,
    found_columns=evaluation.found_columns,
    baseline="no defence",
    hparams=(
        *("seed", "network.kind", "network.backbone", "training.method", "training.attack", "training.steps"),
        *("training.eps", "training.adv_ratio", "training.pairing", "training.bn", "training.learning_rate"),
        "training.epochs",
    ),
    curves=(
        Curve("segmenter/clean_miou", "mIoU, validation images"),
        Curve("segmenter/adv_miou", "mIoU, attacked validation images"),
        Curve("segmenter/loss_main", "cross-entropy", "nats"),
    ),
    lines=evaluation.lines,
    frame_ms=1000,
    threads=0,
    parallel=True,
)
