"""RL4Seg's loop: what a training leaves behind and logs, and what a policy can come to."""

import json

import imageio.v3 as imageio
import pytest
import torch
from rl4seg_runs import LOOP, QUICK, assert_refused, call, context_of, everything, keys, merged, stages_of, train
from safetensors.torch import load_file
from segarena.agents.dense_ppo.ppo import DensePPO
from segarena.agents.rl4seg import stages as rl4seg_stages
from segarena.common.networks import save_network
from segarena.common.runs import Run
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
