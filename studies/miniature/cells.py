"""Cells: finished runs of the study as data, one cell per model, evaluation, question and context length.

WORK/seed_SEED/METHOD/evaluations/EVALUATION/mm_niah/TASK/scores.json    is what `collect_cells` reads.
"""

import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scipy import stats

from eval.core.fields import read_object
from eval.core.output import write_result
from eval.core.result import SCORES_NAME, check_share, read_result
from eval.metrics.estimate import wilson_interval
from eval.metrics.mm_niah import NUM_DEPTHS
from internvl.errors import DataError, EvalError

# Left edge of a length bin in tokens -> length in units of 32 haystack tiles of 4 tokens each.
LENGTHS = {100: 1, 250: 2, 450: 4, 800: 8, 1600: 16, 3200: 32}
QUESTIONS = {
    "mm_niah/retrieval-text-test": "text",
    "mm_niah/retrieval-image-test": "first digit",
    "mm_niah/reasoning-image-test": "second digit",
    "mm_niah/retrieval-image-order-test": "first or second digit",
    "mm_niah/reasoning-image-sides-test": "left or right digit",
}
DIGITS = ("first digit", "second digit")  # of a pair
CORNERS = ("first or second digit", "left or right digit")  # of two in opposite corners
# What tables and figures show. Both questions about a pair need the order of visual tokens, so they are averaged.
GROUPS = {"text": ("text",), "digits": DIGITS, "order": CORNERS[:1], "sides": CORNERS[1:]}
OWN = "own"  # the evaluation that asks with the positions of the training
_PLACE = re.compile(r"seed_(?P<seed>\d+)/(?P<method>[^/]+)/evaluations/(?P<evaluation>[^/]+)/mm_niah/[^/]+/[^/]+")


@dataclass(frozen=True)
class Cell:
    """One question at one length of one evaluation of one model."""

    seed: int  # of the model's weights, data and training
    method: str  # how the model was trained, a folder of the study
    evaluation: str  # how it was asked, a folder of the study
    question: str  # a value of `QUESTIONS`
    length: int  # of the context, a value of `LENGTHS`
    score: float  # share of right answers
    count: int
    depth_sums: tuple[float, ...]  # right answers by depth of the needle, in fifths from the start of the context
    depth_counts: tuple[int, ...]  # questions by depth

    def __post_init__(self) -> None:
        """Refuse what the study does not have."""
        check_share(self.score, self.count)
        if self.question not in QUESTIONS.values() or self.length not in LENGTHS.values():
            raise DataError(
                f"a cell of {self.question!r} at length {self.length}, expected one of {', '.join(QUESTIONS.values())} "
                f"at {', '.join(map(str, LENGTHS.values()))}"
            )
        if len(self.depth_sums) != NUM_DEPTHS or len(self.depth_counts) != NUM_DEPTHS:
            raise DataError(
                f"{len(self.depth_sums)} sums and {len(self.depth_counts)} counts by depth, expected {NUM_DEPTHS}"
            )


@dataclass(frozen=True)
class Summary:
    """A mean over seeds."""

    mean: float  # accuracy
    low: float  # lower end of its 95 % interval, in 0..1
    high: float  # upper end
    least: float  # the worst seed
    most: float  # the best seed
    num_seeds: int  # seeds


def collect_cells(work: Path) -> list[Cell]:
    """Cells of all finished evaluations below a folder of the study, in the order of their names.

    Raises EvalError if there are none, or one is broken, of another question, or of a length unknown to the study.
    """
    cells: list[Cell] = []
    for path in sorted(work.rglob(SCORES_NAME)):
        place = _PLACE.fullmatch(path.relative_to(work).as_posix())
        if place is not None:
            cells += _read_cells(path, int(place["seed"]), place["method"], place["evaluation"])
    if not cells:
        raise EvalError(
            f"{work} holds no seed_*/*/evaluations/*/mm_niah/*/{SCORES_NAME}; expected the WORK folder of "
            "studies/miniature/run.sh with a finished evaluation"
        )
    return cells


def _read_cells(path: Path, seed: int, method: str, evaluation: str) -> list[Cell]:
    result = read_result(path)
    bins, grid = result.headline.by_length, result.headline.by_depth_and_length
    # Row 0 of the grid lies below the first edge, row i right of edge i.
    rows = {low: row for row, low in enumerate(sorted(LENGTHS), start=1)}
    is_known = result.task in QUESTIONS and all(entry.low in LENGTHS for entry in bins)
    if not is_known or grid is None or len(grid.counts) != len(LENGTHS) + 1:
        raise EvalError(
            f"{path} is not a result of the study ({result.task}, bins from {[entry.low for entry in bins]} tokens); "
            f"expected a task of {', '.join(QUESTIONS)} scored with --length_bins {' '.join(map(str, rows))}"
        )
    return [
        Cell(
            seed=seed,
            method=method,
            evaluation=evaluation,
            question=QUESTIONS[result.task],
            length=LENGTHS[entry.low],
            score=entry.score,
            count=entry.count,
            depth_sums=tuple(grid.score_sums[rows[entry.low]]),
            depth_counts=tuple(grid.counts[rows[entry.low]]),
        )
        for entry in bins
        if entry.low is not None
    ]


