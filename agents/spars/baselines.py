"""Baselines of SPARS beside its reference policies: a map of each case, without an agent (docs/spars.md, Method 12).

A = painted map, B = score map, f = presence score. A baseline is one row of `BASELINES`, at the end, and one function.
Those that look up scores stand in every evaluation; those that run or train a network, or read labels, where
`baselines` of the experiment names them. The single agent, without a competitor, is a run of its own
(configs/spars/single_agent.yaml).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ...classifiers.attention import AttentionNet, train_attention
from ...classifiers.cam import Kind, class_activation
from ...classifiers.presence import DensePresenceNet, load_presence
from ...classifiers.stem import CELL, cell_lattice
from ...common.networks import load_network, save_network
from ...common.runs import Run
from ...datasets.liver.cases import LiverCase
from ...envs.spars import SparsEnv
from ...evaluation.metrics import classification_metrics
from ...segmenters.volume_unet import VolumeUNet, train_volume_unet
from ...segmenters.window_masks import MaskMaker, Reduce
from ..experiment import Baseline, always
from .config import TRAIN, SparsExperiment
from .context import LABELLED_CASES, STEPS_PER_BATCH, Context
from .rollouts import Maps, VoxelMaps

BEST_WINDOWS = 256
"""Windows of which the top-k union has k, at most."""
STEPS_PER_UNET_BATCH = 300
"""Steps of the agent's training that take about as long as a batch of the U-Net's: for the time left."""


@dataclass(frozen=True)
class MapBaseline(Baseline[SparsExperiment, Context]):
    """One row: a map of each case. Without `supervision` of its own its labels are those of the scores f."""

    maps: Callable[[SparsEnv, list[nn.Module]], Maps] = field(kw_only=True)
    """Its map of each case of an environment, by its networks (an empty list where it trains none)."""
    work: Callable[[SparsExperiment], float] = lambda experiment: 0.0
    """The work of its training, in steps of the agent's, for the time left."""
    windows: float = 1.0
    """Share of the lattice's windows whose score, or features, it takes."""
    of_labels: bool = False
    """Whether it reads labels of the case that it segments, which a new CT does not have."""


# -- by the scores of windows --------------------------------------------------------------------------------------


def score_map(env: SparsEnv, reduce: Reduce) -> Maps:
    """B: the map of all windows of the lattice, by their lowest, mean or highest f, without an agent
    (docs/spars.md, Method 12)."""
    masks = replace(env.masks, reduce=reduce)
    return Maps(
        env, torch.cat([masks.blocks(f[None], [number]) for number, f in enumerate(_scores(env))]), _no_facts(env)
    )


def prior_map(env: SparsEnv) -> Maps:
    """The map of what is likely before anything is seen: place alone, the same for every image; 0 where nothing was
    learned."""
    unseen = torch.full((len(env.cases), env.lattice.size), torch.nan, device=env.device)
    reduce: Reduce = "mean" if env.masks.reduce == "sum" else env.masks.reduce
    return Maps(env, replace(env.masks, reduce=reduce).blocks(unseen, range(len(env.cases))), _no_facts(env))


def best_windows(env: SparsEnv, most: int) -> Maps:
    """1 / rank of the best of the `most` windows with the highest f that contain a voxel, 0 where none does: at
    1 / (k + 1) <= θ < 1 / k the mask is the union of the k best windows, so that θ chooses k."""
    ranked = []
    for scores in _scores(env):
        ids = scores.topk(min(most, len(scores))).indices
        worth = 1 / torch.arange(1, len(ids) + 1, device=env.device)
        ranked.append(env.lattice.paint(ids[None], worth[None], "max"))
    return VoxelMaps(env, env.lattice.expand(torch.cat(ranked).float()), _no_facts(env))  # boxes have sharp edges


def _scores(env: SparsEnv) -> list[Tensor]:
    """f of all windows of each case, float32 [L]."""
    return [env.table.volume(number).flatten() for number in range(len(env.cases))]


