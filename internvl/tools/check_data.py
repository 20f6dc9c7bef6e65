"""Check training data before a run: every record is read, checked and measured as training would do it.

    python -m internvl.tools.check_data META [--model CHECKPOINT] [--workers N] [--decode] [--out DIR] [data flags]

Give the data flags of the run (--max_seq_length, --dynamic_image_size, --use_packed_ds, ...): what fits depends on
them. Sizes of pictures come from their headers; --decode opens every picture and video frame fully. Without --model or
--tokenizer the length of text is estimated.

Printed: a table of the data sets, histograms of tokens and tiles per document, an estimate of an epoch, and the first
problems of each kind. DIR gets report.json, histograms.png and problems.jsonl (all problems).

Exit code: 0; 1 if more than --max_skipped of the records would be skipped; 2 if the check itself could not be made;
130 after Ctrl-C, when what was found until then has been reported.
"""

import json
import logging
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import HfArgumentParser

from internvl.data.encode import SampleEncoder
from internvl.data.meta import load_meta
from internvl.data.mixture import count_documents
from internvl.data.packing import PackingLimits
from internvl.data.records import RecordFile
from internvl.data.survey import HealthCheck, Problem, SourceReport
from internvl.errors import ConfigError, InternVLError
from internvl.model.constants import SPECIAL_TOKENS
from internvl.model.conversation import get_conversation
from internvl.model.loading import read_chat_config
from internvl.train.arguments import DataTrainingArguments, ModelArguments
from internvl.train.internvl_chat_finetune import build_encoder
from internvl.train.model_loading import load_training_tokenizer

logger = logging.getLogger(__name__)

EXIT_PROBLEMS, EXIT_FAILED, EXIT_INTERRUPTED = 1, 2, 130

_PROBLEMS_SHOWN = 10  # of each kind
_MOST_BINS = 14
_BAR_WIDTH = 40  # characters
_MOST_COLOURS = 10  # data sets that the picture tells apart
_INTERNVL_PATCH_SIZE = 14  # pixels, of the vision tower of all InternVL2 models
_BYTES_PER_TOKEN = 4


class RoughTokenizer:
    """Stands in for a tokenizer that is not given: four bytes of UTF-8 are a token, special tokens are one each."""

    def __init__(self, special_tokens: Sequence[str]):
        self._ids = {token: number for number, token in enumerate(special_tokens, start=1)}
        self._pattern = re.compile("(" + "|".join(re.escape(token) for token in special_tokens) + ")")

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        """As a transformers tokenizer; adds no token."""
        ids: list[int] = []
        for piece in self._pattern.split(text):
            num_rough = math.ceil(len(piece.encode()) / _BYTES_PER_TOKEN)
            ids += [self._ids[piece]] if piece in self._ids else [0] * num_rough
        return {"input_ids": ids}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The special token of every id; empty for rough tokens."""
        names = {number: token for token, number in self._ids.items()}
        return [names.get(number, "") for number in ids]


@dataclass(frozen=True)
class Histogram:
    """How often sizes fall between neighbouring edges; the last edge is included.

    Attributes:
        edges: Whole numbers at equal distances.
        counts: One less than edges.
    """

    edges: tuple[int, ...]
    counts: tuple[int, ...]

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


# Running ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        sources: Data sets in the order of the meta file.
        max_skipped: Bearable share of bad records.
        is_complete: All rows were looked at.
        is_exact: Tokens were counted, not estimated.
    """

    sources: tuple[SourceReport, ...]
    max_skipped: float
    is_complete: bool
    is_exact: bool

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

    def join(self, name: str) -> np.ndarray:
        """`num_tokens` or `num_tiles` of the usable documents of all data sets."""
        return np.concatenate([getattr(source, name) for source in self.sources])


