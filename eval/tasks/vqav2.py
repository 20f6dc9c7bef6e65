"""VQAv2: open questions about photographs (Goyal et al. 2017, arXiv 1612.00837).

    DATA_ROOT/vqav2/vqav2_{val,testdev}.jsonl                             image, question, question_id
    DATA_ROOT/vqav2/v2_mscoco_val2014_annotations.json                    ten answers per question of val

The answers of test-dev are not public: the run leaves the file that the challenge's server takes.
"""

from pathlib import Path

from eval.tasks.questions import upload_list
from eval.tasks.soft_vqa import make_soft_task

VERSION = 1
SOURCE = "https://visualqa.org/download.html"

TASKS = (
    make_soft_task(
        "vqa/vqav2-val",
        version=VERSION,
        source=SOURCE,
        annotation=Path("vqav2", "vqav2_val.jsonl"),
        answers=Path("vqav2", "v2_mscoco_val2014_annotations.json"),
    ),
    make_soft_task(
        "vqa/vqav2-testdev",
        version=VERSION,
        source=SOURCE,
        annotation=Path("vqav2", "vqav2_testdev.jsonl"),
        answers=None,
        upload=upload_list("upload.json", question_id="id", answer="response"),
    ),
)
