"""Shortcut check: can a sample be answered without doing its task?

Shortcuts are readers that lack what the answer follows from: one knows the question only, one reads the text but sees
no image, one sees the first image only. Without evidence they give the most frequent answer. Each has to
score at chance: at most three standard errors above it.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from internvl.synth.forms import Record

_STANDARD_ERRORS = 3.0


def contains_answer(text: str, answer: str) -> bool:
    """Whether the answer stands in the text, as whole words, in any case."""
    return bool(answer.strip()) and count_words(text, answer) > 0


def count_words(text: str, words: str) -> int:
    """How often `words` stand in the text, not as a part of longer ones, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(words.strip())}(?!\w)", text, flags=re.IGNORECASE))


@dataclass(frozen=True)
class Probe:
    """What shortcuts answer to one sample."""

    group: str  # samples among which the most frequent answer is looked for
    gold: str
    chance: float | None  # share of right guesses; None: how often two samples of the group have the same answer
    guesses: Mapping[str, str | None]  # answer of each shortcut; None: it has nothing to go by
    # By shortcut, how often it is right by luck on top of chance (the asked image is the only one)
    expected: Mapping[str, float]


@dataclass(frozen=True)
class ShortcutScore:
    """Score of a shortcut over a group of samples, and what guessing would give."""

    score: float
    chance: float
    samples: int
    at_chance: bool


def probe_item(item: Record, task: str) -> Probe:
    """What shortcuts answer to an item in MM-NIAH's form."""
    meta, answer = item["meta"], item["answer"]
    gold = json.dumps(answer)
    seen = [n for n, option in enumerate(meta.get("choices") or []) if contains_answer(item["context"], str(option))]
    guesses: dict[str, str | None] = {"question only": None}
    if task.endswith("-image"):
        guesses["text only"] = json.dumps(seen[0]) if len(seen) == 1 else None
        guesses["first image only"] = gold if item["images_list"][:1] == meta["needles"] else None
    form = "choice" if isinstance(answer, int) else "free"
    return Probe(f"{task}, {form}", gold, meta.get("chance"), guesses, {})


def probe_training_record(record: Record, task: str) -> Probe:
    """What shortcuts answer to a training record with needles."""
    facts, gold = record["metadata"], record["conversations"][1]["value"]
    guesses: dict[str, str | None] = {"question only": None}
    if task.endswith("-image"):
        guesses["first image only"] = gold if record["image"][:1] == facts["needles"] else None
    form = "choice" if len(gold) == 1 and gold.isalpha() else "free"
    return Probe(f"training, {task}, {form}", gold, facts["chance"], guesses, {})


def score_shortcuts(probes: Sequence[Probe]) -> dict[str, dict[str, ShortcutScore]]:
    """Scores by group and shortcut."""
    groups: dict[str, list[Probe]] = defaultdict(list)
    for probe in probes:
        groups[probe.group].append(probe)
    return {name: _score_group(group) for name, group in sorted(groups.items())}


def _score_group(group: Sequence[Probe]) -> dict[str, ShortcutScore]:
    number = len(group)
    golds = [probe.gold for probe in group]
    # The favourite is learned from every other sample and tried on the rest: learned from all, it would be right too
    # often among few samples.
    favourites = [_find_favourite(golds[1 - half :: 2]) for half in range(2)]
    base = sum(_find_chance(golds) if probe.chance is None else probe.chance for probe in group) / number
    scores = {}
    for shortcut in group[0].guesses:
        said = [probe.guesses[shortcut] or favourites[index % 2] for index, probe in enumerate(group)]
        right = sum(answer == gold for answer, gold in zip(said, golds, strict=True))
        chance = min(base + sum(probe.expected.get(shortcut, 0.0) for probe in group) / number, 1.0)
        error = sqrt(max(chance * (1 - chance), 1 / number / 4) / number)
        is_at_chance = right / number <= chance + _STANDARD_ERRORS * error
        scores[shortcut] = ShortcutScore(round(right / number, 4), round(chance, 4), number, is_at_chance)
    return scores


def _find_favourite(golds: Sequence[str]) -> str | None:
    counts = Counter(golds)
    return max(sorted(counts), key=counts.__getitem__, default=None)


def _find_chance(golds: Sequence[str]) -> float:
    """How often two of the answers are the same."""
    same = sum(count * (count - 1) for count in Counter(golds).values())
    return same / max(len(golds) * (len(golds) - 1), 1)
