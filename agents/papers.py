"""The rows of the two tables that all drivers read: the papers, and the reference policies of each environment.

Rows may be added from outside: `PAPERS["mine"] = Paper(...)`, `POLICIES["Mine-v0"] = {"rule": Reference(...)}`.
"""

from typing import Any

from ..common.checks import check_choice
from . import generic
from .experiment import Paper
from .policy import POLICIES
from .rl4seg import baselines as rl4seg_baselines
from .rl4seg import config as rl4seg_config
from .rl4seg import evaluation as rl4seg_evaluation
from .rl4seg import prediction as rl4seg_prediction
from .rl4seg import rules as rl4seg_rules
from .rl4seg import training as rl4seg_training
from .spars import baselines as spars_baselines
from .spars import config as spars_config
from .spars import evaluation as spars_evaluation
from .spars import prediction as spars_prediction
from .spars import rules as spars_rules
from .spars import training as spars_training

PAPERS: dict[str, Paper[Any]] = {
    "spars": Paper(
        experiment=spars_config.SparsExperiment,
        check=spars_training.check,
        train=spars_training.train,
        learner=spars_training.learner,
        check_export=spars_training.check_export,
        evaluate=spars_evaluation.evaluate,
        render=spars_evaluation.render,
        predictor=spars_prediction.SparsPredictor.of,
        columns=spars_evaluation.COLUMNS,
        baseline="score map (mean)",
        baselines=spars_baselines.BASELINES,
    ),
    "rl4seg": Paper(
        experiment=rl4seg_config.RL4SegExperiment,
        check=rl4seg_training.check,
        train=rl4seg_training.train,
        learner=rl4seg_training.learner,
        evaluate=rl4seg_evaluation.evaluate,
        render=rl4seg_evaluation.render,
        predictor=rl4seg_prediction.EchoPredictor.of,
        columns=rl4seg_evaluation.COLUMNS,
        more_columns=rl4seg_evaluation.UNCERTAINTY_COLUMNS,
        baseline=rl4seg_baselines.SOURCE_ONLY,
        baselines=rl4seg_baselines.BASELINES,
        frame_ms=1000,
    ),
    "ppo": Paper(
        experiment=generic.PPOExperiment,
        check=generic.check,
        train=generic.train,
        learner=generic.learner,
        check_export=generic.check_export,
        evaluate=generic.evaluate,
        render=generic.render,
        predictor=generic.predictor,
        columns=generic.COLUMNS,
        baseline="random",
    ),
}
"""Papers by the name that `paper:` in a configuration gives; ppo is plain PPO on any environment."""
DEFAULT_PAPER = "spars"
"""The paper of a configuration that names none."""
POLICIES["SPARS-LiverCT-v0"] = spars_rules.POLICIES
POLICIES["RL4Seg-Echo-v0"] = rl4seg_rules.POLICIES


def paper_named(name: object) -> Paper[Any]:
    """The row of the table of papers.

    Raises:
        ValueError: there is no such paper.
    """
    check_choice("paper", name, PAPERS)
    return PAPERS[str(name)]
