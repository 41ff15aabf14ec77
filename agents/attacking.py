"""A victim under attack on a user's own pictures (docs/rp-pgd.md, Method 29). Of each image ID a folder receives

ID_attacked.png           the perturbed image, 8 bits without loss, within the ball
ID_clean_mask.png         class numbers that the victim gives the image, in colours
ID_attacked_mask.png      and the perturbed one
ID_attacked_overlay.png   image, perturbation (stretched), perturbed image, labels where they are given, predictions

and attack.json, attack.csv with the damage of each, from which an interrupted call goes on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor

from ..attacks.budget import GREY_LEVELS, Epsilon
from ..attacks.named import NamedAttack, named_attack
from ..attacks.victim import Normalized, frozen
from ..attacks.victims import FEATURE_LAYERS, NETWORKS, PACKAGED, feature_layer_of, load_victim
from ..common.finite import known
from ..common.overlap import class_counts
from ..common.runs import Run
from ..datasets.folders import suffix_of
from ..datasets.images import IGNORED
from ..datasets.pictures import read_picture
from ..datasets.readers import ImageFiles, find_images
from ..datasets.scenes.files import class_table, read_labels
from ..evaluation.attack_panels import attack_panel, image_bytes, save_classes, save_picture
from ..evaluation.robustness_metrics import Counts, image_miou
from ..evaluation.robustness_run import digest, logits_of
from .configuration import read_experiment
from .prediction import Table
from .predictor import Predicted

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {1: "L", 3: "RGB"}
"""Pillow's name of pictures of so many channels."""
TABLE = Table("attack", "images", ("attacked", "clean_mask", "attacked_mask"), ("attack", "eps"))
ROUNDING = 1e-3
"""Part of a grey level by which float32 may fall short of a whole one."""


def open_victim(model: str) -> tuple[Normalized, tuple[str, ...]]:
    """The victim that is named, in evaluation mode on the CPU, and the names of its classes.

    model: the folder of a finished run, a file of `save_victim`, or a packaged victim, "scenes" or "liver".

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a run that is not finished or has no victim, or a file that is none.
    """
    if model in PACKAGED:
        return load_victim(PACKAGED[model])
    if not Path(model).exists():
        raise FileNotFoundError(
            f"model is {model!r}, which does not exist; name the folder of a run, a victim's file, or one of "
            f"{', '.join(PACKAGED)}"
        )
    if not Path(model).is_dir():
        return load_victim(model)
    run = Run.open(model)
    paper, experiment = read_experiment(run)
    return paper.victim(run, experiment)


