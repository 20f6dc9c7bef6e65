"""MLVU: the option in a response, and the scores that a judge gave (Zhou et al. 2024, arXiv 2406.04264).

Rules of https://github.com/JUNJIE99/MLVU: `choice_bench.py` for options, `calculate.py` and `calculate_sum.py` for what
a judge said about free answers.
"""

import math

from eval.metrics import choice
from eval.metrics.text import read_text

SUB_SCENE = ("score_accuracy", "score_relevance")
SUMMARY = ("score_completeness", "score_reliability")
BEST = 10  # two scores of 1 to 5


def cut_option(response: str | None) -> str:
    """The character before the first `)`; the response itself where there is none."""
    said = read_text(response)
    end = said.find(")")
    return said if end < 0 else said[max(0, end - 1) : end]


def score(answer: object, response: str | None) -> float:
    """1 if the option is the right letter and nothing else: `B`, `(B) text`, `B) text`; `B.` is wrong."""
    said = cut_option(response)
    return float(bool(said) and said == read_text(answer))


def score_leniently(answer: object, response: str | None, *, options: dict[str, str]) -> float:
    """As `score`, and VLMEvalKit's search for a letter or an option's text (`B.`) where that finds nothing."""
    found = choice.score(answer, response, options=options, protocol="official")
    return max(score(answer, response), found)


def read_judgement(reply: str, keys: tuple[str, str]) -> float:
    """The sum of the scores in a judge's reply, of at most 10.

    A key's score stands between the next colon, with the character after it, and the next comma (without one: all but
    the reply's last character). A missing key counts 0. Raises ValueError if that text is no number.
    """
    return sum(_read_number(reply, reply.find(key)) for key in keys if key in reply)


def _read_number(reply: str, place: int) -> float:
    start = reply.find(":", place) + 2
    number = float(reply[start : reply.find(",", start)])
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number")
    return number
