"""Video-MME: the letter in a response, and accuracy by kind (Fu et al. 2024, arXiv 2405.21075).

Letters are extracted as in the official `eval_your_results.py`, which misses commas in its list of prefixes. Official
accuracy leaves responses without a letter out of the denominator. `summarise` also gives the accuracy that counts them
as wrong. V2PE published a number but no script, so the `upstream` protocol has no rule of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from eval.metrics.estimate import estimate_share
from eval.metrics.text import find_first_letter, score_letter

_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",  # two prefixes each, as in the official list
    "Best answer:Best option:",
    "Answer:",
    "Option:",
    "The correct answer",
    "The correct option",
)


def find_letter(response: str | None) -> str:
    """The first of A, B, C, D after the known prefixes are deleted (`Dogs` is D); empty if there is none."""
    return find_first_letter(response, letters="ABCD", prefixes=_PREFIXES)


def score(answer: object, response: str | None) -> float:
    """1 if the letter is right; a response without a letter is wrong."""
    return score_letter(answer, find_letter(response))


@dataclass(frozen=True)
class Answered:
    """One scored question."""

    duration: str  # `short`, `medium` or `long`
    domain: str  # one of six
    sub_category: str  # one of thirty
    task_type: str  # one of twelve
    is_right: bool  # whether the letter is right
    has_letter: bool  # whether the response had one


class Table(TypedDict):
    """Numbers of one duration: by name of the kind, and overall."""

    domain: dict[str, dict[str, float]]
    sub_category: dict[str, dict[str, float]]
    task_type: dict[str, dict[str, float]]
    overall: dict[str, float]


def summarise(rows: Iterable[Answered]) -> dict[str, Table]:
    """Accuracy for every duration and `all`: by `domain`, `sub_category`, `task_type` and `overall`.

    Returns:
        Under each duration, the three tables by name and `overall`. An entry has `accuracy` (responses without a
        letter are wrong) and `official` (they are left out; 0 if no response has one) with their standard errors
        `stderr` and `official_stderr`, `count` and `num_without_letter`.
    """
    rows = list(rows)
    durations = dict.fromkeys(row.duration for row in rows)
    groups = {duration: [row for row in rows if row.duration == duration] for duration in durations} | {"all": rows}
    return {name: _summarise_group(members) for name, members in groups.items()}


def _summarise_group(rows: Sequence[Answered]) -> Table:
    return {
        "domain": _describe_each(rows, lambda row: row.domain),
        "sub_category": _describe_each(rows, lambda row: row.sub_category),
        "task_type": _describe_each(rows, lambda row: row.task_type),
        "overall": _describe(rows),
    }


def _describe_each(rows: Sequence[Answered], read_name: Callable[[Answered], str]) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(map(read_name, rows))
    return {name: _describe([row for row in rows if read_name(row) == name]) for name in names}


def _describe(rows: Sequence[Answered]) -> dict[str, float]:
    num_right = sum(row.is_right for row in rows)
    num_with_letter = sum(row.has_letter for row in rows)
    whole, with_letter = estimate_share(num_right, len(rows)), estimate_share(num_right, num_with_letter)
    return {
        "accuracy": whole.score,
        "stderr": whole.stderr,
        "official": with_letter.score,
        "official_stderr": with_letter.stderr,
        "count": len(rows),
        "num_without_letter": len(rows) - num_with_letter,
    }
