"""Remote files: pictures and videos at URLs, fetched once and then read from the cache folder.

    https://host/a.jpg    the standard library
    s3://bucket/a.jpg     fsspec, with the package of the store (`_STORES`), which reads its own settings and keys

A fetched file is stored under the sha256 of its URL, in hex, as in the folders that a meta file's `http_root` names.
It is never fetched again; delete it when the file at the URL has changed. So what is stored has to be what was asked
for: a whole file, no page that says why there is none. Servers are not trusted: time and size have limits, and a
redirect leads to http or https only.

Where the URL itself comes from a stranger, `download` keeps nothing, and connects to public addresses only. The address
that is checked is the one that is connected to, at every redirect, so no name can change its meaning in between.
"""

import hashlib
import http.client
import ipaddress
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

from internvl.data.storage.cache import cache_folder, is_cached, write_cached_file
from internvl.errors import ConfigError, DataError, MissingDependencyError

# Schemes that fsspec opens, and the package that it needs for them.
_STORES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "memory": "",  # within one process, for tests
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TIMEOUT_S = 30  # of one step, such as waiting for the next bytes
_PIECE_BYTES = 1 << 20
_LOOKED_AT_BYTES = 512  # to see whether a file is text
_NUM_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.5  # doubled after every attempt
_HEADERS = {"User-Agent": "internvl"}
_IPV6_UNICAST = ipaddress.ip_network("2000::/3")
_SAFE_IN_URLS = "%/:=&?~#+!$,;'@()*[]"


@dataclass(frozen=True)
class WebLimits:
    """What a download may cost, and where it may lead."""

    max_bytes: int = 4 << 30
    total_s: float = 300.0
    is_public: bool = False  # only to addresses of the public internet, and through no proxy


_LIMITS = WebLimits()


def find_scheme(text: str) -> str | None:
    """The part of a URL before `://`, in lower case; None for a path on this machine."""
    match = _SCHEME.match(text)
    return match[1].lower() if match else None


def is_web(scheme: str | None) -> bool:
    """Whether a scheme is http or https."""
    return scheme in ("http", "https")


def check_scheme(url: str) -> None:
    """Raise DataError for a URL whose scheme is not known."""
    scheme = find_scheme(url)
    if not is_web(scheme) and scheme not in _STORES:
        known = ", ".join(("http", "https", *_STORES))
        raise DataError(f"{url!r:.200} begins with {scheme}://, expected a path or one of {known}", kind="path")


def name_url(url: str) -> str:
    """The name under which a URL's file is stored."""
    return hashlib.sha256(url.encode()).hexdigest()


def fetch_file(url: str) -> Path:
    """The local copy of the file at a URL.

    Raises:
        DataError: It cannot be fetched.
        ConfigError: The cache folder cannot be written.
        MissingDependencyError: The store's package is not installed.
    """
    path = cache_folder() / "remote" / name_url(url)
    if is_cached(path):
        return path
    check_scheme(url)
    try:
        with _deadline(_LIMITS) as deadline, _open(url, deadline) as source:
            _store(url, source, path, deadline)
    except DataError as error:
        raise DataError(
            f"{error}; correct the URL, or store the file under the sha256 of its URL in a folder and set http_root in "
            "the meta file",
            kind="download",
        ) from error
    return path


def download(url: str, file: IO[bytes], limits: WebLimits) -> None:
    """Write what an http or https URL holds to a file.

    Raises:
        DataError: Another scheme, it cannot be fetched, or leads where the limits forbid; nothing was sent there.
        OSError: The file cannot be written.
    """
    if not is_web(find_scheme(url)):
        raise _unreachable(url, "it is no http or https URL")
    with _deadline(limits) as deadline, _open_web(url, deadline) as source:
        _copy(url, source, file, deadline)


class _Deadline:
    """Ends connections after some time: a server that sends a byte now and then never meets a socket's time limit."""

    def __init__(self, limits: WebLimits):
        self.limits = limits
        self.is_over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(limits.total_s, self._end)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connection: socket.socket) -> None:
        self._sockets.append(connection)
        if self.is_over:
            self._end()

    def _end(self) -> None:
        self.is_over = True
        for connection in self._sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def cancel(self) -> None:
        self._timer.cancel()


@contextmanager
def _deadline(limits: WebLimits) -> Iterator[_Deadline]:
    deadline = _Deadline(limits)
    try:
        yield deadline
    finally:
        deadline.cancel()


def _store(url: str, source: BinaryIO, path: Path, deadline: _Deadline) -> None:
    try:
        with write_cached_file(path) as file:
            _copy(url, source, file, deadline)
    except OSError as error:
        raise ConfigError(
            f"{path.parent} cannot be written ({error.strerror or error}), where files from URLs are kept; "
            "set INTERNVL_CACHE to a folder that can be written"
        ) from error


