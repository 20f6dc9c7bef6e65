"""What benchmarks share: questions about one picture, option lists, file uploads, families of tasks and their averages.

Most benchmarks are a jsonl file of questions about one picture each. Such a benchmark says which fields a line has and
what is asked about it; the rest happens here:

    line --parse_record--> record --ask--> Question --read_questions--> Sample

docs/decisions/adding_a_benchmark.md has a whole example.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import read_records
from eval.core.sample import Prediction, Sample
from eval.core.task import Task, TaskFamily, Upload
from eval.metrics.choice import label_options
from eval.metrics.estimate import average_estimates, read_estimate
from eval.metrics.protocol import PROTOCOLS, Protocol
from internvl.data.natural_order import natural_key
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

SHORT_SENTENCE = "Answer the question using a single word or phrase."
OPTION_SENTENCE = "Answer with the option's letter from the given choices directly."
TOKENS_PER_TILE = 256
CHARACTERS_PER_TOKEN = 4

A = TypeVar("A")
R = TypeVar("R")
Rule = Callable[[A, str, Protocol], float]  # gold answer, response, protocol -> score in 0..1
Results = Mapping[str, Mapping[str, Any]]  # contents of scores.json by name of the task, without the group


@dataclass(frozen=True)
class Question:
    """One question about one picture."""

    image: str  # path of the picture, see `find_media`
    text: str  # the question as it is sent, without `<image>`
    answer: object = None  # gold answer; None where it is not public or stands in a file of answers
    id: str | int | None = None  # unique within the file; None for the number of the line
    metadata: Mapping[str, object] = field(default_factory=dict)  # what scoring and reports need later


@dataclass(frozen=True)
class QuestionFile(Generic[R]):
    """A jsonl file whose lines are questions about one picture."""

    file: str  # path below the data root
    record: type[R]  # dataclass of a line; its annotations are checked
    ask: Callable[[R], Question]  # line -> question
    max_num: int  # tiles per image
    answer_file: str | None = None  # where answers are in a file of their own
    read_answers: Callable[[Path], Mapping[str, object]] = lambda path: {}  # that file -> answers by question id
    needs_answer_file: bool = True  # False: without it, answers are those of `ask`
    image_folder: str = ""  # folder of pictures whose path does not start with `data/`


@dataclass(frozen=True)
class QuestionRecord:
    """The usual line of a file whose answers are elsewhere or not public."""

    image: str
    question: str
    question_id: str | int


@dataclass(frozen=True)
class AnsweredRecord:
    """The usual line of a file with answers: one accepted text, or a list of them."""

    image: str
    question: str
    answer: str | int | float | list[object]


def ask_briefly(record: QuestionRecord) -> Question:
    """The question, and the request for a short answer."""
    return Question(record.image, f"{record.question} {SHORT_SENTENCE}", id=record.question_id)


def ask_answered(record: AnsweredRecord) -> Question:
    """As `ask_briefly`, with the line's own answer. Raises DataError for an empty list of answers."""
    if record.answer == []:
        raise DataError("the list of answers is empty, expected at least one")
    return Question(record.image, f"{record.question} {SHORT_SENTENCE}", record.answer)


def read_questions(data_root: Root, *, questions: QuestionFile[R]) -> list[Sample]:
    """All samples of a file. Raises DataError for a bad record."""
    answer_file = None if questions.answer_file is None else data_root / questions.answer_file
    if answer_file is not None and not questions.needs_answer_file and not answer_file.is_file():
        answer_file = None
    answers = None if answer_file is None else questions.read_answers(answer_file)
    folders = (data_root / questions.image_folder,) if questions.image_folder else ()

    def build(row: int, record: R) -> Sample:
        question = questions.ask(record)
        return Sample(
            id=str(row if question.id is None else question.id),
            prompt=put_images_first(question.text, 1),
            images=(find_media(question.image, data_root, folders),),
            answer=question.answer if answers is None else _find_answer(answers, str(question.id)),
            metadata={"question": question.text, **question.metadata},
            cost=estimate_cost(question.text, questions.max_num + 1),  # one more: the thumbnail
        )

    path = data_root / questions.file
    return parse_rows(path, read_records(path), questions.record, build)


