"""`v2pe report DIR... [--out page.html]`: shows several evaluations side by side, on one page and as data.

    page.html       tables beside published rows, comparisons, plots, questions with pictures and responses
    page_pictures/  thumbnails, which a browser loads when they are seen; none with --one_file
    page.md         the tables
    page.csv        every score under every rule, by context length, and means over tasks (length `average`)
    page.json       the same scores, the comparisons question by question, and the folders they come from

Reads scores.json (`python -m eval.score DIR` makes them again) and, for questions, predictions.jsonl and the data.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.core.output import write_result
from eval.core.result import find_results
from eval.report.answers import AnsweredTask, read_answered
from eval.report.gallery import Card, collect_cards
from eval.report.labels import name_runs
from eval.report.overview import build_overview, list_averages
from eval.report.page import render_page
from eval.report.pairs import compare_runs
from eval.report.pictures import Thumbnails
from eval.report.rows import format_csv, tabulate, tabulate_averages
from eval.report.tables import format_averages, format_comparison, format_table
from internvl.command import command
from internvl.errors import ConfigError, InternVLError
from internvl.parser import CommandParser

logger = logging.getLogger(__name__)

DEFAULT_SAMPLES = 200
DEFAULT_PICTURE_MIB = 12.0


def collect_all_cards(
    tasks: Mapping[str, AnsweredTask], *, limit: int, thumbnails: Thumbnails
) -> dict[str, list[Card]]:
    """Up to `limit` questions per task. Without its data a task has questions without prompts and pictures."""
    cards = {}
    for name, answered in tasks.items() if limit else ():
        try:
            cards[name] = collect_cards(answered, limit=limit, thumbnails=thumbnails)
        except InternVLError as error:
            logger.warning("%s: no questions are shown: %s", name, error)
    return cards


@command(go_on="start the same command again; the result folders are unchanged")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    args = _build_parser().parse_args(argv)
    out = args.out or args.folders[0] / "report.html"
    if args.samples < 0 or args.picture_mib < 0:
        raise ConfigError(
            f"--samples and --picture_mib must not be negative, got {args.samples} and {args.picture_mib:g}"
        )
    results = find_results(args.folders)
    names = name_runs(results, args.names)
    rows, averages = tabulate(results, names), list_averages(results, names)
    comparisons = [table for table in build_overview(results, names) if table.has_own_rows]
    answered = read_answered(results, names)
    pairs = compare_runs(answered, names[0])
    thumbnails = (
        Thumbnails(max_bytes=int(args.picture_mib * 2**20))
        if args.one_file
        else Thumbnails(out.with_name(f"{out.stem}_pictures"))
    )
    cards = collect_all_cards(answered, limit=args.samples, thumbnails=thumbnails)
    page = render_page(
        results, names, title=args.title, comparisons=comparisons, pairs=pairs, averages=averages, cards=cards
    )
    write_result(out, page)
    thumbnails.remove_others()
    table, means = format_table(rows), format_averages(averages)
    sections = [format_comparison(comparison) for comparison in comparisons]
    sections += ["## Averages over several tasks\n", means, ""] if means else []
    average_rows = tabulate_averages(averages)
    data = {
        "rows": [row.to_json() for row in rows],
        "averages": [row.to_json() for row in average_rows],
        "comparisons": [pair.to_json() for pair in pairs],
        "folders": [str(result.folder.absolute()) for result in results],
        "names": names,
    }
    write_result(args.json or out.with_suffix(".json"), json.dumps(data, indent=2) + "\n")
    markdown = "\n".join([f"# {args.title}\n", *sections, "## Tasks\n", table, ""])
    write_result(args.markdown or out.with_suffix(".md"), markdown)
    all_rows = [*tabulate(results, names, rules="all"), *average_rows]
    write_result(args.csv or out.with_suffix(".csv"), format_csv(all_rows))
    print("\n".join([table, "", means] if means else [table]))
    return 0


def _build_parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m eval.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="result folders of eval.run; the first run is the reference",
    )
    add("--out", type=Path, help="the HTML page; default: report.html in the first DIR")
    add("--names", nargs="+", help="names of the runs, in their order; default: what differs between them")
    add("--json", type=Path, help="the rows as JSON; default: beside the page")
    add("--markdown", type=Path, help="the tables as markdown; default: beside the page")
    add("--csv", type=Path, help="all scores as comma-separated values; default: beside the page")
    add("--title", default="Evaluation", help="heading of the page")
    add("--samples", type=int, default=DEFAULT_SAMPLES, help=f"questions shown per task ({DEFAULT_SAMPLES})")
    add("--one_file", action="store_true", help="put the pictures into the page instead of a folder beside it")
    add(
        "--picture_mib",
        type=float,
        default=DEFAULT_PICTURE_MIB,
        help=f"with --one_file: size of all pictures together ({DEFAULT_PICTURE_MIB:g})",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
