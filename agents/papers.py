"""The table of papers that `run_rl.py` drives: what trains, evaluates and shows each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.report import Column, column, table
from ..evaluation.results import Result
from .rl4seg import (
    baselines as rl4seg_methods,
)
from .rl4seg import (
    config as rl4seg_config,
)
from .rl4seg import (
    evaluation as rl4seg_evaluation,
)
from .rl4seg import (
    training as rl4seg,
)
from .spars import evaluation as spars_evaluation
from .spars import training as spars


@dataclass(frozen=True)
class Paper:
    """One paper's experiment."""

    experiment: type[Any]
    """Its configuration: a dataclass with at least paper, name and seed."""
    train: Callable[..., Any]
    """(experiment, out, environment, *, sb3_zip) -> Run; a new one."""
    resume: Callable[..., Any]
    """(experiment, out, *, sb3_zip) -> Run; one that was interrupted."""
    evaluate: Callable[..., Any]
    """(runs, *, command, split, cases, skip_bad) -> results, and the bad files that were skipped."""
    render: Callable[..., Any]
    """(run, experiment, *, case, seed) -> frames, and a sentence on how the episode went."""
    metrics: tuple[Column | str, ...]
    """Columns of the table of results, the first of which is tested against the baseline."""
    baseline: str
    """The method with which the others are compared."""
    more_metrics: tuple[Column | str, ...] = ()
    """Columns of a second table, of the results that have the first of them."""
    frame_ms: int = 125
    """Time that each frame of an episode is shown."""

    def tables(self, results: Sequence[Result]) -> list[str]:
        """The tables of these results, in Markdown; without comparison where some images have no truth."""
        judged = all(column(self.metrics[0]).name in result.metrics for result in results)  # no truth, no overlap
        known = judged and any(result.method == self.baseline for result in results)
        first = table(results, self.metrics, baseline=self.baseline if known else None)
        more = [r for r in results if self.more_metrics and column(self.more_metrics[0]).name in r.metrics]
        return [first, *([table(more, self.more_metrics)] if more else [])]


PAPERS = {
    "spars": Paper(
        spars.SparsExperiment,
        spars.train,
        spars.resume,
        spars_evaluation.evaluate,
        spars_evaluation.render,
        metrics=spars_evaluation.COLUMNS,
        baseline="score map (mean)",
    ),
    "rl4seg": Paper(
        rl4seg_config.RL4SegExperiment,
        rl4seg.train,
        rl4seg.resume,
        rl4seg_evaluation.evaluate,
        rl4seg_evaluation.render,
        metrics=rl4seg_evaluation.COLUMNS,
        baseline=rl4seg_methods.SOURCE_ONLY,
        more_metrics=rl4seg_evaluation.UNCERTAINTY_COLUMNS,
        frame_ms=1000,
    ),
}
