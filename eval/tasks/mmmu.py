"""MMMU: college questions of thirty subjects, with one to seven pictures (Yue et al. 2023, arXiv 2311.16502).

    DATA_ROOT/MMMU/{dev,validation,test}.jsonl           id, question, options, answer, question_type, image_1 ...
    DATA_ROOT/MMMU/images/                               pictures; image_1 ... hold paths below DATA_ROOT/MMMU

A split that is not there is fetched from the hub (eval/convert/mmmu.py) when it is evaluated.

`options` is a list, or its Python text as published. Prompts: `upstream` names every picture before the question, as
V2PE does with visual positions, and with ordinary positions has one `<image>` for the tiles of all pictures; it shows
the first one doubled in size and gives the others one tile. `official` puts the pictures alone before the question, all
with the same tile limit. `<image 1>` in a question stays text.
"""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

from eval.convert.mmmu import MAX_IMAGES, fetch_split
from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import read_records
from eval.core.sample import EnlargedImage, Prediction, Sample
from eval.core.task import Scored, Task, TaskFamily, Upload
from eval.metrics import choice, mmmu
from eval.metrics.estimate import estimate_share
from eval.metrics.protocol import PROTOCOLS, Protocol
from eval.tasks.questions import OPTION_SENTENCE, SHORT_SENTENCE, estimate_cost, letter_options
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

FOLDER = Path("MMMU")
FILES = {"dev": "dev.jsonl", "val": "validation.jsonl", "test": "test.jsonl"}
MAX_NUM = 6
NO_ANSWER = "?"  # what the test split holds instead


class _Answer(TypedDict):
    text: object
    options: dict[str, str]


@dataclass(frozen=True)
class _Record:
    id: str
    question: str
    options: str | list[object]
    question_type: str
    answer: object = None
    image_1: object = None
    image_2: object = None
    image_3: object = None
    image_4: object = None
    image_5: object = None
    image_6: object = None
    image_7: object = None

    def list_images(self, folder: Path) -> list[Path]:
        """The pictures, in order."""
        names = [getattr(self, f"image_{number}") for number in range(1, MAX_IMAGES + 1)]
        return [find_media(str(name), folder) for name in names if name]


def read_samples(data_root: Root, *, annotation: Path, prompts: str) -> list[Sample]:
    """All samples of a split. Raises DataError for a bad record."""
    path, folder = data_root / annotation, data_root / FOLDER
    return parse_rows(path, read_records(path), _Record, lambda _, record: _build(record, folder, prompts))


def _build(record: _Record, folder: Path, prompts: str) -> Sample:
    files = record.list_images(folder)
    if not files:
        raise DataError("the record has no image_1")
    options = choice.label_options(_read_list(record.options, "options"))
    is_open = record.question_type == "open"
    if bool(options) == is_open:
        raise DataError(f"question_type is {record.question_type!r} with {len(options)} options")
    lines = [record.question.strip()]
    lines += [SHORT_SENTENCE] if is_open else [letter_options(list(options.values())), OPTION_SENTENCE]
    question = "\n".join(lines)
    is_upstream = prompts == "upstream"
    return Sample(
        id=record.id,
        prompt=f"{_place_images(len(files), prompts)}\n{question}",
        images=(EnlargedImage(files[0], 2), *files[1:]) if is_upstream else tuple(files),
        answer=_read_answer(record.answer, options),
        metadata={
            "id": record.id,
            "question": question,
            "options": options,
            **({"chance": 1 / len(options)} if options else {}),
        },
        cost=estimate_cost(question, (MAX_NUM + 1) * len(files)),
        tile_limits=(None, *([1] * (len(files) - 1))) if is_upstream else (),
        joined_prompt=f"{IMAGE_PLACEHOLDER}\n{question}" if is_upstream else None,
    )


def _place_images(num_images: int, prompts: str) -> str:
    if prompts == "official":
        return IMAGE_PLACEHOLDER * num_images
    return ", ".join(f"The <image {number}> is {IMAGE_PLACEHOLDER}" for number in range(1, num_images + 1))


def _read_list(value: object, name: str) -> list[object]:
    """A list, or the list that Python text stands for; the text is never run."""
    try:
        parsed = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError) as error:
        raise DataError(f"the field {name!r} is not a list: {value!r}") from error
    if not isinstance(parsed, list):
        raise DataError(f"the field {name!r} is a {type(parsed).__name__}, expected a list")
    return parsed


def _read_answer(answer: object, options: dict[str, str]) -> _Answer | None:
    if answer in (None, "", NO_ANSWER):
        return None
    if not options and isinstance(answer, str) and answer.startswith("["):
        answer = _read_list(answer, "answer")
    if options and answer not in tuple(options):
        raise DataError(f"the answer is {answer!r}, expected one of {', '.join(options)}")
    return {"text": answer, "options": dict(options)}


def _score(answer: _Answer, response: str, protocol: Protocol) -> float:
    """The letter, or an open answer."""
    return mmmu.score(answer["text"], response, options=answer["options"], protocol=protocol)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """Accuracy by domain and subject, as officially, with standard errors."""
    table = mmmu.summarise([(item.metadata["id"], item.score) for item in scored])
    spreads = {name: estimate_share(entry["acc"] * entry["num"], int(entry["num"])) for name, entry in table.items()}
    return {"by_subject": {name: {**entry, "stderr": spreads[name].stderr} for name, entry in table.items()}}


def _render_upload(predictions: Sequence[Prediction]) -> str:
    """Letters by id, as the server accepts them; responses to open questions as they are."""
    answers = {}
    for prediction in predictions:
        options = prediction.metadata["options"]
        letter = mmmu.find_option(prediction.response, options) if options else None
        answers[prediction.id] = letter or prediction.response
    return json.dumps(answers, ensure_ascii=False, indent=1) + "\n"


def make_task(name: str, prompts: str) -> Task | None:
    """The task of a split."""
    if name not in FILES:
        return None
    annotation = FOLDER / FILES[name]
    return Task(
        name=f"mmmu/{name}",
        version=2,
        source="https://huggingface.co/datasets/MMMU/MMMU",
        annotation=annotation,
        read_samples=partial(read_samples, annotation=annotation, prompts=prompts),
        max_new_tokens=10,
        max_num=MAX_NUM,
        score_answer=_score,
        protocols=PROTOCOLS,
        aggregate=aggregate,
        details={"prompts": prompts},
        fetch=partial(fetch_split, annotation.stem),
        uploads=(Upload("upload.json", _render_upload),) if name == "test" else (),
    )


FAMILY = TaskFamily(names=tuple(FILES), make=make_task)
