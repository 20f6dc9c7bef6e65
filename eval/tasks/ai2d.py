"""AI2D: multiple-choice questions about school diagrams (Kembhavi et al. 2016, arXiv 1603.07396).

DATA_ROOT/ai2diagram/test_vlmevalkit.jsonl           image, question (with options and instruction), answer (letter)
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from eval.metrics import choice
from eval.metrics.protocol import Protocol
from eval.tasks.questions import QuestionFile, Record, ask_with, make_image_task, own_answer

VERSION = 1
SOURCE = "https://huggingface.co/OpenGVLab/InternVL (ai2diagram; pictures from https://allenai.org/data/diagrams)"
_OPTION = re.compile(r"^([A-Z])[.:)] *(.*)$", re.MULTILINE)


def _read_answer(record: Record, golds: Mapping[str, Any]) -> dict[str, Any]:
    """The letter, and the options that the lines of the question name."""
    return {"letter": own_answer(record, golds), "options": dict(_OPTION.findall(record["question"]))}


def _count_options(record: Record) -> dict[str, Any]:
    options = _OPTION.findall(record["question"])
    return {"chance": 1 / len(options)} if options else {}


def _score(answer: Any, response: str, protocol: str) -> float:
    return choice.score_ai2d(answer["letter"], response, options=answer["options"], protocol=cast(Protocol, protocol))


TASKS = (
    make_image_task(
        "vqa/ai2d-test",
        version=VERSION,
        source=SOURCE,
        layout=QuestionFile(
            annotation=Path("ai2diagram", "test_vlmevalkit.jsonl"),
            max_num=6,
            make_prompt=ask_with(""),
            read_answer=_read_answer,
            read_metadata=_count_options,
            id_field=None,
        ),
        max_new_tokens=10,
        score_answer=_score,
    ),
)
