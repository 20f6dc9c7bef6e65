"""Flags: fields of a frozen dataclass that are also options of a command line, each described once.

    limit: int | None = flag(None, "first N samples of every task only", read=int, check=at_least(1))

A field carries its help, default, reader and check. `add_flags` puts the fields on a parser, `from_arguments` and
`from_options` build the record from what came in, and `check_flags`, called in the record's `__post_init__`, refuses
values out of range wherever they came from.
"""

import argparse
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from internvl.errors import ConfigError

Check = Callable[[str, Any], None]  # (name of the field, value that is not None) -> raises ConfigError
Record = TypeVar("Record")


def flag(
    default: object,
    help: str,
    *,
    read: Callable[[str], object] = str,
    check: Check | None = None,
    metavar: str | None = None,
    nargs: str | None = None,
) -> Any:
    """A field of a dataclass, and the option of the same name.

    Args:
        default: Of the field and of the option; `dataclasses.MISSING` makes both required.
        help: What `--help` says.
        read: Makes the value from text; `bool` makes a switch without a value.
        check: Refuses wrong values; it never sees None.
        metavar: Name of the value in `--help`.
        nargs: As argparse takes it; several values become a tuple.
    """
    option = {"action": "store_true"} if read is bool else {"type": read, "metavar": metavar, "nargs": nargs}
    return field(default=default, metadata={"option": {**option, "help": help}, "check": check})


def at_least(lowest: int) -> Check:
    """A check for numbers that have a smallest value."""

    def check(name: str, value: int) -> None:
        if value < lowest:
            raise ConfigError(f"--{name} must be at least {lowest}, got {value}")

    return check


def within(lowest: int, highest: int) -> Check:
    """A check for numbers between two, which are among them."""

    def check(name: str, value: int) -> None:
        if not lowest <= value <= highest:
            raise ConfigError(f"--{name} must be from {lowest} to {highest}, got {value}")

    return check


def one_of(choices: Collection[str]) -> Check:
    """A check for names."""

    def check(name: str, value: str) -> None:
        if value not in choices:
            raise ConfigError(f"--{name} is {value!r}, expected one of {', '.join(choices)}")

    return check


def name_checkpoint(words: Sequence[str]) -> list[str]:
    """A command line whose first word is a folder, with `--checkpoint` in front of it unless that is there already."""
    is_named = any(word.partition("=")[0] == "--checkpoint" for word in words)
    return [*words] if is_named or not words or not os.path.isdir(words[0]) else ["--checkpoint", *words]


def list_flags(record: type) -> dict[str, Field[object]]:
    """Fields of a record that are options, by name."""
    return {entry.name: entry for entry in fields(record) if "option" in entry.metadata}


def check_flags(record: object) -> None:
    """Run every field's own check.

    Raises:
        ConfigError: The first value that is refused.
    """
    for name, entry in list_flags(type(record)).items():
        value, check = getattr(record, name), entry.metadata["check"]
        if check is not None and value is not None:
            check(name, value)


def add_flags(
    parser: argparse.ArgumentParser,
    record: type,
    *,
    only: Collection[str] | None = None,
    leave_out: Collection[str] = (),
) -> None:
    """Put the options of a record on a parser, in the order of its fields."""
    for name, entry in list_flags(record).items():
        if name in leave_out or (only is not None and name not in only):
            continue
        given = {"required": True} if entry.default is MISSING else {"default": entry.default}
        parser.add_argument(f"--{name}", **entry.metadata["option"], **given)


def from_arguments(record: type[Record], arguments: argparse.Namespace, **others: object) -> Record:
    """Build a record from a parsed command line; fields without an option there keep their default.

    Raises:
        ConfigError: A value is out of range.
    """
    given = {name: value for name, value in vars(arguments).items() if name in list_flags(record)}
    return record(**{name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}, **others)


def from_options(record: type[Record], options: Mapping[str, object]) -> Record:
    """Build a record from the options of another program, where values may be text and None means the default.

    Raises:
        ConfigError: An unknown option, or a value that is malformed or out of range.
    """
    known = list_flags(record)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"unknown options {', '.join(unknown)}; expected some of {', '.join(known)}")
    values = {name: value for name, value in options.items() if value is not None}
    for name, value in values.items():
        if isinstance(value, str):
            try:
                values[name] = known[name].metadata["option"]["type"](value)
            except ValueError as error:
                raise ConfigError(f"--{name} must be a whole number, got {value!r}") from error
    return record(**values)
