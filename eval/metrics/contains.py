"""Containment: whether accepted answers occur in a response, as text or between word boundaries."""

import re
from typing import Literal

from eval.metrics.text import read_golds, read_text


def score(
    answer: object,
    response: str | None,
    *,
    ignore_case: bool = True,
    whole_words: bool = True,
    need: Literal["any", "all"] = "any",
) -> float:
    """1 if the response contains one of the accepted answers, or all of them. An empty answer is contained in nothing.

    Args:
        answer: One accepted answer, or a list of them.
        response: What the model said.
        ignore_case: Whether `Blue` is `blue`.
        whole_words: Whether `art` must stand alone and is not found in `party`.
        need: How many of the answers must occur.
    """
    said = read_text(response)
    found = [_occurs(gold.strip(), said, ignore_case, whole_words) for gold in read_golds(answer)]
    return float(bool(found) and (any(found) if need == "any" else all(found)))


def _occurs(gold: str, said: str, ignore_case: bool, whole_words: bool) -> bool:
    if ignore_case:
        gold, said = gold.casefold(), said.casefold()
    if not gold or not whole_words:
        return bool(gold) and gold in said
    # Not \b: an answer may begin or end with a sign, such as `$5`.
    return re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", said) is not None
