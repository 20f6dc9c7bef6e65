"""SlideVQA: F1 and equality of normalised words (`evaluate.py` of nttmdlab-nlp/SlideVQA, question answering part).

What a text is normalised to depends on its question: the word after `how many` or `which` (in lower case) is a unit and
is dropped. The steps and their order are the published ones, so `brand` is `br,`, before punctuation is dropped: `br`.
"""

from typing import TypedDict

from eval.metrics.text import NUMBERS_TO_NINETY, blank_articles, drop_punctuation, measure_word_f1, read_text

_MAX_WORD = 19  # the largest number whose word is read
_NUMBER_WORDS = {word: digits for word, digits in NUMBERS_TO_NINETY.items() if int(digits) <= _MAX_WORD}
_REPLACED = {
    **{"this is ": "", "it is ": "", "&": ",", "and": ",", "percent": "", "organisation": "organization"},
    **{"because of": "", "because": "", "due to": "", "hours": "hrs", "minites": "min"},
}


class Answer(TypedDict):
    """Gold answer, with the question that its words are read for."""

    text: object
    question: str


def score(answer: Answer, response: str | None) -> float:
    """F1 of the words, each counted as often as it occurs; 0 without a common word."""
    return measure_word_f1(*_split_both(answer, response))


def score_exact(answer: Answer, response: str | None) -> float:
    """1 if there are words and all are the same in the same order."""
    golds, saids = _split_both(answer, response)
    return float(bool(golds) and golds == saids)


def _split_both(answer: Answer, response: str | None) -> tuple[list[str], list[str]]:
    question = answer["question"]
    return normalise(read_text(answer["text"]), question).split(), normalise(read_text(response), question).split()


def normalise(text: str, question: str) -> str:
    """Lower case without fillers, unit, punctuation and articles; digits for number words; yes and no alone."""
    text = text.lower()
    for old, new in _REPLACED.items():
        text = text.replace(old, new)
    for start in ("how many", "which"):
        _, found, rest = question.partition(start)
        if found and rest.split():
            text = text.replace(rest.split()[0], "")
    text = blank_articles(drop_punctuation(text))
    words = text.split()
    if text.startswith(("yes", "no")):
        words = words[:1]
    return " ".join(_NUMBER_WORDS.get(word, word) for word in words)
