"""Soft accuracy against ten human answers: VQAv2, OK-VQA, VizWiz and TextVQA.

There are two published scorers. `score_m4c` (MMF/M4C, EvalAI) normalises every answer. It is official for TextVQA, and
published V2PE and InternVL numbers use it for all four sets. `score_vqa` (GT-Vision-Lab/VQA) is official for the other
three. It compares raw, case-sensitive text where all people gave the same answer.
"""

from collections.abc import Sequence

from eval.metrics.protocol import Protocol
from eval.metrics.text import (
    NUMBERS_TO_TEN,
    flatten_whitespace,
    normalise_m4c,
    normalise_words,
    read_golds,
    read_text,
    remove_punctuation,
)

AGREEING_PEOPLE = 3


def score(answer: object, response: str | None, protocol: Protocol) -> float:
    """VQAv2, OK-VQA, VizWiz: `score_vqa` under `official`, `score_m4c` under `upstream`."""
    return score_vqa(answer, response) if protocol == "official" else score_m4c(answer, response)


def score_m4c(answer: object, response: str | None) -> float:
    """TextVQA's rule: a share in 0..1. Answers that normalise to nothing (`the` and `a`) equal each other."""
    golds = [normalise_m4c(gold) for gold in read_golds(answer)]
    return share_of_people(golds, normalise_m4c(read_text(response)))


def score_vqa(answer: object, response: str | None) -> float:
    """VQAv2's rule: a share in 0..1."""
    golds = [flatten_whitespace(gold) for gold in read_golds(answer)]
    said = flatten_whitespace(read_text(response))
    if len(set(golds)) > 1:  # as officially, nothing is normalised where all people agree
        golds, said = [_normalise(gold) for gold in golds], _normalise(said)
    return share_of_people(golds, said)


def _normalise(text: str) -> str:
    return normalise_words(remove_punctuation(text), NUMBERS_TO_TEN)


def share_of_people(golds: Sequence[str], said: str) -> float:
    """Mean over people of `min(1, others who said it / 3)`; 1 when everybody said it, even if that is one person.

    Of ten people, one who said it gives 0.3, two give 0.6, three 0.9, four or more 1.
    """
    num_people, num_agreeing = len(golds), golds.count(said)
    if not num_agreeing:
        return 0.0
    if num_agreeing == num_people:
        return 1.0
    for_others = min(1.0, num_agreeing / AGREEING_PEOPLE)
    for_themselves = min(1.0, (num_agreeing - 1) / AGREEING_PEOPLE)
    return (num_agreeing * for_themselves + (num_people - num_agreeing) * for_others) / num_people
