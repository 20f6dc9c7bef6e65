"""Conversations: the messages of a request become the question of a session.

    system     "Be brief."                          system message
    user       picture, "What is this?"             history: "<image>\\nWhat is this?"
    assistant  "A cat."                                      "A cat."
    user       "And this?", picture                 prompt:  "And this?\\n<image>"

A picture stands where its part stands, parts are joined by line breaks. A message whose text has exactly one `<image>`
per picture and one `<video>` per video of its own says itself where they stand; any other `<image>` in a text is text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from internvl.data.video import VIDEO_PLACEHOLDER
from internvl.infer.question import Turn
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.serve.errors import ApiError
from internvl.serve.media import Medium
from internvl.serve.protocol import ImagePart, Message, TextPart


@dataclass(frozen=True)
class Conversation:
    """What a request says and shows."""

    prompt: str  # the last user message, with its placeholders
    history: Sequence[Turn]
    system_message: str | None
    media: Sequence[Medium]  # pictures and videos in the order of their placeholders


def read_conversation(messages: Sequence[Message]) -> Conversation:
    """Order the messages of a request.

    Raises:
        ApiError: Roles in an order that the model was not trained on, or pictures outside of user messages.
    """
    num_system = next((n for n, message in enumerate(messages) if _role(message) != "system"), len(messages))
    system = "\n".join(_read_text(message, f"messages.{n}") for n, message in enumerate(messages[:num_system]))
    texts: list[str] = []
    media: list[Medium] = []
    for number, message in enumerate(messages[num_system:], start=num_system):
        place = f"messages.{number}"
        if _role(message) == "system":
            raise ApiError(400, f"{place}: a system message after others, expected it first", param=place)
        is_same_role = number > num_system and message.role == messages[number - 1].role
        if not is_same_role and message.role != ("assistant" if len(texts) % 2 else "user"):
            raise ApiError(400, f"{place} is an assistant's message, expected a user's first", param=place)
        if message.role == "user":
            text, shown = _place_media(message, place)
            media += shown
        else:
            text = _read_text(message, place)
        texts[-1:] = [f"{texts[-1]}\n{text}"] if is_same_role else [*texts[-1:], text]
    if len(texts) % 2 == 0:
        raise ApiError(400, "the conversation has no user's message at its end, expected one", param="messages")
    history = list(zip(texts[:-1:2], texts[1::2], strict=True))
    return Conversation(texts[-1], history, system if num_system else None, media)


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _read_text(message: Message, place: str) -> str:
    """The text of a message that may hold nothing else."""
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    if len(texts) < len(message.parts):
        raise ApiError(
            400, f"{place}: pictures in a {message.role} message, expected them in user messages", param=place
        )
    return "\n".join(texts)


def _place_media(message: Message, place: str) -> tuple[str, list[Medium]]:
    """The text of a user message with a placeholder per picture and video, and these."""
    media: list[Medium] = []
    for number, part in enumerate(message.parts):
        if isinstance(part, TextPart):
            continue
        param = f"{place}.content.{number}.{part.type}"
        if isinstance(part, ImagePart):
            media.append(Medium("image", part.image_url.url, param))
        else:
            media.append(Medium("video", part.video_url.url, param))
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    if media and _places_itself("\n".join(texts), media):
        return "\n".join(texts), media
    placeholders = {"image_url": IMAGE_PLACEHOLDER, "video_url": VIDEO_PLACEHOLDER}
    return "\n".join(
        _neutralise(part.text) if isinstance(part, TextPart) else placeholders[part.type] for part in message.parts
    ), media


def _places_itself(text: str, media: Sequence[Medium]) -> bool:
    num_images = sum(medium.kind == "image" for medium in media)
    num_videos = len(media) - num_images
    # Without videos <video> is text: a tag of web pages.
    has_all_videos = not num_videos or text.count(VIDEO_PLACEHOLDER) == num_videos
    return text.count(IMAGE_PLACEHOLDER) == num_images and has_all_videos


def _neutralise(text: str) -> str:
    return text.replace(IMAGE_PLACEHOLDER, "< image>").replace(VIDEO_PLACEHOLDER, "< video>")
