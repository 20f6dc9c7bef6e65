"""MLVU: nine tasks on videos of three minutes to two hours (Zhou et al. 2024, arXiv 2406.04264).

    DATA_ROOT/MLVU/json/{1_plotQA,...,7_topic_reasoning}.json    list of video, duration, question, candidates, answer
    DATA_ROOT/MLVU/json/{8_sub_scene,9_summary}.json             without candidates; scoring_points of sub-scenes
    DATA_ROOT/MLVU/video/{1_plotQA,...}/VIDEO                    videos in a folder per task
    DATA_ROOT/MLVU_Test/test_question.json                       list of question_id, question_type, video, ...
    DATA_ROOT/MLVU_Test/video/VIDEO

A judge scores sub-scenes and summaries: it is asked in our own words for the published scores.
Answers of the test set are not public; its `upload.json` is what the benchmark's server takes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.judge import JudgeRule
from eval.core.records import read_json
from eval.core.sample import Prediction, Sample
from eval.core.task import Scored, Task, Upload
from eval.metrics import choice, mlvu
from eval.metrics.estimate import average_estimates, estimate_mean, read_estimate
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import Results, find_numbers, use_one_rule
from eval.tasks.videos import Shown, ask_about_video, average_by, collect_video_tasks, label_duration
from internvl.errors import DataError

SOURCE = "https://huggingface.co/datasets/MLVU/MVLU"
TEST_SOURCE = "https://huggingface.co/datasets/MLVU/MLVU_Test"
CHOICE_FILES = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
FREE_FILES = {"sub_scene": "8_sub_scene", "summary": "9_summary"}
TEST = Path("MLVU_Test")
SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question.\n"
)
# The published code begins the model's answer with the last line. As a part of the question it is lmms-eval's form.
ENDING = "\nOnly give the best option.\nBest option: ("
FREE_SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, answer the given "
    "questions.\n"
)
_NO_OPTION = "@"  # the letter before A: a few published answers are not among the candidates, no response is right


@dataclass(frozen=True)
class _Choice:
    video: str
    question: str
    candidates: list[object]
    answer: str | None = None
    duration: float | None = None
    question_id: str | None = None  # of the test set
    question_type: str = ""


def read_choices(data_root: Root, *, annotation: Path, videos: Path, num_frames: int) -> list[Sample]:
    """All questions of a file. Raises DataError for a bad record."""
    path, folder = data_root / annotation, data_root / videos

    def build(row: int, record: _Choice) -> Sample:
        options = choice.label_options(record.candidates)
        listed = "\n".join(f"({letter}) {text}" for letter, text in options.items()).rstrip()
        letters = (letter for letter, text in options.items() if text == record.answer)
        answer = {"letter": next(letters, _NO_OPTION), "options": options}
        return ask_about_video(
            str(row) if record.question_id is None else record.question_id,
            Shown(find_media(record.video, folder), num_frames),
            f"{SYSTEM}\nQuestion: {record.question}\nOptions:\n{listed}{ENDING}",
            answer=None if record.answer is None else answer,
            metadata={
                "duration": label_duration(record.duration),
                "question_type": record.question_type,
                "chance": 1 / max(1, len(options)),
            },
        )

    return parse_rows(path, read_json(path, list), _Choice, build)


def _score(answer: choice.Answer, response: str) -> float:
    return mlvu.score(answer["letter"], response)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """Accuracy by duration, and under VLMEvalKit's rule without a judge, which also understands `B.`."""
    lenient = [
        mlvu.score_leniently(item.answer["letter"], item.response, options=item.answer["options"]) for item in scored
    ]
    return {"by_duration": average_by(scored, "duration"), "vlmevalkit": vars(estimate_mean(lenient))}


