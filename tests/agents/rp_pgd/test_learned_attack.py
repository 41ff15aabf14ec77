"""A trained policy as an attack: the episodes of its environment, on any model, in a report and in a training."""

import pytest
import torch
import yaml
from adversarial_toys import TINY, toy_victim, toys
from segarena.agents.command_line import main
from segarena.agents.generic import env_of
from segarena.agents.rp_pgd.config import TrainingConfig
from segarena.agents.rp_pgd.learned_attack import LearnedAttack, open_attack
from segarena.attacks.methods import ATTACKS
from segarena.attacks.options import RPOptions
from segarena.attacks.victims import PACKAGED, load_victim
from segarena.common.checkpoints import load_weights
from segarena.datasets.scenes.images import PhantomScenes, SceneDataConfig, load_scenes
from segarena.evaluation.robustness import robustness_report

EPS = "8/255"
SETTINGS = {"split": "train[:4]", "size": 33, "horizons": [2], "eps": EPS, "residual_to": "segpgd"}


def policy_run(out, *options, **settings):
    config = {
        "paper": "ppo",
        "name": "learned attack",
        "env": "RPPGD-VOC-v0",
        "device": "cpu",
        "settings": {**SETTINGS, **settings},
        "ppo": {"total_timesteps": 32, "num_envs": 4, "n_steps": 4, "batch_size": 16, "n_epochs": 1},
    }
    config["ppo"] |= {"normalize_observations": True, "net_arch": [8]}
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(path), "--out", str(out), *options]) == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return policy_run(tmp_path_factory.mktemp("learned") / "attack")


@pytest.fixture(scope="module")
def scenes():
    """Five scenes of 33 x 33 pixels that nothing was trained on."""
    return load_scenes(SceneDataConfig(size=33, phantom_scenes=PhantomScenes(test=5)), "test").pool()


def test_it_plays_the_episodes_of_its_environment(run, scenes):
    attack, (victim, _) = LearnedAttack.open(run), load_victim(PACKAGED["scenes"])
    images, labels = scenes.at(torch.arange(5)), scenes.labels.long()
    found = attack(victim, images, labels, eps=EPS, feature_layer="model.merge.1")
    env = env_of(attack.experiment, 5, split="test[:5]")
    env.reset(options={"index": [0, 1, 2, 3, 4]})
    for _ in range(2):
        env.step(attack.policy(env))
    torch.testing.assert_close(found, env.x_adv, rtol=0, atol=1e-6)
    assert 0.5 < float((found - images).abs().max() / (8 / 255)) <= 1 + 1e-5
    with torch.inference_mode():
        again = attack(victim, images, labels, eps=EPS, feature_layer="model.merge.1")
    torch.testing.assert_close(again, found, rtol=0, atol=0, msg="the likeliest action is not drawn")


def test_its_policy_is_what_moves_the_image(run, scenes):
    attack, (victim, _) = LearnedAttack.open(run), load_victim(PACKAGED["scenes"])
    images, labels = scenes.at(torch.arange(5)), scenes.labels.long()
    attack.policy.policy.action_net.weight.data.zero_()
    attack.policy.policy.action_net.bias.data.zero_()
    found = attack(victim, images, labels, eps=EPS, feature_layer="model.merge.1")
    segpgd = ATTACKS["segpgd"](victim, images, labels, eps=EPS, steps=2)
    torch.testing.assert_close(found, segpgd, rtol=0, atol=1e-6, msg="a residual of 0 is the script")
    attack.policy.policy.action_net.bias.data[7] = -1.0
    smaller = attack(victim, images, labels, eps=EPS, feature_layer="model.merge.1")
    assert float((smaller - images).abs().mean()) < 0.7 * float((found - images).abs().mean())


