"""`python -m eval.report.compare report.json`: what one choice of positions gains over another, in plain sentences.

Reads the table that `eval.report` wrote. Per context length (over all questions where no task has lengths), the
accuracies of all tasks are averaged (each task counts the same) and subtracted from the baseline's. Tasks without
public answers do not count. The standard error of a difference takes the two settings as independent; they share
their questions, so it is rather too large than too small.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.metrics.estimate import Estimate, average_estimates
from eval.report.tables import ALL_LENGTHS, order_lengths
from internvl.errors import EvalError, InternVLError

_CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Difference:
    """What a setting gains over the baseline at one context length.

    Attributes:
        setting: The compared positions.
        length: Label of the context length.
        baseline_accuracy: Mean over tasks.
        baseline_stderr: Its standard error.
        accuracy: Mean over tasks.
        accuracy_stderr: Its standard error.
    """

    setting: str
    length: str
    baseline_accuracy: float
    baseline_stderr: float
    accuracy: float
    accuracy_stderr: float

    @property
    def gain(self) -> float:
        """accuracy - baseline_accuracy."""
        return self.accuracy - self.baseline_accuracy

    @property
    def stderr(self) -> float:
        """Standard error of the gain."""
        return math.hypot(self.baseline_stderr, self.accuracy_stderr)

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no clear difference` (within two standard errors)."""
        if abs(self.gain) <= _CLEAR * self.stderr:
            return "no clear difference"
        return "better" if self.gain > 0 else "worse"


def compare_settings(rows: Sequence[Mapping[str, Any]], baseline: str) -> list[Difference]:
    """Differences of every other setting to `baseline`, by context length from short to long.

    Args:
        rows: `rows` of a report.
        baseline: Label of a setting.

    Raises:
        EvalError: The baseline is not in the report, or a task was not run with both settings.
    """
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    if baseline not in settings:
        raise EvalError(f"the report has no setting {baseline!r}; it has {', '.join(map(repr, settings))}")
    cells: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["accuracy"] is not None:
            cells.setdefault((row["setting"], row["length"]), {})[row["task"]] = row
    lengths = [length for length in order_lengths(rows) if length != ALL_LENGTHS] or [ALL_LENGTHS]
    return [
        _compare(setting, length, cells.get((baseline, length), {}), cells.get((setting, length), {}))
        for setting in settings
        if setting != baseline
        for length in lengths
    ]


def _compare(
    setting: str, length: str, old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> Difference:
    if not old or old.keys() != new.keys():
        raise EvalError(f"{setting}, {length}: the same tasks are needed, got {sorted(old)} and {sorted(new)}")
    baseline, other = (
        average_estimates([Estimate(row["accuracy"], row["stderr"], row.get("count", 0)) for row in rows.values()])
        for rows in (old, new)
    )
    return Difference(setting, length, baseline.score, baseline.stderr, other.score, other.stderr)


def describe(differences: Sequence[Difference], baseline: str) -> str:
    """One line per difference."""
    return "\n".join(
        f"{d.length:>10} {'questions' if d.length == ALL_LENGTHS else 'tokens'}: "
        f"{d.setting} {d.accuracy:.3f} ± {d.accuracy_stderr:.3f}, "
        f"{baseline} {d.baseline_accuracy:.3f} ± {d.baseline_stderr:.3f}, "
        f"difference {d.gain:+.3f} ± {d.stderr:.3f}: {d.verdict}"
        for d in differences
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.report.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="report.json of eval.report")
    parser.add_argument("--baseline", default="default", help="setting that the others are compared with")
    args = parser.parse_args(argv)
    try:
        try:
            rows = json.loads(args.report.read_text(encoding="utf-8"))["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvalError(f"{args.report} is no report of eval.report ({error!r})") from error
        print(describe(compare_settings(rows, args.baseline), args.baseline))
    except InternVLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
