"""Ring plan: what each rank computes and sends in every step of the ring, from the document borders alone.

A rank holds runs of the row (`deal.py`). Its own tokens, in the order in which it holds them, are packed causal
attention: the diagonal. Of other ranks it needs keys only for documents that run into one of its runs over the start:

    document          a a a a a a a a b b b
    rank              0 0 1 1 1 1 0 0 0 0 0         the second run of rank 0 begins inside a

    rank 0 borrows the four keys of rank 1 for the two queries of a in its second run; every query sees every key
    rank 1 borrows the two keys of rank 0's first run for its four queries

So whatever is borrowed is seen by whole prefixes of runs: dense blocks, no masks.

Ranks that compute and send in step with each other need not wait for each other. All have equal work, so a ring of P
ranks has P steps, and in every step a rank computes one P-th of its pairs of tokens: first the diagonal, then the
blocks of rank r - 1, r - 2, ..., cut by keys where a step ends. A diagonal of many steps is computed in the last of
them, since what was to be sent by then does not wait for it. The keys of a step travel `lead` steps earlier, as many as
fit into the memory of two shards. All functions are pure, so every rank knows what another one will send.

    one document, P = 2: c = computed, d = diagonal of the rank

                  rank 0   rank 1
         keys     0    3   1    2          runs, numbered by their place in the row
     r 0  0       d    .   .    .
          3       d    d   c    c         rank 0 borrows runs 1 and 2 of rank 1
     r 1  1       c    .   d    .         rank 1 borrows run 0 of rank 0
          2       c    .   d    d
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from jaxtyping import Int
from torch import Tensor

from internvl.errors import ParallelError

from .deal import Documents, Runs, Span, count_pairs, deal_row, join_spans

SLIVER = 8  # a block is not cut within an eighth of a step from its end


@dataclass(frozen=True)
class Loan:
    """Tokens whose keys and values go from one rank to another."""

    rank: int  # the other side
    tokens: Span  # among those of the rank that lends them


@dataclass(frozen=True)
class Block:
    """One dense block: every query sees every key."""

    queries: Span  # tokens of the rank that computes
    keys: tuple[Span, ...]  # among the tokens that it borrows in this step, in the order of its loans


@dataclass(frozen=True)
class RingStep:
    """What one rank computes in one step, and the messages for it."""

    has_diagonal: bool = False  # whether it computes attention among its own tokens
    blocks: tuple[Block, ...] = ()  # what it computes with borrowed keys; no query is in two of them
    borrowed: tuple[Loan, ...] = ()  # what comes here for these blocks
    lent: tuple[Loan, ...] = ()  # what others get for theirs

    @property
    def num_borrowed(self) -> int:
        """Tokens whose keys and values come here."""
        return sum(len(loan.tokens) for loan in self.borrowed)


@dataclass(frozen=True)
class RingPlan:
    """The work and the messages of one rank."""

    rank: int  # its number in the group
    size: int  # ranks of the group
    num_tokens: int  # tokens that every rank holds, padding included
    documents: tuple[int, ...]  # their borders among the held tokens, from 0; tokens after the last one are padding
    steps: tuple[RingStep, ...]  # `size` of them
    lead: int  # keys of a step are sent this many steps earlier, the same number on all ranks

    def count_sent_rows(self) -> tuple[int, ...]:
        """K/V rows (tokens) that this rank sends in the forward pass, per step."""
        return tuple(sum(len(loan.tokens) for loan in step.lent) for step in self.steps)

    def count_received_rows(self) -> tuple[int, ...]:
        """K/V rows (tokens) that this rank receives in the forward pass, per step."""
        return tuple(step.num_borrowed for step in self.steps)

    def count_diagonal(self) -> int:
        """Pairs of a query and a key that are both this rank's own."""
        return sum(count_pairs(b - a) for a, b in pairwise(self.documents))

    def count_pairs(self) -> tuple[int, ...]:
        """Pairs of a query and a key that this rank computes, per step."""
        diagonal = self.count_diagonal()
        return tuple(
            step.has_diagonal * diagonal + sum(len(block.queries) * sum(map(len, block.keys)) for block in step.blocks)
            for step in self.steps
        )