@dataclass(frozen=True)
class Attacker:
    """An attack on one victim with all that it needs, loaded once, for any picture (a `Predictor`)."""

    victim: Normalized
    """On its device."""
    classes: tuple[str, ...]
    attack: NamedAttack
    eps: Epsilon
    labels: Path | None
    """Folder of labels, ID.png; None: the victim's own predictions are what the attack turns wrong."""
    seed: int
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        model: str,
        attack: str = "pgd_20",
        eps: float | str = "8/255",
        *,
        labels: str | Path | None = None,
        device: torch.device,
        seed: int = 0,
    ) -> "Attacker":
        """The attack of this name on the victim that `open_victim` finds.

        Raises:
            FileNotFoundError: a victim or a folder of labels that is not there.
            ValueError: as `open_victim`; an attack that there is not or that needs other models; an eps outside (0, 1];
                a victim of volumes, or of other pictures than grey or RGB ones.
        """
        chosen, budget = named_attack(attack), Epsilon.parse(eps)
        if "surrogates" in chosen.needs:
            raise ValueError(f"attack is {attack!r}, which needs other models; robustness_report takes them in Python")
        if labels is not None and not Path(labels).is_dir():
            raise FileNotFoundError(f"labels is {str(labels)!r}, which is no folder; it holds a PNG for each image")
        victim, classes = open_victim(model)
        if isinstance(victim.model, tuple(of for name, of in NETWORKS.items() if name not in FEATURE_LAYERS)):
            raise ValueError(f"model {model!r} segments volumes, no pictures; robustness_report attacks it in Python")
        if len(victim.mean) not in MODES:
            raise ValueError(f"model {model!r} wants {len(victim.mean)} channels but a picture has 1 or 3")
        settings = {
            "model": model if model in PACKAGED else str(Path(model).resolve()),
            "weights": digest(victim.state_dict().values()),
            "classes": list(classes),
            "attack": chosen.name,
            "title": chosen.title,
            "eps": (chosen.eps or budget).given,
            "labels": None if labels is None else str(Path(labels).resolve()),
            "seed": seed,
        }
        folder = None if labels is None else Path(labels)
        return cls(victim.to(device), classes, chosen, chosen.eps or budget, folder, seed, settings)

    def find(self, inputs: Sequence[str | Path]) -> list[ImageFiles]:
        """The PNG and JPEG that the inputs name, each with where its labels must be."""
        images = find_images(inputs, SUFFIXES, _no_dicom)
        if self.labels is None:
            return images
        stems = [one.path.name[: -len(suffix_of(one.path, SUFFIXES))] for one in images]
        return [replace(one, label=self.labels / f"{stem}.png") for one, stem in zip(images, stems, strict=True)]

    def predict(self, files: ImageFiles, folder: Path) -> Predicted:
        """Attack one image, and write what comes of it into `folder`.

        Raises:
            FileNotFoundError, ValueError: an image or labels that cannot be read, do not belong together, or that the
                victim or the attack refuses.
        """
        pixels, given = self._read(files)
        device = self.victim.mean.device
        clean = (pixels.float() / GREY_LEVELS)[None].to(device)
        with frozen(self.victim):
            before = logits_of(self.victim, clean).argmax(dim=1)
            labels = before.to(torch.uint8) if given is None else given[None].to(device)
            adversarial = self.attack(
                self.victim,
                clean,
                labels,
                eps=self.eps,
                ignore_index=IGNORED,
                generator=torch.Generator().manual_seed(self.seed),
                feature_layer=feature_layer_of(self.victim) if "feature_layer" in self.attack.needs else None,
                class_counts=torch.bincount(labels[labels != IGNORED].long(), minlength=len(self.classes)).cpu(),
            )
            stored = rounded(pixels, adversarial[0].cpu(), self.eps)
            shown = (stored.float() / GREY_LEVELS)[None].to(device)
            after = logits_of(self.victim, shown).argmax(dim=1)
        paths = {
            "attacked": folder / f"{files.id}_attacked.png",
            "clean_mask": folder / f"{files.id}_clean_mask.png",
            "attacked_mask": folder / f"{files.id}_attacked_mask.png",
            "picture": folder / f"{files.id}_attacked_overlay.png",
        }
        save_picture(paths["attacked"], image_bytes(stored))
        for kind, found in (("clean_mask", before), ("attacked_mask", after)):
            save_classes(paths[kind], found[0].to(torch.uint8), len(self.classes))
        maps = [before, after] if given is None else [labels, before, after]
        save_picture(paths["picture"], attack_panel(clean, shown, maps, len(self.classes)))
        return Predicted(paths, self._facts(pixels, stored, labels, before, after))

    def _facts(self, pixels: Tensor, stored: Tensor, labels: Tensor, before: Tensor, after: Tensor) -> dict[str, Any]:
        """What the attack did to one image: shares in 0..1, and the largest change in grey levels."""
        counts = [
            Counts(*(part.cpu().numpy() for part in class_counts(found, labels, len(self.classes), IGNORED)))
            for found in (before, after)
        ]
        (clean, attacked), (right, still) = (
            [known(float(of(one)[0])) for one in counts] for of in (image_miou, lambda one: one.accuracy)
        )
        return {
            "miou_clean": clean,
            "miou_attacked": attacked,
            "damage": None if clean is None or attacked is None else clean - attacked,
            "accuracy_clean": right,
            "accuracy_attacked": still,
            "changed_pixels": float((before != after).float().mean()),
            "grey_levels": int((stored.int() - pixels.int()).abs().max()),
        }

    def _read(self, files: ImageFiles) -> tuple[Tensor, Tensor | None]:
        """Pixels uint8 [C, H, W], and labels uint8 [H, W] where they are given."""
        channels = len(self.victim.mean)

        def converted(picture: Image.Image) -> Image.Image:
            if picture.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a channel")
            return picture.convert(MODES[channels])

        found = read_picture(files.path, ("JPEG", "PNG"), converted)
        pixels = torch.from_numpy(found.reshape(*found.shape[:2], channels).transpose(2, 0, 1).copy())
        if files.label is None:
            return pixels, None
        if not files.label.is_file():
            raise FileNotFoundError(f"{files.path} has no labels: there is no {files.label}; add it, or leave it out")
        return pixels, read_labels(
            files.label, class_table(len(self.classes)), files.path, (pixels.shape[1], pixels.shape[2])
        )


def rounded(pixels: Tensor, adversarial: Tensor, eps: Epsilon) -> Tensor:
    """A perturbed image in 8 bits, uint8 [C, H, W]: each value rounded towards the clean one, so that none leaves the
    ball (docs/rp-pgd.md, Method 29).

    Args:
        pixels: the clean image, uint8 [C, H, W].
        adversarial: the perturbed one, [C, H, W] in [0, 1], in its ball.
        eps: radius.

    >>> import torch
    >>> clean = torch.tensor([[[100, 100, 100, 2]]], dtype=torch.uint8)
    >>> changed = torch.tensor([[[107.65, 92.35, 100.9, 0.0]]]) / 255
    >>> rounded(clean, changed, Epsilon.parse(0.03)).tolist()
    [[[107, 93, 100, 0]]]
    """
    most = math.floor(eps.grey_levels + ROUNDING)
    change = GREY_LEVELS * adversarial.double() - pixels
    levels = ((change.abs() + ROUNDING).floor().clamp(max=most) * change.sign()).to(torch.int64)
    return (pixels + levels).clamp(0, GREY_LEVELS).to(torch.uint8)


def _no_dicom(folder: Path, files: list[Path]) -> NoReturn:
    raise ValueError(f"{files[0]} is DICOM, but attack takes PNG and JPEG; convert it first")
