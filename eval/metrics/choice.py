"""Option letters: which one does a response name? For ScienceQA, MMBench, CCBench, AI2D, and as a robust second rule.

There are two rules. `find_letter` is VLMEvalKit's `can_infer` (without the branch for its VERBOSE variable). It is
official for MMBench, and the robust choice where published numbers used something cruder. `cut_letter` is InternVL's
and V2PE's `post_process`, kept to compare with published numbers. It accepts any first character that is the letter of
an option, so `Answer: C` is A.
"""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import TypedDict

from eval.metrics import exact
from eval.metrics.protocol import Protocol
from eval.metrics.text import read_golds, read_text

NO_ANSWER = "Z"
MAX_TOKENS_AFTER_LETTER = 4
_FAILURE = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([abcd])\**", re.IGNORECASE)
_SCIENCEQA = re.compile(r"The answer is ([A-Z]).")  # any character after the letter, as officially


class Answer(TypedDict):
    """Gold answer of a multiple-choice question: the right letter, and the text of every option by letter."""

    letter: object
    options: dict[str, str]


def label_options(texts: Sequence[object]) -> dict[str, str]:
    """Options by letter, in order. Raises ValueError if there are more options than letters."""
    if len(texts) > len(ascii_uppercase):
        raise ValueError(f"{len(texts)} options, expected at most {len(ascii_uppercase)} (one per letter)")
    return {letter: read_text(text) for letter, text in zip(ascii_uppercase, texts, strict=False)}


def score(answer: object, response: str | None, *, options: Mapping[str, object], protocol: Protocol) -> float:
    """1 if the response names the right letter: `find_letter` under `official`, `cut_letter` under `upstream`.

    Args:
        answer: Letter of the right option.
        response: What the model said; an empty response is wrong.
        options: Text of every option by letter.
        protocol: Whose rule.
    """
    find = find_letter if protocol == "official" else cut_letter
    letter = find(response, options)
    return float(bool(letter) and letter in read_golds(answer))


def score_scienceqa(
    answer: object, response: str | None, *, options: Mapping[str, object], protocol: Protocol
) -> float:
    """As `score`, but `official` first looks for ScienceQA's own sentence, `The answer is X.`."""
    if protocol == "upstream":
        return score(answer, response, options=options, protocol=protocol)
    # Without exactly one such sentence about an option, the official scorer draws an option at random.
    sentences = _SCIENCEQA.findall(read_text(response))
    is_stated = len(sentences) == 1 and sentences[0] in options
    letter = sentences[0] if is_stated else find_letter(response, options)
    return float(letter in read_golds(answer))


def score_ai2d(answer: object, response: str | None, *, options: Mapping[str, object], protocol: Protocol) -> float:
    """As `score`, but `upstream` compares the whole response with the letter."""
    if protocol == "upstream":
        return exact.score(answer, response)
    return score(answer, response, options=options, protocol=protocol)


def cut_letter(response: str | None, options: Mapping[str, object]) -> str:
    """V2PE's rule: the response if it is one character, else its first character if that labels an option.

    Otherwise the letter of the first option whose text occurs in the response, or the response itself.
    """
    said = read_text(response).strip()
    if len(said) <= 1:  # V2PE's script crashes on an empty response
        return said
    if said[0] in options:
        return said[0]
    return next((letter for letter, text in options.items() if read_text(text) in said), said)


def find_letter(response: str | None, options: Mapping[str, object]) -> str | None:
    """VLMEvalKit's rule: the letter of an option, `Z` for a refusal, None if nothing can be inferred."""
    said = read_text(response)
    if _FAILURE in said:
        return None
    if any(refusal in said for refusal in _REFUSALS):
        return NO_ANSWER
    return _find_label(said, options) or _find_stated_label(said, options) or _find_option_text(said, options)


def _find_label(said: str, options: Mapping[str, object]) -> str | None:
    """The only option letter that is a word of its own, unless more than a few words follow it."""
    tokens = said.translate(_SEPARATORS).split()
    found = [letter for letter in options if letter in tokens]
    if len(found) == 1:
        is_near_end = tokens.index(found[0]) >= len(tokens) - MAX_TOKENS_AFTER_LETTER
        return found[0] if is_near_end else None
    return NO_ANSWER if not found and NO_ANSWER in tokens else None


def _find_stated_label(said: str, options: Mapping[str, object]) -> str | None:
    match = _ANSWER_IS.search(said)
    letter = match[1].upper() if match else None
    return letter if letter in options else None


def _find_option_text(said: str, options: Mapping[str, object]) -> str | None:
    """The only option whose text occurs, if the response is not much longer than all options together."""
    texts = {letter: read_text(text) for letter, text in options.items()}
    said = said.lower()
    if len(said) > 2 * sum(map(len, texts.values())):
        return None
    found = [letter for letter, text in texts.items() if text.lower() in said]
    return found[0] if len(found) == 1 else None