def _find_answer(answers: Mapping[str, object], question_id: str) -> object:
    if question_id not in answers:
        raise DataError(f"question_id {question_id} is not in the file of answers; both files must be of one split")
    return answers[question_id]


def put_images_first(question: str, num_images: int) -> str:
    """The question after a line of `<image>` per image; one that places all its images itself stays as it is."""
    num_placed = question.count(IMAGE_PLACEHOLDER)
    if num_placed == num_images:
        return question
    if num_placed:
        raise DataError(f"the question holds {num_placed} {IMAGE_PLACEHOLDER} for {num_images} images")
    return f"{IMAGE_PLACEHOLDER}\n" * num_images + question


def estimate_cost(text: str, num_tiles: int) -> float:
    """Rough number of prompt tokens: orders the queue, and bins scores by length where a benchmark has no lengths."""
    return num_tiles * TOKENS_PER_TILE + len(text) / CHARACTERS_PER_TOKEN


def letter_options(options: Sequence[object]) -> str:
    """`A. first`, `B. second`, ... on lines of their own. Raises ValueError if there are more options than letters."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(label_options(options), options, strict=True))


def use_one_rule(score: Callable[[A, str], float]) -> Rule[A]:
    """The scorer of a benchmark whose rule is the same under every protocol."""
    return lambda answer, response, protocol: score(answer, response)


def make_image_task(
    name: str,
    questions: QuestionFile[R],
    *,
    version: int,
    source: str,
    max_new_tokens: int,
    score_answer: Rule[Any],
    **options: Any,
) -> Task:
    """A task on a file of questions; `options` are further fields of `Task`."""
    answer_files = () if questions.answer_file is None else (Path(questions.answer_file),)
    return Task(
        name=name,
        version=version,
        source=source,
        annotation=Path(questions.file),
        read_samples=partial(read_questions, questions=questions),
        max_new_tokens=max_new_tokens,
        max_num=questions.max_num,
        score_answer=score_answer,
        protocols=PROTOCOLS,
        more_files=answer_files if questions.needs_answer_file else (),
        optional_files=() if questions.needs_answer_file else answer_files,
        **options,
    )


def upload_list(**names: str) -> Upload:
    """`upload.json`: a JSON list with one object per answer.

    Args:
        **names: Key of the object -> `id`, `response`, or a field of the sample's metadata. Ids that consist of digits
            are written as numbers.
    """

    def read(prediction: Prediction, field: str) -> object:
        if field == "response":
            return prediction.response
        if field == "id":
            return int(prediction.id) if prediction.id.isdecimal() else prediction.id
        return prediction.metadata[field]

    def render(predictions: Sequence[Prediction]) -> str:
        rows = [{key: read(prediction, field) for key, field in names.items()} for prediction in predictions]
        return json.dumps(rows, ensure_ascii=False) + "\n"

    return Upload("upload.json", render)


def collect_tasks(
    tasks: Iterable[Task], *, summarise: Callable[[Results], dict[str, object]] = lambda results: {}
) -> TaskFamily:
    """A family of tasks that do not depend on the prompt style."""
    by_name = {task.name.partition("/")[2]: task for task in tasks}
    return TaskFamily(names=tuple(by_name), make=lambda name, prompts: by_name.get(name), summarise=summarise)


def find_numbers(results: Results, names: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    """The numbers of some tasks by protocol, in the order of `names`; empty unless every task is there."""
    if not all(name in results for name in names):
        return {}
    return {
        protocol: [results[name]["results"][protocol] for name in names] for protocol in results[names[0]]["results"]
    }


def average_tasks(results: Results, names: Sequence[str]) -> dict[str, object]:
    """Mean over some tasks by protocol, with its standard error; empty unless every task is there."""
    numbers = find_numbers(results, names)
    return {protocol: vars(average_estimates(list(map(read_estimate, rows)))) for protocol, rows in numbers.items()}


def order_label(label: str) -> list[tuple[str, float]]:
    """Sorting key of names of bins, and of any names with numbers: `<1 min`, `1-3 min`, `10+ min`."""
    return natural_key(label.removeprefix("<"), decimals=True)
