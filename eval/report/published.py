"""Published scores, in percent and as printed: the rows beside which own evaluations are read.

All numbers are from the two tables in the README of https://github.com/OpenGVLab/V2PE (commit f96f189, December 2024;
method: arXiv 2412.09616); this project measured none of them. A number missing there (`-`) has no entry here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

SOURCE = "https://github.com/OpenGVLab/V2PE/blob/f96f189/README.md"

GENERAL_COLUMNS = (*("ChartQA", "DocVQA", "AI2D", "InfoVQA", "SQA", "POPE", "MMMU val", "MMBench EN", "SEED-I", "Avg"),)
LONG_COLUMNS = (
    *("MM-NIAH image", "MM-NIAH text", "MM-NIAH avg"),
    *("MileBench T", "MileBench S", "MileBench NI", "MileBench avg", "Video-MME", "MVBench"),
)


class Percent(NamedTuple):
    """A number of a comparison: percent, and its 95 % interval unless it was published without one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ComparedRow:
    """One model in a table of several."""

    name: str  # of the model as printed, or of an own run
    kind: str  # number of parameters as printed (empty where none is), or the scoring rule of an own run
    cells: Mapping[str, Percent]  # numbers by column
    note: str = ""  # what a reader should know about the numbers
    source: str = SOURCE  # where the numbers are from
    is_own: bool = False  # whether it was measured here


@dataclass(frozen=True)
class Comparison:
    """Own runs beside published rows."""

    title: str  # of the table
    columns: tuple[str, ...]  # benchmarks
    rows: tuple[ComparedRow, ...]  # published ones first
    notes: tuple[str, ...] = ()  # what the columns mean where the name does not say it

    @property
    def has_own_rows(self) -> bool:
        """Whether anything was measured here; a table without is of no use in a report."""
        return any(row.is_own for row in self.rows)

    @property
    def all_notes(self) -> list[str]:
        """Notes on the columns, then those on single rows."""
        return [*self.notes, *(f"{row.name}: {row.note}." for row in self.rows if row.note)]


def _read_row(columns: tuple[str, ...], model: str, size: str, numbers: str, note: str = "") -> ComparedRow:
    """A row from its numbers in the order of the columns, `-` where the table has none."""
    cells = zip(columns, numbers.split(), strict=True)
    return ComparedRow(model, size, {column: Percent(float(text)) for column, text in cells if text != "-"}, note)


GENERAL = tuple(
    _read_row(GENERAL_COLUMNS, *row)
    for row in (
        ("InternVL2-2B", "2.0B", "71.7 86.9 74.1 58.9 94.1 85.2 36.3 73.4 70.9 72.4"),
        ("DeepSeek-VL-1.3B", "2.0B", "47.4 - 51.5 - 68.4 85.9 33.8 66.4 66.0 -"),
        ("Qwen2-VL-2B", "2.0B", "73.5 90.1 74.7 65.5 - - 41.1 74.9 - -"),
        ("Aquila-VL-2B", "2.2B", "32.0 85.0 75.1 58.3 95.1 83.1 46.9 79.0 73.9 69.8"),
        ("MiniCPM-V-2", "2.8B", "55.6 71.9 62.9 - 80.7 86.3 38.2 64.1 67.1 -"),
        ("Vintern-3B-beta", "3.7B", "68.3 - 69.1 - 75.0 87.4 46.7 70.6 70.0 -"),
        ("Llama 3.2 11B", "11B", "83.4 88.4 91.1 - - - 50.7 68.0 - -"),
        ("Qwen2-VL-72B", "73B", "88.3 96.5 88.1 84.5 91.2 87.2 64.5 86.9 77.9 85.0"),
        ("GPT-4o", "", "85.7 92.8 84.7 - 90.1 97.2 69.1 82.1 76.7 -"),
        (
            "InternVL2-V2PE-32K",
            "2.0B",
            "76.4 83.9 73.2 55.9 94.9 88.8 36.6 73.5 71.2 72.5",
            "the mean of the nine printed numbers is 72.7",
        ),
    )
)
LONG = tuple(
    _read_row(LONG_COLUMNS, *row)
    for row in (
        ("InternVL2-2B", "2.0B", "23.0 18.9 21.0 58.2 54.5 37.0 49.9 - -"),
        ("Phi-3-Vision", "2.7B", "- - - 46.9 50.0 - - - -"),
        ("OmChat", "3.9B", "- - - 51.4 52.0 - - 45.9 50.2"),
        ("LongLLaVA", "9B", "- - - 47.3 46.8 - - 43.7 49.1"),
        ("LongLLaVA", "13B", "- - - 52.7 52.1 - - 51.6 54.6"),
        ("VILA", "13B", "14.5 40.5 27.5 - - - - - -"),
        ("Gemini-1.5", "", "28.5 82.1 55.2 50.2 58.3 97.9 68.8 69.6 -"),
        ("GPT-4V", "", "- 84.1 - 45.6 58.9 99.4 68.0 59.9 43.5"),
        ("GPT-4o", "", "- - - 56.2 63.5 - - 64.7 -"),
        ("Claude3-Opus", "", "- - - 37.4 48.1 85.3 56.9 59.7 -"),
        (
            "InternVL2-V2PE-32K",
            "2.0B",
            "78.1 85.7 81.8 65.5 56.4 97.2 72.5 50.7 65.6",
            "the means of the printed parts are 81.9 (MM-NIAH) and 73.0 (MileBench)",
        ),
    )
)
