"""The two records of an evaluation: a Sample is what the model is asked, a Prediction is what it answered."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from eval.core.records import JsonObject
from internvl.data.storage.media import load_image
from internvl.data.storage.pixels import Alpha, open_picture, picture_errors, to_rgb
from internvl.data.video import VideoClip, load_frames
from internvl.errors import DataError

# A gold answer: a JSON value in the form that the scorer of its task takes.
Gold: TypeAlias = Any


@dataclass(frozen=True)
class PackedImage:
    """A picture that is stored inside its annotation file."""

    place: str  # file and record, for messages
    content: str = field(repr=False)  # the encoded file (png, jpeg, ...) as base64 text
    alpha: Alpha = "white"

    def open(self) -> Image.Image:
        """The picture in RGB. Raises DataError if the file cannot be read."""
        with picture_errors(f"in {self.place}"):
            return to_rgb(open_picture(io.BytesIO(base64.b64decode(self.content, validate=True))), alpha=self.alpha)


@dataclass(frozen=True)
class EnlargedImage:
    """An image file that the model sees enlarged, which gives it more tiles."""

    path: Path
    factor: int  # of width and height
    alpha: Alpha = "white"

    def open(self) -> Image.Image:
        """The enlarged picture in RGB.

        Raises:
            DataError: The file cannot be read.
        """
        image = load_image(self.path, alpha=self.alpha)
        # Bilinear, since published numbers were made that way.
        return image.resize((image.width * self.factor, image.height * self.factor), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class FrameImage:
    """A frame of a video file, for prompts in which frames and texts take turns."""

    path: Path
    frame: int  # its number, from 0
    alpha: Alpha = "white"

    def open(self) -> Image.Image:
        """The frame in RGB. Raises DataError if it cannot be read."""
        (picture,) = load_frames(self.path, [self.frame], alpha=self.alpha)
        return picture


@dataclass(frozen=True)
class BlankImage:
    """A grey picture, in the place of one that an ablation does not show."""

    width: int
    height: int

    def open(self) -> Image.Image:
        """The picture in RGB."""
        return Image.new("RGB", (self.width, self.height), "gray")


SampleImage: TypeAlias = Path | PackedImage | EnlargedImage | FrameImage | BlankImage


@dataclass(frozen=True)
class Sample:
    """One question."""

    id: str  # unique within its task
    prompt: str  # user message with one `<image>` per image and one `<video>` per video, in order
    images: tuple[SampleImage, ...]  # image files, pictures from inside the annotation file, or frames
    answer: Gold  # the gold answer; None where it is not public
    # JSON values that scoring and reports need later (context length, depth, chance level, ...).
    metadata: JsonObject = field(default_factory=dict)
    cost: float = 0.0  # estimated tokens of the prompt; long samples run first
    videos: tuple[VideoClip, ...] = ()  # videos or parts of them
    # Largest number of tiles per image, None for the task's limit; empty: the task's limit for all.
    tile_limits: tuple[int | None, ...] = ()
    # What the answer needs, for readers of a report: texts of the prompt, and places in `images`; empty: not known.
    needles: tuple[str | int, ...] = ()
    # What replaces the prompt under ordinary positions, with one `<image>` for all images; None: nothing does.
    joined_prompt: str | None = None


def show_transparency(images: Sequence[SampleImage], alpha: Alpha) -> tuple[SampleImage, ...]:
    """The same pictures with their transparent parts shown so. (Files are left to the session.)"""
    return tuple(image if isinstance(image, Path | BlankImage) else replace(image, alpha=alpha) for image in images)


def check_answers(samples: Sequence[Sample], *, source: Path) -> None:
    """Refuse a task in which only some questions have a gold answer: its score would be that of a part.

    Raises DataError that names the first question without an answer.
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
    """One answered question: a line of a predictions file."""

    id: str
    response: str  # what the model said; empty for a failed sample
    answer: Gold  # the gold answer, so that scoring needs no annotation file
    metadata: JsonObject
    num_prompt_tokens: int  # tokens of the prompt, visual ones included
    num_tiles: int  # tiles of all images
    last_position: float  # rotary position of the last prompt token
    seconds: float  # time from question to answer. Questions of a batch get equal shares of its time
    failure: str | None = None  # why there is no response (the question counts as wrong); None when there is one
    # A judge's score of the response, in 0..1; None: not judged. It is saved beside the predictions, not with them.
    verdict: float | None = None

    @classmethod
    def failed(cls, sample: Sample, reason: str, *, seconds: float = 0.0) -> "Prediction":
        """What is written down for a sample that has no answer."""
        return cls(sample.id, "", sample.answer, sample.metadata, 0, 0, 0.0, seconds, failure=reason)

    def is_same_answer(self, other: "Prediction") -> bool:
        """Whether both say the same, however long it took."""
        return replace(self, seconds=0.0) == replace(other, seconds=0.0)

    def to_record(self) -> dict[str, object]:
        """A JSON object; `parse_record(Prediction, ...)` is its inverse. The verdict is left out."""
        return {name: value for name, value in asdict(self).items() if name != "verdict"}
