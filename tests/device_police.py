"""Runs PyTorch code on a pretended CUDA device, with real values, on a machine that has none.

Every tensor stays a CPU tensor; the police only keeps a list of the storages that would lie on the device. `x.device`,
`x.is_cuda` and `torch.cuda.is_available()` answer as they would there, `device="cuda"` is taken wherever PyTorch takes
it, bfloat16 autocast for CUDA becomes that of the CPU, and

* what a real device would refuse raises the same kind of error: tensors of two devices in one operation, `.numpy()` of
  a device tensor, a device index into a host tensor, a generator of the other device;
* where the host would wait for the device, that is counted, with the line of your code that asked for it: `.item()`,
  `bool(x)`, `.tolist()`, `nonzero`, masks as indices, `unique`, `bincount`, `multinomial` (two waits), copies between
  host and device without `non_blocking=True`, and hidden ones, such as `x[rows] = 0` (the 0 is copied to the device);
* operations that would start kernels are counted: their number bounds the speed of small networks.

    def test_a_step_stays_on_the_device():
        with DevicePolice(watch="mypackage") as police:
            env = make_env(num_envs=64, device="cuda")      # made under the police, or moved with .to("cuda")
            actions = torch.zeros(64, dtype=torch.int64, device="cuda")
            env.step(actions)                               # warm-up
            with police.count() as counted:
                env.step(actions)
        assert counted.total <= 1, counted.report()         # one nonzero() for the episodes that ended
        assert not police.errors, police.errors             # those too that the code caught

Limits: one device, one thread; it says nothing of speed, memory, rounding, streams, CUDA graphs, pinned memory,
`torch.compile` and kernels of your own; waits inside PyTorch's C++ code are counted for the operations in `WAITS` only;
what `torch.load` brings back lies on the host. Make generators by `torch.Generator(device)`, or by a name that a
module had imported before the police came. Checked with PyTorch 2.13.
"""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

DEVICE, HOST = torch.device("cuda", 0), torch.device("cpu")
WAITS = dict.fromkeys(
    ["_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique", "_unique2", "unique_dim", "histc"], 1
)
WAITS |= {"unique_consecutive": 1, "repeat_interleave": 1, "multinomial": 2, "bincount": 2}
"""Operations for which the host waits, and how often."""
NO_NUMBERS = ("cat", "stack", "gather", "index_select", "index_add", "index_copy", "embedding", "scatter", "bucketize")
"""Operations that refuse a host tensor among device tensors even where it has no axes."""
UP, DOWN = "host to device", "device to host"
_generator, _autocast_init = torch.Generator, torch.autocast.__init__


@dataclass
class Counted:
    """(what, line of the watched code) -> waits of the host; operation -> calls that change device tensors."""

    waits: Counter = field(default_factory=Counter)
    kernels: Counter = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.waits.values())

    def report(self, lines: int = 30) -> str:
        rows = [f"{n:6d}  {what:22s} {where}" for (what, where), n in self.waits.most_common(lines)]
        return "\n".join([f"{self.total} waits, {sum(self.kernels.values())} kernels", *rows])


class PretendedGenerator(_generator):
    """A generator that says it lives where it was asked to."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.home = DEVICE if torch.device(device).type == DEVICE.type else HOST
        return made

    device = property(lambda self: self.home)


def _storage(x: Tensor):
    """Its memory; within `torch.func.vmap` that of the whole batch."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.untyped_storage()


class _Operations(TorchDispatchMode):
    def __init__(self, police) -> None:
        super().__init__()
        self.police = police

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.police._operation(func, args, kwargs or {})


