"""Weights and states on disk: never code, never half a file.

Weights are safetensors. A checkpoint is a folder `step_<n>/` of `weights.safetensors`, `state.pt` (tensors, numbers and
strings only) and `manifest.json` (a SHA-256 of each), written under a temporary name and renamed when it is whole.
"""

import json
import logging
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import AT_LEAST_0, check_range
from .files import file_digest, named, replacing
from .finite import NotFiniteError, not_finite_tensor
from .reading import quoted, read_json

log = logging.getLogger(__name__)
KEPT = 2
"""Checkpoints that stay: the last one, and the one before it in case the last is damaged."""
_NAME = re.compile(r"step_\d{12}")
_UNFINISHED = re.compile(r"\.step_\d{12}\.tmp")


@dataclass(frozen=True)
class Checkpoint:
    """Network weights saved at `step`, and the state (tensors, numbers, strings, nested) beside them."""

    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the run depended on, see `Run.depend_on`.

        Raises:
            ValueError: they are malformed.
        """
        with restoring(self):
            kept = self.state.get("settings", {})
            check_like(kept, {}, "settings")
            return dict(kept)

    @property
    def logged(self) -> tuple[int, int]:
        """Bytes of metrics.jsonl and of TensorBoard's files that belong to it.

        Raises:
            ValueError: they are malformed.
        """
        with restoring(self):
            sizes = (self.state["metrics_bytes"], self.state["tensorboard_bytes"])
            check_like(sizes, (0, 0), "sizes of the logs")
            check_range("sizes of the logs", sizes, AT_LEAST_0)
        return sizes


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, equal bytes for equal content; a reader sees the old file or the whole new one.

    Raises:
        NotFiniteError: one of them holds NaN or infinity; nothing is written.
        OSError: it cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}  # none shares memory
    if wrong := not_finite_tensor(tensors):
        raise NotFiniteError(f"{path} is not written: {wrong}")
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
        raise FileNotFoundError(f"checkpoint {quoted(str(path))} does not exist; it must be a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, AttributeError, RuntimeError) as error:  # a type that torch lacks
        raise ValueError(
            f"checkpoint {str(path)!r} is no whole safetensors file ({quoted(error)}); pickled checkpoints are not "
            f"read, because they can run code: save weights with safetensors"
        ) from error


def load_into(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put `weights` into `module`.

    Raises:
        ValueError: as `check_weights`.
    """
    check_weights(module, weights, source)
    module.load_state_dict(dict(weights))


def check_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Check that `weights` can be put into `module`, which may lie on the device meta.

    Raises:
        ValueError: the weights belong to another architecture or are of another type (names the first parameter that
            differs), or one of them is NaN or infinite.
    """
    own = module.state_dict()
    for name in [*own, *weights]:
        expected, given = own.get(name), weights.get(name)
        if expected is None or given is None or expected.shape != given.shape:
            say = [f"{list(t.shape)}" if t is not None else "absent" for t in (given, expected)]
            raise ValueError(
                f"{source} is a checkpoint of another architecture: parameter {quoted(name)} is {say[0]} there but "
                f"{say[1]} in {type(module).__name__}; load it with the configuration that it was trained with"
            )
        if expected.dtype != given.dtype:
            raise ValueError(
                f"{source} has parameter {name!r} as {_name_of(given)}, but {type(module).__name__} has it as "
                f"{_name_of(expected)}; save the weights in that type"
            )
        if given.is_floating_point() and not given.isfinite().all():
            raise ValueError(
                f"{source} has NaN or infinity in parameter {name!r}: the training that wrote it has failed; use an "
                f"earlier checkpoint, or train again with a lower learning rate"
            )


def _name_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def save_checkpoint(folder: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write `folder/step_<step>/`; keep the last `KEPT` checkpoints up to this one, and none after it.

    There is one after it only where it was damaged, and the run went on from an earlier one.
    """
    final, temporary = folder / f"step_{step:012d}", folder / f".step_{step:012d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_weights(temporary / "weights.safetensors", weights)
        torch.save(dict(state), temporary / "state.pt")
        (temporary / "manifest.json").write_text(json.dumps(_manifest(temporary, step), indent=1))
    except RuntimeError as error:  # what torch makes of a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{temporary / 'state.pt'} cannot be written: {error}") from error
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise named(error, temporary) from error
        raise
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    for other in checkpoints_in(folder):
        if other.name > final.name:
            shutil.rmtree(other)
    remove_old_checkpoints(folder)
    return final


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, whole or not, in the order of their steps; nothing of another name."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name) and path.is_dir())


