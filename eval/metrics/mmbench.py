"""MMBench and CCBench: circular evaluation (Liu et al. 2023, arXiv 2307.06281; rule of VLMEvalKit).

A question is asked once per rotation of its options; the rotations have the indices i, i + 1000000, i + 2000000 ...
The question counts as right only if every pass is right: without a judge, a pass whose letter cannot be inferred is
wrong. Passes are scored by `eval.metrics.choice.score`. The old CCBench file has one pass a question.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

INDEX_STEP = 1_000_000


def find_question(index: int | str) -> int:
    """Number of the question that a pass belongs to."""
    return int(index) % INDEX_STEP


def merge_passes(rows: Iterable[tuple[int | str, float]]) -> dict[int, float]:
    """Score of every question from `(index, score)` of its passes: 1 only if all are 1."""
    questions: dict[int, float] = {}
    for index, score in rows:
        question = find_question(index)
        questions[question] = min(questions.get(question, 1.0), float(score >= 1.0))
    return questions


def summarise(rows: Iterable[tuple[int | str, float, Mapping[str, Any]]]) -> dict[str, Any]:
    """Circular accuracy, all passes alone, and both kinds of category.

    Args:
        rows: `(index, score, fields)` per pass; of the fields, `category` and `l2-category` are read where present.

    Returns:
        `accuracy` (circular), `vanilla_accuracy` (mean over passes), `num_questions`, `num_passes`, `by_category` and
        `by_l2_category` (circular accuracy by name).
    """
    rows = list(rows)
    questions = merge_passes((index, score) for index, score, _ in rows)
    fields = {find_question(index): values for index, _, values in reversed(rows)}
    return {
        "accuracy": _mean(list(questions.values())),
        "vanilla_accuracy": _mean([score for _, score, _ in rows]),
        "num_questions": len(questions),
        "num_passes": len(rows),
        "by_category": _mean_by(questions, {key: values.get("category") for key, values in fields.items()}),
        "by_l2_category": _mean_by(questions, {key: values.get("l2-category") for key, values in fields.items()}),
    }


def _mean_by(questions: Mapping[int, float], names: Mapping[int, Any]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for key, score in questions.items():
        if names[key] is not None:
            groups.setdefault(str(names[key]), []).append(score)
    return {name: _mean(scores) for name, scores in sorted(groups.items())}


def _mean(scores: list[float]) -> float:
    return math.fsum(scores) / len(scores) if scores else 0.0
