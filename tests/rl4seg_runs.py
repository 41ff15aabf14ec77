"""RL4Seg's runs for tests, from the command line, on phantoms of 32 pixels.

TINY is trained once, with all that it is compared with, and its source network is good enough to draw valid hearts.
QUICK is trained often; where it is, every mask counts as valid and as its own correction (`count_all`).
"""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import segarena
import torch
import yaml
from safetensors.torch import load_file
from segarena.agents.command_line import main
from segarena.agents.configuration import read_experiment
from segarena.agents.rl4seg import stages as rl4seg_stages
from segarena.agents.rl4seg.context import Context
from segarena.common.runs import Run
from segarena.datasets.echo.phantom import echo_phantom
from segarena.rewards.corrector import Corrector

TINY = {
    "paper": "rl4seg",
    "name": "Tiny",
    "seed": 3,
    "device": "cpu",
    "source": {"size": 32, "phantom_patients": {"train": 6, "val": 2, "test": 0, "pred": 0}},
    "target": {"vendor": "b", "size": 32, "phantom_patients": {"train": 2, "val": 1, "test": 2, "pred": 5}},
    "network": {"init_channels": 8},
    "supervised": {"epochs": 30, "batch_size": 8, "learning_rate": 0.005},
    "shape_prior": {"epochs": 10, "init_channels": 4, "batch_size": 8, "learning_rate": 0.005, "attribute_weight": 1.0},
    "iterations": 2,
    "initial_images": 4,
    "new_images": 12,
    "reward_data": {"sim_threshold": 0.2},
    "reward_net": {"epochs": 2},
    "ppo": {"epochs": 2, "learner": {"n_epochs": 2}},
    "baselines": [
        "entropy", "gold_self_training", "corrected_self_training", "tist", "udas", "policy_gradient", "oracle_rl",
        "target_supervised", "ensemble", "mc_dropout",
    ],
    "entropy": {"epochs": 1},
    "tist": {"epochs": 2},
    "udas": {"head_epochs": 1, "epochs": 1},
    "evaluation": {"mc_passes": 2, "tta_passes": 2, "ensemble": 2, "pictures": 1},
}  # fmt: skip


QUICK = {
    "paper": "rl4seg",
    "name": "Quick",
    "device": "cpu",
    "source": {"size": 32, "phantom_patients": {"train": 2, "val": 1, "test": 0, "pred": 0}},
    "target": {"vendor": "b", "size": 32, "phantom_patients": {"train": 1, "val": 1, "test": 1, "pred": 3}},
    "network": {"init_channels": 2},
    "supervised": {"epochs": 2, "batch_size": 4},
    "shape_prior": {"epochs": 2, "init_channels": 1, "latent": 8},
    "iterations": 2,
    "initial_images": 2,
    "new_images": 7,
    "reward_net": {"epochs": 2},
    "ppo": {"epochs": 2, "batch": {"c0": 4}, "learner": {"n_epochs": 2}},
    "entropy": {"epochs": 1},
    "tist": {"epochs": 2},
    "udas": {"head_epochs": 1, "epochs": 1},
    "evaluation": {"pictures": 1},
}
LOOP = ["supervised", "shape_prior", "adabn"]
LOOP += [f"iteration_{i}/{part}" for i in (1, 2) for part in ("reward_data", "reward_net", "ppo")]
CONFIGS = Path(segarena.__file__).parent / "configs" / "rl4seg"


