"""GQA test-dev (balanced): compositional questions about photographs (Hudson and Manning 2019, arXiv 1902.09506).

DATA_ROOT/gqa/test_balanced.jsonl                                     image, question, question_id, answer
DATA_ROOT/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl            the same questions in LLaVA's form
DATA_ROOT/gqa/testdev_balanced_questions.json                         by question id: answer, types
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.core.records import read_json, require_field
from eval.core.task import Scored, Task
from eval.metrics import exact
from eval.metrics.estimate import estimate_groups
from eval.tasks.questions import SHORT_SENTENCE, QuestionFile, ask_with, listed_answer, make_image_task
from internvl.errors import DataError

VERSION = 1
SOURCE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
QUESTIONS = Path("gqa", "testdev_balanced_questions.json")


def read_golds(data_root: Path) -> Mapping[str, dict[str, str]]:
    """Answer and kind (`binary` or `open`) by question id."""
    golds = {}
    for key, entry in read_json(data_root / QUESTIONS, dict).items():
        try:
            structure = require_field(require_field(entry, "types", dict), "structural", str)
            kind = "open" if structure == "query" else "binary"
            golds[str(key)] = {"text": require_field(entry, "answer", str), "kind": kind}
        except DataError as error:
            raise DataError(f"question {key}: {error}", source=str(data_root / QUESTIONS)) from error
    return golds


def _score(answer: Any, response: str, protocol: str) -> float:
    return exact.score_gqa(answer["text"], response)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, Any]:
    """Accuracy on yes-or-no and choice questions (`binary`) and on all others (`open`)."""
    return {"by_kind": estimate_groups((item.answer["kind"], item.score) for item in scored)}


def _make(name: str, file: str) -> Task:
    layout = QuestionFile(
        annotation=Path("gqa", file),
        max_num=6,
        make_prompt=ask_with(SHORT_SENTENCE),
        read_answer=listed_answer,
        read_golds=read_golds,
    )
    return make_image_task(
        name,
        version=VERSION,
        source=SOURCE,
        layout=layout,
        max_new_tokens=10,
        score_answer=_score,
        aggregate=aggregate,
        more_files=(QUESTIONS,),
    )


TASKS = (
    _make("vqa/gqa-testdev", "llava_gqa_testdev_balanced_qwen_format.jsonl"),
    _make("vqa/gqa-testdev-balanced", "test_balanced.jsonl"),
)
