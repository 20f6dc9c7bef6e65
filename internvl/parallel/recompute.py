"""Recomputation without a second ring: gradient checkpointing that keeps what ring attention computed.

Checkpointing drops the activations of a layer and computes them again in the backward pass, ring attention and its
messages included. With `keep_ring_outputs` as `context_fn`, a checkpointed layer keeps the output and the log-sum-exp
of its ring attention, and the second run takes them from there:

    checkpoint(layer, hidden_states, use_reentrant=False, context_fn=keep_ring_outputs)

Cost per layer and token: heads * head_dim numbers of the model's dtype and heads float32 numbers. It saves the forward
ring, which is most of a layer's second run on long rows.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token

from torch import Tensor

Compute = Callable[[], tuple[Tensor, ...]]


def keep_ring_outputs() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return the contexts of the first and of the second run of one checkpointed call (torch's `context_fn`)."""
    outputs: list[tuple[Tensor, ...]] = []
    return _Recording(outputs), _Replaying(outputs)


def compute_or_recall(compute: Compute) -> tuple[Tensor, ...]:
    """The results of `compute`; in a second run, those that the first run kept, in the order of the calls."""
    memory = _memory.get()
    return compute() if memory is None else memory(compute)


_memory: ContextVar[Callable[[Compute], tuple[Tensor, ...]] | None] = ContextVar("ring_outputs", default=None)


class _Recording(AbstractContextManager):
    def __init__(self, outputs: list[tuple[Tensor, ...]]) -> None:
        self._outputs = outputs
        self._token: Token | None = None

    def __enter__(self) -> None:
        self._token = _memory.set(self._call)

    def __exit__(self, *error: object) -> None:
        assert self._token is not None
        _memory.reset(self._token)

    def _call(self, compute: Compute) -> tuple[Tensor, ...]:
        results = compute()
        # Detached: a tensor that knows its graph would keep the whole graph alive as long as this list.
        self._outputs.append(tuple(result.detach() for result in results))
        return results


class _Replaying(_Recording):
    def __enter__(self) -> None:
        self._kept = iter(self._outputs)
        super().__enter__()

    def _call(self, compute: Compute) -> tuple[Tensor, ...]:
        return tuple(result.detach() for result in next(self._kept))
