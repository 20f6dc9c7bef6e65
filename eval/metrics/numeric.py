"""Numbers in text: which one a response gives, and whether it is close enough to the right one."""

import re
from typing import Literal

from eval.metrics.text import read_golds, read_text

_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?"  # a sign, unless it is a hyphen after a word (`3-4`)
    r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)?"  # digits, perhaps in groups of three
    r"(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?"  # a fraction, an exponent
)


def score(
    answer: object,
    response: str | None,
    *,
    relative: float = 0.0,
    absolute: float = 0.0,
    take: Literal["first", "last"] = "last",
) -> float:
    """1 if the number that the response gives is close to an accepted one. Raises ValueError for an answer without.

    Args:
        answer: One accepted number, or a list of them, as numbers or text (`1,234.5`).
        response: What the model said; without a number it is wrong.
        relative: Largest error as a share of the accepted number.
        absolute: Largest error; the larger of both counts.
        take: Which number of the response is its answer.
    """
    golds = [read_number(gold) for gold in read_golds(answer)]
    numbers = find_numbers(read_text(response))
    if not numbers:
        return 0.0
    given = numbers[-1 if take == "last" else 0]
    return float(any(abs(given - gold) <= max(absolute, relative * abs(gold)) for gold in golds))


def read_number(text: str) -> float:
    """The one number in a text such as `$1,234.5`. Raises ValueError if there is none, or several."""
    numbers = find_numbers(text)
    if len(numbers) != 1:
        raise ValueError(f"{text!r} holds {len(numbers)} numbers, expected one")
    return numbers[0]


def find_numbers(text: str) -> list[float]:
    """All numbers in a text, in order: `-5`, `1,234.5`, `.5`, `1e-3`; digits inside of words (`v2`) are none."""
    return [float(found.replace(",", "").replace("\u2212", "-")) for found in _NUMBER.findall(text)]
