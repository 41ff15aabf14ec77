"""A sweep: variants of an experiment times seeds. Each is a trial: a run like any other, trained and evaluated by its
paper; several are trained at once by Ray Tune, and one page compares them all.

sweep.yaml                 the sweep, resolved and complete: what its variants share as base, what differs as variants
<variant>_seed<n>/         the run of a trial; its results lie in evaluation/sweep/
index.md, <metric>.png     the page, see evaluation/sweep_page.py

A trial is finished when evaluation/sweep/table.md is there; one that was killed goes on from its run's checkpoint. Ray
only starts, restarts and counts processes: nothing of what it keeps is read again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from ..common.checks import check, check_choice, with_settings
from ..common.files import write_text
from ..common.likeness import did_you_mean
from ..common.manifests import differing
from ..common.names import check_name, slug
from ..common.reading import quoted, read_yaml
from ..common.runs import Run, flat, plain
from ..evaluation.machine import describe_machine
from ..evaluation.report import STANDARD, Column, column
from ..evaluation.sweep_page import write_page
from .catalogue import schema
from .configuration import experiment_of, read_experiment
from .experiment import EvaluateOptions, Experiment
from .packaged import config_file
from .papers import PAPERS, paper_named
from .schema import keys, misfit
from .threads import threads_of, use_threads

FILE = "sweep.yaml"
Layer = str | dict[str, Any]
"""A configuration: the name of a packaged one, a file, or keys with their values ("env.threshold": 0.2)."""


@dataclass(frozen=True)
class EvaluationChoice:
    """What every trial is evaluated on."""

    split: str | None = None
    """Split; null: the test split of the experiment."""
    cases: list[str] | None = None
    """Cases, as ids or patterns; null: those of the split."""
    policies: list[str] | None = field(default_factory=list)
    """Reference policies to play too; null: those that the paper compares with."""

    def __post_init__(self) -> None:
        check(self, "evaluation.")


@dataclass(frozen=True)
class SweepFile:
    """The keys of a sweep file."""

    paper: str
    """Name of the paper."""
    name: str
    """Title of the page, and default folder; by default the file's name."""
    base: list[Layer] = field(default_factory=list)
    """Configurations that all variants share, the later wins."""
    variants: dict[str, Layer | list[Layer]] | None = None
    """What each variant puts after the base, by its name."""
    grid: dict[str, list[Any]] | None = None
    """Instead: values of keys; every combination is a variant."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of every variant."""
    metric: str | None = None
    """Metric that the page shows first and draws; null: the first of the paper's table."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Fields of `EvaluationChoice`."""

    def __post_init__(self) -> None:
        check(self)
        check_choice("paper", self.paper, PAPERS)
        check_name(self.name)
        if (self.variants is None) == (self.grid is None):
            raise ValueError("a sweep has either `variants: {name: {key: value}}` or `grid: {key: [values]}`")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds} but must name at least one seed, and each once")
        for key, values in (self.grid or {}).items():
            if not values:
                raise ValueError(f"grid.{key} has no values")

    def layers(self) -> dict[str, list[Layer]]:
        """The configurations of each variant after the base, by its name."""
        if self.variants is not None:
            found = {name: one if isinstance(one, list) else [one] for name, one in self.variants.items()}
        else:
            grid = self.grid or {}
            combined = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
            found = {", ".join(_said(*item) for item in one.items()): [one] for one in combined}
        good = all(name.strip() and name.isprintable() for name in found)
        if not found or not good or len({slug(name).casefold() for name in found}) < len(found):
            raise ValueError(f"the variants are {', '.join(map(repr, found)) or 'none'}: each needs a name of its own")
        return found


def _said(key: str, value: object) -> str:
    text = " x ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{key.rpartition('.')[2]} {text}"


