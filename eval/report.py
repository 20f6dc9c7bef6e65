"""`python -m eval.report DIR... --out index.html`: several evaluations side by side, on one page and as data."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.core.page import render_page
from eval.core.report import find_results, format_table, tabulate
from eval.core.store import write_atomically
from internvl.errors import InternVLError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    parser = argparse.ArgumentParser(prog="python -m eval.report", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="result folders of eval.run")
    parser.add_argument("--out", type=Path, required=True, help="the HTML page")
    parser.add_argument("--json", type=Path, help="the table as JSON; default: beside the page")
    parser.add_argument("--markdown", type=Path, help="the table as markdown; default: beside the page")
    parser.add_argument("--title", default="Evaluation", help="heading of the page")
    args = parser.parse_args(argv)
    try:
        results = find_results(args.folders)
        rows = tabulate(results)
        write_atomically(args.out, render_page(results, title=args.title))
        write_atomically(args.json or args.out.with_suffix(".json"), json.dumps({"rows": rows}, indent=2) + "\n")
        write_atomically(args.markdown or args.out.with_suffix(".md"), format_table(rows) + "\n")
    except InternVLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
