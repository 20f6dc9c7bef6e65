"""The study of studies/miniature/run.sh as data: finished runs -> one JSON file -> tables and figures.

    python -m studies.miniature collect work_dirs/miniature --out docs/results/miniature.json
    python -m studies.miniature tables docs/results/miniature.json --page docs/reproduction.md
    python -m studies.miniature draw docs/results/miniature.json --out docs/images
    python -m studies.miniature page work_dirs/miniature/miniature.json --out work_dirs/miniature/index.html
    python -m studies.miniature check work_dirs/miniature/seed_0/stage1/evaluations/default --goal 0.95

Tables and figures average over seeds. Intervals are those of a mean of few seeds (Student's t), or of one seed's
questions (Wilson). `tables` replaces the lines between `<!-- tables: NAME.json -->` and `<!-- end of tables -->` of a
page.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.core.output import write_result
from internvl.command import command
from internvl.parser import CommandParser
from studies.miniature.cells import collect_cells, measure_digits, merge_cells, read_study, write_study
from studies.miniature.figures import HEATMAPS, LINES, make_figures, write_figures
from studies.miniature.page import render_study
from studies.miniature.tables import format_tables, update_page


def _collect(args: argparse.Namespace) -> int:
    cells = collect_cells(args.work)
    if args.add and args.out.is_file():
        cells = merge_cells(read_study(args.out), cells)
    write_study(args.out, cells)
    print(f"{args.out}: {len(cells)} cells, seeds {sorted({cell.seed for cell in cells})}")
    return 0


def _write_tables(args: argparse.Namespace) -> int:
    tables = format_tables(read_study(args.results))
    if args.page is None:
        print(tables)
    else:
        page = update_page(args.page.read_text(encoding="utf-8"), args.results.name, tables)
        write_result(args.page, page)
        print(f"{args.page}: tables of {args.results} written")
    return 0


def _draw(args: argparse.Namespace) -> int:
    cells = read_study(args.results)
    figures = make_figures(cells, args.results.stem, lines=args.lines, heatmaps=args.heatmaps)
    for path in write_figures(figures, args.out):
        print(f"figure  {path}")
    return 0


def _write_page(args: argparse.Namespace) -> int:
    cells = read_study(args.results)
    pages = sorted(args.out.parent.glob("seed_*/index.html"))
    links = {path.parent.name.replace("_", " "): path.relative_to(args.out.parent).as_posix() for path in pages}
    figures = make_figures(cells, args.results.stem, lines=args.lines, heatmaps=args.heatmaps)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_result(args.out, render_study(cells, figures, title=args.title, links=links))
    print(f"page    {args.out}")
    return 0


def _check(args: argparse.Namespace) -> int:
    scores = measure_digits(args.folder)
    reached = all(score >= args.goal for score in scores.values())
    print(", ".join(f"{name} {score:.3f}" for name, score in scores.items()), "at 1x; goal", f"{args.goal:g}")
    return 0 if reached else 1


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m studies.miniature", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    collect = commands.add_parser("collect", help="read finished evaluations, write one json file")
    collect.add_argument("work", type=Path, help="the WORK folder of studies/miniature/run.sh")
    collect.add_argument("--out", type=Path, required=True, help="json file that is written")
    collect.add_argument("--add", action="store_true", help="keep what the file has and the folder lacks (other seeds, "
                         "methods or evaluations, of another machine for example)")  # fmt: skip
    collect.set_defaults(command=_collect)
    tables = commands.add_parser("tables", help="markdown tables of a json file")
    tables.add_argument("results", type=Path, help="json file of collect")
    tables.add_argument("--page", type=Path, help="page whose tables are replaced; default: print them")
    tables.set_defaults(command=_write_tables)
    draw = commands.add_parser("draw", help="figures of a json file")
    draw.add_argument("results", type=Path, help="json file of collect")
    draw.add_argument("--out", type=Path, required=True, help="folder of the figures")
    draw.set_defaults(command=_draw)
    page = commands.add_parser("page", help="one HTML page of a json file, with links to the seeds' pages beside it")
    page.add_argument("results", type=Path, help="json file of collect")
    page.add_argument("--out", type=Path, required=True, help="HTML file")
    page.add_argument("--title", default="V2PE in miniature", help="heading (%(default)s)")
    page.set_defaults(command=_write_page)
    for flag, default, what in (
        ("--lines", LINES, "the lines of accuracy by length"),
        ("--heatmaps", HEATMAPS, "which are drawn by depth and length"),
    ):
        for parser_of_figures in (draw, page):
            parser_of_figures.add_argument(
                flag, nargs="*", default=default, metavar="METHOD@EVALUATION", help=f"{what} ({' '.join(default)})"
            )
    check = commands.add_parser("check", help="exit code 0 if both digits reach a goal at length 1x, else 1")
    check.add_argument("folder", type=Path, help="result folder of one evaluation")
    check.add_argument("--goal", type=float, default=0.95, help="accuracy (%(default)s)")
    check.set_defaults(command=_check)
    return parser


@command(go_on="start the same command again to continue")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    args = _build_parser().parse_args(argv)
    return args.command(args)


if __name__ == "__main__":
    sys.exit(main())
