"""A question about a context: its answer, its options, and its wording in training and evaluation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from internvl.model.constants import IMAGE_PLACEHOLDER

# The closing sentences of evaluation: a model is trained on the prompts that it will be asked.
SHORT_ANSWER_SENTENCE = "Answer the question using a single word or phrase."
OPTION_SENTENCE = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Question:
    """A question, its answer and its options."""

    text: str  # the question, without options
    answer: str | list[int]  # text, or counts in the order of the needles
    asked: tuple[int, ...]  # numbers of the needles that the answer follows from
    # Texts in which the right one is `answer`; None stands for an image; empty for a free answer
    options: tuple[str | None, ...] = ()
    right: int = 0  # number of the right option
    # Share of right answers of a reader that knows the question only; None where that has no meaning
    chance: float | None = None

    @property
    def gold(self) -> str | int | list[int]:
        """The answer as MM-NIAH's files hold it: text, number of the option, or counts."""
        return self.right if self.options else self.answer

    @property
    def has_image_options(self) -> bool:
        """Whether the options are images."""
        return None in self.options


def write_question(question: Question) -> str:
    """The question with options and closing sentence."""
    if question.options:
        return f"{question.text}{_write_options(question.options)}\n{OPTION_SENTENCE}"
    # Lists of counts say in the question itself how to answer.
    return question.text if isinstance(question.answer, list) else f"{question.text}\n{SHORT_ANSWER_SENTENCE}"


def _write_options(options: Sequence[str | None]) -> str:
    shown = (IMAGE_PLACEHOLDER if option is None else option for option in options)
    return "".join(f"\n{letter}. {option}" for letter, option in zip(ascii_uppercase, shown, strict=False))


def write_answer(question: Question) -> str:
    """The answer as a model should write it."""
    if question.options:
        return ascii_uppercase[question.right]
    return json.dumps(question.answer) if isinstance(question.answer, list) else question.answer
