"""Atomic writes: a file or folder has its old content or its new one, never something between.

Everything is written under a temporary name beside its place and renamed at the end. A killed process leaves the old
content and a temporary file. No other module of the project writes by renaming.
"""

import glob
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{8}", re.DOTALL)


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into; it takes its name when the block ends well and is removed when an error ends it.

    Raises:
        OSError: The file cannot be written. What stood there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, since threads of one process, and processes of other nodes with the same number, may write the same file.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # _DRAFT
    try:
        with draft.open("wb") as file:
            yield file
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink()


def remove_drafts(folder: Path, files: Collection[Path]) -> None:
    """Remove what killed processes left of `files`, below a folder that only this process writes to."""
    for path in [*folder.rglob(".*")]:
        match = _DRAFT.fullmatch(path.name)
        if match and path not in files and path.with_name(match[1]) in files:
            path.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file; text as UTF-8.

    Raises:
        OSError: The file cannot be written.
    """
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, *, indent: int | None = 1, default: Callable[[Any], Any] | None = None) -> None:
    """Write a json file, non-ASCII characters as they are.

    Args:
        path: The file.
        value: What it holds.
        indent: Spaces per level; None: one line without spaces.
        default: Turns what json does not know into something that it does, as in `json.dumps`.

    Raises:
        OSError: The file cannot be written.
    """
    separators, end = ((",", ":"), "") if indent is None else (None, "\n")
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, default=default)
    write_atomically(path, text + end)


def publish_folder(draft: Path, final: Path) -> None:
    """Give a finished folder its name; what stood there before is removed. Both lie on one file system."""
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_folder(final)
    draft.rename(final)


REMOVED_PREFIX = ".deleting-"


def remove_folder(folder: Path) -> None:
    """Delete a folder without ever leaving a part of it under its name; a missing one is fine."""
    if not folder.exists():
        return
    trash = Path(tempfile.mkdtemp(prefix=REMOVED_PREFIX, dir=folder.parent))
    folder.rename(trash / folder.name)
    shutil.rmtree(trash, ignore_errors=True)


@contextmanager
def stage_folders(root: Path, folders: Sequence[Path]) -> Iterator[Path]:
    """Write below a temporary folder; when the block ends well, move `folders` from there to `root`.

    Args:
        root: Where the folders belong; created when missing.
        folders: Paths relative to `root`, in the order in which they are moved. The block has to create each. The
            caller owns the last one (`internvl.folder_owner`): what a killed process left of it is removed.

    Yields:
        The temporary folder, on the same disk as `root`. It is removed in any case.
    """
    root.mkdir(parents=True, exist_ok=True)
    prefix = f".staging-{str(folders[-1]).replace(os.sep, '@')}-"
    for leftover in root.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=prefix) as name:
        staging = Path(name)
        yield staging
        for folder in folders:
            publish_folder(staging / folder, root / folder)


@contextmanager
def replace_files(folder: Path, *, last: str, before_moving: Callable[[set[str]], None]) -> Iterator[Path]:
    """Yield an empty folder to write into; its entries appear in `folder` when the block ends without an error.

    Args:
        folder: Where the entries belong; other entries there stay.
        last: Name of the entry that is moved last: once it is there, all are.
        before_moving: Called with the names of the new entries when all of them are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        yield staging
        entries = sorted(staging.iterdir(), key=lambda entry: entry.name == last)
        before_moving({entry.name for entry in entries})
        for entry in entries:
            if entry.is_dir():
                shutil.rmtree(folder / entry.name, ignore_errors=True)
            os.replace(entry, folder / entry.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
