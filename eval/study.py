"""The study of scripts/miniature_study.sh as data: finished runs -> one json file -> tables and figures.

    python -m eval.study collect work_dirs/miniature --out docs/results/miniature.json
    python -m eval.study tables docs/results/miniature.json --page docs/reproduction.md
    python -m eval.study draw docs/results/miniature.json --out docs/images
    python -m eval.study check work_dirs/miniature/seed_0/stage1_1/evaluations/default --goal 0.95

    WORK/seed_SEED/METHOD/evaluations/EVALUATION/mm_niah/TASK/scores.json    what `collect` reads: whatever is finished

A cell of the data is one question at one length of one evaluation of one model. Tables and figures average over seeds;
their intervals are those of a mean of few seeds (Student's t), of one seed those of its questions (Wilson). `tables`
replaces what stands between `<!-- tables: NAME.json -->` and `<!-- end of tables -->` in a page.
"""

import argparse
import json
import logging
import math
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from eval.core.plots import draw_band_plot, draw_heatmap, encode_png
from eval.core.scoring import SCORES_NAME, wilson_interval
from eval.core.store import write_atomically
from internvl.errors import EvalError, InternVLError

logger = logging.getLogger(__name__)

# Left edge of a length bin in tokens -> length in units of 32 haystack tiles (internvl.build.long_mr, 4 tokens a tile).
LENGTHS = {100: 1, 250: 2, 450: 4, 800: 8, 1600: 16, 3200: 32}
QUESTIONS = {
    "mm_niah/retrieval-text-test": "text",
    "mm_niah/retrieval-image-test": "first digit",
    "mm_niah/reasoning-image-test": "second digit",
}
DIGITS = ("first digit", "second digit")
HEATMAPS = ("default@default", "default@stride_1-16", "rnd_image@stride_1-16")
_PLACE = re.compile(r"seed_(?P<seed>\d+)/(?P<method>[^/]+)/evaluations/(?P<evaluation>[^/]+)/mm_niah/[^/]+/[^/]+")
# 97.5 % quantiles of Student's t by degrees of freedom.
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Cell:
    """One question at one length of one evaluation of one model.

    Attributes:
        seed: Of the model's weights, data and training.
        method: How the model was trained, a folder of the study.
        evaluation: How it was asked, a folder of the study.
        question: A value of `QUESTIONS`.
        length: Of the context, a value of `LENGTHS`.
        score: Share of right answers.
        count: Questions.
        depth_sums: Right answers by depth of the needle, fifths from the start of the context.
        depth_counts: Questions by depth.
    """

    seed: int
    method: str
    evaluation: str
    question: str
    length: int
    score: float
    count: int
    depth_sums: tuple[float, ...]
    depth_counts: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """A mean over seeds.

    Attributes:
        mean: Accuracy.
        low: Lower end of its 95 % interval, in 0..1.
        high: Upper end.
        least: The worst seed.
        most: The best seed.
        num_seeds: Seeds.
    """

    mean: float
    low: float
    high: float
    least: float
    most: float
    num_seeds: int


def collect_cells(work: Path) -> list[Cell]:
    """Cells of all finished evaluations below a folder of the study, in the order of their names.

    Raises:
        EvalError: There are none, or one is broken, of another question, or of lengths that the study does not know.
    """
    cells: list[Cell] = []
    for path in sorted(work.rglob(SCORES_NAME)):
        place = _PLACE.fullmatch(path.relative_to(work).as_posix())
        if place is not None:
            cells += _read_cells(path, int(place["seed"]), place["method"], place["evaluation"])
    if not cells:
        raise EvalError(
            f"{work} holds no seed_*/*/evaluations/*/mm_niah/*/{SCORES_NAME}; expected the WORK folder of "
            "scripts/miniature_study.sh with a finished evaluation"
        )
    return cells


