"""MVBench: twenty kinds of questions about short videos (Li et al. 2023, arXiv 2311.17005).

DATA_ROOT/MVBench/json/TASK.json                     list of video, question, candidates, answer, start, end
DATA_ROOT/MVBench/video/FOLDER/                      videos; for episodic reasoning folders of frames, 3 per second
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from eval.core.records import optional_field, read_json, require_field
from eval.core.sample import Sample
from eval.core.task import Task, TaskFamily
from eval.metrics import choice, mvbench
from eval.metrics.estimate import average_estimates, pool_estimates, read_estimate
from eval.metrics.protocol import Protocol
from eval.tasks.questions import Record, build_rows, estimate_cost
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip, list_frames, sample_segments
from internvl.errors import DataError

VERSION = 1
SOURCE = "https://huggingface.co/datasets/OpenGVLab/MVBench"
NUM_FRAMES = 16
FOLDER_FPS = 3.0
SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
ENDING = "\nOnly give the best option."
_CLEVRER, _PERCEPTION, _CHARADES = "clevrer/video_validation", "perception/videos", "star/Charades_v1_480"
VIDEO_FOLDERS: Mapping[str, str] = {
    "action_sequence": _CHARADES,
    "action_prediction": _CHARADES,
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": _CLEVRER,
    "object_interaction": _CHARADES,
    "object_shuffle": _PERCEPTION,
    "moving_direction": _CLEVRER,
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": _PERCEPTION,
    "moving_count": _CLEVRER,
    "moving_attribute": _CLEVRER,
    "state_change": _PERCEPTION,
    "fine_grained_pose": "nturgbd",
    "character_order": _PERCEPTION,
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": _CLEVRER,
}


def read_samples(data_root: Path, *, annotation: Path, videos: Path) -> list[Sample]:
    """All samples of a task. Raises DataError for a bad record."""
    path = data_root / annotation
    return build_rows(path, read_json(path, list), build=lambda row, record: _build(row, record, data_root / videos))


def _build(row: int, record: Record, folder: Path) -> Sample:
    question = require_field(record, "question", str)
    candidates = require_field(record, "candidates", list)
    answer = require_field(record, "answer", (str, int, float))
    if answer not in candidates:
        raise DataError(f"the answer {answer!r} is not among the candidates")
    options = [f"({letter}) {text}" for letter, text in choice.label_options(candidates).items()]
    text = f"Question: {question}\nOptions:\n" + "\n".join(options).rstrip() + ENDING
    return Sample(
        id=str(row),
        prompt=f"{VIDEO_PLACEHOLDER}\n{SYSTEM}\n{text}",
        images=(),
        answer=options[candidates.index(answer)],
        metadata={"question": text, "chance": 1 / len(candidates)},
        cost=estimate_cost(SYSTEM + text, NUM_FRAMES),
        videos=(_find_clip(folder / require_field(record, "video", str), record),),
    )


def _find_clip(path: Path, record: Record) -> VideoClip:
    """The part of a video that is asked about; frames of a folder are numbered from 1, as in the published rule."""
    bound = None
    start, end = (optional_field(record, name, (int, float, str)) for name in ("start", "end"))
    if start is not None and end is not None:
        bound = (float(start), float(end))
    if not path.is_dir():
        return VideoClip(path, clip=bound)
    num_frames = len(list_frames(path))
    first, last = mvbench.find_frame_range(bound, fps=FOLDER_FPS, last=num_frames, first=1)
    numbers = sample_segments(min(first, last), last, NUM_FRAMES)
    return VideoClip(path, frames=tuple(max(0, number - 1) for number in numbers))


def _score(answer: Any, response: str, protocol: str) -> float:
    return mvbench.score(answer, response, protocol=cast(Protocol, protocol))


def make_task(name: str, prompts: str) -> Task | None:
    """One of the twenty tasks."""
    if name not in VIDEO_FOLDERS:
        return None
    annotation = Path("MVBench", "json", f"{name}.json")
    videos = Path("MVBench", "video", VIDEO_FOLDERS[name])
    return Task(
        name=f"mvbench/{name}",
        version=VERSION,
        source=SOURCE,
        annotation=annotation,
        read_samples=partial(read_samples, annotation=annotation, videos=videos),
        max_new_tokens=1000,
        max_num=1,
        score_answer=_score,
        protocols=("official", "upstream"),
        num_frames=NUM_FRAMES,
    )


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The published number, the mean over all questions, once all tasks are there; and the mean over tasks."""
    if not all(name in results for name in VIDEO_FOLDERS):
        return {}
    summary = {}
    for protocol in ("official", "upstream"):
        parts = [read_estimate(results[name]["results"][protocol]) for name in VIDEO_FOLDERS]
        summary[protocol] = {
            "average": vars(pool_estimates(parts)),
            "task_average": vars(average_estimates(parts)),
        }
    return summary


FAMILY = TaskFamily(names=tuple(VIDEO_FOLDERS), make=make_task, summarise=summarise)
