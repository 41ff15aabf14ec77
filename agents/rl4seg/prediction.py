"""A trained RL4Seg run on one's own echocardiograms: masks and doubt at their own size.

docs/rl4seg.md, "Predict on your own images", says it for users.

u = uncertainty, or doubt: how likely a pixel's label is wrong, in [0, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...common.checks import POSITIVE, check_choice, check_range
from ...common.files import file_digest
from ...common.runs import Run
from ...datasets.echo.images import LV, MYO, files_of, is_prepared, pool_of
from ...datasets.echo.planes import Plane, find_planes, read_plane
from ...datasets.echo.preparation import to_native
from ...datasets.images import ImagePool
from ...datasets.readers import ImageFiles
from ...evaluation.echo import largest_heart
from ...evaluation.echo_figures import EchoView, save_echo_figure, validity_text
from ...rewards.echo_validity import anatomical_metrics, broken_rules
from ..predictor import POLICY, Predicted, PredictOptions
from .baselines import BASELINES
from .config import RL4SegExperiment
from .context import Context
from .methods import MethodPrediction, Methods, Segment
from .rules import POLICIES
from .training import everything


@dataclass(frozen=True, eq=False)
class EchoPredictor:
    """One method of a run, for any echocardiogram."""

    context: Context
    segment: Segment
    spacing_mm: tuple[float, float] | None
    prepared: bool
    """Whether images with values up to 1 are taken as prepared: if those that the run adapted to are."""
    settings: dict[str, Any]
    notes: Sequence[str]

    @classmethod
    def of(cls, run: Run, experiment: RL4SegExperiment, options: PredictOptions) -> "EchoPredictor":
        """The method that `options` names: the trained policy, a reference policy without truth, or a baseline.

        Raises:
            ValueError: a method that there is not, or that reads the truth; a run that is not finished; an option that
                does not belong to echocardiograms.
        """
        if options.threshold is not None:
            raise ValueError("threshold is for SPARS's maps; RL4Seg's masks are the most probable labels")
        check_range("spacing_mm", options.spacing_mm, POSITIVE)
        context = Context(experiment.resolved(), run, trains=False)
        methods = Methods(context)
        method = options.method or (POLICY if POLICY in methods.titles else "source_only")
        if method in POLICIES and POLICIES[method].supervision != "none":
            raise ValueError(f"method {method!r} reads the truth of an image, which is not known of a new one")
        if method in BASELINES and method not in methods.titles:
            raise ValueError(f"method {method!r} is not trained in this run, which has {', '.join(methods.titles)}")
        check_choice("method", method, [name for name in methods.titles if name != "truth"])
        everything(context)
        settings = {
            "run": str(run.folder.resolve()),
            "config": file_digest(run.folder / "config.yaml"),
            "method": method,
            "title": methods.titles[method],
            "size": context.experiment.target.size,
            "post_processing": "largest 4-connected component of LV and MYO",
            "labels": {"background": 0, "lv": LV, "myo": MYO},
            "doubt": "float32 in NIfTI; in PNG 65535 is 1",
            "spacing_mm": None if options.spacing_mm is None else list(options.spacing_mm),
            "seed": experiment.seed,
        }
        notes = []
        if experiment.target.data == "phantom":
            notes.append("this run was trained on phantoms: on a patient's image its masks mean nothing")
        prepared = is_prepared(context.experiment.target)
        return cls(context, methods.load(method), options.spacing_mm, prepared, settings, notes)

    def find(self, inputs: Sequence[str | Path]) -> list[ImageFiles]:
        """The echocardiograms that the inputs name: NIfTI, .mhd, pictures, each frame of DICOM."""
        return find_planes(inputs)

    def predict(self, files: ImageFiles, folder: Path) -> Predicted:
        """Mask, doubt and picture of one image, written into `folder`.

        Raises:
            ValueError, FileNotFoundError: as `read_plane`.
        """
        plane = read_plane(files)
        plane = replace(
            plane, spacing_mm=plane.spacing_mm or self.spacing_mm, prepared=plane.prepared and self.prepared
        )
        images = pool_of(plane, self.context.experiment.target).to(self.context.device)
        return save_image(plane, self.segment(images)[-1], 0, folder)


def save_image(plane: Plane, prediction: MethodPrediction, number: int, folder: Path) -> Predicted:
    """Write mask, doubt and picture of image `number` into `folder`: the files that `predict` and `evaluate` write.

    <id>_mask, labels 0, 1, 2; <id>_doubt, where the method knows how sure it is; both .nii.gz in the space of a NIfTI
    or .mhd image, .png for others. <id>_overlay.png, both over the image.
    """
    heart = largest_heart(prediction.masks[number : number + 1])[0].cpu().numpy()
    native = to_native(heart, plane.pixels.shape)
    path = {"mask": plane.save(native, folder, f"{plane.id}_mask")}
    doubt = _native_doubt(prediction.uncertainty, number, plane)
    if doubt is not None:
        path["doubt"] = plane.save(doubt, folder, f"{plane.id}_doubt")
    metrics = anatomical_metrics(heart)
    broken = broken_rules(metrics)
    pixel_mm2 = math.prod(plane.spacing_mm) if plane.spacing_mm else None
    path["picture"] = folder / f"{plane.id}_overlay.png"
    view = EchoView(
        plane.id,
        np.rint(plane.pixels * 255).astype(np.uint8),
        None,
        native,
        doubt,
        plane.spacing_mm or (1.0, 1.0),
        note=validity_text(broken),
        spacing_known=plane.spacing_mm is not None,
    )
    save_echo_figure(path["picture"], [view], title=prediction.method, heat_name="doubt")
    areas = {
        f"{name}_mm2": None if pixel_mm2 is None else float((native == label).sum() * pixel_mm2)
        for name, label in (("lv", LV), ("myo", MYO))
    }
    facts = {
        "valid": not broken,
        "broken_rules": broken,
        "rules": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        **areas,
        "spacing_mm": None if plane.spacing_mm is None else list(plane.spacing_mm),
        "mean_doubt": None if doubt is None or not native.any() else float(doubt[native > 0].mean()),
    }
    return Predicted(path, facts)


def _native_doubt(uncertainty: Tensor | None, number: int, plane: Plane) -> Any:
    """u of an image at its own size, float32 [Y, X] in [0, 1]; None where the method has none."""
    if uncertainty is None:
        return None
    return to_native(uncertainty[number].clamp(0, 1).float().cpu().numpy(), plane.pixels.shape)


def save_masks(context: Context, images: ImagePool, prediction: MethodPrediction, folder: Path) -> None:
    """Write the files of `save_image` for every image of a pool; phantoms, which have no file, at their own size."""
    files = files_of(context.experiment.target)
    for number, image_id in enumerate(images.ids):
        if image_id in files:
            plane = read_plane(ImageFiles(image_id, files[image_id]))
            plane = replace(plane, spacing_mm=plane.spacing_mm or context.experiment.target.spacing_mm)
        else:
            y, x = images.spacing_mm[number].tolist()
            plane = Plane(
                image_id,
                images.at(torch.tensor([number], device=images.images.device))[0, 0].cpu().numpy(),
                (y, x),
                True,
                None,
            )
        save_image(plane, prediction, number, folder)