def _no_facts(env: SparsEnv) -> list[dict[str, float]]:
    return [{} for _ in env.cases]


# -- by the feature cells of the classifier ------------------------------------------------------------------------


def activation_map(env: SparsEnv, kind: Kind) -> Maps:
    """Class activation map of the classifier's last convolution, of each case divided by its maximum."""
    net = _dense_classifier(env)
    return _of_cells(env, [class_activation(net, image, env.lattice, kind).flatten() for image in _images(env)])


def stem_readout(env: SparsEnv) -> Maps:
    """f of windows of a single feature cell: the classifier's head, which never saw so small ones, as a segmenter."""
    net, cells = _dense_classifier(env), cell_lattice(env.lattice)
    return _of_cells(env, [net.score_lattice(image, cells)[0] for image in _images(env)])


def attention_map(env: SparsEnv, nets: list[nn.Module]) -> Maps:
    """Attention times score of each feature cell, of each case divided by its highest attention."""
    (net,) = nets
    assert isinstance(net, AttentionNet)
    return _of_cells(env, [net.cell_map(image, cell_lattice(env.lattice)) for image in _images(env)])


def _of_cells(env: SparsEnv, values: list[Tensor]) -> Maps:
    """Maps of one value in [0, 1] for each feature cell, float32 [L] of each case; between cells as between blocks."""
    masks = MaskMaker(cell_lattice(env.lattice), "max", env.masks.upsample)
    return VoxelMaps(env, masks.voxels(masks.blocks(torch.stack(values), range(len(values)))), _no_facts(env))


def _images(env: SparsEnv) -> list[Tensor]:
    """Grey values of each case, uint8 [X, Y, Z]."""
    return [case.image.to(env.device) for case in env.cases]


def _dense_classifier(env: SparsEnv) -> DensePresenceNet:
    net = env.table.net
    assert isinstance(net, DensePresenceNet)  # see `_without_cells`
    return net


def _without_cells(experiment: SparsExperiment) -> str | None:
    env = experiment.env
    if env.score_source != "classifier":
        return f"needs a classifier, but env.score_source is {env.score_source!r}"
    is_dense = experiment.presence.network == "dense"
    if env.classifier != TRAIN:
        is_dense = isinstance(load_presence(env.classifier or "packaged"), DensePresenceNet)
    if not is_dense:
        return "needs the feature cells of a classifier of ours, presence.network 'dense', but has the paper's"
    if env.step % CELL:
        return f"needs windows that are made of feature cells, but env.step is {env.step}, no multiple of {CELL}"
    return None


# -- by labels -----------------------------------------------------------------------------------------------------


def liver_intensity(env: SparsEnv) -> Maps:
    """How dark a voxel of the liver is, in [0, 1], 0 outside; the liver is that of the case's own label.

    Raises:
        ValueError: a case without label.
    """
    return VoxelMaps(env, torch.stack([_darkness(case) for case in env.cases]).to(env.device), _no_facts(env))


def _darkness(case: LiverCase) -> Tensor:
    if case.label is None:
        raise ValueError(f"{case.id} has no label, and liver_intensity needs the mask of the liver; leave it out")
    return torch.where(case.label > 0, (255 - case.image.float()) / 255, 0.0)


def voxel_map(env: SparsEnv, nets: list[nn.Module]) -> Maps:
    """The U-Net's P(tumour) of every voxel."""
    (net,) = nets
    assert isinstance(net, VolumeUNet)
    return VoxelMaps(env, torch.stack([net.tumour_probability(image) for image in _images(env)]), _no_facts(env))


UNET, ATTENTION = "unet.safetensors", "attention.safetensors"
"""Files of the networks in their stages."""


