"""The report of a check of training data: what is printed, and report.json, problems.jsonl and histograms.png."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from internvl.atomic import open_atomically, remove_drafts, write_atomically
from internvl.data.survey import Problem, SourceReport
from internvl.errors import ConfigError
from internvl.train.arguments import DataTrainingArguments

_PROBLEMS_SHOWN = 10  # of each kind
_MOST_BINS = 14
_BAR_WIDTH = 40  # characters
_MOST_COLOURS = 10  # data sets that the picture distinguishes

# Flags that decide how many tokens and tiles a document has.
_MEASURED_WITH = (
    "conv_style",
    "force_image_size",
    "down_sample_ratio",
    "dynamic_image_size",
    "dynamic_max_patch",
    "use_thumbnail",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "max_seq_length",
)

Size = Literal["num_tokens", "num_tiles"]
_SIZES: tuple[Size, ...] = ("num_tokens", "num_tiles")


@dataclass(frozen=True)
class Histogram:
    """How often sizes fall between neighbouring edges; the last edge is included."""

    edges: tuple[int, ...]  # whole numbers at equal distances
    counts: tuple[int, ...]  # one less than edges

    def lines(self) -> list[str]:
        """A line per bin, a bar in it."""
        bins = zip(self.edges[:-1], self.edges[1:], strict=True)
        labels = [f"{first:,}" if stop == first + 1 else f"{first:,} - {stop - 1:,}" for first, stop in bins]
        width = max(len(label) for label in labels)
        highest = max(self.counts) or 1
        return [
            f"  {label:>{width}} | {'#' * math.ceil(count / highest * _BAR_WIDTH):<{_BAR_WIDTH}} {count:,}"
            for label, count in zip(labels, self.counts, strict=True)
        ]


def find_edges(sizes: np.ndarray) -> list[int]:
    """Edges of at most 14 bins that hold all sizes: multiples of 1, 2 or 5 times a power of ten."""
    low, high = int(sizes.min()), int(sizes.max())
    steps = (factor * 10**power for power in range(20) for factor in (1, 2, 5))
    step = next(step for step in steps if high // step - low // step < _MOST_BINS)
    return list(range(low // step * step, (high // step + 1) * step + 1, step))


def make_histogram(sizes: np.ndarray) -> Histogram | None:
    """The histogram of sizes; None if there are none."""
    if not len(sizes):
        return None
    edges = find_edges(sizes)
    return Histogram(tuple(edges), tuple(int(count) for count in np.histogram(sizes, edges)[0]))


@dataclass(frozen=True)
class Report:
    """What was found."""

    sources: tuple[SourceReport, ...]  # data sets in the order of the meta file
    max_skipped: float  # bearable share of bad records
    is_complete: bool  # all rows were looked at
    is_exact: bool  # tokens were counted, not estimated

    @property
    def problems(self) -> list[Problem]:
        """Of all data sets."""
        return [problem for source in self.sources for problem in source.problems]

    @property
    def num_checked(self) -> int:
        """Rows looked at."""
        return sum(source.num_checked for source in self.sources)

    @property
    def skipped_share(self) -> float:
        """Share of the rows looked at that training would skip."""
        return len(self.problems) / self.num_checked if self.num_checked else 0.0

    @property
    def is_bearable(self) -> bool:
        """No more problems than `max_skipped` allows."""
        return self.skipped_share <= self.max_skipped

    def join(self, name: Size) -> np.ndarray:
        """A size of the usable documents of all data sets."""
        return np.concatenate([read_sizes(source, name) for source in self.sources])

    def make_histogram(self, name: Size) -> Histogram | None:
        """The histogram of a size; None without usable documents."""
        return make_histogram(self.join(name))

    def title(self, name: Size) -> str:
        """What a histogram of a size shows."""
        unit = name.removeprefix("num_")
        return f"{unit} per document" + (" (text estimated)" if unit == "tokens" and not self.is_exact else "")


def read_sizes(source: SourceReport, name: Size) -> np.ndarray:
    """A size of the usable documents of a data set."""
    return source.num_tokens if name == "num_tokens" else source.num_tiles


def format_report(report: Report, args: DataTrainingArguments) -> str:
    """What is printed."""
    lines = [_describe_tiles(args), "", *_format_table(report), ""]
    for name in _SIZES:
        histogram = report.make_histogram(name)
        if histogram is not None:
            lines += [f"{report.title(name)}:", *histogram.lines(), ""]
    lines += [*_format_epoch(report, args), "", *_format_problems(report)]
    if not report.is_complete:
        num_rows = sum(source.num_rows for source in report.sources)
        lines.append(f"interrupted: {report.num_checked:,} of {num_rows:,} rows were looked at")
    return "\n".join(lines)


def _describe_tiles(args: DataTrainingArguments) -> str:
    tiles = "one tile per image"
    if args.dynamic_image_size:
        shared = ", shared by the images of a record" if args.dynamic_max_patch else ""
        tiles = f"{args.min_dynamic_patch} to {args.max_dynamic_patch} tiles per image{shared}"
        tiles += " and a thumbnail" if args.use_thumbnail else ", no thumbnail"
    return f"measured with template {args.conv_style}, tiles of {args.force_image_size} pixels, {tiles}"


def _format_table(report: Report) -> list[str]:
    header = ("data set", "rows", "bad", "per epoch", "tokens: mean", "max", "tiles: mean", "max")
    rows = [header]
    for source in report.sources:
        sizes = [_describe_sizes(counts) for counts in (source.num_tokens, source.num_tiles)]
        counts = (f"{source.num_rows:,}", f"{len(source.problems):,}", f"{source.num_documents:,}")
        rows.append((source.name, *counts, *sizes[0], *sizes[1]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return [
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _describe_sizes(counts: np.ndarray) -> tuple[str, str]:
    return (f"{counts.mean():,.1f}", f"{counts.max():,}") if len(counts) else ("-", "-")


def _format_epoch(report: Report, args: DataTrainingArguments) -> list[str]:
    tokens = sum(source.tokens_per_epoch for source in report.sources)
    tiles = sum(source.tiles_per_epoch for source in report.sources)
    documents = sum(source.num_documents for source in report.sources)
    lines = [f"an epoch: {documents:,} documents, about {tokens:,.0f} tokens and {tiles:,.0f} tiles"]
    if args.use_packed_ds:
        num_rows = max(tokens / args.max_packed_tokens, tiles / args.num_images_expected)
        lines.append(f"          at least {math.ceil(num_rows):,} rows of {args.max_packed_tokens:,} tokens")
    return lines


def _format_problems(report: Report) -> list[str]:
    share = f"{report.skipped_share:.2%} of {report.num_checked:,} rows; allowed are {report.max_skipped:.2%}"
    lines = [f"problems: {len(report.problems):,} ({share})"]
    for kind, problems in _group(report.problems).items():
        lines.append(f"  {kind}: {len(problems):,}")
        lines += [f"    {problem.source}, row {problem.row}: {problem.cause}" for problem in problems[:_PROBLEMS_SHOWN]]
        if len(problems) > _PROBLEMS_SHOWN:
            lines.append(f"    and {len(problems) - _PROBLEMS_SHOWN:,} more")
    return lines


def _group(problems: Sequence[Problem]) -> Mapping[str, list[Problem]]:
    groups: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[problem.kind].append(problem)
    return groups


def write_report(report: Report, args: DataTrainingArguments, folder: Path) -> None:
    """Write report.json, problems.jsonl and histograms.png into a folder that the caller owns.

    Raises:
        ConfigError: The folder cannot be written.
    """
    summary = json.dumps(_summarise(report, args), indent=2, ensure_ascii=False)
    problems = (json.dumps(problem._asdict(), ensure_ascii=False) for problem in report.problems)
    files = [folder / name for name in ("report.json", "problems.jsonl", "histograms.png")]
    try:
        write_atomically(files[0], _encode([summary]))
        write_atomically(files[1], _encode(problems))
        with open_atomically(files[2]) as file:
            draw_histograms(report).savefig(file, format="png", dpi=120)
        remove_drafts(folder, files)
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be written: {error}; choose another folder") from None


def _encode(lines: Iterable[str]) -> bytes:
    """Paths of files and broken records may hold lone surrogates, which UTF-8 does not know."""
    return "".join(f"{line}\n" for line in lines).encode("utf-8", errors="backslashreplace")


def _summarise(report: Report, args: DataTrainingArguments) -> dict[str, object]:
    histograms = {name: report.make_histogram(name) for name in _SIZES}
    return {
        "measured_with": {name: getattr(args, name) for name in _MEASURED_WITH},
        "is_complete": report.is_complete,
        "is_exact": report.is_exact,
        "num_checked": report.num_checked,
        "num_problems": len(report.problems),
        "problems_by_kind": {kind: len(problems) for kind, problems in _group(report.problems).items()},
        "skipped_share": report.skipped_share,
        "max_skipped": report.max_skipped,
        "sources": [_summarise_source(source) for source in report.sources],
        "histograms": {name: None if found is None else asdict(found) for name, found in histograms.items()},
    }


def _summarise_source(source: SourceReport) -> dict[str, object]:
    facts: dict[str, object] = {
        "name": source.name,
        "num_rows": source.num_rows,
        "num_checked": source.num_checked,
        "num_problems": len(source.problems),
        "documents_per_epoch": source.num_documents,
        "tokens_per_epoch": round(source.tokens_per_epoch),
        "tiles_per_epoch": round(source.tiles_per_epoch),
    }
    for unit, sizes in (("tokens", source.num_tokens), ("tiles", source.num_tiles)):
        facts[f"mean_{unit}"] = float(sizes.mean()) if len(sizes) else None
        facts[f"max_{unit}"] = int(sizes.max()) if len(sizes) else None
    return facts


def draw_histograms(report: Report) -> Figure:
    """Tokens and tiles per document, stacked by data set unless there are too many for distinct colours."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    by_source = len(report.sources) <= _MOST_COLOURS
    for axes, name in zip(figure.subplots(1, 2), _SIZES, strict=True):
        sizes = report.join(name)
        axes.set_xlabel(report.title(name))
        axes.set_ylabel("documents")
        if not len(sizes):
            continue
        parts = [read_sizes(source, name) for source in report.sources] if by_source else [sizes]
        labels = [source.name for source in report.sources] if by_source else ["all data sets"]
        axes.hist(parts, bins=find_edges(sizes), stacked=True, label=labels, edgecolor="white", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    if by_source and len(report.sources) > 1 and len(report.join("num_tokens")):
        figure.axes[0].legend(fontsize="small", frameon=False)
    return figure
