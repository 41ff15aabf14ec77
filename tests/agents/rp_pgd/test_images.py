"""Slices of liver CTs in place of photographs: patients stay apart, phantoms and a folder, what is refused."""

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from adversarial_toys import TINY
from segarena.agents.command_line import main
from segarena.agents.rp_pgd.batches import Crops, Resident, batches_of
from segarena.agents.rp_pgd.config import RPPGDExperiment
from segarena.agents.rp_pgd.images import load_images
from segarena.attacks.victims import load_victim
from segarena.datasets.liver.phantom import AFFINE, liver_phantom
from segarena.datasets.liver.slices import LiverSliceConfig, load_slices
from segarena.datasets.scenes.augmentation import AugmentationConfig
from segarena.datasets.scenes.images import SceneDataConfig
from segarena.evaluation.results import read_results

WHOLE = {"crop": 32, "scale": (1.0, 1.0), "rotation": 0.0, "blur": 0.0}
SPLITS = {"train_split": "classifier_train[:2]", "val_split": "classifier_val[:1]", "test_split": "test[:1]"}


def train(folder, *options, **liver):
    config = {key: value for key, value in TINY.items() if key != "data"}
    config |= {
        "liver": liver,
        **SPLITS,
        "augmentation": {**WHOLE, "scale": [1.0, 1.0]},
        "evaluation": {"attacks": ["fgsm"]},
    }
    config["training"] = {**TINY["training"], "epochs": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return main(["train", "--config", str(folder / "tiny.yaml"), "--out", str(folder / "run"), *options])


def test_slices_are_learned_from_and_judged_by_patients_of_other_splits(tmp_path, capsys):
    assert train(tmp_path, grid_shape=[32, 32, 24]) == 0
    victim, classes = load_victim(tmp_path / "run" / "segmenter" / "victim.safetensors", 3)
    assert classes == ("background", "liver", "tumour")
    assert (victim.mean.tolist(), victim.std.tolist()) == ([0.5], [0.25])
    assert victim(torch.rand(1, 1, 64, 64)).shape == (1, 3, 64, 64)
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0
    (result,) = read_results(tmp_path / "run" / "evaluation" / "test")
    assert result.data == "liver slice phantom"
    assert {case["patient"] for case in result.cases} == {"phantom_03000"}
    assert result.origins["phantom"] == len(result.cases) > 1
    one = result.cases[0]["case_id"]
    assert main(["render", "--run", str(tmp_path / "run"), "--case", one, "--out", str(tmp_path / "a.gif")]) == 0
    assert f"{one}, RP-PGD++, step 3 of 3" in capsys.readouterr().out
    again = ["--resume", str(tmp_path / "run"), "--liver.slices", "liver"]
    assert main(["train", *again]) == 2
    assert "liver.slices = 'tumour' but the run has 'liver'" in capsys.readouterr().err


def test_a_folder_of_cts_is_divided_by_patients(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for n in range(8):
        sample = liver_phantom(n // 2)  # two CTs of each of four patients
        name = f"p{n // 2}_scan{n % 2}.nii.gz"
        nib.save(nib.Nifti1Image(np.asarray(sample.image[0], np.int16), AFFINE), tmp_path / "images" / name)
        nib.save(nib.Nifti1Image(np.asarray(sample.label), AFFINE), tmp_path / "labels" / name)
    liver = LiverSliceConfig(
        data=str(tmp_path), patient_pattern="^p[0-9]+", grid_shape=(32, 32, 24), cache_dir=str(tmp_path / "cache"),
        split_ratios={"classifier_train": 1, "classifier_val": 1, "rl_pool": 1, "test": 1},
    )  # fmt: skip
    experiment = RPPGDExperiment(liver=liver)
    patients = {}
    for split in ("classifier_train", "classifier_val", "test"):
        scenes = load_images(experiment, split)
        assert (scenes.origin, scenes.channels, scenes.side) == ("real", 1, 32)
        assert len(set(scenes.ids)) == len(scenes)
        patients[split] = set(scenes.groups)
    assert [len(found) for found in patients.values()] == [1, 1, 1]
    assert len(set.union(*patients.values())) == 3, "both CTs of a patient are in one split"


def test_slices_stay_in_memory_where_nothing_but_a_mirror_changes_them_and_crops_are_grey():
    scenes = load_images(RPPGDExperiment(liver=LiverSliceConfig()), "test[:1]")
    pool = scenes.pool()
    assert pool.ids == scenes.ids
    assert torch.equal(pool.images, load_slices(LiverSliceConfig(split="test[:1]"), "tumour").images)
    cpu = torch.device("cpu")
    assert isinstance(batches_of(scenes, AugmentationConfig(**{**WHOLE, "crop": 64}), cpu, 0), Resident)
    crops = batches_of(scenes, AugmentationConfig(crop=80, scale=(0.5, 1.0), rotation=1.0), cpu, 0)
    assert isinstance(crops, Crops)
    image, label = crops.crop(0, 3)
    assert image.shape == (1, 80, 80)
    assert bool((image[0][label == 255] == 0).float().mean() > 0.95), (
        "what lies outside is black, but for a blurred edge"
    )
    assert 0.5 < float((label == 255).float().mean()) < 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train_split", "train"], "such as --train_split classifier_train"),
        (["--liver.cases", "[phantom_2000]"], "here train_split, val_split and test_split choose"),
        (["--data.size", "65"], "data is of photographs, but liver is given, too"),
        (
            ["--evaluation.protocol", "reference"],
            "evaluation.protocol is 'reference', whose windows are of photographs",
        ),
        (["--liver.slices", "tumor"], "did you mean 'tumour'"),
    ],
)
def test_what_is_not_of_slices_is_refused(options, said, tmp_path, capsys):
    assert train(tmp_path, *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_photographs_are_as_they_were():
    assert load_images(RPPGDExperiment(data=SceneDataConfig(size=33)), "val[:2]").side == 33
