"""MMBench and CCBench: circular evaluation (Liu et al. 2023, arXiv 2307.06281; rule of VLMEvalKit).

A question is asked once per rotation of its options; the rotations have the indices i, i + 1000000, i + 2000000 ... A
question counts as right only if every pass is right. VLMEvalKit asks a judge where no letter can be inferred; here such
a pass is wrong. Passes are scored by `eval.metrics.choice.score`. The old CCBench file has one pass per question.
"""

from collections.abc import Iterable, Mapping

from eval.metrics.estimate import Estimate, estimate_clusters, estimate_groups, estimate_mean

INDEX_STEP = 1_000_000


def find_question(index: int | str) -> int:
    """The question that a pass belongs to."""
    return int(index) % INDEX_STEP


def merge_passes(rows: Iterable[tuple[int | str, float]]) -> dict[int, float]:
    """Score of every question from `(index, score)` of its passes: 1 only if all are 1."""
    questions: dict[int, float] = {}
    for index, score in rows:
        question = find_question(index)
        questions[question] = min(questions.get(question, 1.0), float(score >= 1.0))
    return questions


def summarise(rows: Iterable[tuple[int | str, float, Mapping[str, object]]]) -> dict[str, object]:
    """Circular accuracy, plain accuracy of all passes, and both kinds of category.

    Args:
        rows: `(index, score, fields)` per pass; of the fields, `category` and `l2-category` are read where present.

    Returns:
        `accuracy` (circular) and `vanilla_accuracy` (mean over passes) with their standard errors `stderr` and
        `vanilla_stderr`, `num_questions`, `num_passes`, `by_category` and `by_l2_category` (circular accuracy by name,
        with `score`, `stderr` and `count`).
    """
    rows = list(rows)
    questions = merge_passes((index, score) for index, score, _ in rows)
    passes: dict[int, list[float]] = {}
    for index, score, _ in rows:
        passes.setdefault(find_question(index), []).append(score)
    fields = {find_question(index): values for index, _, values in reversed(rows)}
    nothing = Estimate(0.0, 0.0, 0)
    circular = estimate_mean(list(questions.values())) if rows else nothing
    vanilla = estimate_clusters(passes.values()) if rows else nothing
    return {
        "accuracy": circular.score,
        "stderr": circular.stderr,
        "vanilla_accuracy": vanilla.score,
        "vanilla_stderr": vanilla.stderr,
        "num_questions": len(questions),
        "num_passes": len(rows),
        "by_category": _estimate_by(questions, {key: values.get("category") for key, values in fields.items()}),
        "by_l2_category": _estimate_by(questions, {key: values.get("l2-category") for key, values in fields.items()}),
    }


def _estimate_by(questions: Mapping[int, float], names: Mapping[int, object]) -> dict[str, dict[str, float]]:
    rows = ((str(names[key]), score) for key, score in questions.items() if names[key] is not None)
    return estimate_groups(sorted(rows))
