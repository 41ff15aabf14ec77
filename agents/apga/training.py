"""Training of a classifier of X-rays with a masking agent, stage by stage (docs/apga.md, Method 17).

classifier/   the classifier on plain images: classifier.safetensors
foreground/   the agent, fitted to what is bright (`agent.init: foreground`): agent.safetensors
warm_up/      the agent, trained while the classifier is frozen (`warm_up.epochs` above 0): agent.safetensors
joint/        both after the loop: classifier.safetensors and, where the method has an agent, agent.safetensors
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam

from ...classifiers.train_xray import FILE, build_classifier, check_classes, train_xray
from ...classifiers.xray import XrayClassifier
from ...common.checkpoints import load_weights
from ...common.device import forked_rng
from ...common.fitting import Scalars, descend, fit, shuffled_rows
from ...common.networks import load_network, save_network
from ...common.progress import Progress
from ...common.runs import Run
from ...datasets.xray.images import XrayConfig, XrayPool, load_xrays
from ...evaluation.classification import image_metrics
from ...segmenters.grid_network import GridNetwork
from ...segmenters.pretrained import load_ternausnet, load_vgg11
from ...segmenters.unet11 import UNet11
from ..context import StageContext
from .config import AgentConfig, APGAExperiment
from .game import Agent, Players, look
from .joint import train_jointly, warm_up
from .masks import foreground
from .methods import Method, method_of
from .updates import bce

CLASSIFIER, FOREGROUND, WARM_UP, JOINT = "classifier", "foreground", "warm_up", "joint"
AGENT = "agent.safetensors"
"""Name of the agent's file in the folder of its stage."""
DATA = ("seed", *(f"data.{field.name}" for field in fields(XrayConfig) if field.name != "cache_dir"))
"""Keys of the configuration that decide the images."""
LEARNING = ("agent", "reward", "update")
"""Keys that decide how an agent learns."""
FOREGROUND_RATE = 1e-3
"""Adam learning rate of the fit to what is bright."""


class Context(StageContext[APGAExperiment]):
    """Images on the device, and the method, for the stages of one run."""

    @cached_property
    def row(self) -> Method:
        """The method."""
        return method_of(self.experiment)

    @cached_property
    def train(self) -> XrayPool:
        """Images to learn from."""
        return load_xrays(self.experiment.data, "train", "--data.").to(self.device)

    @cached_property
    def val(self) -> XrayPool:
        """Images that choose the epoch."""
        return load_xrays(self.experiment.data, "val", "--data.").to(self.device)


def check(experiment: APGAExperiment) -> None:
    """Raises whatever can be known to be wrong before anything is written."""
    context = Context(experiment, Run("."), trains=False)
    classes = len(experiment.data.classes)
    for purpose, pool in (("training", context.train), ("validation", context.val)):
        check_classes(pool.labels, classes, purpose)
    build_classifier(experiment.classifier, classes, 0, torch.device("cpu"))
    if context.row.learner is not None:
        build_agent(experiment.agent, experiment.data.size, 0)


def train(experiment: APGAExperiment, run: Run) -> None:
    """Train every stage that is not finished."""
    context = Context(experiment, run, trains=True)
    run.progress = Progress(planned(experiment, context.row))
    last(context)


def planned(experiment: APGAExperiment, row: Method) -> dict[str, float]:
    """The stages of a run with about how many passes of the training images each takes."""
    work = {CLASSIFIER: float(max(1, experiment.classifier.epochs))}
    if row.learner is not None and experiment.agent.init == FOREGROUND:
        work[FOREGROUND] = float(experiment.agent.foreground_epochs)
    asked = float(experiment.update.samples)
    if experiment.warm_up.epochs:
        work[WARM_UP] = asked * experiment.warm_up.epochs
    if row.steps:
        work[JOINT] = experiment.training.epochs * sum(asked if step == "agent" else 1.0 for step in row.steps)
    return work


# -- stages ---------------------------------------------------------------------------------------------------------


def last(context: Context) -> Path:
    """The folder of the last stage, which holds the trained classifier."""
    return joint(context) if context.row.steps else plain_classifier(context)