@dataclass(frozen=True)
class Sweep:
    """A sweep with every experiment resolved, of seed `seeds[0]`, by the name of its variant."""

    file: SweepFile
    """Its own: shared keys as base, and what differs as variants."""
    experiments: dict[str, Experiment]
    evaluation: EvaluationChoice

    @property
    def metric(self) -> Column:
        """The metric of the page."""
        columns = paper_named(self.file.paper).columns
        return next(
            (one for one in map(column, columns) if one.name == self.file.metric), column(str(self.file.metric))
        )

    def trials(self, folder: Path, command: str) -> "list[Trial]":
        """All trials, the first seed of every variant first."""
        evaluate = EvaluateOptions(command=command, **asdict(self.evaluation))
        return [
            Trial(self.file.paper, name, replace(one, seed=seed), folder / f"{slug(name)}_seed{seed}", evaluate)
            for seed in self.file.seeds
            for name, one in self.experiments.items()
        ]

    def check(self) -> None:
        """Raises whatever can be known to be wrong with an experiment before anything is written."""
        for name, experiment in self.experiments.items():
            try:
                paper_named(self.file.paper).check(experiment)
            except (ValueError, OSError) as error:
                raise ValueError(f"variant {name!r}: {error}") from error

    def check_folder(self, folder: Path) -> None:
        """Raises ValueError: the folder holds another sweep, or something else."""
        path = folder / FILE
        if not path.exists():
            Run.check_new(folder)
            return
        then, now = _flat(read_yaml(path)), _flat(self._content)
        if key := differing(then, now):
            raise ValueError(
                f"out is {str(folder)!r}, which holds another sweep: {key} is {then.get(key, 'absent')!r} there but "
                f"{now.get(key, 'absent')!r} here; choose another --out, or continue that one with --resume {folder}"
            )

    def keep(self, folder: Path) -> None:
        """Write sweep.yaml, unless it is there; raises as `check_folder`."""
        self.check_folder(folder)
        if not (folder / FILE).exists():
            write_text(folder / FILE, yaml.safe_dump(self._content, sort_keys=False, allow_unicode=True))

    @property
    def _content(self) -> dict[str, Any]:
        """What sweep.yaml holds."""
        content: dict[str, Any] = plain(asdict(self.file))
        return content

    def write_page(self, folder: Path) -> Path:
        """The page of all finished trials; returns its path."""
        variants = dict[str, list[Path]]()
        trials = self.trials(folder, "")
        for trial in trials:
            if trial.finished:
                variants.setdefault(trial.variant, []).append(trial.results)
        paper = paper_named(self.file.paper)
        return write_page(
            folder,
            self.file.name,
            {name: variants[name] for name in self.experiments if name in variants},
            trained={name: one.name for name, one in self.experiments.items()},
            columns=[self.metric, *(one for one in map(column, paper.columns) if one.name != self.metric.name)],
            axis=self.axis(),
            missing=[trial.folder.name for trial in trials if not trial.finished],
        )

    def axis(self) -> tuple[str, dict[str, float]] | None:
        """The key that alone differs between the variants, and its values by their names; None: there are several, or
        its values are no numbers."""
        changes = {name: one for name, one in (self.file.variants or {}).items() if isinstance(one, dict)}
        found = {key for one in changes.values() for key in one}
        if len(found) != 1:
            return None
        (key,) = found
        values = {name: one.get(key) for name, one in changes.items()}
        numbers = {
            name: float(v) for name, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)
        }
        return (key, numbers) if len(numbers) == len(values) else None


def _flat(content: object) -> dict[str, bool | int | float | str]:
    """What sweep.yaml holds, as `flat` gives it."""
    kept = dict(content) if isinstance(content, dict) else {}
    base = kept.get("base")
    return flat({**kept, **({"base": base[0]} if isinstance(base, list) and len(base) == 1 else {})})


