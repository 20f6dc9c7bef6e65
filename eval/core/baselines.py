"""What a score is worth: the same questions answered without looking at them, scored by the task's own rule.

Three kinds of blind answers: nothing at all, the same option letter everywhere, and the most common gold answer
everywhere. A rule that gives them points (MVBench's official rule takes an empty answer for a right one) shows here.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from eval.core.sample import Prediction

MIN_LETTERS = 4
MAX_QUESTIONS = 20_000  # of a larger set so many are taken, evenly spread


def measure_floors(
    predictions: Sequence[Prediction], measure: Callable[[Sequence[Prediction]], float]
) -> dict[str, Any]:
    """Scores of blind answers to the questions of some predictions.

    Args:
        predictions: All predictions of a task; their responses do not matter.
        measure: Predictions -> score of the task.

    Returns:
        `count` (questions that were taken), `empty` (score), `letters` (score by letter, `A` to `D` or as many as a
        question has options), `letter` (the best of them: `response`, `score`), `majority` (the most common gold
        answer: `response`, `score`; None where no gold answer is there twice).
    """
    step = max(1.0, len(predictions) / MAX_QUESTIONS)
    taken = [predictions[int(place * step)] for place in range(min(len(predictions), MAX_QUESTIONS))]

    def measure_constant(response: str) -> float:
        return measure([replace(prediction, response=response, failure=None) for prediction in taken])

    letters = {letter: measure_constant(letter) for letter in list_letters(taken)}
    best = max(letters, key=lambda letter: letters[letter])
    majority = find_majority(taken)
    return {
        "count": len(taken),
        "empty": measure_constant(""),
        "letter": {"response": best, "score": letters[best]},
        "letters": letters,
        "majority": None if majority is None else {"response": majority, "score": measure_constant(majority)},
    }


def list_letters(predictions: Sequence[Prediction]) -> str:
    """Letters of the options: at least `ABCD`, more where the chance level of a question says so."""
    chances = [prediction.metadata.get("chance") for prediction in predictions]
    num_options = max((round(1 / chance) for chance in chances if chance), default=0)
    return ascii_uppercase[: max(MIN_LETTERS, min(num_options, len(ascii_uppercase)))]


def find_majority(predictions: Sequence[Prediction]) -> str | None:
    """The gold answer of most questions as a model would say it (the first of equals); None when all differ."""
    golds = [name_gold(prediction.answer) for prediction in predictions]
    counts = Counter(gold for gold in golds if gold is not None)
    return next((gold for gold, count in counts.most_common(1) if count > 1), None)


def name_gold(answer: Any) -> str | None:
    """A gold answer in words; None where it has no single form.

    An option index becomes its letter, a list of numbers JSON (the form of counting answers), a list of accepted texts
    its most common one, an object its `letter`, `text` or `answer`.
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
