"""Answers about documents: the rules of MMLongBench-Doc and of LongDocURL, which was made from it.

    score_mmlongbench_doc: `eval_score.py` of mayubo2333/MMLongBench-Doc        score_longdocurl: `utils_score_v3.py` of
    dengc2023/LongDocURL

The format of the gold answer chooses the comparison. Whole numbers must be equal, decimal ones within 1 % (as they are,
as percent or as a share). Texts score their similarity, 0 up to one half, but codes, times, dates and addresses must be
equal. Lists: MMLongBench-Doc takes the worst pair of the sorted entries, LongDocURL the mean of the best matches.

The published code reads lists with `eval`; here they are literals. Where it ends with an error, the answer is wrong.
"""

import ast
import math
import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from eval.metrics.text import read_text

NOT_ANSWERABLE = "Not answerable"
# What formats are called -> what they are: MMLongBench-Doc's names, LongDocURL's.
FORMATS = {
    **{"Int": "whole", "Float": "decimal", "Str": "text", "None": "text", "List": "list"},
    **{"Integer": "whole", "String": "text"},
}
_THRESHOLD = 0.5
_TOLERANCE = 0.01
_UNITS = (*("kg", "mm", "m", "meters", "acres", "minutes", "mile", "miles", "million", "thousand", "billion"),)
_EXACT = (
    r"\b\d+(-\d+|\s\d+)?\b",  # telephone numbers
    r"\b\d{4}[-\s]\d{2}[-\s]\d{2}\b",  # dates
    r"\b\d{4}[-\s]\d{2}\b",
    r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}",
)


def score_mmlongbench_doc(gold: object, said: str | None, *, kind: str) -> float:
    """Score in 0..1 of a short answer; `kind` is a key of `FORMATS`."""
    said, kind = read_text(said), FORMATS[kind]
    try:
        if kind == "whole":
            return float(int(str(gold)) == int(float(said)))
        if kind == "decimal":
            return float(is_near(float(_clean(str(gold))), float(_clean(said))))
        if kind == "text":
            return _score_text(_clean(str(gold)), _clean(said))
        return _score_worst(*([_clean(entry) for entry in read_entries(value)] for value in (gold, said)))
    except (ValueError, SyntaxError, OverflowError, RecursionError, MemoryError):
        return 0.0


def score_longdocurl(gold: object, said: str | None, *, kind: str) -> float:
    """As `score_mmlongbench_doc`, by LongDocURL's rule: units and commas are dropped."""
    said, kind = read_text(said), FORMATS[kind]
    try:
        if kind == "whole":
            return float(int(_clean_units(str(gold))) == int(_clean_units(said)))
        if kind == "decimal":
            return float(is_near(float(_clean_units(str(gold))), float(_clean_units(said))))
        if kind == "text":
            return _score_text(_clean_units(str(gold)), _clean_units(said))
        golds, saids = ([_clean_units(entry) for entry in _read_entries_or_text(value)] for value in (gold, said))
        return _score_matches(golds, saids)
    except (ValueError, OverflowError, RecursionError, MemoryError):
        return 0.0


def measure_f1(rows: Sequence[tuple[object, str, float]]) -> float:
    """F1 of `(gold answer, answer, score)`: recall over questions that have an answer, precision over answers given."""
    hits = sum(score for gold, _, score in rows if gold != NOT_ANSWERABLE)
    num_answerable = sum(gold != NOT_ANSWERABLE for gold, _, _ in rows)
    num_answered = sum(said != NOT_ANSWERABLE for _, said, _ in rows)
    return 2 * hits / (num_answerable + num_answered) if num_answerable and num_answered else 0.0


def is_near(gold: float, said: float) -> bool:
    """Whether a number is within 1 % of the right one, or equal after rounding, as it is, as percent or as a share."""
    return any(
        math.isclose(form, said, rel_tol=_TOLERANCE) or _are_equal_rounded(form, said)
        for form in (gold / 100, gold, gold * 100)
    )


def _are_equal_rounded(one: float, other: float) -> bool:
    places = max(2, min(_count_places(one), _count_places(other)))
    return round(one, places) == round(other, places)


def _count_places(number: float) -> int:
    _, point, places = str(number).partition(".")
    return len(places) if point else 3


def read_entries(value: object) -> list[object]:
    """The entries of a list, or of its Python text; anything else is one entry. Raises ValueError, SyntaxError."""
    if isinstance(value, str) and value.startswith("["):
        value = ast.literal_eval(value)
    return value if isinstance(value, list) else [value]


def _read_entries_or_text(value: object) -> list[object]:
    try:
        entries = read_entries(value)
    except (ValueError, SyntaxError):
        return [value]
    if entries and isinstance(entries[0], dict):
        return ["-".join(map(str, entry.values())) if isinstance(entry, dict) else entry for entry in entries]
    return entries


def _score_worst(golds: list[str], saids: list[str]) -> float:
    if len(golds) != len(saids) or not golds:
        return 0.0
    golds, saids = sorted(golds), sorted(saids)
    if _is_number(golds[0]) or must_equal(golds[0]):
        return float("-".join(golds) == "-".join(saids))
    return min(similarity(gold, said) for gold, said in zip(golds, saids, strict=True))


def _score_matches(golds: list[str], saids: list[str]) -> float:
    if not golds or not saids:
        return 0.0
    if _is_number(golds[0]) or must_equal(golds[0]):
        return float("-".join(golds) == "-".join(saids))
    best = [max(similarity(gold, said) for said in saids) for gold in golds]
    return sum(best) / len(golds) * math.sqrt(min(1, len(golds) / len(saids)))


def _score_text(gold: str, said: str) -> float:
    return float(gold == said) if must_equal(gold) else similarity(gold, said)


def must_equal(gold: str) -> bool:
    """Whether a similar text is of no use: addresses, code files, pages, telephone numbers, times and dates."""
    return (
        "https://" in gold
        or gold.endswith((".py", "ipynb"))
        or gold.startswith("page")
        or "a.m." in gold
        or "p.m." in gold
        or any(re.fullmatch(pattern, gold) for pattern in _EXACT)
    )


def similarity(gold: str, said: str) -> float:
    """`1 - distance / longer length`, 0 up to one half. Two empty texts give 1."""
    length = max(len(gold.upper()), len(said.upper()))  # upper case can be longer: `ß` is `SS`
    value = 1.0 - Levenshtein.distance(gold, said) / length if length else 1.0
    return value if value > _THRESHOLD else 0.0


def _clean(value: object) -> str:
    """Lower case without parentheses, outer quotes, and signs of money and percent."""
    text = _drop_outer(str(value).lower().strip())
    return text.lstrip("$").strip().rstrip("%").strip()


def _clean_units(value: object) -> str:
    """As `_clean`, without commas and units. As published, the letters of a unit are stripped: `5 zoom` is `5 zoo`."""
    text = str(value).lower().strip().replace(",", "")
    for unit in _UNITS:
        if text.endswith(unit):
            text = text.rstrip(unit).strip()
    text = _drop_outer(text)
    return text.lstrip("$").strip().lstrip("£").strip().rstrip("%").strip()


def _drop_outer(text: str) -> str:
    text = re.sub(r"\s*\([^)]*\)", "", text).strip()
    return re.sub(r"^['\"]|['\"]$", "", text).strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