def read_sweep(path: str | Path, settings: Mapping[str, Any]) -> Sweep:
    """The sweep of a file, with every experiment resolved.

    settings: values of keys that win in every variant, by dotted name.

    Raises:
        ValueError: a key that there is not (names the closest), a value that does not fit, experiments that cannot be.
        FileNotFoundError: a configuration that there is not.
    """
    given = read_yaml(path)
    try:
        file = _file(given, Path(path).stem)
        evaluation = with_settings(EvaluationChoice(), file.evaluation)
        columns = [column(one).name for one in paper_named(file.paper).columns]
        metric = columns[0] if file.metric is None else file.metric
        check_choice("metric", metric, dict.fromkeys([*columns, *STANDARD]))
        last = [dict(settings)] if settings else []
        layers = {name: [*file.base, *own, *last] for name, own in file.layers().items()}
        experiments = {name: _experiment(file, name, one, Path(path).parent) for name, one in layers.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    shared, differ = _divided(file.paper, {name: plain(asdict(one)) for name, one in experiments.items()})
    own = replace(file, base=[shared], variants=dict(differ), grid=None, metric=metric, evaluation=asdict(evaluation))
    return Sweep(own, experiments, evaluation)


def _file(given: object, stem: str) -> SweepFile:
    if not isinstance(given, dict):
        raise ValueError(f"it holds no sweep (name: value) but {quoted(given)}")
    known = list(SweepFile.__dataclass_fields__)
    for key in given:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; there are {', '.join(known)}"
            raise ValueError(f"a sweep has no {quoted(key)[1:-1]}{hint}")
    if "paper" not in given:
        raise ValueError(f"it names no paper; add a line `paper: NAME` with one of {', '.join(map(repr, PAPERS))}")
    variants = given.get("variants")
    named = {str(name): one for name, one in variants.items()} if isinstance(variants, dict) else variants
    return SweepFile(**{"name": stem, **given, **({"variants": named} if "variants" in given else {})})


def _experiment(file: SweepFile, variant: str, layers: Sequence[Layer], beside: Path) -> Experiment:
    """The experiment of configurations that follow each other, as `train` makes it, resolved; beside: their folder."""
    arguments = list[str]()
    with TemporaryDirectory() as folder:
        for number, layer in enumerate(layers):
            if isinstance(layer, str):
                found = str(beside / layer) if (beside / layer).is_file() else config_file(layer)
            else:
                config, found = _nested(layer), f"{folder}/{number}.yaml"
                if "seed" in config:
                    raise ValueError(f"variant {variant!r} has a seed; the seeds of a sweep stand in `seeds`")
                if wrong := _part_of_a_value(file.paper, layer) or misfit(schema(file.paper), config):
                    raise ValueError(f"variant {variant!r}: {wrong}")
                write_text(Path(found), yaml.safe_dump({**config, "paper": file.paper}, allow_unicode=True))
            arguments += ["--config", found]
        try:
            made: Experiment = experiment_of(file.paper, [*arguments, "--seed", str(file.seeds[0])]).resolved()
        except ValueError as error:
            raise ValueError(f"variant {variant!r}: {error}") from error
    return made


def _part_of_a_value(paper: str, layer: Mapping[str, Any]) -> str | None:
    """What is wrong with a key below one whose value is a whole, since a later configuration replaces that value."""
    known, sections = set(keys(schema(paper))), _sections(paper)
    for key in map(str, layer):
        parts = key.split(".")
        above = [".".join(parts[:n]) for n in range(1, len(parts))]
        if whole := next((one for one in above if one in known - sections), None):
            return f"{key} is a part of {whole}, which is one value: give all of it, as {whole}"
    return None


def _sections(paper: str) -> set[str]:
    """The keys that have keys below them."""
    return {key.rpartition(".")[0] for key in keys(schema(paper))}


def _nested(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Keys such as "env.threshold" as sections within each other; sections may be given as such too.

    Raises:
        ValueError: a key stands twice, or is a value and a section.
    """
    made: dict[str, Any] = {}
    for key, value in layer.items():
        *sections, last = str(key).split(".")
        inner = made
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                break
        if not isinstance(inner, dict) or last in inner:
            raise ValueError(f"{key} stands twice in {quoted(dict(layer))}")
        inner[last] = value
    return made


def _divided(paper: str, configs: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What all configurations share, as sections, and what each has of its own, by dotted keys; without the seed."""
    sections = _sections(paper)

    def leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found = dict[str, Any]()
        for name, value in config.items():
            key = prefix + name
            found |= leaves(value, f"{key}.") if isinstance(value, dict) and key in sections else {key: value}
        return found

    own = {name: leaves({key: value for key, value in one.items() if key != "seed"}) for name, one in configs.items()}
    first = next(iter(own.values()))
    same = {key for key, value in first.items() if all(key in one and one[key] == value for one in own.values())}
    differ = {name: {key: value for key, value in one.items() if key not in same} for name, one in own.items()}
    return _nested({key: value for key, value in first.items() if key in same}), differ


# -- trials ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One variant with one seed."""

    paper: str
    variant: str
    experiment: Experiment
    folder: Path
    """Its run."""
    evaluate: EvaluateOptions

    @property
    def results(self) -> Path:
        """Folder of its results."""
        return self.folder / "evaluation" / "sweep"

    @property
    def finished(self) -> bool:
        """Whether it is trained and evaluated."""
        return (self.results / "table.md").is_file()

    def run(self, threads: int) -> None:
        """Train it, or go on with it, and evaluate it; raises what the paper raises."""
        paper = paper_named(self.paper)
        begun = (self.folder / "config.yaml").is_file()
        use_threads(None if begun else threads, kept=threads_of(self.folder) if begun else None)
        environment = {**describe_machine(), "command": self.evaluate.command}
        run = (paper.resume if begun else paper.start)(self.experiment, self.folder, environment)
        options = replace(self.evaluate, out=str(self.results))
        results, _ = paper.evaluate([(run, read_experiment(run)[1])], options)
        write_text(self.results / "table.md", "\n\n".join(paper.tables(results)) + "\n")
