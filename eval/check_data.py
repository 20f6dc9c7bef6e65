"""`python -m eval.check_data TASKS`: shows which benchmarks are complete, what is missing, and where it is expected.

    do the files of questions exist? -> read them -> do pictures and videos exist? -> with --open: can they be read?

It loads no model and changes nothing. docs/evaluation.md says where everything comes from.
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from eval.core.data_root import FOLDERS, Root, find_data_root
from eval.core.media import find_broken_media, is_there, list_media
from eval.core.sample import PackedImage, Sample, check_answers
from eval.core.task import Task
from eval.run.options import RunOptions
from eval.tasks import own
from eval.tasks.registry import GROUPS, select_tasks
from internvl.command import command
from internvl.errors import DataError, EvalError
from internvl.parser import CommandParser

logger = logging.getLogger(__name__)

GUIDE = "docs/evaluation.md"


@dataclass(frozen=True)
class DataState:
    """State of a task's data."""

    task: Task
    missing_files: tuple[Path, ...] = ()  # of questions or answers; and missing folders
    fault: str = ""  # what is wrong with the files; empty: nothing
    num_samples: int = 0
    num_media: int = 0  # different pictures and videos, including those inside the annotation file
    missing_media: tuple[Path, ...] = ()
    broken_media: tuple[str, ...] = ()  # why pictures or videos that exist cannot be read

    @property
    def is_complete(self) -> bool:
        """Whether the task can be evaluated."""
        return not (self.missing_files or self.fault or self.missing_media or self.broken_media)

    def summarise(self) -> str:
        """One line."""
        if self.missing_files:
            rest = f" and {len(self.missing_files) - 1} more" if len(self.missing_files) > 1 else ""
            return f"missing: {self.missing_files[0]}{rest}"
        if self.fault:
            return f"broken: {self.fault}"
        counts = f"{self.num_samples} questions, {self.num_media} pictures or videos"
        if self.missing_media:
            return f"incomplete: {counts}, {len(self.missing_media)} missing, first {self.missing_media[0]}"
        if self.broken_media:
            return f"broken: {counts}, {len(self.broken_media)} unreadable, first {self.broken_media[0]}"
        return f"complete: {counts}"

    def list_problems(self, limit: int) -> list[str]:
        """What is missing or broken, one line each and at most `limit` lines per kind."""
        lines = [f"missing file: {path}" for path in self.missing_files]
        lines += [self.fault] if self.fault else []
        lines += _shorten([f"missing: {path}" for path in self.missing_media], limit)
        lines += _shorten([f"unreadable: {reason}" for reason in self.broken_media], limit)
        ways = f"get it from {self.task.source}" + ("; eval.run fetches it by itself" if self.task.fetch else "")
        return [*lines, ways] if lines else []


def _shorten(lines: list[str], limit: int) -> list[str]:
    num_more = len(lines) - limit
    return [*lines[:limit], f"... and {num_more} more (--show {len(lines)})"] if num_more > 0 else lines


def check_task(task: Task, data_root: Root, *, open_media: bool = False) -> DataState:
    """State of a task's data. Faults are part of the result, not errors."""
    missing = [data_root / file for file in task.files if not (data_root / file).is_file()]
    missing += [data_root / folder for folder in task.folders if not (data_root / folder).is_dir()]
    if missing:
        return DataState(task, missing_files=tuple(path.absolute() for path in missing))
    try:
        samples = task.read_samples(data_root)
        _check_ids(samples, task)
        check_answers(samples, source=task.annotation)
    except DataError as error:
        return DataState(task, fault=str(error))
    media = dict.fromkeys(entry for sample in samples for entry in list_media(sample))
    num_packed = sum(isinstance(image, PackedImage) for sample in samples for image in sample.images)
    return DataState(
        task,
        num_samples=len(samples),
        num_media=len(media) + num_packed,
        missing_media=tuple(path.absolute() for kind, path in media if not is_there(kind, path)),
        broken_media=tuple(find_broken_media(_show_progress(samples, task))) if open_media else (),
    )


def _check_ids(samples: Sequence[Sample], task: Task) -> None:
    if not samples:
        raise DataError("the file holds no questions", source=str(task.annotation))
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise DataError(f"id {sample.id!r} is used twice; ids must be unique", source=str(task.annotation))
        seen.add(sample.id)


def _show_progress(samples: Sequence[Sample], task: Task) -> Iterable[Sample]:
    return tqdm(samples, desc=task.name, unit="q", mininterval=1.0, disable=None)


def skip_missing(options: RunOptions) -> tuple[RunOptions, list[DataState]]:
    """With `--skip_missing`: the run without tasks whose data is missing, and those tasks.

    With `--fail_missing` a task stays if only pictures or videos are missing; the questions about them fail.

    Raises:
        EvalError: No task is left.
        DataError: A file exists but is broken.
    """
    if not options.skip_missing:
        return options, []
    data_root = find_data_root(options.data_root)
    states = []
    for task in select_tasks(options.tasks, prompts=options.prompts):
        try:
            task.fetch_missing(data_root)
        except EvalError as error:
            logger.warning("%s: %s", task.name, error)
        states.append(check_task(task, data_root))
    for state in states:
        if state.fault:
            raise DataError(f"{state.task.name}: {state.fault}")
    skipped = [s for s in states if s.missing_files or (s.missing_media and not options.fail_missing)]
    left = [state.task.info.get(own.FILE, state.task.name) for state in states if state not in skipped]
    if not left:
        raise EvalError(f"there is no complete data set; {describe_skipped(skipped)}")
    if skipped:
        logger.warning("%s", describe_skipped(skipped))
    return replace(options, tasks=",".join(left)), skipped


def describe_skipped(skipped: Sequence[DataState]) -> str:
    """Which tasks were left out, why, and where their data comes from."""
    lines = [f"  {state.task.name}: {state.summarise()}; get it from {state.task.source}" for state in skipped]
    head = f"{len(skipped)} task{'s' if len(skipped) > 1 else ''} without complete data (how to get it: {GUIDE}):"
    return "\n".join([head, *lines])


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 if something is missing, 2 for an error that the user can fix."""
    parser = CommandParser(
        prog="python -m eval.check_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "tasks", metavar="TASKS", help="names, groups, patterns or YAML files, separated by commas; or all"
    )
    parser.add_argument(
        "--data-root",
        "--data_root",
        type=Path,
        metavar="FOLDER",
        help=f"of the benchmarks, looked at before {', '.join(FOLDERS)}",
    )
    parser.add_argument("--open", action="store_true", help="decode every picture, read every video's header")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="missing files named per task (%(default)s)")
    args = parser.parse_args(argv)
    tasks = select_tasks(",".join(GROUPS) if args.tasks == "all" else args.tasks)
    data_root = find_data_root(args.data_root)
    states = [_report(check_task(task, data_root, open_media=args.open), args.show) for task in tasks]
    num_complete = sum(state.is_complete for state in states)
    if num_complete < len(states):
        print("looked in " + ", ".join(map(str, data_root.folders)))
    print(f"{num_complete} of {len(states)} tasks are complete; how to get the others: {GUIDE}")
    return int(num_complete < len(states))


def _report(state: DataState, show: int) -> DataState:
    print(f"{state.task.name:<45} {state.summarise()}" if state.is_complete else state.task.name)
    for line in state.list_problems(show):
        print(f"    {line}")
    return state


if __name__ == "__main__":
    sys.exit(main())
