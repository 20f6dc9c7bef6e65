"""Ring plan: which part of the score matrix each rank computes, from the document borders alone.

The row lies in zigzag order (`zigzag.py`). Two different chunks share at most ONE document, the one that runs over the
borders between them, so a pair of chunks costs at most one dense rectangle. Taking the two chunks of a rank together
changes nothing about that: whatever the documents, rank r needs ONE contiguous run of the K/V rows that rank s holds,
for ONE contiguous run of its own queries, and every such query sees every such key:

    s < r   queries of chunk r and of chunk 2P-1-r, as far as the document reaches that runs over the END of chunk s
            keys    of chunk s, from where that document starts

    s > r   queries of chunk 2P-1-r, as far as the document reaches that runs over its START
            keys    of chunk s and of chunk 2P-1-s, from where that document starts

    one document, P = 2: c = computed, d = diagonal of the rank (packed causal attention over what it holds)

                  rank 0   rank 1
         keys     0    3   1    2
     r 0  0       d    .   .    .
          3       d    d   c    c         rank 0 fetches chunks 1 and 2 of rank 1
     r 1  1       c    .   d    .         rank 1 fetches chunk 0 of rank 0
          2       c    .   d    d

The diagonal (s = r) is ordinary packed causal attention over the tokens in the order in which the rank holds them; a
document that runs from its first chunk into its second is one document there. All functions are pure, so every rank
knows what another one will send.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Int
from torch import Tensor

from internvl.errors import ParallelError

from .zigzag import list_chunks


@dataclass(frozen=True)
class Span:
    """A run of local tokens, start <= token < stop, in the order in which a rank holds them."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        """The run as an index."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Block:
    """One dense rectangle: every query sees every key."""

    queries: Span  # tokens of the rank that computes
    keys: Span  # tokens of the rank that sends its keys and values


@dataclass(frozen=True)
class RingStep:
    """What one rank does at one distance of the ring."""

    source: int  # the rank whose keys and values come here
    block: Block | None  # what is computed with them; None when no document needs it, and then nothing is sent either
    target: int  # the rank that gets keys and values from here
    lent: Span | None  # the tokens that it gets; None when no document needs them


@dataclass(frozen=True)
class RingPlan:
    """The work and the messages of one rank."""

    rank: int  # its number in the group
    size: int  # ranks of the group
    num_tokens: int  # tokens that every rank holds, padding included
    documents: tuple[int, ...]  # their borders among the held tokens, from 0; tokens after the last one are padding
    steps: tuple[RingStep, ...]  # one entry per distance 1 ... size - 1

    def count_sent_rows(self) -> tuple[int, ...]:
        """K/V rows (tokens) that this rank sends in the forward pass, per step."""
        return tuple(len(step.lent) if step.lent else 0 for step in self.steps)

    def count_received_rows(self) -> tuple[int, ...]:
        """K/V rows (tokens) that this rank receives in the forward pass, per step."""
        return tuple(len(step.block.keys) if step.block else 0 for step in self.steps)


def build_ring_plan(
    cu_seqlens: Int[Tensor, " borders"] | Sequence[int], *, num_tokens: int, rank: int, size: int
) -> RingPlan:
    """Plan the ring of one rank of `size` ranks that share the row.

    Args:
        cu_seqlens: Borders of the documents of the WHOLE row, 0 first; empty documents are allowed. Tokens after the
            last border are padding. Copying them from a GPU waits for the GPU.
        num_tokens: Tokens that every rank holds, 2 * chunk (a single rank may hold any number).

    Raises:
        ParallelError: The borders do not fit the shards.
    """
    borders = list_borders(cu_seqlens)
    _check_borders(borders, num_tokens, size)
    chunk = num_tokens // 2
    steps = []
    for distance in range(1, size):
        source, target = (rank - distance) % size, (rank + distance) % size
        block = find_block(borders, chunk=chunk, size=size, receiver=rank, source=source)
        lent = find_block(borders, chunk=chunk, size=size, receiver=target, source=rank)
        steps.append(RingStep(source, block, target, lent.keys if lent else None))
    documents = sorted(set(borders)) if size == 1 else _find_local_borders(borders, chunk, list_chunks(rank, size))
    return RingPlan(rank, size, num_tokens, tuple(documents), tuple(steps))