@dataclass(frozen=True)
class _Study:
    """The file of a study."""

    cells: list[Cell]


def read_study(path: Path) -> list[Cell]:
    """The cells of a file that `write_study` wrote.

    Raises EvalError if it is another file, or a cell lacks a field or has one of a wrong type.
    """
    try:
        return read_object(path, _Study).cells
    except DataError as error:
        raise EvalError(
            f"{path} is no file of `python -m studies.miniature collect` ({error.message}); make it again with that "
            "command"
        ) from error


def write_study(path: Path, cells: Sequence[Cell]) -> None:
    """Write cells as JSON, one per line, so that two versions of the file can be compared line by line."""
    lines = ",\n".join("  " + json.dumps(asdict(cell)) for cell in cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_result(path, f'{{"made_by": "python -m studies.miniature collect", "cells": [\n{lines}\n]}}\n')


def merge_cells(old: Sequence[Cell], new: Sequence[Cell]) -> list[Cell]:
    """All cells in the order of `collect_cells`; of the same seed, method and evaluation only `new` counts."""

    def place(cell: Cell) -> tuple[str, str, str]:
        return f"seed_{cell.seed}", cell.method, cell.evaluation

    replaced = {place(cell) for cell in new}
    return sorted([*(cell for cell in old if place(cell) not in replaced), *new], key=place)


def summarise(cells: Sequence[Cell]) -> Summary:
    """Mean of cells of several seeds; a seed's own cells are averaged first. Raises EvalError if there are no cells."""
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
        spread = stats.t.ppf(0.975, number - 1) * statistics.stdev(scores) / math.sqrt(number)
        low, high = max(0.0, mean - spread), min(1.0, mean + spread)
    return Summary(mean, low, high, min(scores), max(scores), number)


def select_cells(
    cells: Iterable[Cell], *, questions: Sequence[str], method: str, evaluation: str, length: int | None = None
) -> list[Cell]:
    """The cells of one setting, of one length or of all."""
    return [
        cell
        for cell in cells
        if (cell.method, cell.evaluation) == (method, evaluation)
        and cell.question in questions
        and length in (None, cell.length)
    ]


def list_settings(cells: Iterable[Cell]) -> list[tuple[str, str]]:
    """(method, evaluation) of all cells: methods in the order in which they appear, large strides before small ones."""
    settings = dict.fromkeys((cell.method, cell.evaluation) for cell in cells)
    methods = list(dict.fromkeys(method for method, _ in settings))
    return sorted(settings, key=lambda pair: (methods.index(pair[0]), _rank_evaluation(pair[1])))


def _rank_evaluation(evaluation: str) -> tuple[float, str]:
    """`default` and `own` first, then strides from large to small; one without options before those with."""
    position, _, options = evaluation.partition("+")
    if not position.startswith("stride_"):
        return -math.inf, options
    whole, _, part = position.removeprefix("stride_").partition("-")
    return -float(whole) / float(part or 1), options


def list_lengths(cells: Iterable[Cell]) -> list[int]:
    """Lengths of all cells, ascending."""
    return sorted({cell.length for cell in cells})


def list_groups(cells: Iterable[Cell]) -> list[str]:
    """The groups of questions that cells are of, in the order of `GROUPS`."""
    asked = {cell.question for cell in cells}
    return [group for group, questions in GROUPS.items() if asked & set(questions)]


def measure_digits(folder: Path) -> dict[str, float]:
    """Accuracy of the image questions at length 1x in `.../seed_SEED/METHOD/evaluations/EVALUATION`.

    Raises EvalError if the folder does not hold both questions of a layout at that length.
    """
    found = {}
    for path in sorted(folder.rglob(SCORES_NAME)):
        for cell in _read_cells(path, 0, "", ""):
            if cell.length == 1 and cell.question != "text":
                found[cell.question] = cell.score
    if set(found) not in map(set, (DIGITS, CORNERS)):
        expected = ", or ".join(" and ".join(questions) for questions in (DIGITS, CORNERS))
        raise EvalError(f"{folder} has {sorted(found)} at length 1x, expected {expected}")
    return {question: found[question] for question in (*DIGITS, *CORNERS) if question in found}
