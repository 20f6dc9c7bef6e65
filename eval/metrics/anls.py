"""Average normalised Levenshtein similarity of document questions (Biten et al. 2019, arXiv 1905.13648).

`score` is the Robust Reading Competition's script for DocVQA and InfoVQA (ST-VQA's rule), which V2PE uses unchanged.
`score_due` is the stricter rule of the DUE benchmark: a similarity of exactly 0.5 is 0, and nothing is normalised.
"""

from rapidfuzz.distance import Levenshtein

from eval.metrics.text import read_golds, read_text

THRESHOLD = 0.5


def score(answer: object, response: str | None, *, threshold: float = THRESHOLD) -> float:
    """Best similarity over the accepted answers: 0, or a number in `threshold`..1. Two empty texts are equal."""
    said = read_text(response)
    best = max((_similarity(gold, said) for gold in read_golds(answer)), default=0.0)
    return best if best >= threshold else 0.0


def _similarity(gold: str, said: str) -> float:
    # As in the official script, lengths are those of the raw texts although the distance is that of cleaned ones, so
    # padding raises the score. Upper case can be longer than lower case (`ß` is `SS`).
    length = max(len(gold.upper()), len(said.upper()))
    distance = Levenshtein.distance(_collapse(gold), _collapse(said))
    return 1.0 - distance / length if length else 1.0


def _collapse(text: str) -> str:
    return " ".join(text.strip().lower().split())


def score_due(answer: object, response: str | None) -> float:
    """Best similarity `1 - distance / longer length` over the accepted answers, case-sensitive; up to 0.5 it is 0."""
    said = read_text(response)
    best = max((Levenshtein.normalized_similarity(gold, said) for gold in read_golds(answer)), default=0.0)
    return best if best > THRESHOLD else 0.0
