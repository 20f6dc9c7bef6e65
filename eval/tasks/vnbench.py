"""VNBench: needles in videos of ten seconds to three minutes (Zhao et al. 2024, arXiv 2406.09367).

    DATA_ROOT/VNBench/VNBench-main-4try.json             list of video, question, options, gt, type, try, length, ...
    DATA_ROOT/VNBench/VNBench_new/VIDEO.mp4              videos, by the last part of `video` (also in VNBench/)

Every question is asked four times with its options in another order, and counts if all four answers are right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from statistics import fmean

from eval.core.data_root import Root, find_media
from eval.core.fields import KEY, parse_rows
from eval.core.records import read_json
from eval.core.sample import Sample
from eval.core.task import Scored, Task
from eval.metrics import choice, vnbench
from eval.metrics.protocol import PROTOCOLS
from eval.tasks.questions import OPTION_SENTENCE, letter_options, use_one_rule
from eval.tasks.videos import Shown, ask_about_video, collect_video_tasks, estimate_sorted
from internvl.errors import DataError

FOLDER = Path("VNBench")
ANNOTATION = FOLDER / "VNBench-main-4try.json"


@dataclass(frozen=True)
class _Record:
    video: str
    question: str
    options: list[object]
    gt: object
    type: str
    number: int = field(metadata={KEY: "try"})
    length: object = None  # of the video


def read_samples(data_root: Root, *, num_frames: int) -> list[Sample]:
    """All tries of all questions. Raises DataError for a bad record."""
    path, folder = data_root / ANNOTATION, data_root / FOLDER

    def build(row: int, record: _Record) -> Sample:
        letters = [letter for letter, text in choice.label_options(record.options).items() if text == str(record.gt)]
        if not letters:
            raise DataError(f"gt is {record.gt!r:.60}, expected one of the options {record.options!r:.200}")
        name = PurePosixPath(record.video).name
        text = f"{record.question}\n{letter_options(record.options)}\n{OPTION_SENTENCE}"
        return ask_about_video(
            f"{name.removesuffix('.mp4')}_{record.number}",
            Shown(find_media(name, data_root, (folder / "VNBench_new", folder / "VNBench")), num_frames),
            text,
            answer=letters[0],
            metadata={
                "video": name,
                "type": record.type,
                "length": str(record.length),
                "chance": 1 / len(record.options),
            },
        )

    return parse_rows(path, read_json(path, list), _Record, build)


def aggregate(scored: Sequence[Scored], length_edges: Sequence[int] | None) -> dict[str, object]:
    """The published number and its parts, and the share of right questions by length of the video."""
    rows = [(item.metadata["video"], item.metadata["type"], item.score) for item in scored]
    lengths = {item.metadata["video"]: item.metadata["length"] for item in scored}
    questions = vnbench.merge_tries(rows)
    return {
        **vnbench.summarise(rows),
        "chance": fmean(item.metadata["chance"] ** vnbench.NUM_TRIES for item in scored),
        "by_video_length": estimate_sorted((lengths[video], right) for (_, video), right in questions.items()),
    }


def _make(name: str, num_frames: int) -> Task:
    return Task(
        name=f"vnbench/{name}",
        version=1,
        source="https://huggingface.co/datasets/videoniah/VNBench",
        annotation=ANNOTATION,
        read_samples=partial(read_samples, num_frames=num_frames),
        max_new_tokens=5,
        max_num=1,
        score_answer=use_one_rule(vnbench.score),
        protocols=PROTOCOLS,
        aggregate=aggregate,
        num_frames=num_frames,
    )


FAMILY = collect_video_tasks(["test"], _make)