def plain_classifier(context: Context) -> Path:
    """The classifier after its training on plain images."""
    experiment = context.experiment

    def make(stage: Run) -> list[str]:
        classes = len(experiment.data.classes)
        net = build_classifier(experiment.classifier, classes, context.seed("classifier"), context.device)
        seed = context.seed("plain")
        train_xray(net, context.train, context.val, experiment.classifier, stage, seed, metrics=image_metrics)
        return [FILE]

    return context.complete(CLASSIFIER, make, (*DATA, "classifier"))


def fitted_agent(context: Context) -> Path:
    """The agent, fitted to what is brighter than Otsu's threshold of each image."""
    experiment = context.experiment

    def make(stage: Run) -> list[str]:
        agent = build_agent(experiment.agent, experiment.data.size, context.seed("agent")).to(context.device)
        fit_foreground(agent, context.train, context.val, experiment, stage, context.seed("foreground"))
        save_network(stage.folder / AGENT, agent)
        return [AGENT]

    return context.complete(FOREGROUND, make, (*DATA, "agent", "training.batch_size"))


def warmed_agent(context: Context) -> Path:
    """The agent after its training against the frozen classifier."""
    experiment, before = context.experiment, [plain_classifier(context)]
    before += [fitted_agent(context)] if experiment.agent.init == FOREGROUND else []

    def make(stage: Run) -> list[str]:
        players = Players(load_classifier(context, before[0]), first_agent(context))
        warm_up(players, context.row, context.train, context.val, experiment, stage, context.seed("warm_up"))
        assert players.agent is not None
        save_network(stage.folder / AGENT, players.agent)
        return [AGENT]

    of_training = (f"training.{name}" for name in ("method", "fill", "augment", "batch_size"))
    return context.complete(WARM_UP, make, (*DATA, *LEARNING, "warm_up", *of_training), before)


def joint(context: Context) -> Path:
    """Classifier and agent after the loop."""
    experiment, row, before = context.experiment, context.row, [plain_classifier(context)]
    if row.learner is not None:
        before += [fitted_agent(context)] if experiment.agent.init == FOREGROUND else []
        before += [warmed_agent(context)] if experiment.warm_up.epochs else []

    def make(stage: Run) -> list[str]:
        classifier = load_classifier(context, before[0])
        start = deepcopy(classifier).requires_grad_(False) if row.looks_back else None
        if experiment.training.split_bn:
            classifier.split_statistics()
        agent = None
        if row.learner is not None:
            agent = load_agent(context, before[-1]) if experiment.warm_up.epochs else first_agent(context)
        players = Players(classifier.to(context.device), agent)
        seed = context.seed("joint")
        best = train_jointly(players, row, context.train, context.val, experiment, stage, seed, start=start)
        save_network(
            stage.folder / FILE, classifier, {"training": {"method": experiment.training.method, "best": best}}
        )
        if agent is not None:
            save_network(stage.folder / AGENT, agent)
        return [FILE, AGENT] if agent is not None else [FILE]

    return context.complete(JOINT, make, (*DATA, "training", *(LEARNING if row.learner else ())), before)


def load_classifier(context: Context, folder: Path) -> XrayClassifier:
    """The classifier of a stage, in eval mode, on the device."""
    return load_network(folder / FILE, XrayClassifier).to(context.device)


def first_agent(context: Context) -> Agent:
    """The agent as its training by rewards begins, on the device."""
    if context.experiment.agent.init == FOREGROUND:
        return load_agent(context, fitted_agent(context))
    agent = build_agent(context.experiment.agent, context.experiment.data.size, context.seed("agent"))
    return agent.to(context.device)


def load_agent(context: Context, folder: Path) -> Agent:
    """The agent of a stage, on the device."""
    return read_agent(folder / AGENT, context.experiment.agent).to(context.device)


def read_agent(path: str | Path, config: AgentConfig, **needed: object) -> Agent:
    """The agent of a file of ours, of the kind of a configuration; `needed` and what is raised: as `load_network`."""
    if config.kind == "grid":
        return load_network(path, GridNetwork, **needed)
    return load_network(path, UNet11, **needed)


