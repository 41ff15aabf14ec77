"""What papers share whose runs are segmenters that attacks judge, and no agents: RP-PGD and SEAT.

segmenter/                   the only stage of such a run: curves, pictures, checkpoints
segmenter/victim.safetensors the trained network and the names of its classes, as attacks read it
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

from ..attacks.budget import Epsilon
from ..attacks.named import PRESETS, Need, named_attack
from ..attacks.victim import Normalized
from ..attacks.victims import load_victim
from ..common.checkpoints import load_into
from ..common.checks import AT_LEAST_1, check, check_choice
from ..common.names import slug
from ..common.runs import Run
from ..evaluation.report import Column
from ..evaluation.results import Result
from ..evaluation.robustness_results import AttackResult
from .context import StageContext
from .experiment import EvaluateOptions, Experiment

SEGMENTER, VICTIM = "segmenter", "victim.safetensors"
"""Name of the stage, and of its file."""
REPORT = "robustness"
"""Folder of the report on the attacks, beside the results."""
WORST = "worst"
"""Begin of the names of metrics under the strongest attack of all, or of a radius."""
E = TypeVar("E", bound=Experiment)
MOST_COLUMNS = 16
"""Columns of attacks in the table of results, at most."""


@dataclass(frozen=True)
class RobustnessConfig:
    """By which attacks a trained segmenter is judged.

    Raises:
        ValueError: an attack or a radius that there is not, that is named twice, or that a run cannot be judged by.
    """

    attacks: list[str] | str = field(default_factory=lambda: ["pgd", "segpgd", "cospgd"])
    """Attacks by name, such as pgd_20 (10 steps where the name has none), or a preset."""
    eps: list[float | str] | float | str = "8/255"
    """Radius of each, or several, as shares of the range."""
    batch_size: int = 8
    """Images that are attacked at once."""

    def __post_init__(self) -> None:
        check(self, "evaluation.", batch_size=AT_LEAST_1)
        if isinstance(self.attacks, str):
            check_choice("evaluation.attacks", self.attacks, PRESETS)
        else:
            self._check_names(self.attacks)
        if not self.radii or len(set(self.radii)) < len(self.radii):
            raise ValueError(f"evaluation.eps is {self.eps} but must name each radius once, at least one")
        for eps in self.radii:
            Epsilon.parse(eps, "evaluation.eps")

    def _check_names(self, names: list[str]) -> None:
        needs = {name: self._needs(name) for name in names}
        if len(needs) < len(names):
            raise ValueError(f"evaluation.attacks is {names} but must name each attack once")
        for lacking, reason in self._lacks().items():
            for name, of_attack in needs.items():
                if lacking in of_attack:
                    raise ValueError(f"evaluation.attacks has {name} but {reason}")

    def _needs(self, name: str) -> Sequence[Need]:
        """What an attack needs beside the budget; raises ValueError where there is none of this name."""
        return named_attack(name).needs

    def _lacks(self) -> Mapping[Need, str]:
        """What a run cannot give an attack, and why not."""
        return {"surrogates": "a run has no other models for it; leave it out"}

    @property
    def radii(self) -> list[float | str]:
        """All radii, as they were given."""
        return self.eps if isinstance(self.eps, list) else [self.eps]


def victim_file(run: Run) -> Path:
    """Where a run keeps its trained network."""
    return run.stage(SEGMENTER).folder / VICTIM


def trained_victim(
    context: StageContext[E],
    segmenter: Callable[[StageContext[E]], object],
    begun: Callable[[], tuple[Normalized, tuple[str, ...]]],
    epochs: int,
    *,
    unfinished: bool,
) -> tuple[Normalized, tuple[str, ...], int]:
    """The trained network of a run on the CPU, the names of its classes, and the epoch that it reached.

    Args:
        context: of the run, which does not train.
        segmenter: checks that the stage is finished.
        begun: the network as a training begins with it, for the weights of a checkpoint, and the names of its classes.
        epochs: of a finished training.
        unfinished: take the last checkpoint of a training that has not ended.

    Raises:
        ValueError: it is not trained to its end, and `unfinished` is False; or its file was changed since.
    """
    run = context.run
    if unfinished and not victim_file(run).is_file():
        victim, classes = begun()
        checkpoint = run.stage(SEGMENTER).checkpoint()
        load_into(victim.model, checkpoint.weights, f"{run.folder} at epoch {checkpoint.step}")
        return victim.eval(), classes, checkpoint.step
    segmenter(context)
    return *load_victim(victim_file(run)), epochs


def metric_of(one: AttackResult) -> str:
    """Begin of the names of an attack's metrics, such as clean, pgd_20_eps_8_255."""
    return one.attack if one.kind == "none" else f"{one.attack}_{slug(f'eps {one.eps}')}"


def attack_columns(results: Sequence[Result], kinds: Mapping[str, str]) -> list[Column]:
    """The columns of each attack that all of these results have, or of the strongest alone where those are too many.

    Args:
        results: whose settings have the titles of their attacks by name.
        kinds: titles of the metrics that are shown of each attack, by name.
    """
    titles: dict[str, str] = results[0].settings["titles"]
    first = next(iter(kinds))
    shared = [name for name in titles if all(f"{name}_{first}" in one.metrics for one in results)]
    if len(shared) * len(kinds) > MOST_COLUMNS:
        shared = [name for name in shared if name.startswith(WORST)]
    return [
        Column(f"{name}_{kind}", f"{titles[name]}, {about}", "%", 100, 1)
        for name in shared
        for kind, about in kinds.items()
    ]


def check_options(paper: str, options: EvaluateOptions) -> None:
    """Raises ValueError: options of `evaluate` that are of agents."""
    if options.policies or options.save_masks:
        given = "policies" if options.policies else "save_masks"
        raise ValueError(
            f"--{given} is of runs that have an agent, but paper {paper!r} trains segmenters; leave it out"
        )


def check_export(experiment: Experiment) -> NoReturn:
    """Raises ValueError: there is no agent to export."""
    raise ValueError(
        f"export_sb3 writes an agent, but paper {experiment.paper!r} trains a segmenter: its file is "
        f"{SEGMENTER}/{VICTIM} in the run's folder"
    )


def learner(experiment: Experiment, run: Run) -> NoReturn:
    """Raises ValueError: as `check_export`."""
    check_export(experiment)


def lines(experiment: Experiment, run: Run) -> list[dict[str, float]]:
    """The curves of the training; a step is an epoch."""
    return run.stage(SEGMENTER).metrics()
