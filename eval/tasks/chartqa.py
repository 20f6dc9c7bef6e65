"""ChartQA: questions about charts, written by people and generated (Masry et al. 2022, arXiv 2203.10244).

DATA_ROOT/chartqa/test_{human,augmented}.jsonl       image, question, answer (text or list)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from eval.core.task import Task
from eval.metrics import relaxed
from eval.metrics.estimate import average_estimates, read_estimate
from eval.metrics.protocol import Protocol
from eval.tasks.questions import SHORT_SENTENCE, QuestionFile, ask_with, make_image_task, own_answer

VERSION = 1
SOURCE = "https://github.com/vis-nlp/ChartQA"
PARTS = ("human", "augmented")


def _score(answer: Any, response: str, protocol: str) -> float:
    return relaxed.score(answer, response, protocol=cast(Protocol, protocol))


def _make(part: str) -> Task:
    layout = QuestionFile(
        annotation=Path("chartqa", f"test_{part}.jsonl"),
        max_num=12,
        make_prompt=ask_with(SHORT_SENTENCE),
        read_answer=own_answer,
        id_field=None,
    )
    return make_image_task(
        f"vqa/chartqa-test-{part}",
        version=VERSION,
        source=SOURCE,
        layout=layout,
        max_new_tokens=100,
        score_answer=_score,
    )


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The published number by protocol: the mean of both parts, once both are there."""
    names = [f"chartqa-test-{part}" for part in PARTS]
    if not all(name in results for name in names):
        return {}
    return {
        protocol: vars(average_estimates([read_estimate(results[name]["results"][protocol]) for name in names]))
        for protocol in results[names[0]]["results"]
    }


TASKS = tuple(map(_make, PARTS))
