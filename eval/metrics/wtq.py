"""Denotation accuracy of WikiTableQuestions (Pasupat and Liang 2015; rule of the official `evaluator.py`).

An answer is a set of values: numbers, dates (`2001-5-6`, unknown parts `xx`) or text. A response is right if it has as
many different values as the accepted set and each accepted value matches one of them.
"""

import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from eval.metrics.text import read_golds

_CITATIONS = re.compile(r"(?:(?<!^)\[[^\]]*\]|\[\d+\]|[•♦†‡*#+])+$")
_DETAILS = re.compile(r"(?<!^)(?: \([^)]*\))+$")
_FOLDED = str.maketrans(dict.fromkeys("‘’´`", "'") | dict.fromkeys("“”", '"') | dict.fromkeys("‐‑‒–—−", "-"))
_TOLERANCE = 1e-6
_UNKNOWN = -1


@dataclass(frozen=True)
class Value:
    """One value of an answer."""

    kind: Literal["number", "date", "text"]  # what the text reads as
    content: float | tuple[int, int, int] | str  # number, (year, month, day), or normalised text
    normalised: str


def score(answer: object, response: object) -> float:
    """1 if both sets of values agree; either may be one value or a list."""
    golds, saids = read_values(read_golds(answer)), read_values(read_golds(response))
    agree = len(golds) == len(saids) and all(any(matches(gold, said) for said in saids) for gold in golds)
    return float(agree)


def read_values(texts: Iterable[str]) -> list[Value]:
    """The different values of some texts, each once."""
    values: dict[tuple[str, object], Value] = {}
    for text in texts:
        value = read_value(text)
        values.setdefault((value.kind, value.content), value)
    return list(values.values())


def read_value(text: str) -> Value:
    """A number if `int` or `float` reads the text, else a date, else text. A date that is a year alone is a number."""
    normalised = normalise(text)
    number = _read_number(text)
    if number is not None:
        return Value("number", number, normalised)
    date = _read_date(text)
    if date is None:
        return Value("text", normalised, normalised)
    year, month, day = date
    if month == day == _UNKNOWN:
        return Value("number", year, normalised)
    return Value("date", date, normalised)


def matches(gold: Value, said: Value) -> bool:
    """Whether two values are equal normalised text, numbers closer than 1e-6, or the same date."""
    if gold.normalised == said.normalised:
        return True
    if gold.kind != said.kind or gold.kind == "text":
        return False
    one, other = gold.content, said.content
    return one == other or (isinstance(one, (int, float)) and isinstance(other, (int, float)) and _is_close(one, other))


def _is_close(one: float, other: float) -> bool:
    try:
        return abs(one - other) < _TOLERANCE
    except OverflowError:  # a whole number too large for a float
        return False


def _read_number(text: str) -> int | float | None:
    number: int | float
    try:
        number = int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            return None
    if isinstance(number, float):
        if not math.isfinite(number):
            return None
        if abs(number - round(number)) < _TOLERANCE:  # the official rule makes these whole
            return int(number)
    return number


def _read_date(text: str) -> tuple[int, int, int] | None:
    parts = text.lower().split("-")
    if len(parts) != 3:
        return None
    try:
        year = _UNKNOWN if parts[0] in ("xx", "xxxx") else int(parts[0])
        month, day = (_UNKNOWN if part == "xx" else int(part) for part in parts[1:])
    except ValueError:
        return None
    is_date = month in (_UNKNOWN, *range(1, 13)) and day in (_UNKNOWN, *range(1, 32))
    return (year, month, day) if is_date and (year, month, day) != (_UNKNOWN,) * 3 else None


def normalise(text: str) -> str:
    """Lower case, without accents, citations, details in parentheses, outer quotation marks and one final period."""
    letters = unicodedata.normalize("NFKD", text)
    text = "".join(letter for letter in letters if unicodedata.category(letter) != "Mn").translate(_FOLDED)
    while True:
        before = text
        text = _CITATIONS.sub("", text.strip())
        text = _DETAILS.sub("", text.strip()).strip()
        if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
            text = text[1:-1]
        if text == before:
            break
    return " ".join(text.removesuffix(".").lower().split())
