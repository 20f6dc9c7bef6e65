"""Questions about single pictures, read from a jsonl and checked: what long questions are made of."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from internvl.data.records import is_unicode
from internvl.data.storage.media import load_image
from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.corpus.paragraphs import clean_text
from internvl.synth.folders import read_annotation
from internvl.synth.questions import SHORT_ANSWER_SENTENCE
from internvl.synth.shortcuts import contains_answer

_YES_NO = ("yes", "no", "true", "false")


@dataclass(frozen=True)
class PictureQuestion:
    """A question about one picture."""

    image: str
    question: str
    answer: str


@dataclass(frozen=True)
class QuestionSet:
    """Usable questions and pictures."""

    questions: tuple[PictureQuestion, ...]  # those whose answer is not in the question
    images: tuple[str, ...]  # all pictures, each once
    dropped: Mapping[str, int]  # how many lines were left out, by cause


def read_questions(annotation: Path, images: Path) -> QuestionSet:
    """Read and check a jsonl of questions; ConfigError without the file, two pictures and a question."""
    dropped: Counter[str] = Counter()
    found = []
    is_readable = cache(lambda name: _is_readable(images / name))
    names = set()
    for line in read_annotation(annotation):
        if not line.strip():
            continue
        try:
            question = _read_question(line)
            if not is_readable(question.image):
                raise DataError("picture cannot be read")
            names.add(question.image)
            if question.answer.lower() not in _YES_NO and contains_answer(question.question, question.answer):
                raise DataError("answer in the question")
            found.append(question)
        except DataError as error:
            dropped[str(error)] += 1
    if not found or len(names) < 2:
        raise ConfigError(
            f"{annotation} has {len(found)} usable questions about {len(names)} pictures, expected at least 1 about 2; "
            f"left out: {dict(dropped)}; check --annotation and --images"
        )
    return QuestionSet(tuple(found), tuple(sorted(names)), dropped)


def _read_question(line: str) -> PictureQuestion:
    """The question of a line; DataError says why there is none."""
    try:
        record = json.loads(line)
    except ValueError:
        raise DataError("not json") from None
    image = record.get("image") if isinstance(record, dict) else None
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, str) or not image:
        raise DataError("not about one picture")
    turns = record.get("conversations")
    if isinstance(turns, list):
        said = [(turn.get("from"), turn.get("value")) for turn in turns if isinstance(turn, dict)]
        pairs = [(first[1], second[1]) for first, second in pairwise(said) if (first[0], second[0]) == ("human", "gpt")]
        question, answer = pairs[0] if pairs else (None, None)
    else:
        question, answer = record.get("question"), record.get("answer")
        answer = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(question, str) or not isinstance(answer, str | int | float):
        raise DataError("no question and answer")
    if not is_unicode(f"{image}{question}{answer}"):
        raise DataError("half of a surrogate pair in it")
    text = clean_text(question.replace(IMAGE_PLACEHOLDER, " ")).removesuffix(SHORT_ANSWER_SENTENCE).strip()
    if not text or not str(answer).strip():
        raise DataError("no question and answer")
    return PictureQuestion(image, text, str(answer).strip())


def _is_readable(path: Path) -> bool:
    try:
        load_image(path)
    except DataError:
        return False
    return True
