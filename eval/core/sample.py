"""The two records of an evaluation: a Sample is what the model is asked, a Prediction is what it answered."""

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from eval.core.records import JsonObject
from internvl.data.storage.media import load_image
from internvl.data.video import VideoClip
from internvl.errors import DataError

# A gold answer: a JSON value in the form that the scorer of its task takes.
Gold: TypeAlias = Any

# What base64 and pillow raise for text or content that is damaged, cut short or larger than pillow's limit.
_PICTURE_ERRORS = (
    ValueError,
    OSError,
    SyntaxError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class PackedImage:
    """A picture that is stored inside its annotation file.

    Attributes:
        place: File and record, for messages.
        content: The encoded file (png, jpeg, ...) as base64 text.
    """

    place: str
    content: str = field(repr=False)

    def open(self) -> Image.Image:
        """The picture in RGB.

        Raises:
            DataError: The text is not base64, or it does not hold a picture.
        """
        try:
            return Image.open(io.BytesIO(base64.b64decode(self.content, validate=True))).convert("RGB")
        except _PICTURE_ERRORS as error:
            raise DataError(f"the image is no base64 text of a picture ({error})", source=self.place) from error


@dataclass(frozen=True)
class EnlargedImage:
    """An image file that the model sees enlarged, which gives it more tiles.

    Attributes:
        path: The file.
        factor: Of width and height.
    """

    path: Path
    factor: int

    def open(self) -> Image.Image:
        """The enlarged picture in RGB.

        Raises:
            DataError: The file cannot be read.
        """
        image = load_image(self.path)
        # Bilinear, since published numbers were made that way.
        return image.resize((image.width * self.factor, image.height * self.factor), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: Unique within its task.
        prompt: User message with one `<image>` per image and one `<video>` per video, in order.
        images: Image files, or pictures from inside the annotation file.
        answer: The gold answer; None where it is not public.
        metadata: JSON values that scoring and reports need later (context length, depth, chance level, ...).
        cost: Estimated tokens of the prompt; long samples run first.
        videos: Videos or parts of them.
        tile_limits: Largest number of tiles per image, None for the task's limit; empty: the task's limit for all.
    """

    id: str
    prompt: str
    images: tuple[Path | PackedImage | EnlargedImage, ...]
    answer: Gold
    metadata: JsonObject = field(default_factory=dict)
    cost: float = 0.0
    videos: tuple[VideoClip, ...] = ()
    tile_limits: tuple[int | None, ...] = ()


def check_answers(samples: Sequence[Sample], *, source: Path) -> None:
    """Refuse a task in which only some questions have a gold answer: its score would be that of a part.

    Raises:
        DataError: Names the first question without an answer.
    """
    missing = [sample.id for sample in samples if sample.answer is None]
    if missing and len(missing) < len(samples):
        raise DataError(
            f"{len(missing)} of {len(samples)} questions have no answer, the first is {missing[0]!r}; expected answers "
            "to all of them, or to none where they are not public",
            source=str(source),
        )


@dataclass(frozen=True)
class Prediction:
    """One answered question: a line of a predictions file.

    Attributes:
        id: The sample's.
        response: What the model said; empty for a failed sample.
        answer: The gold answer, so that scoring needs no annotation file.
        metadata: The sample's.
        num_prompt_tokens: Tokens of the prompt, visual ones included.
        num_tiles: Tiles of all images.
        last_position: Rotary position of the last prompt token.
        seconds: Time from question to answer. Questions of a batch get equal shares of its time.
        failure: Why there is no response (the question counts as wrong); None when there is one.
    """

    id: str
    response: str
    answer: Gold
    metadata: JsonObject
    num_prompt_tokens: int
    num_tiles: int
    last_position: float
    seconds: float
    failure: str | None = None

    @classmethod
    def failed(cls, sample: Sample, reason: str, *, seconds: float = 0.0) -> "Prediction":
        """What is written down for a sample that has no answer."""
        return cls(sample.id, "", sample.answer, sample.metadata, 0, 0, 0.0, seconds, failure=reason)

    def to_record(self) -> dict[str, object]:
        """A JSON object; `eval.core.result.parse_prediction` is its inverse."""
        return asdict(self)
