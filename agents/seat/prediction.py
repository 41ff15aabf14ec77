"""A trained segmenter on one's own volumes: class numbers in the space of each file (docs/seat.md, "Predict on your own
volumes")."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from ...common.checks import check_choice
from ...common.device import bfloat16_on_cuda
from ...common.files import file_digest
from ...common.names import slug
from ...common.runs import Run
from ...datasets.decathlon.cases import constants_of
from ...datasets.decathlon.fingerprint import Fingerprint
from ...datasets.decathlon.preparation import prepare, restored
from ...datasets.nifti import NIFTI, Frame, read_channels, write_volume
from ...datasets.readers import VOLUMES, ImageFiles, find_images, find_series, read_volume
from ...datasets.sample import Sample
from ...evaluation.attack_panels import save_picture, slice_panel
from ...segmenters.volume_windows import VolumeWindows
from ..context import StageContext
from ..predictor import Predicted, PredictOptions
from ..robust_segmenters import SEGMENTER
from .config import SEATExperiment
from .evaluation import trained_victim
from .training import CONSTANTS

METHOD = "segmenter"
"""What predicts: a run has no other method."""


@dataclass(frozen=True, eq=False)
class SEATPredictor:
    """The trained network of a run behind windows, for any volume of its task."""

    experiment: SEATExperiment
    net: VolumeWindows
    classes: tuple[str, ...]
    constants: Fingerprint
    settings: dict[str, Any]
    notes: Sequence[str]

    @classmethod
    def of(cls, run: Run, experiment: SEATExperiment, options: PredictOptions) -> "SEATPredictor":
        """The network of the run.

        Raises:
            ValueError: a run that is not finished, a method that there is not, an option of another paper.
            FileNotFoundError: data.stats is corrected, and the file of what was measured is gone.
        """
        experiment = experiment.resolved()
        if options.method is not None:
            check_choice("method", options.method, (METHOD,))
        if options.threshold is not None:
            raise ValueError("threshold is of SPARS's maps; here each voxel has its likeliest class; leave it out")
        if options.spacing_mm is not None:
            raise ValueError("spacing_mm is for pictures without a spacing of their own; a volume's file says it")
        victim, classes, _ = trained_victim(run, experiment)
        victim.to(StageContext(experiment, run, trains=False).device)
        data, windows = experiment.data, experiment.evaluation.windows
        phantoms = "this run was trained on phantoms: on a patient's volume its masks mean nothing"
        settings = {
            "run": str(run.folder.resolve()),
            "config": file_digest(run.folder / "config.yaml"),
            "method": METHOD,
            "title": experiment.name,
            "task": data.resolved_task.name,
            "classes": list(classes),
            "windows": windows,
            "seed": experiment.seed,
        }
        net = VolumeWindows(victim, data.resolved_plan().val_size, windows)
        measured = data.stats == "corrected"
        constants = Fingerprint.load(run.stage(SEGMENTER).folder / CONSTANTS) if measured else constants_of(data)
        return cls(experiment, net, classes, constants, settings, [phantoms] if data.phantom else [])

    def find(self, inputs: Sequence[str | Path]) -> list[ImageFiles]:
        """The volumes that the inputs name: NIfTI; of a CT task NRRD, MetaImage and DICOM series too."""
        if self.experiment.data.resolved_task.ct:
            return find_images(inputs, VOLUMES, find_series)
        return find_images(inputs, NIFTI, _no_dicom)

    @torch.no_grad()
    def predict(self, files: ImageFiles, folder: Path) -> Predicted:
        """Class numbers of one volume, written into `folder` with a picture.

        Raises:
            ValueError, FileNotFoundError: a file that cannot be read, is of another number of channels, or cannot be
                prepared.
        """
        task = self.experiment.data.resolved_task
        sample, frame = self._read(files)
        prepared = prepare(sample, self.constants, ct=task.ct)
        image = prepared.image[None].to(next(self.net.parameters()).device)
        with bfloat16_on_cuda(image.device):
            scores = self.net(image).softmax(dim=1)[0]
        found = restored(scores, prepared, frame).cpu().numpy()
        paths = {"mask": folder / f"{files.id}_mask.nii.gz", "picture": folder / f"{files.id}_slices.png"}
        write_volume(frame.from_ras(found), frame, paths["mask"])
        save_picture(paths["picture"], slice_panel(image, scores.argmax(dim=0)[None], len(self.classes)))
        voxels = np.bincount(found.ravel(), minlength=len(self.classes))
        ml = math.prod(frame.ras_spacing_mm) / 1000
        volumes = {f"{slug(name)}_ml": n * ml for name, n in zip(self.classes[1:], voxels[1:].tolist(), strict=True)}
        return Predicted(paths, {**volumes, "mask_voxels": int(voxels[1:].sum())})

    def _read(self, files: ImageFiles) -> tuple[Sample, Frame]:
        """A volume in RAS+ order, [C, X, Y, Z], and the frame of its file."""
        task = self.experiment.data.resolved_task
        if task.ct:
            return read_volume(files)
        image, frame = read_channels(files.path, len(task.channels))
        return Sample(files.id, torch.from_numpy(image), None, frame.ras_spacing_mm, frame.ras_affine), frame


def _no_dicom(folder: Path, files: list[Path]) -> NoReturn:
    raise ValueError(f"{files[0]} is DICOM, but of an MR NIfTI is needed; convert it first (dcm2niix)")
