"""MLVU: nine tasks on videos of three minutes to two hours (Zhou et al. 2024, arXiv 2406.04264).

    DATA_ROOT/MLVU/json/{1_plotQA,...,7_topic_reasoning}.json    list of video, duration, question, candidates, answer
    DATA_ROOT/MLVU/json/{8_sub_scene,9_summary}.json             without candidates; scoring_points of sub-scenes
    DATA_ROOT/MLVU/video/{1_plotQA,...}/VIDEO                    videos in a folder per task
    DATA_ROOT/MLVU_Test/test_question.json                       list of question_id, question_type, video, ...
    DATA_ROOT/MLVU_Test/video/VIDEO

Answers of the test set are not public; its `upload.json` is what the benchmark's server takes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import read_json
from eval.core.sample import Prediction, Sample
from eval.core.task import Scored, Task, Upload
from eval.metrics import choice, mlvu
from eval.metrics.estimate import average_estimates, estimate_mean, read_estimate
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import Results, find_numbers, use_one_rule
from eval.tasks.videos import Shown, ask_about_video, average_by, collect_video_tasks, label_duration

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
TEST = Path("MLVU_Test")
SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question.\n"
)
# The published code begins the model's answer with the last line. As a part of the question it is lmms-eval's form.
ENDING = "\nOnly give the best option.\nBest option: ("
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


def _make(name: str, num_frames: int) -> Task:
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
    """M-Avg, the published mean over the seven tasks, by protocol, once all of them are there."""
    means = {
        protocol: vars(average_estimates(list(map(read_estimate, numbers))))
        for protocol, numbers in find_numbers(results, tuple(CHOICE_FILES)).items()
    }
    return {"m_avg": means} if means else {}


FAMILY = collect_video_tasks([*CHOICE_FILES, "test"], _make, summarise=summarise)
