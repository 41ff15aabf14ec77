"""RL4Seg's loop: what a training leaves behind and logs, and what a policy can come to."""

import json
import shlex

import imageio.v3 as imageio
import pytest
import torch
from rl4seg_runs import (
    LOOP,
    QUICK,
    assert_refused,
    call,
    context_of,
    count_all,
    everything,
    keys,
    merged,
    stages_of,
    train,
)
from safetensors.torch import load_file
from segarena.agents.dense_ppo.ppo import DensePPO
from segarena.agents.program import PROGRAM
from segarena.agents.rl4seg import stages as rl4seg_stages
from segarena.agents.rl4seg.context import Context
from segarena.agents.rl4seg.training import planned
from segarena.common.networks import save_network
from segarena.common.runs import Run
from segarena.rewards.corrector import Corrector
from segarena.rewards.echo_validity import valid_masks
from segarena.segmenters.inference import segment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_a_training_leaves_every_stage_finished_with_its_files(tiny):
    single = ["entropy", "gold_self_training", "corrected_self_training", "policy_gradient", "oracle_rl"]
    single += ["target_supervised", "mc_dropout"]
    methods = [
        f"baselines/{name}" for name in (*single, "ensemble/1", "tist", "tist/lv", "tist/myo", "udas", "udas/head")
    ]
    assert stages_of(tiny) == sorted([*LOOP, *methods])
    files = {name: set(json.loads((tiny / name / "manifest.json").read_text())["sha256"]) for name in stages_of(tiny)}
    segmenter = {"segmenter.safetensors"}
    for i in (1, 2):
        assert files[f"iteration_{i}/reward_data"] == {
            f"{kind}.safetensors" for kind in ("triplets", "gold", "corrected")
        }
        assert files[f"iteration_{i}/reward_net"] == {"reward_net.safetensors"}
        assert files[f"iteration_{i}/ppo"] == segmenter | {"critic.safetensors"}
    assert files["supervised"] == files["adabn"] == files["baselines/policy_gradient"] == segmenter
    assert files["baselines/tist"] == {"lv/weights.safetensors", "myo/weights.safetensors"}
    assert not list(tiny.rglob(".*")), "nothing is left of what was half done"


def test_every_curve_of_the_page_is_logged(tiny):
    """Those of docs/rl4seg.md, "Logged metrics"."""
    train_keys = "policy_loss value_loss entropy approx_kl kl_ref clip_fraction ratio_mean adv_mean explained_variance"
    for i in (1, 2):
        shown = keys(tiny, f"iteration_{i}/ppo")
        assert {f"train/{key}" for key in [*train_keys.split(), "gold_fraction", "grad_norm_actor"]} <= shown
        assert {"rollout/ep_rew_mean", "rollout/pixel_reward_p10"} <= shown
        judged = "val_reward_argmax val_reward_sampled dice_endo dice_epi hd_endo hd_epi anat_valid"
        assert {f"eval/{key}" for key in judged.split()} <= shown
        nets = {f"reward_net/{key}" for key in ("val_bce", "ece", "temperature", "n_triplets")}
        assert nets <= keys(tiny, f"iteration_{i}/reward_net")
        counted = {f"reward_data/{key}" for key in ("n_images", "n_valid", "n_corrected", "n_dropped", "n_triplets")}
        assert counted <= keys(tiny, f"iteration_{i}/reward_data")
    assert "segmenter/dice" in keys(tiny, "supervised")


@pytest.mark.parametrize("stage", ["iteration_1/reward_net", "iteration_1/ppo", "baselines/oracle_rl"])
def test_tensorboard_has_the_same_curves_and_pictures(tiny, stage):
    shown = EventAccumulator(str(tiny / "tensorboard" / "run" / stage)).Reload()
    assert set(shown.Tags()["scalars"]) == keys(tiny, stage)
    if stage.endswith("net"):
        return
    assert set(shown.Tags()["images"]) == {"eval/mask", "eval/doubt"}
    for picture in shown.Images("eval/mask"):
        assert imageio.imread(picture.encoded_image_string).std() > 1


def test_gold_masks_are_valid_and_stay_gold(tiny):
    first, second = (load_file(tiny / f"iteration_{i}/reward_data/gold.safetensors") for i in (1, 2))
    assert valid_masks(second["masks"]).all()
    assert first["rows"].min() >= 4, "the initial images give no reward data"
    assert first["rows"].max() < 16 <= second["rows"][len(first["rows"]) :].min()
    assert torch.equal(second["rows"][: len(first["rows"])], first["rows"])
    assert torch.equal(second["masks"][: len(first["rows"])], first["masks"])
    said = [Run(tiny / f"iteration_{i}/reward_data").metrics()[0] for i in (1, 2)]
    assert [line["reward_data/n_images"] for line in said] == [12, 12]
    assert sum(line["reward_data/n_valid"] for line in said) == len(second["rows"]) > len(first["rows"]) > 0


def test_the_policy_that_is_kept_had_the_best_reward_on_validation_images(tiny):
    run, i = context_of(tiny), 1
    lines = [line for line in Run(tiny / "iteration_1/ppo").metrics() if "eval/val_reward_argmax" in line]
    assert [line["step"] for line in lines] == [0, 16, 32]
    masks = segment(run.load(tiny / "iteration_1/ppo"), run.target_val.images)
    worth = rl4seg_stages.reward_function(run, i)(run.target_val.at(torch.arange(len(masks))), masks, None).mean()
    assert float(worth) == pytest.approx(max(line["eval/val_reward_argmax"] for line in lines[1:]), abs=1e-6)


