"""What benchmarks with long videos share: how many frames a task shows and which, and tables by duration.

A task shows 64 frames; `TASK-256frames` is the same task with 256.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.core.sample import FrameImage, Gold, Sample
from eval.core.task import Scored, Task, TaskFamily
from eval.metrics.bins import label_value
from eval.metrics.estimate import estimate_groups
from eval.tasks.questions import Results, estimate_cost, order_label
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip, VideoInfo, read_video_info
from internvl.errors import DataError

NUM_FRAMES = 64  # as in the examples of LongVideoBench, VNBench and Video-MME-v2
_FRAMES = re.compile(r"(.+)-([1-9]\d{0,4})frames")
_MINUTES = (1, 3, 10, 30, 60)  # edges of durations


def collect_video_tasks(
    names: Sequence[str],
    make: Callable[[str, int], Task],
    *,
    summarise: Callable[[Results], dict[str, object]] = lambda results: {},
) -> TaskFamily:
    """A family of tasks that may be asked with any number of frames.

    Args:
        names: Without the group.
        make: (name without frames, frames per video) -> the task, called `GROUP/NAME`.
        summarise: Numbers over several tasks, all of them asked with the same number of frames.
    """

    def find(name: str, prompts: str) -> Task | None:
        base, num_frames = split_frames(name)
        if base not in names:
            return None
        task = make(base, num_frames)
        return task if num_frames == NUM_FRAMES else replace(task, name=f"{task.name}-{num_frames}frames")

    def summarise_each(results: Results) -> dict[str, object]:
        by_frames: dict[int, dict[str, Mapping[str, object]]] = {}
        for name, result in results.items():
            base, num_frames = split_frames(name)
            by_frames.setdefault(num_frames, {})[base] = result
        return {
            key if num_frames == NUM_FRAMES else f"{key}-{num_frames}frames": numbers
            for num_frames, tasks in by_frames.items()
            for key, numbers in summarise(tasks).items()
        }

    return TaskFamily(tuple(names), find, summarise_each)


def split_frames(name: str) -> tuple[str, int]:
    """`test-256frames` -> (`test`, 256)."""
    match = _FRAMES.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, NUM_FRAMES)


@dataclass(frozen=True)
class Shown:
    """How a prompt shows a video."""

    video: Path
    num_frames: int
    frames: Sequence[int] | None = None  # the frames that are shown; None: `num_frames`, evenly spread
    lines: Sequence[str] = ()  # where frames and texts take turns: these, with one `<image>` per frame


def ask_about_video(sample_id: str, shown: Shown, text: str, *, answer: Gold, metadata: Mapping[str, object]) -> Sample:
    """A question after its video."""
    lead = "\n".join(shown.lines)
    frames = None if shown.frames is None else tuple(shown.frames)
    is_mixed = bool(lead) and frames is not None
    return Sample(
        id=sample_id,
        prompt=f"{lead if is_mixed else VIDEO_PLACEHOLDER}\n{text}",
        images=tuple(FrameImage(shown.video, frame) for frame in frames or ()) if is_mixed else (),
        answer=answer,
        metadata={"question": text, **metadata},
        cost=estimate_cost(lead + text, shown.num_frames),
        videos=() if is_mixed else (VideoClip(shown.video, frames=frames),),
    )


def read_header(video: Path) -> VideoInfo | None:
    """What a video's header says; None where it cannot be read, so that only the questions about this video fail."""
    try:
        return read_video_info(video)
    except DataError:
        return None


def read_fps(info: VideoInfo | None) -> float:
    """Frames per second; 1 where the header does not say."""
    return (info.fps if info else None) or 1.0


def label_duration(seconds: float | None) -> str:
    """`<1 min`, `1-3 min`, ... `60+ min`; `unknown` where the file does not say."""
    return "unknown" if seconds is None else f"{label_value(seconds / 60, _MINUTES)} min"


def average_by(scored: Sequence[Scored], field: str) -> dict[str, dict[str, float]]:
    """Mean score by a field of the metadata, in the order of its labels."""
    return estimate_sorted((str(item.metadata[field]), item.score) for item in scored)


def estimate_sorted(rows: Iterable[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """Mean score by label from `(label, score)`, in the order of labels."""
    return estimate_groups(sorted(rows, key=lambda row: order_label(row[0])))
