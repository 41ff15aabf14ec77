"""Modes of batch normalisation, AdaBN, and shrink-and-perturb (docs/rl4seg.md, Method 3 and 5); statistics of several
processes together (docs/rp-pgd.md, Method 25).

Batch normalisation makes a policy depend on the batch that an image comes in. `frozen` keeps it a function of the
image: the running statistics are estimated once on target images (AdaBN) and then stay. `batch` is what the paper's
program does: statistics of the batch, in rollout, update and reference alike. `group` has no statistics to keep.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from ..common.checks import check_choice
from ..common.device import bfloat16_on_cuda
from ..common.workers import Workers
from .unet import Norm

NormMode = Literal["frozen", "batch", "group"]


def norm_of(mode: NormMode) -> Norm:
    """Which normalisation layers a network for this mode has."""
    return "group" if mode == "group" else "batch"


def batchnorms(net: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch normalisation layers of `net`, from the first to the last."""
    return [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]


def set_norm_mode(net: nn.Module, mode: NormMode, *, training: bool) -> None:
    """Put `net` in train or eval mode, its batch normalisation in the mode that `mode` asks for.

    frozen: running statistics, which stay. batch: statistics of the batch, and the running ones follow, also where
    `training` is false. group: a network without batch normalisation. To be called again after every `net.train()`.

    Raises:
        ValueError: the network's normalisation is not of that kind.
    """
    check_choice("norm_mode", mode, get_args(NormMode))
    layers = batchnorms(net)
    if (mode == "group") == bool(layers):
        has, fits = ("has", "'frozen' or 'batch'") if layers else ("has no", "'group'")
        raise ValueError(f"norm_mode is {mode!r} but the network {has} batch normalisation; use {fits}")
    net.train(training)
    for layer in layers:
        layer.train(mode == "batch")


@contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Put every layer back into its mode, train or eval, after the block."""
    modes = [(layer, layer.training) for layer in net.modules()]
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextmanager
def statistics_kept(net: nn.Module) -> Iterator[None]:
    """Keep the running statistics as they are during forward passes in `batch` mode."""
    layers = batchnorms(net)
    for layer in layers:
        layer.track_running_stats = False  # in train mode: the batch decides, and nothing is remembered
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@torch.no_grad()
def adapt_batchnorm(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Make the running statistics of `net` those of these images (AdaBN); nothing else of it changes.

    Each layer gets mean and variance over all pixels of all batches together, whatever their sizes, of what it sees
    while the layers before it use statistics of the batch: batches should be large. A network without batch
    normalisation stays as it is.

    Args:
        net: in any mode; dropout is off meanwhile.
        batches: images float32 [B, C, H, W], on the network's device.

    Raises:
        ValueError: no batch.
    """
    layers = batchnorms(net)
    if not layers:
        return
    sums = {layer: layer.get_buffer("running_mean").new_zeros(3, layer.num_features).double() for layer in layers}

    def watch(layer: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0].float()  # [B, C, H, W]
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        moments = torch.stack([torch.ones_like(mean), mean, var + mean**2])
        sums[layer] += moments.double() * (x.numel() // x.shape[1])  # type: ignore[index]

    with modes_kept(net), statistics_kept(net):
        set_norm_mode(net, "batch", training=False)
        hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
        try:
            seen = False
            for images in batches:
                with bfloat16_on_cuda(images.device):
                    net(images)
                seen = True
        finally:
            for hook in hooks:
                hook.remove()
    if not seen:
        raise ValueError("there is no batch to take the statistics from; give at least one")
    for layer in layers:
        count, total, squares = sums[layer]
        mean = total / count
        layer.get_buffer("running_mean").copy_(mean)
        layer.get_buffer("running_var").copy_((squares / count - mean**2) * count / (count - 1))


@torch.no_grad()
def shrink_perturb(
    net: nn.Module, generator: Generator, *, shrink: float = 0.5, sigma: float = 0.01, include_norm: bool = True
) -> None:
    """w <- shrink * w + N(0, sigma) for every parameter named `weight` (docs/rl4seg.md, Method 5); biases and buffers
    stay.

    Halved convolutions no longer fit the running statistics of batch normalisation: call `adapt_batchnorm` afterwards,
    unless it uses the batch's.

    Args:
        net: is changed.
        generator: draws the noise.
        shrink: factor on the weights.
        sigma: standard deviation of the noise.
        include_norm: whether the gains of normalisation layers change too.
    """
    for name, weight in net.named_parameters():
        if name.endswith("weight") and (include_norm or weight.ndim > 1):  # gains are the only vectors among them
            noise = torch.randn(weight.shape, generator=generator, device=generator.device)
            weight.mul_(shrink).add_(noise.to(weight.device), alpha=sigma)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all workers' images together, on the CPU too (PyTorch's needs CUDA).

    In train mode alone; every worker must then make the same passes.
    """

    workers: Workers

    @classmethod
    def of(cls, layer: nn.BatchNorm2d, workers: Workers) -> "SyncBatchNorm":
        """The same layer, with the very parameters and buffers of `layer`."""
        made = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        made._parameters, made._buffers = layer._parameters, layer._buffers
        made.workers = workers
        return made.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised maps [B, C, H, W]."""
        if not self.training:
            return super().forward(x)
        values, total = x.float(), self.workers.total
        number = total(values.new_tensor(values.numel() / self.num_features))
        mean = total(values.sum(dim=(0, 2, 3))) / number
        centred = values - mean[:, None, None]
        var = total(centred.square().sum(dim=(0, 2, 3))) / number
        scale = torch.rsqrt(var + self.eps)
        if self.affine:
            scale = scale * self.weight
        out = centred * scale[:, None, None]
        if self.affine:
            out = out + self.bias[:, None, None]
        self._remember(mean.detach(), var.detach() * number / (number - 1))
        return out.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        if not self.track_running_stats:
            return
        counter, means, variances = (
            self.get_buffer(name) for name in ("num_batches_tracked", "running_mean", "running_var")
        )
        counter.add_(1)
        share = 1 / float(counter) if self.momentum is None else self.momentum
        means.lerp_(mean, share)
        variances.lerp_(var, share)


def synchronise(net: nn.Module, workers: Workers) -> None:
    """Let every batch normalisation of `net` count the images of all workers; of one worker alone nothing changes."""
    if workers.world_size == 1:
        return
    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d) and not isinstance(layer, SyncBatchNorm):
                setattr(parent, name, SyncBatchNorm.of(layer, workers))
