"""Whose rule scores an answer: the benchmark's own, or the one that made the published V2PE numbers."""

from typing import Literal

from internvl.errors import EvalError

Protocol = Literal["official", "upstream"]
PROTOCOLS: tuple[Protocol, ...] = ("official", "upstream")


def read_protocol(name: str) -> Protocol:
    """A protocol by its name in files and on the command line. Raises EvalError if there is none of that name."""
    for protocol in PROTOCOLS:
        if name == protocol:
            return protocol
    raise EvalError(f"unknown scoring protocol {name!r}; expected one of {', '.join(PROTOCOLS)}")
