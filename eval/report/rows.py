"""Rows: every score of a report as one record, in memory, as JSON and as CSV.

results  --tabulate-->  a row per task, setting, scoring rule and context length  -->  tables, page.csv, page.json
means over several tasks  --tabulate_averages-->  rows of length `average`
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

from eval.core.baselines import Baselines
from eval.core.result import TaskResult
from eval.metrics.bins import format_tokens, label_bin
from eval.metrics.estimate import Estimate
from eval.metrics.protocol import PROTOCOLS

ALL_LENGTHS = "all"
AVERAGE = "average"  # in the place of a length: a mean over several tasks
_FORMULA_STARTS = (*"=+-@\t\r\n", *"＝＋－＠")  # Excel takes the wide forms, too
AVERAGE_JOINT = " / "  # in names of such means

_AVERAGE_KEYS = ("task", "setting", "protocol", "length", "accuracy", "interval", "stderr", "count")
_LENGTH_KEYS = (
    *("task", "setting", "protocol", "version", "checkpoint", "rope_pos_id_version", "rope_pos_id_stride"),
    *("length", "accuracy", "interval", "low", "high", "stderr", "count", "chance"),
)
_WHOLE_KEYS = (*_LENGTH_KEYS, "num_failed", "num_empty", "floors")
_CSV_COLUMNS = (
    *("task", "setting", "protocol", "version", "checkpoint", "rope_pos_id_version", "rope_pos_id_stride"),
    *("length", "low", "high", "accuracy", "interval_low", "interval_high", "stderr", "count"),
    *("num_failed", "num_empty", "chance"),
    *("floor_empty", "floor_letter", "floor_letter_score", "floor_majority", "floor_majority_score"),
)


@dataclass(frozen=True)
class Row:
    """One score."""

    task: str  # `group/task`, or the name of a mean over several tasks
    setting: str  # label of the run
    length: str  # label of the context length, `all` or `average`
    accuracy: float | None  # the score; None where no answer is public
    stderr: float | None  # its standard error; None likewise
    count: int
    low: int | None = None  # shortest context in tokens; None: open
    high: int | None = None  # first length that is too long; None: open
    chance: float | None = None  # score of guessing; None where it is not known
    protocol: str = ""  # the scoring rule
    version: int | None = None
    checkpoint: str | None = None  # folder of the model
    rope_pos_id_version: str | None = None  # how positions were made
    rope_pos_id_stride: float | None = None  # positions that one tile spans
    num_failed: int | None = None  # questions without a response; None unless the row is about all lengths
    num_empty: int | None = None  # questions with an empty response; None likewise
    needs_judge: str | None = None  # the rule of a judge that has yet to score the answers
    baselines: Baselines | None = None  # scores of constant answers; None likewise

    @property
    def estimate(self) -> Estimate | None:
        """The score; None where no answer is public."""
        if self.accuracy is None or self.stderr is None:
            return None
        return Estimate(self.accuracy, self.stderr, self.count)

    @property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """95 % interval of the score; nothing where no answer is public."""
        return (None, None) if self.estimate is None else self.estimate.interval

    def to_json(self) -> dict[str, object]:
        """The row as page.json has it."""
        values = {
            **vars(self),
            "interval": self.interval,
            "floors": None if self.baselines is None else asdict(self.baselines),
        }
        names = {ALL_LENGTHS: _WHOLE_KEYS, AVERAGE: _AVERAGE_KEYS}.get(self.length, _LENGTH_KEYS)
        return {name: values[name] for name in names}

    def to_csv(self) -> dict[str, object]:
        """The row as page.csv has it, with a column per baseline."""
        low, high = self.interval
        values = {**vars(self), "interval_low": low, "interval_high": high}
        if self.baselines is None:
            return values
        letter, majority = self.baselines.letter, self.baselines.majority
        return {
            **values,
            "floor_empty": self.baselines.empty,
            "floor_letter": letter.response,
            "floor_letter_score": letter.score,
            "floor_majority": majority and majority.response,
            "floor_majority_score": majority and majority.score,
        }


def tabulate(
    results: Sequence[TaskResult], names: Sequence[str], *, rules: Literal["headline", "all"] = "headline"
) -> list[Row]:
    """One row per task, setting and context length, and one over all lengths; under the headline's rule or all.

    `names` are those of the results' runs.
    """
    return [
        row
        for result, label in zip(results, names, strict=True)
        for protocol in ([result.protocol] if rules == "headline" else result.scores)
        for row in _tabulate_protocol(result, label, protocol)
    ]


def _tabulate_protocol(result: TaskResult, label: str, protocol: str) -> list[Row]:
    make = partial(
        Row,
        task=result.task,
        setting=label,
        protocol=protocol,
        version=result.version,
        checkpoint=result.info.get("checkpoint"),
        rope_pos_id_version=result.settings.rope_pos_id_version,
        rope_pos_id_stride=result.settings.rope_pos_id_stride,
    )
    scores = result.scores[protocol]
    rows = [
        make(
            length=label_length(entry.low, entry.high),
            accuracy=entry.score,
            stderr=entry.stderr,
            count=entry.count,
            low=entry.low,
            high=entry.high,
            chance=entry.chance,
        )
        for entry in scores.by_length
    ]
    whole = make(
        length=ALL_LENGTHS,
        accuracy=scores.score,
        stderr=scores.stderr,
        count=scores.count,
        chance=scores.chance,
        num_failed=scores.num_failed,
        num_empty=scores.num_empty,
        needs_judge=scores.needs_judge,
        baselines=scores.baselines,
    )
    return [*rows, whole]


def tabulate_averages(averages: Mapping[str, Mapping[str, Estimate]]) -> list[Row]:
    """One row per run and mean over several tasks.

    `averages`: run -> name (`milebench / separate / official / by_set / T`) -> mean. The row's name leaves out the
    scoring rule, which has a field of its own.
    """
    rows = []
    for label, estimates in averages.items():
        for name, mean in estimates.items():
            parts = name.split(AVERAGE_JOINT)
            task = AVERAGE_JOINT.join(part for part in parts if part not in PROTOCOLS)
            protocol = next((part for part in parts if part in PROTOCOLS), "")
            rows.append(Row(task, label, AVERAGE, mean.score, mean.stderr, mean.count, protocol=protocol))
    return rows


def format_csv(rows: Sequence[Row]) -> str:
    """Rows as comma-separated values with a header line."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _CSV_COLUMNS, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: make_harmless(cell) for name, cell in row.to_csv().items()} for row in rows)
    return file.getvalue()


def make_harmless(cell: object) -> object:
    """The cell, with an apostrophe before a text that a spreadsheet would run as a formula.

    For tables that people open. A file for a benchmark's server keeps the texts as they are (`eval.tasks.tables`).
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell


def label_length(low: int | None, high: int | None) -> str:
    """`<1k`, `1k-2k`, `64k+`."""
    return label_bin(low, high, write=format_tokens)


def group_rows(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[str, Row]]:
    """The lines of a table: rows by (task, setting, protocol), then by length label."""
    lines: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((row.task, row.setting, row.protocol), {})[row.length] = row
    return lines


def order_lengths(rows: Sequence[Row]) -> list[str]:
    """Length labels from short to long, all lengths last."""
    lengths = {row.length: (row.length == ALL_LENGTHS, row.low or 0) for row in rows}
    return sorted(lengths, key=lambda label: lengths[label])