def call(*arguments):
    """Exit status of a command."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code


def merged(config, changes):
    """A nested configuration with some values changed: {"ppo.epochs": 0}."""
    config = json.loads(json.dumps(config))
    for name, value in changes.items():
        *path, last = name.split(".")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return config


def train(folder, config, *arguments, **changes):
    """Exit status of training folder / "run"; changes of the configuration: ppo__epochs=0."""
    folder.mkdir(parents=True, exist_ok=True)
    config = merged(config, {name.replace("__", "."): value for name, value in changes.items()})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return call("train", "--config", folder / "config.yaml", "--out", folder / "run", *arguments)


def trained(folder, config, *arguments, **changes):
    """The run, trained."""
    assert train(folder, config, *arguments, **changes) == 0
    return folder / "run"


def stages_of(run):
    """Every finished stage."""
    manifests = [path.parent for path in run.rglob("manifest.json") if path.parent.parent.name != "checkpoints"]
    return sorted(str(path.relative_to(run)) for path in manifests)


def made(run):
    """Products of the stages: the configuration in each manifest, and the bits of every tensor in each file."""
    found = {}
    for name in stages_of(run):
        manifest = json.loads((run / name / "manifest.json").read_text())
        tensors = {file: load_file(run / name / file) for file in manifest["sha256"]}
        bits = {
            file: {key: (str(x.dtype), x.shape, x.numpy().tobytes()) for key, x in t.items()}
            for file, t in tensors.items()
        }
        found[name] = (manifest["config"], bits)
    return found


def assert_same(run, expected):
    """Both runs made and logged the same; names the first stage that differs."""
    one, other = made(run), made(expected)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name
    one, other = logged(run), logged(expected)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name


def logged(run):
    """The lines of every metrics.jsonl but for the clock's."""
    return {
        str(path.relative_to(run)): [
            {name: value for name, value in line.items() if not name.startswith("time/")}
            for line in Run(path.parent).metrics()
        ]
        for path in sorted(run.rglob("metrics.jsonl"))
    }


def keys(run, stage):
    """All that a stage logged."""
    return {name for line in Run(run / stage).metrics() for name in line} - {"step"}


def weights(run, stage="iteration_2/ppo"):
    return load_file(run / stage / "segmenter.safetensors")


def differ(one, other):
    return one.keys() != other.keys() or any(not torch.equal(value, other[name]) for name, value in one.items())


def reconfigure(run, changes):
    """Edit the configuration of a run by hand."""
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), changes)))


def context_of(run):
    run = Run.open(run)
    return Context(read_experiment(run)[1].resolved(), run, trains=False)


def everything(folder):
    """Content and time of every file below a folder."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def assert_refused(status, capsys, *said):
    """Exit status 2 and a message that says it all, without traceback."""
    out, message = capsys.readouterr()
    assert status == 2, out + message
    for part in said:
        assert part in re.sub(r"\s+", " ", message)
    assert "Traceback" not in message


def count_all(patch):
    patch.setattr(rl4seg_stages, "valid_masks", lambda masks, **_: torch.ones(len(masks), dtype=torch.bool))
    patch.setattr(Corrector, "__call__", lambda self, masks: masks)


def prepared(folder, vendor, splits, labelled=()):
    """A prepared set (docs/rl4seg.md, Method 10) of phantoms of one vendor: {split: patients}, four images of each."""
    lines, number = [",study,view,dicom_uuid,instant,split_0,Gt_0"], 0
    for split, patients in splits.items():
        for _ in range(patients):
            number += 1
            for view in ("2CH", "4CH"):
                for instant in ("ED", "ES"):
                    phantom = echo_phantom(vendor, number, view, instant, 40)
                    lines.append(f"{len(lines)},p{number},{view},{view}u{number},{instant},{split},{split in labelled}")
                    place = Path(f"p{number}", view.lower(), f"{view}u{number}_{instant}.nii.gz")
                    planes = {"img": phantom.image.astype(np.float32), "gt": phantom.label}
                    for kind in ("img", "gt") if split in labelled else ("img",):
                        (folder / kind / place).parent.mkdir(parents=True, exist_ok=True)
                        affine = np.diag([phantom.spacing_mm[1], phantom.spacing_mm[0], 1, 1])
                        nib.save(nib.Nifti1Image(np.ascontiguousarray(planes[kind].T), affine), folder / kind / place)
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    return folder
