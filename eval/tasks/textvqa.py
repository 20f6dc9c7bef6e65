"""TextVQA val: reading text in pictures (Singh et al. 2019, arXiv 1904.08920).

DATA_ROOT/textvqa/textvqa_val.jsonl                  image, question, question_id
DATA_ROOT/textvqa/textvqa_val_llava.jsonl            the same with recognised text in the question
DATA_ROOT/textvqa/textvqa_val_annotations.json       ten answers per question
"""

from eval.metrics import vqa
from eval.tasks.questions import collect_tasks, use_one_rule
from eval.tasks.soft_vqa import make_soft_task

FAMILY = collect_tasks(
    make_soft_task(
        name,
        f"textvqa/{file}",
        source="https://textvqa.org/dataset",
        answers="textvqa/textvqa_val_annotations.json",
        score_answer=use_one_rule(vqa.score_m4c),
    )
    for name, file in (
        ("vqa/textvqa-val", "textvqa_val.jsonl"),
        ("vqa/textvqa-val-ocr", "textvqa_val_llava.jsonl"),
    )
)
