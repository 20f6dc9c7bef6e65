"""State files: the json files of a run's folder and of its checkpoints. Whatever they hold, errors are one line."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from internvl.errors import CheckpointError

# What code that takes a json value for another one raises.
WRONG_CONTENT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def read_state_file(path: Path) -> dict[str, Any]:
    """The json object in a file.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It cannot be read, or holds something else.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path.name} cannot be read: it is no regular file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} cannot be read: it holds a {type(content).__name__}, expected an object")
    return content


def find_wrong_type(values: Mapping[str, object], hints: Mapping[str, Any]) -> str | None:
    """The first value that is unknown or of another type than its hint, in words; None: all fit."""
    for name, value in values.items():
        if name not in hints:
            return f"{name} is not known"
        if not _fits(value, hints[name]):
            return f"{name} is {value!r:.40}, expected {getattr(hints[name], '__name__', hints[name])}"
    return None


def _fits(value: object, hint: Any) -> bool:
    if hint is object:
        return True
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if kind is Literal:
        return value in inner
    if kind in (list, dict) and inner and type(value) is kind:
        entries = value.values() if isinstance(value, dict) else value
        return all(_fits(entry, inner[-1]) for entry in entries)  # type: ignore[attr-defined]
    return type(value) in ((int, float) if kind is float else (kind,))
