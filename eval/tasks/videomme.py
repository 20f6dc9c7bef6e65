"""Video-MME: questions about videos of a minute to an hour (Fu et al. 2024, arXiv 2405.21075).

    DATA_ROOT/Video-MME/videomme.json                    list of video_id, duration, domain, sub_category, questions
    DATA_ROOT/Video-MME/data/VIDEO.mp4                   videos, by `videoID` if records have one, else by `video_id`
    DATA_ROOT/Video-MME/subtitle/VIDEO.srt               subtitles; a video without a file has none

With subtitles, those that are on screen at the sampled frames come before the question. V2PE published a number
but neither prompt nor number of frames; the prompt is the official one, and 16 frames are taken as for MVBench.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.core.data_root import Root, find_media
from eval.core.fields import parse_rows
from eval.core.records import read_json
from eval.core.sample import Sample
from eval.core.task import Scored, Task
from eval.metrics import videomme
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import collect_tasks, estimate_cost, use_one_rule
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip, choose_frames, read_video_info
from internvl.errors import DataError

SOURCE = "https://huggingface.co/datasets/lmms-lab/Video-MME"
FOLDER = Path("Video-MME")
ANNOTATION = FOLDER / "videomme.json"
NUM_FRAMES = 16
SUBTITLE_LINE = "This video's subtitles are listed below:\n"
INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option.\n"
)
ENDING = "\nThe best answer is:"
_TIME = r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})"
_SPAN = re.compile(rf"{_TIME}\s*-->\s*{_TIME}")


@dataclass(frozen=True)
class _VideoQuestion:
    question_id: str | int
    task_type: str
    question: str
    options: list[object]
    answer: str


@dataclass(frozen=True)
class _VideoRecord:
    video_id: str | int
    duration: str
    domain: str
    sub_category: str
    questions: list[_VideoQuestion]
    videoID: object = None


def read_samples(data_root: Root, *, with_subtitles: bool) -> list[Sample]:
    """All questions. Raises DataError for a bad record."""
    path, folder = data_root / ANNOTATION, data_root / FOLDER
    if with_subtitles and not (folder / "subtitle").is_dir():
        raise DataError(f"no subtitles, expected in {folder / 'subtitle'}; get them from {SOURCE}")
    videos = parse_rows(
        path, read_json(path, list), _VideoRecord, lambda _, record: _build(record, folder, with_subtitles)
    )
    return [sample for samples in videos for sample in samples]


def _build(record: _VideoRecord, folder: Path, with_subtitles: bool) -> list[Sample]:
    name = str(record.videoID or record.video_id)
    video = find_media(f"{name}.mp4", folder / "data")
    lead = _list_subtitles(video, find_media(f"{name}.srt", folder / "subtitle")) if with_subtitles else ""
    return [_ask(entry, record, video, lead) for entry in record.questions]


def _ask(entry: _VideoQuestion, record: _VideoRecord, video: Path, lead: str) -> Sample:
    text = INSTRUCTION + entry.question + "\n" + "\n".join(map(str, entry.options)) + ENDING
    return Sample(
        id=str(entry.question_id),
        prompt=f"{VIDEO_PLACEHOLDER}\n{lead}{text}",
        images=(),
        answer=entry.answer,
        metadata={
            "question": text,
            "duration": record.duration,
            "domain": record.domain,
            "sub_category": record.sub_category,
            "task_type": entry.task_type,
            "chance": 1 / max(1, len(entry.options)),
        },
        cost=estimate_cost(lead + text, NUM_FRAMES),
        videos=(VideoClip(video),),
    )


def _list_subtitles(video: Path, file: Path) -> str:
    """The subtitles on screen at the sampled frames, a line each; nothing where there are none."""
    if not (file.is_file() and video.is_file()):
        return ""
    fps = read_video_info(video).fps or 1.0
    times = [frame / fps for frame in choose_frames(VideoClip(video), num_frames=NUM_FRAMES)]
    lines = [text for start, end, text in read_subtitles(file) if any(start <= time <= end for time in times)]
    return SUBTITLE_LINE + "\n".join(lines) + "\n" if lines else ""


def read_subtitles(file: Path) -> list[tuple[float, float, str]]:
    """`(first second, last second, text)` of every subtitle of an srt file, markup removed."""
    subtitles = []
    content = file.read_bytes().decode("utf-8-sig", errors="replace")
    for block in re.split(r"\n\s*\n", content.replace("\r\n", "\n")):
        match = _SPAN.search(block)
        if match:
            start, end = _read_seconds(match.groups()[:4]), _read_seconds(match.groups()[4:])
            text = " ".join(re.sub(r"<[^>]*>", "", block[match.end() :]).split())
            subtitles += [(start, end, text)] if text else []
    return subtitles


def _read_seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction) / 10 ** len(fraction)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """Accuracy by duration and kind; `official` in each leaves out responses without a letter."""
    rows = [
        videomme.Answered(
            **{key: item.metadata[key] for key in ("duration", "domain", "sub_category", "task_type")},
            is_right=item.score > 0,
            has_letter=bool(videomme.find_letter(item.response)),
        )
        for item in scored
    ]
    return {"by_duration": videomme.summarise(rows)}


def _make(name: str, with_subtitles: bool) -> Task:
    return Task(
        name=f"videomme/{name}",
        version=1,
        source=SOURCE,
        annotation=ANNOTATION,
        read_samples=partial(read_samples, with_subtitles=with_subtitles),
        max_new_tokens=16,
        max_num=1,
        score_answer=use_one_rule(videomme.score),
        protocols=PROTOCOLS,
        aggregate=aggregate,
        num_frames=NUM_FRAMES,
        folders=(FOLDER / "subtitle",) if with_subtitles else (),
    )


FAMILY = collect_tasks([_make("test", False), _make("test-subtitles", True)])
