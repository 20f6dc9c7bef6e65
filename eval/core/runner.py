"""Who answers what: open questions of all tasks are shared over the ranks by cost, longest first.

    check folders -> prepare (rank 0) -> barrier -> read what is answered -> barrier -> answer own share -> barrier
                  -> merge and score (rank 0)

The share of a rank follows from the open questions and the number of ranks alone, so a killed run can go on with any
other number of ranks. Processes that answer together count as one rank here, and one of them writes.
"""

import heapq
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from eval.core.sample import EnlargedImage, Prediction, Sample
from eval.core.store import PredictionStore
from eval.core.task import Task
from internvl.errors import EvalError

logger = logging.getLogger(__name__)

Answer = Callable[[Task, Sample], Prediction]


@dataclass(frozen=True)
class Workers:
    """The processes of a run.

    Attributes:
        rank: This process, from 0; or the group of processes that it answers together with.
        world_size: Number of processes, or of groups.
        barrier: Returns when every process has called it.
        is_writer: Whether this process writes what its group answers.
    """

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], None] = lambda: None
    is_writer: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this process prepares folders, merges and reports."""
        return self.rank == 0 and self.is_writer


@dataclass(frozen=True)
class Job:
    """One task, its questions, and where its predictions go."""

    task: Task
    samples: tuple[Sample, ...]
    store: PredictionStore


def check_jobs(jobs: Sequence[Job]) -> None:
    """Refuse, before any model is loaded, what could only end in a wrong number.

    Raises:
        EvalError: No samples, an id used twice, a missing image, predictions made with other settings.
    """
    for job in jobs:
        if not job.samples:
            raise EvalError(f"{job.task.name}: {job.task.annotation} holds no samples")
        seen: set[str] = set()
        for sample in job.samples:
            if sample.id in seen:
                raise EvalError(
                    f"{job.task.name}: id {sample.id!r} is used twice in {job.task.annotation}; ids must be unique"
                )
            seen.add(sample.id)
        _check_media(job)


def _check_media(job: Job) -> None:
    known: set[str] = set()
    for sample in job.samples:
        files = [image.path if isinstance(image, EnlargedImage) else image for image in sample.images]
        media = [("image", file, file.is_file) for file in files if isinstance(file, Path)]
        media += [("video", Path(video.path), Path(video.path).exists) for video in sample.videos]
        for kind, path, is_there in media:
            if str(path) not in known and not is_there():
                raise EvalError(
                    f"{job.task.name}, sample {sample.id!r}: {kind} not found, expected at {path}; "
                    f"get it from {job.task.source}"
                )
            known.add(str(path))


def share_questions(jobs: Sequence[Job], world_size: int) -> list[list[tuple[int, Sample]]]:
    """Split the open questions of all jobs over the ranks.

    The longest remaining question always goes to the rank with the least cost so far.

    Returns:
        For every rank its `(job index, sample)` pairs, longest first.
    """
    open_questions = []
    for index, job in enumerate(jobs):
        answered = job.store.read()
        open_questions += [(index, sample) for sample in job.samples if sample.id not in answered]
    open_questions.sort(key=lambda item: (-item[1].cost, item[0], item[1].id))
    shares: list[list[tuple[int, Sample]]] = [[] for _ in range(world_size)]
    loads = [(0.0, rank) for rank in range(world_size)]
    for index, sample in open_questions:
        load, rank = heapq.heappop(loads)
        shares[rank].append((index, sample))
        heapq.heappush(loads, (load + max(sample.cost, 1.0), rank))
    return shares


def run_jobs(
    jobs: Sequence[Job], make_answer: Callable[[], Answer], *, workers: Workers | None = None, overwrite: bool = False
) -> list[list[Prediction]] | None:
    """Answer what is not answered yet and merge.

    Args:
        jobs: Checked jobs (`check_jobs`).
        make_answer: Loads the model; called only when this rank has something to answer.
        workers: The processes that share the work; None for this one alone.
        overwrite: Throw saved predictions away first.

    Returns:
        On the main process the predictions of every job in sample order, elsewhere None.

    Raises:
        EvalError: See `PredictionStore`.
    """
    workers = workers or Workers()
    if workers.is_main:
        for job in jobs:
            job.store.prepare(overwrite=overwrite)
    workers.barrier()
    shares = share_questions(jobs, workers.world_size)
    workers.barrier()
    num_open, num_all = sum(map(len, shares)), sum(len(job.samples) for job in jobs)
    if workers.is_main:
        logger.info("%d questions in %d tasks, %d already answered", num_all, len(jobs), num_all - num_open)
    if shares[workers.rank]:
        _answer_share(jobs, shares[workers.rank], make_answer(), workers)
    workers.barrier()
    return [job.store.merge(job.samples) for job in jobs] if workers.is_main else None


def _answer_share(jobs: Sequence[Job], share: list[tuple[int, Sample]], answer: Answer, workers: Workers) -> None:
    writers = [job.store.open_part(workers.rank, workers.world_size) for job in jobs] if workers.is_writer else []
    label = "answering" if workers.world_size == 1 else f"answering (rank 0 of {workers.world_size})"
    try:
        for index, sample in tqdm(share, desc=label, unit="q", disable=not workers.is_main, mininterval=1.0):
            prediction = answer(jobs[index].task, sample)
            if workers.is_writer:
                writers[index].append(prediction)
    finally:
        for writer in writers:
            writer.close()
