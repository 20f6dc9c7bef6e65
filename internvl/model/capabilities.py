"""Capabilities: what newer releases of torch have and the oldest supported one lacks, found by looking for it.

Nothing else in this project depends on how old a library is. INSTALLATION.md names the ends of the ranges, and what is
missing at the old one.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn

from .errors import MissingDependencyError

_VARLEN_PARAMETERS = {"scale", "window_size", "enable_gqa"}  # which the first releases of the function lack


@lru_cache(maxsize=1)
def find_varlen_attention() -> Callable[..., Tensor] | None:
    """`torch.nn.attention.varlen.varlen_attn`: flash attention on CUDA over many sequences in one call; None: not here.

    Looked for at the first use, since importing it registers operators.
    """
    try:
        function = import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:
        return None
    return function if inspect.signature(function).parameters.keys() >= _VARLEN_PARAMETERS else None


def _groups_heads_on_cpu() -> bool:
    """Whether torch's flash operators for the CPU take fewer K/V heads than query heads.

    Those that do not fail to notice, and read past the last head. So here the only head is one, and lies before zeros.
    """
    states = torch.stack([torch.ones(1, 8, device="cpu"), torch.zeros(1, 8, device="cpu")]).unsqueeze(0)
    only_head = states[:, :1]
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(states, only_head, only_head)
    return bool((out == 1).all())


# At import, where no fake tensors and no counters of operators are about.
_GROUPS_HEADS_ON_CPU = _groups_heads_on_cpu()


def repeat_heads(states: Tensor, num_heads: int) -> Tensor:
    """Keys or values, (batch, kv_heads, keys, head_dim), with the heads that torch's flash operators for the CPU need.

    `num_heads` are those of the queries.
    """
    repeats = 1 if _GROUPS_HEADS_ON_CPU else num_heads // states.shape[1]
    return states if repeats == 1 else states.repeat_interleave(repeats, dim=1)


def find_flash_implementations() -> ModuleType:
    """`torch.nn.attention`, where torch lists and activates implementations of its flash operators for CUDA.

    Raises:
        MissingDependencyError: This torch has one implementation only.
    """
    if not hasattr(nn.attention, "activate_flash_attention_impl"):
        raise MissingDependencyError(
            f"torch {torch.__version__} has no other flash implementations "
            "(torch.nn.attention.activate_flash_attention_impl); pip install -U torch, or leave the choice out"
        )
    return nn.attention
