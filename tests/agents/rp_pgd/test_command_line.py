"""Paper rp_pgd from the command line: train, resume, evaluate, render; what is refused, and by which words."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import segarena
import torch
import yaml
from adversarial_toys import TINY
from PIL import Image
from safetensors.torch import load_file
from segarena.agents.command_line import main
from segarena.agents.rp_pgd import evaluation
from segarena.agents.rp_pgd.config import EvaluationConfig, RPPGDExperiment
from segarena.attacks.options import RELEASED, RPOptions
from segarena.attacks.victim import Normalized
from segarena.attacks.victims import load_victim, save_victim
from segarena.common import fitting
from segarena.common.runs import Run
from segarena.datasets.scenes import cityscapes, voc
from segarena.datasets.scenes.augmentation import AugmentationConfig
from segarena.datasets.scenes.images import SceneDataConfig, load_scenes
from segarena.evaluation.results import read_results
from segarena.evaluation.robustness_report import RobustnessReport
from segarena.evaluation.robustness_run import Evaluation
from segarena.segmenters.pspnet import PSPNet
from segarena.segmenters.sliding import Protocol
from segarena.segmenters.unet import UNet

ROOT = Path(segarena.__file__).parent
VOC_REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "VOCdevkit"


def write(path, **changes):
    """A configuration: TINY with changes of its sections."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    for section, values in changes.items():
        config[section] = {**config[section], **values} if isinstance(values, dict) else values
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", "--config", write(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_leaves_a_victim_curves_and_its_table_row(trained):
    victim, classes = load_victim(trained / "segmenter" / "victim.safetensors", 6)
    assert isinstance(victim.model, UNet)
    assert classes == load_scenes(SceneDataConfig(), "val").classes
    lines = Run(trained / "segmenter").metrics()
    assert len(lines) == 3
    assert {"segmenter/clean_miou", "segmenter/adv_miou", "segmenter/attack_boundary"} <= lines[-1].keys()
    weights = {name: value.clone() for name, value in victim.state_dict().items()}
    assert main(["train", "--resume", str(trained)]) == 0, "a finished run stays as it is"
    again = load_victim(trained / "segmenter" / "victim.safetensors")[0].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_evaluate_writes_results_table_and_pictures(trained, capsys):
    assert main(["evaluate", "--run", str(trained)]) == 0
    said, folder = capsys.readouterr().out, trained / "evaluation" / "test"
    for title in ("RP-PGD-PP-AT", "Worst attack, NmIoU (%)", "Clean, NmIoU (%)", "RP-PGD++, 2 steps, ε = 8/255, NmIoU"):
        assert title in said
    (result,) = read_results(folder)
    assert [case["case_id"] for case in result.cases] == ["scene_200000", "scene_200001", "scene_200002"]
    assert result.metrics["clean_aacc"] >= result.metrics["rp_pgd_pp_2_eps_8_255_aacc"]
    report = RobustnessReport.read(folder / "robustness")
    assert {one.attack for one in report.results} == {"clean", "fgsm", "rp_pgd_pp_2", "random", "unbounded"}
    assert report.of("rp_pgd_pp_2").depends["feature_layer"] == "model.merge.1"
    for name in ("clean", "fgsm", "rp_pgd_pp_2"):
        key = name if name == "clean" else f"{name}_eps_8_255"
        found = {kind: result.metrics[f"{key}_{kind}"] for kind in ("miou", "macc", "aacc", "nmiou")}
        assert found == pytest.approx({kind: getattr(report.metrics(name), kind) for kind in found})
    for case in result.cases:
        worst = min(case[f"{key}_nmiou"] for key in ("clean", "fgsm_eps_8_255", "rp_pgd_pp_2_eps_8_255"))
        assert case["worst_nmiou"] == worst
    assert "RP-PGD++, 2 steps" not in (folder / "robustness" / "index.md").read_text()
    assert "rp_pgd_pp_2" in (folder / "robustness" / "index.md").read_text()
    with Image.open(folder / f"{result.id}.png") as picture:
        side = 4 * 33  # small images are enlarged
        assert picture.size == (6 * side + 5 * 4, 3 * side + 2 * 4)
    assert (
        main(["evaluate", "--run", str(trained), "--cases", '[scene_200000, "*2"]', "--out", str(trained / "two")]) == 0
    )
    assert len(read_results(trained / "two")[0].cases) == 2
    assert main(["evaluate", "--run", str(trained), "--split", "val"]) == 0
    assert len(read_results(trained / "evaluation" / "split_val")[0].cases) == 2


