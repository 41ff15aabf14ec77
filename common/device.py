"""The device of a run, and what is special on CUDA: precision, speed, random state."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LEAST_TORCH_ON_CUDA = (2, 10)
"""Earlier ones come with a cuDNN whose bfloat16 3-D convolutions of large volumes can be wrong without a word."""


def memory_bytes() -> int | None:
    """Main memory of this machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def resolve_device(device: str | torch.device) -> torch.device:
    """The device named by `device`; "auto" is CUDA when there is one, else CPU.

    Raises:
        ValueError: the name is no device, or names CUDA on a machine that has none, or whose PyTorch is too old for it.
    """
    try:
        resolved = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r} but must be 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if resolved.type not in ("cpu", "cuda") or (resolved.type == "cpu" and resolved.index):
        raise ValueError(f"device is {device!r} but must be 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r} but this machine has no CUDA; use device='cpu' or 'auto'")
    if resolved.type == "cuda" and tuple(int(part) for part in torch.__version__.split(".")[:2]) < LEAST_TORCH_ON_CUDA:
        raise ValueError(
            f"device is {device!r} but torch is {torch.__version__} and must be at least "
            f"{'.'.join(map(str, LEAST_TORCH_ON_CUDA))} on CUDA: the cuDNN of earlier ones can convolve large volumes "
            f"wrongly; upgrade torch, or use device='cpu'"
        )
    return resolved


def accelerate(device: torch.device) -> None:
    """Let CUDA compute fast in this process from now on; on the CPU nothing changes.

    cuDNN measures its algorithms for each shape and takes the fastest; float32 products are made in TF32. Every
    training calls it once, at its start.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    torch.set_float32_matmul_precision("high")


@contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Within the block PyTorch's generators of the CPU and of `device` may be seeded; afterwards they are as before.

    Other GPUs are not touched: `torch.random.fork_rng()` alone forks all that there are, and warns.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def bfloat16_on_cuda(device: torch.device, *, enabled: bool = True) -> torch.autocast:
    """Convolutions in bfloat16 on CUDA, everything in float32 elsewhere; losses belong outside, in float32.

    enabled: False where bfloat16 is not exact enough: TF32 then, as cuDNN does by default.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and device.type == "cuda")
