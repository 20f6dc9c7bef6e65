"""Options: fields of a dataclass that are also options of a command line, with their help beside them."""

from dataclasses import Field, field
from typing import Any


def option(default: object, help: str) -> Any:
    """A field with a default, and what `--help` says about the option of its name."""
    return field(default=default, metadata={"help": help})


def describe_option(entry: Field[Any], *, otherwise: str = "") -> str:
    """What `--help` says about a field, with its default; None counts as all."""
    return f"{entry.metadata.get('help', otherwise)} (default: {'all' if entry.default is None else entry.default})"
