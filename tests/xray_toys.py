"""A small MURA and a small table of hips on disk, of pictures of a few pixels."""

import numpy as np
from PIL import Image

FEW = {("train", 0): 4, ("train", 1): 5, ("valid", 0): 2, ("valid", 1): 2}
"""Studies of each split and class; the first study of each has two images, the others one."""


def picture(number, height=12, width=9, channels=1):
    """Grey values of a radiograph, uint8 [height, width], or [height, width, channels], the first channel the same."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, channels), dtype=np.uint8)
    pixels[..., 0] = np.random.default_rng(1000 + number).integers(0, 256, (height, width), dtype=np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def fake_mura(folder, parts=("XR_ELBOW",), numbers=None):
    """MURA-v1.1 below `folder`, each study of a patient of its own; every third picture has colours."""
    root, patient = folder / "MURA-v1.1", 0
    for split in ("train", "valid"):
        images, studies = [], []
        for part in parts:
            for label, word in enumerate(("negative", "positive")):
                for number in range((numbers or FEW)[split, label]):
                    patient += 1
                    study = f"MURA-v1.1/{split}/{part}/patient{patient:05d}/study1_{word}"
                    studies.append(f"{study}/,{label}")
                    (folder / study).mkdir(parents=True)
                    for k in range(1 if number else 2):
                        path = f"{study}/image{k + 1}.png"
                        Image.fromarray(picture(10 * patient + k, channels=1 if patient % 3 else 3)).save(folder / path)
                        images.append(path)
        (root / f"{split}_image_paths.csv").write_text("\n".join(images) + "\n", encoding="utf-8")
        (root / f"{split}_labeled_studies.csv").write_text("\n".join(studies) + "\n", encoding="utf-8")
    return root


def fake_hips(folder, copies=2):
    """A table labels.csv in `folder` with `copies` patients of each of the six classes in each split."""
    lines = ["path,label,group,split"]
    for split in ("train", "val", "test"):
        for label in range(6):
            for copy in range(copies):
                name = f"{split}_{label}_{copy}"
                Image.fromarray(picture(len(lines))).save(folder / f"{name}.png")
                lines.append(f"{name}.png,{label},patient_{name},{split}")
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def replace_line(path, number, text):
    """Put `text` in the place of a line, counted from 1; None takes it away."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number - 1 : number] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
