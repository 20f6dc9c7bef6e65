"""Deal: which tokens of a shared row every rank holds, from the document borders alone.

Every rank gets as many tokens as any other, and as much attention. Attention costs a pair of tokens for every key that
a query sees, so late tokens of long documents are expensive. The row is shared as two thieves share a necklace: close
it to a circle; some window of half its tokens then has half its pairs too, because windows have half of them on
average. The window and the rest are shared again in the same way, until every rank has its own part (for k of n ranks
the window is k / n of the tokens). Each time two cuts suffice, so P ranks hold 2P - 1 runs of tokens at most, whatever
the documents are.

    documents of 6, 2 and 4 tokens    1 2 3 4 5 6 1 2 1 2 3 4           keys that each token sees: 34 pairs
    P = 2                             0 0 0 0 1 1 1 1 1 1 0 0           a window of 6 tokens with 17 pairs, and the rest

    one document, P = 4               1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
    a window, and the rest            a a a a b b b b b  b  b  b  a  a  a  a
    windows of both                   0 0 1 1 2 2 3 3 3  3  2  2  1  1  0  0

One document gives zigzag order: rank r holds the r-th of 2P equal chunks from the front and the r-th from the back.
Of several windows the one with the smallest messages is taken; among them are windows that begin or end on a document's
border and are unfair by `TOLERANCE` at most. Padding after the last document counts as more of that document.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

TOLERANCE = 0.02  # of a window's fair share of pairs
MAX_CANDIDATES = 32  # windows whose messages are compared, the fairest ones


@dataclass(frozen=True, order=True)
class Span:
    """A run of tokens, start <= token < stop."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        """The run as an index."""
        return slice(self.start, self.stop)

    def count_overlap(self, start: int, stop: int) -> int:
        """Tokens of the run between two places."""
        return max(0, min(self.stop, stop) - max(self.start, start))


Runs = tuple[Span, ...]  # rising, disjoint, none empty


@lru_cache(maxsize=64)
def deal_row(borders: tuple[int, ...], *, num_tokens: int, size: int) -> tuple[Runs, ...]:
    """Deal out a row of `size` * `num_tokens` tokens; the result is the same on every rank.

    Args:
        borders: Of the documents, rising from 0 up to the length of the row at most; empty documents are allowed.
        num_tokens: Tokens of every rank.
        size: Ranks.

    Returns:
        Runs of rank 0, 1, ..., which are numbered by their first token. A rank holds its runs one after the other.
    """
    if num_tokens == 0:
        return ((),) * size
    length = num_tokens * size
    shares = _share(Documents(borders, length), (Span(0, length),), size)
    return tuple(sorted(shares))


def count_pairs(num_tokens: int) -> int:
    """Pairs of a query with a key that it sees, itself included, in a document."""
    return num_tokens * (num_tokens + 1) // 2


def join_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same tokens in the same order, in as few spans as possible."""
    joined: list[Span] = []
    for span in spans:
        is_next = bool(joined) and joined[-1].stop == span.start
        joined.append(Span(joined.pop().start, span.stop) if is_next else span)
    return tuple(joined)


class Documents:
    """Where the documents of a row lie. The last one is taken to reach to the row's end."""

    def __init__(self, borders: Sequence[int], length: int) -> None:
        self.borders = [0, *sorted(set(borders[1:-1]) - {0, borders[-1], length}), length]
        self._pairs = [0, *accumulate(count_pairs(b - a) for a, b in pairwise(self.borders))]

    def find(self, place: int) -> Span:
        """The document of the token at `place`."""
        number = bisect_right(self.borders, place)
        return Span(self.borders[number - 1], self.borders[number])

    def count_pairs(self, run: Span) -> int:
        """Pairs of the queries of a run, with keys wherever they are."""
        return self._count_before(run.stop) - self._count_before(run.start)

    def _count_before(self, place: int) -> int:
        number = bisect_right(self.borders, place) - 1
        return self._pairs[number] + count_pairs(place - self.borders[number])


def _share(documents: Documents, runs: Runs, num_ranks: int) -> Iterator[Runs]:
    if num_ranks == 1:
        yield runs
        return
    first = num_ranks // 2
    window, rest = _choose_window(_Circle(documents, runs), first, num_ranks)
    yield from _share(documents, window, first)
    yield from _share(documents, rest, num_ranks - first)