def test_it_begins_at_the_clean_image_wherever_its_policy_was_trained_from(scenes, tmp_path):
    attack = LearnedAttack.open(policy_run(tmp_path / "random", rand_start=True))
    (victim, _), starts = load_victim(PACKAGED["scenes"]), []
    images, labels = scenes.at(torch.arange(2)), scenes.labels[:2].long()
    attack(victim, images, labels, eps=EPS, watch=lambda core: starts.append(core.adversarial.clone()))
    assert torch.equal(starts[0], images)


def test_the_schedule_of_its_open_loop_is_an_attack(scenes, tmp_path):
    folder = policy_run(tmp_path / "tuned", "--open_loop.generations", "1", "--open_loop.episodes", "4")
    attack, (victim, _) = open_attack(str(folder / "open_loop")), load_victim(PACKAGED["scenes"])
    images, labels = scenes.at(torch.arange(5)), scenes.labels.long()
    assert attack.title == "learned attack, open loop"
    assert attack.name != open_attack(str(folder)).name
    found = attack.function(victim, images, labels, eps=EPS, feature_layer="model.merge.1")
    (schedule,) = load_weights(folder / "open_loop" / "schedule.safetensors")[0].values()
    env = env_of(LearnedAttack.open(folder).experiment, 5, split="test[:5]")
    env.reset(options={"index": [0, 1, 2, 3, 4]})
    for action in schedule:
        env.step(action.expand(5, -1))
    torch.testing.assert_close(found, env.x_adv, rtol=0, atol=1e-6)


def test_it_stands_in_a_report_of_any_model(run):
    victim, pool = toy_victim(), toys(3).pool()
    attack = open_attack(str(run))
    report = robustness_report(
        victim, pool.at(torch.arange(3)), pool.labels, eps=EPS, attacks=[attack, "segpgd_2"], sanity=False,
        progress=False, feature_layer="model.features",
    )  # fmt: skip
    learned = report.of(attack.name)
    assert attack.name.startswith("learned_attack_")
    assert (learned.steps, learned.title, learned.backwards) == (2, "learned attack", 2)
    assert max(learned.farthest) <= 8 / 255 + 1e-5
    assert learned.both != report.of("clean").both


def test_a_segmenter_is_trained_and_judged_by_it(run, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    options = ["--training.attack", str(run), "--training.steps", "2", "--training.eps", EPS, "--training.epochs", "1"]
    arguments = ["--config", str(tmp_path / "tiny.yaml"), *options, "--evaluation.attacks", f"[{run}]"]
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0
    assert "learned attack, ε = 8/255" in capsys.readouterr().out
    assert main(["train", *arguments, "--training.steps", "3", "--out", str(tmp_path / "other")]) == 2
    assert "was trained for 2" in capsys.readouterr().err


def test_a_training_opens_its_policy_once(run, monkeypatch):
    opened, own = [], LearnedAttack.open
    monkeypatch.setattr(LearnedAttack, "open", lambda folder: opened.append(folder) or own(folder))
    config = TrainingConfig(method="at", attack=str(run), steps=2)
    assert config.inner_attack is config.inner_attack
    assert opened == [str(run)]


def test_what_a_policy_cannot_follow_is_refused(run, scenes, tmp_path):
    attack, (victim, _) = LearnedAttack.open(run), load_victim(PACKAGED["scenes"])
    images, labels = scenes.at(torch.arange(2)), scenes.labels[:2].long()
    for wrong, said in (
        ({"steps": 5}, "trained for 2"),
        ({"step_size": 0.1}, "step_size cannot be chosen"),
        ({"random_start": True}, "random_start cannot be chosen"),
        ({"options": RPOptions(region_norm="global")}, "options cannot be chosen"),
        ({"bounds": (-1.0, 1.0)}, r"images in \[0, 1\]"),
        ({"ignore_index": 0}, "255 as the label"),
    ):
        with pytest.raises(ValueError, match=said):
            attack(victim, images, labels, eps=EPS, **wrong)
    with pytest.raises(ValueError, match="one number of steps"):
        LearnedAttack.open(policy_run(tmp_path / "two", horizons=[2, 3]))
