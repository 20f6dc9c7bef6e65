"""Remote files: pictures and videos at URLs, fetched once and then read from the cache folder.

    https://host/a.jpg    the standard library
    s3://bucket/a.jpg     fsspec, with the package of the store (`_STORES`), which reads its own settings and keys

A fetched file is stored under the sha256 of its URL, in hex, as in the folders that a meta file's `http_root` names.
It is never fetched again; delete it when the file at the URL has changed.
"""

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, BinaryIO

from internvl.data.storage.cache import cache_folder, write_cached_file
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
_TIMEOUT_S = 30
_NUM_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.5  # doubled after every attempt
_HEADERS = {"User-Agent": "internvl"}
_SAFE_IN_URLS = "%/:=&?~#+!$,;'@()*[]"


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
    if path.exists():
        return path
    check_scheme(url)
    with _open_web(url) if is_web(find_scheme(url)) else _open_store(url) as source:
        try:
            with write_cached_file(path) as file:
                _copy(url, source, file)
        except OSError as error:
            raise ConfigError(
                f"{path.parent} cannot be written ({error.strerror or error}), where files from URLs are kept; "
                "set INTERNVL_CACHE to a folder that can be written"
            ) from error
    return path


def _copy(url: str, source: BinaryIO, file: IO[bytes]) -> None:
    while True:
        try:
            piece = source.read(1 << 20)
        except Exception as error:  # whatever a store's package raises
            raise _unreachable(url, error) from error
        if not piece:
            break
        file.write(piece)
    expected = getattr(source, "length", None)
    if expected:  # bytes that the server announced but did not send
        raise _unreachable(url, f"the connection ended {expected} bytes early")


def _unreachable(url: str, cause: object) -> DataError:
    return DataError(
        f"{url} cannot be fetched: {cause}; correct the URL, or store the file under the sha256 of its URL in a folder "
        "and set http_root in the meta file",
        kind="download",
    )


def _open_web(url: str) -> BinaryIO:
    for attempt in range(_NUM_ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            request = urllib.request.Request(urllib.parse.quote(url, safe=_SAFE_IN_URLS), headers=_HEADERS)
            return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            cause: Exception = error
            if error.code < 500 and error.code != 429:  # would be the same the next time
                break
        except ValueError as error:
            cause = error
            break
        except (OSError, http.client.HTTPException) as error:
            cause = error
    raise _unreachable(url, cause) from None


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
