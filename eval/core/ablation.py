"""Ablations: the same questions without what their pictures show, whose scores tell whether pictures matter.

    none              as the benchmark asks them
    no_image          every picture and video frame is a grey one of its size: as many tiles, the same positions
    text_only         pictures, videos and their places in the prompt are left out
    shuffled_images   every picture and video is that of another question of the task

A model that scores nearly as well so answers from the text, from what it knows, or from having seen the benchmark.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import TypeVar

from eval.core.sample import BlankImage, Sample, SampleImage
from internvl.data.prompt import Picture, place_pictures
from internvl.data.storage.media import read_image_size
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip, choose_frames, read_video_info
from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER

NO_ABLATION = "none"
ABLATIONS = (NO_ABLATION, "no_image", "text_only", "shuffled_images")
Media = TypeVar("Media", SampleImage, VideoClip)


def ablate(
    samples: Sequence[Sample], kind: str, *, num_frames: int, limit: int | None = None, seed: int = 0
) -> list[Sample]:
    """The first `limit` questions of a task, ablated; `kind` is one of `ABLATIONS`.

    Args:
        samples: All questions of the task, among which pictures are exchanged whatever the limit is.
        num_frames: Frames that the model is shown of a video.
        seed: Of the exchange.

    Raises:
        ConfigError: A question shows every picture of the task, so there is none to exchange.
    """
    if kind == "shuffled_images":
        samples = _exchange_media(samples, Random(seed))
    shown = samples[:limit]
    if kind == "text_only":
        return [_leave_media_out(sample) for sample in shown]
    if kind == "no_image":
        return [_blank_media(sample, num_frames) for sample in shown]
    return list(shown)


def describe_ablation(kind: str, seed: int | None) -> dict[str, str | int | None]:
    """What a fingerprint says of it: nothing where nothing is ablated, so that earlier results stay valid."""
    if kind == NO_ABLATION:
        return {}
    return {"ablate": kind, **({"ablate_seed": seed} if kind == "shuffled_images" else {})}


def _leave_media_out(sample: Sample) -> Sample:
    prompt = sample.prompt.replace(IMAGE_PLACEHOLDER, "")
    if sample.videos:  # without videos `<video>` is text
        prompt = prompt.replace(VIDEO_PLACEHOLDER, "")
    return replace(sample, prompt=prompt.lstrip(), images=(), videos=(), tile_limits=(), joined_prompt=None)


def _blank_media(sample: Sample, num_frames: int) -> Sample:
    """Blank pictures; a video becomes the labelled frames that a session makes of it, each of one tile."""
    try:
        images = [Picture(_blank_image(image)) for image in sample.images]
        frames = [_blank_frames(video, num_frames) for video in sample.videos]
    except DataError:
        return sample  # what cannot be read fails its question, as it does in any run
    (prompt,), pictures = place_pictures([sample.prompt], images, frames)
    limits = iter(sample.tile_limits or [None] * len(images))
    return replace(
        sample,
        prompt=prompt,
        images=tuple(picture.source for picture in pictures if isinstance(picture.source, BlankImage)),
        videos=(),
        tile_limits=tuple(next(limits) if picture.frame is None else 1 for picture in pictures),
    )


def _blank_image(image: SampleImage) -> BlankImage:
    return BlankImage(*(_read_size(image) if isinstance(image, Path) else image.open().size))


@cache  # many questions show the same pictures
def _read_size(path: Path) -> tuple[int, int]:
    return read_image_size(path)


def _blank_frames(video: VideoClip, num_frames: int) -> list[Picture]:
    info = read_video_info(video.path)
    blank = BlankImage(info.width, info.height)
    return [Picture(blank, frame=number) for number in choose_frames(video, num_frames=num_frames)]


def _exchange_media(samples: Sequence[Sample], rng: Random) -> list[Sample]:
    """Questions in a ring of random order: each takes the pictures of those that follow it, never one of its own."""
    places = rng.sample(range(len(samples)), len(samples))
    ring = [samples[place] for place in places]
    exchanged = list(samples)
    for number, place in enumerate(places):
        exchanged[place] = replace(
            samples[place],
            images=_take_others(ring, number, lambda sample: sample.images),
            videos=_take_others(ring, number, lambda sample: sample.videos),
        )
    return exchanged


def _take_others(ring: Sequence[Sample], number: int, read: Callable[[Sample], tuple[Media, ...]]) -> tuple[Media, ...]:
    """As many pictures as a question has, from those that follow it; again from the first where there are too few."""
    own = read(ring[number])
    seen = frozenset(own)
    following = (ring[(number + step) % len(ring)] for step in range(1, len(ring)))
    found = list(islice((media for sample in following for media in read(sample) if media not in seen), len(own)))
    if own and not found:
        raise ConfigError(
            f"--ablate shuffled_images: sample {ring[number].id!r} shows every picture of the task, so it cannot get "
            "those of another question; use --ablate no_image"
        )
    return tuple(islice(cycle(found), len(own)))
