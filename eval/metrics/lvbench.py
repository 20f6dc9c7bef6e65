"""LVBench: the letter in a response, accuracy by ability (Wang et al. 2024, arXiv 2406.08035).

Rules of https://github.com/THUDM/LVBench: `answer_util.py` and `compute_accuracy.py`.
"""

from collections.abc import Iterable, Sequence

from eval.metrics.estimate import estimate_groups
from eval.metrics.text import read_golds, read_text


def polish(response: str | None) -> str:
    """The first character of what stands before the first `)`, or between it and the `(` before; empty without one."""
    said = read_text(response).strip().split(")")[0].strip()
    if "(" in said:
        said = said.split("(")[1].strip()
    return said.split(" ")[0][:1]


def score(answer: object, response: str | None) -> float:
    """1 if the letter is right; `a` and `The answer is A` are wrong."""
    letter = polish(response)
    return float(bool(letter) and letter in read_golds(answer))


def summarise(rows: Iterable[tuple[Sequence[str], float]]) -> dict[str, dict[str, float]]:
    """Accuracy by ability, from `(abilities, score)`: a question counts for each of its abilities."""
    return estimate_groups(sorted((ability, score) for abilities, score in rows for ability in abilities))
