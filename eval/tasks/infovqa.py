"""InfographicVQA: questions about infographics (Mathew et al. 2022, arXiv 2104.12756).

    DATA_ROOT/infographicsvqa/{val,test}.jsonl                            image, question, question_id
    DATA_ROOT/infographicsvqa/infographicsVQA_val_v1.0_withQT.json        data: questionId, answers

The answers of the test split are not public: the run leaves the file that the Robust Reading Competition takes.
"""

from pathlib import Path

from eval.tasks.document import make_document_task

VERSION = 1
SOURCE = "https://www.docvqa.org/datasets/infographicvqa"

TASKS = tuple(
    make_document_task(
        f"vqa/infovqa-{split}",
        version=VERSION,
        source=SOURCE,
        annotation=Path("infographicsvqa", f"{split}.jsonl"),
        answers=Path("infographicsvqa", "infographicsVQA_val_v1.0_withQT.json") if split == "val" else None,
        max_num=24,
    )
    for split in ("val", "test")
)
