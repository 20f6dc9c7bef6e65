"""Checks of what was built: can a sample be answered without doing its task?

Shortcuts are readers that lack what the answer follows from: one that knows the question only, one that reads the text
but sees no image, one that sees the first image only. Where they have nothing to go by they say the most frequent
answer. It is learned from every other sample and tried on the rest: among few samples the most frequent answer would be
right too often. Each has to score at chance: not above it by more than three standard errors.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

_STANDARD_ERRORS = 3.0


def contains_answer(text: str, answer: str) -> bool:
    """Whether the answer stands in the text, as whole words, in any case."""
    return bool(answer.strip()) and count_words(text, answer) > 0


def count_words(text: str, words: str) -> int:
    """How often `words` stand in the text, not as a part of longer ones, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(words.strip())}(?!\w)", text, flags=re.IGNORECASE))


@dataclass(frozen=True)
class Probe:
    """What shortcuts say to one sample.

    Attributes:
        group: Samples among which the most frequent answer is looked for.
        gold: Right answer.
        chance: Share of right guesses; None: how often two samples of the group have the same answer.
        guesses: Answer of every shortcut; None: it has nothing to go by.
        expected: By shortcut, how often it may be right by luck on top of chance (the asked image is the only one).
    """

    group: str
    gold: str
    chance: float | None
    guesses: Mapping[str, str | None]
    expected: Mapping[str, float]


def score_shortcuts(probes: list[Probe]) -> dict[str, dict[str, Any]]:
    """By group and shortcut: its score, what chance gives, and whether the score is at chance."""
    groups: dict[str, list[Probe]] = defaultdict(list)
    for probe in probes:
        groups[probe.group].append(probe)
    return {name: _score_group(group) for name, group in sorted(groups.items())}


def _score_group(group: list[Probe]) -> dict[str, Any]:
    number = len(group)
    golds = [probe.gold for probe in group]
    favourites = [_find_favourite(golds[1 - half :: 2]) for half in range(2)]  # of the samples in the other half
    base = sum(_find_chance(golds) if probe.chance is None else probe.chance for probe in group) / number
    scores: dict[str, Any] = {}
    for shortcut in group[0].guesses:
        said = [probe.guesses[shortcut] or favourites[index % 2] for index, probe in enumerate(group)]
        right = sum(answer == gold for answer, gold in zip(said, golds, strict=True))
        chance = min(base + sum(probe.expected.get(shortcut, 0.0) for probe in group) / number, 1.0)
        error = sqrt(max(chance * (1 - chance), 1 / number / 4) / number)
        scores[shortcut] = {
            "score": round(right / number, 4),
            "chance": round(chance, 4),
            "samples": number,
            "at_chance": right / number <= chance + _STANDARD_ERRORS * error,
        }
    return scores


def _find_favourite(golds: list[str]) -> str | None:
    counts = Counter(golds)
    return max(sorted(counts), key=counts.__getitem__, default=None)


def _find_chance(golds: list[str]) -> float:
    """How often two of the answers are the same."""
    same = sum(count * (count - 1) for count in Counter(golds).values())
    return same / max(len(golds) * (len(golds) - 1), 1)
