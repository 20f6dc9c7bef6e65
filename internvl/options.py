"""Options: fields of a dataclass that are also options of a command line, with their help beside them."""

from dataclasses import Field, field
from typing import Any


def option(default: object, help: str, *, absent: str | None = None) -> Any:
    """A field with a default, and what `--help` says about the option of its name; `absent`: what None means."""
    # transformers' parser hands all metadata to argparse, which knows no `absent`.
    return field(default=default, metadata={"help": help} | ({"absent": absent} if absent else {}))


def describe_option(entry: Field[Any], *, otherwise: str = "") -> str:
    """What `--help` says about a field, with its default."""
    default = entry.metadata.get("absent", "all") if entry.default is None else entry.default
    return f"{entry.metadata.get('help', otherwise)} (default: {default})"
