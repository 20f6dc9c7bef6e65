"""`python -m eval.report DIR... [--out page.html]`: shows several evaluations side by side, on one page and as data.

    page.html   tables beside published rows, plots, questions with pictures and responses; needs no other file
    page.md     the tables
    page.csv    every score under every rule, by context length, and means over tasks (length `average`)
    page.json   the rows that `eval.report.compare` reads, and means over tasks

Reads scores.json (`python -m eval.score DIR` makes them again) and, for questions, predictions.jsonl and the data.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.core.data_root import read_data_root
from eval.core.judge import read_judged
from eval.core.output import write_result
from eval.core.result import PREDICTIONS_NAME, TaskResult, find_results, read_settings
from eval.core.sample import Sample
from eval.core.task import Task
from eval.report.gallery import Card, Thumbnails, collect_cards
from eval.report.labels import label_settings
from eval.report.overview import build_overview, list_averages
from eval.report.page import render_page
from eval.report.rows import format_csv, tabulate, tabulate_averages
from eval.report.tables import format_averages, format_comparison, format_table
from eval.score import read_checked_predictions
from eval.tasks.registry import find_saved_task
from internvl.command import command
from internvl.errors import ConfigError, InternVLError
from internvl.parser import CommandParser

logger = logging.getLogger(__name__)

DEFAULT_SAMPLES = 20
DEFAULT_PICTURE_MIB = 12.0


def collect_all_cards(results: Sequence[TaskResult], *, limit: int, picture_mib: float) -> dict[str, list[Card]]:
    """Up to `limit` questions per task, whose pictures take `picture_mib` together.

    Where predictions are missing there are no questions, without data no pictures.
    """
    thumbnails = Thumbnails(int(picture_mib * 2**20))
    by_task: dict[str, dict[str, TaskResult]] = {}
    for label, result in zip(label_settings(results), results, strict=True):
        by_task.setdefault(result.task, {})[label] = result
    cards = {}
    for name, runs in by_task.items() if limit else ():
        try:
            cards[name] = _collect_task(name, runs, limit=limit, thumbnails=thumbnails)
        except InternVLError as error:
            logger.warning("%s: no questions are shown: %s", name, error)
    return cards


def _collect_task(name: str, runs: Mapping[str, TaskResult], *, limit: int, thumbnails: Thumbnails) -> list[Card]:
    first = next(iter(runs.values()))
    task = find_saved_task(first.settings, first.info)
    predictions = {
        label: read_judged(
            task.judge, read_checked_predictions(result.folder, read_settings(result.folder)), result.folder
        )
        for label, result in runs.items()
        if (result.folder / PREDICTIONS_NAME).is_file()
    }
    samples = _read_samples(task, first) if predictions else {}
    return collect_cards(task, predictions, samples, protocol=first.protocol, limit=limit, thumbnails=thumbnails)


def _read_samples(task: Task, result: TaskResult) -> dict[str, Sample]:
    """The task's questions by id; none where the data has gone."""
    try:
        return {sample.id: sample for sample in task.read_samples(read_data_root(result.info["data_root"]))}
    except (InternVLError, OSError, KeyError) as error:
        logger.warning("%s: prompts and pictures are not shown: %s", task.name, error)
        return {}


@command(go_on="start the same command again; the result folders are unchanged")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    parser = CommandParser(
        prog="python -m eval.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="DIR", help="result folders of eval.run")
    add("--out", type=Path, help="the HTML page; default: report.html in the first DIR")
    add("--json", type=Path, help="the rows as JSON; default: beside the page")
    add("--markdown", type=Path, help="the tables as markdown; default: beside the page")
    add("--csv", type=Path, help="all scores as comma-separated values; default: beside the page")
    add("--title", default="Evaluation", help="heading of the page")
    add("--samples", type=int, default=DEFAULT_SAMPLES, help=f"questions shown per task ({DEFAULT_SAMPLES})")
    add(
        "--picture_mib",
        type=float,
        default=DEFAULT_PICTURE_MIB,
        help=f"size of all pictures of questions together ({DEFAULT_PICTURE_MIB:g})",
    )
    args = parser.parse_args(argv)
    out = args.out or args.folders[0] / "report.html"
    if args.samples < 0 or args.picture_mib < 0:
        raise ConfigError(
            f"--samples and --picture_mib must not be negative, got {args.samples} and {args.picture_mib:g}"
        )
    results = find_results(args.folders)
    rows, comparisons, averages = tabulate(results), build_overview(results), list_averages(results)
    cards = collect_all_cards(results, limit=args.samples, picture_mib=args.picture_mib)
    page = render_page(results, title=args.title, comparisons=comparisons, averages=averages, cards=cards)
    table, means = format_table(rows), format_averages(averages)
    sections = [format_comparison(comparison) for comparison in comparisons if comparison.has_own_rows]
    sections += ["## Averages over several tasks\n", means, ""] if means else []
    average_rows = tabulate_averages(averages)
    data = {"rows": [row.to_json() for row in rows], "averages": [row.to_json() for row in average_rows]}
    write_result(out, page)
    write_result(args.json or out.with_suffix(".json"), json.dumps(data, indent=2) + "\n")
    markdown = "\n".join([f"# {args.title}\n", *sections, "## Tasks\n", table, ""])
    write_result(args.markdown or out.with_suffix(".md"), markdown)
    write_result(args.csv or out.with_suffix(".csv"), format_csv([*tabulate(results, rules="all"), *average_rows]))
    print("\n".join([table, "", means] if means else [table]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
