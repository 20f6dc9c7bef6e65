"""POPE: does the picture hold the object? (Li et al. 2023, arXiv 2305.10355; rule of the benchmark's `evaluate.py`)

Both protocols parse as the official script does: a response without `no`, `No` or `not` is a yes, even an empty one.
Metrics are computed per category with yes as the positive class; the published number is the mean of the three F1
scores, times 100. A metric is 0 where the official script would divide by zero.
"""

import math
from collections.abc import Iterable, Mapping

from eval.metrics.estimate import Estimate
from eval.metrics.text import read_golds, read_text

_NEGATIONS = frozenset({"No", "not", "no"})


def parse_yes_no(response: str | None) -> str:
    """`no` if a word before the first period is a negation, else `yes`; commas are deleted first."""
    words = read_text(response).partition(".")[0].replace(",", "").split(" ")
    return "no" if _NEGATIONS.intersection(words) else "yes"


def score(answer: object, response: str | None) -> float:
    """1 if the parsed response equals the label; every label except `no` means yes."""
    label = "no" if read_golds(answer) == ["no"] else "yes"
    return float(parse_yes_no(response) == label)


def summarise_category(rows: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Metrics of one category from `(label, score)`; score 0 means that the other answer was given.

    Returns:
        `TP`, `FP`, `TN`, `FN`, `acc`, `precision`, `recall`, `f1` and `yes_ratio` (share of predictions).
    """
    counts = {"TP": 0, "FP": 0, "TN": 0, "FN": 0}
    for label, right in rows:
        counts[("TN" if right else "FP") if label == "no" else ("TP" if right else "FN")] += 1
    precision = _divide(counts["TP"], counts["TP"] + counts["FP"])
    recall = _divide(counts["TP"], counts["TP"] + counts["FN"])
    total = sum(counts.values())
    return {
        **counts,
        "acc": _divide(counts["TP"] + counts["TN"], total),
        "precision": precision,
        "recall": recall,
        "f1": _divide(2 * precision * recall, precision + recall),
        "yes_ratio": _divide(counts["TP"] + counts["FP"], total),
    }


def estimate_f1(metrics: Mapping[str, float]) -> Estimate:
    """F1 of one category with its standard error, from `summarise_category`."""
    # With E wrong answers of either kind, F1 is 2 TP / (2 TP + E). Its variance to first order (delta method, answers
    # as draws of the four outcomes) is 4 TP E (TP + E) / (2 TP + E)^4.
    right, wrong = metrics["TP"], metrics["FP"] + metrics["FN"]
    spread = _divide(2 * math.sqrt(right * wrong * (right + wrong)), (2 * right + wrong) ** 2)
    return Estimate(metrics["f1"], spread, int(right + wrong + metrics["TN"]))


def summarise(rows: Iterable[tuple[str, str, float]]) -> dict[str, dict[str, float]]:
    """Metrics of every category, sorted by name, from `(category, label, score)`."""
    categories: dict[str, list[tuple[str, float]]] = {}
    for category, label, right in rows:
        categories.setdefault(category, []).append((label, right))
    return {category: summarise_category(members) for category, members in sorted(categories.items())}


def _divide(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