def build_agent(config: AgentConfig, size: int, seed: int) -> Agent:
    """The agent that a configuration describes, on the CPU.

    Args:
        config: kind and weights.
        size: side of the images in pixels.
        seed: of random weights.

    Raises:
        FileNotFoundError: there is no file `agent.pretrained`.
        ValueError: it does not fit the network: it is of another grid, say.
    """
    known: dict[str, Any] = {"in_channels": config.in_channels}
    if config.kind == "grid":
        known |= {"image_size": size, "grid": config.grid, "width": config.width}
    if config.init == "file" and config.pretrained is not None and (config.kind == "grid" or _ours(config.pretrained)):
        return read_agent(config.pretrained, config, **known)
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(seed)
        agent: Agent = GridNetwork(**known) if config.kind == "grid" else UNet11(**known)
    if config.pretrained is not None:
        assert isinstance(agent, UNet11)
        (load_vgg11 if config.init == "vgg11" else load_ternausnet)(agent, config.pretrained)
    return agent


def _ours(path: str) -> bool:
    return Path(path).suffix == ".safetensors" and "kind" in load_weights(path)[1]


def fit_foreground(
    agent: Agent, pool: XrayPool, val: XrayPool, experiment: APGAExperiment, run: Run, seed: int
) -> dict[str, float]:
    """Fit the agent to the share of each cell that is brighter than Otsu's threshold, by cross-entropy."""
    optimizer, size = Adam(agent.parameters(), lr=FOREGROUND_RATE), experiment.training.batch_size

    def loss_of(images: XrayPool, rows: Tensor) -> Tensor:
        x = images.at(rows)
        logits = look(agent, x)[0]
        return bce(logits, F.avg_pool2d(foreground(x), x.shape[-1] // logits.shape[-1]))

    def train_epoch(_: nn.Module, generator: Generator) -> Scalars:
        total = torch.zeros((), device=pool.labels.device)
        for rows in shuffled_rows(len(pool), size, generator, pool.labels.device):
            loss = loss_of(pool, rows)
            descend(optimizer, loss)
            total += loss.detach() * len(rows) / len(pool)
        return {"bce": total}

    def validate(_: nn.Module) -> tuple[float | None, Scalars]:
        parts = torch.split(torch.arange(len(val), device=val.labels.device), size)
        found = float(sum(loss_of(val, rows) * len(rows) for rows in parts)) / len(val)
        return -found, {"val_bce": found}

    epochs = experiment.agent.foreground_epochs
    return fit(
        run,
        agent,
        optimizer,
        name=FOREGROUND,
        epochs=epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
    )


def lines(experiment: APGAExperiment, run: Run) -> list[dict[str, float]]:
    """The curves of the last stage; a step is an epoch."""
    return run.stage(JOINT if method_of(experiment).steps else CLASSIFIER).metrics()


def check_export(experiment: APGAExperiment) -> NoReturn:
    """Raises ValueError: the agent is no policy of Stable-Baselines3."""
    raise ValueError(
        f"export_sb3 writes a policy of Stable-Baselines3, but the agent of paper {experiment.paper!r} is a network: "
        f"its file is {JOINT}/{AGENT} in the run's folder; train paper ppo on APGA-MURA-v0 for a policy"
    )


def learner(experiment: APGAExperiment, run: Run) -> NoReturn:
    """Raises ValueError: as `check_export`."""
    check_export(experiment)


def trained(experiment: APGAExperiment, run: Run) -> tuple[Context, Players]:
    """Context of a finished run, and its networks in eval mode; the agent is None where its method has none.

    Raises:
        ValueError: a stage is not finished, or was changed since.
    """
    context = Context(experiment.resolved(), run, trains=False)
    folder = last(context)
    agent = load_agent(context, folder) if context.row.learner is not None else None
    return context, Players(load_classifier(context, folder), agent).eval()


def settings_of(experiment: APGAExperiment) -> Mapping[str, Any]:
    """What results say of a run."""
    training = experiment.training
    return {
        "method": training.method,
        "train_on": method_of(experiment).train_on,
        "network": experiment.classifier.network,
        "begins_as": experiment.classifier.begins_as,
        "agent": experiment.agent.kind,
        "size": experiment.data.size,
        "n_shot": experiment.data.n_shot,
    }