def _read_cells(path: Path, seed: int, method: str, evaluation: str) -> list[Cell]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        question = QUESTIONS[content["task"]]
        numbers = content["results"][content["protocol"]]
        grid = numbers["by_depth_and_length"]
        edges = [row["low"] for row in numbers["by_length"]]
        if len(grid["counts"]) != len(LENGTHS) + 1:
            raise ValueError(f"{len(grid['counts'])} bins")
        # Row 0 of the grid lies below the first edge, row i right of edge i.
        rows = dict(zip(sorted(LENGTHS), range(1, len(LENGTHS) + 1), strict=True))
        return [
            Cell(
                seed=seed,
                method=method,
                evaluation=evaluation,
                question=question,
                length=LENGTHS[low],
                score=row["score"],
                count=row["count"],
                depth_sums=tuple(grid["score_sums"][rows[low]]),
                depth_counts=tuple(grid["counts"][rows[low]]),
            )
            for low, row in zip(edges, numbers["by_length"], strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise EvalError(
            f"{path} is no result of the study ({error!r}); expected a task of {', '.join(QUESTIONS)} scored with "
            f"--length_bins {' '.join(map(str, sorted(LENGTHS)))}"
        ) from error


def read_study(path: Path) -> list[Cell]:
    """The cells of a file that `write_study` wrote.

    Raises:
        EvalError: It is none.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["cells"]
        lists = ("depth_sums", "depth_counts")
        return [Cell(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{path} is no file of `python -m eval.study collect` ({error!r})") from error


def write_study(path: Path, cells: Sequence[Cell]) -> None:
    """Write cells as json, one a line, so that two versions of the file compare line by line."""
    lines = ",\n".join("  " + json.dumps(asdict(cell)) for cell in cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f'{{"made_by": "python -m eval.study collect", "cells": [\n{lines}\n]}}\n')


def summarise(cells: Sequence[Cell]) -> Summary:
    """Mean of cells of several seeds; cells of one seed (several questions) are averaged first.

    Raises:
        EvalError: Nothing to average.
    """
    by_seed: dict[int, list[Cell]] = {}
    for cell in cells:
        by_seed.setdefault(cell.seed, []).append(cell)
    if not by_seed:
        raise EvalError("cannot average zero cells")
    scores = [statistics.fmean(cell.score for cell in members) for members in by_seed.values()]
    mean, number = statistics.fmean(scores), len(scores)
    if number == 1:
        low, high = wilson_interval(mean, sum(cell.count for cell in cells))
    else:
        quantile = _STUDENT.get(number - 1, 1.96)
        spread = quantile * statistics.stdev(scores) / math.sqrt(number)
        low, high = max(0.0, mean - spread), min(1.0, mean + spread)
    return Summary(mean, low, high, min(scores), max(scores), number)


def group_cells(cells: Iterable[Cell], *, by: Literal["method", "evaluation"]) -> dict[str, list[Cell]]:
    """Cells by method or by evaluation, in the order in which those appear."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(getattr(cell, by), []).append(cell)
    return groups


def format_tables(cells: Sequence[Cell]) -> str:
    """A markdown table per question: a line per method and evaluation, a column per length.

    Cells are the mean over seeds with its worst and best seed.
    """
    lengths = sorted({cell.length for cell in cells})
    tables = []
    for question in _list_questions(cells):
        lines = [
            f"**{question}** (mean over seeds, worst to best seed)",
            "",
            _join_row(["trained with", "evaluated with", "seeds", *(f"{length}x" for length in lengths)]),
            "|" + "---|" * (3 + len(lengths)),
        ]
        asked = [cell for cell in cells if cell.question == question]
        for method, trained in group_cells(asked, by="method").items():
            for evaluation, members in group_cells(trained, by="evaluation").items():
                texts = [_format_cell([cell for cell in members if cell.length == length]) for length in lengths]
                seeds = str(len({cell.seed for cell in members}))
                lines.append(_join_row([f"`{method}`", f"`{evaluation}`", seeds, *texts]))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _join_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _format_cell(cells: Sequence[Cell]) -> str:
    if not cells:
        return "-"
    summary = summarise(cells)
    if summary.num_seeds == 1:
        return f"{summary.mean:.3f}"
    return f"{summary.mean:.3f} ({summary.least:.2f}..{summary.most:.2f})"


def update_page(text: str, name: str, tables: str) -> str:
    """A page with the tables of the results file `name` between its marks.

    Raises:
        EvalError: The page has no such marks, or has them twice.
    """
    begin, end = f"<!-- tables: {name} -->", "<!-- end of tables -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    new, count = pattern.subn(lambda _: f"{begin}\n\n{tables}\n\n{end}", text)
    if count != 1:
        raise EvalError(f"the page has {count} times {begin!r} ... {end!r}, expected it once")
    return new


def draw_figures(cells: Sequence[Cell], folder: Path, stem: str, *, heatmaps: Sequence[str] = ()) -> list[Path]:
    """Draw accuracy by length, and by depth and length.

    For every question: `STEM_QUESTION_of_METHOD.png`, a line per evaluation; `STEM_QUESTION_at_EVALUATION.png`, a line
    per method, where an evaluation was made of several; and a heat-map for every `METHOD@EVALUATION` that is asked for
    and there.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for question in _list_questions(cells):
        asked = [cell for cell in cells if cell.question == question]
        slug = f"{stem}_{question.replace(' ', '_')}"
        figures: dict[str, Figure] = {}
        for method in dict.fromkeys(cell.method for cell in asked):
            members = [cell for cell in asked if cell.method == method]
            lines = group_cells(members, by="evaluation")
            figures[f"{slug}_of_{method}"] = _draw_lines(lines, title=f"{question}, trained with {method}")
        for evaluation, members in group_cells(asked, by="evaluation").items():
            lines = group_cells(members, by="method")
            if len(lines) > 1:
                figures[f"{slug}_at_{evaluation}"] = _draw_lines(lines, title=f"{question}, asked with {evaluation}")
        for name in heatmaps:
            members = [cell for cell in asked if f"{cell.method}@{cell.evaluation}" == name]
            if members:
                figures[f"{slug}_depth_{name}"] = draw_heatmap(_build_grid(members), title=f"{question}, {name}")
        for name, figure in figures.items():
            written.append(folder / f"{name}.png")
            write_atomically(written[-1], encode_png(figure))
    return written


def _list_questions(cells: Sequence[Cell]) -> list[str]:
    """Questions that were asked, in the order of `QUESTIONS`."""
    return [question for question in QUESTIONS.values() if any(cell.question == question for cell in cells)]


def _draw_lines(lines: Mapping[str, Sequence[Cell]], *, title: str) -> Figure:
    lengths = sorted({cell.length for members in lines.values() for cell in members})
    return draw_band_plot(
        {name: _draw_points(members) for name, members in lines.items()},
        labels=[f"{length}x" for length in lengths],
        title=title,
        xlabel="length of the context (1x: as in stage 1)",
    )


def _draw_points(cells: Sequence[Cell]) -> dict[str, tuple[float, float, float]]:
    """Label of a length -> (mean, low, high)."""
    points = {}
    for length in sorted({cell.length for cell in cells}):
        summary = summarise([cell for cell in cells if cell.length == length])
        points[f"{length}x"] = (summary.mean, summary.low, summary.high)
    return points


def _build_grid(cells: Sequence[Cell]) -> dict[str, Any]:
    """Right answers and questions of all seeds by length and depth, as `draw_heatmap` takes them."""
    lengths = sorted({cell.length for cell in cells})
    num_depths = max(len(cell.depth_counts) for cell in cells)
    by_length = [[cell for cell in cells if cell.length == length] for length in lengths]

    def add_up(name: str) -> list[list[float]]:
        return [[sum(getattr(cell, name)[d] for cell in members) for d in range(num_depths)] for members in by_length]

    return {
        "lengths": [f"{length}x" for length in lengths],
        "depths": [depth / num_depths for depth in range(num_depths)],
        "score_sums": add_up("depth_sums"),
        "counts": add_up("depth_counts"),
    }


def measure_digits(folder: Path) -> dict[str, float]:
    """Accuracy of the image questions of one evaluation at length 1x.

    Args:
        folder: `.../seed_SEED/METHOD/evaluations/EVALUATION`.

    Raises:
        EvalError: It does not hold both questions at that length.
    """
    found = {}
    for path in sorted(folder.rglob(SCORES_NAME)):
        for cell in _read_cells(path, 0, "", ""):
            if cell.length == 1 and cell.question in DIGITS:
                found[cell.question] = cell.score
    if set(found) != set(DIGITS):
        raise EvalError(f"{folder} has {sorted(found)} at length 1x, expected {' and '.join(DIGITS)}")
    return {question: found[question] for question in DIGITS}


def _collect(args: argparse.Namespace) -> int:
    cells = collect_cells(args.work)
    write_study(args.out, cells)
    print(f"{args.out}: {len(cells)} cells, seeds {sorted({cell.seed for cell in cells})}")
    return 0


def _write_tables(args: argparse.Namespace) -> int:
    tables = format_tables(read_study(args.results))
    if args.page is None:
        print(tables)
    else:
        page = update_page(args.page.read_text(encoding="utf-8"), args.results.name, tables)
        write_atomically(args.page, page)
        print(f"{args.page}: tables of {args.results} written")
    return 0


def _draw(args: argparse.Namespace) -> int:
    cells = read_study(args.results)
    for path in draw_figures(cells, args.out, args.results.stem, heatmaps=args.heatmaps):
        print(f"figure  {path}")
    return 0


def _check(args: argparse.Namespace) -> int:
    scores = measure_digits(args.folder)
    reached = all(score >= args.goal for score in scores.values())
    print(", ".join(f"{name} {score:.3f}" for name, score in scores.items()), "at 1x; goal", f"{args.goal:g}")
    return 0 if reached else 1


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    collect = commands.add_parser("collect", help="read finished evaluations, write one json file")
    collect.add_argument("work", type=Path, help="the WORK folder of scripts/miniature_study.sh")
    collect.add_argument("--out", type=Path, required=True, help="json file that is written")
    collect.set_defaults(command=_collect)
    tables = commands.add_parser("tables", help="markdown tables of a json file")
    tables.add_argument("results", type=Path, help="json file of collect")
    tables.add_argument("--page", type=Path, help="page whose tables are replaced; default: print them")
    tables.set_defaults(command=_write_tables)
    draw = commands.add_parser("draw", help="figures of a json file")
    draw.add_argument("results", type=Path, help="json file of collect")
    draw.add_argument("--out", type=Path, required=True, help="folder of the figures")
    draw.add_argument(
        "--heatmaps",
        nargs="*",
        default=HEATMAPS,
        metavar="METHOD@EVALUATION",
        help=f"which are drawn by depth and length ({' '.join(HEATMAPS)})",
    )
    draw.set_defaults(command=_draw)
    check = commands.add_parser("check", help="exit code 0 if both digits reach a goal at length 1x, else 1")
    check.add_argument("folder", type=Path, help="result folder of one evaluation")
    check.add_argument("--goal", type=float, default=0.95, help="accuracy (%(default)s)")
    check.set_defaults(command=_check)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    args = _build_parser().parse_args(argv)
    try:
        return args.command(args)
    except (InternVLError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
