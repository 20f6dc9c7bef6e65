"""The command line that converters share: FOLDER --out FOLDER."""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from internvl.folder_owner import own_folder
from internvl.parser import CommandParser

logger = logging.getLogger(__name__)


def run_converter(
    convert: Callable[..., Mapping[str, int]],
    *,
    name: str,
    description: str | None,
    out: str,
    argv: Sequence[str] | None,
    options: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> int:
    """Read the command line, convert, and report what was written.

    Args:
        convert: (published folder, output folder, further options by name) -> number of questions by file name.
        name: Name of the module below `eval.convert`.
        description: Text of `--help`.
        out: Default output folder.
        argv: Command line; None: the process's.
        options: Further options -> what argparse's `add_argument` takes for them.

    Returns:
        The exit code: 2 for an error that the user can fix.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = CommandParser(
        prog=f"python -m eval.convert.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder with the published files")
    parser.add_argument("--out", type=Path, default=Path(out), help="(%(default)s)")
    for option, details in options.items():
        parser.add_argument(option, **details)
    args: dict[str, Any] = vars(parser.parse_args(argv))
    folder, target = args.pop("folder"), args.pop("out")
    with own_folder(target, f"eval.convert.{name}"):
        counts = convert(folder, target, **args)
    for file, count in counts.items():
        logger.info("%s: %d questions", target / file, count)
    return 0
