"""What the command lines of the builders share: common options, and how a builder is run."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from internvl.errors import InternVLError

logger = logging.getLogger(__name__)

Spec = TypeVar("Spec", contravariant=True)


class Build(Protocol[Spec]):
    """Makes a data set in a folder; returns False when it was there already."""

    def __call__(self, out: Path, spec: Spec, *, num_workers: int, overwrite: bool) -> bool:
        """See the class."""
        ...


def make_parser(builder: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of all builders.

    Args:
        builder: Name of its module, which is how it is called.
        description: Its docstring.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {builder}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="CKPT", help="checkpoint whose tokenizer and tiles count")
    add("--out", type=Path, required=True, help="folder that is made")
    add("--seed", type=int, default=0, help="the same seed gives the same files (default: %(default)s)")
    add("--workers", type=int, default=0, help="processes; 0 works in this one (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace data that this command made with other arguments")
    add("--max_dynamic_patch", type=int, default=None, help="most tiles per image (default: the checkpoint's)")
    return parser


def run_builder(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    read_spec: Callable[[argparse.Namespace], Spec],
    build: Build[Spec],
) -> int:
    """Read the command line, make the data set, say what came of it; returns the exit code."""
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        spec = read_spec(arguments)
        made = build(arguments.out, spec, num_workers=arguments.workers, overwrite=arguments.overwrite)
    except InternVLError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    logger.info("%s: %s", arguments.out, "written" if made else "already there, nothing to do")
    return 0
