"""SEED-Bench image questions: the first character of a response is its option (Li et al. 2023, arXiv 2307.16125).

The benchmark's own evaluation ranks options by likelihood and generates nothing; `official` is the usual generative
reading (lmms-eval: stripped, any case), `upstream` V2PE's `calculation.py`: the raw first character, case-sensitive.
An empty response is wrong here; upstream's script crashes on it.
"""

from collections.abc import Iterable

from eval.metrics.estimate import estimate_groups
from eval.metrics.protocol import Protocol
from eval.metrics.text import read_golds, read_text

IMAGE_TYPES = range(1, 10)


def score(answer: object, response: str | None, protocol: Protocol) -> float:
    """1 if the response's letter equals the annotated one."""
    letter = find_letter(response, protocol)
    return float(bool(letter) and letter in read_golds(answer))


def find_letter(response: str | None, protocol: Protocol) -> str:
    """First character, under `official` of the stripped text in upper case; empty for an empty response."""
    said = read_text(response)
    return said[:1] if protocol == "upstream" else said.strip()[:1].upper()


def summarise(rows: Iterable[tuple[int, float]]) -> dict[str, object]:
    """Accuracy by question type from `(type number, score)`.

    Returns:
        `by_type` (types that have questions), `total`, `image` (types 1 to 9) and `video` (the others), each with
        `score`, `stderr` and `count`; None where there is no question.
    """
    rows = sorted(rows)
    parts = estimate_groups(("image" if kind in IMAGE_TYPES else "video", right) for kind, right in rows)
    return {
        "by_type": estimate_groups(rows),
        "total": estimate_groups(("total", right) for _, right in rows).get("total"),
        "image": parts.get("image"),
        "video": parts.get("video"),
    }
