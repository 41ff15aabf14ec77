"""Mask thresholds θ of a run's methods, chosen on its validation cases and kept beside it (docs/spars.md, Method 13).

RUN/evaluation/thresholds.json holds θ of each method, with the mean Dice on the validation cases that chose it.
`evaluate` chooses and writes them; `predict` takes what is there, and chooses itself what is not, where the validation
cases can be read.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ...common.files import file_digest, write_text
from ...common.manifests import NAME
from ...common.reading import read_json
from ...common.runs import Run, plain
from .config import SparsExperiment
from .methods import Cases, Methods
from .rollouts import Maps, choose_threshold
from .training import trained_baselines

log = logging.getLogger(__name__)
FILE = "evaluation/thresholds.json"
"""Below the run: in a folder into which others may write while it trains, see `resuming.FOR_READERS`."""


@dataclass(frozen=True)
class Threshold:
    """θ of one method."""

    value: float
    dice: float
    """Mean Dice over the validation cases with tumour, in [0, 1]."""

    @classmethod
    def of(cls, validation: Maps) -> "Threshold":
        """The θ with the highest mean Dice.

        Raises:
            ValueError: no case has a tumour.
        """
        theta = choose_threshold(validation)
        return cls(theta, float(validation.mean_dice([theta])))


def basis_of(experiment: SparsExperiment, run: Run) -> dict[str, Any]:
    """All that decides the thresholds of a run, as JSON; those of another basis are chosen anew."""
    protocol = experiment.evaluation
    made = {name: file_digest(run.stage(f"baselines/{name}").folder / NAME) for name in trained_baselines(experiment)}
    return {
        "seed": experiment.seed,
        "validation": plain(asdict(experiment.validation.of(experiment.env)) | {"cache_dir": None}),
        "rollouts": protocol.rollouts,
        "jitter_cells": protocol.jitter_cells,
        "deterministic": protocol.deterministic,
        "best": protocol.best,
        "trained_steps": run.checkpoint().step if experiment.ppo.total_timesteps else 0,
        **({"baselines": made} if made else {}),
    }


def kept(experiment: SparsExperiment, run: Run) -> dict[str, Threshold]:
    """The thresholds that are kept, by method; none where the file is missing, damaged or of another basis."""
    try:
        content = read_json(run.folder / FILE)
        if content["basis"] != basis_of(experiment, run):
            return {}
        return {
            name: Threshold(float(one["threshold"]), float(one["dice"])) for name, one in content["methods"].items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s cannot be understood (%r): choosing thresholds anew", run.folder / FILE, error)
        return {}


def keep(experiment: SparsExperiment, run: Run, chosen: dict[str, Threshold]) -> None:
    """Add thresholds to those that are kept; a folder that cannot be written is logged."""
    methods = {
        name: {"threshold": one.value, "dice": one.dice} for name, one in {**kept(experiment, run), **chosen}.items()
    }
    text = json.dumps({"basis": basis_of(experiment, run), "methods": methods}, indent=1)
    try:
        write_text(run.folder / FILE, text + "\n")
    except OSError as error:
        log.warning("%s cannot be written (%s): thresholds are not kept", run.folder / FILE, error)


def thresholds_of(methods: Methods, names: Iterable[str]) -> dict[str, Threshold]:
    """The kept thresholds of a run, those of `names` among them: what is missing is chosen, and kept.

    Raises:
        ValueError: one is missing and cannot be chosen, since the validation cases are out of reach or without tumour.
    """
    experiment, run = methods.experiment, methods.run
    known = kept(experiment, run)
    if missing := [name for name in dict.fromkeys(names) if name not in known]:
        cases = Cases(experiment, run, experiment.validation.of(experiment.env))
        try:
            log.info("choosing the mask threshold of %s on the run's validation cases", ", ".join(missing))
            known |= {name: Threshold.of(methods.maps(name, cases)) for name in missing}
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"{run.folder / FILE} has no mask threshold of {', '.join(missing)}, and none can be chosen ({error}); "
                f"run `evaluate` where the run's data are, or give --threshold"
            ) from error
        keep(experiment, run, known)
    return known
