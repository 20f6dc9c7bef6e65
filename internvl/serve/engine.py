"""Engine: one thread owns the model, and answers in batches what waits together.

    submit(job) --> [ job | job | job ] --(alike, up to max_batch answers)--> encode --> answer_rows --> job.send(event)
                                                                               |
                                              a prompt that is wrong fails alone

Greedy jobs on the same kind of positions are alike. Jobs that draw their tokens are answered alone: a seed stands for
all rows of a batch together, so an answer would depend on its company.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from internvl.infer.question import EncodedQuestion, Question
from internvl.infer.rows import Request, Row, TokenLogprobs
from internvl.infer.session import Session
from internvl.infer.settings import Sampling
from internvl.model.positions import may_share_batch
from internvl.serve.errors import ApiError
from internvl.serve.metrics import Metrics
from internvl.serve.options import ServerOptions

logger = logging.getLogger(__name__)

_GATHERING_S = 0.005  # clients that were answered together ask again within milliseconds


@dataclass(frozen=True)
class Started:
    """The prompt is sound and its answer begins."""

    prompt: EncodedQuestion


@dataclass(frozen=True)
class Piece:
    """A piece of one of the answers."""

    choice: int
    text: str
    logprobs: Sequence[TokenLogprobs]


@dataclass(frozen=True)
class Finished:
    """All answers of a job."""

    rows: Sequence[Row]


@dataclass(frozen=True)
class Failed:
    """There is no answer, or no end of it."""

    error: Exception


Event = Started | Piece | Finished | Failed


@dataclass(eq=False)
class Job:
    """A question, what is wanted of its answers, and where they go."""

    question: Question
    version: str  # of the positions
    sampling: Sampling
    send: Callable[[Event], None]  # called from the engine's thread
    max_new_tokens: int
    num_choices: int = 1
    stop: Sequence[str] = ()
    num_top: int | None = None
    is_cancelled: bool = False  # set by whoever does not want the answer any more
    has_text: bool = False
    submitted_at: float = field(default_factory=time.perf_counter)

    def is_like(self, other: "Job") -> bool:
        """Whether both may be answered in one batch."""
        if self is other:
            return True
        are_greedy = self.sampling.is_greedy and other.sampling.is_greedy
        return are_greedy and may_share_batch(self.version, other.version)

    def build_requests(self, prompt: EncodedQuestion) -> list[Request]:
        """One request per choice."""
        return [
            Request(
                prompt,
                self.max_new_tokens,
                stop=self.stop,
                num_top=self.num_top,
                on_piece=partial(self._send_piece, choice),
                is_cancelled=lambda: self.is_cancelled,
            )
            for choice in range(self.num_choices)
        ]

    def _send_piece(self, choice: int, text: str, logprobs: Sequence[TokenLogprobs]) -> None:
        self.has_text = True
        self.send(Piece(choice, text, logprobs))


def _stopping() -> ApiError:
    return ApiError(503, "the server is being stopped; try again later", code="stopping")


class Engine:
    """Answers jobs in the order of their arrival.

    Args:
        session: The model, which nothing else may use meanwhile.
        options: Limits of batches and prompts.
        count_open: Number of the server's requests, for the metrics.
    """

    def __init__(self, session: Session, options: ServerOptions, *, count_open: Callable[[], int]):
        self.session = session
        self.metrics = Metrics(count_waiting=lambda: len(self._waiting), count_open=count_open)
        self._options = options
        # Several questions at once need a cache whose rows are independent, see `check_batchable`.
        self._max_batch = 1 if session.settings.kv_cache == "quantized" else options.max_batch
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are being answered."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Answer a job when its turn comes."""
        with self._changed:
            if self._is_closing:
                self._fail(job, _stopping())
                return
            self._waiting.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """Fail what runs and waits; generation ends at the next token, and the thread with it."""
        with self._changed:
            self._is_closing = True
            for job in [*self._waiting, *self._running]:
                job.is_cancelled = True
                self._fail(job, _stopping())
            self._waiting = []
            self._changed.notify()

    def close(self) -> None:
        """Stop, and wait until the model is free."""
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        while jobs := self._take():
            for job in jobs:
                self.metrics.queue_seconds.observe(time.perf_counter() - job.submitted_at)
            for group in self._group(self._encode(jobs)):
                self._answer(group)
            self._running = []

    def _take(self) -> list[Job]:
        """Jobs that are alike, the one that has waited longest first; none when the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            self._changed.wait_for(lambda: len(self._waiting) >= self._max_batch or self._is_closing, _GATHERING_S)
            if self._is_closing:
                return []
            num_rows = 0
            for job in [job for job in self._waiting if job.is_like(self._waiting[0])]:
                num_rows += job.num_choices
                if self._running and num_rows > self._max_batch:
                    break
                self._running.append(job)
            self._waiting = [job for job in self._waiting if job not in self._running]
            return self._running

    def _encode(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, EncodedQuestion]]:
        for job in jobs:
            if job.is_cancelled:
                continue
            try:
                prompt = self.session.questions.encode(job.question, max_tokens=self._options.max_prompt_tokens)
            except Exception as error:  # whatever it is, the next job is answered
                self._fail(job, error)
                continue
            self.metrics.prompt_tokens.inc(prompt.length)
            job.send(Started(prompt))
            yield job, prompt

    def _group(self, encoded: Iterator[tuple[Job, EncodedQuestion]]) -> Iterator[Sequence[tuple[Job, EncodedQuestion]]]:
        """Jobs whose prompts, padded to the longest, fit into memory together."""
        group: list[tuple[Job, EncodedQuestion]] = []
        for job, prompt in encoded:
            longest = max(prompt.length, *(other.length for _, other in group), 0)
            num_rows = job.num_choices + sum(other.num_choices for other, _ in group)
            if group and longest * num_rows > self._options.max_batch_tokens:
                yield group
                group = []
            group.append((job, prompt))
        if group:
            yield group

    def _answer(self, group: Sequence[tuple[Job, EncodedQuestion]]) -> None:
        requests = [request for job, prompt in group for request in job.build_requests(prompt)]
        self.metrics.batch_size.observe(len(requests))
        try:
            rows = self.session.answer_rows(requests, sampling=group[0][0].sampling)
        except Exception as error:
            self._answer_apart(group, error)
            return
        for job, _ in group:
            own, rows = rows[: job.num_choices], rows[job.num_choices :]
            self.metrics.new_tokens.inc(sum(row.num_new_tokens for row in own))
            job.send(Finished(own))

    def _answer_apart(self, group: Sequence[tuple[Job, EncodedQuestion]], error: Exception) -> None:
        """Answer jobs one by one that failed together: the cause may be in one of them, or in their number."""
        for job, prompt in group:
            if len(group) > 1 and not job.has_text:
                self._answer([(job, prompt)])
            else:
                self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        logger.debug("a request failed", exc_info=error)
        job.send(Failed(error))
