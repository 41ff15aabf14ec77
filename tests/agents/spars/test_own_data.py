"""SPARS on CTs of one's own: the configuration of a night, and refusals whose advice works."""

import json
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import segarena
import torch
from scipy import ndimage
from segarena.agents.command_line import main
from segarena.agents.configuration import experiment_from, experiment_parser
from segarena.agents.papers import PAPERS
from segarena.agents.spars.training import check
from segarena.datasets.liver.phantom import AFFINE, liver_phantom
from segarena.evaluation.metrics import dice

OVERNIGHT = Path(segarena.__file__).parent / "configs" / "spars" / "overnight.yaml"


def own_folder(folder, names, labelled):
    """Phantoms as a user's files."""
    for number, name in enumerate(names):
        sample = liver_phantom(6000 + number)
        parts = {"images": sample.image[0].numpy().astype(np.int16)}
        if name in labelled:
            parts["labels"] = sample.label.numpy()
        for kind, volume in parts.items():
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(volume, AFFINE), folder / kind / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    names = [f"ct_{number}" for number in range(5)]
    return own_folder(tmp_path_factory.mktemp("own"), names, names[:4])


SMALL = {
    "env.grid_shape": [32, 32, 24],
    "env.spacing_mm": [8, 8, 8],
    "env.window_size": [8, 8, 4],
    "env.horizon": 8,
    "presence.epochs": 1,
    "presence.batches_per_epoch": 1,
    "presence.volumes_per_batch": 1,
    "presence.validation_windows": 8,
    "ppo.total_timesteps": 64,
    "ppo.num_envs": 2,
    "ppo.batch_size": 32,
    "evaluation.rollouts": 1,
    "evaluation.pictures": 1,
    "device": "cpu",
}


def options(data, **changes):
    return [
        *("--config", str(OVERNIGHT), "--env.data", str(data)),
        *(text for key, value in {**SMALL, **changes}.items() for text in (f"--{key}", json.dumps(value).strip('"'))),
    ]


def test_the_night_begins_and_ends_in_small_on_a_folder_of_ones_own(folder, tmp_path):
    run = tmp_path / "run"
    changes = {
        "evaluation.postprocess": "largest_component",
        "env.paint": "windows",
    }  # so small a training knows no cell
    assert main(["train", *options(folder, **changes), "--out", str(run)]) == 0
    assert (run / "classifier" / "manifest.json").is_file()
    assert main(["evaluate", "--run", str(run), "--save_masks"]) == 0
    (result,) = (run / "evaluation").rglob("SPARS_seed0.json")
    (case,) = json.loads(result.read_text())["cases"]
    masks = result.parent / "masks" / "SPARS" / f"{case['case_id']}_mask.nii.gz"
    mask, truth = (nib.load(path).get_fdata() for path in (masks, folder / "labels" / f"{case['case_id']}.nii.gz"))
    assert mask.shape == (64, 64, 48), "twice the grid"
    assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1
    assert case["native_dice"] == dice(torch.from_numpy(mask == 1), torch.from_numpy(truth == 2)) != case["dice"]
    assert case["case_id"] in {f"ct_{number}" for number in range(4)}
    assert case["origin"] == "real"


def experiment(data, *arguments):
    paper = PAPERS["spars"]
    return experiment_from(paper, experiment_parser(paper).parse_args([*options(data), *arguments])).resolved()


@pytest.mark.parametrize("advice", ["cases", "split"])
def test_what_a_refusal_of_cases_advises_works_for_all_purposes_at_once(tmp_path, advice):
    data = own_folder(tmp_path / "own", ["ct_0", "ct_1"], ["ct_0", "ct_1"])
    with pytest.raises(ValueError, match=r"2 patients are too few for the 4 splits .* would be empty") as caught:
        check(experiment(data))
    words = shlex.split(str(caught.value).replace(",", "").replace(";", "").partition("would be empty")[2])
    given = [word for n, word in enumerate(words) if f".{advice}" in "".join(words[max(n - 1, 0) : n + 1])]
    assert [word for word in given if word.startswith("--")] == [
        f"--{section}.{advice}" for section in ("env", "validation", "test", "classifier_train")
    ]
    given = [word for word in given if word != "or"]
    check(experiment(data, *given))


def test_the_decathlons_cases_that_are_there_do_not_fill_every_split(tmp_path):
    data = own_folder(tmp_path / "own", ["liver_48", "liver_43"], ["liver_48", "liver_43"])
    with pytest.raises(ValueError, match="has no case that is there") as caught:
        check(experiment(data))
    for section, named in {"env": False, "classifier_train": False, "validation": True, "test": True}.items():
        assert (f"--{section}.cases" in str(caught.value)) == named


def test_a_classifier_without_labels_says_which_case_and_key(folder):
    with pytest.raises(ValueError, match=r"ct_4 has no label, .* labelled cases by --validation\.cases, or give"):
        check(experiment(folder, "--validation.cases", '["ct_4"]'))
