"""OCR-VQA: questions about book covers (Mishra et al. 2019).

DATA_ROOT/ocrvqa/ocrvqa_{val,test}.jsonl             image, question, answer
"""

from eval.metrics import exact
from eval.tasks.questions import (
    AnsweredRecord,
    QuestionFile,
    ask_answered,
    collect_tasks,
    make_image_task,
    use_one_rule,
)

FAMILY = collect_tasks(
    make_image_task(
        f"vqa/ocrvqa-{split}",
        QuestionFile(f"ocrvqa/ocrvqa_{split}.jsonl", AnsweredRecord, ask_answered, max_num=6),
        version=1,
        source="https://ocr-vqa.github.io",
        max_new_tokens=100,
        score_answer=use_one_rule(exact.score),
    )
    for split in ("val", "test")
)
