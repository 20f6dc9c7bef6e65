"""Whose rule scores an answer: the benchmark's own, or the one that published V2PE numbers were made with."""

from typing import Literal

Protocol = Literal["official", "upstream"]
PROTOCOLS: tuple[Protocol, ...] = ("official", "upstream")
