"""A trained classifier on one's own radiographs: probability, mask and picture of each (docs/apga.md, Method 19)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...classifiers.gradcam import SELECTED, gradcam
from ...classifiers.masked_images import enlarge, erased, fill_of, kept
from ...classifiers.xray import probabilities
from ...common.checks import check_choice
from ...common.files import file_digest
from ...common.runs import Run
from ...datasets.readers import ImageFiles, find_images
from ...datasets.xray.files import read_xray
from ...evaluation.attack_panels import save_picture
from ...evaluation.classification import predicted_classes
from ...evaluation.mask_panels import mask_panel
from ..predictor import POLICY, Predicted, PredictOptions
from .config import APGAExperiment
from .game import Players, look
from .training import Context, settings_of, trained
from .updates import threshold

GRADCAM = "gradcam"
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, eq=False)
class XrayPredictor:
    """The classifier of a run, with the masks of its agent or of GradCAM."""

    context: Context
    players: Players
    method: str
    settings: dict[str, Any]
    notes: Sequence[str]

    @classmethod
    def of(cls, run: Run, experiment: APGAExperiment, options: PredictOptions) -> "XrayPredictor":
        """The classifier of a finished run, with the masks that `options.method` names: policy, the agent's; gradcam.

        Raises:
            ValueError: a method that there is not, a run that is not finished, an option of other papers.
        """
        for name, value in (("threshold", options.threshold), ("spacing_mm", options.spacing_mm)):
            if value is not None:
                raise ValueError(f"{name} is not for runs of paper 'apga', whose masks are p > 0.5; leave it out")
        context, players = trained(experiment, run)
        methods = [GRADCAM] if players.agent is None else [POLICY, GRADCAM]
        method = options.method or methods[0]
        check_choice("method", method, methods)
        settings = {
            "run": str(run.folder.resolve()),
            "config": file_digest(run.folder / "config.yaml"),
            "method": method,
            "title": experiment.name,
            "classes": list(experiment.data.classes),
            "mask": "255 where selected",
            "training": dict(settings_of(experiment)),
            "seed": experiment.seed,
        }
        notes = []
        if experiment.data.data == "phantom" and experiment.data.csv is None:
            notes.append("this run was trained on phantoms: of a patient's radiograph it says nothing")
        return cls(context, players, method, settings, notes)

    def find(self, inputs: Sequence[str | Path]) -> list[ImageFiles]:
        """The radiographs that the inputs name: PNG and JPEG."""
        return find_images(inputs, SUFFIXES, _no_dicom)

    @torch.no_grad()
    def predict(self, files: ImageFiles, folder: Path) -> Predicted:
        """Write <id>_mask.png, the mask at the size of the image's file, and <id>_overlay.png into `folder`.

        Raises:
            ValueError, FileNotFoundError: as `read_xray`.
        """
        data, device = self.context.experiment.data, self.context.device
        x = read_xray(files.path, data.size, data.fit, data.interpolation)[None, None].to(device).float() / 255
        mask = self._mask(x)
        fill = fill_of(x, self.context.experiment.training.fill)
        keep = kept(x, mask, fill)
        plain, masked = (probabilities(self.players.classifier, part)[0] for part in (x, keep))
        folder.mkdir(parents=True, exist_ok=True)
        path = {"mask": folder / f"{files.id}_mask.png", "picture": folder / f"{files.id}_overlay.png"}
        save_picture(path["mask"], native(mask[0, 0], files.path, pad=data.fit == "pad"))
        save_picture(path["picture"], mask_panel(x, mask, erased(x, mask, fill), keep))
        chosen = int(predicted_classes(plain))
        facts = {
            "class": data.classes[chosen],
            "probability_masked": float(masked[chosen]),
            "mask_area": float(mask.mean()),
            **{f"probability_{name}": float(p) for name, p in zip(data.classes, plain, strict=True)},
        }
        return Predicted(path, facts)

    def _mask(self, x: Tensor) -> Tensor:
        if self.method == GRADCAM:
            return (gradcam(self.players.classifier, x) > SELECTED)[:, None].float()
        assert self.players.agent is not None
        return enlarge(threshold(look(self.players.agent, x)[0]), x.shape[-1])


def native(mask: Tensor, path: Path, *, pad: bool) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """A mask [S, S] at the size of the image's file, uint8 [H, W], 255 where selected.

    pad: the image was brought to S x S with black beside it, which is cut off.
    """
    with Image.open(path) as picture:
        width, height = picture.size
    pixels = (mask > 0.5).byte().cpu().numpy() * np.uint8(255)
    if pad:
        size, longer = len(pixels), max(width, height)
        wide, high = (max(1, round(size * side / longer)) for side in (width, height))
        left, top = (size - wide) // 2, (size - high) // 2
        pixels = pixels[top : top + high, left : left + wide]
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), dtype=np.uint8)


def _no_dicom(folder: Path, files: list[Path]) -> list[ImageFiles]:
    """Raises ValueError: radiographs are read from pictures."""
    raise ValueError(f"{files[0]} is DICOM, but radiographs are read from PNG and JPEG of 8 bits; convert it first")
