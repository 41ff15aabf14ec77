"""Data and networks that the stages of one RL4Seg run share (docs/rl4seg.md, Method 1 and 5)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Generator, Tensor, nn

from ...common.checkpoints import load_weights, save_weights
from ...common.device import forked_rng
from ...common.networks import load_network
from ...common.runs import Run
from ...datasets.echo.images import CLASSES, EchoDataConfig, echo_splits, load_echo
from ...datasets.images import ImagePool
from ...envs.rl4seg import RewardFunction
from ...envs.rl4seg_config import OF_TRUTH
from ...rewards.reward_ensemble import RewardEnsemble, as_one
from ...rewards.reward_net import RewardNet
from ...segmenters.inference import image_batches
from ...segmenters.norms import adapt_batchnorm, norm_of
from ...segmenters.unet import UNet
from ..context import StageContext
from .config import RL4SegExperiment

M = TypeVar("M", bound=nn.Module)
SEGMENTER, CRITIC, PRIOR = "segmenter.safetensors", "critic.safetensors", "shape_prior.safetensors"
REWARD_NET, TRIPLETS = "reward_net.safetensors", "triplets.safetensors"
GOLD, CORRECTED = "gold.safetensors", "corrected.safetensors"
_DATA = [field.name for field in fields(EchoDataConfig) if field.name != "cache_dir"]
SOURCE = tuple(f"source.{name}" for name in _DATA)
"""Keys of the configuration that decide the source images."""
TARGET = ("seed", *(f"target.{name}" for name in _DATA), "pool", "initial_images", "new_images", "iterations")
"""Keys that decide the target images and their order in the loop."""
UNET = ("seed", "network.init_channels", "network.norm_mode")
"""Keys that decide a fresh network."""
GOLD_FRACTION = "train/gold_fraction"
"""Logged scalar: share of the images whose action, or label, was a given mask."""
AT_ONCE = 64
"""Images per forward pass without gradients."""


@dataclass(frozen=True)
class Gold:
    """Images whose mask is given: rows int64 [K] of the target pool, and their masks uint8 [K, H, W]."""

    rows: Tensor
    masks: Tensor

    def join(self, other: "Gold") -> "Gold":
        """Both together; no image is in both."""
        return Gold(torch.cat([self.rows, other.rows]), torch.cat([self.masks, other.masks]))

    def take(self, chosen: Tensor) -> "Gold":
        """Where bool [K] is true."""
        return Gold(self.rows[chosen], self.masks[chosen])

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_weights(path, {"rows": self.rows, "masks": self.masks})


class Context(StageContext[RL4SegExperiment]):
    """Data on the device and results of other stages, for the stages of one run."""

    def __init__(self, experiment: RL4SegExperiment, run: Run, *, trains: bool) -> None:
        super().__init__(experiment, run, trains=trains)
        self._loaded: dict[tuple[str, str], ImagePool] = {}
        self.asked = set[str]()
        """Names of the stages that were asked for so far."""

    def stage(
        self,
        name: str,
        make: Callable[[Run], list[str]],
        *,
        keys: Iterable[str],
        work: Callable[[], float],
        after: Sequence[Path] = (),
    ) -> Path:
        """The folder of a finished stage: see `complete`. work: about how many images `make` shows to a network in
        training, for the estimate of the time left."""
        self.asked.add(name)
        return self.complete(name, make, keys, after)

    # -- data ------------------------------------------------------------------------------------------------------

    @cached_property
    def source(self) -> ImagePool:
        """Labelled images of the source."""
        return self._load("source", "train")

    @cached_property
    def source_val(self) -> ImagePool:
        """Labelled images of the source that choose epochs."""
        return self._load("source", "val")

    @cached_property
    def target_all(self) -> ImagePool:
        """The target images of the loop in the order in which it deals them, with labels where they are known."""
        experiment = self.experiment
        pool = experiment.pool or ["train", *({"pred"} & set(echo_splits(experiment.target)))]
        images = ImagePool.concatenate([self._load("target", split) for split in pool])
        needed = experiment.pool_size(experiment.iterations) if experiment.iterations else len(images)
        if needed > len(images):
            raise ValueError(
                f"the loop needs {needed} target images (initial_images {experiment.initial_images} + iterations "
                f"{experiment.iterations} x new_images {experiment.new_images}) but the splits "
                f"{pool} of {experiment.target.data!r} have {len(images)}; lower new_images"
            )
        order = torch.randperm(len(images), generator=Generator().manual_seed(self.seed("deal")))
        return images.take(order[:needed].tolist())

    @cached_property
    def target(self) -> ImagePool:
        """The same without labels: all that adaptation may see."""
        return self.target_all.without_labels()

    @cached_property
    def target_val(self) -> ImagePool:
        """Target images on which PPO's checkpoint is chosen, by the reward, without labels."""
        return self._load("target", "val")

    @cached_property
    def judged(self) -> ImagePool:
        """The images that triplets point into, without labels: those of the target and, with
        reward_data.source_triplets, those of the source after them."""
        if not self.experiment.reward_data.source_triplets:
            return self.target
        source = replace(self.source.without_labels(), origin=self.target.origin)
        return ImagePool.concatenate([self.target, source])

    def _load(self, domain: str, split: str) -> ImagePool:
        if (domain, split) not in self._loaded:
            data = getattr(self.experiment, domain)
            self._loaded[domain, split] = load_echo(data, split, option=f"--{domain}.").to(self.device)
        return self._loaded[domain, split]

    def rows(self, i: int) -> Tensor:
        """Rows of the target images that are seen up to iteration i; 0: all."""
        return torch.arange(self.experiment.pool_size(i) if i else len(self.target), device=self.device)

    def new_rows(self, i: int) -> Tensor:
        """Rows of the target images that are new in iteration i, of which reward data are made."""
        return self.rows(i)[self.experiment.pool_size(i - 1) if i > 1 else self.experiment.initial_images :]

    def images(self, i: int, reward: RewardFunction | str) -> ImagePool:
        """Target images seen up to iteration i (0: all); with labels only for a reward that is named and reads them."""
        images = self.target_all if reward in OF_TRUTH else self.target
        return images.take(self.rows(i).tolist())

    # -- networks --------------------------------------------------------------------------------------------------

    def segmenter(self, seed: int, *, out: int = len(CLASSES), dropout: float = 0.0) -> UNet:
        """A fresh U-Net 1 -> out."""
        network = self.experiment.network
        with forked_rng(self.device):
            torch.manual_seed(seed)
            norm, channels = norm_of(network.norm_mode), network.init_channels
            return UNet(1, out, init_channels=channels, norm=norm, dropout=dropout).to(self.device)

    def load(self, folder: Path) -> UNet:
        """The segmenter of a stage."""
        return self.read(
            folder, lambda one: load_network(one / SEGMENTER, UNet, in_channels=1, out_channels=len(CLASSES))
        )

    def read(self, folder: Path, load: Callable[[Path], M]) -> M:
        """The network that `load` reads from the folder of a stage."""
        return load(folder).to(self.device)

    def reward_stages(self, i: int) -> list[str]:
        """Stages of the reward networks of iteration i, one for each member of the ensemble."""
        members = range(2, self.experiment.reward_net.members + 1)
        return [f"iteration_{i}/reward_net", *(f"iteration_{i}/reward_net_{k}" for k in members)]

    def reward_member(self, stage: str) -> RewardNet:
        """The reward network of one stage, frozen."""
        path = self.run.stage(stage).folder / REWARD_NET
        return load_network(path, RewardNet, classes=len(CLASSES)).requires_grad_(False).to(self.device)

    def reward_net(self, i: int) -> RewardNet | RewardEnsemble:
        """r_i, frozen: the reward network of iteration i, or the ensemble of them."""
        config = self.experiment.reward_net
        members = [self.reward_member(stage) for stage in self.reward_stages(i)]
        return as_one(members, fusion=config.fusion, width=config.lcb_width)

    def gold(self, i: int, file: str = GOLD) -> Gold:
        """The gold images, or with CORRECTED the corrected ones, that were found up to iteration i."""
        tensors, _ = load_weights(self.run.stage(f"iteration_{i}/reward_data").folder / file)
        return Gold(tensors["rows"].to(self.device), tensors["masks"].to(self.device))

    def adapt(self, net: nn.Module, i: int) -> None:
        """With norm_mode frozen: batch statistics of the target images seen up to iteration i (0: all)."""
        if self.experiment.network.norm_mode == "frozen":
            adapt_batchnorm(net, image_batches(self.target.images[self.rows(i)], AT_ONCE, self.device))


class Plan(Context):
    """Goes through a run's stages in their order as its training does, but makes and reads none of them.

    context: the training's; they share the images.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context.experiment, context.run, trains=False)
        self._loaded = context._loaded
        self.work: dict[str, Callable[[], float]] = {}
        """Of each stage, by its name, in this order: see `Context.stage`."""

    def stage(
        self,
        name: str,
        make: Callable[[Run], list[str]],
        *,
        keys: Iterable[str],
        work: Callable[[], float],
        after: Sequence[Path] = (),
    ) -> Path:
        """The folder that the stage has, or will have."""
        self.work.setdefault(name, work)
        return self.run.stage(name).folder

    def read(self, folder: Path, load: Callable[[Path], M]) -> M:
        """A module without weights, which takes the place of one that is not trained yet."""
        return cast(M, nn.Module())
