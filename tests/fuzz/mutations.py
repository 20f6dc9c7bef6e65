"""Damaged copies of a file, the same ones for the same seed."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

_LOOKED_AT = 4096  # bytes at the beginning and at the end, where headers and directories are
_EXTREMES = [0, 1, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def list_damaged(content: bytes, *, seed: int, count: int) -> Iterator[bytes]:
    """`count` copies, each with one to three changes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        damaged = content
        for _ in range(rng.integers(1, 4)):
            damaged = _CHANGES[rng.integers(len(_CHANGES))](damaged, rng)
        yield damaged


def _place(content: bytes, rng: np.random.Generator) -> int:
    """An index of `content`, more often near one of its ends."""
    reach = min(len(content), _LOOKED_AT) if rng.random() < 0.7 else len(content)
    offset = int(rng.integers(reach + 1))
    return offset if rng.random() < 0.5 else len(content) - offset


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    place = _place(content, rng)
    byte = content[place : place + 1]
    return content[:place] + bytes(sign ^ (1 << rng.integers(8)) for sign in byte) + content[place + 1 :]


def _set_number(content: bytes, rng: np.random.Generator) -> bytes:
    place, num_bytes = _place(content, rng), int(rng.choice([1, 2, 4, 8]))
    value = int(rng.choice(np.array(_EXTREMES, dtype=object))) % 256**num_bytes
    return content[:place] + value.to_bytes(num_bytes, "little") + content[place + num_bytes :]


def _set_noise(content: bytes, rng: np.random.Generator) -> bytes:
    place, num_bytes = _place(content, rng), int(rng.integers(1, 32))
    return content[:place] + rng.bytes(num_bytes) + content[place + num_bytes :]


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: _place(content, rng)]


def _leave_out(content: bytes, rng: np.random.Generator) -> bytes:
    place = _place(content, rng)
    return content[:place] + content[place + int(rng.integers(1, 64)) :]


def _repeat(content: bytes, rng: np.random.Generator) -> bytes:
    source, place = _place(content, rng), _place(content, rng)
    return content[:place] + content[source : source + int(rng.integers(1, 64))] + content[place:]


_CHANGES: Sequence[Callable[[bytes, np.random.Generator], bytes]] = (
    _flip, _flip, _set_number, _set_number, _set_noise, _cut, _leave_out, _repeat,
)  # fmt: skip


class TooSlow(BaseException):
    """Not an Exception, which the code under test would take for damage."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow in a block that takes longer (C code is waited for)."""

    def stop(*_: object) -> None:
        raise TooSlow(f"it takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
