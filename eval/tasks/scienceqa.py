"""ScienceQA test, questions with a picture (Lu et al. 2022, arXiv 2209.09513).

DATA_ROOT/scienceqa/scienceqa_test_img.jsonl         image, question, hint, choices, answer (index)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from eval.core.records import require_field
from eval.metrics import choice
from eval.metrics.protocol import Protocol
from eval.tasks.questions import OPTION_SENTENCE, QuestionFile, Record, collect_tasks, letter_options, make_image_task
from internvl.errors import DataError

VERSION = 1
SOURCE = "https://scienceqa.github.io (jsonl file: https://huggingface.co/OpenGVLab/InternVL)"


def _make_prompt(record: Record) -> str:
    hint = str(record.get("hint") or "")
    lines = [require_field(record, "question", str), letter_options(_read_choices(record)), OPTION_SENTENCE]
    return "\n".join([hint, *lines] if hint else lines)


def _read_choices(record: Record) -> list[Any]:
    choices = require_field(record, "choices", list)
    if not choices:
        raise DataError("the record has no choices, expected at least one")
    return choices


def _read_answer(record: Record, golds: Mapping[str, Any]) -> dict[str, Any]:
    options = choice.label_options(_read_choices(record))
    index = require_field(record, "answer", int)
    if not 0 <= index < len(options):
        raise DataError(f"the answer is {index}, expected an index of one of {len(options)} choices")
    return {"letter": list(options)[index], "options": options}


def _score(answer: Any, response: str, protocol: str) -> float:
    return choice.score_scienceqa(
        answer["letter"], response, options=answer["options"], protocol=cast(Protocol, protocol)
    )


FAMILY = collect_tasks(
    make_image_task(
        "scienceqa/test",
        version=VERSION,
        source=SOURCE,
        layout=QuestionFile(
            annotation=Path("scienceqa", "scienceqa_test_img.jsonl"),
            max_num=6,
            make_prompt=_make_prompt,
            read_answer=_read_answer,
            read_metadata=lambda record: {"chance": 1 / len(record["choices"])},
            id_field=None,
        ),
        max_new_tokens=100,
        score_answer=_score,
    )
)
