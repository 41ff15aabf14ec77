"""A trained SPARS run on one's own CTs: masks and maps in the space of each file.

docs/spars.md, "Predict on your own images", says it for users.

A = painted map, B = score map, θ = mask threshold.
"""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.checks import AT_LEAST_0, check_choice, check_range
from ...common.files import file_digest
from ...common.runs import Run
from ...datasets.liver.cases import LiverCase, case_of
from ...datasets.liver.grid import BODY_HU
from ...datasets.readers import VOLUMES, ImageFiles, find_images, find_series, read_volume
from ...evaluation.volume_figures import PredictionView, save_prediction_figure
from ..predictor import POLICY, Predicted, PredictOptions
from .baselines import BASELINES
from .config import Postprocess, SparsExperiment
from .methods import Cases, Methods
from .rollouts import Maps, mask_of
from .rules import LABELS_OF_RULES
from .thresholds import ORIGIN, Threshold, mask_rule, thresholds_of
from .training import trained_steps

log = logging.getLogger(__name__)
ADVISED = "score_map_mean"
"""The method that segments where a run has no agent, and with which the agent is compared."""


@dataclass(frozen=True, eq=False)
class SparsPredictor:
    """One method of a run, with its threshold, for any CT."""

    methods: Methods
    method: str
    threshold: Threshold
    settings: dict[str, Any]
    notes: Sequence[str]

    @classmethod
    def of(cls, run: Run, experiment: SparsExperiment, options: PredictOptions) -> "SparsPredictor":
        """The method that `options` names: the trained policy, any reference policy, or a baseline.

        Raises:
            ValueError: a run that is not finished, a method that there is not, scores that are read from labels, no
                threshold, an option that does not belong to volumes.
        """
        experiment = experiment.resolved()
        if experiment.env.score_source == "oracle_fraction":
            raise ValueError(
                f"{str(run.folder)!r} reads its scores from labels (env.score_source 'oracle_fraction'), which a new "
                f"CT does not have; train a run with a classifier"
            )
        if options.spacing_mm is not None:
            raise ValueError("spacing_mm is for pictures without a spacing of their own; a CT's file says it")
        steps, methods = trained_steps(experiment, run), Methods(experiment, run)
        method = options.method or (POLICY if POLICY in methods.titles else ADVISED)
        if method in BASELINES and method not in methods.titles:
            wanted = f"[{','.join([*experiment.baselines, method])}]"
            raise ValueError(
                f"method {method!r} is no baseline of this run; add it: "
                f"train --resume {shlex.quote(str(run.folder))} --baselines {shlex.quote(wanted)}"
            )
        check_choice("method", method, methods.titles)
        if method in LABELS_OF_RULES or (method in BASELINES and BASELINES[method].of_labels):
            raise ValueError(f"method {method!r} reads the labels of the images, which new ones do not have")
        if options.threshold is None:
            known = thresholds_of(methods, (method, *([ADVISED] if method == POLICY else [])))
            threshold, origin = known[method], ORIGIN[mask_rule(experiment)]
            best = max(known, key=lambda name: known[name].dice)
            notes = [f"validation Dice of {method}: {100 * known[method].dice:.1f} %"]
            if known[best].dice > known[method].dice:
                notes.append(
                    f"recommended: --method {best}, whose masks of the validation cases are better "
                    f"({100 * known[best].dice:.1f} %)"
                )
        else:
            check_range("threshold", options.threshold, AT_LEAST_0)
            threshold, origin, notes = Threshold(float(np.float32(options.threshold)), 0.0), "given", []
        if experiment.env.data == "phantom":
            notes.append("this run was trained on phantoms: on a patient's CT its masks mean nothing")
        settings = {
            "run": str(run.folder.resolve()),
            "config": file_digest(run.folder / "config.yaml"),
            "method": method,
            "title": methods.titles[method],
            "threshold": threshold.value,
            "calibration": threshold.written()["calibration"],
            "presence": threshold.written()["presence"],
            "threshold_from": origin,
            "postprocess": experiment.evaluation.postprocess,
            "map": methods.titles[method] if method in BASELINES else "map of what was seen",
            "trained_steps": steps,
            "seed": experiment.seed,
        }
        return cls(methods, method, threshold, settings, notes)

    def find(self, inputs: Sequence[str | Path]) -> list[ImageFiles]:
        """The CTs that the inputs name: NIfTI, NRRD and MetaImage files, DICOM series."""
        return find_images(inputs, VOLUMES, find_series)

    def predict(self, files: ImageFiles, folder: Path) -> Predicted:
        """Mask and map of one CT, written into `folder`.

        Raises:
            ValueError, FileNotFoundError: as `read_volume`.
        """
        experiment, run = self.methods.experiment, self.methods.run
        sample, file = read_volume(files)
        if (lowest := float(sample.image.min())) > BODY_HU:
            log.warning("%s has no air (its lowest value is %g): is it a CT in HU?", files.path, lowest)
        case = case_of(sample, file, experiment.env)
        maps = self.methods.maps(self.method, Cases(experiment, run, experiment.env, [case]))
        title, postprocess = self.methods.titles[self.method], experiment.evaluation.postprocess
        return save_case(maps, 0, self.threshold, title, folder, postprocess)


def save_case(
    maps: Maps, number: int, threshold: Threshold, title: str, folder: Path, postprocess: Postprocess = "none"
) -> Predicted:
    """Write mask, map and picture of case `number` into `folder`: the files that `predict` and `evaluate` write.

    <id>_mask.nii.gz, uint8 0 or 1; <id>_score.nii.gz, float32, the map of which the mask is what exceeds θ, or of that
    what `postprocess` leaves; both in the space of the case's file. <id>_slices.png, three slices with both.
    """
    case: LiverCase = maps.env.cases[number]
    values = maps.values(number)
    theta = threshold.of_case(values)
    inside = mask_of(values, theta, postprocess)
    path = {
        "mask": folder / f"{case.id}_mask.nii.gz",
        "score": folder / f"{case.id}_score.nii.gz",
        "picture": folder / f"{case.id}_slices.png",
    }
    native = case.to_native(inside)
    case.save_mask(inside, path["mask"])
    case.save_map(values, path["score"])
    volume_ml = float(native.sum() * abs(np.linalg.det(case.frame.file.affine[:3, :3])) / 1000)
    view = PredictionView(
        case.id, case.image.numpy(), inside.numpy(), values.numpy(), theta, volume_ml, case.spacing_mm
    )
    save_prediction_figure(path["picture"], view, title=title)
    facts = {
        "threshold": theta,
        "volume_ml": volume_ml,
        "mask_voxels": int(native.sum()),
        "mean_score": float(values[inside].mean()) if inside.any() else None,
        "max_score": float(values.max()),
        "steps": maps.facts[number].get("steps"),
    }
    return Predicted(path, facts)


def save_masks(maps: Maps, threshold: Threshold, title: str, folder: Path, postprocess: Postprocess) -> None:
    """Write the files of `save_case` for every case."""
    for number in range(len(maps.env.cases)):
        save_case(maps, number, threshold, title, folder, postprocess)
