"""LongVideoBench: the letter in a response (Wu et al. 2024, arXiv 2407.15754).

The benchmark's own repository has no scorer; the rule is that of its integration into lmms-eval (0.7.3, tasks
`longvideobench_*`). Where it draws an option at random, because a response has no letter, the response is wrong here.
Accuracy is the mean over questions.
"""

from eval.metrics.text import find_first_letter, score_letter

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


def find_letter(response: str | None) -> str:
    """The first of A to E after the known prefixes are deleted (`Dogs` is D); empty if there is none."""
    return find_first_letter(response, letters="ABCDE", prefixes=_PREFIXES)


def score(answer: object, response: str | None) -> float:
    """1 if the letter is right; a response without a letter is wrong."""
    return score_letter(answer, find_letter(response))
