"""OK-VQA val: questions that need knowledge beside the picture (Marino et al. 2019, arXiv 1906.00067).

DATA_ROOT/okvqa/okvqa_val.jsonl                      image, question, question_id
DATA_ROOT/okvqa/mscoco_val2014_annotations.json      ten answers per question
"""

from pathlib import Path

from eval.tasks.soft_vqa import make_soft_task

VERSION = 1
SOURCE = "https://okvqa.allenai.org/download.html"

TASKS = (
    make_soft_task(
        "vqa/okvqa-val",
        version=VERSION,
        source=SOURCE,
        annotation=Path("okvqa", "okvqa_val.jsonl"),
        answers=Path("okvqa", "mscoco_val2014_annotations.json"),
    ),
)
