"""Configurations that RL4Seg refuses, and that nothing is written then."""

import shutil

import pytest
from rl4seg_runs import QUICK, assert_refused, call, everything, merged, reconfigure, train, trained


def test_a_run_on_data_that_moved_away_is_refused_by_key(tmp_path, recorded, all_valid, capsys):
    run = trained(tmp_path / "here", recorded, iterations=0)
    shutil.move(tmp_path / "source", tmp_path / "moved")
    reconfigure(run, {"source.data": str(tmp_path / "moved")})
    assert_refused(call("evaluate", "--run", run), capsys, "was made with source.data = ")


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": "pixel_accuracy"},
        {"gold.source": "gt"},
        {"baselines": ["oracle_rl"]},
        {"baselines": ["target_supervised"], "iterations": 0},
    ],
)
def test_what_needs_the_labels_of_the_target_is_refused_without_them(tmp_path, recorded, capsys, changes):
    said = " of 16 have none), but this configuration learns from them: reward "
    assert_refused(train(tmp_path / "here", merged(recorded, changes)), capsys, said)
    assert not (tmp_path / "here" / "run").exists()


REFUSED = {
    "too few target images": (
        {"new_images": 8},
        "the loop needs 18 target images (initial_images 2 + iterations 2 x new_images 8) but the splits "
        "['train', 'pred'] of 'phantom' have 16; lower new_images",
    ),
    "an unknown paper": ({"paper": "rl5seg"}, "paper is 'rl5seg' but must be one of 'spars', 'rl4seg'"),
    "sizes that differ": ({"target.size": 64}, "source.size is 32 but target.size is 64; they must be equal"),
    "images too small for the network": (
        {"source.size": 16, "target.size": 16},
        "source.size is 16 but the U-Net needs at least 32",
    ),
    "images that the shape prior cannot take": (
        {"source.size": 40, "target.size": 40},
        "source.size is 40 but the shape prior needs a multiple of 32",
    ),
    "a baseline twice": ({"baselines": ["tist", "udas", "tist"]}, "baselines names tist more than once"),
    "an unknown baseline": (
        {"baselines": ["tits"]},
        "'mc_dropout'; did you mean 'tist'?",
    ),
    "a baseline without its reward network": (
        {"baselines": ["policy_gradient"], "reward": "anatomical"},
        "needs iterations > 0 and reward 'reward_net'",
    ),
    "a baseline without a loop": ({"baselines": ["policy_gradient"], "iterations": 0}, "needs iterations > 0"),
    "a name that tables give to another": ({"name": "AdaBN"}, "AdaBN is the name of a run and of another row"),
    "a coefficient in the wrong place": (
        {"ppo.learner.ent_coef": 0.3},
        "ppo.learner.ent_coef is decided by ppo.epochs, ppo.batch, ppo.ent_coef, ppo.kl_coef and gold",
    ),
    "a mini-batch that fits the second iteration only": (
        {"ppo.learner.batch_size": 8},
        "batch_size is 8 but must divide num_envs x n_steps = 4 images",
    ),
    "a mini-batch with statistics of the batch": (
        {"ppo.learner.batch_size": 4, "network.norm_mode": "batch"},
        "network.norm_mode is 'batch', so that an inner step must see the whole rollout",
    ),
    "a batch that shrinks away": (
        {"ppo.batch": {"kind": "inv_iter", "c0": 1}, "iterations": 3, "new_images": 4},
        "num_envs is 0 but must be at least 1",
    ),
    "one logit for three classes": ({"ppo.learner.head": "bernoulli"}, "three labels per pixel; use 'categorical'"),
    "groups with a critic": (
        {"ppo.learner.group_size": 2},
        "critic is 'unet' with objective 'ppo' and group_size 2",
    ),
    "an odd number of maps": ({"network.init_channels": 3}, "init_channels is 3 but must be even"),
    "no dropout to draw": ({"network.dropout": 0.0}, "dropout is 0.0 but must lie in (0, 1)"),
    "a pool with images twice": ({"pool": ["train", "train"]}, "must name each split once"),
    "an unknown split": ({"pool": ["train", "prde"]}, "split is 'prde' but 'phantom' has"),
    "no validation images": ({"target.phantom_patients.val": 0}, "split 'val' of 'phantom' has no patient"),
    "a fraction above 1": ({"gold.fraction": 1.5}, "gold.fraction is 1.5 but must lie in [0, 1]"),
    "no images per iteration": ({"new_images": 0}, "new_images is 0 but must be at least 1"),
    "a network alone": ({"evaluation.ensemble": 1}, "evaluation.ensemble is 1 but must be at least 2"),
    "a missing folder": ({"target.data": "gone", "target.vendor": None}, "gone does not exist or is no folder"),
    "an unknown key": ({"ppo.epoch": 3}, "epoch"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_value_is_refused_with_the_rule_before_anything_is_written(tmp_path, monkeypatch, capsys, what):
    monkeypatch.chdir(tmp_path)
    changes, said = REFUSED[what]
    assert_refused(train(tmp_path, merged(QUICK, changes)), capsys, said)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_resumed_run_keeps_its_paper(copied, capsys):
    before = everything(copied)
    status = call("train", "--resume", copied, "--paper", "ppo")
    said = f"--paper is of paper 'ppo' but {copied / 'config.yaml'} of 'rl4seg'; give those of one paper"
    assert_refused(status, capsys, said)
    assert everything(copied) == before
