"""Parts of valid inputs, which the groups spoil: configurations, volumes, files, folders."""

import copy
import json
import os
import pickle
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

SHAPE = (20, 18, 12)
MARK = "CODE_OF_THE_INPUT_RAN"
"""File that an input leaves behind if code that came with it is run."""

SPARS = {
    "paper": "spars",
    "device": "cpu",
    "env": {
        "cases": ["liver_0"],
        "grid_shape": [16, 16, 12],
        "window_size": [8, 8, 4],
        "score_source": "oracle_fraction",
        "obs_mode": "own_window",
        "horizon": 4,
        "threshold": 0.9,
    },
    "validation": {"cases": ["liver_0"]},
    "test": {"cases": ["liver_0"]},
    "policy": "flatten_mlp",
    "ppo": {"total_timesteps": 8, "num_envs": 2, "n_steps": 4, "batch_size": 8, "n_epochs": 1},
    "examine_every": 0,
    "evaluation": {"rollouts": 1, "pictures": 1},
}
PHANTOM = {
    "paper": "spars",
    "device": "cpu",
    "env": {
        "cases": ["phantom_02000"],
        "grid_shape": [32, 32, 24],
        "horizon": 4,
        "obs_mode": "own_window",
        "score_source": "oracle_fraction",
        "threshold": 0.9,
    },
    "validation": {"cases": ["phantom_01000"]},
    "test": {"cases": ["phantom_03000"]},
    "policy": "flatten_mlp",
    "ppo": {"total_timesteps": 16, "num_envs": 2, "n_steps": 4, "batch_size": 8, "n_epochs": 1},
    "checkpoint_every": 8,
    "examine_every": 0,
    "evaluation": {"rollouts": 1, "pictures": 1},
}
ECHO = {
    "paper": "rl4seg",
    "device": "cpu",
    "iterations": 0,
    "source": {"size": 32, "clahe": False, "patients": {"train": ["patient0001"], "val": ["patient0002"]}},
    "target": {"size": 32},
    "network": {"init_channels": 2},
    "supervised": {"epochs": 1, "batch_size": 4},
    "evaluation": {"pictures": 1},
}


def volume(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.normal(40, 60, SHAPE).astype(np.float32)
    label = np.zeros(SHAPE, np.uint8)
    label[4:16, 4:14, 2:10] = 1
    label[8:12, 7:11, 4:8] = 2
    return image, label


def nifti_bytes(array: np.ndarray, affine: np.ndarray | None = None, kind: type = nib.Nifti1Image) -> bytes:
    """A NIfTI file; an affine that nibabel refuses to write is put into its header by hand."""
    data = kind(array, np.diag([1.5, 1.5, 2.0, 1.0])).to_bytes()
    if affine is None:
        return data
    data = data[:252] + struct.pack("<2h", 0, 1) + data[256:]  # qform_code, sform_code
    return data[:280] + np.asarray(affine, "<f4")[:3].tobytes() + data[328:]


def merged(config: dict, changes: dict) -> dict:
    config = copy.deepcopy(config)
    for name, value in changes.items():
        *path, last = name.split(".")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return config


def write_config(folder: Path, config: dict, name: str = "config.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(config))
    return folder / name


def train(folder: Path, config: dict) -> list[str]:
    return ["train", "--config", str(write_config(folder, config)), "--out", str(folder / "out")]


def decathlon(
    folder: Path,
    image: bytes | None = None,
    label: bytes | None = None,
    *,
    suffix: str = ".nii",
    listing: bytes | None = None,
    changes: dict | None = None,
) -> list[str]:
    """A Decathlon folder of one case; returns the command that trains on it."""
    data = folder / "data"
    data.mkdir()
    own_image, own_label = volume()
    (data / f"liver_0{suffix}").write_bytes(nifti_bytes(own_image) if image is None else image)
    (data / f"label_0{suffix}").write_bytes(nifti_bytes(own_label) if label is None else label)
    if listing is None:
        listing = json.dumps({"training": [{"image": f"liver_0{suffix}", "label": f"label_0{suffix}"}]}).encode()
    (data / "dataset.json").write_bytes(listing)
    return train(folder, merged(SPARS, {"env.data": str(data), **(changes or {})}))


class _Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def malicious() -> bytes:
    """A pickle that leaves a mark where it is loaded."""
    return pickle.dumps(_Malicious(f"touch {MARK}"))
