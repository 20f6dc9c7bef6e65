"""Answering: one request from its body to its last event, with everything that has to be given back afterwards.

admit -> read -> fetch media -> submit to the engine -> events, until the end, the time limit, or the client leaves
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from internvl.errors import InternVLError
from internvl.infer.question import EncodedQuestion, Question
from internvl.infer.rows import Row
from internvl.infer.settings import InferenceSettings
from internvl.serve.conversation import read_conversation
from internvl.serve.engine import Engine, Event, Failed, Finished, Job, Piece, Started
from internvl.serve.errors import ApiError, from_exception, from_validation
from internvl.serve.media import MediaFolder, Medium, rename
from internvl.serve.options import ServerOptions
from internvl.serve.protocol import ChatRequest

T = TypeVar("T")


class Service:
    """What all requests share.

    Args:
        engine: Answers questions.
        media: Keeps what requests show.
        options: Limits.
        model_name: The name that requests must give.
    """

    def __init__(self, engine: Engine, media: MediaFolder, options: ServerOptions, model_name: str):
        self.engine, self.media, self.options, self.model_name = engine, media, options, model_name
        self.started_at = int(time.time())
        self.num_open = 0  # requests that are answered or wait


class Answering:
    """A request while it is answered.

    Args:
        service: What all requests share.
        http: The request, for its body and to notice that the client leaves.

    Raises:
        ApiError: Too many requests are open.
    """

    body: ChatRequest
    settings: InferenceSettings  # of the session, with the positions of this request
    prompt: EncodedQuestion
    rows: Sequence[Row]

    def __init__(self, service: Service, http: HttpRequest):
        limit = service.options.max_requests
        if service.num_open >= limit:
            raise ApiError(429, f"{limit} requests are open, expected fewer; try again later", code="queue_full")
        service.num_open += 1
        self._service, self._http = service, http
        self._start = time.perf_counter()
        self._labels: dict[Path, str] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._job: Job | None = None
        self._reading: asyncio.Task[Question] | None = None
        self._departure: asyncio.Task[None] | None = None
        self._is_closed = False
        self._held = ExitStack()  # what is given back at the end
        self._held.callback(self._leave)

    def close(self) -> None:
        """End the request, however far it is; what is still generated for it stops at the next token."""
        self._is_closed = True
        if self._reading is None or self._reading.done():
            self._held.close()
        else:  # a thread cannot be cancelled: what it may still take has to be given back, too
            self._reading.add_done_callback(self._close_after_reading)

    def _close_after_reading(self, reading: asyncio.Task[Question]) -> None:
        if not reading.cancelled():
            reading.exception()  # there is nobody who wants to know
        self._held.close()

    def _leave(self) -> None:
        self._service.num_open -= 1
        if self._job is not None:
            self._job.is_cancelled = True
        if self._departure is not None:
            self._departure.cancel()

    @property
    def seconds(self) -> float:
        """Since the request arrived."""
        return time.perf_counter() - self._start

    async def begin(self) -> None:
        """Read the request and wait until the model begins its answer.

        Raises:
            ApiError: The request is wrong, or cannot be answered in time.
        """
        content = await self._in_time(_read_body(self._http, limit=self._service.options.max_body_mib * 2**20))
        self._departure = asyncio.create_task(_wait_for_departure(self._http))
        try:
            self._reading = asyncio.create_task(run_in_threadpool(self._read, content))
            question = await self._in_time(_wait(self._reading))
        except InternVLError as error:
            raise from_exception(error) from error
        self._job = self._build_job(question)
        self._service.engine.submit(self._job)
        event = await self._next_event()
        assert isinstance(event, Started)
        self.prompt = event.prompt

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answer as it comes; `rows` are there afterwards.

        Raises:
            ApiError: It takes too long, or the model fails.
        """
        is_first = True
        while isinstance(event := await self._next_event(), Piece):
            if is_first:
                self._service.engine.metrics.first_token_seconds.observe(self.seconds)
                is_first = False
            yield event
        assert isinstance(event, Finished)
        self.rows = event.rows
        self._service.engine.metrics.request_seconds.observe(self.seconds)

    def _read(self, content: bytes) -> Question:
        """The question in a body; runs beside the event loop, because it reads, fetches and decodes."""
        try:
            self.body = body = ChatRequest.model_validate_json(content)
        except ValidationError as error:
            raise from_validation(error) from error
        if body.model != self._service.model_name:
            message = f"there is no model {body.model!r:.100}, expected {self._service.model_name!r}"
            raise ApiError(404, message, code="model_not_found", param="model")
        self.settings = self._service.engine.session.settings.with_positions(
            body.rope_pos_id_version, body.rope_pos_id_stride
        )
        conversation = read_conversation(body.messages)
        self._check_number(conversation.media)
        paths = self._held.enter_context(self._service.media.hold(conversation.media, time_left=self._time_left))
        self._labels = {path: medium.label for path, medium in zip(paths, conversation.media, strict=True)}
        kinds = [medium.kind for medium in conversation.media]
        return Question(
            conversation.prompt,
            [path for path, kind in zip(paths, kinds, strict=True) if kind == "image"],
            [path for path, kind in zip(paths, kinds, strict=True) if kind == "video"],
            max_num=body.max_tiles,
            num_frames=body.num_frames,
            rope_pos_id_version=body.rope_pos_id_version,
            rope_pos_id_stride=body.rope_pos_id_stride,
            history=conversation.history,
            system_message=conversation.system_message,
        )

    def _time_left(self) -> float:
        """Seconds; none for a request that nobody waits for."""
        return 0.0 if self._is_closed else self._service.options.timeout_s - self.seconds

    def _check_number(self, media: Sequence[Medium]) -> None:
        num_frames = self.body.num_frames or self.settings.num_frames
        number = sum(num_frames if medium.kind == "video" else 1 for medium in media)
        limit = self._service.options.max_pictures
        if number > limit:
            message = f"the request has {number} pictures and frames of videos, expected at most {limit}"
            raise ApiError(400, message, code="too_many_pictures", param="messages")

    def _build_job(self, question: Question) -> Job:
        body, limit = self.body, self._service.options.max_new_tokens
        wanted = body.max_completion_tokens or body.max_tokens or limit
        if wanted > limit:
            raise ApiError(400, f"max_tokens is {wanted}, expected at most {limit}", param="max_tokens")
        version = self.settings.rope_pos_id_version
        assert version is not None  # filled in by `InferenceSettings.for_checkpoint`
        loop = asyncio.get_running_loop()

        def send(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        return Job(
            question,
            version=version,
            sampling=body.sampling(random_seed=secrets.randbits(63)),
            send=send,
            max_new_tokens=wanted,
            num_choices=body.num_choices,
            stop=body.stops,
            num_top=body.num_top,
        )

    async def _next_event(self) -> Event:
        event = await self._in_time(self._events.get())
        if isinstance(event, Failed):
            raise rename(event.error, self._labels) from event.error
        return event

    async def _in_time(self, work: Coroutine[object, object, T]) -> T:
        """The result of a step, if it comes before the time limit and before the client leaves."""
        step = asyncio.create_task(work)
        waited_for: set[asyncio.Task[T] | asyncio.Task[None]] = {step}
        if self._departure is not None:
            waited_for.add(self._departure)
        try:
            await asyncio.wait(waited_for, timeout=self._time_left(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not step.done():
                step.cancel()
        if step.done() and not step.cancelled():
            return step.result()
        if self._departure is not None and self._departure.done():
            raise ApiError(499, "the client has left")
        limit = self._service.options.timeout_s
        raise ApiError(504, f"no answer after {limit:g} s; ask for less, or try again later", code="timeout")


async def _wait(task: asyncio.Task[T]) -> T:
    """The result of a task that goes on when nobody waits for it any more."""
    return await asyncio.shield(task)


async def _read_body(http: HttpRequest, *, limit: int) -> bytes:
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which web pages of other sites cannot send without being asked for permission
        raise ApiError(415, f"the content type is {kind or 'missing'}, expected application/json")
    announced = http.headers.get("content-length", "0")
    content = bytearray()
    if not announced.isdecimal() or int(announced) <= limit:
        async for piece in http.stream():
            content += piece
            if len(content) > limit:
                break
        else:
            return bytes(content)
    message = f"the request has more than {limit // 2**20} MiB; send smaller pictures, or fewer"
    raise ApiError(413, message, code="too_large")


async def _wait_for_departure(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
