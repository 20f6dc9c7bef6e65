"""InfographicVQA: questions about infographics (Mathew et al. 2022, arXiv 2104.12756).

    DATA_ROOT/infographicsvqa/{val,test}.jsonl                            image, question, question_id
    DATA_ROOT/infographicsvqa/infographicsVQA_val_v1.0_withQT.json        data: questionId, answers

The answers of the test split are not public; a run leaves the file that the Robust Reading Competition accepts.
"""

from eval.tasks.document import make_document_task
from eval.tasks.questions import collect_tasks

FAMILY = collect_tasks(
    make_document_task(
        f"vqa/infovqa-{split}",
        f"infographicsvqa/{split}.jsonl",
        source="https://www.docvqa.org/datasets/infographicvqa",
        answers=answers,
        max_num=24,
    )
    for split, answers in (("val", "infographicsvqa/infographicsVQA_val_v1.0_withQT.json"), ("test", None))
)
