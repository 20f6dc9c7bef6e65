"""Work queue: open questions of all tasks, longest first, from which every rank draws.

    check folders -> prepare, read what is answered, plan (rank 0) -> the plan, to all ranks -> draw and answer
                  -> barrier -> merge and score (rank 0)

    queue     [ 900 ][ 850 ][ 600 ][ 300 ][ 300 ] ... [ 5 ][ 5 ]       units, by estimated cost
    rank 0    [ 900 ]              [ 300 ]     ... [ 5 ]
    rank 1           [ 850 ][ 600 ]       [ 300 ] ...    [ 5 ]         whoever is ready draws the next one

A unit is a batch, or questions that show the same pictures, whose features are then made once. Because the cheapest
units come last, ranks end at about the same time. The result does not depend on who answers what, so a killed run can
go on with any number of ranks. Processes that answer together count as one rank, and one of them writes.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from pathlib import Path

from tqdm import tqdm

from eval.core.media import is_there, list_media
from eval.core.predictions import PartWriter, PredictionStore
from eval.core.sample import Prediction, Sample, check_answers
from eval.core.task import Task
from internvl.errors import EvalError

logger = logging.getLogger(__name__)

UNITS_PER_RANK = 32  # at least, unless single questions cost more: so far apart may ranks end


class LastAnswerError(EvalError):
    """This process cannot go on, but `predictions`, of some of the questions it was asked, are to be written first."""

    def __init__(self, message: str, predictions: Sequence[Prediction]):
        super().__init__(message)
        self.predictions = predictions


Answer = Callable[[Task, Sequence[Sample]], Sequence[Prediction]]
Place = tuple[int, int]  # of a question: (number of its job, number of its sample)


@dataclass(frozen=True)
class Workers:
    """The processes of a run."""

    rank: int = 0  # this process, from 0, or the group of processes that it answers together with
    world_size: int = 1  # number of processes, or of groups
    barrier: Callable[[], None] = lambda: None  # returns when every process has called it
    member: int = 0  # this process in its group; the first member writes what the group answers
    # the main process's units, on every process; all of them call it
    share: Callable[[list["Unit"]], list["Unit"]] = lambda units: units
    # the next of 0, 1, 2, ... that no other rank has got; the same in a group
    draw: Callable[[], int] = field(default_factory=lambda: count().__next__)

    @property
    def is_writer(self) -> bool:
        """Whether this process writes what its group answers."""
        return self.member == 0

    @property
    def is_main(self) -> bool:
        """Whether this process prepares folders, plans, merges and reports."""
        return self.rank == 0 and self.is_writer


@dataclass(frozen=True)
class Job:
    """One task, its questions, and where its predictions go."""

    task: Task
    samples: tuple[Sample, ...]
    store: PredictionStore


@dataclass(frozen=True)
class Unit:
    """Questions that one rank answers in one go, in the order in which they are asked."""

    questions: tuple[Place, ...]
    cost: float  # of all questions, in estimated tokens


def check_jobs(jobs: Sequence[Job], *, fail_missing: bool = False) -> None:
    """Refuse, before any model is loaded, what could only end in a wrong number.

    Raises:
        EvalError: No samples, an id used twice, missing pictures or videos (with `fail_missing` only if all are).
        DataError: Some answers are missing and others are there.
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
        check_answers(job.samples, source=job.task.annotation)
        _check_media(job, fail_missing=fail_missing)


def _check_media(job: Job, *, fail_missing: bool) -> None:
    first_use: dict[tuple[str, Path], str] = {}
    for sample in job.samples:
        for entry in list_media(sample):
            first_use.setdefault(entry, sample.id)
    missing = [entry for entry in first_use if not is_there(*entry)]
    if not missing:
        return
    (kind, path), num_missing = missing[0], len(missing)
    is_allowed = fail_missing and num_missing < len(first_use)
    message = (
        f"{job.task.name}, sample {first_use[kind, path]!r}: {kind} not found, expected at {path} "
        f"({num_missing} of {len(first_use)} pictures and videos of the task are missing)"
    )
    if is_allowed:
        logger.warning("%s; questions about them count as failed", message)
        return
    way_out = "" if num_missing == len(first_use) else ", or pass --fail_missing to count questions about them as wrong"
    raise EvalError(f"{message}; get it from {job.task.source}{way_out}")


def plan_units(
    jobs: Sequence[Job], open_questions: Sequence[Place], *, world_size: int = 1, batch_size: int = 1
) -> list[Unit]:
    """The queue: units in the order in which they are drawn, the most expensive first.

    Questions that show the same pictures and videos stay together, unless that makes a unit so large that ranks would
    end far apart (`UNITS_PER_RANK`).
    """
    groups: dict[Hashable, list[Place]] = {}
    for place in open_questions:
        sample = _find(jobs, place)
        groups.setdefault((sample.images, sample.videos) if sample.images or sample.videos else place, []).append(place)
    total = sum(_cost(jobs, place) for place in open_questions)
    limit = total / (UNITS_PER_RANK * world_size) if world_size > 1 else float("inf")
    units = [unit for group in groups.values() for unit in _split_group(jobs, group, limit)]
    units.sort(key=lambda unit: (-unit.cost, unit.questions))
    return units if batch_size == 1 else _join_units(units, batch_size)


