"""OCR-VQA: questions about book covers (Mishra et al. 2019).

DATA_ROOT/ocrvqa/ocrvqa_{val,test}.jsonl             image, question, answer
"""

from pathlib import Path
from typing import Any

from eval.metrics import exact
from eval.tasks.questions import SHORT_SENTENCE, QuestionFile, ask_with, make_image_task, own_answer

VERSION = 1
SOURCE = "https://ocr-vqa.github.io"


def _score(answer: Any, response: str, protocol: str) -> float:
    return exact.score(answer, response)


TASKS = tuple(
    make_image_task(
        f"vqa/ocrvqa-{split}",
        version=VERSION,
        source=SOURCE,
        layout=QuestionFile(
            annotation=Path("ocrvqa", f"ocrvqa_{split}.jsonl"),
            max_num=6,
            make_prompt=ask_with(SHORT_SENTENCE),
            read_answer=own_answer,
            id_field=None,
        ),
        max_new_tokens=100,
        score_answer=_score,
    )
    for split in ("val", "test")
)
