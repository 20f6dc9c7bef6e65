"""`python -m eval.report.compare page.json`: what one choice of positions gains over another, in plain sentences.

Reads the rows that `eval.report` wrote. Per context length (or over all questions where no task has lengths), the
accuracies of all tasks are averaged, each task with the same weight, and compared with those of a reference setting.
Tasks without public answers do not count. The standard error of a difference takes the two settings as independent.
They share their questions, so it is too large rather than too small.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.core.result import name_first
from eval.metrics.estimate import Estimate, average_estimates
from eval.report.rows import ALL_LENGTHS, Row, order_lengths, read_rows
from internvl.command import command
from internvl.errors import EvalError
from internvl.parser import CommandParser

_CLEAR = 2.0  # standard errors; about 95 % of chance differences are smaller


@dataclass(frozen=True)
class Difference:
    """What a setting gains over the reference at one context length."""

    setting: str  # the compared positions
    length: str  # label of the context length
    reference: Estimate  # mean accuracy of the reference over tasks
    accuracy: Estimate  # mean accuracy of the setting over the same tasks

    @property
    def gain(self) -> float:
        """How much more the setting gets."""
        return self.accuracy.score - self.reference.score

    @property
    def stderr(self) -> float:
        """Standard error of the gain."""
        return math.hypot(self.reference.stderr, self.accuracy.stderr)

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no clear difference` (within two standard errors)."""
        if abs(self.gain) <= _CLEAR * self.stderr:
            return "no clear difference"
        return "better" if self.gain > 0 else "worse"


def compare_settings(rows: Sequence[Row], reference: str) -> list[Difference]:
    """Differences of every other setting to `reference`, by context length from short to long.

    Raises EvalError if the report lacks the reference, or a task was not run with both settings.
    """
    settings = list(dict.fromkeys(row.setting for row in rows))
    if reference not in settings:
        raise EvalError(f"the report has no setting {reference!r}; it has {', '.join(map(repr, settings))}")
    lengths = [length for length in order_lengths(rows) if length != ALL_LENGTHS] or [ALL_LENGTHS]
    cells: dict[tuple[str, str], dict[str, Estimate]] = {}
    for row in rows:
        if row.accuracy is not None and row.stderr is not None and row.length in lengths:
            estimate = Estimate(row.accuracy, row.stderr, row.count)
            cells.setdefault((row.setting, row.length), {})[row.task] = estimate
    others = [setting for setting in settings if setting != reference]
    for setting in others:
        _check_same_tasks(cells, (reference, setting), lengths)
    return [
        Difference(
            setting,
            length,
            average_estimates(list(cells[reference, length].values())),
            average_estimates(list(cells[setting, length].values())),
        )
        for setting in others
        for length in lengths
    ]


def _check_same_tasks(
    cells: Mapping[tuple[str, str], Mapping[str, Estimate]], settings: tuple[str, str], lengths: Sequence[str]
) -> None:
    """Refuse means over other tasks, or over other lengths, than those of the setting that they are compared with."""
    found = [{(task, length) for length in lengths for task in cells.get((name, length), ())} for name in settings]
    problems = [
        f"{setting} lacks {task}" + ("" if length == ALL_LENGTHS else f" at {length}")
        for setting, own, other in zip(settings, found, reversed(found), strict=True)
        for task, length in sorted(other - own, key=lambda place: (place[0], lengths.index(place[1])))
    ]
    scored = {length for _, length in found[0]}
    problems += [
        f"no task has scores at length {length}" for length in lengths if not problems and length not in scored
    ]
    if problems:
        raise EvalError(
            f"settings are compared over the same tasks and length bins, but {name_first(problems, joint='; ')}; "
            "evaluate both with the same --tasks and score both with the same --length_bins"
        )


def describe(differences: Sequence[Difference], reference: str) -> str:
    """One line per difference."""
    return "\n".join(
        f"{d.length:>10} {'questions' if d.length == ALL_LENGTHS else 'tokens'}: "
        f"{d.setting} {d.accuracy.score:.3f} ± {d.accuracy.stderr:.3f}, "
        f"{reference} {d.reference.score:.3f} ± {d.reference.stderr:.3f}, "
        f"difference {d.gain:+.3f} ± {d.stderr:.3f}: {d.verdict}"
        for d in differences
    )


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    parser = CommandParser(
        prog="python -m eval.report.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="the JSON file of eval.report")
    parser.add_argument("--baseline", default="default", help="setting that the others are compared with")
    args = parser.parse_args(argv)
    print(describe(compare_settings(read_rows(args.report), args.baseline), args.baseline))
    return 0


if __name__ == "__main__":
    sys.exit(main())