def test_an_evaluation_goes_on_where_it_was(trained, tmp_path, monkeypatch, capsys):
    made, make = [], Evaluation._made

    def noted(self, attack, *rest):
        made.append(attack.name)
        return make(self, attack, *rest)

    monkeypatch.setattr(Evaluation, "_made", noted)
    command = ["evaluate", "--run", str(trained), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert made == ["clean", "fgsm", "rp_pgd_pp_2", "random", "unbounded"]
    kept = tmp_path / "out" / "robustness" / "RP_PGD_PP_AT_seed_0__fgsm__eps_8_255.json"
    kept.unlink()
    made.clear()
    assert main(command) == 0
    assert made == ["fgsm"]
    kept.write_text(kept.read_text().replace('"weights": "', '"weights": "0'))
    capsys.readouterr()
    assert main(command) == 2
    assert "was made with other weights; remove it, or give another folder" in capsys.readouterr().err


def test_runs_are_compared_on_one_page_and_pair_by_pair(trained, tmp_path):
    other = ["--training.method", "none", "--name", "no defence"]
    assert main(["train", "--config", write(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "none"), *other]) == 0
    out = tmp_path / "out"
    assert main(["evaluate", "--run", str(tmp_path / "none"), str(trained), "--out", str(out)]) == 0
    page = (out / "robustness" / "index.md").read_text()
    assert "no defence, seed 0" in page
    assert "RP-PGD-PP-AT, seed 0" in page
    assert "Difference: Worst attack, NmIoU of the method" in (out / "pairs.md").read_text()
    assert "p (Worst attack, NmIoU vs no defence)" in (out / "table.md").read_text()


@pytest.mark.parametrize(
    ("classes", "base_size"), [(voc.CLASSES, 512), (cityscapes.CLASSES, 1024), (list("abc"), None)]
)
def test_windows_are_as_large_as_the_crops_of_the_training(classes, base_size):
    experiment = RPPGDExperiment(
        augmentation=AugmentationConfig(crop=65), evaluation=EvaluationConfig(attacks=["pgd"], protocol="reference")
    )
    assert evaluation._attacked(torch.nn.Identity(), classes, experiment).protocol == Protocol(65, base_size)
    assert evaluation._model_name(experiment, 50) == "RP-PGD-PP-AT, seed 0, windows 65"
    given = replace(experiment.evaluation, scales=[0.5, 1.0], flip=True, base_size=300)
    experiment = replace(experiment, evaluation=given)
    protocol = evaluation._attacked(torch.nn.Identity(), classes, experiment).protocol
    assert protocol == Protocol(65, 300, (0.5, 1.0), flip=True)
    name = "RP-PGD-PP-AT, seed 0, windows 65, side 300, x 0.5 1, flip"
    assert evaluation._model_name(experiment, 50) == name, "results of one protocol are not taken for another's"


def test_results_of_one_protocol_are_not_taken_for_those_of_another(trained, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained, out, ignore=shutil.ignore_patterns("evaluation"))
    windows = ["--evaluation.protocol", "reference"]
    for own in ([], windows, [*windows, "--evaluation.flip", "true", "--evaluation.scales", "[0.75, 1.25]"]):
        assert main(["train", "--resume", str(out), "--evaluation.attacks", "[clean]", *own]) == 0
        assert main(["evaluate", "--run", str(out), "--cases", "[scene_200000]"]) == 0
    (folder,) = (out / "evaluation").iterdir()
    models = sorted(path.name.partition("__")[0] for path in (folder / "robustness").glob("*__clean__*.json"))
    assert models == [f"RP_PGD_PP_AT_seed_0{name}" for name in ("", "_windows_33", "_windows_33_x_0_75_1_25_flip")]


def test_presets_radii_and_windows(tmp_path, capsys):
    changes = {
        "data": {"size": 49},
        "training": {"epochs": 1, "method": "none"},
        "evaluation": {"attacks": "grid", "steps": [1, 2], "eps": ["4/255", 0.05], "protocol": "reference"},
    }
    assert main(["train", "--config", write(tmp_path / "a.yaml", **changes), "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--cases", "[scene_200000]"]) == 0
    (result,) = read_results(next((tmp_path / "run" / "evaluation").iterdir()))
    assert {"pgd_1_eps_4_255_nmiou", "pgd_2_eps_0_05_nmiou", "rp_global_2_eps_0_05_miou"} <= result.metrics.keys()
    assert not any("rp_pgd" in name for name in result.metrics), "windows have no features of a whole image"
    page = next((tmp_path / "run" / "evaluation").rglob("index.md")).read_text()
    assert "Left out, as they need what was not given: rp_pgd_1, rp_pgd_2, rp_pgd_pp_1, rp_pgd_pp_2." in page


def test_render_and_plot(trained, tmp_path, capsys):
    assert main(["render", "--run", str(trained), "--out", str(tmp_path / "attack.gif")]) == 0
    assert "step 3 of 3" in capsys.readouterr().out
    assert (tmp_path / "attack.gif").stat().st_size > 1000
    assert main(["plot", "--run", str(trained), "--out", str(tmp_path / "curves.png")]) == 0


def test_an_unfinished_run_is_evaluated_when_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(Run, "finish", lambda self, files: (_ for _ in ()).throw(OSError("no space left")))
    assert main(["train", "--config", write(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]) == 2
    monkeypatch.undo()
    (tmp_path / "run" / "segmenter" / "victim.safetensors").unlink()
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 2
    assert "is not finished: it lacks segmenter; train it further with --resume" in capsys.readouterr().err
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--unfinished"]) == 0


def test_the_driver_is_the_command_line(trained, tmp_path):
    command = [sys.executable, str(ROOT / "run_adversarial.py"), "train", "--paper", "rp_pgd", "--print_config"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert yaml.safe_load(shown)["training"]["attack"] == "rp_pgd_pp"
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "a.png")
    attack = ["attack", "--input", str(tmp_path / "a.png"), "--model", str(trained), "--attack", "fgsm"]
    subprocess.run([*command[:2], *attack, "--out", str(tmp_path / "out")], capture_output=True, check=True)
    assert (tmp_path / "out" / "a_attacked.png").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "rp_pgd").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_packaged_configurations_are_read(path, capsys):
    assert main(["train", "--config", "rp_pgd/phantom", "--config", f"rp_pgd/{path.stem}", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["paper"] == "rp_pgd"


def test_the_released_options_are_the_preset(capsys):
    assert main(["train", "--config", "rp_pgd/ade20k", "--config", "rp_pgd/released", "--print_config"]) == 0
    options = yaml.safe_load(capsys.readouterr().out)["training"]["options"]
    assert RPOptions(**{**options, "intra_skip": tuple(options["intra_skip"])}) == RELEASED


def test_eps_stays_as_it_was_written(tmp_path):
    run = tmp_path / "run"
    options = ["--training.eps", "4/255", "--training.epochs", "1", "--training.method", "none"]
    assert main(["train", "--config", write(tmp_path / "tiny.yaml"), "--out", str(run), *options]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["eps"] == "4/255"
    assert json.loads(json.dumps(Run.open(run).config))["training"]["method"] == "none"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--training.attack", "pgdd"], "training.attack is 'pgdd' but must be one of"),
        (["--training.eps", "-0.1"], "training.eps is -0.1 but must be above 0"),
        (["--training.eps", "0"], "training.eps is 0.0 but must be above 0 and at most 1"),
        (["--training.method", "ddc_at"], "unet has no heads for it; use pspnet or deeplab"),
        (
            ["--training.feature_layer", "model.down.7"],
            "feature_layer is 'model.down.7' but the model has no such module",
        ),
        (["--training.batch_size", "9"], "a batch needs 9 images but there are 8; lower training.batch_size"),
        (["--train_split", "trian"], "split is 'trian' but"),
        (["--train_split", "trian"], "such as --train_split train"),
        (["--val_split", "vall"], "such as --val_split train"),
        (["--network.pretrained", "nowhere.safetensors"], "does not exist"),
        (["--evaluation.attacks", "[pgd,pgd]"], "must name each attack once"),
        (["--evaluation.attacks", "[pdg_20]"], "there is no attack 'pdg_20'; there are clean, "),
        (["--evaluation.attacks", "gird"], "evaluation.attacks is 'gird' but must be one of 'reference', 'grid'"),
        (["--evaluation.attacks", "[transfer]"], "has transfer but a run has no other models for it"),
        (["--evaluation.protocol", "reference"], "has rp_pgd_pp_2 but evaluation.protocol is 'reference'"),
        (["--evaluation.flip", "true"], "flip and base_size are of windows, but evaluation.protocol is 'whole'"),
        (["--evaluation.scales", "[]"], "evaluation.scales is [] but needs a factor"),
        (["--evaluation.scales", "[0]"], "evaluation.scales"),
        (["--evaluation.eps", "[4/255, 8]"], "evaluation.eps is 8.0 but must be above 0 and at most 1"),
        (["--evaluation.eps", "[4/255, 4/255]"], "must name each radius once"),
        (["--export_sb3", "a.zip"], "paper 'rp_pgd' trains a segmenter: its file is segmenter/victim.safetensors"),
        (
            [
                "--network.kind",
                "pspnet",
                "--network.backbone",
                "resnet18",
                "--training.batch_size",
                "2",
                "--training.bn",
                "split",
            ],
            "a batch of one image, but pspnet needs two",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(options, said, tmp_path, capsys):
    assert main(["train", "--config", write(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_training_begins_with_a_victim_or_with_weights_of_the_backbone(trained, tmp_path, capsys):
    def train(name, *options, **changes):
        config = write(tmp_path / "tiny.yaml", **changes)
        return main(["train", "--config", config, "--out", str(tmp_path / name), *options])

    file = str(trained / "segmenter" / "victim.safetensors")
    still = ["--training.epochs", "1", "--training.learning_rate", "1e-30", "--training.method", "none"]
    assert train("again", "--network.pretrained", file, *still) == 0
    before, after = load_file(file), load_file(tmp_path / "again" / "segmenter" / "victim.safetensors")
    assert all(
        torch.equal(before[name], after[name]) for name in before if "running" not in name and "num_" not in name
    )
    save_victim(tmp_path / "four.safetensors", Normalized(UNet(3, 4, init_channels=2), [0.5] * 3, [0.2] * 3), "abcd")
    assert train("four", "--network.pretrained", str(tmp_path / "four.safetensors")) == 2
    assert "out_channels = 4 but 6 is needed" in capsys.readouterr().err
    assert train("wider", "--network.pretrained", file, network={"init_channels": 4}) == 2
    assert "holds a UNet with" in capsys.readouterr().err
    imagenet = {
        name.replace("layer0.0", "conv1").replace("layer0.1", "bn1"): value
        for name, value in PSPNet(3, 2, backbone="resnet18").state_dict().items()
        if name.startswith("layer")
    }
    torch.save(imagenet, tmp_path / "imagenet.pth")
    assert train("unet", "--network.pretrained", str(tmp_path / "imagenet.pth")) == 2
    assert "no victim file, but unet has no backbone" in capsys.readouterr().err
    network = {"kind": "pspnet", "backbone": "resnet18", "pretrained": str(tmp_path / "imagenet.pth")}
    assert train("psp", *still, network=network) == 0
    weights = load_file(tmp_path / "psp" / "segmenter" / "victim.safetensors")
    given = imagenet["layer4.0.conv1.weight"]  # of so many drawn weights one may be 0, which any step changes
    torch.testing.assert_close(weights["layer4.0.conv1.weight"], given, rtol=0, atol=1e-20)


def write_voc(root):
    """Five photographs and their labels in VOC's layout, of sizes of their own."""
    generator, names = np.random.default_rng(0), [f"photo_{n}" for n in range(5)]
    for n, name in enumerate(names):
        shape = (40 + n, 60 - n)
        label = np.zeros(shape, dtype=np.uint8)
        label[10:30, 10:40], label[30] = n + 1, 255
        pixels = (np.clip(40 * label[..., None] + generator.normal(60, 20, (*shape, 3)), 0, 255)).astype(np.uint8)
        for folder, picture, kind in (("JPEGImages", pixels, "jpg"), ("SegmentationClass", label, "png")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / folder / f"{name}.{kind}")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:4]) + "\n")
    (lists / "val.txt").write_text("photo_4\n")
    return root


def test_photographs_from_a_folder(tmp_path):
    data = {"data": str(write_voc(tmp_path / "voc")), "size": 33, "fit": "crop"}
    tiny = {key: value for key, value in TINY.items() if key != "data"}
    (tmp_path / "voc.yaml").write_text(yaml.safe_dump({**tiny, "data": data, "test_split": "val"}))
    crops = ["--augmentation", "{crop: 33}", "--training.loaders", "2", "--training.batch_size", "2"]
    for name, loaders in (("run", "2"), ("again", "0")):
        options = ["--out", str(tmp_path / name), *crops, "--training.loaders", loaders]
        assert main(["train", "--config", str(tmp_path / "voc.yaml"), *options]) == 0
    one, other = (load_file(tmp_path / name / "segmenter" / "victim.safetensors") for name in ("run", "again"))
    assert all(torch.equal(value, other[name]) for name, value in one.items()), "threads change no number"
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0
    (result,) = read_results(tmp_path / "run" / "evaluation" / "test")
    assert [case["case_id"] for case in result.cases] == ["photo_4"]
    assert load_victim(tmp_path / "run" / "segmenter" / "victim.safetensors", 21)[1][5] == "bottle"
    (tmp_path / "voc" / "JPEGImages" / "photo_2.jpg").write_bytes(b"no picture")
    assert main(["train", "--config", str(tmp_path / "voc.yaml"), *crops, "--out", str(tmp_path / "bad")]) == 2


@pytest.mark.skipif(not VOC_REAL.is_dir(), reason="needs real photographs in ../shared/data/VOCdevkit")
def test_real_photographs_are_read_and_judged(tmp_path, capsys):
    data = {"data": str(VOC_REAL), "size": 65, "fit": "crop", "long_side": 129}
    tiny = {key: value for key, value in TINY.items() if key != "data"}
    (tmp_path / "voc.yaml").write_text(yaml.safe_dump({**tiny, "data": data, "test_split": "val"}))
    options = ["--augmentation", "{crop: 65}", "--training.batch_size", "2", "--training.epochs", "1"]
    assert main(["train", "--config", str(tmp_path / "voc.yaml"), *options, "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0
    (result,) = read_results(tmp_path / "run" / "evaluation" / "test")
    assert result.origins["real"] == len(result.cases) == 1
    assert 0 <= result.metrics["worst_nmiou"] <= result.metrics["clean_nmiou"] < 0.5, "one epoch of two photographs"
    assert "1 real" in capsys.readouterr().out


def test_options_of_agents_are_refused(trained, tmp_path, capsys):
    for options in (["--policies", "random"], ["--save_masks"]):
        assert main(["evaluate", "--run", str(trained), *options]) == 2
        assert "paper 'rp_pgd' trains segmenters; leave it out" in capsys.readouterr().err
    (tmp_path / "a.png").touch()
    assert main(["predict", "--run", str(trained), "--input", str(tmp_path / "a.png"), "--out", "out"]) == 2
    assert "segmenter/victim.safetensors, in Python" in capsys.readouterr().err


def test_ddc_at_trains_a_victim_whose_first_classifier_is_used(tmp_path):
    changes = {"network": {"kind": "pspnet", "backbone": "resnet18"}, "training": {"method": "ddc_at", "epochs": 1}}
    assert main(["train", "--config", write(tmp_path / "a.yaml", **changes), "--out", str(tmp_path / "run")]) == 0
    victim, _ = load_victim(tmp_path / "run" / "segmenter" / "victim.safetensors", 6)
    assert victim.model.ddc_at
    (line,) = Run(tmp_path / "run" / "segmenter").metrics()
    assert line["segmenter/loss_mask"] > 0
    assert victim(torch.rand(1, 3, 33, 33)).shape == (1, 6, 33, 33)