def test_the_exported_policy_gives_the_same_masks(tiny):
    model = DensePPO.load(tiny.parent / "policy.zip", device="cpu")
    context = context_of(tiny)
    images = context.target.images[:5]
    actions, _ = model.predict((images.float() / 255).numpy(), deterministic=True)
    masks = segment(context.load(tiny / "iteration_2/ppo"), images)
    assert torch.equal(torch.from_numpy(actions).view(5, 32, 32), masks.long())
    assert len(masks.unique()) == 3


# -- what a policy can come to -------------------------------------------------------------------------------------


def collapsed(net):
    """The same network, but background everywhere."""
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    return net


def test_a_policy_that_sees_background_only_ends_the_loop_with_advice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rl4seg_stages, "train_segmenter", lambda net, *_: collapsed(net))
    assert_refused(
        train(tmp_path, QUICK), capsys, "iteration 1: no mask was valid", "7", "supervised.epochs", "norm_mode"
    )
    run = tmp_path / "run"
    assert stages_of(run) == ["adabn", "shape_prior", "supervised"]
    before = everything(run)
    assert_refused(call("train", "--resume", run), capsys, "iteration 1: no mask was valid")
    assert everything(run) == before
    assert_refused(call("evaluate", "--run", run), capsys, "is not finished: it lacks iteration_1/reward_data")


def printed_command(message):
    """The command at the end of an error message, as arguments of `call`."""
    command = message.strip().partition(f"{PROGRAM} ")[2]
    assert command, message
    return shlex.split(command)


def test_masks_that_obey_no_rule_end_with_a_command_that_trains_longer_in_a_new_run(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(rl4seg_stages, "train_segmenter", lambda net, *_: collapsed(net))
        assert train(tmp_path, QUICK) == 2
    message = capsys.readouterr().err
    assert "none of 7 masks of the policy obeys the anatomical rules" in message
    command = printed_command(message)
    assert command[-4:] == ["--supervised.epochs", "4", "--out", f"{tmp_path / 'run'}-2"]
    count_all(monkeypatch)
    assert call(*command) == 0
    assert Run(tmp_path / "run-2").config["supervised"]["epochs"] == 4


def test_masks_unlike_their_correction_end_with_a_command_that_goes_on_with_a_lower_threshold(
    tmp_path, monkeypatch, capsys, all_valid
):
    monkeypatch.setattr(Corrector, "__call__", lambda self, masks: torch.roll(masks, 1, dims=2))
    assert train(tmp_path, QUICK, iterations=1) == 2
    message = capsys.readouterr().err
    assert "stage 1 of 6: supervised: begins" in message
    assert "stage 4 of 6: iteration_1/reward_data: begins" in message
    assert "7 of 7 masks of the policy obey the anatomical rules, but the likeness to their correction is at" in message
    command = printed_command(message)
    assert command[:4] == ["train", "--resume", str(tmp_path / "run"), "--reward_data.sim_threshold"]
    kept = everything(tmp_path / "run" / "supervised")
    assert call(*command) == 0
    assert everything(tmp_path / "run" / "supervised") == kept
    assert "iteration_1/ppo" in stages_of(tmp_path / "run")


def test_the_stages_that_are_told_are_those_that_are_made(tiny):
    context = context_of(tiny)
    made = [name for name in stages_of(tiny) if name.count("/") < 2 or "ensemble" in name]
    assert planned(context) == {}, "of a finished run nothing is left"
    plan = planned(Context(context.experiment, Run("nowhere"), trains=True))
    assert sorted(plan) == made
    assert all(work > 0 for work in plan.values())
    assert list(plan)[:3] == ["supervised", "shape_prior", "adabn"] or list(plan)[:2] == ["supervised", "adabn"]


def test_a_policy_of_nan_is_not_finished(tmp_path, capsys, all_valid):
    changes = {"reward": "pixel_accuracy", "iterations": 1, "ppo.learner.actor_lr": 1.0}
    status = train(tmp_path, merged(QUICK, changes))
    assert_refused(status, capsys, "training stopped at step ", " is nan", "with a lower learning rate")
    stage = tmp_path / "run" / "iteration_1" / "ppo"
    assert "iteration_1/ppo" not in stages_of(tmp_path / "run")
    assert "NaN" not in (stage / "metrics.jsonl").read_text()
    assert all(value.isfinite().all() for value in Run(stage).checkpoint().weights.values())


def test_a_policy_that_collapses_in_ppo_ends_the_next_iteration_with_advice(tmp_path, monkeypatch, capsys, all_valid):
    valid = lambda masks, **_: (masks > 0).flatten(1).any(dim=1)  # noqa: E731
    monkeypatch.setattr(rl4seg_stages, "valid_masks", valid)
    learn = rl4seg_stages.train_policy

    def learn_badly(context, stage, **settings):
        files = learn(context, stage, **settings)
        save_network(stage.folder / files[0], collapsed(context.load(stage.folder)))
        return files

    monkeypatch.setattr(rl4seg_stages, "train_policy", learn_badly)
    assert_refused(train(tmp_path, QUICK), capsys, "iteration 2: no mask was valid", "ppo.kl_coef")
    assert "iteration_1/ppo" in stages_of(tmp_path / "run")
    assert not (tmp_path / "run" / "iteration_2" / "reward_net").exists()


def test_gold_masks_without_triplets_are_told_apart(tmp_path, capsys, all_valid):
    """All masks are gold, so that nothing is left to correct."""
    off = {"reward_data.swap": False, "reward_data.model": False, "reward_data.image": False}
    assert_refused(
        train(tmp_path, merged(QUICK, off)), capsys, "iteration 1: 7 images gave 7 gold masks but no triplet"
    )
