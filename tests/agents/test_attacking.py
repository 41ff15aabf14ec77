"""The command `attack`: files that stay in the ball, damage that is true, and what it keeps, skips and refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from adversarial_toys import TINY
from PIL import Image
from segarena.agents.attacking import open_victim, rounded
from segarena.agents.command_line import main
from segarena.attacks.budget import Epsilon
from segarena.attacks.victim import Normalized
from segarena.attacks.victims import PACKAGED, PACKAGED_VOLUMES, load_victim, save_victim
from segarena.common.runs import Run
from segarena.datasets.scenes.images import SceneDataConfig, load_scenes
from segarena.evaluation.attack_panels import class_colours
from segarena.segmenters.unet import UNet

VOC = Path(__file__).resolve().parents[3] / "shared" / "data" / "VOCdevkit" / "VOC2012"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders with three phantom scenes as PNG, of two sizes, and their labels."""
    folder = tmp_path_factory.mktemp("pictures")
    for size, split in ((65, "scene_200000-200001"), (81, "scene_200002")):
        for scene in load_scenes(SceneDataConfig(size=size), split):
            for name, pixels in (("images", scene.image.permute(1, 2, 0)), ("labels", scene.label)):
                (folder / name).mkdir(exist_ok=True)
                Image.fromarray(pixels.numpy()).save(folder / name / f"{scene.id}.png")
    return folder


def attack(*words):
    return main(["attack", *map(str, words)])


