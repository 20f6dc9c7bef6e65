"""LVBench: questions about videos of half an hour to two hours (Wang et al. 2024, arXiv 2406.08035).

    DATA_ROOT/LVBench/video_info.meta.jsonl              key, type, video_info, qa: uid, question, answer, question_type
    DATA_ROOT/LVBench/videos/KEY.mp4                     videos by `key`, the name on YouTube (also in all_videos/)

The options are in the text of a question. The benchmark has no prompt of its own; the instruction is lmms-eval's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import read_records
from eval.core.sample import Sample
from eval.core.task import Scored, Task
from eval.metrics import lvbench
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import use_one_rule
from eval.tasks.videos import Shown, ask_about_video, average_by, collect_video_tasks, label_duration

FOLDER = Path("LVBench")
ANNOTATION = FOLDER / "video_info.meta.jsonl"
INSTRUCTION = "\nAnswer the question with the option letter"
_NUM_OPTIONS = 4


@dataclass(frozen=True)
class _Question:
    uid: str | int
    question: str
    answer: str
    question_type: list[str]


@dataclass(frozen=True)
class _VideoInfo:
    duration_minutes: float | None = None


@dataclass(frozen=True)
class _Record:
    key: str
    qa: list[_Question]
    type: str = ""
    video_info: _VideoInfo = _VideoInfo()


def read_samples(data_root: Root, *, num_frames: int) -> list[Sample]:
    """All questions. Raises DataError for a bad record."""
    path, folder = data_root / ANNOTATION, data_root / FOLDER

    def build(row: int, record: _Record) -> list[Sample]:
        video = find_media(f"{record.key}.mp4", data_root, (folder / "videos", folder / "all_videos"))
        minutes = record.video_info.duration_minutes
        return [
            ask_about_video(
                str(entry.uid),
                Shown(video, num_frames),
                entry.question + INSTRUCTION,
                answer=entry.answer,
                metadata={
                    "question_type": entry.question_type,
                    "type": record.type,
                    "duration": label_duration(None if minutes is None else 60 * minutes),
                    "chance": 1 / _NUM_OPTIONS,
                },
            )
            for entry in record.qa
        ]

    videos = parse_rows(path, read_records(path), _Record, build)
    return [sample for samples in videos for sample in samples]


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """Accuracy by ability, by kind of video and by duration."""
    return {
        "by_ability": lvbench.summarise((item.metadata["question_type"], item.score) for item in scored),
        "by_type": average_by(scored, "type"),
        "by_duration": average_by(scored, "duration"),
    }


def _make(name: str, num_frames: int) -> Task:
    return Task(
        name=f"lvbench/{name}",
        version=1,
        source="https://huggingface.co/datasets/THUDM/LVBench",
        annotation=ANNOTATION,
        read_samples=partial(read_samples, num_frames=num_frames),
        max_new_tokens=16,
        max_num=1,
        score_answer=use_one_rule(lvbench.score),
        protocols=PROTOCOLS,
        aggregate=aggregate,
        num_frames=num_frames,
    )


FAMILY = collect_video_tasks(["test"], _make)
