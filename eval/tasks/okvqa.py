"""OK-VQA val: questions that need knowledge beyond the picture (Marino et al. 2019, arXiv 1906.00067).

DATA_ROOT/okvqa/okvqa_val.jsonl                      image, question, question_id
DATA_ROOT/okvqa/mscoco_val2014_annotations.json      ten answers per question
"""

from eval.tasks.questions import collect_tasks
from eval.tasks.soft_vqa import make_soft_task

FAMILY = collect_tasks(
    [
        make_soft_task(
            "vqa/okvqa-val",
            "okvqa/okvqa_val.jsonl",
            source="https://okvqa.allenai.org/download.html",
            answers="okvqa/mscoco_val2014_annotations.json",
        )
    ]
)
