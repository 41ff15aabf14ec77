"""RP-PGD as a row of the table of papers."""

from functools import partial

from ...evaluation.curve_figures import Curve
from .. import robust_segmenters
from ..experiment import Paper
from . import evaluation, training
from .config import RPPGDExperiment

PAPER: Paper[RPPGDExperiment] = Paper(
    experiment=RPPGDExperiment,
    check=training.check,
    train=training.train,
    learner=robust_segmenters.learner,
    check_export=robust_segmenters.check_export,
    evaluate=evaluation.evaluate,
    render=evaluation.render,
    predictor=evaluation.no_masks,
    victim=evaluation.victim_of,
    columns=evaluation.COLUMNS,
    found_columns=partial(robust_segmenters.attack_columns, kinds=evaluation.KINDS),
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
    lines=robust_segmenters.lines,
    frame_ms=1000,
    threads=0,
    parallel=True,
)
