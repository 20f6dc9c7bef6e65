"""VNBench: needles in videos; a question counts if all of its tries are right (Zhao et al. 2024, arXiv 2406.09367).

A try asks with the options in another order. Rules of `evaluation/eval.py` of https://github.com/joez17/VideoNIAH.
"""

from collections.abc import Iterable, Sequence

from eval.metrics.estimate import average_estimates, estimate_groups, estimate_mean, read_estimate
from eval.metrics.text import read_golds, read_text

NUM_TRIES = 4
LETTERS = "ABCD"
KINDS = {"ret": "retrieval", "ord": "ordering", "cnt": "counting"}


def find_letter(response: str | None) -> str:
    """The first of A, B, C, D, in this order, that occurs before the first point; else that text itself."""
    said = read_text(response).split(".")[0]
    return next((letter for letter in LETTERS if letter in said), said)


def score(answer: object, response: str | None) -> float:
    """1 if a try is right."""
    said = find_letter(response)
    return float(bool(said) and said in read_golds(answer))


def merge_tries(rows: Iterable[tuple[str, str, float]]) -> dict[tuple[str, str], float]:
    """1 by `(type, question)` if four tries are right, from `(question, type, score)` of every try."""
    tries: dict[tuple[str, str], float] = {}
    for question, kind, value in rows:
        tries[kind, question] = tries.get((kind, question), 0.0) + value
    return {key: float(num_right == NUM_TRIES) for key, num_right in tries.items()}


def summarise(rows: Sequence[tuple[str, str, float]]) -> dict[str, object]:
    """Share of questions that are right in all tries, averaged over the types of needle.

    Args:
        rows: `(question, type such as ret_edit, score)` of every try.

    Returns:
        `score` and `stderr` (the published number: the mean over types), `by_type`, `by_kind` (`retrieval`, `ordering`,
        `counting`: means over their types), and `single_try`, the plain accuracy of all tries.
    """
    by_type = estimate_groups(sorted((kind, right) for (kind, _), right in merge_tries(rows).items()))
    types = {kind: read_estimate(numbers) for kind, numbers in by_type.items()}
    overall = average_estimates(list(types.values()))
    by_kind = {
        name: [estimate for kind, estimate in types.items() if kind.startswith(start)] for start, name in KINDS.items()
    }
    return {
        "score": overall.score,
        "stderr": overall.stderr,
        "by_type": by_type,
        "by_kind": {name: vars(average_estimates(parts)) for name, parts in by_kind.items() if parts},
        "single_try": vars(estimate_mean([value for _, _, value in rows])),
    }
