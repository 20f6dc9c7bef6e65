"""Baselines: the scores of constant answers, which tell what a score is worth.

Every question is answered without looking at it: with nothing, with the same option letter everywhere, and with the
most common gold answer. The task's own rule scores these answers, so a rule that rewards them shows: MVBench's official
rule takes an empty answer for a right one.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

from eval.core.sample import Gold, Prediction

MIN_LETTERS = 4
MAX_QUESTIONS = 20_000  # of larger sets, this many are taken, evenly spread


@dataclass(frozen=True)
class ConstantAnswer:
    """The same answer to all questions, and its score."""

    response: str
    score: float


@dataclass(frozen=True)
class Baselines:
    """Scores of constant answers, in the order in which scores.json has them."""

    count: int  # questions that were taken
    empty: float  # score of saying nothing
    letter: ConstantAnswer  # the best letter
    letters: Mapping[str, float]  # score by letter, `A` to `D` or as many as a question has options
    majority: ConstantAnswer | None  # the most common gold answer; None where no gold answer occurs twice


def measure_baselines(predictions: Sequence[Prediction], measure: Callable[[Sequence[Prediction]], float]) -> Baselines:
    """Scores of constant answers.

    `measure`: predictions -> score of the task. The responses in `predictions` do not matter.
    """
    step = max(1.0, len(predictions) / MAX_QUESTIONS)
    taken = [predictions[int(place * step)] for place in range(min(len(predictions), MAX_QUESTIONS))]

    def measure_constant(response: str) -> float:
        return measure([replace(prediction, response=response, failure=None) for prediction in taken])

    letters = {letter: measure_constant(letter) for letter in list_letters(taken)}
    best = max(letters, key=lambda letter: letters[letter])
    majority = find_majority(taken)
    return Baselines(
        count=len(taken),
        empty=measure_constant(""),
        letter=ConstantAnswer(best, letters[best]),
        letters=letters,
        majority=None if majority is None else ConstantAnswer(majority, measure_constant(majority)),
    )


def list_letters(predictions: Sequence[Prediction]) -> str:
    """Letters of the options: `ABCD`, or more where the chance level of a question implies more options."""
    chances = [prediction.metadata.get("chance") for prediction in predictions]
    num_options = max((round(1 / chance) for chance in chances if chance), default=0)
    return ascii_uppercase[: max(MIN_LETTERS, min(num_options, len(ascii_uppercase)))]


def find_majority(predictions: Sequence[Prediction]) -> str | None:
    """The most common gold answer as a model would say it (the first of equals); None when all differ."""
    golds = [name_gold(prediction.answer) for prediction in predictions]
    counts = Counter(gold for gold in golds if gold is not None)
    return next((gold for gold, count in counts.most_common(1) if count > 1), None)


def name_gold(answer: Gold) -> str | None:
    """A gold answer in words; None where it has no single form.

    An option index becomes its letter, and a list of numbers becomes JSON (the form of counting answers). Of a list of
    accepted texts the most common one is taken, and of an object its `letter`, `text` or `answer`.
    """
    if isinstance(answer, str):
        return answer
    if isinstance(answer, bool) or answer is None:
        return None
    if isinstance(answer, int):
        return ascii_uppercase[answer] if 0 <= answer < len(ascii_uppercase) else str(answer)
    if isinstance(answer, float):
        return str(answer)
    if isinstance(answer, Mapping):
        return next((name_gold(answer[key]) for key in ("letter", "text", "answer") if key in answer), None)
    if isinstance(answer, Sequence) and answer:
        if all(isinstance(entry, str) for entry in answer):
            return Counter(answer).most_common(1)[0][0]
        return json.dumps(list(answer))
    return None
