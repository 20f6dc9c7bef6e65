"""Memory savings: options that trade time for memory, set on a model before or while it trains."""

import ctypes
import ctypes.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parallel.recompute import keep_ring_outputs

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep main memory that it frees, as the allocator of a GPU does. For training on a CPU.

    glibc takes every large tensor from the system and returns it when it is freed, and the next one waits for fresh
    pages: a third of a training step on rows of 4,096 tokens (`benchmarks/decoder.py --give_back`). The process stays
    as large as it once was.

    Returns:
        Whether the C library took both settings (glibc does).
    """
    name = ctypes.util.find_library("c")
    mallopt = getattr(ctypes.CDLL(name), "mallopt", None) if name else None
    if mallopt is None:
        return False
    # Both are needed: either one alone switches off the other's adaptation.
    from_heap = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)  # old versions take at most 2^25
    return bool(from_heap and mallopt(_M_TRIM_THRESHOLD, -1))


def tile_mlps(decoder: nn.Module, *, num_tokens: int) -> int:
    """Let at most `num_tokens` tokens pass every MLP of a decoder at a time; the backward pass recomputes them.

    The widest activations of a layer, (tokens, intermediate size), then exist for one tile instead of the whole row.
    Results and gradients are the same. The MLPs keep their class and parameter names.
    The decoder may be of any family whose layers hold it as `feed_forward` or `mlp`. Returns how many were changed.
    """
    mlps = [module for name, module in decoder.named_modules() if name.rpartition(".")[2] in ("feed_forward", "mlp")]
    for mlp in mlps:
        mlp.forward = _TiledForward(mlp.forward, num_tokens)
    return len(mlps)


class _TiledForward:
    def __init__(self, forward: Callable[[Tensor], Tensor], num_tokens: int):
        self.forward = forward
        self.num_tokens = num_tokens

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> same."""
        if hidden_states.shape[1] <= self.num_tokens or not torch.is_grad_enabled():
            return torch.cat([self.forward(tile) for tile in hidden_states.split(self.num_tokens, dim=1)], dim=1)
        tiles = hidden_states.split(self.num_tokens, dim=1)
        return torch.cat([checkpoint(self.forward, tile, use_reentrant=False) for tile in tiles], dim=1)


class KeepAttention(TrainerCallback):
    """Lets gradient checkpointing keep attention outputs (see `internvl.parallel.recompute`)."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: InternVLChatModel | None = None,
        **kwargs: object,
    ) -> None:
        """The Trainer has chosen the checkpointing function by now; give it the contexts that keep outputs."""
        assert model is not None
        for module in model.language_model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module._gradient_checkpointing_func = partial(
                    module._gradient_checkpointing_func, context_fn=keep_ring_outputs
                )
