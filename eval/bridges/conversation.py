"""What both bridges share: messages made of text, pictures and videos, asked of a session.

    [image, "Which one?", image, "Answer:"]  -->  "<image>\\nWhich one?\\n<image>\\nAnswer:", [picture, picture]

A suite whose texts place the pictures themselves (as many `<image>` as pictures) keeps its places; any other `<image>`
or `<video>` in a text is only text and loses its brackets.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from internvl.data.storage.media import MediaPath
from internvl.data.storage.pixels import Alpha, picture_errors, to_rgb
from internvl.data.storage.remote import find_scheme
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip
from internvl.errors import ConfigError
from internvl.infer.question import Question
from internvl.infer.session import Session
from internvl.infer.settings import GREEDY, Sampling
from internvl.model.constants import IMAGE_PLACEHOLDER

logger = logging.getLogger(__name__)

Kind = Literal["text", "image", "video"]
DEFAULT_MAX_NEW_TOKENS = 1024


@dataclass(frozen=True)
class Part:
    """A piece of a message."""

    kind: Kind
    content: object  # text, a picture (opened, or its file), or a video (its file or folder of frames, or a part of it)


@dataclass(frozen=True)
class Message:
    """What one side of a conversation says."""

    role: str  # `system`, `user` or `assistant`
    parts: tuple[Part, ...]


def build_question(messages: Sequence[Message], *, alpha: Alpha = "white") -> Question:
    """The last user message as a question, the earlier ones as its history.

    Transparent pictures in memory are shown as `alpha` says. Raises ConfigError for no user message at the end, two of
    one side in a row, an unknown role, or a picture or video in a form that cannot be opened; DataError for a damaged
    picture in memory.
    """
    question = Question("")
    texts: list[tuple[str, str]] = []
    for message in messages:
        text, images, videos = join_parts(message.parts, alpha=alpha)
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


def join_parts(
    parts: Sequence[Part], *, alpha: Alpha = "white"
) -> tuple[str, list[MediaPath | Image.Image], list[VideoClip]]:
    """Text with a placeholder per picture and video, pictures, videos.

    Raises ConfigError for a picture or video in a form that cannot be opened, DataError for a damaged one in memory.
    """
    images = [_read_image(part.content, alpha) for part in parts if part.kind == "image"]
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


def _read_image(content: object, alpha: Alpha) -> MediaPath | Image.Image:
    if isinstance(content, Image.Image):
        with picture_errors("in memory"):
            return to_rgb(content, alpha=alpha)
    return _read_path(content, "picture")


def _read_video(content: object) -> VideoClip:
    return content if isinstance(content, VideoClip) else VideoClip(_read_path(content, "video"))


def _read_path(content: object, kind: str) -> MediaPath:
    """A file or, as text, a URL, which `internvl.data.storage.media` fetches."""
    if isinstance(content, Path):
        return content
    if isinstance(content, str):
        path = content.removeprefix("file://")
        return path if find_scheme(path) else Path(path)
    raise ConfigError(f"a {kind} must be a file or a URL, got {type(content).__name__}")


def ask(session: Session, question: Question, *, max_new_tokens: int, sampling: Sampling = GREEDY) -> str:
    """The answer of a session (errors: see `Session.ask`); empty when memory runs out, so that the run goes on."""
    try:
        return session.ask(question, max_new_tokens=max_new_tokens, sampling=sampling).text
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        logger.error("out of memory; the answer is left empty: %.80r", question.prompt)
        return ""