def check_all(check: HealthCheck, args: DataTrainingArguments, *, num_workers: int, is_exact: bool) -> Report:
    """Look at all rows, with a progress bar; Ctrl-C ends it early."""
    lengths = [len(file) for file in check.files]
    repeats = [file.spec.repeat_time for file in check.files]
    counts = count_documents(lengths, repeats, use_data_resampling=args.use_data_resampling)
    sources = tuple(
        SourceReport(file.spec.name, length, count)
        for file, length, count in zip(check.files, lengths, counts, strict=True)
    )
    is_complete = True
    logger.info("checking %s rows of %d data sets, %d worker processes", f"{sum(lengths):,}", len(sources), num_workers)
    with tqdm(total=sum(lengths), unit=" rows", desc="checking", disable=None) as bar:
        try:
            for chunk in check.run(num_workers=num_workers):
                sources[chunk.source].add(chunk)
                bar.update(chunk.num_rows)
                bar.set_postfix(problems=sum(len(source.problems) for source in sources), refresh=False)
        except KeyboardInterrupt:
            is_complete = False
    return Report(sources, args.max_skipped, is_complete, is_exact)


def make_encoder(args: DataTrainingArguments, *, model: str | None, tokenizer: str | None) -> SampleEncoder:
    """What measures documents, as in a run with these flags.

    Args:
        args: The flags.
        model: Checkpoint folder, for its tokenizer and patch size.
        tokenizer: Tokenizer folder; with neither, tokens are estimated.
    """
    patch_size = read_chat_config(model).vision_config.patch_size if model else _INTERNVL_PATCH_SIZE
    if args.force_image_size % patch_size:
        raise ConfigError(
            f"--force_image_size {args.force_image_size} is not a multiple of the patch size {patch_size}"
        )
    num_image_token = int((args.force_image_size // patch_size) ** 2 * args.down_sample_ratio**2)
    loaded: Any
    if model or tokenizer:
        folders = ModelArguments(model_name_or_path=model, tokenizer_path=tokenizer)
        loaded, _ = load_training_tokenizer(folders, args.max_seq_length)
    else:
        template = get_conversation(args.conv_style)
        loaded = RoughTokenizer([*SPECIAL_TOKENS, template.stop_token])
    return build_encoder(args, tokenizer=loaded, num_image_token=num_image_token)


# Reporting ----------------------------------------------------------------------------------------------------------


def format_report(report: Report, args: DataTrainingArguments) -> str:
    """What is printed."""
    lines = [*_format_table(report), ""]
    for name in ("num_tokens", "num_tiles"):
        histogram = make_histogram(report.join(name))
        if histogram is not None:
            lines += [f"{_title(name, report)}:", *histogram.lines(), ""]
    lines += [*_format_epoch(report, args), "", *_format_problems(report)]
    if not report.is_complete:
        num_rows = sum(source.num_rows for source in report.sources)
        lines.append(f"interrupted: {report.num_checked:,} of {num_rows:,} rows were looked at")
    return "\n".join(lines)


def _title(name: str, report: Report) -> str:
    unit = name.removeprefix("num_")
    return f"{unit} per document" + (" (text estimated)" if unit == "tokens" and not report.is_exact else "")


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


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, problems.jsonl and histograms.png.

    Raises:
        ConfigError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        summary = json.dumps(_summarise(report), indent=2, ensure_ascii=False)
        (folder / "report.json").write_text(summary + "\n", encoding="utf-8", errors="backslashreplace")
        with (folder / "problems.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as file:
            for problem in report.problems:
                file.write(json.dumps(problem._asdict(), ensure_ascii=False) + "\n")
        draw_histograms(report).savefig(folder / "histograms.png", dpi=120)
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be written: {error}; choose another folder") from None


def _summarise(report: Report) -> dict[str, Any]:
    histograms = {name: make_histogram(report.join(name)) for name in ("num_tokens", "num_tiles")}
    return {
        "is_complete": report.is_complete,
        "is_exact": report.is_exact,
        "num_checked": report.num_checked,
        "num_problems": len(report.problems),
        "problems_by_kind": {kind: len(problems) for kind, problems in _group(report.problems).items()},
        "skipped_share": report.skipped_share,
        "max_skipped": report.max_skipped,
        "sources": [_summarise_source(source) for source in report.sources],
        "histograms": {
            name: None if histogram is None else {"edges": histogram.edges, "counts": histogram.counts}
            for name, histogram in histograms.items()
        },
    }


def _summarise_source(source: SourceReport) -> dict[str, Any]:
    tokens, tiles = source.num_tokens, source.num_tiles
    return {
        "name": source.name,
        "num_rows": source.num_rows,
        "num_checked": source.num_checked,
        "num_problems": len(source.problems),
        "documents_per_epoch": source.num_documents,
        "tokens_per_epoch": round(source.tokens_per_epoch),
        "tiles_per_epoch": round(source.tiles_per_epoch),
        "mean_tokens": float(tokens.mean()) if len(tokens) else None,
        "max_tokens": int(tokens.max()) if len(tokens) else None,
        "mean_tiles": float(tiles.mean()) if len(tiles) else None,
        "max_tiles": int(tiles.max()) if len(tiles) else None,
    }


def draw_histograms(report: Report) -> Figure:
    """Tokens and tiles per document, stacked by data set."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    is_told_apart = len(report.sources) <= _MOST_COLOURS
    for axes, name in zip(figure.subplots(1, 2), ("num_tokens", "num_tiles"), strict=True):
        sizes = report.join(name)
        axes.set_xlabel(_title(name, report))
        axes.set_ylabel("documents")
        if not len(sizes):
            continue
        parts = [getattr(source, name) for source in report.sources] if is_told_apart else [sizes]
        labels = [source.name for source in report.sources] if is_told_apart else ["all data sets"]
        axes.hist(parts, bins=find_edges(sizes), stacked=True, label=labels, edgecolor="white", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    if is_told_apart and len(report.sources) > 1 and len(report.join("num_tokens")):
        figure.axes[0].legend(fontsize="small", frameon=False)
    return figure


# Command line -------------------------------------------------------------------------------------------------------


def build_parser() -> HfArgumentParser:
    """The command line."""
    parser = HfArgumentParser(
        DataTrainingArguments,  # type: ignore[arg-type]
        prog="python -m internvl.tools.check_data",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("meta", metavar="META", help="meta json of the run")
    parser.add_argument("--model", metavar="DIR", help="checkpoint that the run starts from")
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer, if not the checkpoint's")
    parser.add_argument("--workers", type=int, help="processes (default: the cores, 8 at most); 0: no others")
    parser.add_argument("--decode", action="store_true", help="decode every picture and frame fully")
    parser.add_argument("--seed", type=int, default=42, help="the run's seed, which draws the frames of videos")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/check_data"), help="folder of what is written")
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    """Check, print, write.

    Raises:
        InternVLError: Wrong flags, or a meta file or an annotation that cannot be read.
    """
    given = build_parser().parse_args(argv)
    values = {option.name: getattr(given, option.name) for option in fields(DataTrainingArguments)}
    args = DataTrainingArguments(**(values | {"meta_path": given.meta}))
    num_workers = min(os.cpu_count() or 1, 8) if given.workers is None else given.workers
    if num_workers < 0:
        raise ConfigError(f"--workers {num_workers}: expected 0 or larger")
    limits = PackingLimits(args.max_packed_tokens, args.num_images_expected) if args.use_packed_ds else None
    specs = load_meta(given.meta, data_root=args.data_root)
    encoder = make_encoder(args, model=given.model, tokenizer=given.tokenizer)
    check = HealthCheck(tuple(RecordFile(spec) for spec in specs), encoder, limits, given.seed, given.decode)
    is_exact = bool(given.model or given.tokenizer)
    report = check_all(check, args, num_workers=num_workers, is_exact=is_exact)
    print(format_report(report, args))
    write_report(report, given.out)
    print(f"\n{given.out}: report.json, problems.jsonl, histograms.png")
    if not report.is_complete:
        return EXIT_INTERRUPTED
    return 0 if report.is_bearable else EXIT_PROBLEMS


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return run(argv)
    except InternVLError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