def _render(predictions: Sequence[Prediction]) -> str:
    rows = [
        {
            "question_id": prediction.id,
            "question_type": prediction.metadata["question_type"],
            "option": prediction.response.partition(")")[0].strip(),
        }
        for prediction in predictions
    ]
    return json.dumps(rows, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class _Free:
    video: str
    question: str
    answer: str
    duration: float | None = None
    scoring_points: list[str] | None = None  # of a sub-scene


def read_free_questions(data_root: Root, *, name: str, num_frames: int) -> list[Sample]:
    """All questions of `sub_scene` or `summary`. Raises DataError for a bad record."""
    file = FREE_FILES[name]
    path, folder = data_root / "MLVU" / "json" / f"{file}.json", data_root / "MLVU" / "video" / file

    def build(row: int, record: _Free) -> Sample:
        if name == "sub_scene" and not record.scoring_points:
            raise DataError("scoring_points is missing or empty, expected what a complete answer says")
        return ask_about_video(
            str(row),
            Shown(find_media(record.video, folder), num_frames),
            f"{FREE_SYSTEM}\n{record.question}",
            answer={"text": record.answer, "scoring_points": record.scoring_points or []},
            metadata={"duration": label_duration(record.duration), "question": record.question},
        )

    return parse_rows(path, read_json(path, list), _Free, build)


def _write_scene_prompt(prediction: Prediction) -> str:
    points = "\n".join(f"- {point}" for point in prediction.answer["scoring_points"])
    return f"Question: {prediction.metadata['question']}\nPoints:\n{points}\nAnswer: {prediction.response}"


def _write_summary_prompt(prediction: Prediction) -> str:
    return f"Reference summary: {prediction.answer['text']}\nSummary: {prediction.response}"


def _read_verdict(reply: str, gold: object, *, keys: tuple[str, str]) -> float:
    total = mlvu.read_judgement(reply, keys)
    if not any(key in reply for key in keys) or not 0 <= total <= mlvu.BEST:
        raise ValueError(f"expected two scores of 1 to 5 under {' and '.join(keys)}")
    return total / mlvu.BEST


SCENE_SYSTEM = """\
You grade a description of one scene of a video. You get the question, the points that a complete answer makes, and the
answer.
Accuracy, from 1 to 5: rate every point with 1 if the answer lacks it, 3 if the answer touches it without getting it
right, and 5 if the answer gets it right. The accuracy is the mean over all points.
Relevance, from 1 to 5, whether or not the answer is true: 1 for an answer about something else, 2 for one that is
mostly beside the question, 3 for one that is about the question but unsure, 4 for one that is mostly about the question
and sure, 5 for one that is about nothing but the question and sure.
"""
SUMMARY_SYSTEM = """\
You grade a summary of a video against a reference summary.
Completeness, a whole number from 1 to 5: how much of the main content and of the key points is there. 1 is hardly any,
2 is some, 3 is most, 4 is nearly all, 5 is all.
Reliability, a whole number from 1 to 5: whether the summary is correct, free of contradictions and clear. 1 is several
errors and contradictions and confusing, 2 is some of both, 3 is minor errors, 4 is hardly any error and clear, 5 is no
error and clear. Details that the reference lacks cost nothing unless they contradict it.
"""


def _make_judge(name: str, system: str, keys: tuple[str, str], write_prompt: Callable[[Prediction], str]) -> JudgeRule:
    first, second = keys
    ending = (
        "Give your reasons in a few sentences. Then end with one line of JSON: "
        f'{{"{first}": X, "{second}": Y, "total_score": Z}}, where Z is X + Y.'
    )
    return JudgeRule(name, 1, write_prompt, partial(_read_verdict, keys=keys), system=system + ending)


JUDGES = {
    "sub_scene": _make_judge("mlvu-sub-scene", SCENE_SYSTEM, mlvu.SUB_SCENE, _write_scene_prompt),
    "summary": _make_judge("mlvu-summary", SUMMARY_SYSTEM, mlvu.SUMMARY, _write_summary_prompt),
}


def aggregate_judged(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """Score by duration, and the published form of the score: two scores of 1 to 5, added."""
    mean = estimate_mean([item.score for item in scored])
    return {"by_duration": average_by(scored, "duration"), "out_of_ten": mlvu.BEST * mean.score}


def _make_free(name: str, num_frames: int) -> Task:
    return Task(
        name=f"mlvu/{name}",
        version=1,
        source=SOURCE,
        annotation=Path("MLVU", "json", f"{FREE_FILES[name]}.json"),
        read_samples=partial(read_free_questions, name=name, num_frames=num_frames),
        max_new_tokens=1024,
        max_num=1,
        score_answer=use_one_rule(lambda answer, response: 0.0),  # never asked: a judge scores
        protocols=PROTOCOLS,
        aggregate=aggregate_judged,
        num_frames=num_frames,
        judge=JUDGES[name],
    )


def _make(name: str, num_frames: int) -> Task:
    if name in FREE_FILES:
        return _make_free(name, num_frames)
    is_test = name == "test"
    file = CHOICE_FILES.get(name, "")
    annotation = TEST / "test_question.json" if is_test else Path("MLVU", "json", f"{file}.json")
    videos = TEST / "video" if is_test else Path("MLVU", "video", file)
    return Task(
        name=f"mlvu/{name}",
        version=1,
        source=TEST_SOURCE if is_test else SOURCE,
        annotation=annotation,
        read_samples=partial(read_choices, annotation=annotation, videos=videos, num_frames=num_frames),
        max_new_tokens=16,
        max_num=1,
        score_answer=use_one_rule(_score),
        protocols=PROTOCOLS,
        aggregate=aggregate,
        num_frames=num_frames,
        uploads=(Upload("upload.json", _render),) if is_test else (),
    )


def summarise(results: Results) -> dict[str, object]:
    """The published means over tasks by protocol, each once all of its tasks are there and scored.

    `m_avg`: over the seven tasks with options. `g_avg`: over both that a judge scores, in 0..1 (published: of ten).
    """
    groups = {"m_avg": CHOICE_FILES, "g_avg": FREE_FILES}
    means = {key: _average(find_numbers(results, tuple(names))) for key, names in groups.items()}
    return {key: mean for key, mean in means.items() if mean}


def _average(numbers: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, object]:
    return {
        protocol: vars(average_estimates(list(map(read_estimate, rows))))
        for protocol, rows in numbers.items()
        if all(row["score"] is not None for row in rows)
    }


FAMILY = collect_video_tasks([*CHOICE_FILES, *FREE_FILES, "test"], _make, summarise=summarise)
