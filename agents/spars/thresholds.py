"""Mask thresholds θ of a run's methods, chosen on its validation cases and kept beside it (docs/spars.md, Method 13).

RUN/evaluation/thresholds.json holds θ of each method, or the calibration that gives each case its own θ, with the mean
Dice on the validation cases that chose it. `evaluate` chooses and writes them; `predict` takes what is there, and
chooses itself what is not, where the validation cases can be read.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...common.files import file_digest, write_text
from ...common.manifests import NAME
from ...common.reading import read_json
from ...common.runs import Run, plain
from ...segmenters.expected_dice import Calibration, Presence
from .config import MaskRule, SparsExperiment
from .methods import Cases, Methods
from .rollouts import NO_VALIDATION, Maps, choose_threshold
from .training import trained_baselines

log = logging.getLogger(__name__)
FILE = "evaluation/thresholds.json"
"""Below the run: in a folder into which others may write while it trains, see `resuming.FOR_READERS`."""
ORIGIN: dict[MaskRule, str] = {
    "threshold": "validation cases, highest mean Dice",
    "expected_dice": "each case's mask of the highest expected Dice, calibrated on the validation cases",
}
"""Where θ comes from, in words."""


@dataclass(frozen=True)
class Threshold:
    """What gives each case its θ, for one method."""

    rule: float | Calibration
    """θ of all cases; or what the values of a map say, and so the θ of each case's mask with the highest expected
    Dice."""
    dice: float
    """Mean Dice over the validation cases with tumour, in [0, 1]."""
    presence: Presence | None = None
    """Of a calibration: which cases get no mask; None: every case has one."""

    @classmethod
    def of(cls, validation: Maps, rule: MaskRule, *, may_be_empty: bool = False) -> "Threshold":
        """The θ with the highest mean Dice, or the calibration of the maps, which may say too when there is no mask.

        Raises:
            ValueError: no case has a tumour; or a mask may be empty, and all have.
        """
        if rule == "threshold":
            theta = choose_threshold(validation)
            return cls(theta, float(validation.mean_dice([theta])))
        numbers = range(len(validation.env.cases))
        counts = torch.stack([validation.counted(number) for number in numbers])
        ill = counts[:, 1].sum(dim=1) > 0
        if not ill.any():
            raise ValueError(NO_VALIDATION)
        calibration, presence = Calibration.fit(counts[ill].sum(dim=0)), None
        if may_be_empty:
            best = [calibration.best(validation.values(number))[1] for number in numbers]
            presence = Presence.fit(torch.tensor(best, dtype=torch.float64), ill.cpu())
        chosen = cls(calibration, 0.0, presence)
        return replace(chosen, dice=validation.dice_at(chosen.of_case))

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Threshold":
        """What `written` gave."""
        curve, presence = content.get("calibration"), content.get("presence")
        rule = Calibration(*map(float, curve)) if curve else float(content["threshold"])
        known = Presence(Calibration(*map(float, presence))) if presence else None
        return cls(rule, float(content["dice"]), known)

    def written(self) -> dict[str, Any]:
        """As JSON: threshold (null where each case has its own), calibration and presence (slope and offset), dice."""
        curve = None if isinstance(self.rule, float) else [self.rule.slope, self.rule.offset]
        presence = None if self.presence is None else [self.presence.curve.slope, self.presence.curve.offset]
        return {"threshold": self.value, "calibration": curve, "presence": presence, "dice": self.dice}

    @property
    def value(self) -> float | None:
        """θ where it is one for all cases."""
        return self.rule if isinstance(self.rule, float) else None

    def of_case(self, values: Tensor) -> float:
        """θ of a case with the map `values`, float32 [X, Y, Z]."""
        if isinstance(self.rule, float):
            return self.rule
        return self.presence.level(self.rule, values) if self.presence else self.rule.level(values)

    def __str__(self) -> str:
        return f"θ = {self.rule:.3g}" if isinstance(self.rule, float) else "highest expected Dice"


def mask_rule(experiment: SparsExperiment) -> MaskRule:
    """How masks are made of maps; `experiment` is resolved."""
    rule = experiment.evaluation.mask
    assert rule is not None
    return rule


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
        "mask": mask_rule(experiment),
        **({"may_be_empty": True} if protocol.may_be_empty else {}),
        "trained_steps": run.checkpoint().step if experiment.ppo.total_timesteps else 0,
        **({"baselines": made} if made else {}),
    }


def kept(experiment: SparsExperiment, run: Run) -> dict[str, Threshold]:
    """The thresholds that are kept, by method; none where the file is missing, damaged or of another basis."""
    try:
        content = read_json(run.folder / FILE)
        if content["basis"] != basis_of(experiment, run):
            return {}
        return {name: Threshold.read(one) for name, one in content["methods"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s cannot be understood (%r): choosing thresholds anew", run.folder / FILE, error)
        return {}


def keep(experiment: SparsExperiment, run: Run, chosen: dict[str, Threshold]) -> None:
    """Add thresholds to those that are kept; a folder that cannot be written is logged."""
    methods = {name: one.written() for name, one in {**kept(experiment, run), **chosen}.items()}
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
            rule = mask_rule(experiment)
            empty = experiment.evaluation.may_be_empty
            known |= {name: Threshold.of(methods.maps(name, cases), rule, may_be_empty=empty) for name in missing}
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"{run.folder / FILE} has no mask threshold of {', '.join(missing)}, and none can be chosen ({error}); "
                f"run `evaluate` where the run's data are, or give --threshold"
            ) from error
        keep(experiment, run, known)
    return known
