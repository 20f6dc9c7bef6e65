"""What tests check calls with: annotations of arguments and results, jaxtyping's shapes and dtypes among them.

Checking takes longer than tiny models compute, so it ends with the first calls of a test: a few steps of whatever loop
the test is in, after which the same functions see the same shapes again.
"""

import functools
from collections.abc import Callable

from beartype import BeartypeConf, beartype
from jaxtyping import config

CHECKED_CALLS = 300
_annotated = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float
_left = CHECKED_CALLS


def start_checking() -> None:
    """Check the next calls."""
    global _left
    _left = CHECKED_CALLS
    config.update("jaxtyping_disable", False)


def count_call() -> None:
    """Check no further calls after the last one that is to be checked."""
    global _left
    _left -= 1
    if not _left:
        config.update("jaxtyping_disable", True)


def check_calls(function: Callable[..., object]) -> Callable[..., object]:
    """The function with its annotations checked: the typechecker of jaxtyping's import hook."""
    import torch  # here, since the process that deals out the tests needs none

    checked = _annotated(function)

    @functools.wraps(checked)
    def counted(*args: object, **kwargs: object) -> object:
        if not torch.compiler.is_compiling():  # or a graph would hold for one count only
            count_call()
        return checked(*args, **kwargs)

    return counted
