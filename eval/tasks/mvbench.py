"""MVBench: twenty kinds of questions about short videos (Li et al. 2023, arXiv 2311.17005).

DATA_ROOT/MVBench/json/TASK.json                     list of video, question, candidates, answer, start, end
DATA_ROOT/MVBench/video/FOLDER/                      videos; folders of frames for episodic reasoning
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import read_json
from eval.core.sample import Sample
from eval.core.task import Task, TaskFamily
from eval.metrics import choice, mvbench
from eval.metrics.estimate import average_estimates, pool_estimates, read_estimate
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import Results, estimate_cost, find_numbers
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip, list_frames, sample_segments
from internvl.errors import DataError

NUM_FRAMES = 16
FOLDER_FPS = 3.0  # of frames in folders
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


@dataclass(frozen=True)
class _Record:
    video: str
    question: str
    candidates: list[object]
    answer: str | int | float
    start: int | float | str | None = None
    end: int | float | str | None = None


def read_samples(data_root: Root, *, annotation: Path, videos: Path) -> list[Sample]:
    """All samples of a task. Raises DataError for a bad record."""
    path, folder = data_root / annotation, data_root / videos
    return parse_rows(path, read_json(path, list), _Record, lambda row, record: _build(row, record, folder))


def _build(row: int, record: _Record, folder: Path) -> Sample:
    if record.answer not in record.candidates:
        raise DataError(f"the answer {record.answer!r} is not among the candidates")
    options = [f"({letter}) {text}" for letter, text in choice.label_options(record.candidates).items()]
    text = f"Question: {record.question}\nOptions:\n" + "\n".join(options).rstrip() + ENDING
    return Sample(
        id=str(row),
        prompt=f"{VIDEO_PLACEHOLDER}\n{SYSTEM}\n{text}",
        images=(),
        answer=options[record.candidates.index(record.answer)],
        metadata={"question": text, "chance": 1 / len(record.candidates)},
        cost=estimate_cost(SYSTEM + text, NUM_FRAMES),
        videos=(_find_clip(find_media(record.video, folder), record.start, record.end),),
    )


def _find_clip(path: Path, start: float | str | None, end: float | str | None) -> VideoClip:
    """The part of a video that is asked about."""
    bound = None if start is None or end is None else (float(start), float(end))
    if not path.is_dir():
        return VideoClip(path, clip=bound)
    # Frames of a folder are numbered from 1 in the published rule, which clamps and samples these numbers.
    num_frames = len(list_frames(path))
    first, last = mvbench.find_frame_range(bound, fps=FOLDER_FPS, last=num_frames, first=1)
    numbers = sample_segments(min(first, last), last, NUM_FRAMES)
    return VideoClip(path, frames=tuple(max(0, number - 1) for number in numbers))


def make_task(name: str, prompts: str) -> Task | None:
    """One of the twenty tasks."""
    if name not in VIDEO_FOLDERS:
        return None
    annotation = Path("MVBench", "json", f"{name}.json")
    videos = Path("MVBench", "video", VIDEO_FOLDERS[name])
    return Task(
        name=f"mvbench/{name}",
        version=1,
        source="https://huggingface.co/datasets/OpenGVLab/MVBench",
        annotation=annotation,
        read_samples=partial(read_samples, annotation=annotation, videos=videos),
        max_new_tokens=1000,
        max_num=1,
        score_answer=mvbench.score,
        protocols=PROTOCOLS,
        num_frames=NUM_FRAMES,
    )


def summarise(results: Results) -> dict[str, object]:
    """The published number, the mean over all questions, once all tasks are there; and the mean over tasks."""
    summary: dict[str, object] = {}
    for protocol, numbers in find_numbers(results, tuple(VIDEO_FOLDERS)).items():
        parts = list(map(read_estimate, numbers))
        summary[protocol] = {
            "average": vars(pool_estimates(parts)),
            "task_average": vars(average_estimates(parts)),
        }
    return summary


FAMILY = TaskFamily(names=tuple(VIDEO_FOLDERS), make=make_task, summarise=summarise)
