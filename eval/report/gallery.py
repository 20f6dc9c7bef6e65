"""Gallery: a few questions with their pictures, gold answers and responses, which show why a score is what it is.

    predictions of several settings + samples  -->  the worst questions and some right ones  -->  cards

A card holds everything that a page shows of one question, cut to a size that a page can hold.
"""

import base64
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from eval.core.baselines import name_gold
from eval.core.records import JsonObject
from eval.core.sample import Gold, Prediction, Sample
from eval.core.scoring import score_prediction
from eval.core.task import Task
from internvl.data.storage.media import load_image
from internvl.data.video import VideoClip, choose_frames, load_frames
from internvl.errors import EvalError, InternVLError

logger = logging.getLogger(__name__)

RIGHT = 0.999  # from this score on an answer is right; Rouge of equal texts is a little below 1
THUMBNAIL_SIDE = 200
MAX_PICTURES = 6
FRAMES_PER_VIDEO = 4
MAX_RESPONSE, MAX_PROMPT, MAX_FACT = 2000, 2400, 80


@dataclass(frozen=True)
class Response:
    """What one setting said."""

    setting: str
    text: str  # the response, cut if long
    score: float | None  # in 0..1; None where no answer is public or the rule cannot take one question alone
    failure: str | None  # why there is no response
    cost: str  # tokens, tiles, last position and seconds in words

    @property
    def verdict(self) -> tuple[str, str]:
        """(what a page says of the response, its style there)."""
        if self.failure is not None:
            return f"failed: {self.failure}", "is-wrong"
        if self.score is None:
            return "not scored", "dim"
        if self.score >= RIGHT:
            return "right", "is-right"
        return ("wrong", "is-wrong") if self.score <= 0 else (f"{self.score:.2f}", "is-part")


@dataclass(frozen=True)
class Picture:
    """A thumbnail."""

    caption: str  # which picture it is
    source: str  # `data:` address; empty where the picture cannot be shown


@dataclass(frozen=True)
class Card:
    """One question."""

    id: str
    prompt: str  # what the model was asked, cut in the middle if long
    gold: str  # the gold answer as JSON or text
    facts: Mapping[str, str]  # further facts such as context length and depth
    responses: tuple[Response, ...]
    pictures: tuple[Picture, ...]  # some of its pictures and frames

    @property
    def states(self) -> tuple[str, ...]:
        """Those of `failed`, `empty`, `wrong`, `right` (under every setting), `differ` and `unscored` that are true."""
        scores = [response.score for response in self.responses if response.score is not None]
        found = {
            "failed": any(response.failure is not None for response in self.responses),
            "empty": any(not response.text.strip() for response in self.responses),
            "wrong": any(score < RIGHT for score in scores),
            "right": bool(scores) and all(score >= RIGHT for score in scores),
            "differ": len({round(score, 6) for score in scores}) > 1,
            "unscored": not scores,
        }
        return tuple(name for name, is_true in found.items() if is_true)


class Thumbnails:
    """Makes small pictures until their `data:` addresses together reach `max_bytes`."""

    def __init__(self, max_bytes: int):
        self._left = max_bytes

    def make(self, image: Image.Image) -> str:
        """A `data:` address of the picture; empty once the limit is reached."""
        small = image.copy()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=72, optimize=True)
        source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        if len(source) > self._left:
            return ""
        self._left -= len(source)
        return source


def collect_cards(
    task: Task,
    predictions: Mapping[str, Sequence[Prediction]],
    samples: Mapping[str, Sample],
    *,
    protocol: str,
    limit: int,
    thumbnails: Thumbnails,
) -> list[Card]:
    """Up to `limit` cards of some questions of a task, worst first.

    `predictions` are by setting and `samples` by id; a card without its sample has neither prompt nor pictures.
    """
    by_id: dict[str, dict[str, tuple[Prediction, float | None]]] = {}
    for setting, answered in predictions.items():
        for prediction in answered:
            score = _score(task, prediction, protocol)
            by_id.setdefault(prediction.id, {})[setting] = (prediction, score)
    return [
        _make_card(sample_id, by_id[sample_id], samples.get(sample_id), thumbnails)
        for sample_id in choose_questions(by_id, limit)
    ]


