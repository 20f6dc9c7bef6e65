"""Records: what a row of an annotation file means, checked once and then frozen.

A row is read and parsed when its document is needed (`internvl.data.storage.annotation` finds it). An invalid record
is a `DataError` of that row alone.

A record holds `conversations` (turns of `human` and `gpt`, optionally opened by `system`), and `image` (a path, a list
of paths, or nothing) or `video` (a path, with `clip`: [first second, last second] for a part of it). Other keys are
ignored, unless they look like one of these that is missing.
"""

import json
import sys
from dataclasses import dataclass
from typing import Literal

from internvl.data.meta import SourceSpec
from internvl.data.storage.annotation import AnnotationFile, JsonObject
from internvl.data.storage.media import MediaPath, resolve_image_path
from internvl.data.storage.record_keys import find_wrong_key
from internvl.data.video import VIDEO_PLACEHOLDER, VideoClip
from internvl.errors import DataError

Role = Literal["user", "assistant"]

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Record:
    """One checked row of an annotation file."""

    source: str  # name of its data set
    row: int  # row in the annotation file, counted from 0
    # (role, text): questions and answers take turns, a question first and an answer last.
    turns: tuple[tuple[Role, str], ...]
    image_paths: tuple[MediaPath, ...] = ()  # in the order of their placeholders
    is_multi_image: bool = False  # the row gave a list of images (even of one), which may not be placed automatically
    video: VideoClip | None = None  # the video, or the part of it, that the questions are about
    system_message: str | None = None  # replaces the template's system message
    data_augment: bool = False  # use the augmenting transform
    max_dynamic_patch: int | None = None  # tile limit of the data set; None keeps the run's
    dynamic_image_size: bool | None = None  # tiling of the data set; None keeps the run's


class RecordFile:
    """The rows of one data set, by number. Raises ConfigError if the annotation file cannot be read."""

    def __init__(self, spec: SourceSpec):
        self.spec = spec
        self._lines = AnnotationFile(spec.annotation)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, row: int) -> Record:
        """Read and check one row. Raises DataError if it is not a valid record, IndexError if there is none."""
        try:
            raw = json.loads(self._lines[row].decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"not a json line: {error}", source=self.spec.name, row=row, kind="json") from None
        return parse_record(raw, self.spec, row=row)


def parse_record(raw: object, spec: SourceSpec, *, row: int) -> Record:
    """Check one parsed json line of the data set `spec` (`row` is for messages). Raises DataError if it is invalid."""
    try:
        if not isinstance(raw, dict):
            raise DataError(f"got a json {type(raw).__name__}, expected an object with 'conversations'")
        _check_keys(raw)
        _check_paths(raw)
        images, is_multi_image = _read_images(raw)
        system_message, turns = _read_turns(raw.get("conversations"))
        paths = tuple(
            resolve_image_path(
                image, root=spec.root, root2=spec.root2, http_root=spec.http_root, is_multi_image=is_multi_image
            )
            for image in images
        )
        video = _read_video(raw, spec)
        # Many image records note the video that they were cut from; it counts only if a question asks for it.
        if images and not any(VIDEO_PLACEHOLDER in text for role, text in turns if role == "user"):
            video = None
    except DataError as error:
        raise error.at(spec.name, row) from None
    return Record(
        source=spec.name,
        row=row,
        turns=turns,
        image_paths=paths,
        is_multi_image=is_multi_image,
        video=video,
        system_message=system_message,
        data_augment=spec.data_augment,
        max_dynamic_patch=spec.max_dynamic_patch,
        dynamic_image_size=spec.dynamic_image_size,
    )


def _check_keys(raw: JsonObject) -> None:
    wrong = find_wrong_key(raw)
    if wrong is not None:
        key, meant = wrong
        raise DataError(f"the key {key!r} is unknown, did you mean {meant!r}? Rename it, or its contents are not used")


def _check_paths(raw: JsonObject) -> None:
    for key in ("image", "video"):
        value = raw.get(key)
        paths = value if isinstance(value, list) else [value]
        wrong = next((path for path in paths if isinstance(path, str) and not is_unicode(path)), None)
        if wrong is not None:
            raise DataError(
                f"'{key}' is {wrong!r:.200}, which holds half of a surrogate pair (\\ud800 to \\udfff), expected valid "
                "Unicode"
            )


def _read_images(raw: JsonObject) -> tuple[list[str], bool]:
    image = raw.get("image")
    if image is None or image in ("", []):
        return [], False
    if isinstance(image, str):
        return [image], False
    if isinstance(image, list):
        paths = [item for item in image if isinstance(item, str) and item]
        if len(paths) == len(image):
            return paths, True
    raise DataError(f"'image' is {image!r:.80}, expected a path, a list of paths, null or nothing")


def _read_video(raw: JsonObject, spec: SourceSpec) -> VideoClip | None:
    video = raw.get("video")
    if video is None or video in ("", []):
        return None
    if not isinstance(video, str):
        raise DataError(f"'video' is {video!r:.80}, expected a path, null or nothing")
    clip = _read_clip(raw.get("clip"))
    return VideoClip(resolve_image_path(video, root=spec.root, http_root=spec.http_root), clip=clip)


def _read_clip(clip: object) -> tuple[float, float] | None:
    if clip is None:
        return None
    seconds = clip if isinstance(clip, list) else []
    numbers = [second for second in seconds if isinstance(second, int | float) and not isinstance(second, bool)]
    if len(seconds) != 2 or len(numbers) != 2 or not 0 <= numbers[0] < numbers[1] <= sys.float_info.max:
        raise DataError(f"'clip' is {clip!r:.80}, expected [first second, last second] with 0 <= first < last")
    return float(numbers[0]), float(numbers[1])


def _read_turns(conversations: object) -> tuple[str | None, tuple[tuple[Role, str], ...]]:
    """(system message, turns); a leading turn that is neither human nor system is dropped."""
    if not isinstance(conversations, list):
        got = "nothing" if conversations is None else f"a {type(conversations).__name__}"
        raise DataError(f"'conversations' is {got}, expected a list of {{'from', 'value'}} turns")
    turns = [_read_turn(index, turn) for index, turn in enumerate(conversations)]
    system_message = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    if turns and turns[0][0] == "gpt":
        turns.pop(0)
    for index, (speaker, _) in enumerate(turns):
        expected = "gpt" if index % 2 else "human"
        if speaker != expected:
            raise DataError(f"turn {index} is from {speaker!r}, expected {expected!r}: human and gpt take turns")
    if not turns or len(turns) % 2:
        raise DataError(f"the conversation has {len(turns)} turns, expected pairs of a question and an answer")
    return system_message, tuple((_ROLES[speaker], text) for speaker, text in turns)


def _read_turn(index: int, turn: object) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise DataError(f"turn {index} is a {type(turn).__name__}, expected an object with 'from' and 'value'")
    speaker, text = turn.get("from"), turn.get("value")
    if speaker not in ("human", "gpt", "system"):
        raise DataError(f"turn {index} is from {speaker!r}, expected 'human', 'gpt' or 'system'")
    if not isinstance(text, str):
        raise DataError(f"turn {index} has a value of type {type(text).__name__}, expected text")
    if speaker == "gpt" and not text.strip():
        raise DataError(f"turn {index} is an empty answer, expected text")
    if not is_unicode(text):
        raise DataError(f"turn {index} holds half of a surrogate pair (\\ud800 to \\udfff), expected valid Unicode")
    return speaker, text.strip()


def is_unicode(text: str) -> bool:
    """Whether a text holds whole characters only, and no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
