"""What single-picture benchmarks share: a jsonl file of questions, pictures below the data root, answers beside it.

{"image": "data/chartqa/test/png/1.png", "question": "How many?", "question_id": 1, "answer": "3"}
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.core.records import read_records, require_field
from eval.core.sample import Prediction, Sample
from eval.core.task import Task, TaskFamily, Upload
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

SHORT_SENTENCE = "Answer the question using a single word or phrase."
OPTION_SENTENCE = "Answer with the option's letter from the given choices directly."
TOKENS_PER_TILE = 256
CHARACTERS_PER_TOKEN = 4

Record = dict[str, Any]


@dataclass(frozen=True)
class QuestionFile:
    """How the lines of a jsonl file become samples.

    Attributes:
        annotation: The file, below the data root.
        max_num: Tiles per image, for the estimated cost.
        make_prompt: Record -> question as it is sent, without `<image>`.
        read_answer: (record, golds) -> gold answer, None where it is not public.
        read_golds: Data root -> answers by question id, where they are in a file of their own.
        read_metadata: Record -> further metadata.
        id_field: Field with the unique id; None: the number of the line.
        image_folder: Where pictures are whose path does not start with `data/`.
    """

    annotation: Path
    max_num: int
    make_prompt: Callable[[Record], str]
    read_answer: Callable[[Record, Mapping[str, Any]], Any]
    read_golds: Callable[[Path], Mapping[str, Any]] | None = None
    read_metadata: Callable[[Record], dict[str, Any]] = lambda record: {}
    id_field: str | None = "question_id"
    image_folder: Path = Path()


def read_questions(data_root: Path, *, layout: QuestionFile) -> list[Sample]:
    """All samples of a file.

    Raises:
        DataError: A record is wrong; the message names file and row.
    """
    path = data_root / layout.annotation
    golds = layout.read_golds(data_root) if layout.read_golds else {}
    return read_rows(path, lambda row, record: _build_sample(row, record, data_root, layout, golds))


def read_rows(path: Path, build: Callable[[int, Record], Sample]) -> list[Sample]:
    """One sample per record of a jsonl file.

    Raises:
        DataError: A record is wrong; the message names file and row.
    """
    return build_rows(path, read_records(path), build=build)


def build_rows(path: Path, records: Sequence[Record], *, build: Callable[[int, Record], Sample]) -> list[Sample]:
    """One sample per record; errors name the file and the row."""
    samples = []
    for row, record in enumerate(records):
        try:
            samples.append(build(row, record))
        except (DataError, ValueError) as error:
            raise DataError(str(error), source=str(path), row=row) from error
    return samples


def _build_sample(row: int, record: Record, data_root: Path, layout: QuestionFile, golds: Mapping[str, Any]) -> Sample:
    question = layout.make_prompt(record)
    image = find_image(require_field(record, "image", str), data_root=data_root, folder=layout.image_folder)
    sample_id = row if layout.id_field is None else require_field(record, layout.id_field, (str, int))
    return Sample(
        id=str(sample_id),
        prompt=put_images_first(question, 1),
        images=(image,),
        answer=layout.read_answer(record, golds),
        metadata={"question": question, **layout.read_metadata(record)},
        cost=estimate_cost(question, layout.max_num + 1),
    )


def put_images_first(question: str, num_images: int) -> str:
    """The question behind `<image>` and a line break; one that places its image itself stays as it is.

    Raises:
        DataError: It places another number of images.
    """
    num_placed = question.count(IMAGE_PLACEHOLDER)
    if num_placed == num_images:
        return question
    if num_placed:
        raise DataError(f"the question holds {num_placed} {IMAGE_PLACEHOLDER} for {num_images} images")
    return f"{IMAGE_PLACEHOLDER}\n" * num_images + question


def find_image(name: str, *, data_root: Path, folder: Path = Path()) -> Path:
    """Where a picture is: `data/x/1.png` is DATA_ROOT/x/1.png, other relative paths lie below `folder`."""
    path = Path(name)
    if path.parts[:1] == ("data",):
        return data_root.joinpath(*path.parts[1:])
    return data_root / folder / path


def estimate_cost(text: str, num_tiles: int) -> float:
    """Tokens of a prompt, roughly."""
    return num_tiles * TOKENS_PER_TILE + len(text) / CHARACTERS_PER_TOKEN


def ask_with(suffix: str) -> Callable[[Record], str]:
    """A prompt maker: the question, one space, the sentence; the question alone without one."""
    return lambda record: " ".join(filter(None, (require_field(record, "question", str), suffix)))


def own_answer(record: Record, golds: Mapping[str, Any]) -> Any:
    """The record's own answer: text, or a list of accepted texts.

    Raises:
        DataError: There is none.
    """
    answer = require_field(record, "answer", (str, int, float, list))
    if answer == []:
        raise DataError("the list of answers is empty, expected at least one")
    return answer


def no_answer(record: Record, golds: Mapping[str, Any]) -> None:
    """For splits whose answers are not public."""


def listed_answer(record: Record, golds: Mapping[str, Any]) -> Any:
    """The answer of the record's question id in a file of answers.

    Raises:
        DataError: The file has none.
    """
    key = str(require_field(record, "question_id", (str, int)))
    if key not in golds:
        raise DataError(f"question_id {key} is not in the file of answers; both files must be of one split")
    return golds[key]


def letter_options(options: Sequence[str]) -> str:
    """`A. first`, `B. second`, ... on lines of their own."""
    return "\n".join(f"{chr(65 + index)}. {option}" for index, option in enumerate(options))


def make_image_task(
    name: str,
    *,
    version: int,
    source: str,
    layout: QuestionFile,
    max_new_tokens: int,
    score_answer: Callable[[Any, str, str], float],
    **options: Any,
) -> Task:
    """A task on a jsonl file of questions; `options` are further fields of `Task`."""
    return Task(
        name=name,
        version=version,
        source=source,
        annotation=layout.annotation,
        read_samples=partial(read_questions, layout=layout),
        max_new_tokens=max_new_tokens,
        max_num=layout.max_num,
        score_answer=score_answer,
        protocols=("official", "upstream"),
        **options,
    )


def upload_list(name: str, **names: str) -> Upload:
    """A JSON list with an object per answer.

    Args:
        name: File name.
        **names: Key of the object -> `id`, `response`, or a field of the sample's metadata. Ids of digits become
            numbers.
    """

    def read(prediction: Prediction, field: str) -> Any:
        if field == "response":
            return prediction.response
        if field == "id":
            return int(prediction.id) if prediction.id.isdecimal() else prediction.id
        return prediction.metadata[field]

    def render(predictions: Sequence[Prediction]) -> str:
        rows = [{key: read(prediction, field) for key, field in names.items()} for prediction in predictions]
        return json.dumps(rows, ensure_ascii=False) + "\n"

    return Upload(name, render)


def collect_tasks(*tasks: Task, **options: Any) -> TaskFamily:
    """A family of tasks that do not depend on the prompt style; `options` are further fields of `TaskFamily`."""
    by_name = {task.name.partition("/")[2]: task for task in tasks}
    return TaskFamily(names=tuple(by_name), make=lambda name, prompts: by_name.get(name), **options)
