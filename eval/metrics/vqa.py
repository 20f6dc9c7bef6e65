"""Soft accuracy against ten human answers: VQAv2, OKVQA, VizWiz and TextVQA.

Two published scorers. `score_m4c` (MMF/M4C, EvalAI) normalises every answer and is official for TextVQA; published
V2PE and InternVL numbers use it for all four. `score_vqa` (GT-Vision-Lab/VQA) is official for VQAv2, OKVQA and VizWiz:
it compares raw, case-sensitive text when all people gave the same answer.
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
    """VQAv2, OKVQA, VizWiz: `score_vqa` under `official`, `score_m4c` under `upstream`."""
    return score_vqa(answer, response) if protocol == "official" else score_m4c(answer, response)


def score_m4c(answer: object, response: str | None) -> float:
    """TextVQA under both protocols.

    Args:
        answer: The people's answers (ten in the published sets).
        response: What the model said.

    Returns:
        Share in 0..1. An answer that normalises to nothing equals another one that does (`the` and `a`).
    """
    golds = [normalise_m4c(gold) for gold in read_golds(answer)]
    return share_of_people(golds, normalise_m4c(read_text(response)))


def score_vqa(answer: object, response: str | None) -> float:
    """VQAv2, OKVQA, VizWiz: text is normalised only where people differ; arguments as in `score_m4c`."""
    golds = [flatten_whitespace(gold) for gold in read_golds(answer)]
    said = flatten_whitespace(read_text(response))
    if len(set(golds)) > 1:
        golds, said = [_normalise(gold) for gold in golds], _normalise(said)
    return share_of_people(golds, said)


def _normalise(text: str) -> str:
    return normalise_words(remove_punctuation(text), NUMBERS_TO_TEN)


def share_of_people(golds: Sequence[str], said: str) -> float:
    """Mean over people of `min(1, others who said it / 3)`; 1 when all people said it, be it only one.

    With ten answers: one person 0.3, two 0.6, three 0.9, four or more 1.
    """
    num_people, num_agreeing = len(golds), golds.count(said)
    if not num_agreeing:
        return 0.0
    if num_agreeing == num_people:
        return 1.0
    for_others = min(1.0, num_agreeing / AGREEING_PEOPLE)
    for_themselves = min(1.0, (num_agreeing - 1) / AGREEING_PEOPLE)
    return (num_agreeing * for_themselves + (num_people - num_agreeing) * for_others) / num_people
