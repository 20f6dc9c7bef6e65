"""Pretended CUDA: tensors that say they are on `cuda:0`, hold real numbers in main memory, and are watched.

    with PretendedCuda() as cuda:
        model = cuda.move(model)
        model(ids.to("cuda")).loss.backward()
    cuda.counts.syncs        where the host would have waited for the GPU

Runs in a process that has loaded fake_cuda.cpp (worker.py). Data-dependent code works, which FakeTensor refuses.
"""

import traceback
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

from internvl.model.attention import send_borders

from .flash import OPERATORS

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
_sdpa = F.scaled_dot_product_attention

# Operators whose result the host reads, or whose size follows from the numbers.
READING = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPYING = {"copy_", "_to_copy"}


@dataclass
class Counts:
    """What happened, each with the line of the project that did it."""

    syncs: Counter[str] = field(default_factory=Counter)  # the host waits for the GPU
    copies: Counter[str] = field(default_factory=Counter)  # blocking copies from the host
    mixed: Counter[str] = field(default_factory=Counter)  # operators on tensors of both devices
    attention: Counter[str] = field(default_factory=Counter)  # attention kernels, by operator
    sdpa_shapes: list[tuple] = field(default_factory=list)  # shapes for which SDPA had a kernel chosen

    @property
    def waits(self) -> int:
        """Synchronisations and blocking copies."""
        return self.syncs.total() + self.copies.total()


class OnCuda(Tensor):
    """A tensor on the pretended device; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, real: Tensor, requires_grad: bool = False) -> "OnCuda":
        result = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        result.inner = real
        return result

    def __repr__(self, **kwargs: object) -> str:
        return f"OnCuda({self.inner})"

    def tolist(self) -> list:  # torch refuses subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on a pretended tensor outside of PretendedCuda")


class PretendedCuda(TorchDispatchMode):
    """Runs what is on `cuda` in main memory, and counts what a GPU would have waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self._leave: list[Any] = []

    def __enter__(self) -> "PretendedCuda":
        # Backward passes run in this thread, where the mode is; torch.tensor(..., device="cuda") comes through it.
        threads = torch.autograd.set_multithreading_enabled(False)
        lifting = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self._leave = [threads, lifting, torch.cuda._lazy_init, torch.cuda.get_device_capability]
        torch.cuda._lazy_init = lambda: None
        torch.cuda.get_device_capability = lambda device=None: (9, 0)
        F.scaled_dot_product_attention = self._choose_sdpa
        send_borders.cache_clear()  # those of another mode
        torch.compiler.set_stance("force_eager")  # there is nothing to compile for
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        threads, lifting, torch.cuda._lazy_init, torch.cuda.get_device_capability = self._leave
        F.scaled_dot_product_attention = _sdpa
        torch.compiler.set_stance("default")
        threads.__exit__(kind, error, trace)
        torch._C._set_only_lift_cpu_tensors(lifting)
        super().__exit__(kind, error, trace)

    def restart(self) -> None:
        """Count from here."""
        self.counts = Counts()

    @staticmethod
    def put(x: Tensor) -> OnCuda:
        """A copy on the device that nobody counts."""
        return OnCuda(x.clone())

    def move(self, module: nn.Module) -> nn.Module:
        """Put parameters and buffers on the device."""
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    owner._parameters[name] = nn.Parameter(self.put(parameter.data), parameter.requires_grad)
            for name, buffer in owner._buffers.items():
                if buffer is not None:
                    owner._buffers[name] = self.put(buffer)
        return module

    def _choose_sdpa(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any):
        """SDPA as torch for CUDA would choose it: flash for half precision without a mask."""
        if not isinstance(query, OnCuda):
            return _sdpa(query, key, value, attn_mask, **options)
        self.counts.sdpa_shapes.append((tuple(query.shape), tuple(key.shape)))
        is_half = query.dtype in (torch.bfloat16, torch.float16)
        if attn_mask is not None or not is_half or options.get("dropout_p"):
            self.counts.attention["sdpa"] += 1
            return _sdpa(query, key, value, attn_mask, **options)
        return aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, options.get("is_causal", False), scale=options.get("scale")
        )[0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors: list[Tensor] = []
        tree_map(lambda x: tensors.append(x) if isinstance(x, Tensor) else None, (args, kwargs))
        on_cuda = [x for x in tensors if isinstance(x, OnCuda)]
        target = kwargs.get("device")
        target = None if target is None else torch.device(target).type
        self._watch(func, args, kwargs, on_cuda, [x for x in tensors if not isinstance(x, OnCuda)], target)
        real_args, real_kwargs = tree_map(_real, args), tree_map(_real, kwargs)
        if target == "cuda":
            real_kwargs["device"] = torch.device("cpu")
        out = OPERATORS.get(func, func)(*real_args, **real_kwargs) if on_cuda else func(*real_args, **real_kwargs)
        leaves = target == "cpu" or (func is aten.copy_.default and not isinstance(args[0], OnCuda))
        if leaves or not (on_cuda or target == "cuda"):
            return out
        wrapped = tree_map(lambda x: OnCuda(x) if type(x) is Tensor else x, out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if on_cuda else wrapped

    def _watch(self, func, args, kwargs, on_cuda: list[Tensor], on_cpu: list[Tensor], target: str | None) -> None:
        name, counts = func.name().split("::")[-1].split(".")[0], self.counts
        if not on_cuda:
            if target == "cuda" and on_cpu and not kwargs.get("non_blocking"):
                counts.copies[_where(name)] += 1
            return
        if func in OPERATORS and "backward" not in name:
            counts.attention[name] += 1
        if name in COPYING:
            to_host = target == "cpu" or (name == "copy_" and not isinstance(args[0], OnCuda))
            if to_host:
                counts.syncs[_where(name)] += 1
            elif on_cpu and not (kwargs.get("non_blocking") or True in args[2:]):
                counts.copies[_where(name)] += 1
            return
        if any(x.dim() for x in on_cpu):
            # An index may come from the host; it is copied.
            (counts.copies if name in INDEXING else counts.mixed)[_where(name)] += 1
        reads_mask = name in INDEXING and any(x is not None and x.dtype == torch.bool for x in args[1])
        sizes_from_numbers = name == "repeat_interleave" and kwargs.get("output_size") is None and len(args) < 2
        if name in READING or reads_mask or sizes_from_numbers:
            counts.syncs[_where(name)] += 1


def _real(x: object) -> object:
    return x.inner if isinstance(x, OnCuda) else x


def _where(name: str) -> str:
    """The innermost line of the project, or of transformers, that is running."""
    stack = [frame for frame in traceback.extract_stack() if "/tests/" not in frame.filename]
    for part in ("/internvl/", "/eval/", "/transformers/"):
        for frame in reversed(stack):
            if part in frame.filename and (part == "/transformers/" or "site-packages" not in frame.filename):
                return f"{name}: {frame.filename.split(part)[-1]}:{frame.lineno} {frame.line}"
    return name
