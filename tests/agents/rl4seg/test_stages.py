"""Each stage of RL4Seg depends on all that it reads of the configuration, and on nothing else."""

from collections import defaultdict
from dataclasses import fields, replace

import pytest
import torch
from segarena.agents.rl4seg import stages, training
from segarena.agents.rl4seg.baselines import BASELINES
from segarena.agents.rl4seg.config import (
    GoldConfig,
    NetworkConfig,
    PPOStageConfig,
    ProtocolConfig,
    RL4SegExperiment,
    Schedule,
    SourceNetConfig,
)
from segarena.agents.rl4seg.context import Context
from segarena.common.manifests import Manifest
from segarena.common.runs import Run
from segarena.datasets.echo.images import EchoDataConfig, PhantomPatients
from segarena.rewards.corrector import Corrector
from segarena.rewards.shape_prior import ShapePriorConfig
from segarena.segmenters.tist import TistConfig
from segarena.segmenters.udas import UdasConfig

TRAINED = [name for name, row in BASELINES.items() if row.networks]
SMALL = RL4SegExperiment(
    device="cpu",
    source=EchoDataConfig(size=32, phantom_patients=PhantomPatients(train=2, val=1, test=0, pred=0)),
    target=EchoDataConfig(vendor="b", size=32, phantom_patients=PhantomPatients(train=1, val=1, test=1, pred=3)),
    network=NetworkConfig(init_channels=2),
    supervised=SourceNetConfig(epochs=1, batch_size=4),
    shape_prior=ShapePriorConfig(epochs=1, init_channels=1, latent=8),
    iterations=2,
    initial_images=2,
    new_images=7,
    ppo=PPOStageConfig(epochs=1, batch=Schedule("linear_iter", 4)),
    tist=TistConfig(epochs=2),
    udas=UdasConfig(head_epochs=1, epochs=1),
    baselines=TRAINED,
)
LOADED = ("source", "source_val", "target_all", "target", "target_val")
"""Data and networks that a context loads once: each stage shall load its own, so that it is seen to read the keys."""


def watch(patch, kind, prefix, read):
    """Tell `read` of every field of this dataclass that is asked for."""
    names = {field.name for field in fields(kind)}

    def watched(self, name):
        if name in names:
            read(prefix + name)
        return object.__getattribute__(self, name)

    patch.setattr(kind, "__getattribute__", watched)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run of SMALL, in which every mask is valid, and the keys that each stage read while it was made."""
    inside, reads, stage = [], defaultdict(set), Context.stage

    def watched_stage(self, name, make, **more):
        def watched(run):
            for loaded in LOADED:
                self.__dict__.pop(loaded, None)
            inside.append(name)
            files = make(run)
            inside.pop()
            return files

        return stage(self, name, watched, **more)

    def read(key):
        if inside:
            reads[inside[-1]].add(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "valid_masks", lambda masks, **_: torch.ones(len(masks), dtype=torch.bool))
        patch.setattr(Corrector, "__call__", lambda self, masks: masks)
        patch.setattr(Context, "stage", watched_stage)
        for kind, prefix in ((RL4SegExperiment, ""), (NetworkConfig, "network."), (GoldConfig, "gold.")):
            watch(patch, kind, prefix, read)
        run = Run(tmp_path_factory.mktemp("stages") / "run")
        training.train(SMALL.resolved(), run)
    return run, reads


INSIDE = {"baselines/tist/lv", "baselines/tist/myo", "baselines/udas/head"}
"""Stages of a stage, which depend on all that the outer one depends on; what is read for them, that one reads."""


def manifests(run):
    """The settings that every finished stage depends on, by its name."""
    folders = [path.parent for path in run.folder.rglob("manifest.json") if path.parent.parent.name != "checkpoints"]
    return {str(folder.relative_to(run.folder)): Manifest.read(folder).configuration for folder in folders}


def test_a_stage_depends_on_every_key_that_it_reads(trained):
    run, reads = trained
    found = manifests(run)
    assert reads.keys() == found.keys() - INSIDE
    for name, keys in reads.items():
        for key in keys - {"network", "gold"}:  # their own fields are watched
            known = [one for one in found[name] if one == key or one.startswith(f"{key}.")]
            assert known, f"{name} reads {key}, which its manifest does not name"


LOOP = {f"iteration_{i}/{part}" for i in (1, 2) for part in ("reward_data", "reward_net", "ppo")}
SELF_TRAINING = {"baselines/gold_self_training", "baselines/corrected_self_training"}
BY_RL = {"baselines/policy_gradient", "baselines/oracle_rl"}
ON_SOURCE = {
    "supervised",
    "shape_prior",
    "baselines/ensemble/1",
    "baselines/ensemble/2",
    "baselines/ensemble/3",
    "baselines/mc_dropout",
}


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("name", set()),
        ("device", set()),
        ("evaluation.pictures", set()),
        ("source.cache_dir", set()),
        ("udas.epochs", {"baselines/udas", "baselines/udas/head"}),
        ("entropy.epochs", {"baselines/entropy"}),
        ("warm_start.sigma", {"iteration_2/ppo"}),
        ("network.dropout", {"baselines/mc_dropout"}),
        ("shape_prior.epochs", {"shape_prior", *LOOP, "baselines/policy_gradient", *SELF_TRAINING}),
        ("reward_net.epochs", {*LOOP, "baselines/policy_gradient"} - {"iteration_1/reward_data"}),
        ("ppo.epochs", {*LOOP, *SELF_TRAINING, *BY_RL} - {"iteration_1/reward_data", "iteration_1/reward_net"}),
    ],
)
def test_a_key_is_named_by_the_stages_that_it_decides_and_by_those_after_them(trained, key, names):
    run, _ = trained
    assert {name for name, settings in manifests(run).items() if key in settings} == names


def test_a_stage_in_a_stage_depends_on_all_that_the_outer_one_depends_on(trained):
    found = manifests(trained[0])
    for name in INSIDE:
        assert found[name].items() >= found[name.rpartition("/")[0]].items()


def test_the_target_decides_no_stage_that_learns_from_the_source_only(trained):
    run, _ = trained
    found = {name for name, settings in manifests(run).items() if not any("target." in key for key in settings)}
    assert found == ON_SOURCE


@pytest.mark.parametrize(
    ("changes", "refused", "others"),
    [
        ({"name": "Other", "evaluation": ProtocolConfig(pictures=1)}, None, 0),
        ({"udas": replace(SMALL.udas, epochs=7)}, "baselines/udas/manifest.json was made with udas.epochs = 1", 0),
        ({"network": replace(SMALL.network, dropout=0.5)}, "mc_dropout/manifest.json was made with network.dropout", 0),
        ({"gold": GoldConfig(fraction=0.5)}, "iteration_1/ppo/manifest.json was made with gold.fraction = 1.0", 0),
        ({"supervised": SourceNetConfig(epochs=7)}, "/supervised/manifest.json was made with supervised.", 9),
    ],
)
def test_a_changed_key_stops_the_first_stage_that_depends_on_it_and_those_after_it(trained, changes, refused, others):
    run, _ = trained
    context = Context(replace(SMALL, **changes).resolved(), run, trains=False)
    found = []

    def check(part):
        try:
            part(context)
        except ValueError as error:
            found.append(str(error))

    for part in (stages.loop, *(BASELINES[name].networks for name in TRAINED)):
        check(part)
    if refused is None:
        assert found == []
    else:
        assert refused in found[0]
        assert len(found) == 1 + others
