"""MileBench: 29 sets of many pictures (Song et al. 2024, arXiv 2404.18532; rule of the benchmark's `evaluate.py`).

V2PE's copy of the scorer gives the same numbers, so `score` has no protocol. The rule has one trap: an empty response
to a multiple-choice question counts as option C. `score_choice_robust` scores without it.

The benchmark's code averages no sets; `average_sets` gives both readings of the published averages.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from eval.metrics.choice import find_letter, label_options
from eval.metrics.estimate import Estimate, average_estimates
from eval.metrics.rouge import score_rouge_l
from eval.metrics.text import flatten_whitespace, read_golds, read_text, remove_punctuation

Rule = Literal["needle", "contains", "rouge", "choice"]
OPTION_OF_EMPTY = "C"
CELL_PX = 800
LEVELS = ("Few", "Medium", "Many")

# Sets by task group; the taxonomy T, S, NI is that of the official score.py, the task numbers those of the paper.
TASK_GROUPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "T": {
        "T-1": ("ActionLocalization", "ActionPrediction", "ActionSequence"),
        "T-2": ("ObjectExistence", "ObjectInteraction", "MovingAttribute", "ObjectShuffle"),
        "T-3": ("EgocentricNavigation", "MovingDirection"),
        "T-4": ("CounterfactualInference", "StateChange", "CharacterOrder", "SceneTransition"),
    },
    "S": {
        "S-1": ("WebQA", "TQA", "MultiModalQA", "WikiVQA"),
        "S-2": ("SlideVQA", "OCR-VQA", "DocVQA"),
        "S-3": ("Spot-the-Diff", "CLEVR-Change", "IEdit"),
        "S-4": ("MMCoQA", "ALFRED"),
        "S-5": ("nuscenes",),
    },
    "NI": {"N-1": ("TextNeedleInAHaystack",), "N-2": ("ImageNeedleInAHaystack",), "I-1": ("GPR1200",)},
}
SETS: tuple[str, ...] = tuple(name for tasks in TASK_GROUPS.values() for names in tasks.values() for name in names)


def find_rule(set_name: str, question_type: str) -> Rule:
    """Which rule scores a set, from its name and the question type in its file (`open-ended` or `multi-choice`).

    Raises:
        ValueError: Another question type.
    """
    if "NeedleInAHaystack" in set_name:
        return "needle"
    if "MMCoQA" in set_name:
        return "contains"
    if question_type == "open-ended":
        return "rouge"
    if question_type == "multi-choice":
        return "choice"
    raise ValueError(f"question type of {set_name} is {question_type!r}, expected open-ended or multi-choice")


def score(answer: object, response: str | None, *, rule: Rule, choices: Sequence[object] = ()) -> float:
    """Score of one response by the official rule: 0 or 1, for `rouge` 0..1.

    Args:
        answer: One accepted text or several; for `choice` each is one of `choices`.
        response: What the model said.
        rule: See `find_rule`.
        choices: Texts of the options, without letters.

    Raises:
        ValueError: The answer is not among the choices.
    """
    return max((_score_one(gold, response, rule, choices) for gold in read_golds(answer)), default=0.0)


def _score_one(answer: str, response: str | None, rule: Rule, choices: Sequence[object]) -> float:
    if rule == "choice":
        return score_choice(answer, response, choices=choices)
    gold, said = process(answer), process(response)
    if rule == "rouge":
        return score_rouge_l(gold, said)
    return float(gold in said.split() if rule == "needle" else gold in said)


def process(text: object) -> str:
    """Lower case on one line, without punctuation and without quotation marks around the text."""
    return remove_punctuation(flatten_whitespace(read_text(text))).strip("'").strip('"').strip().lower()


def score_choice(answer: object, response: str | None, *, choices: Sequence[object]) -> float:
    """1 if `match_option` gives the label of the first option that equals the answer."""
    texts = [process(choice) for choice in choices]
    return float(match_option(process(response), texts) == label_option(_find_answer(answer, texts)))


def _find_answer(answer: object, texts: Sequence[str]) -> int:
    gold = process(answer)
    if gold not in texts:
        raise ValueError(f"the answer {gold!r} is not among the {len(texts)} choices: {', '.join(texts)[:200]}")
    return texts.index(gold)


def label_option(index: int) -> str:
    """A ... Z, AA ... AZ, BA ... BZ; after that the characters after Z (`B[`), as officially."""
    if index < 26:
        return chr(65 + index)
    return "A" + chr(65 + index - 26) if index < 52 else "B" + chr(65 + index - 52)


def match_option(said: str, texts: Sequence[str]) -> str:
    """Official `match_choice` on processed texts.

    1. the first character of the leftmost `label text`
    2. the label of the leftmost option text, spaces ignored (the earlier of two options at one place)
    3. the response, if it is a label
    4. all characters that are labels, joined, which may equal no label

    An empty response is `C`.
    """
    if not said:
        return OPTION_OF_EMPTY
    labels = {label_option(index): text for index, text in enumerate(texts)}
    labelled = _find_leftmost(said, [process(f"{label} {text}") for label, text in labels.items()])
    if labelled:
        return labelled[0].upper()
    compact = {label: text.replace(" ", "") for label, text in zip(labels, map(process, texts), strict=True)}
    hit = _find_leftmost(said.replace(" ", ""), list(compact.values()))
    # The official code compares with the escaped text, so options with special characters of regular expressions fail.
    if hit is not None and not _SPECIAL.intersection(hit):
        for label, text in compact.items():
            if text == hit.strip():
                return label
    if len(said) <= 2 and said.upper() in labels:
        return said.upper()
    return "".join(character.upper() for character in said if character.upper() in labels)


_SPECIAL = frozenset("\\.^$*+?{}[]|()")


def _find_leftmost(text: str, candidates: Sequence[str]) -> str | None:
    """The candidate that occurs first in the text; of two at one place, the one listed first."""
    places = [(text.find(candidate), order) for order, candidate in enumerate(candidates) if candidate in text]
    return candidates[min(places)[1]] if places else None


def score_choice_robust(answer: object, response: str | None, *, choices: Sequence[object]) -> float:
    """1 if the response is the text of a right option or names its letter (`find_letter`); empty is wrong."""
    texts = [process(choice) for choice in choices]
    indices, said = {_find_answer(gold, texts) for gold in read_golds(answer)}, process(response)
    if not said:
        return 0.0
    if said in texts:
        return float(texts.index(said) in indices)
    letter = find_letter(response, label_options(choices)) if len(texts) <= 26 else said.upper()
    return float(letter in [label_option(index) for index in indices])


def find_level(num_images: int) -> str:
    """`Few` (below 6), `Medium` (6 to 31) or `Many` pictures."""
    return LEVELS[0] if num_images < 6 else LEVELS[1] if num_images <= 31 else LEVELS[2]


def average_sets(scores: Mapping[str, Estimate]) -> dict[str, dict[str, Estimate | None]]:
    """T, S, NI and their mean, by both readings of the published table, from the score of every set.

    Returns:
        `by_set` (mean over the sets of a group) and `by_task` (mean over the group's tasks, each the mean of its
        sets). Each has `T`, `S`, `NI` and `average`; None where a set is missing.
    """
    return {
        "by_set": _average(scores, lambda tasks: [scores[name] for names in tasks.values() for name in names]),
        "by_task": _average(
            scores, lambda tasks: [average_estimates([scores[name] for name in names]) for names in tasks.values()]
        ),
    }


def _average(
    scores: Mapping[str, Estimate], read_group: Callable[[Mapping[str, Sequence[str]]], list[Estimate]]
) -> dict[str, Estimate | None]:
    averages: dict[str, Estimate | None] = {}
    for group, tasks in TASK_GROUPS.items():
        is_complete = all(name in scores for names in tasks.values() for name in names)
        averages[group] = average_estimates(read_group(tasks)) if is_complete else None
    known = [value for value in averages.values() if value is not None]
    return averages | {"average": average_estimates(known) if len(known) == len(TASK_GROUPS) else None}


def plan_canvases(num_images: int, *, max_images: int) -> list[tuple[int, tuple[int, int]]]:
    """The combined-image setting: `(number of pictures, (width, height) in px)` of every canvas.

    5 pictures on one canvas:   1 2 3      cells of 800 x 800 px, row by row, the rest black
                                4 5
    """
    per_canvas = (num_images - 1) // max_images + 1
    groups = [min(per_canvas, num_images - start) for start in range(0, num_images, max(per_canvas, 1))]
    return [(group, _measure_canvas(group)) for group in groups]


def _measure_canvas(num_cells: int) -> tuple[int, int]:
    num_columns = math.isqrt(num_cells - 1) + 1
    return CELL_PX * num_columns, CELL_PX * -(-num_cells // num_columns)
