"""Protocol: requests of OpenAI's chat completions as checked records, and answers in its form.

Fields of OpenAI that change an answer and that this server does not have are refused unless their value changes
nothing. Those that change no answer (`user`, `metadata`, ...) are ignored, and unknown fields are refused: a misspelt
stride must not silently give another answer.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from internvl.infer.settings import Sampling

MAX_CHOICES, MAX_TOP_LOGPROBS, MAX_STOPS = 16, 20, 4
# Fields that change answers and are not supported, with the values that change nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_IGNORED = frozenset((
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
))  # fmt: skip


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Record):
    """Text of a message."""

    type: Literal["text"]
    text: str


class MediaUrl(_Record):
    """Where a picture or video is: an http(s), data or file URL."""

    url: str
    detail: str | None = None  # ignored: `max_tiles` says how many tiles a picture may take


class ImagePart(_Record):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: MediaUrl


class VideoPart(_Record):
    """A video of a message."""

    type: Literal["video_url"]
    video_url: MediaUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Record):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None  # ignored

    @property
    def parts(self) -> Sequence[TextPart | ImagePart | VideoPart]:
        """What the message consists of, in order."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class StreamOptions(_Record):
    """What a stream carries beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False  # ignored


class ChatRequest(_Record):
    """A request; None leaves a field to the server's settings or the checkpoint."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)  # the newer name of `max_tokens`
    temperature: float | None = Field(None, ge=0, le=2)  # None: 0, the most probable token
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # V2PE
    rope_pos_id_version: str | None = None
    rope_pos_id_stride: float | None = None
    max_tiles: int | None = Field(None, ge=1)  # of a picture
    num_frames: int | None = Field(None, ge=1)  # of a video
    return_positions: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, body: object) -> object:
        if not isinstance(body, dict):
            return body
        refused = [name for name in _NEUTRAL if body.get(name) not in (None, *_NEUTRAL[name])]
        if refused:
            raise ValueError(f"{', '.join(refused)}: not supported by this server; leave it out")
        return {name: value for name, value in body.items() if name not in _NEUTRAL and name not in _IGNORED}

    @model_validator(mode="after")
    def _check_together(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is given without logprobs; set logprobs to true")
        if len(self.stops) > MAX_STOPS or not all(self.stops):
            raise ValueError(f"stop has {len(self.stops)} texts, expected at most {MAX_STOPS}, none of them empty")
        return self

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def num_choices(self) -> int:
        """Answers that are wanted."""
        return self.n or 1

    @property
    def num_top(self) -> int | None:
        """Most probable tokens to report; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def sampling(self, *, random_seed: int) -> Sampling:
        """How tokens are chosen; a request without a seed gets `random_seed`."""
        seed = random_seed if self.seed is None else self.seed
        return Sampling(temperature=self.temperature or 0.0, top_p=self.top_p or 1.0, seed=seed)


class Form:
    """The parts that all pieces of one answer share, in a stream or as a whole.

    Args:
        id: Of the answer.
        model: Name of the model.
        is_stream: Whether the answer is sent in chunks.
    """

    def __init__(self, id: str, model: str, *, is_stream: bool):
        kind = "chat.completion.chunk" if is_stream else "chat.completion"
        self._shared = {"id": id, "object": kind, "created": int(time.time()), "model": model}

    def write(self, choices: list[dict[str, object]], **others: object) -> dict[str, object]:
        """The body of an answer, or of a chunk."""
        return {**self._shared, "choices": choices, **others}


def write_usage(num_prompt_tokens: int, num_new_tokens: int) -> dict[str, int]:
    """Numbers of tokens of a request."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_new_tokens,
        "total_tokens": num_prompt_tokens + num_new_tokens,
    }
