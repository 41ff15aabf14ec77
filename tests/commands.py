"""Commands in a folder of their own: the tiny experiment, how they are called, and volumes on the disk."""

import json
import re

import nibabel as nib
import numpy as np
from segarena.agents.command_line import main

TINY = {
    "paper": "spars",
    "name": "Tiny",
    "device": "cpu",
    "env": {"score_source": "oracle_fraction", "cases": ["phantom_02000"], "grid_shape": [32, 32, 24]},
    "validation": {"cases": ["phantom_01000"]},
    "test": {"cases": ["phantom_03000", "phantom_03001"]},
    "policy": "flatten_mlp",
    "ppo": {"total_timesteps": 128, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1},
    "evaluation": {"rollouts": 2, "pictures": 1},
}
CT = {"env.cases": "[liver_0]", "validation.cases": "[liver_0]", "test.cases": "[liver_1,liver_2,liver_3]"}


def call(*arguments):
    """Exit status of a command."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code


def train(*arguments):
    return call("train", "--config", "config.yaml", *arguments)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(status, capsys, *said):
    """Exit status 2, a message that says it all and no traceback, nothing written."""
    out, message = capsys.readouterr()
    assert status == 2, out + message
    for part in said:
        assert part in re.sub(r"\s+", " ", message)
    assert "Traceback" not in message


def liver_ct(number, shape=(20, 18, 16)):
    """A CT in HU, and its label: a liver with a tumour in it."""
    ct = np.random.default_rng(number).normal(60, 20, shape).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label[3:17, 3:15, 3:13] = 1
    label[6:11, 6:11, 5 + number : 9 + number] = 2
    ct[label == 2] -= 60
    return ct, label


def decathlon(folder, cases=4):
    """A folder in the layout of the Decathlon's liver task; its ids are liver_0, liver_1, ..."""
    entries = []
    for number in range(cases):
        for kind, data in zip(("imagesTr", "labelsTr"), liver_ct(number), strict=True):
            save(folder / kind / f"liver_{number}.nii.gz", data)
        entries.append({kind[:5]: f"./{kind}/liver_{number}.nii.gz" for kind in ("imagesTr", "labelsTr")})
    (folder / "dataset.json").write_text(json.dumps({"training": entries, "test": []}))
    return folder


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([1.5, 1.5, 2.0, 1.0])), path)


def on_ct(folder):
    """Options that train TINY on a folder."""
    options = {"env.data": folder, "env.grid_shape": "[20,18,16]", "env.window_size": "[8,8,8]", **CT}
    return [part for name, value in options.items() for part in (f"--{name}", value)]


LEARNED = ["--env.score_source", "classifier", "--env.classifier", "train"]