def _copy(url: str, source: BinaryIO, file: IO[bytes], deadline: _Deadline) -> None:
    num_bytes = 0
    while piece := _read_piece(url, source):
        if num_bytes == 0:
            _check_head(url, piece[:_LOOKED_AT_BYTES])
        num_bytes += len(piece)
        if num_bytes + (getattr(source, "length", None) or 0) > deadline.limits.max_bytes:
            raise _unreachable(url, f"it has more than {deadline.limits.max_bytes:,} bytes")
        if deadline.is_over:
            break
        file.write(piece)
    if deadline.is_over:
        raise _unreachable(url, f"it is not complete after {deadline.limits.total_s:.0f} s")
    if num_bytes == 0:
        raise _unreachable(url, "it is empty")
    expected = getattr(source, "length", None)
    if expected:  # bytes that the server announced but did not send
        raise _unreachable(url, f"the connection ended {expected} bytes early")


def _read_piece(url: str, source: BinaryIO) -> bytes:
    try:
        return source.read(_PIECE_BYTES)
    except Exception as error:  # whatever a store's package raises
        raise _unreachable(url, error) from error


def _check_head(url: str, head: bytes) -> None:
    """Refuse text, such as the page of a login: pictures and videos are no text."""
    text = head.decode("utf-8", errors="ignore")
    is_text = len(text.encode()) > len(head) - 4 and not any(sign < " " and sign not in "\t\n\f\r" for sign in text)
    if is_text:
        raise _unreachable(url, f"it is text ({' '.join(text.split())[:40]!r}), expected a picture or a video")


def _unreachable(url: str, cause: object) -> DataError:
    return DataError(f"{url:.300} cannot be fetched: {cause}", kind="download")


def _open(url: str, deadline: _Deadline) -> BinaryIO:
    return _open_web(url, deadline) if is_web(find_scheme(url)) else _open_store(url)


def _open_web(url: str, deadline: _Deadline) -> BinaryIO:
    opener = _build_opener(deadline)
    for attempt in range(_NUM_ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            request = urllib.request.Request(urllib.parse.quote(url, safe=_SAFE_IN_URLS), headers=_HEADERS)
            return opener.open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            cause: Exception = error
            if error.code < 500 and error.code != 429:  # would be the same the next time
                break
        except ValueError as error:
            cause = error
            break
        except (OSError, http.client.HTTPException) as error:
            cause = error
        if deadline.is_over:
            break
    raise _unreachable(
        url, f"no answer after {deadline.limits.total_s:.0f} s" if deadline.is_over else cause
    ) from cause


def _build_opener(deadline: _Deadline) -> urllib.request.OpenerDirector:
    """What opens http and https, also where a redirect leads; urllib's own opens ftp too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if deadline.limits.is_public else None),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        _WebHandler(deadline),
        _SecureWebHandler(deadline),
    ):
        opener.add_handler(handler)
    return opener


class _WebHandler(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline):
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_connect, http.client.HTTPConnection, self._deadline), req)


class _SecureWebHandler(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline):
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_connect, http.client.HTTPSConnection, self._deadline), req)


def _connect(
    kind: type[http.client.HTTPConnection], deadline: _Deadline, host: str, *, timeout: float
) -> http.client.HTTPConnection:
    """A connection that ends at the deadline."""
    connection = kind(host, timeout=timeout)
    if deadline.limits.is_public:
        connection._create_connection = _connect_to_public  # type: ignore[attr-defined]
    connect = connection.connect

    def connect_and_watch() -> None:
        connect()
        deadline.watch(connection.sock)

    connection.connect = connect_and_watch  # type: ignore[method-assign]
    return connection


def _connect_to_public(
    address: tuple[str, int], timeout: float, source_address: tuple[str, int] | None = None
) -> socket.socket:
    """Like `socket.create_connection`, but ValueError where a name means any address that is not public."""
    host, port = address
    found = [place[4][0] for place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if private := [ip for ip in found if not _is_public(str(ip))]:
        raise ValueError(f"{host} is {private[0]}, which is not an address of the public internet")
    for ip in found[:-1]:
        with suppress(OSError):
            return socket.create_connection((str(ip), port), timeout, source_address)
    return socket.create_connection((str(found[-1]), port), timeout, source_address)


def _is_public(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    # Other ranges of IPv6, 6to4 and Teredo carry an IPv4 address, which may be a private one.
    if address.version == 6 and (address not in _IPV6_UNICAST or address.sixtofour or address.teredo):
        return False
    return address.is_global and not address.is_multicast


def _open_store(url: str) -> BinaryIO:
    scheme = find_scheme(url) or ""
    try:
        import fsspec

        return fsspec.filesystem(scheme).open(url, "rb")
    except ImportError:
        raise MissingDependencyError(
            f"{url} is in an object store: pip install fsspec {_STORES[scheme]}".rstrip()
        ) from None
    except FileNotFoundError:
        raise _unreachable(url, "there is no such object") from None
    except Exception as error:  # whatever a store's package raises
        raise _unreachable(url, error) from error
