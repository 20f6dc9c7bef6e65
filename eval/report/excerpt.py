"""Excerpts: long texts cut to what a reader needs of them, the places that an answer needs above all."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from internvl.model.constants import IMAGE_PLACEHOLDER

AROUND = 200  # characters that are kept on each side of a needle


class Part(NamedTuple):
    """A part of an excerpt."""

    text: str
    is_needle: bool = False


def cut_middle(text: str, limit: int) -> str:
    """A text of about `limit` characters at most; a note counts what was left out of its middle."""
    return "".join(part.text for part in excerpt(text, [], limit))


def excerpt(text: str, needles: Sequence[tuple[int, int]], limit: int) -> list[Part]:
    """A text of about `limit` characters, and more where its needles need them: beginning, needles, end.

    Args:
        text: A prompt.
        needles: (first character, one more than the last) of each; of an empty one the surroundings are kept.
        limit: Characters; a quarter of them for the beginning, the others for the end, which has the question.

    Returns:
        The parts in order, with notes that count what was left out between them.
    """
    if len(text) <= limit:
        kept = [(0, len(text))]
    else:
        windows = [(max(0, first - AROUND), min(len(text), last + AROUND)) for first, last in needles]
        kept = _join([(0, limit // 4), *windows, (len(text) - limit + limit // 4, len(text))])
    parts, end = [], 0
    for first, last in kept:
        if first > end:
            parts.append(Part(f"\n[... {first - end:,} characters ...]\n"))
        parts += _mark(text, first, last, needles)
        end = last
    return parts


def find_needles(prompt: str, needles: Sequence[str | int], depths: Sequence[float]) -> list[tuple[int, int]]:
    """Where needles stand in a prompt: texts, and the placeholders of pictures; else the places of their depths."""
    placeholders = [match.span() for match in re.finditer(re.escape(IMAGE_PLACEHOLDER), prompt)]
    spans = []
    for needle in needles:
        if isinstance(needle, int):
            spans += placeholders[needle : needle + 1]
        elif (first := prompt.find(needle)) >= 0:
            spans.append((first, first + len(needle)))
    return sorted(spans) or [(int(depth * len(prompt)),) * 2 for depth in sorted(depths)]


def _join(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that touch as one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _mark(text: str, first: int, last: int, needles: Sequence[tuple[int, int]]) -> Iterator[Part]:
    place = first
    for begin, end in _join([needle for needle in needles if first <= needle[0] < needle[1] <= last]):
        yield Part(text[place:begin])
        yield Part(text[begin:end], is_needle=True)
        place = end
    yield Part(text[place:last])
