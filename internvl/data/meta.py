"""Meta file: which data sets a run is trained on, and how each of them is read.

It is one json object `{data set name: {key: value, ...}, ...}` with the keys of the public V2PE recipes. Everything is
checked here, before any model is loaded, so that a wrong recipe costs seconds.

Relative paths (`annotation`, `root`, `root2`, `http_root`) are looked up in this order:
1. below `data_root`, when one is given (and nowhere else);
2. below the current directory, when the path exists there;
3. below the folder of the meta file.

`root` and `root2` may also be an archive (`images.tar`, `images.zip/train`) or a URL (`s3://bucket/images`).
"""

import difflib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from internvl.data.storage.annotation import SUFFIXES, JsonObject, JsonValue
from internvl.data.storage.archives import ARCHIVE_SUFFIXES, split_member
from internvl.data.storage.media import MediaPath
from internvl.data.storage.remote import check_scheme, find_scheme
from internvl.data.storage.text import read_text
from internvl.errors import ConfigError, DataError


@dataclass(frozen=True)
class SourceSpec:
    """One data set of the meta file."""

    name: str  # unique in the meta file
    annotation: Path  # the file of its records: jsonl, jsonl.gz, json or parquet
    root: MediaPath = Path()  # base of image paths: a folder, an archive, a folder in an archive, or a URL (text)
    root2: MediaPath | None = None  # used instead of `root` by records with several images
    http_root: Path | None = None  # folder of downloaded pictures, named by the sha256 of their URL
    data_augment: bool = False  # use the augmenting image transform
    repeat_time: float = 1.0  # how often the data set is seen per epoch; a fraction is a random share of its rows
    max_dynamic_patch: int | None = None  # tile limit per image for this data set; None keeps the run's
    # Tiling on or off for this data set; None keeps the run's for images. A frame of a video is one tile unless True.
    dynamic_image_size: bool | None = None
    length: int | None = None  # rows according to the recipe; for readers only


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_annotation(value: object) -> bool:
    return isinstance(value, str) and value.lower().endswith(SUFFIXES)


_PATH = ("a path (string)", lambda value: isinstance(value, str))
_FLAG = ("true or false", lambda value: isinstance(value, bool))
_AMOUNT = ("a number, 0 or larger", _is_amount)
# Valid keys of a data set: what is expected, and whether a value is that.
_CHECKS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "annotation": (f"a path ending in {', '.join(SUFFIXES)}", _is_annotation),
    "root": _PATH,
    "root2": _PATH,
    "http_root": _PATH,
    "data_augment": _FLAG,
    "repeat_time": _AMOUNT,
    "max_dynamic_patch": ("a whole number, 1 or larger", _is_count),
    "dynamic_image_size": _FLAG,
    "length": _AMOUNT,
}


def load_meta(path: str | Path, *, data_root: str | Path | None = None) -> list[SourceSpec]:
    """Read and check a meta json; `data_root`, if given, is the folder of all relative paths in it.

    Raises:
        ConfigError: The file is missing or not a json object, or a data set has an unknown key, a value of a wrong
            type, or files that do not exist.
    """
    meta_path = Path(path)
    bases = [Path(data_root)] if data_root is not None else [Path(), meta_path.parent]
    return [_read_source(meta_path, name, entry, bases) for name, entry in _read_object(meta_path).items()]


def _read_object(path: Path) -> JsonObject:
    if not path.exists():
        raise ConfigError(f"meta file not found: {path} (current directory {Path.cwd()}); check --meta_path")
    try:
        text = read_text(path)
    except DataError as error:
        raise ConfigError(f"meta file {path} cannot be read: {error.message}; check --meta_path") from error

    def unique(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"meta file {path}: {twice!r} is given twice; rename or remove one of them")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f'meta file {path} is not json: {error}; expected an object {{"data set": {{"annotation": "....jsonl", '
            "...}} (annotations may be jsonl, the meta file is one json object)"
        ) from None
    if not isinstance(content, dict) or not content:
        got = "an empty object" if content == {} else f"a json {type(content).__name__}"
        raise ConfigError(f'meta file {path}: got {got}, expected {{"data set": {{"annotation": ...}}, ...}}')
    return content


def _read_source(meta_path: Path, name: str, entry: object, bases: list[Path]) -> SourceSpec:
    where = f"meta file {meta_path}, data set {name!r}"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: got a {type(entry).__name__}, expected an object with keys {', '.join(_CHECKS)}")
    _check_entry(where, entry)
    given = {"root": ""} | entry
    found = {key: _resolve(where, key, given[key], bases) for key in _KINDS if key == "root" or given.get(key)}
    values = {key: value for key, value in entry.items() if key not in _KINDS}
    numbers = {key: number(values[key]) for key, number in (("length", int), ("repeat_time", float)) if key in values}
    return SourceSpec(name=name, **(values | numbers | found))


def _check_entry(where: str, entry: Mapping[str, object]) -> None:
    for key, value in entry.items():
        if key not in _CHECKS:
            nearest = difflib.get_close_matches(key, list(_CHECKS), n=1, cutoff=0.0)[0]
            raise ConfigError(f"{where}: unknown key {key!r}; did you mean {nearest!r}? Valid: {', '.join(_CHECKS)}")
        expected, is_valid = _CHECKS[key]
        if not is_valid(value):
            got = f"{value!r} ({type(value).__name__})"
            raise ConfigError(f"{where}: {key} is {got}, expected {expected}; change it in the meta file")
    if "annotation" not in entry:
        raise ConfigError(f"{where}: the key 'annotation' is missing; add the path of the file of its records")


def _resolve(where: str, key: str, value: str, bases: list[Path]) -> MediaPath:
    if key in ("root", "root2") and find_scheme(value) is not None:
        try:
            check_scheme(value)
        except DataError as error:
            raise ConfigError(f"{where}: {key} {error}; copy the data to this machine and change it") from None
        return value
    if "://" in value or value.startswith("s3:"):
        raise ConfigError(f"{where}: {key} is {value!r}, expected a path on this machine; copy the data and change it")
    candidates = [base / value for base in bases]
    kind, is_found = _KINDS[key]
    try:
        found = next((candidate for candidate in candidates if is_found(candidate)), None)
    except DataError as error:
        raise ConfigError(f"{where}: {key} {value!r}: {error}") from None
    if found is None:
        tried = ", ".join(dict.fromkeys(str(candidate.absolute()) for candidate in candidates))
        raise ConfigError(
            f"{where}: {key} {value!r} is not a {kind}; tried {tried}; correct the path or set the data root"
        )
    return found


def _is_root(path: Path) -> bool:
    """Whether a path is a folder, an archive, or a place inside an archive."""
    is_archive = path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)
    return path.is_dir() or is_archive or split_member(path) is not None


# What the paths of a data set must be.
_KINDS: Mapping[str, tuple[str, Callable[[Path], bool]]] = {
    "annotation": ("file", Path.is_file),
    "root": ("folder (or archive)", _is_root),
    "root2": ("folder (or archive)", _is_root),
    "http_root": ("folder", Path.is_dir),
}
