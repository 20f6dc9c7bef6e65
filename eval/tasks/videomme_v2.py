"""Video-MME-v2: four questions about each of 800 videos, scored together (Fu et al. 2026, arXiv 2604.05015).

    DATA_ROOT/Video-MME-v2/test.parquet                  video_id, group_type, group_structure, question_id, question,
                                                         options, answer, level, second_head, third_head
    DATA_ROOT/Video-MME-v2/video/VIDEO.mp4               videos, by `video_id`
    DATA_ROOT/Video-MME-v2/subtitle/VIDEO.jsonl          words: text, start_time, end_time; a video may have none

Frames, prompts and places of subtitles are those of https://github.com/MME-Benchmarks/Video-MME-v2. Its prompt that
asks for a reasoning is not among the tasks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

from eval.convert.parquet import read_rows
from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import read_records
from eval.core.sample import Sample
from eval.core.task import Scored, Task
from eval.metrics import videomme_v2
from eval.metrics.estimate import estimate_mean
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import use_one_rule
from eval.tasks.videos import (
    Shown,
    ask_about_video,
    average_by,
    collect_video_tasks,
    label_duration,
    read_fps,
    read_header,
)
from internvl.data.video import VideoInfo
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

FOLDER = Path("Video-MME-v2")
ANNOTATION = FOLDER / "test.parquet"
PLAIN = "These are the frames of a video."
WITH_SUBTITLES = "These are the frames of a video. This video's subtitles are listed below:\n{}\n"
INTERLEAVED = (
    "These are the frames of a video with corresponding subtitles shown between frames. The subtitles indicate what is "
    "being said during the time interval between adjacent frames."
)
INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, D, E, F, G, or H) of the correct option."
)
_LONG_PAUSE_S = 0.5  # between two words: another sentence
_PAUSE_S = 0.1  # likewise, after the end of a sentence
_NUM_OPTIONS = 8
_COLUMNS = ("video_id", "group_type", "group_structure", "question_id", "question", "options", "answer", "level")


@dataclass(frozen=True)
class _Record:
    video_id: str | int
    question_id: str | int
    question: str
    options: str
    answer: str
    group_type: str
    group_structure: str | None = None  # of groups of type `logic`
    level: object = None
    second_head: str | None = None
    third_head: str | None = None

    def __post_init__(self) -> None:
        """Refuse groups that have no score."""
        if self.group_type not in videomme_v2.GROUP_TYPES:
            expected = ", ".join(videomme_v2.GROUP_TYPES)
            raise DataError(f"group_type is {self.group_type!r:.60}, expected one of {expected}")
        if self.group_type == "logic":
            try:
                videomme_v2.normalise_structure(self.group_structure or "")
            except ValueError as error:
                raise DataError(str(error)) from error


@dataclass(frozen=True)
class Words:
    """A word of the subtitles, or several: a line of the file has this form."""

    text: str
    start_time: float  # in seconds
    end_time: float


def choose_frames(num_frames: int, num_shown: int) -> list[int]:
    """The published choice: frames at equal distances, without both ends of the video."""
    step = num_frames / (num_shown + 1)
    return [int(number * step) for number in range(1, num_shown + 1)]


def group_words(words: Sequence[Words]) -> list[Words]:
    """Words as sentences: a pause ends one, a short pause only after a mark that ends a sentence."""
    groups: list[list[Words]] = [[word] for word in words[:1]]
    for before, word in pairwise(words):
        pause = word.start_time - before.end_time
        is_end = before.text.rstrip().endswith((".", "!", "?"))
        if pause > _LONG_PAUSE_S or (is_end and pause > _PAUSE_S):
            groups.append([])
        groups[-1].append(word)
    return [Words(" ".join(word.text for word in group), group[0].start_time, group[-1].end_time) for group in groups]


def interleave(times: Sequence[float], end: float, words: Sequence[Words]) -> list[str]:
    """Lines of a prompt: `<image>` per frame, then the sentences that are spoken before the next frame.

    Args:
        times: When frames are shown, in seconds.
        end: When the video ends, in seconds.
        words: All words of the subtitles.
    """
    sentences = group_words(words)
    lines = []
    for time, following in pairwise([*times, end]):
        spoken = [entry for entry in sentences if entry.end_time >= time and entry.start_time < following]
        lines += [
            IMAGE_PLACEHOLDER,
            *(f"[Subtitle {entry.start_time:.2f}s - {entry.end_time:.2f}s]: {entry.text}" for entry in spoken),
        ]
    return lines


def _show_plain(shown: Shown, info: VideoInfo | None, words: Sequence[Words]) -> tuple[Shown, str]:
    return shown, PLAIN


def _show_subtitles(shown: Shown, info: VideoInfo | None, words: Sequence[Words]) -> tuple[Shown, str]:
    return shown, WITH_SUBTITLES.format(" ".join(word.text for word in words))


def _show_interleaved(shown: Shown, info: VideoInfo | None, words: Sequence[Words]) -> tuple[Shown, str]:
    fps, frames = read_fps(info), shown.frames or ()
    times = [frame / fps for frame in frames]
    lines = interleave(times, info.num_frames / fps, words) if info else []
    return replace(shown, lines=lines), INTERLEAVED


# Name of the task -> (video, its header, its words) -> how the video is shown, and the text that follows it.
_WAYS: Mapping[str, Callable[[Shown, VideoInfo | None, Sequence[Words]], tuple[Shown, str]]] = {
    "test": _show_plain,
    "test-subtitles": _show_subtitles,
    "test-subtitles-interleaved": _show_interleaved,
}


def read_samples(data_root: Root, *, way: str, num_frames: int) -> list[Sample]:
    """All questions. Raises DataError for a bad record or file of subtitles."""
    path, folder = data_root / ANNOTATION, data_root / FOLDER

    @cache
    def show(name: str) -> tuple[Shown, str, str]:
        video = find_media(f"{name}.mp4", folder / "video")
        info = read_header(video)
        frames = None if info is None else choose_frames(info.num_frames, num_frames)
        file = find_media(f"{name}.jsonl", folder / "subtitle")
        shown = _WAYS[way](Shown(video, num_frames, frames), info, _read_subtitles(file) if way != "test" else [])
        return *shown, label_duration(info.duration if info else None)

    def build(row: int, record: _Record) -> Sample:
        shown, lead, duration = show(str(record.video_id))
        return ask_about_video(
            str(record.question_id),
            shown,
            f"{lead}\nQuestion: {record.question}\n{record.options}\n{INSTRUCTION}",
            answer=record.answer,
            metadata={
                "video": str(record.video_id),
                "group_type": record.group_type,
                "group_structure": record.group_structure or "",
                **{key: _read_name(getattr(record, key)) for key in ("level", "second_head", "third_head")},
                "duration": duration,
                "chance": 1 / _NUM_OPTIONS,
            },
        )

    return parse_rows(path, read_rows([path], columns=_COLUMNS), _Record, build)


def _read_subtitles(file: Path) -> list[Words]:
    if not file.is_file() or not file.stat().st_size:  # as published: the video has no speech
        return []
    return parse_rows(file, read_records(file), Words, lambda _, words: words)


def _read_name(value: object) -> str:
    """A level or an ability; empty where a record has none."""
    return "" if value is None or str(value) == "None" else str(value).removesuffix(".0")


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """The published score of groups and its parts, and the plain accuracy of questions."""
    by_video: dict[str, list[Scored]] = {}
    for item in scored:
        by_video.setdefault(item.metadata["video"], []).append(item)
    groups = [_make_group(items) for items in by_video.values()]
    return {
        **videomme_v2.summarise(groups),
        "accuracy": vars(estimate_mean([item.score for item in scored])),
        "accuracy_by_duration": average_by(scored, "duration"),
    }


def _make_group(items: Sequence[Scored]) -> videomme_v2.Group:
    last = items[-1].metadata  # as published, the last question says what the group is about
    names = ("group_type", "level", "second_head", "third_head")
    return videomme_v2.Group(
        tuple(item.score == 1 for item in items),
        structure=last["group_structure"],
        **{name: last[name] for name in names},
    )


def _make(name: str, num_frames: int) -> Task:
    return Task(
        name=f"videomme_v2/{name}",
        version=1,
        source="https://huggingface.co/datasets/MME-Benchmarks/Video-MME-v2",
        annotation=ANNOTATION,
        read_samples=partial(read_samples, way=name, num_frames=num_frames),
        max_new_tokens=64,
        max_num=1,
        score_answer=use_one_rule(videomme_v2.score),
        protocols=PROTOCOLS,
        aggregate=aggregate,
        num_frames=num_frames,
        folders=() if name == "test" else (FOLDER / "subtitle",),
    )


FAMILY = collect_video_tasks(tuple(_WAYS), _make)
