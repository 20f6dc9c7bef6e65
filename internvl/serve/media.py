"""Media of requests: http(s), data and file URLs become files that the session may read.

    data:image/png;base64,...   decoded   -+
    https://host/a.png          fetched   -+->  a file named by its content, removed with the last request that has it
    file:///data/a.png                     -->  the file itself, below the allowed folder once links are followed

A name that follows from the content lets the caches of features and prefixes know a picture again.
"""

import base64
import binascii
import hashlib
import io
import os
import re
import tempfile
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from internvl.data.storage.media import read_image_size
from internvl.data.storage.remote import WebLimits, download
from internvl.data.video import read_video_info
from internvl.errors import DataError
from internvl.serve.errors import ApiError, from_exception
from internvl.serve.options import ServerOptions

_MAX_FETCH_S = 60.0
_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Medium:
    """A picture or video that a request names."""

    kind: Literal["image", "video"]
    url: str
    param: str  # its place in the request

    @property
    def label(self) -> str:
        """What errors call it: the place, and the beginning of the URL."""
        return f"{self.param} ({self.url[:60]}{'...' if len(self.url) > 60 else ''})"


class MediaFolder:
    """Where the media of the requests under way are.

    Args:
        options: What may be read, and how much of it.
    """

    def __init__(self, options: ServerOptions):
        self._options = options
        root = options.allowed_media_root
        self._root = None if root is None else root.resolve(strict=True)
        self._folder = tempfile.TemporaryDirectory(prefix="internvl-serve-")
        self._users: Counter[Path] = Counter()
        self._lock = threading.Lock()
        self._web = WebLimits(
            max_bytes=options.max_media_mib * 2**20,
            is_public=not options.allow_private_addresses,
        )

    def close(self) -> None:
        """Remove everything."""
        self._folder.cleanup()

    @contextmanager
    def hold(self, media: Sequence[Medium], *, time_left: Callable[[], float]) -> Iterator[list[Path]]:
        """Files of media, in order, for the time of a request.

        Args:
            media: Pictures and videos.
            time_left: Seconds that fetching may still take.

        Raises:
            ApiError: One is not allowed, cannot be had, is too large, or is no picture or video.
        """
        held: list[Path] = []
        try:
            for medium in media:
                held.append(self._find(medium, seconds=min(_MAX_FETCH_S, time_left())))
                self._check(medium, held[-1])
            yield held
        finally:
            for path in held:
                self._release(path)

    def _find(self, medium: Medium, *, seconds: float) -> Path:
        if seconds <= 0:
            raise ApiError(504, f"{medium.label}: no time is left to read it", code="timeout", param=medium.param)
        scheme = medium.url.partition(":")[0].lower()
        if scheme == "file":
            return self._find_local(medium)
        if scheme == "data":
            return self._keep(_decode(medium))
        if scheme not in ("http", "https"):
            raise _refuse(medium, "expected an http, https or data URL, or a file URL below the allowed folder")
        content = io.BytesIO()
        try:
            download(medium.url, content, replace(self._web, total_s=seconds))
        except DataError as error:
            raise ApiError(400, str(error), code="download", param=medium.param) from error
        return self._keep(content.getvalue())

    def _find_local(self, medium: Medium) -> Path:
        url = urllib.parse.urlsplit(medium.url)
        if self._root is None or url.netloc not in ("", "localhost"):
            raise _refuse(medium, "files of the server are not allowed; send a data URL")
        try:
            path = Path(urllib.parse.unquote(url.path)).resolve(strict=True)
            is_allowed = path.is_relative_to(self._root) and path.is_file()
        except (OSError, ValueError, RuntimeError):
            is_allowed = False
        if not is_allowed:  # one message for all causes: it says nothing about files elsewhere
            raise _refuse(medium, "it is no file below the folder that requests may read")
        return path

    def _keep(self, content: bytes) -> Path:
        path = Path(self._folder.name, hashlib.sha256(content).hexdigest())
        with self._lock:
            if not self._users[path]:
                path.write_bytes(content)
                os.utime(path, ns=(0, 0))  # caches know a file by its name, size and time
            self._users[path] += 1
        return path

    def _release(self, path: Path) -> None:
        with self._lock:
            if path in self._users:
                self._users[path] -= 1
                if not self._users[path]:
                    del self._users[path]
                    path.unlink()

    def _check(self, medium: Medium, path: Path) -> None:
        num_bytes, limit = path.stat().st_size, self._options.max_media_mib
        if num_bytes > limit * 2**20:
            raise _refuse(medium, f"it has {num_bytes:,} bytes, expected at most {limit} MiB", status=413)
        try:
            if medium.kind == "image":
                width, height = read_image_size(path)
            else:
                info = read_video_info(path)
                width, height = info.width, info.height
        except DataError as error:
            raise rename(error, {path: medium.label}, param=medium.param) from error
        if width * height > self._options.max_pixels:
            raise _refuse(medium, f"{width} x {height} pixels, expected at most {self._options.max_pixels:,}")


def rename(error: Exception, labels: dict[Path, str], *, param: str | None = None) -> ApiError:
    """The error with media called as the request calls them: paths of the server are none of its business."""
    known = from_exception(error)
    message = known.message
    for path, label in labels.items():
        message = message.replace(str(path), label)
    message = message.replace("; replace the file or remove its record", "")
    return ApiError(known.status, message, code=known.code, param=param or known.param)


def _decode(medium: Medium) -> bytes:
    match = _DATA_URL.match(medium.url)
    if match is None:
        raise _refuse(medium, "expected data:TYPE;base64,CONTENT")
    try:
        return base64.b64decode(medium.url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refuse(medium, f"its content is no base64 ({error})") from None


def _refuse(medium: Medium, cause: str, *, status: int = 400) -> ApiError:
    return ApiError(status, f"{medium.label}: {cause}", code=f"invalid_{medium.kind}", param=medium.param)