def build_ring_plan(
    cu_seqlens: Int[Tensor, " borders"] | Sequence[int], *, num_tokens: int, rank: int, size: int
) -> RingPlan:
    """Plan the ring of one rank of `size` ranks that share the row.

    Args:
        cu_seqlens: Borders of the documents of the WHOLE row, 0 first; empty documents are allowed. Tokens after the
            last border are padding. Copying them from a GPU waits for the GPU.
        num_tokens: Tokens that every rank holds, an even number (a single rank may hold any number).

    Raises:
        ParallelError: The borders do not fit the shards.
    """
    borders = tuple(list_borders(cu_seqlens))
    _check_borders(borders, num_tokens, size)
    return plan_all_ranks(borders, deal_row(borders, num_tokens=num_tokens, size=size))[rank]


def list_borders(cu_seqlens: Int[Tensor, " borders"] | Sequence[int]) -> list[int]:
    """The document borders as plain numbers."""
    return cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)


@dataclass(frozen=True)
class Piece:
    """Keys of one rank that the same queries of another one see."""

    source: int  # the rank that holds the keys
    keys: Span  # among the tokens of the source
    queries: tuple[Span, ...]  # among the tokens of the rank that computes

    @property
    def num_queries(self) -> int:
        """Queries that see each of the keys."""
        return sum(map(len, self.queries))

    @property
    def num_pairs(self) -> int:
        """Pairs of a query and a key."""
        return self.num_queries * len(self.keys)

    def cut(self, num_keys: int) -> tuple["Piece", "Piece"]:
        """The first `num_keys` keys, and the others."""
        border = self.keys.start + num_keys
        first, second = Span(self.keys.start, border), Span(border, self.keys.stop)
        return Piece(self.source, first, self.queries), Piece(self.source, second, self.queries)


@dataclass(frozen=True)
class Timetable:
    """When a rank computes what."""

    diagonal: int  # the step in which it computes attention among its own tokens
    pieces: tuple[tuple[Piece, ...], ...]  # of every step


@lru_cache(maxsize=64)  # every layer of a model asks again
def plan_all_ranks(borders: tuple[int, ...], shares: tuple[Runs, ...]) -> tuple[RingPlan, ...]:
    """The plan of every rank, for a row whose tokens are held as `shares` say."""
    diagonals = [sum(count_pairs(b - a) for a, b in pairwise(find_local_borders(borders, runs))) for runs in shares]
    needed = list_needed(borders, shares)
    total = sum(diagonals) + sum(piece.num_pairs for pieces in needed for piece in pieces)
    timetables = [
        _share_time(pieces, diagonal, total=total, size=len(shares))
        for pieces, diagonal in zip(needed, diagonals, strict=True)
    ]
    return plan_timetables(borders, shares, timetables)


def plan_timetables(
    borders: Sequence[int], shares: Sequence[Runs], timetables: Sequence[Timetable], *, lead: int | None = None
) -> tuple[RingPlan, ...]:
    """The plan of every rank: what one borrows, another one lends in the same step.

    `lead` is that of `RingPlan`; None: as many steps as fit.
    """
    size, num_tokens = len(shares), sum(map(len, shares[0]))
    borrowed = [[_list_loans(pieces) for pieces in timetable.pieces] for timetable in timetables]
    if lead is None:
        rows = [[sum(len(loan.tokens) for loan in loans) for loans in own] for own in borrowed]
        lead = _choose_lead(rows, num_tokens)
    plans = []
    for rank, (runs, timetable) in enumerate(zip(shares, timetables, strict=True)):
        documents = find_local_borders(borders, runs)
        steps = []
        for number, pieces in enumerate(timetable.pieces):
            lent = (
                Loan(borrower, loan.tokens)
                for borrower, loans in enumerate(borrowed)
                for loan in loans[number]
                if loan.rank == rank
            )
            has_diagonal = number == timetable.diagonal and documents[-1] > 0
            steps.append(RingStep(has_diagonal, _list_blocks(pieces), borrowed[rank][number], tuple(lent)))
        plans.append(RingPlan(rank, size, num_tokens, documents, tuple(steps), lead))
    return tuple(plans)


def list_needed(borders: Sequence[int], shares: Sequence[Runs]) -> list[list[Piece]]:
    """What every rank borrows: of the rank before it first, of the one after it last, each in the order of its keys."""
    size = len(shares)
    documents = Documents(borders, sum(len(run) for runs in shares for run in runs))
    needed = []
    for rank, own in enumerate(shares):
        wanted = []  # (first key, key after the last one, queries): in places of the row, queries in own tokens
        for start, run in _number_tokens(own):
            document = documents.find(run.start)
            num_queries = min(run.stop, document.stop, borders[-1]) - run.start
            if document.start < run.start and num_queries > 0:
                wanted.append((document.start, run.start, Span(start, start + num_queries)))
        sources = ((rank - distance) % size for distance in range(1, size))
        needed.append([piece for source in sources for piece in _list_pieces(source, shares[source], wanted)])
    return needed


