"""LongVideoBench: the letter in a response (Wu et al. 2024, arXiv 2407.15754).

The benchmark's own repository has no scorer; the rule is that of its integration into lmms-eval (0.7.3, tasks
`longvideobench_*`). Where it draws an option at random, because a response has no letter, the response is wrong here.
Accuracy is the mean over questions.
"""

import re

from eval.metrics.text import read_golds, read_text

_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)
_LETTER = re.compile("[ABCDE]")


def find_letter(response: str | None) -> str:
    """The first of A to E after the known prefixes are deleted (`Dogs` is D); empty if there is none."""
    said = read_text(response).strip()
    for prefix in _PREFIXES:
        said = said.replace(prefix, "")
    match = _LETTER.search(said)
    return match[0] if match else ""


def score(answer: object, response: str | None) -> float:
    """1 if the letter is right; a response without a letter is wrong."""
    letter = find_letter(response)
    return float(bool(letter) and letter in read_golds(answer))
