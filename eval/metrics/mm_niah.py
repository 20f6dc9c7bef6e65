"""MM-NIAH: scores answers, and averages scores by context length and needle depth.

There are two protocols, because the published V2PE numbers were made with a scorer that differs from the benchmark's
own. `official` is `calculate_scores.py` of OpenGVLab/MM-NIAH. `upstream` is its copy in OpenGVLab/V2PE, which also
accepts `left` and `right` for options and compares text answers up to their first period, so `3.5` equals `3.9`. Its
scores are never lower. Inputs that crash those scripts count as wrong here.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.metrics.bins import find_bin, format_tokens
from eval.metrics.protocol import Protocol
from eval.metrics.text import (
    NUMBERS_TO_NINETY,
    contains_word,
    flatten_whitespace,
    normalise_words,
    read_text,
    remove_punctuation,
    split_possessives,
)

LENGTH_EDGES = (1000, 2000, 4000, 8000, 12000, 16000, 24000, 32000, 40000, 48000, 64000)  # tokens
NUM_DEPTHS = 5
DEPTH_STEP = 0.2  # divided by in binary floating point: depth 0.6 falls into cell 2, not 3
NUM_TASKS_FOR_OVERALL = 6


def is_correct(answer: object, response: str | None, protocol: Protocol) -> float:
    """Score of one response: 0 or 1, for counts the share of them that is right.

    Args:
        answer: Option index (int), list of counts, or open text.
        response: What the model said.
        protocol: Whose rule.

    Raises:
        TypeError: The answer has another type.
    """
    response = read_text(response).strip(".")
    if isinstance(answer, int):
        return float(_is_option(answer, response, protocol))
    if isinstance(answer, list):
        return _share_of_counts(answer, response)
    if isinstance(answer, str):
        same_start = protocol == "upstream" and _cut_sentence(response).strip() == _cut_sentence(answer)
        return float(same_start or contains_word(_normalise(response, protocol), _normalise(answer, protocol)))
    raise TypeError(f"an MM-NIAH answer is an int, a list or a str, got {type(answer).__name__}: {answer!r}")


def _is_option(answer: int, response: str, protocol: Protocol) -> bool:
    if response.isdigit():
        try:
            return int(response) == answer
        except ValueError:  # superscripts are digits to `isdigit`, but not to `int`
            return False
    letter = _cut_sentence(response).strip()
    for direction, option in (("left", "a"), ("right", "b")):
        if f"the camera is moving {direction}" in letter or (protocol == "upstream" and letter == direction):
            letter = option
            break
    return len(letter) == 1 and ord(letter) - ord("a") == answer


def _cut_sentence(text: str) -> str:
    """Lower case, without `the answer is` and `*`, up to the first period."""
    text = text.lower().replace("the answer is", "").replace("*", "")
    head, period, _ = text.partition(".")
    return head.replace(",", "").strip() if period else text  # commas stay without a period, as officially


def _share_of_counts(answer: list[object], response: str) -> float:
    counts = _parse_counts(response)
    if not answer or counts is None:
        return 0.0
    return sum(given == gold for given, gold in zip(counts, answer, strict=False)) / len(answer)


def _parse_counts(response: str) -> list[object] | None:
    """The list in a JSON response, or the joined lists of an object; None for everything else."""
    try:
        parsed = json.loads(response.replace("json", "").replace("```", "").strip())
    except (ValueError, RecursionError):
        return None
    if isinstance(parsed, dict):
        if not all(isinstance(value, list) for value in parsed.values()):
            return None
        return [item for value in parsed.values() for item in value]
    return parsed if isinstance(parsed, list) else None


def _normalise(text: str, protocol: Protocol) -> str:
    if protocol == "upstream":
        text = split_possessives(text)
    return normalise_words(remove_punctuation(flatten_whitespace(text)), NUMBERS_TO_NINETY)


@dataclass(frozen=True)
class Grid:
    """Sums of scores, of their squares, and counts by context length and needle depth."""

    edges: tuple[int, ...]  # left edges of the length bins in tokens; the last bin has no right edge
    # `len(edges) + 1` rows of `NUM_DEPTHS` cells; row 0 is below the first edge.
    score_sums: tuple[tuple[float, ...], ...]
    square_sums: tuple[tuple[float, ...], ...]  # sum of the squares of the scores in each cell
    counts: tuple[tuple[int, ...], ...]  # number of samples in each cell

    @property
    def num_empty_cells(self) -> int:
        """Cells from the first edge on without a sample; the official score counts them as 0."""
        return sum(count == 0 for row in self.counts[1:] for count in row)


def find_depth_cell(placed_depth: float | Sequence[object]) -> int:
    """Cell of a needle's depth, or of the mean depth of several needles; 0 is the start of the context.

    Raises:
        ValueError: There is no depth, or one is not a number or outside 0..1.
    """
    depths = [placed_depth] if isinstance(placed_depth, (int, float)) else list(placed_depth)
    numbers = [depth for depth in depths if isinstance(depth, (int, float))]
    depth = sum(numbers) / len(depths) if numbers and len(numbers) == len(depths) else -1.0
    if not 0.0 <= depth <= 1.0:
        raise ValueError(f"placed_depth must be one or several numbers in 0..1, got {placed_depth!r}")
    return int((0.99 if depth == 1.0 else depth) / DEPTH_STEP)


def build_grid(
    rows: Iterable[tuple[float, float | Sequence[float], float]], edges: Sequence[int] = LENGTH_EDGES
) -> Grid:
    """Sort `(context_length, placed_depth, score)` rows into cells."""
    score_sums, square_sums = ([[0.0] * NUM_DEPTHS for _ in range(len(edges) + 1)] for _ in range(2))
    counts = [[0] * NUM_DEPTHS for _ in range(len(edges) + 1)]
    for context_length, placed_depth, score in rows:
        column, cell = find_bin(context_length, edges), find_depth_cell(placed_depth)
        score_sums[column][cell] += score
        square_sums[column][cell] += score**2
        counts[column][cell] += 1
    return Grid(
        edges=tuple(edges),
        score_sums=tuple(map(tuple, score_sums)),
        square_sums=tuple(map(tuple, square_sums)),
        counts=tuple(map(tuple, counts)),
    )


def score_length_bins(grid: Grid) -> list[float]:
    """Official score per length bin: mean over depth cells, rounded to 6 digits. Empty cells count as 0."""
    means = (
        [s / n if n else 0.0 for s, n in zip(sums, counts, strict=True)]
        for sums, counts in zip(grid.score_sums[1:], grid.counts[1:], strict=True)
    )
    return [round(sum(cells) / NUM_DEPTHS, 6) for cells in means]


def spread_length_bins(
    score_sums: Sequence[Sequence[float]], square_sums: Sequence[Sequence[float]], counts: Sequence[Sequence[int]]
) -> list[float]:
    """Standard error per length bin of a mean over its depth cells, from the rows of a `Grid`."""
    # Cells are independent. An empty cell is 0 by rule, not by chance, and adds nothing.
    return [
        math.sqrt(sum(max(0.0, q / n - (s / n) ** 2) / n for s, q, n in zip(*cells, strict=True) if n)) / len(cells[0])
        for cells in zip(score_sums, square_sums, counts, strict=True)
    ]


def summarise_grid(grid: Grid) -> dict[str, object]:
    """Everything that the two published scripts report for one task, under their names, and standard errors.

    Returns:
        `scores` (official, per length bin) and `average` (their mean) with their standard errors `scores_stderr` and
        `average_stderr`, `weighted_acc` and `sample_number_array` (micro, per length bin), `weighted_avg_acc` (micro,
        samples below the first edge included), `context_ranges`, `num_empty_cells`.
    """
    scores = score_length_bins(grid)
    spreads = spread_length_bins(grid.score_sums[1:], grid.square_sums[1:], grid.counts[1:])
    sums, counts = [sum(row) for row in grid.score_sums], [sum(row) for row in grid.counts]
    return {
        "scores": scores,
        "scores_stderr": spreads,
        "average": sum(scores) / len(scores),
        "average_stderr": math.hypot(*spreads) / len(spreads),
        "weighted_acc": [s / n if n else 0.0 for s, n in zip(sums[1:], counts[1:], strict=True)],
        "sample_number_array": counts[1:],
        "weighted_avg_acc": sum(sums) / sum(counts) if sum(counts) else 0.0,
        "context_ranges": [format_tokens(edge) for edge in grid.edges],
        "num_empty_cells": grid.num_empty_cells,
    }


def average_tasks(scores: Sequence[Sequence[float]]) -> list[float] | None:
    """Official `overall`: mean over the six tasks per length bin; None for any other number of tasks."""
    if len(scores) != NUM_TASKS_FOR_OVERALL:
        return None
    return [round(sum(column) / NUM_TASKS_FOR_OVERALL, 6) for column in zip(*scores, strict=True)]
