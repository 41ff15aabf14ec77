"""The device of a run, and what is special on CUDA."""

from collections.abc import Iterator

import pytest
import torch
from segarena.common.device import accelerate, forked_rng, resolve_device


@pytest.fixture(autouse=True)
def flags_kept() -> Iterator[None]:
    """Afterwards the process computes as before."""
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    yield
    cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
    torch.set_float32_matmul_precision(precision)


def cudnn_choice() -> tuple[bool, bool, str]:
    """benchmark, deterministic and the precision of float32 products."""
    return torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("device", ["meta", "mps", "xla", "cpu:7", "gpu", ""])
def test_what_no_run_computes_on_is_no_device(device: str) -> None:
    with pytest.raises(ValueError, match=f"device is '{device}' but must be 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_cuda_needs_a_torch_that_convolves_rightly(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "__version__", "2.8.0+cu128")
    with pytest.raises(ValueError, match=rf"device is '{device}' but torch is 2.8.0\+cu128 and must be at least 2.10"):
        resolve_device(device)
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    assert resolve_device(device).type == "cuda"


def test_cuda_is_made_fast_and_the_cpu_is_left_alone() -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    before = cudnn_choice()
    accelerate(torch.device("cpu"))
    assert cudnn_choice() == before
    accelerate(torch.device("cuda"))
    assert cudnn_choice() == (True, False, "high")


def test_a_fork_leaves_the_generators_as_they_were() -> None:
    torch.manual_seed(3)
    undisturbed = torch.rand(2)
    torch.manual_seed(3)
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(4)
        torch.rand(5)
    assert torch.equal(torch.rand(2), undisturbed)


def test_a_fork_touches_only_the_gpu_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: asked.append(device) or torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: asked.append(device))
    with forked_rng(torch.device("cuda:1")):
        pass
    assert asked == [torch.device("cuda:1")] * 2
