"""Equality of short answers: OCR-VQA, AI2D as published by V2PE, and GQA."""

from eval.metrics.text import read_golds, read_text


def score(answer: object, response: str | None) -> float:
    """1 if the response equals an accepted answer, both stripped and in lower case (V2PE, InternVL, VLMEvalKit)."""
    said = read_text(response).strip().lower()  # punctuation counts: `A.` does not equal `A`
    return float(any(gold.strip().lower() == said for gold in read_golds(answer)))


def score_gqa(answer: object, response: str | None) -> float:
    """1 if the normalised response equals the answer: GQA's `eval.py`, after upstream's conversion of responses."""
    return float(normalise_gqa(response) in read_golds(answer))


def normalise_gqa(response: str | None) -> str:
    """Lower case, without periods at the end, but not stripped."""
    return read_text(response).rstrip(".").lower()
