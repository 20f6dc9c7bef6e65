"""VQAv2: open questions about photographs (Goyal et al. 2017, arXiv 1612.00837).

    DATA_ROOT/vqav2/vqav2_{val,testdev}.jsonl                             image, question, question_id
    DATA_ROOT/vqav2/v2_mscoco_val2014_annotations.json                    ten answers per question of val

The answers of test-dev are not public; a run leaves the file that the challenge's server accepts.
"""

from eval.tasks.questions import collect_tasks, upload_list
from eval.tasks.soft_vqa import make_soft_task

FAMILY = collect_tasks(
    make_soft_task(
        f"vqa/vqav2-{split}",
        f"vqav2/vqav2_{split}.jsonl",
        source="https://visualqa.org/download.html",
        answers=answers,
        uploads=() if answers else (upload_list(question_id="id", answer="response"),),
    )
    for split, answers in (("val", "vqav2/v2_mscoco_val2014_annotations.json"), ("testdev", None))
)
