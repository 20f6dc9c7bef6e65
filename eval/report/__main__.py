"""`python -m eval.report DIR... [--out page.html]`: several evaluations side by side, on one page and as data.

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
from typing import Any

from eval.core.output import write_result
from eval.core.predictions import read_settings
from eval.core.sample import Sample
from eval.core.task import Task
from eval.report.gallery import Card, Thumbnails, collect_cards
from eval.report.overview import build_overview, list_averages
from eval.report.page import render_page
from eval.report.tables import (
    find_results,
    format_averages,
    format_comparison,
    format_csv,
    format_table,
    label_settings,
    tabulate,
    tabulate_averages,
    tabulate_protocols,
)
from eval.score import read_predictions
from eval.tasks.registry import find_task
from internvl.errors import ConfigError, InternVLError

logger = logging.getLogger(__name__)

DEFAULT_SAMPLES = 20
DEFAULT_PICTURE_MIB = 12.0


def collect_all_cards(results: Sequence[Mapping[str, Any]], *, limit: int, picture_mib: float) -> dict[str, list[Card]]:
    """Questions to look at, by task; a task whose predictions or data are not there goes without (or without pictures).

    Args:
        results: Contents of scores.json files, with their folders.
        limit: Largest number of questions per task.
        picture_mib: Size of all pictures together.
    """
    thumbnails = Thumbnails(int(picture_mib * 2**20))
    by_task: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for label, result in zip(label_settings(results), results, strict=True):
        by_task.setdefault(result["task"], []).append((label, result))
    cards = {}
    for name, members in by_task.items() if limit else ():
        try:
            cards[name] = _collect_task(name, members, limit=limit, thumbnails=thumbnails)
        except InternVLError as error:
            logger.warning("%s: no questions are shown: %s", name, error)
    return cards


def _collect_task(
    name: str, members: Sequence[tuple[str, Mapping[str, Any]]], *, limit: int, thumbnails: Thumbnails
) -> list[Card]:
    first = members[0][1]
    task = find_task(name, prompts=first["settings"].get("prompts", "upstream"))
    predictions = {}
    for label, result in members:
        folder = Path(result["folder"])
        if (folder / "predictions.jsonl").is_file():
            predictions[label] = read_predictions(folder, read_settings(folder))
    samples = _read_samples(task, first) if predictions else {}
    return collect_cards(task, predictions, samples, protocol=first["protocol"], limit=limit, thumbnails=thumbnails)


def _read_samples(task: Task, result: Mapping[str, Any]) -> dict[str, Sample]:
    """The task's questions by id; none where the data is not there any more."""
    try:
        return {sample.id: sample for sample in task.read_samples(Path(result["info"]["data_root"]))}
    except (InternVLError, OSError, KeyError) as error:
        logger.warning("%s: prompts and pictures are not shown: %s", task.name, error)
        return {}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(
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
    try:
        if args.samples < 0 or args.picture_mib < 0:
            raise ConfigError(
                f"--samples and --picture_mib must not be negative, got {args.samples} and {args.picture_mib:g}"
            )
        results = find_results(args.folders)
        rows, comparisons, averages = tabulate(results), build_overview(results), list_averages(results)
        cards = collect_all_cards(results, limit=args.samples, picture_mib=args.picture_mib)
        page = render_page(results, title=args.title, comparisons=comparisons, averages=averages, cards=cards)
        table = format_table(rows)
        tables = [format_comparison(table) for table in comparisons if any(row.is_own for row in table.rows)]
        means = format_averages(averages)
        tables += ["## Averages over several tasks\n", means, ""] if means else []
        content = {"rows": rows, "averages": tabulate_averages(averages)}
        write_result(out, page)
        write_result(args.json or out.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
        write_result(
            args.markdown or out.with_suffix(".md"), "\n".join([f"# {args.title}\n", *tables, "## Tasks\n", table, ""])
        )
        write_result(
            args.csv or out.with_suffix(".csv"),
            format_csv([*tabulate_protocols(results), *tabulate_averages(averages)]),
        )
    except InternVLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([table, "", means] if means else [table]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
