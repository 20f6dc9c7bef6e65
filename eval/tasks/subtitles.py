"""Subtitles: the cues of srt and WebVTT files.

2                                  a number, which may be missing
00:00:03,000 --> 00:00:04,000      a time line begins a cue
if x < 5 and <i>y</i> > 3          its text, up to the next cue; blank lines belong to it (in WebVTT they end it)
"""

import html
import re
from pathlib import Path
from typing import NamedTuple

from internvl.data.storage.text import read_text
from internvl.errors import DataError

_TIME = r"(?:(\d{1,5}):)?(\d{1,2}):(\d{1,2})(?:[,.](\d{1,9}))?"
_TIME_LINE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?!\S)")
# Tags of srt, {\an8} and its like, and WebVTT's classes, speakers, languages, ruby texts and times.
_TAG = re.compile(
    r"</?(?:[ibuscv]|lang|ruby|rt|font)(?:\.[^<>\s]*)?\s*/?>|<font\b[^<>]*>|<(?:v|lang)(?:\.[^<>\s]*)?\s[^<>]*>"
    r"|<(?:\d+:)?\d\d:\d\d\.\d{3}>|\{\\[^{}]*\}",
    re.IGNORECASE,
)


class Cue(NamedTuple):
    """One subtitle."""

    start: float  # in seconds
    end: float
    text: str  # on one line, without markup


def read_subtitles(file: Path) -> list[Cue]:
    """The cues of a file that have a text.

    Raises DataError, which names the file, if it cannot be read, holds text without cues, or is in another encoding
    than `internvl.data.storage.text` takes.
    """
    lines = read_text(file).split("\n")
    is_webvtt = lines[0].startswith("WEBVTT")
    times = {number: match for number, line in enumerate(lines) if (match := _TIME_LINE.match(line))}
    if not times and not is_webvtt and any(line.strip() for line in lines):
        raise DataError(
            "it has no line such as 00:00:01,000 --> 00:00:02,500, expected subtitles in srt; replace or remove it",
            source=str(file),
        )
    cues = []
    has_number = {start: start > 0 and lines[start - 1].strip().isdigit() for start in times}
    is_numbered = 2 * sum(has_number.values()) > len(times)  # otherwise such a line is text
    for (start, match), following in zip(times.items(), [*times, len(lines)][1:], strict=False):
        stop = following - (is_numbered and has_number.get(following, False))
        text = _find_text(lines[start + 1 : stop], is_webvtt=is_webvtt)
        if text:
            cues.append(Cue(_read_seconds(*match.groups()[:4]), _read_seconds(*match.groups()[4:]), text))
    return cues


def _find_text(lines: list[str], *, is_webvtt: bool) -> str:
    if is_webvtt:
        blank = next((number for number, line in enumerate(lines) if not line.strip()), len(lines))
        return " ".join(html.unescape(_remove_tags(lines[:blank])).split())
    return _remove_tags(lines)


def _remove_tags(lines: list[str]) -> str:
    return " ".join(_TAG.sub("", "\n".join(lines)).split())


def _read_seconds(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction or 0}")