def unet(context: Context) -> list[nn.Module]:
    """The U-Net, taught by the voxels of the cases from which the classifier learns."""

    def make(stage: Run) -> list[str]:
        net = train_volume_unet(
            *context.labelled_cases(), context.experiment.unet, stage, context.device, context.seed("unet")
        )
        save_network(stage.folder / UNET, net)
        return [UNET]

    folder = context.complete("baselines/unet", make, keys=(*LABELLED_CASES, "unet"))
    return [load_network(folder / UNET, VolumeUNet).to(context.device)]


def attention_mil(context: Context) -> list[nn.Module]:
    """Gated attention over feature cells, taught by one label of each of these cases."""
    experiment = context.experiment

    def make(stage: Run) -> list[str]:
        assert experiment.env.window_size is not None
        net = train_attention(
            *context.labelled_cases(),
            experiment.env.window_size,
            experiment.presence,
            stage,
            context.device,
            context.seed("attention_mil"),
            metrics=classification_metrics,
            hu_window=context.hu_window,
        )
        save_network(stage.folder / ATTENTION, net)
        return [ATTENTION]

    keys = (*LABELLED_CASES, "presence", "env.window_size")
    folder = context.complete("baselines/attention_mil", make, keys=keys)
    return [load_network(folder / ATTENTION, AttentionNet, hu_window=context.hu_window).to(context.device)]


def _without_healthy(experiment: SparsExperiment) -> str | None:
    if experiment.env.data == "phantom":
        for name in ("classifier_train", "validation"):
            if not 0 < (share := getattr(experiment, name).tumour_free) < 1:
                return f"needs patients with and without tumour, but {name}.tumour_free is {share}; give 0.5, say"
    return None


def _cam(title: str, kind: Kind) -> MapBaseline:
    return MapBaseline(
        title, maps=lambda env, nets: activation_map(env, kind), sees_target=False, objection=_without_cells
    )


def _score_map(reduce: Reduce) -> MapBaseline:
    title = f"score map ({reduce})"
    return MapBaseline(title, maps=lambda env, nets: score_map(env, reduce), sees_target=False, included=always)


def _union(title: str, most: int) -> MapBaseline:
    return MapBaseline(title, maps=lambda env, nets: best_windows(env, most), sees_target=False, included=always)


BASELINES: dict[str, MapBaseline] = {
    "position_prior": MapBaseline(
        "position prior", maps=lambda env, nets: prior_map(env), windows=0, sees_target=False, included=always
    ),
    "score_map_mean": _score_map("mean"),
    "score_map_min": _score_map("min"),
    "score_map_max": _score_map("max"),
    "argmax_box": _union("best window", 1),
    "top_k_union": _union("union of the k best windows", BEST_WINDOWS),
    "cam_grad": _cam("Grad-CAM", "grad"),
    "cam_grad_plus_plus": _cam("Grad-CAM plus plus", "grad_plus_plus"),
    "cam_score": _cam("Score-CAM", "score"),
    "stem_readout": MapBaseline(
        "stem read-out", maps=lambda env, nets: stem_readout(env), sees_target=False, objection=_without_cells
    ),
    "attention_mil": MapBaseline(
        "attention MIL",
        attention_mil,
        maps=attention_map,
        windows=0,
        supervision="patient",
        sees_target=False,
        section="presence",
        objection=_without_healthy,
        work=lambda experiment: float(
            experiment.presence.epochs * experiment.presence.batches_per_epoch * STEPS_PER_BATCH
        ),
    ),
    "liver_intensity": MapBaseline(
        "intensity in the liver",
        maps=lambda env, nets: liver_intensity(env),
        windows=0,
        supervision="liver of the test case",
        sees_target=False,
        of_labels=True,
    ),
    "unet": MapBaseline(
        "3-D U-Net",
        unet,
        maps=voxel_map,
        windows=0,
        supervision="voxel",
        sees_target=False,
        section="unet",
        work=lambda experiment: float(
            experiment.unet.epochs * experiment.unet.batches_per_epoch * STEPS_PER_UNET_BATCH
        ),
    ),
}
"""Every baseline, in the order of the tables."""
