"""VizWiz: questions of blind people about their own photographs (Gurari et al. 2018, arXiv 1802.08218).

    DATA_ROOT/vizwiz/vizwiz_{val,test}.jsonl             image, question, question_id
    DATA_ROOT/vizwiz/vizwiz_val_annotations.json         ten answers per question

The answers of the test split are not public; a run leaves the file that the challenge's server accepts.
"""

from eval.tasks.questions import SHORT_SENTENCE, collect_tasks, upload_list
from eval.tasks.soft_vqa import make_soft_task

FAMILY = collect_tasks(
    make_soft_task(
        f"vqa/vizwiz-{split}",
        f"vizwiz/vizwiz_{split}.jsonl",
        source="https://vizwiz.org/tasks-and-datasets/vqa/",
        answers=answers,
        instruction=f"When the provided information is insufficient, respond with 'Unanswerable'. {SHORT_SENTENCE}",
        uploads=() if answers else (upload_list(image="image", answer="response"),),
    )
    for split, answers in (("val", "vizwiz/vizwiz_val_annotations.json"), ("test", None))
)
