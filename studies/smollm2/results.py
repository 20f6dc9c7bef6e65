"""Finished evaluations of the study as data, a table and a figure.

WORK/METHOD/evaluations/POSITIONS/mm_niah/retrieval-text-LENGTHk-test/scores.json     is what `collect_rows` reads.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from eval.core.fields import read_object
from eval.core.output import write_result
from eval.core.result import SCORES_NAME, read_result
from eval.metrics.estimate import wilson_interval
from eval.report.plots import draw_band_plot
from internvl import markdown
from internvl.errors import DataError, EvalError

_PLACE = re.compile(
    r"(?P<method>[^/]+)/evaluations/(?P<positions>[^/]+)/mm_niah/retrieval-text-(?P<length>\d+)k-test/.*"
)
WINDOW = 8  # of SmolLM2 in units of 1,024 tokens


@dataclass(frozen=True)
class Row:
    """The questions at one length, asked of one model with one kind of positions."""

    method: str  # how the model was trained, a folder of the study
    positions: str  # how it was asked, a folder of the study
    length: int  # of the contexts in units of 1,024 tokens
    right: int  # answers
    count: int  # questions, eight per context

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy, for questions that are independent."""
        return wilson_interval(self.right / self.count, self.count)


@dataclass(frozen=True)
class _Study:
    rows: list[Row]


def collect_rows(work: Path) -> list[Row]:
    """All finished evaluations by method, positions and length. Raises EvalError if there are none."""
    rows = []
    for path in work.rglob(SCORES_NAME):
        place = _PLACE.fullmatch(path.relative_to(work).as_posix())
        if place is not None:
            scores = read_result(path).headline
            right = round((scores.score or 0) * scores.count)
            rows.append(Row(place["method"], place["positions"], int(place["length"]), right, scores.count))
    if not rows:
        raise EvalError(f"{work} holds no finished evaluation; expected the WORK folder of studies/smollm2/run.sh")
    return sorted(rows, key=lambda row: (row.method, row.positions, row.length))


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write JSON, a row per line."""
    lines = ",\n".join("  " + json.dumps(asdict(row)) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_result(path, f'{{"made_by": "python -m studies.smollm2 collect", "rows": [\n{lines}\n]}}\n')


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `write_rows` wrote; EvalError for another file."""
    try:
        return read_object(path, _Study).rows
    except DataError as error:
        raise EvalError(f"{path} is no file of `python -m studies.smollm2 collect` ({error.message})") from error


def format_rows(rows: Sequence[Row]) -> str:
    """A markdown table with a line per setting and a column per length."""
    lengths = sorted({row.length for row in rows})
    lines = [["trained with", "asked with", *map(_name_length, lengths)]]
    for (method, positions), own in _group(rows).items():
        cells = [_format_cell(own[length]) if length in own else "-" for length in lengths]
        lines.append([f"`{method}`", f"`{positions}`", *cells])
    return markdown.format_table(lines, is_padded=False)


def draw_rows(rows: Sequence[Row]) -> Figure:
    """Accuracy by length with Wilson intervals, a line per setting."""
    series = {
        f"{method}@{positions}": {
            _name_length(length): (row.right / row.count, *row.interval) for length, row in own.items()
        }
        for (method, positions), own in _group(rows).items()
    }
    labels = [_name_length(length) for length in sorted({row.length for row in rows})]
    return draw_band_plot(series, labels=labels, title="words, SmolLM2-135M", xlabel="length of the context (window)")


def _group(rows: Sequence[Row]) -> dict[tuple[str, str], dict[int, Row]]:
    """(method, positions) -> length -> row."""
    groups: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.positions), {})[row.length] = row
    return groups


def _name_length(length: int) -> str:
    return f"{length}k ({length / WINDOW:g}x)"


def _format_cell(row: Row) -> str:
    low, high = row.interval
    return f"{row.right} of {row.count}: {row.right / row.count:.2f} ({low:.2f}..{high:.2f})"
