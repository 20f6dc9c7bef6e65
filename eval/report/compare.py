"""`v2pe compare DIR...`: what the runs in result folders gain over the first one, question by question.

    v2pe compare CKPT/eval_default CKPT/eval_v2pe_fix_64             a table, and the questions that changed
    v2pe compare page.json --baseline "default positions"            the runs of a report

For each task and context length: the mean difference over the questions that both runs answered, its 95 % interval from
a paired bootstrap, how many questions the run gains and loses, and the p-value of McNemar's exact test of these numbers
(a sign test where a rule gives parts of a point). Needs the saved predictions, no data and no model. Where many lengths
and tasks are compared, one in twenty of those that do not differ seems to.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.core.fields import read_object
from eval.core.output import write_result
from eval.core.result import SCORES_NAME, TaskResult, find_results, name_first, read_result
from eval.report.answers import group_by_task, read_task
from eval.report.labels import name_runs
from eval.report.pairs import Pair, compare_runs
from eval.report.rows import ALL_LENGTHS
from eval.report.tables import format_interval, format_p
from internvl import markdown
from internvl.command import command
from internvl.errors import DataError, EvalError, did_you_mean
from internvl.parser import CommandParser

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Report:
    """What a page.json says of its runs."""

    folders: list[str]  # of every result
    names: list[str]  # of their runs

    def __post_init__(self) -> None:
        """Refuse a file in which results have no run."""
        if len(self.names) != len(self.folders) or not self.names:
            raise DataError(f"{len(self.folders)} folders and {len(self.names)} names, expected a name for each")


def read_runs(paths: Sequence[Path], given: Sequence[str] | None = None) -> tuple[list[TaskResult], list[str]]:
    """Results below folders, or of a page.json, and the names of their runs.

    Raises EvalError for a folder without results or another file, ConfigError for a wrong number of names.
    """
    if len(paths) > 1 or paths[0].is_dir():
        results = find_results(paths)
        return results, name_runs(results, given)
    try:
        report = read_object(paths[0], _Report)
    except DataError as error:
        raise EvalError(
            f"{paths[0]} is no report of eval.report ({error.message}); expected result folders, or the JSON beside a "
            "page"
        ) from error
    results = [read_result(Path(folder, SCORES_NAME)) for folder in report.folders]
    return results, report.names if given is None else name_runs(results, given)


def compare_results(results: Sequence[TaskResult], names: Sequence[str], reference: str | None) -> list[Pair]:
    """Every run against the reference (None: the first). Raises EvalError if runs share nothing that has a score."""
    reference = names[0] if reference is None else reference
    if reference not in names:
        known = list(dict.fromkeys(names))
        raise EvalError(
            f"there is no run {reference!r}{did_you_mean(reference, known)}; runs: {', '.join(map(repr, known))}"
        )
    tasks = group_by_task(results, names)
    for name in dict.fromkeys(names):
        missing = [task for task, runs in tasks.items() if name not in runs]
        if missing:
            logger.warning("%s has no %s, which is compared without it", name, name_first(missing))
    pairs = compare_runs({name: read_task(runs) for name, runs in tasks.items() if len(runs) > 1}, reference)
    if not pairs:
        raise EvalError(
            f"no other run shares scored questions with {reference!r}; expected two runs of the same tasks, each with "
            "its predictions.jsonl"
        )
    return pairs


def format_pairs(pairs: Sequence[Pair]) -> str:
    """A markdown table for each run, of all tasks and lengths."""
    tables = []
    for run in dict.fromkeys(pair.run for pair in pairs):
        members = [pair for pair in pairs if pair.run == run]
        head = ["task", "length", "questions", members[0].reference, run, "difference", "gained", "lost", "p", ""]
        tables.append(markdown.format_table([head, *map(_list_cells, members)]))
    return "\n\n".join(tables)


def _list_cells(pair: Pair) -> list[str]:
    found = pair.difference
    return [
        *(pair.task, pair.length, str(found.count)),
        *(f"{mean.score:.3f} {format_interval(mean.interval)}" for mean in (found.reference, found.score)),
        f"{found.gain:+.3f} {format_interval((found.low, found.high), sign='+')}",
        *(str(found.num_better), str(found.num_worse), format_p(found.p_value), found.verdict),
    ]


def describe_changes(pairs: Sequence[Pair]) -> str:
    """The questions that changed, in both directions, a line per task and direction."""
    lines = []
    for pair in pairs:
        for word, names in (("gains", pair.better), ("loses", pair.worse)):
            if pair.length == ALL_LENGTHS and names:
                lines.append(f"{pair.task}: {pair.run} {word} {name_first(names)}")
    return "\n".join(lines)


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    parser = CommandParser(
        prog="python -m eval.report.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="DIR", help="result folders of eval.run, or the JSON file of eval.report")
    add("--baseline", help="name of the run that the others are compared with (the first)")
    add("--names", nargs="+", help="names of the runs, in their order; default: what differs between them")
    add("--json", type=Path, help="write everything to this file, with the ids of all changed questions")
    args = parser.parse_args(argv)
    results, names = read_runs(args.runs, args.names)
    pairs = compare_results(results, names, args.baseline)
    if args.json is not None:
        write_result(args.json, json.dumps([pair.to_json() for pair in pairs], indent=2) + "\n")
    print("\n\n".join(filter(None, [format_pairs(pairs), describe_changes(pairs)])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
