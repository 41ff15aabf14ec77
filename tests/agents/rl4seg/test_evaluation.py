"""RL4Seg evaluated and shown: every method has its row, its picture and the labels that it has seen."""

import re
import shutil
from pathlib import Path

import imageio.v3 as imageio
from rl4seg_runs import (
    QUICK,
    assert_refused,
    assert_same,
    call,
    context_of,
    everything,
    keys,
    reconfigure,
    stages_of,
    train,
    trained,
)
from segarena.agents import catalogue
from segarena.agents.rl4seg.baselines import BASELINES, NetworkBaseline, one_unet
from segarena.agents.rl4seg.context import UNET
from segarena.evaluation.results import read_results

CORRECTED = ("corrector", "AdaBN + corrector", "AdaBN + corrector where invalid")
METHODS = {
    "source only": "source",
    "test-time augmentation": "source",
    "AdaBN": "source",
    "corrector": "source",
    "AdaBN + corrector": "source",
    "AdaBN + corrector where invalid": "source",
    "entropy minimisation": "source",
    "gold self-training": "source",
    "gold and corrected self-training": "source",
    "TI-ST": "source",
    "UDAS": "source",
    "policy gradient": "source",
    "oracle RL": "source and target",
    "target-supervised": "target",
    "ensemble": "source",
    "MC dropout": "source",
    "Tiny, softmax": "source",
    "Tiny": "source",
}
"""All of docs/rl4seg.md, Method 11, that is trained here, and the labels that each has seen."""


def test_every_method_has_results_that_say_what_it_has_seen(evaluated):
    run, out = evaluated
    results = read_results(run / "evaluation" / "test")
    assert {result.method: result.supervision for result in results} == METHODS
    for result in results:
        assert (result.mode, result.origins, result.seed) == ("inductive", {"phantom": 8}, 3)
        assert {"dice_avg", "dice_endo", "dice_myo", "dice_epi", "hd_epi_mm", "valid", "dice_batch32"} <= set(
            result.metrics
        )
        assert (result.settings["source_images"], result.settings["target_images"]) == (24, 28)
        assert re.search(rf"^\| {re.escape(result.method)} ", out, re.MULTILINE)
    assert "| Gradient steps | Gradient steps, other networks | Gold (%) |" in re.sub(" +", " ", out)
    assert re.search(r"^\| Difference from AdaBN \+ corrector ", out, re.MULTILINE)
    said = {result.method for result in results if "all_ece" in result.metrics}
    assert said == {"test-time augmentation", "ensemble", "MC dropout", "Tiny, softmax", "Tiny"}
    table = (run / "evaluation" / "test" / "table.md").read_text()
    assert table.strip() in out
    segmentation, uncertainty = table.split("| Method ")[1:]
    assert "Dice ENDO (%)" in segmentation
    assert "vs source only" in segmentation
    assert "ECE" in uncertainty
    assert all(f"| {name} " in uncertainty for name in said)
    assert "| AdaBN " not in uncertainty


def test_every_result_says_what_its_method_has_spent(evaluated):
    """Counted by hand from TINY: 24 source and 28 target images, the first iteration having 16 of these."""
    results = {result.method: result.settings for result in read_results(evaluated[0] / "evaluation" / "test")}
    steps = {method: settings["gradient_steps"] for method, settings in results.items()}
    gold, corrected = (steps.pop(f"{name} self-training") for name in ("gold", "gold and corrected"))
    by_loop = 4 * 2 + 4 * 2  # rollouts of 8, then 16 images, twice
    assert gold >= by_loop <= corrected
    assert steps == {
        **dict.fromkeys(("source only", "ensemble", "MC dropout"), 30 * 3),
        **dict.fromkeys(("AdaBN", *CORRECTED, "test-time augmentation"), 0),
        **dict.fromkeys(("Tiny", "Tiny, softmax"), by_loop),
        "entropy minimisation": 1,
        "TI-ST": 2,
        "UDAS": 2,
        "policy gradient": (2 * 16 + 2 * 28) // 8,
        "oracle RL": (2 * 16 + 2 * 28) // 8 * 2,
        "target-supervised": 30 * 4,
    }
    others = {method: settings["gradient_steps_others"] for method, settings in results.items()}
    prior = 10 * 3
    assert {others[name] for name in (*CORRECTED, "gold self-training")} == {prior}
    assert others["UDAS"] == 2, "its head"
    assert others["Tiny"] > prior < others["policy gradient"]
    assert others["policy gradient"] == others["Tiny"] + 4 * 2, "its reward network rests on the first PPO"
    none = {"source only", "AdaBN", "test-time augmentation", "entropy minimisation", "TI-ST", "oracle RL", "ensemble"}
    assert {method for method, number in others.items() if not number} == none | {"MC dropout", "target-supervised"}
    shares = {method: settings["gold_fraction"] for method, settings in results.items() if settings["gold_fraction"]}
    assert shares.keys() == {"Tiny", "Tiny, softmax", "gold self-training", "gold and corrected self-training"}
    assert 0 < shares["gold self-training"] <= shares["gold and corrected self-training"] <= 1
    assert 0 < shares["Tiny"] <= 1