class DevicePolice(TorchFunctionMode):
    """watch: part of the file names of your code: waits and errors are told by its innermost line. autocast: run the
    device's autocast regions in bfloat16 on the CPU; else they stay in float32."""

    def __init__(self, watch: str = "", autocast: bool = True) -> None:
        super().__init__()
        self.watch, self.autocast = watch, autocast
        self.everything, self.errors = Counted(), []
        self._counters, self._resident, self._most = [self.everything], {}, 4096
        self._inside = False  # a call on device tensors is under way: what it makes from nothing, it makes there

    @contextmanager
    def count(self):
        """Waits and kernels of the code inside."""
        self._counters.append(counted := Counted())
        yield counted
        self._counters = [other for other in self._counters if other is not counted]

    def on_device(self, x: Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            return _storage(x)._cdata in self._resident

    def _settle(self, result, there: bool) -> None:
        """Say where the tensors of `result` live. A weak reference keeps a storage's address from being used again."""
        with torch._C.DisableTorchFunction():
            for storage in [_storage(x) for x in tree_iter(result) if isinstance(x, Tensor)]:
                if not there:
                    self._resident.pop(storage._cdata, None)
                elif storage._cdata not in self._resident:
                    self._resident[storage._cdata] = StorageWeakRef(storage)
        if len(self._resident) > self._most:
            self._resident = {key: ref for key, ref in self._resident.items() if not ref.expired()}
            self._most = max(4096, 2 * len(self._resident))

    def _where(self) -> str:
        frame, innermost = sys._getframe(2), ""
        while frame is not None:
            name = frame.f_code.co_filename.replace("\\", "/")
            if "/torch/" not in name and frame.f_globals is not globals():
                here = f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
                innermost = innermost or here
                if self.watch in name:
                    return here
            frame = frame.f_back
        return innermost

    def _wait(self, what: str, times: int = 1) -> None:
        where = self._where()
        for counted in self._counters:
            counted.waits[what, where] += times

    def _refuse(self, error: Exception) -> None:
        self.errors.append(f"{self._where()}: {error}")
        raise error

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        x = args[0] if args and isinstance(args[0], Tensor) else None
        here = x is not None and self.on_device(x)
        answers = {Tensor.device: DEVICE, Tensor.is_cuda: True, Tensor.is_cpu: False}
        if name == "__get__" and here and func.__self__ in answers:
            return answers[func.__self__]
        if name == "get_device":
            return 0 if here else -1
        if name in ("to", "cpu", "cuda") and x is not None:
            return self._moved(name, x, here, args[1:], kwargs)
        if here and name in ("numpy", "__array__", "__dlpack__"):
            self._refuse(TypeError(f"can't convert {DEVICE} device type tensor to numpy; use Tensor.cpu() first"))
        if here and name == "tolist" and x.dim():
            self._wait("tolist")
        device, generator = kwargs.pop("device", None), kwargs.get("generator")
        if device is not None:
            device = DEVICE if isinstance(device, int) else torch.device(device)
            kwargs["device"] = HOST if device.type == DEVICE.type else device
        there = here if device is None else device.type == DEVICE.type
        if isinstance(generator, PretendedGenerator) and (generator.device == DEVICE) != there:
            wanted = DEVICE.type if there else HOST.type
            self._refuse(RuntimeError(f"Expected a '{wanted}' device type for generator but found {generator.device}"))
        given = [y for y in tree_iter((args, kwargs)) if isinstance(y, Tensor)]
        result = self._call(func, any(map(self.on_device, given)) or (device is not None and there), *args, **kwargs)
        outside = name in ("tensor", "as_tensor", "asarray", "new_tensor")  # the data come from there
        if outside and there and not here:
            self._wait(UP)
            result = result.clone()  # on a device it shares nothing with an array
        if outside or device is not None or name == "__deepcopy__":
            self._settle(result, there)
        return result

    def _call(self, func, inside, *args, **kwargs):
        outer, self._inside = self._inside, inside
        try:
            return func(*args, **kwargs)
        finally:
            self._inside = outer

    def _moved(self, name, x, here, args, kwargs):
        copy, waits, dtype, layout = kwargs.pop("copy", False), True, None, kwargs.get("memory_format")
        if name != "to":
            there = name == "cuda"
        elif args and isinstance(args[0], Tensor):
            there, dtype = self.on_device(args[0]), args[0].dtype
        else:
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
            there, waits = here if device is None else device.type == DEVICE.type, not non_blocking
        layout = {} if layout is None else {"memory_format": layout}
        moved = self._call(x.to, here, dtype=dtype or x.dtype, copy=copy or here != there, **layout)
        if here != there:
            self._settle(moved, there)
            if waits:
                self._wait(UP if there else DOWN)
        return moved

    def _operation(self, func, args, kwargs):
        name = func._schema.name.split("::")[1]
        tensors = [y for y in tree_iter((args, kwargs)) if isinstance(y, Tensor)]
        homes = [self.on_device(y) for y in tensors]
        if device := any(homes) if tensors else self._inside:
            taken = zip(func._schema.arguments, args, strict=False)
            written = [y for a, value in taken if a.is_write for y in tree_iter(value) if isinstance(y, Tensor)]
            device = self._check(name.rstrip("_"), args, kwargs, tensors, homes, written)
            view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
            for counted in () if view or name.startswith("empty") else self._counters:
                counted.kernels[name] += 1
        with torch._C.DisableTorchFunction():
            result = func(*args, **kwargs)
        if device:
            self._settle(result, True)
        return result

    def _check(self, name, args, kwargs, tensors, homes, written) -> bool:
        """Refuse or count; whether the result lies on the device."""
        if name == "copy":
            if homes[0] != homes[1]:
                self._wait(UP if homes[0] else DOWN)
            return homes[0]
        strangers = [y for y, home in zip(tensors, homes, strict=False) if not home]
        if name in ("index", "index_put", "_index_put_impl", "_unsafe_index") and homes[0]:
            rows, value = [y for y in args[1] if y is not None], args[2] if "put" in name else None
            masks = sum(y.dtype in (torch.bool, torch.uint8) for y in rows)
            fills = value is not None and value.dim() == 0 and masks == len(rows) == 1  # it becomes masked_fill
            if masks and not fills:
                self._wait("mask as index", masks)
            if not all(map(self.on_device, rows)):
                self._wait("host index")
            strangers = [value] if value is not None and not self.on_device(value) else []
            if strangers and value.dim() == 0 and not fills:
                self._wait("x[rows] = number")
        if not name.startswith(NO_NUMBERS):
            strangers = [y for y in strangers if y.dim() or any(y is z for z in written)]  # a kernel takes host numbers
        if strangers:
            found = ", ".join(
                f"{'device' if home else 'host'} {list(y.shape)}" for y, home in zip(tensors, homes, strict=False)
            )
            self._refuse(RuntimeError(f"Expected all tensors to be on the same device, but {name} got {found}"))
        if name in WAITS and kwargs.get("output_size") is None:
            self._wait(name, WAITS[name])
        return True

    def __enter__(self):
        def autocast_init(this, device_type, dtype=None, enabled=True, cache_enabled=None):
            if device_type == DEVICE.type:
                device_type, enabled = HOST.type, enabled and self.autocast
            _autocast_init(this, device_type, dtype, enabled, cache_enabled)

        def grouped(lists, *args, real=torch.optim.Optimizer._group_tensors_by_device_and_dtype, **options):
            groups = real(lists, *args, **options)  # for optimisers and clip_grad_norm_
            return {(DEVICE if self.on_device(of[0][0][0]) else home, kind): of for (home, kind), of in groups.items()}

        answers = {"is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "pretended device"}
        answers |= {"get_rng_state_all": [], "max_memory_allocated": 0, "is_bf16_supported": True, "set_device": None}
        answers |= dict.fromkeys(
            ["set_rng_state_all", "set_rng_state", "manual_seed_all", "manual_seed", "empty_cache"]
        )
        changes = [(torch.cuda, name, lambda *_, answer=answer, **__: answer) for name, answer in answers.items()]
        changes.append((torch.cuda, "reset_peak_memory_stats", lambda *_: None))
        changes.append((torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state()))
        changes.append((torch.cuda, "synchronize", lambda *_: self._wait("synchronize")))
        changes.append((torch.autocast, "__init__", autocast_init))
        for holder in (torch.nn.utils.clip_grad, torch.optim.Optimizer):
            changes.append((holder, "_group_tensors_by_device_and_dtype", grouped))
        for module in [m for key, m in sys.modules.items() if key != __name__ and not key.startswith("torch.")]:
            names = [key for key, value in getattr(module, "__dict__", {}).items() if value is _generator]
            changes += [(module, name, PretendedGenerator) for name in names]
        self._stack = ExitStack()
        for change in changes:
            self._stack.enter_context(patch.object(*change))
        self._stack.enter_context(_Operations(self))
        return super().__enter__()

    def __exit__(self, *failure):
        super().__exit__(*failure)
        self._stack.__exit__(*failure)
