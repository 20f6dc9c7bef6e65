"""Command lines of the builders: common options, and one way to run a builder."""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from internvl.parser import CommandParser

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = logging.getLogger(__name__)

Spec = TypeVar("Spec", bound="DataclassInstance")
SpecIn = TypeVar("SpecIn", contravariant=True)


class Build(Protocol[SpecIn]):
    """Makes a data set in a folder; returns False when it was there already."""

    def __call__(self, out: Path, spec: SpecIn, *, num_workers: int, overwrite: bool) -> bool:
        """Build `spec` in the folder `out`."""
        ...


def make_parser(builder: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of all builders; `builder` is the name of the module, `description` its docstring."""
    parser = CommandParser(
        prog=f"python -m {builder}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seed", type=int, default=0, help="the same seed gives the same files (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace what this command made with other arguments")
    return parser


def make_parts_parser(builder: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of builders that make long data in parts."""
    parser = make_parser(builder, description)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="CKPT", help="checkpoint whose tokenizer and tiles count")
    add("--out", type=Path, required=True, help="folder that is made")
    add("--workers", type=int, default=0, help="processes; 0 works in this one (default: %(default)s)")
    add("--max_dynamic_patch", dest="max_num", type=int, help="most tiles per image (default: the checkpoint's)")
    return parser


def make_data_root_parser(builder: str, description: str | None, *, name: str, reads: str) -> argparse.ArgumentParser:
    """A parser for builders that fill a data root; `name` is the pattern of their folders, with NAME in it."""
    parser = make_parser(builder, description)
    add = parser.add_argument
    add("--out", type=Path, default=Path("dataset"), help="data root (default: %(default)s)")
    add("--name", default="tiny", help=f"the folders are called {name} (default: %(default)s)")
    add("--tokenizer", type=Path, default=Path("pretrained/InternVL2-Tiny"), metavar="CKPT",
        help=f"checkpoint whose {reads} (default: %(default)s)")  # fmt: skip
    return parser


def read_spec(spec_class: type[Spec], arguments: argparse.Namespace) -> Spec:
    """The spec that a command line asks for: every field is the option whose `dest` has its name."""
    values = {field.name: getattr(arguments, field.name) for field in fields(spec_class)}
    return spec_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def run_parts_builder(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, spec_class: type[Spec], build: Build[Spec]
) -> int:
    """Run a builder whose parser is made by `make_parts_parser`; returns the exit code."""

    def make(arguments: argparse.Namespace) -> tuple[bool, Sequence[Path]]:
        spec = read_spec(spec_class, arguments)
        made = build(arguments.out, spec, num_workers=arguments.workers, overwrite=arguments.overwrite)
        return made, [arguments.out]

    return run_builder(parser, argv, make)


def run_builder(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    build: Callable[[argparse.Namespace], tuple[bool, Sequence[Path]]],
) -> int:
    """Build what the command line asks for and log the folders; returns the exit code, 2 for an error of the user.

    `build` returns whether anything had to be made, and the folders.
    """
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made, folders = build(arguments)
    for folder in folders:
        logger.info("%s: %s", folder, "written" if made else "already there, nothing to do")
    return 0
