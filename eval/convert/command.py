"""The command line that converters share: FOLDER --out FOLDER."""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from internvl.folder_owner import own_folder

logger = logging.getLogger(__name__)


def run_converter(
    convert: Callable[[Path, Path], Mapping[str, int]],
    *,
    name: str,
    description: str | None,
    out: str,
    argv: Sequence[str] | None,
) -> int:
    """Read the command line, convert, and report what was written.

    Args:
        convert: (published folder, output folder) -> number of questions by file name.
        name: Name of the module below `eval.convert`.
        description: Text of `--help`.
        out: Default output folder.
        argv: Command line; None: the process's.

    Returns:
        The exit code: 2 for an error that the user can fix.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(
        prog=f"python -m eval.convert.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder with the published files")
    parser.add_argument("--out", type=Path, default=Path(out), help="(%(default)s)")
    args = parser.parse_args(argv)
    with own_folder(args.out, f"eval.convert.{name}"):
        counts = convert(args.folder, args.out)
    for file, count in counts.items():
        logger.info("%s: %d questions", args.out / file, count)
    return 0