def remove_old_checkpoints(folder: Path) -> None:
    """Remove all but the last `KEPT` checkpoints, and what is left of those whose writing was killed."""
    for path in checkpoints_in(folder)[:-KEPT]:
        shutil.rmtree(path)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def remove_checkpoints_below(folder: Path) -> None:
    """Remove every checkpoint of the stage in `folder` and of those within it, and the folders that are then empty."""
    for kept in sorted(folder.rglob("checkpoints")):
        remove_old_checkpoints(kept)
        for path in checkpoints_in(kept):
            shutil.rmtree(path)
        if kept.is_dir() and not any(kept.iterdir()):
            kept.rmdir()


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint below `folder`; a damaged one is passed over with a warning. None: there is none.

    Damaged is one that lacks a file or whose files differ from their checksums. Any other failure to read raises, so
    that a passing one does not send a run back to its start.

    Raises:
        ValueError: a checkpoint with right checksums cannot be read; names its file.
    """
    for candidate in reversed(checkpoints_in(folder)):
        if damage := _damage(candidate):
            log.warning("checkpoint %s is damaged (%s); falling back to the one before it", candidate.name, damage)
            continue
        weights = load_weights(candidate / "weights.safetensors")[0]
        return Checkpoint(_step(candidate), weights, _load_state(candidate / "state.pt"), candidate)
    return None


def _load_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # PyTorch's reader raises anything on a malformed file: EOFError, KeyError, ...
        raise ValueError(
            f"{path} holds more than tensors, numbers and text, or is damaged ({type(error).__name__}): not read; "
            f"delete {path.parent} to go on from the checkpoint before it"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"{path} holds a {type(state).__name__} but the state of a training is a dictionary; delete {path.parent} "
            f"to go on from the checkpoint before it"
        )
    return state


@contextmanager
def restoring(checkpoint: Checkpoint) -> Iterator[None]:
    """Within the block parts of the checkpoint's state are put back.

    Raises:
        ValueError: in place of what a malformed part raises; names the file and the way out.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = f"{quoted(error)} is missing" if isinstance(error, KeyError) else quoted(error)
        raise ValueError(
            f"{checkpoint.folder / 'state.pt'} does not fit this training ({what}); delete {checkpoint.folder} to go "
            f"on from the checkpoint before it"
        ) from error


def check_like(kept: Any, now: Any, name: str) -> None:
    """Check that a part of a kept state has the structure of the same part of the state now.

    Mappings have at least the same names; tensors the same type and shape, lists the same length, unless they are empty
    now and grow; numbers and text are of the same kind. None now may be anything.

    Raises:
        ValueError: names the first part that differs.
    """
    if isinstance(now, Tensor):
        if not isinstance(kept, Tensor) or kept.dtype != now.dtype:
            given = _name_of(kept) if isinstance(kept, Tensor) else quoted(kept)
            raise ValueError(f"{name} is {given} but must be a tensor of {_name_of(now)}")
        if kept.ndim != now.ndim or (now.numel() and kept.shape != now.shape):
            raise ValueError(f"{name} has shape {list(kept.shape)} but must have {list(now.shape)}")
    elif isinstance(now, Mapping):
        if not isinstance(kept, Mapping) or now.keys() - kept.keys():
            raise ValueError(f"{name} is {quoted(kept)} but must have {', '.join(map(str, now))}")
        for key in now:
            check_like(kept[key], now[key], f"{name}.{key}")
    elif isinstance(now, list | tuple):
        if not isinstance(kept, list | tuple) or (now and len(kept) != len(now)):
            raise ValueError(f"{name} is {quoted(kept)} but must be a list of {len(now)}")
        for number, (then, part) in enumerate(zip(kept, now, strict=False)):
            check_like(then, part, f"{name}.{number}")
    elif now is not None:
        kind = (int, float) if isinstance(now, float) else type(now)
        if not isinstance(kept, kind) or isinstance(kept, bool) != isinstance(now, bool):
            raise ValueError(f"{name} is {quoted(kept)} but must be of type {type(now).__name__}")


def load_optimizer(optimizer: Optimizer, state: Any) -> None:
    """Continue an optimiser where its `state_dict` was read.

    Raises:
        ValueError, or what PyTorch raises: the state is another optimiser's, or of other parameters; see `restoring`.
    """
    before = optimizer.state_dict()
    check_like(state, {"state": {}, "param_groups": before["param_groups"]}, "optimizer")
    optimizer.load_state_dict(state)
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"optimizer has {name} of shape {list(value.shape)} for a parameter of {list(parameter.shape)}"
                )


def _damage(folder: Path) -> str | None:
    """Description of the damage of a checkpoint; None: it is intact."""
    try:
        manifest = read_json(folder / "manifest.json")
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