def _choose_window(circle: "_Circle", first: int, num_ranks: int) -> tuple[Runs, Runs]:
    """The tokens of `first` of `num_ranks` ranks, and those of the others."""
    window = circle.length * first // num_ranks
    fair = circle.num_pairs * first

    def count_excess(start: int) -> int:
        return circle.count_window_pairs(start, window) * num_ranks - fair

    # A window that moves by a token gains and loses a query, both with one key more than at the move before, until an
    # end meets another document or run. So between these places the excess is linear; its mean is 0, so it crosses 0.
    borders, joins = circle.list_borders(), circle.starts
    near_border = {(place - shift) % circle.length for place in borders for shift in (0, window)}
    near_join = {(place - shift) % circle.length for place in joins for shift in (0, window)}
    places = sorted(near_border | near_join)
    excess = {place: count_excess(place) for place in places}
    candidates = {place: abs(excess[place]) for place in near_border if abs(excess[place]) <= TOLERANCE * fair}
    for place, following in pairwise([*places, places[0] + circle.length]):
        before, after = excess[place], excess[following % circle.length]
        if min(before, after) <= 0 <= max(before, after):
            steps = (following - place) * abs(before) // max(1, abs(before) + abs(after))
            nearest = [(place + step) % circle.length for step in (steps, steps + 1)]
            unfairness, start = min((abs(count_excess(start)), start) for start in nearest)
            candidates[start] = unfairness
    fairest = sorted(candidates, key=lambda start: (candidates[start], start))[:MAX_CANDIDATES]

    def count_sent(start: int) -> int:
        window_runs, rest = circle.split(start, window)
        to_window, to_rest = circle.count_sent(rest, window_runs), circle.count_sent(window_runs, rest)
        return to_window * first + to_rest * (num_ranks - first)

    return circle.split(min(fairest, key=lambda start: (count_sent(start), candidates[start], start)), window)


class _Circle:
    """Runs of a row, closed to a circle of `length` tokens that begins with the first run."""

    def __init__(self, documents: Documents, runs: Runs) -> None:
        self._documents, self._runs = documents, runs
        *self.starts, self.length = accumulate(map(len, runs), initial=0)
        self._pairs = list(accumulate(map(documents.count_pairs, runs), initial=0))
        self.num_pairs = self._pairs[-1]

    def list_borders(self) -> list[int]:
        """Places where a document begins."""
        borders = self._documents.borders
        return [
            start + border - run.start
            for start, run in zip(self.starts, self._runs, strict=True)
            for border in borders[bisect_left(borders, run.start) : bisect_left(borders, run.stop)]
        ]

    def count_window_pairs(self, start: int, window: int) -> int:
        """Pairs of `window` tokens from `start` on."""
        stop = start + window
        around = self.num_pairs if stop > self.length else 0
        return around + self._count_before(stop % self.length if around else stop) - self._count_before(start)

    def split(self, start: int, window: int) -> tuple[Runs, Runs]:
        """The runs of a window, and the others."""
        stop = start + window
        if stop <= self.length:
            return self._cut((start, stop)), self._cut((0, start), (stop, self.length))
        return self._cut((0, stop - self.length), (start, self.length)), self._cut((stop - self.length, start))

    def count_sent(self, lender: Runs, borrower: Runs) -> int:
        """Keys of the lender that queries of the borrower see."""
        last: dict[int, int] = {}  # of every document that runs into a run of the borrower: the start of the last one
        for run in borrower:
            last[self._documents.find(run.start).start] = run.start
        return sum(run.count_overlap(first, stop) for first, stop in last.items() for run in lender)

    def _count_before(self, place: int) -> int:
        number = min(bisect_right(self.starts, place), len(self._runs)) - 1
        run = self._runs[number]
        return self._pairs[number] + self._documents.count_pairs(
            Span(run.start, run.start + place - self.starts[number])
        )

    def _cut(self, *pieces: tuple[int, int]) -> Runs:
        """The runs between places of the circle, in row order."""
        cut = (
            Span(run.start + max(first - start, 0), run.start + min(last - start, len(run)))
            for first, last in pieces
            for start, run in zip(self.starts, self._runs, strict=True)
        )
        return join_spans(span for span in cut if span.start < span.stop)