def _split_group(jobs: Sequence[Job], group: list[Place], limit: float) -> Iterator[Unit]:
    """Consecutive questions of a group, as many as cost at most `limit`, at least one."""
    questions: list[Place] = []
    cost = 0.0
    for place in group:
        added = _cost(jobs, place)
        if questions and cost + added > limit:
            yield Unit(tuple(questions), cost)
            questions, cost = [], 0.0
        questions.append(place)
        cost += added
    yield Unit(tuple(questions), cost)


def _join_units(units: Sequence[Unit], batch_size: int) -> list[Unit]:
    """Units of one job and of about the same cost together, up to a full batch."""
    joined: list[Unit] = []
    waiting: dict[Hashable, Unit] = {}
    for unit in units:
        jobs = frozenset(job for job, _ in unit.questions)
        before = waiting.pop(jobs, Unit((), 0.0))
        unit = Unit((*before.questions, *unit.questions), before.cost + unit.cost)
        if len(jobs) > 1 or len(unit.questions) >= batch_size:
            joined.append(unit)
        else:
            waiting[jobs] = unit
    return sorted([*joined, *waiting.values()], key=lambda unit: (-unit.cost, unit.questions))


def _find(jobs: Sequence[Job], place: Place) -> Sample:
    job, number = place
    return jobs[job].samples[number]


def _cost(jobs: Sequence[Job], place: Place) -> float:
    return max(_find(jobs, place).cost, 1.0)


def list_open(jobs: Sequence[Job], *, retry_failed: bool = False) -> list[Place]:
    """Questions without an answer so far; with `retry_failed` also those whose answer failed."""
    places = []
    for index, job in enumerate(jobs):
        answered = job.store.read()
        for number, sample in enumerate(job.samples):
            prediction = answered.get(sample.id)
            if prediction is None or (retry_failed and prediction.failure is not None):
                places.append((index, number))
    return places


def run_jobs(
    jobs: Sequence[Job],
    make_answer: Callable[[], Answer],
    *,
    workers: Workers | None = None,
    overwrite: bool = False,
    batch_size: int = 1,
    retry_failed: bool = False,
) -> list[list[Prediction]] | None:
    """Answer what is not answered yet and merge; the main process returns each job's predictions in sample order.

    Args:
        jobs: Checked jobs (`check_jobs`).
        make_answer: Loads the model; called only when there is something to answer.
        workers: The processes that share the work; None for this one alone.
        overwrite: Throw saved predictions away first.
        batch_size: Questions of a task that are answered at once.
        retry_failed: Ask questions again that failed in an earlier run.

    Raises EvalError as `PredictionStore` does. Other processes return None.
    """
    workers = workers or Workers()
    units: list[Unit] = []
    if workers.is_main:
        for job in jobs:
            job.store.prepare(overwrite=overwrite)
        open_questions = list_open(jobs, retry_failed=retry_failed)
        units = plan_units(jobs, open_questions, world_size=workers.world_size, batch_size=batch_size)
        num_all = sum(len(job.samples) for job in jobs)
        logger.info("%d questions in %d tasks, %d to answer", num_all, len(jobs), len(open_questions))
    units = workers.share(units)
    if workers.rank < len(units):
        _answer_units(jobs, units, make_answer(), workers, batch_size)
    workers.barrier()
    return [job.store.merge(job.samples) for job in jobs] if workers.is_main else None


def _answer_units(
    jobs: Sequence[Job], units: Sequence[Unit], answer: Answer, workers: Workers, batch_size: int
) -> None:
    """Draw units and answer them until there are none left."""
    writers = [job.store.open_part(workers.rank, workers.world_size, member=workers.member) for job in jobs]
    begins = list(accumulate((unit.cost for unit in units), initial=0.0))
    with _ProgressBar(begins[-1], is_shown=workers.is_main) as bar:
        try:
            while (number := workers.draw()) < len(units):
                done = begins[number]  # everything before was drawn by somebody
                bar.show(done)
                for batch in _split_batches(units[number].questions, batch_size):
                    _answer_batch(jobs, batch, answer, writers, is_writer=workers.is_writer)
                    done += sum(_cost(jobs, place) for place in batch)
                    bar.show(done)
            bar.show(begins[-1])
        finally:
            for writer in writers:
                writer.close()


def _answer_batch(
    jobs: Sequence[Job], batch: Sequence[Place], answer: Answer, writers: Sequence[PartWriter], *, is_writer: bool
) -> None:
    job = batch[0][0]
    try:
        predictions = answer(jobs[job].task, [_find(jobs, place) for place in batch])
    except LastAnswerError as error:
        for prediction in error.predictions:
            writers[job].append(prediction)
        raise
    if is_writer:
        for prediction in predictions:
            writers[job].append(prediction)


def _split_batches(questions: Sequence[Place], batch_size: int) -> Iterator[list[Place]]:
    """Questions of one job each, at most `batch_size` at a time."""
    by_job: dict[int, list[Place]] = {}
    for place in questions:
        by_job.setdefault(place[0], []).append(place)
    for places in by_job.values():
        for first in range(0, len(places), batch_size):
            yield places[first : first + batch_size]


class _ProgressBar:
    """Progress and remaining time of the whole run in estimated tokens, so that long questions count for more."""

    def __init__(self, total: float, *, is_shown: bool):
        self._bar = tqdm(
            total=round(total), desc="answering", unit="tok", unit_scale=True, disable=not is_shown, mininterval=1.0
        )

    def __enter__(self) -> "_ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def show(self, done: float) -> None:
        """Move to `done` of the total."""
        self._bar.update(round(done) - self._bar.n)