def test_an_evaluation_draws_every_method(evaluated):
    run, out = evaluated
    pictures = sorted((run / "evaluation" / "test").glob("*.png"))
    assert len(pictures) == len(METHODS) + 1, "and how well uncertainty is calibrated"
    for picture in pictures:
        assert f"picture    {picture}" in out
        pixels = imageio.imread(picture)
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 1


def test_an_evaluation_changes_no_stage(tiny, evaluated):
    run, _ = evaluated
    assert_same(run, tiny)


def test_reference_policies_are_evaluated_by_name(copied, capsys):
    reconfigure(copied, {"baselines": []})
    assert call("evaluate", "--run", copied, "--policies", "truth", "random") == 0
    results = {result.method: result for result in read_results(copied / "evaluation" / "test")}
    assert results["truth"].metrics["dice_avg"] == 1.0
    assert results["random"].metrics["dice_avg"] < results["source only"].metrics["dice_avg"] < 1.0
    assert (results["truth"].supervision, results["random"].supervision) == ("target", "none")
    assert "| truth " in (copied / "evaluation" / "test" / "table.md").read_text()
    capsys.readouterr()
    said = "policy is 'rondom' but must be one of 'random', 'constant', 'truth'; did you mean 'random'?"
    assert_refused(call("evaluate", "--run", copied, "--policies", "rondom"), capsys, said)


def test_a_new_baseline_is_one_row_and_one_function(tmp_path, monkeypatch, capsys):
    def untrained(context):
        fresh = context.segmenter(context.seed("toy"))
        return one_unet(context, "toy", lambda stage: fresh, keys=UNET, work=lambda: 1.0)

    monkeypatch.setitem(BASELINES, "toy", NetworkBaseline("a toy", untrained, supervision="none", sees_target=False))
    made = catalogue.made_from_code()  # as `python -m segarena.agents.catalogue` would write it
    monkeypatch.setattr(catalogue, "_packaged", lambda: made)
    run = trained(tmp_path, QUICK, iterations=0, baselines=["toy"])
    assert stages_of(run) == ["baselines/toy", "supervised"]
    assert call("evaluate", "--run", run) == 0
    results = {result.method: result.supervision for result in read_results(run / "evaluation" / "test")}
    assert results == {"source only": "source", "a toy": "none"}
    assert re.search(r"^\| a toy +\| none ", capsys.readouterr().out, re.MULTILINE)
    assert call("list") == 0
    assert "toy: a toy" in capsys.readouterr().out
    assert_refused(
        train(tmp_path / "named", QUICK, name="a toy", baselines=["toy"]), capsys, "a toy is the name of a run and of"
    )


def test_images_that_were_adapted_to_are_said_to_be_so(copied):
    reconfigure(copied, {"baselines": []})
    patient = context_of(copied).target.groups[0]
    assert call("evaluate", "--run", copied, "--cases", f"[{patient}]", "--out", copied / "known") == 0
    results = read_results(copied / "known")
    assert {result.method: result.mode for result in results} == {
        "source only": "inductive",
        "corrector": "inductive",
        "AdaBN": "transductive",
        "AdaBN + corrector": "transductive",
        "AdaBN + corrector where invalid": "transductive",
        "Tiny, softmax": "transductive",
        "Tiny": "transductive",
    }
    assert {result.split for result in results} == {patient}
    assert {case["patient"] for result in results for case in result.cases} == {patient}


