"""TextVQA val: reading text in pictures (Singh et al. 2019, arXiv 1904.08920).

DATA_ROOT/textvqa/textvqa_val.jsonl                  image, question, question_id
DATA_ROOT/textvqa/textvqa_val_llava.jsonl            the same with recognised text in the question
DATA_ROOT/textvqa/textvqa_val_annotations.json       ten answers per question
"""

from pathlib import Path

from eval.tasks.soft_vqa import make_soft_task, score_text

VERSION = 1
SOURCE = "https://textvqa.org/dataset"

TASKS = tuple(
    make_soft_task(
        name,
        version=VERSION,
        source=SOURCE,
        annotation=Path("textvqa", file),
        answers=Path("textvqa", "textvqa_val_annotations.json"),
        score_answer=score_text,
    )
    for name, file in (
        ("vqa/textvqa-val", "textvqa_val.jsonl"),
        ("vqa/textvqa-val-ocr", "textvqa_val_llava.jsonl"),
    )
)
