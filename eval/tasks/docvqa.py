"""DocVQA: questions about scanned pages (Mathew et al. 2021, arXiv 2007.00398).

    DATA_ROOT/docvqa/{val,test}.jsonl                    image, question, question_id
    DATA_ROOT/docvqa/val/val_v1.0.json                   data: questionId, answers

The answers of the test split are not public; a run leaves the file that the Robust Reading Competition accepts.
"""

from eval.tasks.document import make_document_task
from eval.tasks.questions import collect_tasks

FAMILY = collect_tasks(
    make_document_task(
        f"vqa/docvqa-{split}",
        f"docvqa/{split}.jsonl",
        source="https://www.docvqa.org/datasets/docvqa",
        answers=answers,
        max_num=18,
    )
    for split, answers in (("val", "docvqa/val/val_v1.0.json"), ("test", None))
)