def stored(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(np.int64)


def predicted(victim, pixels):
    image = torch.from_numpy(pixels).float().reshape(*pixels.shape[:2], -1).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        return victim(image).argmax(dim=1)[0].numpy()


def table_of(out):
    return list(csv.DictReader((out / "attack.csv").read_text(encoding="utf-8").splitlines()))


def accuracy(found, labels):
    return (found == labels)[labels != 255].mean()


def test_phantoms_are_attacked_and_what_is_written_is_true(pictures, tmp_path, capsys):
    command = ["--input", pictures / "images", "--model", "scenes", "--labels", pictures / "labels"]
    assert attack(*command, "--attack", "pgd_5", "--out", tmp_path) == 0
    assert "mIoU falls by" in capsys.readouterr().out
    victim, classes = load_victim(PACKAGED["scenes"])
    for row in table_of(tmp_path):
        clean, changed = stored(row["image"]), stored(tmp_path / row["attacked"])
        assert 0 < np.abs(changed - clean).max() == int(row["grey_levels"]) <= 8
        labels = stored(pictures / "labels" / f"{row['id']}.png")
        for kind, pixels in (("clean", clean), ("attacked", changed)):
            mask = stored(tmp_path / row[f"{kind}_mask"])
            np.testing.assert_array_equal(mask, predicted(victim, pixels))
            assert float(row[f"accuracy_{kind}"]) == pytest.approx(accuracy(mask, labels))
        assert float(row["damage"]) == pytest.approx(float(row["miou_clean"]) - float(row["miou_attacked"]))
        assert float(row["damage"]) > 0
        with Image.open(tmp_path / row["clean_mask"]) as picture:
            assert picture.mode == "P"
            assert picture.getpalette()[:18] == class_colours(6).flatten().tolist()
        with Image.open(tmp_path / f"{row['id']}_attacked_overlay.png") as picture:
            height, width = (2 * side for side in clean.shape[:2])  # small images are enlarged
            assert picture.size == (6 * width + 5 * 4, height)
        assert (row["attack"], row["eps"], row["status"]) == ("pgd_5", "8/255", "done")
    assert max(float(row["damage"]) for row in table_of(tmp_path)) > 0.1
    kept = json.loads((tmp_path / "attack.json").read_text())
    assert [one["id"] for one in kept["images"]] == ["scene_200000", "scene_200001", "scene_200002"]
    assert kept["settings"]["classes"] == list(classes)


def test_without_labels_what_is_predicted_of_the_clean_image_is_right(pictures, tmp_path):
    command = ["--model", "scenes", "--attack", "rp_pgd_pp_3", "--eps", "0.03", "--out", tmp_path]
    assert attack("--input", pictures / "images", *command) == 0
    for row in table_of(tmp_path):
        assert (float(row["miou_clean"]), float(row["accuracy_clean"])) == (1, 1)
        assert float(row["changed_pixels"]) == pytest.approx(1 - float(row["accuracy_attacked"]))
        assert float(row["changed_pixels"]) > 0.02
        assert int(row["grey_levels"]) == 7, "0.03 is 7.65 grey levels"


def test_an_interrupted_call_goes_on_and_other_settings_are_refused(pictures, tmp_path, capsys):
    out, images = tmp_path / "out", sorted((pictures / "images").iterdir())
    command = ["--model", "scenes", "--attack", "fgsm", "--labels", pictures / "labels", "--out", out]
    assert attack("--input", images[0], *command) == 0
    before = (out / "scene_200000_attacked.png").stat().st_mtime_ns
    assert attack("--input", *images[:2], *command) == 0
    said = capsys.readouterr().out
    assert said.count("kept from an earlier call") == 1
    assert (out / "scene_200000_attacked.png").stat().st_mtime_ns == before
    assert attack("--input", images[0], *command, "--eps", "4/255") == 2
    assert "holds images with eps = '8/255', not '4/255'; name another folder, or replace" in capsys.readouterr().err
    assert attack("--input", images[0], *command, "--eps", "4/255", "--overwrite") == 0
    assert [row["eps"] for row in table_of(out)] == ["4/255"]


def test_other_labels_of_an_image_are_another_attack(pictures, tmp_path):
    labels, image = tmp_path / "labels", pictures / "images" / "scene_200000.png"
    labels.mkdir()
    size = stored(image).shape[:2]
    command = ["--input", image, "--model", "scenes", "--attack", "fgsm", "--labels", labels, "--out", tmp_path / "out"]
    for value in (0, 255):
        Image.fromarray(np.full(size, value, np.uint8)).save(labels / "scene_200000.png")
        assert attack(*command) == 0
        (row,) = table_of(tmp_path / "out")
        assert (row["damage"] == "") == (value == 255)
    assert int(row["grey_levels"]) == 0, "where nothing is labelled nothing is changed"


def test_bad_files_are_named_and_skipped(pictures, tmp_path, capsys):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    good = stored(pictures / "images" / "scene_200000.png").astype(np.uint8)
    Image.fromarray(good).save(images / "good.png")
    Image.fromarray(good[:40]).save(images / "other_size.png")
    Image.fromarray(good).save(images / "unlabelled.png")
    Image.fromarray(good[:8, :8]).save(images / "small.png")
    Image.fromarray(np.full((65, 65), 1000, np.uint16)).save(images / "sixteen.png")
    (images / "torn.png").write_bytes((images / "good.png").read_bytes()[:500])
    for name in ("good", "other_size", "sixteen", "torn"):
        Image.fromarray(np.zeros((65, 65), np.uint8)).save(labels / f"{name}.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(labels / "small.png")
    command = ["--input", images, "--model", "scenes", "--labels", labels, "--attack", "fgsm", "--out"]
    assert attack(*command, tmp_path / "out", "--on_error", "skip") == 1
    said = capsys.readouterr().err
    for reason in (
        "skipped    other_size: ",
        "65 x 65 pixels (y, x) but ",
        "unlabelled.png has no labels: there is no ",
        "small: images are (8, 8) but the U-Net needs at least 32 x 32",
        "sixteen.png cannot be read as JPEG or PNG (it has more than 8 bits a channel)",
        "torn.png cannot be read",
    ):
        assert reason in said
    status = {row["id"]: row["status"] for row in table_of(tmp_path / "out")}
    assert {name for name, found in status.items() if found == "done"} == {"good"}
    assert attack(*command, tmp_path / "stopped") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "nowhere"], "model is 'nowhere', which does not exist; name the folder of a run"),
        (["--model", str(PACKAGED_VOLUMES["toy"])], "segments volumes, no pictures"),
        (["--attack", "pdg_20"], "there is no attack 'pdg_20'"),
        (["--attack", "transfer"], "attack is 'transfer', which needs other models"),
        (["--eps", "8"], "8 grey levels are 8/255"),
        (["--labels", "nowhere"], "labels is 'nowhere', which is no folder"),
        (["--input", "nowhere.png"], "nowhere.png does not exist"),
        (["--on_error", "go"], "on_error is 'go' but must be one of 'stop', 'skip'"),
        (["--device", "tpu"], "device is 'tpu' but must be"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(pictures, tmp_path, capsys, words, said):
    given = {"--input": str(pictures / "images"), "--model": "scenes", **dict([words])}
    assert attack(*[word for pair in given.items() for word in pair], "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_is_a_victim_and_a_run_of_agents_is_none(pictures, tmp_path, capsys):
    import yaml

    tiny = {**TINY, "training": {**TINY["training"], "epochs": 1, "method": "none"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    run = tmp_path / "run"
    assert main(["train", "--config", str(tmp_path / "tiny.yaml"), "--out", str(run)]) == 0
    ours, file = open_victim(str(run))[0], open_victim(str(run / "segmenter" / "victim.safetensors"))[0]
    assert all(torch.equal(value, file.state_dict()[name]) for name, value in ours.state_dict().items())
    image = pictures / "images" / "scene_200002.png"
    assert attack("--input", image, "--model", run, "--attack", "pgd_2", "--out", tmp_path / "out") == 0
    (row,) = table_of(tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out" / row["clean_mask"]), predicted(ours, stored(image)))
    capsys.readouterr()
    Run.create(tmp_path / "ppo", {"paper": "ppo", "env": "SPARS-LiverCT-v0"}, {})
    assert attack("--input", image, "--model", tmp_path / "ppo", "--out", tmp_path / "none") == 2
    assert "is a run of paper 'ppo', which leaves no victim to attack" in capsys.readouterr().err


def test_grey_pictures_stay_grey(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 40), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slice.png")
    out = tmp_path / "out"
    assert attack("--input", tmp_path / "slice.png", "--model", "liver", "--attack", "pgd_3", "--out", out) == 0
    changed = stored(out / "slice_attacked.png")
    assert changed.shape == pixels.shape
    assert 0 < np.abs(changed - pixels).max() <= 8


@pytest.mark.parametrize("given", ["8/255", 0.03, "1/510", 1.0])
def test_rounding_stays_within_the_ball_and_loses_less_than_a_grey_level(given):
    eps, generator = Epsilon.parse(given), torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 40, 50), generator=generator, dtype=torch.uint8)
    clean = pixels.float() / 255
    corners = torch.where(torch.rand(clean.shape, generator=generator) < 0.5, eps.value, -eps.value)
    inside = (2 * torch.rand(clean.shape, generator=generator) - 1) * eps.value
    for moved in ((clean + corners).clamp(0, 1), (clean + inside).clamp(0, 1)):
        change = rounded(pixels, moved, eps).double() - pixels.double()
        wanted = 255 * moved.double() - pixels.double()
        assert (change.abs() <= eps.grey_levels).all()
        assert (change.abs() <= wanted.abs() + 1.1e-3).all(), "towards the clean value"
        assert (change * wanted >= 0).all()
        assert ((wanted - change).abs() < 1).all()
    whole = rounded(pixels, (clean + Epsilon.parse("8/255").value).clamp(0, 1), Epsilon.parse("8/255"))
    assert torch.equal(whole.int(), (pixels.int() + 8).clamp(max=255)), "float32 does not cost a level"


def test_photographs_of_voc(tmp_path):
    if not VOC.is_dir():
        pytest.skip("the photographs of ../shared/data are not here")
    torch.manual_seed(0)
    file = tmp_path / "victim.safetensors"
    save_victim(file, Normalized(UNet(3, 21, init_channels=4), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), "x" * 21)
    command = ["--input", VOC / "JPEGImages", "--attack", "segpgd_2"]
    labels = ["--labels", VOC / "SegmentationClass"]
    assert attack(*command, *labels, "--model", file, "--out", tmp_path / "out") == 0
    assert attack(*command, "--model", "scenes", "--out", tmp_path / "unlabelled") == 0
    assert all(float(row["damage"]) > 0.05 for row in table_of(tmp_path / "unlabelled"))
    rows, victim = table_of(tmp_path / "out"), load_victim(file)[0]
    assert [row["id"] for row in rows] == ["2011_000003", "2011_000006", "2011_000025"]
    for row in rows:
        clean, changed = stored(row["image"]), stored(tmp_path / "out" / row["attacked"])
        labels = stored(VOC / "SegmentationClass" / f"{row['id']}.png")
        assert 0 < np.abs(changed - clean).max() <= 8
        assert float(row["accuracy_clean"]) == pytest.approx(accuracy(predicted(victim, clean), labels), abs=1e-4)
        mask = stored(tmp_path / "out" / row["attacked_mask"])
        assert float(row["accuracy_attacked"]) == pytest.approx(accuracy(mask, labels))
