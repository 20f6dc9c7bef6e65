"""Equality of short answers: OCR-VQA, AI2D as published by V2PE, and GQA."""

from eval.metrics.text import drop_punctuation, read_golds, read_text


def score(answer: object, response: str | None, *, ignore_case: bool = True, ignore_punctuation: bool = False) -> float:
    """1 if the response equals an accepted answer, both stripped and in lower case (V2PE, InternVL, VLMEvalKit).

    There punctuation counts: `A.` does not equal `A`. `ignore_punctuation` leaves out ASCII's marks and doubled spaces.
    """

    def normalise(text: str) -> str:
        text = text.lower() if ignore_case else text
        return " ".join(drop_punctuation(text).split()) if ignore_punctuation else text.strip()

    said = normalise(read_text(response))
    return float(any(normalise(gold) == said for gold in read_golds(answer)))


def score_gqa(answer: object, response: str | None) -> float:
    """1 if the normalised response equals the answer: GQA's `eval.py`, after upstream's conversion of responses."""
    return float(normalise_gqa(response) in read_golds(answer))


def normalise_gqa(response: str | None) -> str:
    """Lower case, without periods at the end, but not stripped."""
    return read_text(response).rstrip(".").lower()