def list_borders(cu_seqlens: Int[Tensor, " borders"] | Sequence[int]) -> list[int]:
    """The document borders as plain numbers."""
    return cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)


def find_block(borders: Sequence[int], *, chunk: int, size: int, receiver: int, source: int) -> Block | None:
    """The rectangle that `receiver`, which holds the queries, computes with keys of `source`; see the picture above."""
    if source < receiver:
        return _find_later_queries(borders, chunk, list_chunks(receiver, size), source)
    return _find_earlier_keys(borders, chunk, list_chunks(receiver, size)[1], list_chunks(source, size))


def _find_later_queries(
    borders: Sequence[int], chunk: int, query_chunks: tuple[int, int], key_chunk: int
) -> Block | None:
    end = (key_chunk + 1) * chunk
    document = _find_running_document(borders, end)
    if document is None or document.stop <= query_chunks[0] * chunk:
        return None
    num_queries = sum(_count_overlap(document, number * chunk, chunk) for number in query_chunks)
    num_keys = min(end - document.start, chunk)
    return Block(queries=Span(0, num_queries), keys=Span(chunk - num_keys, chunk))


def _find_earlier_keys(
    borders: Sequence[int], chunk: int, query_chunk: int, key_chunks: tuple[int, int]
) -> Block | None:
    start = query_chunk * chunk
    document = _find_running_document(borders, start)
    if document is None or document.start >= (key_chunks[1] + 1) * chunk:
        return None
    num_queries = _count_overlap(document, start, chunk)
    first, second = (_count_overlap(document, number * chunk, chunk) for number in key_chunks)
    # The first chunk is reached through the whole of the second, so the keys are one run up to the end.
    return Block(queries=Span(chunk, chunk + num_queries), keys=Span(2 * chunk - first - second, 2 * chunk))


def _find_running_document(borders: Sequence[int], place: int) -> Span | None:
    """The document that has tokens on both sides of `place`, in places of the row."""
    after = bisect_left(borders, place)
    if after == 0 or after == len(borders) or borders[after] == place:
        return None
    return Span(borders[after - 1], borders[after])


def _count_overlap(document: Span, start: int, chunk: int) -> int:
    return max(0, min(document.stop, start + chunk) - max(document.start, start))


def _find_local_borders(borders: Sequence[int], chunk: int, numbers: tuple[int, int]) -> list[int]:
    first, second = (number * chunk for number in numbers)
    cuts = {0}
    for local_start, start in ((0, first), (chunk, second)):
        inside = borders[bisect_left(borders, start) : bisect_left(borders, start + chunk)]
        cuts.update(border - start + local_start for border in inside)
    running = _find_running_document(borders, first + chunk)
    if running is None or running.stop <= second:
        cuts.add(chunk)
    num_real = sum(max(0, min(borders[-1] - start, chunk)) for start in (first, second))
    return sorted({*(cut for cut in cuts if cut < num_real), num_real})


def _check_borders(borders: Sequence[int], num_tokens: int, size: int) -> None:
    if num_tokens % 2 and size > 1:
        raise ParallelError(f"this rank holds {num_tokens} tokens: expected an even number, cut by shard_row")
    ordered = all(a <= b for a, b in pairwise(borders))
    if not borders or borders[0] != 0 or not ordered or borders[-1] > size * num_tokens:
        raise ParallelError(
            f"cu_seqlens {_shorten(borders)} does not fit {size} ranks x {num_tokens} tokens: expected borders of the "
            "whole row, from 0, in order, up to the number of its tokens"
        )


def _shorten(borders: Sequence[int]) -> str:
    return str(list(borders)) if len(borders) < 8 else f"[{borders[0]}, {borders[1]}, ..., {borders[-1]}]"
