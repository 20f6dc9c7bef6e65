"""Video-MME: questions about videos of a minute to an hour (Fu et al. 2024, arXiv 2405.21075).

    DATA_ROOT/Video-MME/videomme.json                    list of video_id, duration, domain, sub_category, questions
    DATA_ROOT/Video-MME/data/VIDEO.mp4                   videos, by `videoID` if records have one, else by `video_id`
    DATA_ROOT/Video-MME/subtitle/VIDEO.srt               subtitles; a video without a file has none

With subtitles, those that are on screen at the sampled frames stand in front of the question. V2PE published a number
but neither prompt nor number of frames; the prompt is the official one, and 16 frames are taken as for MVBench.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eval.core.records import read_json, require_field
from eval.core.sample import Sample
from eval.core.task import Scored, Task
from eval.metrics import videomme
from eval.tasks.questions import Record, collect_tasks, estimate_cost
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip, choose_frames, read_video_info
from internvl.errors import DataError

VERSION = 1
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


def read_samples(data_root: Path, *, with_subtitles: bool) -> list[Sample]:
    """All questions. Raises DataError for a bad record."""
    samples: list[Sample] = []
    path, subtitles = data_root / ANNOTATION, data_root / FOLDER / "subtitle"
    if with_subtitles and not subtitles.is_dir():
        raise DataError(f"no subtitles, expected in {subtitles}; get them from {SOURCE}")
    for row, record in enumerate(read_json(path, list)):
        try:
            samples += _build(record, data_root / FOLDER, with_subtitles)
        except DataError as error:
            raise DataError(str(error), source=str(path), row=row) from error
    return samples


def _build(record: Record, folder: Path, with_subtitles: bool) -> list[Sample]:
    number = require_field(record, "video_id", (str, int))
    name = str(record.get("videoID") or number)
    video = folder / "data" / f"{name}.mp4"
    kinds = {key: require_field(record, key, str) for key in ("duration", "domain", "sub_category")}
    lead = _list_subtitles(video, folder / "subtitle" / f"{name}.srt") if with_subtitles else ""
    samples = []
    for entry in require_field(record, "questions", list):
        options = require_field(entry, "options", list)
        text = INSTRUCTION + require_field(entry, "question", str) + "\n" + "\n".join(map(str, options)) + ENDING
        samples.append(
            Sample(
                id=str(require_field(entry, "question_id", (str, int))),
                prompt=f"{VIDEO_PLACEHOLDER}\n{lead}{text}",
                images=(),
                answer=require_field(entry, "answer", str),
                metadata={
                    "question": text,
                    **kinds,
                    "task_type": require_field(entry, "task_type", str),
                    "chance": 1 / max(1, len(options)),
                },
                cost=estimate_cost(lead + text, NUM_FRAMES),
                videos=(VideoClip(video),),
            )
        )
    return samples


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


def _score(answer: Any, response: str, protocol: str) -> float:
    return videomme.score(answer, response)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, Any]:
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
        version=VERSION,
        source=SOURCE,
        annotation=ANNOTATION,
        read_samples=partial(read_samples, with_subtitles=with_subtitles),
        max_new_tokens=16,
        max_num=1,
        score_answer=_score,
        protocols=("official", "upstream"),
        aggregate=aggregate,
        num_frames=NUM_FRAMES,
        folders=(FOLDER / "subtitle",) if with_subtitles else (),
    )


FAMILY = collect_tasks(_make("test", False), _make("test-subtitles", True))
