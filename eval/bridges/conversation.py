"""What both bridges share: messages made of text, pictures and videos, asked of a session.

    [image, "Which one?", image, "Answer:"]  -->  "<image>\\nWhich one?\\n<image>\\nAnswer:", [picture, picture]

A suite whose texts place the pictures themselves (as many `<image>` as pictures) keeps its places; any other `<image>`
or `<video>` in a text is only text and loses its brackets.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from eval.run.options import DTYPES, parse_stride
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip
from internvl.errors import ConfigError
from internvl.infer.session import Session
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.model.scaling import parse_rope_scaling

logger = logging.getLogger(__name__)

Kind = Literal["text", "image", "video"]
DEFAULT_MAX_NEW_TOKENS = 1024


@dataclass(frozen=True)
class Part:
    """A piece of a message.

    Attributes:
        kind: What it is.
        content: Text, a picture (opened, or its file), or a video (its file or folder of frames, or a part of it).
    """

    kind: Kind
    content: Any


@dataclass(frozen=True)
class Message:
    """What one side of a conversation says.

    Attributes:
        role: `system`, `user` or `assistant`.
        parts: In order.
    """

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Question:
    """Arguments of `Session.answer`.

    Attributes:
        prompt: The last user message.
        images: Of all messages, in order.
        videos: Of all messages, in order.
        history: Earlier questions and answers.
        system_message: None: the template's own.
    """

    prompt: str
    images: tuple[Path | Image.Image, ...] = ()
    videos: tuple[VideoClip, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    system_message: str | None = None


def load_session(pretrained: str, **options: Any) -> Session:
    """A session from the arguments of a command line, where numbers may be text.

    Args:
        pretrained: Folder of the checkpoint.
        **options: As of `Session` and `Session.from_pretrained`; None means their default. `rope_pos_id_stride` may be
            text such as `1/16`, `dtype` and `rope_scaling` are names, `max_num`, `num_frames` and
            `prefill_chunk_size` may be text.

    Raises:
        ConfigError: A value is malformed or out of range.
        CheckpointError: The checkpoint cannot be loaded.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("max_num", "num_frames", "prefill_chunk_size"):
        if name in given:
            given[name] = _read_count(name, given[name])
    if "rope_pos_id_stride" in given:
        given["rope_pos_id_stride"] = _read_stride(given["rope_pos_id_stride"])
    if "rope_scaling" in given:
        given["rope_scaling"] = parse_rope_scaling(given["rope_scaling"])
    if "dtype" in given:
        if given["dtype"] not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {given['dtype']!r}")
        given["dtype"] = getattr(torch, given["dtype"])
    return Session.from_pretrained(pretrained, **given)


def _read_count(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be a whole number, got {value!r}") from error
    if number < 1:
        raise ConfigError(f"{name} must be at least 1, got {number}")
    return number


def _read_stride(value: Any) -> int | float:
    try:
        return parse_stride(str(value))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"rope_pos_id_stride: {error}") from error


def build_question(messages: Sequence[Message]) -> Question:
    """The last user message as a question, the earlier ones as its history.

    Raises:
        ConfigError: No user message at the end, two of one side in a row, an unknown role, or a picture or video in a
            form that cannot be opened.
    """
    question = Question("")
    texts: list[tuple[str, str]] = []
    for message in messages:
        text, images, videos = join_parts(message.parts)
        if message.role == "system":
            question = replace(question, system_message="\n".join(filter(None, (question.system_message, text))))
            continue
        if message.role != ("assistant" if len(texts) % 2 else "user"):
            raise ConfigError(
                f"message {len(texts) + 1} is of role {message.role!r}; expected user, assistant, user, ..."
            )
        texts.append((message.role, text))
        question = replace(question, images=(*question.images, *images), videos=(*question.videos, *videos))
    if not texts or texts[-1][0] != "user":
        raise ConfigError("the last message must be the user's; a beginning of the answer cannot be given")
    *earlier, (_, prompt) = texts
    said = [text for _, text in earlier]
    return replace(question, prompt=prompt, history=tuple(zip(said[::2], said[1::2], strict=True)))


def join_parts(parts: Sequence[Part]) -> tuple[str, list[Path | Image.Image], list[VideoClip]]:
    """Text with a placeholder per picture and video, pictures, videos.

    Raises:
        ConfigError: A picture or video in a form that cannot be opened.
    """
    images = [_read_image(part.content) for part in parts if part.kind == "image"]
    videos = [_read_video(part.content) for part in parts if part.kind == "video"]
    texts = [str(part.content) for part in parts if part.kind == "text"]
    if images and not videos and "".join(texts).count(IMAGE_PLACEHOLDER) == len(images):
        return "\n".join(texts), images, videos
    marks = {"image": f"{IMAGE_PLACEHOLDER}\n", "video": f"{VIDEO_PLACEHOLDER}\n"}
    prompt = ""
    for part in parts:
        piece = marks[part.kind] if part.kind != "text" else _take_brackets(str(part.content))
        prompt += "\n" + piece if prompt and not prompt.endswith("\n") else piece
    return prompt, images, videos


def _take_brackets(text: str) -> str:
    for placeholder in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER):
        text = text.replace(placeholder, placeholder.strip("<>"))
    return text


def _read_image(content: Any) -> Path | Image.Image:
    if isinstance(content, Image.Image):
        return content.convert("RGB")
    return _read_path(content, "picture")


def _read_video(content: Any) -> VideoClip:
    return content if isinstance(content, VideoClip) else VideoClip(_read_path(content, "video"))


def _read_path(content: Any, kind: str) -> Path:
    if isinstance(content, (str, Path)):
        return Path(str(content).removeprefix("file://"))
    raise ConfigError(f"a {kind} must be a file, got {type(content).__name__}")


def ask(
    session: Session, question: Question, *, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0
) -> str:
    """The answer of a session; empty when its memory is not enough, so that one question does not end a run.

    Raises:
        InternVLError: See `Session.answer`.
    """
    try:
        answer = session.answer(
            question.prompt,
            question.images,
            videos=question.videos,
            history=question.history,
            system_message=question.system_message,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
        )
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        logger.error("out of memory; the answer is left empty: %.80r", question.prompt)
        return ""
    return answer.text
