"""LongVideoBench: questions that refer to a moment of a video of up to an hour (Wu et al. 2024, arXiv 2407.15754).

    DATA_ROOT/LongVideoBench/lvb_val.json                id, video_path, question, candidates, correct_choice, duration,
    DATA_ROOT/LongVideoBench/lvb_test_wo_gt.json         duration_group, question_category, subtitle_path, ...
    DATA_ROOT/LongVideoBench/videos/VIDEO.mp4
    DATA_ROOT/LongVideoBench/subtitles/FILE.json         list of {timestamp: [start, end], text} or {start, end, line}

With subtitles, frames and subtitles take turns. Frames, places of subtitles and prompts are those of the benchmark's
loader (https://github.com/longvideobench/LongVideoBench) and of lmms-eval's tasks `longvideobench_*_v` and `*_i`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import read_json
from eval.core.sample import Prediction, Sample
from eval.core.task import Scored, Task, Upload
from eval.metrics import longvideobench
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import OPTION_SENTENCE, letter_options, use_one_rule
from eval.tasks.videos import Shown, ask_about_video, average_by, collect_video_tasks, read_fps, read_header
from internvl.data.video import VideoInfo
from internvl.errors import DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

SOURCE = "https://huggingface.co/datasets/longvideobench/LongVideoBench"
FOLDER = Path("LongVideoBench")
FILES = {"val": "lvb_val.json", "test": "lvb_test_wo_gt.json"}
_SUBTITLES = "-subtitles"


@dataclass(frozen=True)
class _Record:
    id: str
    video_path: str
    question: str
    candidates: list[object]
    duration: float
    duration_group: int
    question_category: str
    correct_choice: int | None = None  # missing, or -1, where answers are not public
    subtitle_path: str = ""
    starting_timestamp_for_subtitles: float = 0.0


@dataclass(frozen=True)
class _Subtitle:
    timestamp: list[object] | None = None  # start and end in seconds of the original video
    text: str = ""
    start: str = ""  # the other form: `00:01:02.500`
    end: str = ""
    line: str = ""


class Cue(NamedTuple):
    """A subtitle, in seconds of the video as it is shown."""

    start: float
    end: float
    text: str


def read_samples(data_root: Root, *, split: str, with_subtitles: bool, num_frames: int) -> list[Sample]:
    """All questions of a split. Raises DataError for a bad record or file of subtitles."""
    path, folder = data_root / FOLDER / FILES[split], data_root / FOLDER

    def build(row: int, record: _Record) -> Sample:
        video = find_media(record.video_path, folder / "videos")
        info = read_header(video)
        frames = None if info is None else choose_frames(info, record.duration, num_frames)
        cues = _find_cues(record, folder) if with_subtitles else None
        times = [frame / read_fps(info) for frame in frames or ()]
        lines = [] if cues is None else interleave(times, cues)
        return ask_about_video(
            record.id,
            Shown(video, num_frames, frames, lines),
            f"{record.question}\n{letter_options(record.candidates)}\n{OPTION_SENTENCE}\n",
            answer=_find_answer(record),
            metadata={
                "duration_group": record.duration_group,
                "question_category": record.question_category,
                "chance": 1 / max(1, len(record.candidates)),
            },
        )

    return parse_rows(path, read_json(path, list), _Record, build)


def _find_answer(record: _Record) -> str | None:
    if record.correct_choice is None or record.correct_choice == -1:
        return None
    if not 0 <= record.correct_choice < len(record.candidates):
        raise DataError(f"correct_choice is {record.correct_choice}, expected 0 to {len(record.candidates) - 1}")
    return chr(ord("A") + record.correct_choice)


def choose_frames(info: VideoInfo, duration: float, num_frames: int) -> list[int]:
    """The published choice: frames at equal distances from the first on, at most one per second of the duration."""
    num_shown = max(1, min(num_frames, int(duration)))
    distance = int(int(duration * read_fps(info)) / num_shown)
    return [min(distance * number, info.num_frames - 1) for number in range(num_shown)]


def interleave(times: Sequence[float], cues: Iterable[Cue]) -> list[str]:
    """Lines of a prompt: `<image>` per frame, and each subtitle that is on screen at one of the frames.

    A subtitle stands after the frames up to its middle. Short ones count as on screen for a second around it.

    Args:
        times: When frames are shown, in seconds.
        cues: In the order of the file.
    """
    lines: list[str] = []
    num_placed = 0
    for start, end, text in cues:
        middle = (start + end) / 2
        while num_placed < len(times) and times[num_placed] <= middle:
            lines.append(IMAGE_PLACEHOLDER)
            num_placed += 1
        if end - start < 1:
            start, end = middle - 0.5, middle + 0.5
        if any(start < time < end for time in times):
            lines.append(text)
    return lines + [IMAGE_PLACEHOLDER] * (len(times) - num_placed)


def _find_cues(record: _Record, folder: Path) -> list[Cue]:
    file = find_media(record.subtitle_path, folder / "subtitles")
    return read_cues(file, offset=record.starting_timestamp_for_subtitles, duration=record.duration)


def read_cues(file: Path, *, offset: float, duration: float) -> list[Cue]:
    """The subtitles of a file, in seconds after `offset`.

    As published, an end that is no number with a point (it may be missing) is `duration`. Raises DataError for a bad
    record, which names the file and the row.
    """

    def build(row: int, subtitle: _Subtitle) -> Cue:
        if subtitle.timestamp is None:
            start, end, text = _read_clock(subtitle.start), _read_clock(subtitle.end), subtitle.line
        else:
            start, end, text = *_read_timestamp(subtitle.timestamp, duration), subtitle.text
        return Cue(start - offset, end - offset, text.replace(IMAGE_PLACEHOLDER, "< image>"))

    return parse_rows(file, read_json(file, list), _Subtitle, build)


def _read_timestamp(timestamp: Sequence[object], duration: float) -> tuple[float, float]:
    start, end = timestamp if len(timestamp) == 2 else (None, None)
    if not isinstance(start, int | float):
        raise DataError(f"timestamp is {timestamp!r:.60}, expected [start, end] in seconds")
    return float(start), end if isinstance(end, float) else duration


def _read_clock(text: str) -> float:
    parts = text.split(":")
    try:
        hours, minutes, seconds = parts
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError as error:
        raise DataError(f"a time is {text!r:.40}, expected a form such as 00:01:02.500") from error


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """Accuracy by duration (at most 15 s, 60 s, 10 min, an hour) and by category of the question."""
    return {
        "by_duration": average_by(scored, "duration_group"),
        "by_category": average_by(scored, "question_category"),
    }


def _render(predictions: Sequence[Prediction]) -> str:
    return json.dumps({prediction.id: prediction.response for prediction in predictions}, ensure_ascii=False) + "\n"


def _make(name: str, num_frames: int) -> Task:
    split, with_subtitles = name.removesuffix(_SUBTITLES), name.endswith(_SUBTITLES)
    return Task(
        name=f"longvideobench/{name}",
        version=1,
        source=SOURCE,
        annotation=FOLDER / FILES[split],
        read_samples=partial(read_samples, split=split, with_subtitles=with_subtitles, num_frames=num_frames),
        max_new_tokens=32,
        max_num=1,
        score_answer=use_one_rule(longvideobench.score),
        protocols=PROTOCOLS,
        aggregate=aggregate,
        num_frames=num_frames,
        folders=(FOLDER / "subtitles",) if with_subtitles else (),
        uploads=(Upload("upload.json", _render),) if split == "test" else (),
    )


FAMILY = collect_video_tasks([split + ending for split in FILES for ending in ("", _SUBTITLES)], _make)
