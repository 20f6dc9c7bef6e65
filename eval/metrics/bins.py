"""Bins of numbers: which one holds a number, and what bins are called.

    edges 10, 20:    `<10` below 10        `10-20` from 10, below 20        `20+` from 20 on

A number that equals an edge is in the bin which begins there.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence


def format_number(number: float) -> str:
    """`3.0` -> `3`, `2.5` -> `2.5`."""
    return str(int(number)) if float(number).is_integer() else str(number)


def format_tokens(num_tokens: float) -> str:
    """`4000` -> `4k`, `1500` -> `1500`."""
    thousands, rest = divmod(num_tokens, 1000)
    return f"{thousands:.0f}k" if thousands >= 1 and not rest else format_number(num_tokens)


def find_bin(value: float, edges: Sequence[float]) -> int:
    """Place of a number's bin: 0 below the first edge, `len(edges)` from the last edge on."""
    return bisect_right(edges, value)


def label_value(value: float, edges: Sequence[float]) -> str:
    """Name of the bin that holds a number."""
    place = find_bin(value, edges)
    return label_bin(edges[place - 1] if place else None, edges[place] if place < len(edges) else None)


def label_bin(low: float | None, high: float | None, *, write: Callable[[float], str] = format_number) -> str:
    """Name of the bin from `low` to below `high`, of which one may be open (None); `write` makes text of an edge."""
    if low is None:
        return f"<{write(high or 0)}"
    return f"{write(low)}+" if high is None else f"{write(low)}-{write(high)}"
