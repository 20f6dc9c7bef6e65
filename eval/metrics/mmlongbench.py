"""MMLongBench: seven rules, one per kind of question (`utils.py` and `data.py` of EdinburghNLP/MMLongBench, MIT).

    said     = "Answer: " + response                          the words that the prompt asks for come first
    contains, counts, letter, label, summary: the better score of `said` and of what follows the prefix in it
    yes_no: all of `said`          document: only what follows the prefix

An empty response is wrong here under every rule, and so is an answer on which the published code ends with an error.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypedDict

from eval.metrics.rouge import score_rouge_lsum
from eval.metrics.text import blank_articles, drop_punctuation, measure_word_f1, read_golds, read_text

Rule = Literal["contains", "yes_no", "counts", "letter", "label", "summary", "document"]
Format = Literal["Integer", "Float", "String", "List", "None"]

FORMATS: tuple[Format, ...] = ("Integer", "Float", "String", "List", "None")
DEFAULTS = (0, 1, 1, 0)  # what stands for a missing yes (1) or no (0), by the question's place in its file
_PREFIXES: Mapping[Rule, str] = {"label": "label:", "summary": "Summary:"}
_PREFIX = "Answer:"
_UNITS = (*("kg", "meters", "acres", "minutes", "miles", "mile", "feet", "million", "thousand", "billion", "mm", "m"),)
_MUST_BE_FOUND = re.compile(
    r"https://|\.(py|ipynb)$|^page|^\d+(-\d+|\s\d+)?$|(a\.m\.|p\.m\.)"
    r"|^\d{4}[-/\s]\d{1,2}[-/\s]\d{1,2}$|^\d{1,2}[-/\s]\d{1,2}[-/\s]\d{2,4}$|^\d{4}[-/\s]\d{1,2}$"
    r"|^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$"
)
_RELATIVE_TOLERANCE = 0.01


class YesNo(TypedDict):
    """Gold answer of a yes-or-no question."""

    text: str  # `Yes` or `No`
    default: int  # of `DEFAULTS`


class DocumentAnswer(TypedDict):
    """Gold answer of a question about a document."""

    text: object  # a list is JSON text
    format: Format


def score(answer: object, response: str | None, *, rule: Rule) -> float:
    """Score of one response in 0..1.

    Args:
        answer: What the rule takes: accepted texts (contains), `YesNo`, counts, index of the right option (letter),
            number of the class (label), text (summary), or `DocumentAnswer`.
        response: What the model said.
        rule: See the module.
    """
    text = read_text(response)
    if not text.strip():
        return 0.0
    prefix = _PREFIXES.get(rule, _PREFIX)
    said = prefix + text
    try:
        if rule == "yes_no":
            return _RULES[rule](answer, said)
        parsed = parse(said, prefix)
        best = _RULES[rule](answer, parsed)
        return best if rule == "document" else max(best, _RULES[rule](answer, said))
    except (ValueError, OverflowError, RecursionError):  # numbers of thousands of digits, nested lists
        return 0.0


def parse(text: str, prefix: str) -> str:
    """What follows the first `prefix` in any case, or all of the text; a prefix that is repeated is dropped once."""
    found = re.search(re.escape(prefix), text, re.IGNORECASE)
    rest = text[found.end() if found else 0 :].strip()
    return re.sub(f"^{re.escape(prefix)}", "", rest, flags=re.IGNORECASE).strip()


def score_contained(answer: object, text: str) -> float:
    """1 if an accepted answer is part of the text, both without case, punctuation and articles."""
    golds = [gold for entry in answer for gold in read_golds(entry)] if isinstance(answer, list) else read_golds(answer)
    said = _normalise(text)
    return float(any(_normalise(gold) in said for gold in golds))


def score_yes_no(answer: YesNo, text: str) -> float:
    """1 if the last yes or no of the text is the right one; where there is none, if the default is."""
    label = find_yes_no(text)
    return float((answer["default"] if label == -1 else label) == find_yes_no(answer["text"]))


def find_yes_no(text: str) -> int:
    """1 for yes, 0 for no, whichever is last; a number that is the whole text; else -1."""
    text = _drop_articles(text.lower())
    words = re.findall(r"\b(?:yes|no)\b", text)
    if words:
        return int(words[-1] == "yes")
    return int(text) if text.isdigit() else -1


def score_counts(answer: Sequence[int], text: str) -> float:
    """1 if the counts add up to the right number: the places do not matter."""
    return float(sum(find_counts(text)) == sum(answer))


def find_counts(text: str) -> list[int]:
    """The last list of whole numbers; else the last list of anything, where it is JSON; else all digits."""
    text = _drop_articles(text.lower())
    for pattern, read in ((r"\[[\d\s,]+\]", json.loads), (r"\[.*?\]", _read_whole_numbers)):
        lists = re.findall(pattern, text)
        if lists:
            try:
                counts: list[int] = read(lists[-1])
                return counts
            except json.JSONDecodeError:
                continue
    return [int(digits) for digits in re.findall(r"\d+", text)]


def _read_whole_numbers(text: str) -> list[int]:
    numbers = []
    for item in json.loads(text):
        try:
            numbers.append(int(item))
        except (ValueError, TypeError, OverflowError):
            continue
    return numbers


def score_letter(answer: int, text: str) -> float:
    """1 if the text names the right option."""
    return float(find_letter(text) == answer)


def find_letter(text: str) -> int:
    """Index of the letter A to J after `answer is` or `answer:`, else of the last one that stands alone; -1 if none."""
    text = " ".join(text.split())
    for pattern, place in ((r"answer is \(?([A-J])\)?", 0), (r"[aA]nswer:\s*([A-J])", 0), (r"\b([A-J])\b", -1)):
        letters = re.findall(pattern, text)
        if letters:
            return ord(letters[place]) - ord("A")
    return -1


def score_label(answer: int, text: str) -> float:
    """1 if the text names the right class."""
    return float(find_label(text) == answer)


def find_label(text: str) -> int:
    """The number after `label:`, else the last one that stands alone, else the first digits; -1 if there are none."""
    text = " ".join(text.split())
    for pattern, place in ((r"(?i:label:)\s*(\d+)", 0), (r"\b(\d+)\b", -1), (r"\d+", 0)):
        numbers = re.findall(pattern, text)
        if numbers:
            return int(numbers[place])
    return -1


def score_summary(answer: object, text: str) -> float:
    """ROUGE-Lsum, the best over the accepted summaries."""
    return max((score_rouge_lsum(gold, text) for gold in read_golds(answer)), default=0.0)


def score_document(answer: DocumentAnswer, text: str) -> float:
    """Score by the format of the gold answer.

    A whole number must occur among the text's numbers; a decimal one within 1 %, as it is, as percent or as a share.
    Texts score the F1 of their words, but codes, times, dates and addresses must occur literally. Of a list, texts are
    joined to one, and the score is the mean over its entries.
    """
    return _score_formatted(answer["text"], text, answer["format"])


def _score_formatted(gold: object, said: str, kind: Format) -> float:
    if kind == "List":
        scores = [_score_formatted(entry, said, _find_format(entry)) for entry in _join_texts(read_list(gold))]
        return sum(scores) / len(scores) if scores else 0.0
    if kind in ("Integer", "Float"):
        value, numbers = float(_clean(str(gold))), _find_numbers(_clean(said))
        if kind == "Integer":
            return float(any(number == value == int(value) for number in numbers))
        forms = (value / 100, value, value * 100)
        return float(any(math.isclose(f, n, rel_tol=_RELATIVE_TOLERANCE) for f in forms for n in numbers))
    text = read_text(gold)
    if _MUST_BE_FOUND.search(text):
        return float(text in said)
    return measure_word_f1(_normalise(text).split(), _normalise(said).split())


def read_list(gold: object) -> list[object]:
    """The entries of a gold list, which is JSON text. Raises ValueError for anything else."""
    entries = json.loads(str(gold))
    if not isinstance(entries, list) or not all(isinstance(entry, (str, int, float)) for entry in entries):
        raise ValueError(f"{gold!r:.80} is no JSON list of texts and numbers")
    return entries


def _join_texts(entries: list[object]) -> list[object]:
    """The entries with all free texts joined to one, in front."""
    texts = [
        entry
        for entry in entries
        if isinstance(entry, str) and _find_format(entry) == "String" and not _MUST_BE_FOUND.search(entry)
    ]
    joined = " ".join(texts).strip()
    return [joined, *(entry for entry in entries if entry not in texts)] if joined else entries


def _find_format(entry: object) -> Format:
    """The format of a list's entry; texts may be numbers."""
    if isinstance(entry, (int, float)):
        return "Integer" if isinstance(entry, int) else "Float"
    try:
        number = float(_clean(str(entry)))
        return "Integer" if number == int(number) and "%" not in str(entry) else "Float"
    except (ValueError, OverflowError):
        return "String"


def _clean(text: str) -> str:
    """Lower case without commas, units, quotes, and signs of money and percent."""
    text = text.lower().strip().replace(",", "")
    for unit in _UNITS:
        text = text.removesuffix(unit).strip()
    text = re.sub(r"^['\"]|['\"]$", "", text).strip()
    for sign in "$£%":
        text = text.strip(sign).strip()
    return text


def _find_numbers(text: str) -> list[float]:
    numbers = [float(digits) for digits in re.findall(r"-?\d+(?:\.\d*)?|-?\.\d+", text.replace(",", ""))]
    return [number for number in numbers if math.isfinite(number)]


def _normalise(text: str) -> str:
    return _drop_articles(drop_punctuation(text.lower()))


def _drop_articles(text: str) -> str:
    return " ".join(blank_articles(text).split())


_RULES: Mapping[Rule, Callable[..., float]] = {
    "contains": score_contained,
    "yes_no": score_yes_no,
    "counts": score_counts,
    "letter": score_letter,
    "label": score_label,
    "summary": score_summary,
    "document": score_document,
}
