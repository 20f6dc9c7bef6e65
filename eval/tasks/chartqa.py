"""ChartQA: questions about charts, written by people and generated (Masry et al. 2022, arXiv 2203.10244).

DATA_ROOT/chartqa/test_{human,augmented}.jsonl       image, question, answer (text or list)
"""

from eval.metrics import relaxed
from eval.tasks.questions import (
    AnsweredRecord,
    QuestionFile,
    Results,
    ask_answered,
    average_tasks,
    collect_tasks,
    make_image_task,
)

PARTS = ("human", "augmented")


def summarise(results: Results) -> dict[str, object]:
    """The published number by protocol: the mean of both parts, once both are there."""
    mean = average_tasks(results, [f"chartqa-test-{part}" for part in PARTS])
    return {"chartqa-test": mean} if mean else {}


FAMILY = collect_tasks(
    (
        make_image_task(
            f"vqa/chartqa-test-{part}",
            QuestionFile(f"chartqa/test_{part}.jsonl", AnsweredRecord, ask_answered, max_num=12),
            version=1,
            source="https://github.com/vis-nlp/ChartQA",
            max_new_tokens=100,
            score_answer=relaxed.score,
        )
        for part in PARTS
    ),
    summarise=summarise,
)
