"""VizWiz: questions of blind people about their own photographs (Gurari et al. 2018, arXiv 1802.08218).

    DATA_ROOT/vizwiz/vizwiz_{val,test}.jsonl             image, question, question_id
    DATA_ROOT/vizwiz/vizwiz_val_annotations.json         ten answers per question

The answers of the test split are not public: the run leaves the file that the challenge's server takes.
"""

from pathlib import Path

from eval.tasks.questions import SHORT_SENTENCE, upload_list
from eval.tasks.soft_vqa import make_soft_task

VERSION = 1
SOURCE = "https://vizwiz.org/tasks-and-datasets/vqa/"
SUFFIX = f"When the provided information is insufficient, respond with 'Unanswerable'. {SHORT_SENTENCE}"

TASKS = tuple(
    make_soft_task(
        f"vqa/vizwiz-{split}",
        version=VERSION,
        source=SOURCE,
        annotation=Path("vizwiz", f"vizwiz_{split}.jsonl"),
        answers=Path("vizwiz", "vizwiz_val_annotations.json") if split == "val" else None,
        suffix=SUFFIX,
        upload=None if split == "val" else upload_list("upload.json", image="image", answer="response"),
    )
    for split in ("val", "test")
)
