"""Endpoint: questions are asked of a server that speaks OpenAI's chat completions, in place of a session here.

    sample  -->  one user message: its pictures (files as they are), then its text with `<image>` where they stand
            <--  answer and numbers of tokens; our own server adds tiles and the last position

Servers of InternVL2 (ours, vLLM) put pictures where the text says `<image>`, so they get the prompts of a direct run.
A video is its labelled frames, which are pictures. What the server refuses for its content is a failed prediction, as a
damaged picture is.
"""

import base64
import io
import logging
import mimetypes
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from eval.core.sample import PackedImage, Prediction, Sample
from eval.core.task import Task
from eval.run.chat_server import ChatServer, explain_reply, read_completion
from eval.run.queue import LastAnswerError
from internvl.data.prompt import Picture, list_frame_pictures, load_pictures, place_pictures
from internvl.data.video import choose_frames
from internvl.errors import ConfigError, DataError, EvalError
from internvl.infer.settings import DEFAULTS, InferenceSettings, Sampling

logger = logging.getLogger(__name__)

API_KEY = "OPENAI_API_KEY"
# Settings of ours -> fields of a request to our own server.
SENT_SETTINGS = {name: name for name in ("rope_pos_id_version", "rope_pos_id_stride")} | {"max_num": "max_tiles"}


@dataclass(frozen=True)
class Endpoint:
    """A model behind an address. Raises ConfigError for settings that only a model in this process can follow."""

    url: str  # with or without `/v1` at its end
    model: str
    settings: InferenceSettings
    sampling: Sampling

    def __post_init__(self) -> None:
        """Refuse what a request cannot say."""
        given = [name for name, value in vars(self.settings).items() if value != getattr(DEFAULTS, name)]
        refused = [name for name in given if name not in SENT_SETTINGS]
        if self.sampling.num_beams > 1:
            refused.append("num_beams")
        if refused:
            options = ", ".join(f"--{name}" for name in refused)
            raise ConfigError(f"--endpoint: a server takes no {options}; leave it out, or start the server with it")

    @property
    def server(self) -> ChatServer:
        """Where the model is."""
        return ChatServer(self.url, self.model, "--endpoint", "--model", API_KEY)

    @property
    def fields(self) -> dict[str, object]:
        """What every request says, besides its message: the sampling, and of V2PE what was asked for."""
        sampling = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p, "seed": self.sampling.seed}
        own = {field: getattr(self.settings, name) for name, field in SENT_SETTINGS.items()}
        return {name: value for name, value in (sampling | own).items() if value is not None}


class EndpointAnswerer:
    """Asks all samples that it is given at the same time."""

    def __init__(self, endpoint: Endpoint):
        self._endpoint, self._client = endpoint, endpoint.server.open()

    def __call__(self, task: Task, samples: Sequence[Sample]) -> list[Prediction]:
        """A prediction per sample, in order. Raises LastAnswerError if the server is gone or refuses everything."""
        with ThreadPoolExecutor(max_workers=len(samples)) as pool:
            asked = [pool.submit(self._ask, task, sample) for sample in samples]
        errors = [error for future in asked if (error := future.exception()) is not None]
        if not errors:
            return [future.result() for future in asked]
        if not isinstance(errors[0], EvalError):
            raise errors[0]
        raise LastAnswerError(str(errors[0]), [future.result() for future in asked if future.exception() is None])

    def _ask(self, task: Task, sample: Sample) -> Prediction:
        start = time.perf_counter()
        try:
            content = write_message(task, sample)
            body = {
                "messages": [{"role": "user", "content": content}],
                "max_tokens": task.max_new_tokens,
                **self._endpoint.fields,
            }
            reply = self._endpoint.server.complete(self._client, body)
            return _read_prediction(sample, reply, seconds=round(time.perf_counter() - start, 4))
        except DataError as error:
            logger.error("%s, sample %s failed and counts as wrong: %s", task.name, sample.id, error)
            return Prediction.failed(sample, str(error), seconds=round(time.perf_counter() - start, 4))


def write_message(task: Task, sample: Sample) -> list[dict[str, object]]:
    """The parts of a user message: pictures, then the text that says where they stand.

    Raises:
        DataError: A picture or a video cannot be read.
    """
    images = [Picture(image) for image in sample.images]
    num_frames = task.num_frames or DEFAULTS.num_frames
    frames = [
        list_frame_pictures(clip.path, choose_frames(clip, num_frames=num_frames), tiling=None)
        for clip in sample.videos
    ]
    (text,), pictures = place_pictures([sample.prompt], images, frames)
    decoded = load_pictures([picture for picture in pictures if not _is_encoded(picture)])
    urls = [_encode(picture) if _is_encoded(picture) else _write_png(next(decoded)) for picture in pictures]
    parts: list[dict[str, object]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*parts, {"type": "text", "text": text}]


def _is_encoded(picture: Picture) -> bool:
    """Whether the picture is a file of its own, which is sent as it is."""
    return picture.frame is None and isinstance(picture.source, Path | PackedImage)


def _encode(picture: Picture) -> str:
    source = picture.source
    if isinstance(source, PackedImage):
        return f"data:image/png;base64,{source.content}"
    path = Path(str(source))
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return f"data:{mimetypes.guess_type(path)[0] or 'image/png'};base64,{content}"


def _write_png(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _read_prediction(sample: Sample, reply: httpx.Response, *, seconds: float) -> Prediction:
    text = read_completion(reply)
    with explain_reply(reply):
        body = reply.json()
        usage, own = body.get("usage") or {}, body.get("v2pe") or {}
        return Prediction(
            id=sample.id,
            response=text,
            answer=sample.answer,
            metadata=sample.metadata,
            num_prompt_tokens=int(usage.get("prompt_tokens") or 0),
            num_tiles=int(own.get("tiles") or 0),
            last_position=float(own.get("last_position") or 0.0),
            seconds=seconds,
        )
