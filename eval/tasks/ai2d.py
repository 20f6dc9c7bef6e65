"""AI2D: multiple-choice questions about school diagrams (Kembhavi et al. 2016, arXiv 1603.07396).

DATA_ROOT/ai2diagram/test_vlmevalkit.jsonl           image, question (with options and instruction), answer (letter)
"""

import re

from eval.metrics import choice
from eval.metrics.protocol import Protocol
from eval.tasks.questions import AnsweredRecord, Question, QuestionFile, ask_answered, collect_tasks, make_image_task

_OPTION = re.compile(r"^([A-Z])[.:)] *(.*)$", re.MULTILINE)


def _ask(record: AnsweredRecord) -> Question:
    """The question as it is, with the options that its lines name."""
    options = dict(_OPTION.findall(record.question))
    answer = {"letter": ask_answered(record).answer, "options": options}
    chance = {"chance": 1 / len(_OPTION.findall(record.question))} if options else {}
    return Question(record.image, record.question, answer, metadata=chance)


def _score(answer: choice.Answer, response: str, protocol: Protocol) -> float:
    """The letter (`official`), or equal text."""
    return choice.score_ai2d(answer["letter"], response, options=answer["options"], protocol=protocol)


FAMILY = collect_tasks(
    [
        make_image_task(
            "vqa/ai2d-test",
            QuestionFile("ai2diagram/test_vlmevalkit.jsonl", AnsweredRecord, _ask, max_num=6),
            version=1,
            source="https://huggingface.co/OpenGVLab/InternVL (ai2diagram; pictures from https://allenai.org/data/diagrams)",
            max_new_tokens=10,
            score_answer=_score,
        )
    ]
)