def test_an_image_is_rendered_as_every_policy_masks_it(copied, capsys):
    assert call("render", "--run", copied) == 0
    assert re.search(r"episode.gif: phantom_b_200000_2CH_ED, policies 0 to 2; Dice lv 0\.\d+", capsys.readouterr().out)
    frames = imageio.imread(copied / "media" / "episode.gif", index=None)
    assert len(frames) == 4, "the image, and three masks"
    assert all(frame.std() > 1 for frame in frames)
    case = "phantom_b_200001_4CH_ES"
    assert call("render", "--run", copied, "--case", case, "--out", copied / "deep" / "other.gif") == 0
    assert imageio.imread(copied / "deep" / "other.gif", index=0).std() > 1
    assert_refused(call("render", "--run", copied, "--case", "x"), capsys, "case is 'x' but must be one of 'phantom")


def test_methods_and_names_may_change_and_runs_of_one_seed_are_compared_in_one_table(copied, tmp_path, capsys):
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    reconfigure(copied, {"baselines": ["entropy"]})
    reconfigure(other, {"baselines": [], "name": "Other"})
    assert call("evaluate", "--run", copied, other) == 0
    table = (copied / "evaluation" / "test" / "table.md").read_text().split("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert rows == [
        "source only", "AdaBN", "corrector", "AdaBN + corrector", "AdaBN + corrector where invalid",
        "entropy minimisation", "Tiny, softmax", "Tiny", "Other, softmax", "Other",
    ]  # fmt: skip
    capsys.readouterr()
    assert_refused(call("evaluate", "--run", copied, copied), capsys, "two runs are called 'Tiny' with seed 3")
    reconfigure(other, {"name": "entropy minimisation"})
    said = "entropy minimisation is the name of a run and of another row of the table"
    assert_refused(call("evaluate", "--run", copied, other), capsys, said)


# -- recorded data -------------------------------------------------------------------------------------------------


def test_the_data_set_of_the_user_is_read_and_never_written(tmp_path, recorded, all_valid, capsys):
    folders = [tmp_path / "source", tmp_path / "target"]
    before = [everything(folder) for folder in folders]
    run = trained(tmp_path / "here", recorded)
    assert "eval/anat_valid" in keys(run, "iteration_2/ppo")
    assert not {"eval/dice_endo", "eval/hd_epi"} & keys(run, "iteration_2/ppo"), "no truth is known"
    assert call("evaluate", "--run", run) == 0
    results = read_results(run / "evaluation" / "test")
    assert {(result.data, result.mode, *result.origins.items()) for result in results} == {
        ("target", "inductive", ("real", 4))
    }
    assert {tuple(result.metrics) for result in results} == {("valid", "subject_valid")}
    (row,) = re.findall(r"^\| Quick  .*", capsys.readouterr().out, re.MULTILINE)
    assert row.count("| – ") == 7, "all but the validity"
    assert call("render", "--run", run) == 0
    assert re.search(r"episode.gif: 2CHu3_ED, policies 0 to 2$", capsys.readouterr().out, re.MULTILINE)
    assert [everything(folder) for folder in folders] == before
    mask = Path("p3", "2ch", "2CHu3_ES.nii.gz")  # the test image gets a mask, its three neighbours have none
    (tmp_path / "target" / "gt" / mask).parent.mkdir(parents=True)
    shutil.copy(next((tmp_path / "source" / "gt").rglob("*.nii.gz")), tmp_path / "target" / "gt" / mask)
    assert call("evaluate", "--run", run) == 0
    said = capsys.readouterr()
    assert "1 of the 4 cases have labels: what needs labels is the mean over these." in said.out
    row = re.findall(r"^\| Quick  .*", said.out, re.MULTILINE)[0]
    assert not row.split("|")[8].strip().startswith("–"), "Dice is known now"
    (result,) = (result for result in read_results(run / "evaluation" / "test") if result.method == "Quick")
    (judged,) = (case for case in result.cases if "dice_avg" in case)
    assert judged["case_id"] == "2CHu3_ES"
    assert [case["labelled"] for case in result.cases] == [0, 1, 0, 0]
    assert result.metrics["dice_avg"] == judged["dice_avg"]
    assert result.metrics["valid"] == sum(case["valid"] for case in result.cases) / 4