def _list_pieces(source: int, runs: Runs, wanted: Sequence[tuple[int, int, Span]]) -> list[Piece]:
    pieces: list[Piece] = []
    for start, run in _number_tokens(runs):
        cuts = {run.start, run.stop, *(first for first, _, _ in wanted if run.start < first < run.stop)}
        for a, b in pairwise(sorted(cuts)):
            queries = tuple(queries for first, last, queries in wanted if first <= a and b <= last)
            if not queries:
                continue
            keys = Span(start + a - run.start, start + b - run.start)
            if pieces and pieces[-1].queries == queries and pieces[-1].keys.stop == keys.start:
                keys = Span(pieces.pop().keys.start, keys.stop)
            pieces.append(Piece(source, keys, queries))
    return pieces


def _number_tokens(runs: Runs) -> Iterator[tuple[int, Span]]:
    """Every run, with the number of its first token among all tokens of the rank."""
    start = 0
    for run in runs:
        yield start, run
        start += len(run)


def _share_time(needed: Sequence[Piece], diagonal: int, *, total: int, size: int) -> Timetable:
    """Steps of equal work for one rank, of a `size`-th of its fair share of the `total` pairs of all ranks."""
    # Time is counted in 1 / size^2 of a pair, so that a step takes `total` and all numbers are whole.
    time, sliver = diagonal * size**2, total // SLIVER
    number = diagonal_number = min(max(-(-(time - sliver) // total) - 1, 0), size - 1) if total else 0
    pieces: list[list[Piece]] = [[] for _ in range(size)]
    for piece in needed:
        rest = piece
        while len(rest.keys):
            room = (number + 1) * total - time
            is_last = number == size - 1
            if room <= sliver and not is_last:
                number += 1
                continue
            cost = rest.num_queries * size**2
            fits = is_last or len(rest.keys) * cost <= room + sliver
            now, rest = rest.cut(len(rest.keys) if fits else max(room // cost, 1))
            pieces[number].append(now)
            time += len(now.keys) * cost
    return Timetable(diagonal_number, tuple(map(tuple, pieces)))


def _list_blocks(pieces: Sequence[Piece]) -> tuple[Block, ...]:
    """Blocks of the pieces of one step, whose keys arrive one piece after the other."""
    keys: dict[Span, list[Span]] = {}
    num_arrived = 0
    for piece in pieces:
        arrived = Span(num_arrived, num_arrived + len(piece.keys))
        num_arrived = arrived.stop
        for queries in piece.queries:
            keys.setdefault(queries, []).append(arrived)
    blocks: list[Block] = []
    for queries in sorted(keys):
        block = Block(queries, join_spans(keys[queries]))
        if blocks and blocks[-1].queries.stop == queries.start and blocks[-1].keys == block.keys:
            block = Block(Span(blocks.pop().queries.start, queries.stop), block.keys)
        blocks.append(block)
    return tuple(blocks)


def _list_loans(pieces: Sequence[Piece]) -> tuple[Loan, ...]:
    loans: list[Loan] = []
    for piece in pieces:
        tokens = piece.keys
        if loans and loans[-1].rank == piece.source and loans[-1].tokens.stop == tokens.start:
            tokens = Span(loans.pop().tokens.start, tokens.stop)
        loans.append(Loan(piece.source, tokens))
    return tuple(loans)


def _choose_lead(borrowed: Sequence[Sequence[int]], num_tokens: int) -> int:
    """The most steps by which keys may come early, so that no rank holds more than two shards of them; at least one."""

    def count_held(lead: int) -> int:
        return max(sum(own[number : number + lead + 1]) for own in borrowed for number in range(len(own)))

    lead = 1
    while lead < len(borrowed) and count_held(lead + 1) <= 2 * num_tokens:
        lead += 1
    return lead


def find_local_borders(borders: Sequence[int], runs: Runs) -> tuple[int, ...]:
    """Borders of the documents among the tokens of a rank, up to its last real token."""
    cuts, num_real, previous = {0}, 0, 0
    for start, run in _number_tokens(runs):
        before, first, last = (bisect_left(borders, place) for place in (previous, run.start, run.stop))
        cuts.update(border - run.start + start for border in borders[first:last])
        if before < first:  # the document of the previous run does not reach this one
            cuts.add(start)
        num_real += run.count_overlap(0, borders[-1])
        previous = run.stop
    return tuple(sorted({*(cut for cut in cuts if cut < num_real), num_real}))


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
