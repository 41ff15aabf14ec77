"""Experiment and Paper, which all papers share: the head of the configuration, and the way from it to a trained run.

A paper is one row of `papers.PAPERS`: its kind of experiment and the functions that check, train, evaluate and show it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from ..attacks.victim import Normalized
from ..common.checks import check, check_choice
from ..common.device import accelerate, resolve_device
from ..common.files import replacing
from ..common.names import check_name, slug
from ..common.resuming import reconfigure, tidy, training_in
from ..common.runs import Run, chosen, plain
from ..common.stopping import stopping_safely
from ..common.workers import ONE_PROCESS, Workers
from ..evaluation.curve_figures import Curve
from ..evaluation.drawing import Legend
from ..evaluation.films import Shot
from ..evaluation.machine import describe_machine
from ..evaluation.report import Column, column, pairs, table
from ..evaluation.results import Result
from .predictor import PredictOptions, Predictor, no_predictor, no_victim

E = TypeVar("E", bound="Experiment")
C = TypeVar("C")
B = TypeVar("B", bound="Baseline[Any, Any]")


@dataclass(frozen=True)
class Experiment:
    """The head of every configuration; a paper's own experiment adds the rest."""

    paper: str
    """Name of the paper; it decides all other options (`list` prints the papers, `train --paper NAME --help` their
    options)."""
    name: str
    """Name of the trained policy in tables of results."""
    seed: int = 0
    """Seed of every random number, 0 to 2^32 - 1."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        check(self, seed=(0, 2**32 - 1))
        check_name(self.name)

    def resolved(self: E) -> E:
        """The same with nothing left open (defaults filled in, paths absolute): it can be continued from anywhere.

        Raises:
            ValueError: values that do not fit together.
        """
        return self


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of the command `evaluate`."""

    command: str = ""
    """The command line, for the results."""
    split: str | None = None
    """Split to evaluate on; None: the run's test split."""
    cases: list[str] | None = None
    """Cases to evaluate on, as ids or patterns; None: the run's test cases."""
    policies: list[str] | None = None
    """Reference policies to play beside the run's own policy, by name; None: those that the paper compares with."""
    skip_bad: bool = False
    """Leave bad files out, and say so, instead of raising."""
    out: str | None = None
    """Folder of the results; None: `evaluation/<choice>` in each run."""
    unfinished: bool = False
    """Evaluate the last checkpoint of a run whose agent is not trained to its end, and say so in its results."""
    save_masks: bool = False
    """Write the masks of the run's own policy and of the baselines too, as `predict` does."""
    html: bool = False
    """Write pictures in 3-D of the first cases too, where the images are volumes."""

    @property
    def choice(self) -> str:
        """Folder name of the chosen cases, another one for each choice: test, split_val, cases_liver_0_1f3a9c20."""
        if self.cases is not None:
            digest = hashlib.sha256(json.dumps(sorted(set(self.cases))).encode()).hexdigest()
            return f"cases_{slug(' '.join(self.cases))[:40]}_{digest[:8]}"
        return "test" if self.split is None else f"split_{slug(self.split)}"

    def folder(self, run: Run) -> Path:
        """Where the results of a run go: every choice of cases has a folder of its own."""
        return Path(self.out) if self.out else run.folder / "evaluation" / self.choice


@dataclass(frozen=True)
class RenderOptions:
    """Options of the command `render`."""

    case: str | None = None
    """Id of the case to play; None: the first of the split."""
    split: str | None = None
    """Split from which the case comes; None: the run's test cases."""
    seed: int = 0
    """Seed of the episode."""
    truth: bool = True
    """Whether the pictures show the labels."""
    unfinished: bool = False
    """Play the last checkpoint of a run whose agent is not trained to its end."""


@dataclass(frozen=True)
class Episode:
    """The film of one episode of a trained policy."""

    shots: list[Shot]
    legend: Legend
    summary: str
    """A sentence on how it went."""


