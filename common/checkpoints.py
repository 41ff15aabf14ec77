"""Weights and states on disk: never code, never half a file.

Weights are safetensors. A checkpoint is a folder `step_<n>/` of `weights.safetensors`, `state.pt` (tensors, numbers and
strings only) and `manifest.json` (a SHA-256 of each), written under a temporary name and renamed when it is whole.
"""

import json
import logging
import os
import pickle
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .files import file_digest, replacing

log = logging.getLogger(__name__)
KEPT = 2
"""Checkpoints that stay: the last one, and the one before it in case the last is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """Network weights saved at `step`, and the state (tensors, numbers, strings, nested) beside them."""

    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, equal bytes for equal content; a reader sees the old file or the whole new one."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}  # none shares memory
    try:
        with replacing(path) as unfinished:
            save_file(tensors, unfinished, dict(metadata or {}))
            _sort_metadata(unfinished)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in the order of their names; safetensors writes them in a random one."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            file.seek(8)
            file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no safetensors file (a pickle, say) or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist; it must be a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint {str(path)!r} is no whole safetensors file ({error}); pickled checkpoints are not read, "
            f"because they can run code: save weights with safetensors"
        ) from error


def load_into(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put `weights` into `module`.

    Raises:
        ValueError: the weights belong to another architecture; names the first differing parameter.
    """
    own = module.state_dict()
    for name in [*own, *weights]:
        expected, given = own.get(name), weights.get(name)
        if expected is None or given is None or expected.shape != given.shape:
            say = [f"{list(t.shape)}" if t is not None else "absent" for t in (given, expected)]
            raise ValueError(
                f"{source} is a checkpoint of another architecture: parameter {name!r} is {say[0]} there but "
                f"{say[1]} in {type(module).__name__}; load it with the configuration that it was trained with"
            )
    module.load_state_dict(dict(weights))


def save_checkpoint(folder: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write `folder/step_<step>/`; keep the last `KEPT` checkpoints up to this one, and none after it.

    There is one after it only where it was damaged, and the run went on from an earlier one.
    """
    final, temporary = folder / f"step_{step:012d}", folder / f".step_{step:012d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_weights(temporary / "weights.safetensors", weights)
    try:
        torch.save(dict(state), temporary / "state.pt")
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{temporary / 'state.pt'} cannot be written: {error}") from error
    (temporary / "manifest.json").write_text(json.dumps(_manifest(temporary, step), indent=1))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    checkpoints = sorted(folder.glob("step_*"))
    kept = checkpoints[: checkpoints.index(final) + 1][-KEPT:]
    for other in checkpoints:
        if other not in kept:
            shutil.rmtree(other)
    return final


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint below `folder`; a damaged one is passed over with a warning. None: there is none.

    Damaged is one that lacks a file or whose files differ from their checksums. Any other failure to read raises, so
    that a passing one does not send a run back to its start.
    """
    for candidate in sorted(folder.glob("step_*"), reverse=True):
        if damage := _damage(candidate):
            log.warning("checkpoint %s is damaged (%s); falling back to the one before it", candidate.name, damage)
            continue
        try:
            state = torch.load(candidate / "state.pt", weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:
            raise ValueError(f"{candidate / 'state.pt'} holds more than tensors, numbers and text: not read") from error
        return Checkpoint(_step(candidate), load_weights(candidate / "weights.safetensors")[0], state)
    return None


def _damage(folder: Path) -> str | None:
    """Description of the damage of a checkpoint; None: it is intact."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return None if manifest == _manifest(folder, _step(folder)) else "its files differ from their checksums"
    except (FileNotFoundError, ValueError) as error:
        return str(error)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _manifest(folder: Path, step: int) -> dict[str, Any]:
    return {"step": step, "sha256": {name: file_digest(folder / name) for name in ("state.pt", "weights.safetensors")}}


def torch_state(device: torch.device) -> dict[str, Tensor]:
    """State of PyTorch's generators that a run on `device` draws from: "cpu" and, on CUDA, "cuda"."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_torch_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Continue PyTorch's generators where `torch_state` found them, on another GPU too.

    Between CPU and CUDA what is drawn on the device cannot be continued: it is left as it is, with a warning.
    """
    torch.set_rng_state(state["cpu"])
    if ("cuda" in state) != (device.type == "cuda"):
        made = "cuda" if "cuda" in state else "cpu"
        log.warning("the checkpoint was made on %s: on %s the run goes on with other random numbers", made, device)
    elif device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the global generators (Python, NumPy, PyTorch's) of a run on `device`, as tensors and numbers."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (SB3 draws from it)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch_state(device),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Continue every global generator where `random_state` found it; see `restore_torch_state`."""
    restore_torch_state(state["torch"], device)
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