def choose_questions(by_id: Mapping[str, Mapping[str, tuple[Prediction, float | None]]], limit: int) -> list[str]:
    """Ids of the questions to show: failed ones, then those with the worst mean scores, a quarter of right ones.

    Questions of one rank are taken evenly from all of them, so that not only the first ones of a file are seen.
    """

    def rank(sample_id: str) -> tuple[bool, float]:
        entries = by_id[sample_id].values()
        scores = [score for _, score in entries if score is not None]
        has_failed = any(prediction.failure is not None for prediction, _ in entries)
        return not has_failed, round(sum(scores) / len(scores), 3) if scores else 0.0

    ranks: dict[tuple[bool, float], list[str]] = {}
    for sample_id in by_id:
        ranks.setdefault(rank(sample_id), []).append(sample_id)
    bad = [ranks[key] for key in sorted(ranks) if key[1] < RIGHT]
    good = [ranks[key] for key in sorted(ranks) if key[1] >= RIGHT]
    num_good = sum(map(len, good))
    chosen = _take(bad, limit - min(num_good, limit // 4))
    return chosen + _take(good, limit - len(chosen))


def _take(groups: Sequence[Sequence[str]], limit: int) -> list[str]:
    taken: list[str] = []
    for group in groups:
        num = min(len(group), limit - len(taken))
        taken += [group[place * len(group) // num] for place in range(num)]
    return taken


def _score(task: Task, prediction: Prediction, protocol: str) -> float | None:
    if prediction.answer is None:
        return None
    try:
        return score_prediction(task, prediction, protocol=protocol)
    except EvalError:
        return None


def _make_card(
    sample_id: str,
    entries: Mapping[str, tuple[Prediction, float | None]],
    sample: Sample | None,
    thumbnails: Thumbnails,
) -> Card:
    first = next(iter(entries.values()))[0]
    prompt = sample.prompt if sample is not None else str(first.metadata.get("question", ""))
    return Card(
        id=sample_id,
        prompt=cut_middle(prompt, MAX_PROMPT),
        gold="not public" if first.answer is None else cut_middle(_write_gold(first.answer), MAX_RESPONSE),
        facts=_list_facts(first.metadata),
        responses=tuple(_make_response(setting, *entry) for setting, entry in entries.items()),
        pictures=tuple(_show_media(sample, thumbnails)) if sample is not None else (),
    )


def _make_response(setting: str, prediction: Prediction, score: float | None) -> Response:
    cost = (
        f"{prediction.num_prompt_tokens:,} tokens, {prediction.num_tiles} tiles, last position "
        f"{prediction.last_position:,.1f}, {prediction.seconds:.2f} s"
    )
    return Response(setting, cut_middle(prediction.response, MAX_RESPONSE), score, prediction.failure, cost)


def _write_gold(answer: Gold) -> str:
    """A gold answer as it is saved; an option index with its letter."""
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return f"{text} ({name_gold(answer)})" if isinstance(answer, int) else text


def _list_facts(metadata: JsonObject) -> dict[str, str]:
    """Numbers and short texts of a sample's metadata."""
    facts = {}
    for name, value in metadata.items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, (str, int, float)) and len(text) <= MAX_FACT and name not in ("question", "id", "index"):
            facts[name] = text
    return facts


def cut_middle(text: str, limit: int) -> str:
    """A text of about `limit` characters at most; a note counts what was left out of its middle."""
    if len(text) <= limit:
        return text
    head, tail = limit // 3, limit - limit // 3
    return f"{text[:head]}\n[... {len(text) - limit:,} characters ...]\n{text[-tail:]}"


def _show_media(sample: Sample, thumbnails: Thumbnails) -> list[Picture]:
    """Some pictures, evenly spread, then some frames of the first video."""
    num_images = len(sample.images)
    num_shown = min(num_images, MAX_PICTURES)
    pictures = []
    for place in range(num_shown):
        index = place * num_images // num_shown
        caption = "" if num_images == 1 else f"{index + 1} of {num_images}"
        source = sample.images[index]
        try:
            image = load_image(source) if isinstance(source, Path) else source.open()
            pictures.append(Picture(caption, thumbnails.make(image)))
        except InternVLError as error:
            logger.warning("sample %s: %s", sample.id, error)
            pictures.append(Picture(f"{caption} cannot be read", ""))
    for video in sample.videos[:1]:
        pictures += _show_video(video, sample.id, thumbnails)
    return pictures


def _show_video(video: VideoClip, sample_id: str, thumbnails: Thumbnails) -> list[Picture]:
    try:
        numbers = choose_frames(video, num_frames=FRAMES_PER_VIDEO)
        numbers = numbers[:: max(1, len(numbers) // FRAMES_PER_VIDEO)][:FRAMES_PER_VIDEO]
        frames = list(load_frames(video.path, numbers))
    except InternVLError as error:
        logger.warning("sample %s: %s", sample_id, error)
        return [Picture("the video cannot be read", "")]
    return [Picture(f"frame {number}", thumbnails.make(frame)) for number, frame in zip(numbers, frames, strict=True)]