@dataclass(frozen=True)
class Baseline(Generic[E, C]):
    """One row of a paper's table of baselines: everything about one; a paper's own kind adds how it segments."""

    title: str
    """Name in tables of results."""
    networks: Callable[[C], list[nn.Module]] | None = None
    """Its networks in the paper's context of a run: trained first unless that is done. None: it trains nothing."""
    supervision: str | None = None
    """Labels that it learns from; None: those that the paper's evaluation names for the run."""
    sees_target: bool = True
    """Whether it learns from the images that the agent is trained on: results on one of these are transductive then."""
    section: str | None = None
    """Field of the experiment that holds its settings."""
    included: Callable[[E], bool] | None = None
    """Whether the tables of an experiment include it unasked. None: they do where `baselines` of the experiment names
    it."""
    objection: Callable[[E], str | None] = lambda experiment: None
    """Why it cannot be trained in an experiment that names it, as the rest of a sentence; None: it can."""


def always(experiment: Experiment) -> bool:
    """True: `included` of a baseline that stands in every table."""
    return True


def baselines_of(rows: Mapping[str, B], names: Sequence[str], experiment: Experiment) -> dict[str, B]:
    """The rows of a run by name: those that it includes unasked, then those of `names`, in this order.

    Args:
        rows: all baselines of the paper.
        names: those that the experiment asks for.

    Raises:
        ValueError: `names` has a baseline that there is not, or twice, or that cannot be trained in the experiment.
    """
    known = [name for name, row in rows.items() if row.included is None]
    for name in names:
        check_choice("each of baselines", name, known)
        if objection := rows[name].objection(experiment):
            raise ValueError(f"baseline {name} {objection}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"baselines names {', '.join(twice)} more than once")
    unasked = {name: row for name, row in rows.items() if row.included and row.included(experiment)}
    return {**unasked, **{name: rows[name] for name in names}}


@dataclass(frozen=True, eq=False)
class Paper(Generic[E]):
    """One paper: its configuration, and the functions that train, evaluate and draw it."""

    experiment: type[E]
    """Its configuration."""
    check: Callable[[E], None]
    """Raises whatever can be known to be wrong with a resolved experiment before anything is written."""
    train: Callable[[E, Run], None]
    """Trains every part of the run that is not finished."""
    learner: Callable[[E, Run], BaseAlgorithm]
    """The trained policy of a finished run as a learner of Stable-Baselines3, for its zip."""
    evaluate: Callable[[Sequence[tuple[Run, E]], EvaluateOptions], tuple[list[Result], list[str]]]
    """Results of runs, written into their folders, and a line for each bad file that was left out."""
    render: Callable[[Run, E, RenderOptions], Episode]
    """One episode of the trained policy."""
    columns: tuple[Column | str, ...]
    """Columns of the table of results; the first is compared with `baseline`."""
    baseline: str
    """The method with which the others are compared."""
    found_columns: Callable[[Sequence[Result]], Sequence[Column]] = lambda results: ()
    """Further columns of that table, of what these results have."""
    more_columns: tuple[Column | str, ...] = ()
    """Columns of a second table, of the results that have the first of them; those that none has are left out."""
    settings: tuple[Column, ...] = ()
    """Numbers in the settings of the results that the first table shows too, where there are any."""
    differences: Callable[[Sequence[Result]], str | None] = lambda results: None
    """A table of the differences from one method; None: there is none."""
    baselines: Mapping[str, Baseline[E, Any]] = field(default_factory=dict)
    """The paper's table of baselines by name."""
    check_export: Callable[[E], None] = lambda experiment: None
    """Raises where a run has no policy for a zip of Stable-Baselines3, or one that needs what the zip does not hold."""
    hparams: tuple[str, ...] = ()
    """Keys of the configuration that TensorBoard's table of runs shows, a dozen at most."""
    curves: tuple[Curve, ...] = (Curve("rollout/ep_rew_mean", "reward of an episode"),)
    """Learning curves that `plot` draws by default, and whose last values stand in TensorBoard's table of runs."""
    lines: Callable[[E, Run], list[dict[str, float]]] = lambda experiment, run: run.metrics()
    """The logged scalars of a run's agent, one dict per logged `step`, which counts environment steps."""
    predictor: Callable[[Run, E, PredictOptions], Predictor] = no_predictor
    """One method of a finished run, loaded once, for images without labels."""
    victim: Callable[[Run, E], tuple[Normalized, tuple[str, ...]]] = no_victim
    """The segmenter of a finished run behind its normalisation, and the names of its classes, for `attack`."""
    volumes: bool = False
    """Whether its images are volumes, of which `evaluate --html` draws pictures in 3-D."""
    frame_ms: int = 125
    """Time in milliseconds that each frame of an episode is shown."""
    threads: int = 1
    """CPU threads of PyTorch that its commands compute with unless told otherwise; 0: one per core."""
    parallel: bool = False
    """Whether several processes, started by torchrun, may train one of its runs: `train` uses the run's `workers`."""

    def start(
        self, experiment: E, out: str | Path, environment: Mapping[str, Any], workers: Workers = ONE_PROCESS
    ) -> Run:
        """Train in the new folder `out`; see `resume` for a run that was interrupted.

        environment: description of the machine, written into environment.json.
        workers: the processes that train together, all of which call this; rank 0 alone writes.

        Raises:
            ValueError: a value, case, file or folder that cannot be used; nothing is written then. Or, later, what the
                paper's own training raises; a number that is NaN or infinite, too (`NotFiniteError`).
            FileNotFoundError: a missing folder or file.
            Stopped: a signal asked for it (Ctrl-C, SIGTERM, SIGHUP); says what is kept, and how it goes on.
        """
        experiment = experiment.resolved()
        resolve_device(experiment.device)
        self.check(experiment)
        if not workers.is_main:
            return self._follow(experiment, out, workers)
        Run.check_new(out)
        with training_in(out):
            return self._finish(experiment, Run.create(out, plain(asdict(experiment)), environment), workers)

    def resume(
        self,
        experiment: E,
        out: str | Path,
        environment: Mapping[str, Any] | None = None,
        workers: Workers = ONE_PROCESS,
    ) -> Run:
        """Continue the run in the folder `out`, as `experiment` says, where it was interrupted.

        `experiment` may differ from the run's config.yaml, which is then rewritten, in keys on which nothing depends
        that was made so far.

        environment: description of the machine, for a run whose first process was killed before it had written its own.
        workers: as of `start`.

        Raises:
            ValueError: something depends on a changed key (names the stages, and the ways out), or another process
                trains in the folder; nothing is changed then. Or, later, as `start`.
            Stopped: as `start`.
        """
        run, experiment = Run.open(out), experiment.resolved()
        if not workers.is_main:
            return self._follow(experiment, out, workers)
        config = plain(asdict(experiment))
        with training_in(out):
            if config != run.config:
                self.check(experiment)
            reconfigure(run, config)
            tidy(run)
            run.describe(environment or describe_machine())
            return self._finish(experiment, run, workers)

    def _follow(self, experiment: E, out: str | Path, workers: Workers) -> Run:
        """The part of a process that does not write."""
        with stopping_safely():
            return self._finish(experiment, Run(out), workers)

    def _finish(self, experiment: E, run: Run, workers: Workers) -> Run:
        accelerate(resolve_device(experiment.device))
        workers.broadcast(None)  # until the folder is there
        run.workers = workers
        try:
            self.train(experiment, run)
            if workers.is_main:
                outcome = self.outcome(experiment, run)
                run.log_hparams(chosen(asdict(experiment), self.hparams), outcome)
        finally:
            run.close()
        return run

    def outcome(self, experiment: E, run: Run) -> dict[str, float]:
        """The last value of each curve that the run has."""
        last = dict[str, float]()
        for line in self.lines(experiment, run):
            last |= line
        return {curve.name: last[curve.name] for curve in self.curves if curve.name in last}

    def export(self, experiment: E, run: Run, path: str | Path) -> None:
        """Write the trained policy as a zip of Stable-Baselines3, for its own `load`.

        Raises:
            ValueError: as `check_export`.
        """
        self.check_export(experiment)
        learner = self.learner(experiment.resolved(), run)
        with replacing(Path(path)) as unfinished:
            learner.save(unfinished)

    def tables(self, results: Sequence[Result]) -> list[str]:
        """The tables of these results, in Markdown; without comparison where some cases have no truth, and without
        columns that none of them has."""
        judged = all(column(self.columns[0]).name in result.metrics for result in results)
        known = judged and any(result.method == self.baseline for result in results)
        columns = [one for one in self.columns if not judged or any(column(one).name in r.metrics for r in results)]
        columns += self.found_columns(results)
        first = table(results, columns, baseline=self.baseline if known else None, settings=self.settings)
        apart = self.differences(results) if judged else None
        more = [r for r in results if self.more_columns and column(self.more_columns[0]).name in r.metrics]
        shown = [one for one in self.more_columns if any(column(one).name in r.metrics for r in more)]
        return [first, *([apart] if apart else []), *([table(more, shown)] if more else [])]

    def pairs(self, results: Sequence[Result]) -> str | None:
        """Every two methods compared by the first column, in Markdown; None where some cases have no truth, or there is
        one method only."""
        one = column(self.columns[0])
        judged = all(one.name in result.metrics for result in results)
        return pairs(results, one) if judged and len({result.method for result in results}) > 1 else None


def check_names(experiments: Sequence[Experiment], taken: Iterable[tuple[str, int]]) -> None:
    """Say before the work which rows of one table would have the same name and seed, or the same file.

    Args:
        experiments: those whose trained policy gets a row.
        taken: name and seed of every other row.

    Raises:
        ValueError: two runs, or a run and another row, have one name and seed; or names that give one file name.
    """
    named = [(experiment.name, experiment.seed) for experiment in experiments]
    if twice := sorted({f"{name!r} with seed {seed}" for name, seed in named if named.count((name, seed)) > 1}):
        raise ValueError(
            f"two runs are called {', '.join(twice)}; train one with another --name, or evaluate them apart"
        )
    others = set(taken)
    if clash := sorted({name for name, _ in set(named) & others}):
        raise ValueError(
            f"{', '.join(clash)} is the name of a run and of another row of the table; train it with another --name, "
            f"or leave the other row out"
        )
    by_file: dict[tuple[str, int], str] = {}
    for name, seed in [*sorted(others), *named]:
        other = by_file.setdefault((slug(name).casefold(), seed), name)  # file systems may ignore case
        if other != name:
            raise ValueError(
                f"{name!r} and {other!r} would have one file of results, {slug(name)}_seed{seed}.json; train the run "
                f"with another --name"
            )


def reached(run: Run, total_timesteps: int, *, unfinished: bool = False) -> int:
    """Environment steps that the agent of a run was trained for.

    Args:
        run: the folder with its checkpoints.
        total_timesteps: those of its configuration.
        unfinished: whether fewer than these will do.

    Raises:
        ValueError: there is no checkpoint; or the agent is not trained to its end, and `unfinished` is False.
    """
    step = run.checkpoint().step
    if step < total_timesteps and not unfinished:
        raise ValueError(
            f"run {str(run.folder)!r} is not finished: its last checkpoint is at step {step} of {total_timesteps}; "
            f"train it further with --resume; or judge it as it is with --unfinished of evaluate or render"
        )
    return step


def method_name(experiment: Experiment, step: int, total_timesteps: int) -> str:
    """Name of a run's trained policy in results: with the step that it reached where this is not the last one."""
    if step >= total_timesteps:
        return experiment.name
    return f"{experiment.name} (unfinished, step {step} of {total_timesteps})"


def write_result(folder: Path, result: Result) -> Result:
    """Keep a result in a folder: as JSON, and its cases as CSV beside it."""
    result.write(folder / f"{result.id}.json")
    result.write_cases(folder / f"{result.id}.csv")
    return result
