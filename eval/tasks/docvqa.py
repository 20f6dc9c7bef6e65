"""DocVQA: questions about scanned pages (Mathew et al. 2021, arXiv 2007.00398).

    DATA_ROOT/docvqa/{val,test}.jsonl                    image, question, question_id
    DATA_ROOT/docvqa/val/val_v1.0.json                   data: questionId, answers

The answers of the test split are not public: the run leaves the file that the Robust Reading Competition takes.
"""

from pathlib import Path

from eval.tasks.document import make_document_task

VERSION = 1
SOURCE = "https://www.docvqa.org/datasets/docvqa"

TASKS = tuple(
    make_document_task(
        f"vqa/docvqa-{split}",
        version=VERSION,
        source=SOURCE,
        annotation=Path("docvqa", f"{split}.jsonl"),
        answers=Path("docvqa", "val", "val_v1.0.json") if split == "val" else None,
        max_num=18,
    )
    for split in ("val", "test")
)
