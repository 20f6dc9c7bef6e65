"""ScienceQA test, questions with a picture (Lu et al. 2022, arXiv 2209.09513).

DATA_ROOT/scienceqa/scienceqa_test_img.jsonl         image, question, hint, choices, answer (index)
"""

from dataclasses import dataclass

from eval.metrics import choice
from eval.metrics.protocol import Protocol
from eval.tasks.questions import OPTION_SENTENCE, Question, QuestionFile, collect_tasks, letter_options, make_image_task
from internvl.errors import DataError


@dataclass(frozen=True)
class _Record:
    image: str
    question: str
    choices: list[object]
    answer: int
    hint: object = ""


def _ask(record: _Record) -> Question:
    """Hint, question, options and instruction, a line each."""
    if not record.choices:
        raise DataError("the record has no choices, expected at least one")
    options = choice.label_options(record.choices)
    if not 0 <= record.answer < len(options):
        raise DataError(f"the answer is {record.answer}, expected an index of one of {len(options)} choices")
    lines = [str(record.hint or ""), record.question, letter_options(record.choices), OPTION_SENTENCE]
    return Question(
        record.image,
        "\n".join(lines if lines[0] else lines[1:]),
        {"letter": list(options)[record.answer], "options": options},
        metadata={"chance": 1 / len(options)},
    )


def _score(answer: choice.Answer, response: str, protocol: Protocol) -> float:
    """The letter, also from ScienceQA's own sentence (`official`)."""
    return choice.score_scienceqa(answer["letter"], response, options=answer["options"], protocol=protocol)


FAMILY = collect_tasks(
    [
        make_image_task(
            "scienceqa/test",
            QuestionFile("scienceqa/scienceqa_test_img.jsonl", _Record, _ask, max_num=6),
            version=1,
            source="https://scienceqa.github.io (jsonl file: https://huggingface.co/OpenGVLab/InternVL)",
            max_new_tokens=100,
            score_answer=_score,
        )
    ]
)
