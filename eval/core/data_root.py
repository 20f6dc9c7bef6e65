"""Data root: the folders in which the data of benchmarks is looked for, used like one folder.

    --data-root, if given  ->  dataset/benchmark  ->  data  ->  dataset  ->  what was fetched from the hub

Relative ones are looked for below the working directory, then below the repository. Pictures and videos that records
name must lie in these folders.
"""

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from internvl.data.storage.cache import cache_folder
from internvl.data.storage.media import resolve_image_path
from internvl.data.storage.remote import find_scheme
from internvl.errors import DataError, EvalError

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("dataset/benchmark", "data", "dataset")
# First part of a path -> what else it is called: V2PE's README puts the folders of V2PE-Data straight into `dataset`,
# and names none for InfographicVQA.
_OTHER_NAMES = {"V2PE-Data": ".", "infographicsvqa": "infovqa"}


@dataclass(frozen=True)
class DataRoot:
    """Folders, the preferred one first. `root / "docvqa/val.jsonl"` is where that file is."""

    folders: tuple[Path, ...]

    def __truediv__(self, name: str | Path) -> Path:
        """A file or folder in the first folder that has it; where it would be in the first one if none has it."""
        return next((place for place in self._list_places(Path(name)) if os.path.exists(place)), self.folders[0] / name)

    def __str__(self) -> str:
        return os.pathsep.join(map(str, self.folders))

    def _list_places(self, name: Path) -> Iterator[Path]:
        yield from (folder / name for folder in self.folders)
        first, *rest = name.parts
        for folder in self.folders:
            for other in _list_other_names(folder, first):
                yield folder.joinpath(other, *rest)


def _list_other_names(folder: Path, name: str) -> Iterator[str]:
    """Names that may stand for `name` in a folder: known ones, and those that differ in upper and lower case only."""
    known = {name.lower(), _OTHER_NAMES.get(name, name).lower()}
    if _OTHER_NAMES.get(name) == ".":
        yield "."
    if folder.is_dir():
        yield from sorted(entry for entry in os.listdir(folder) if entry.lower() in known)


# What tasks take: the folders of a run, or one folder. Both know `/`.
Root: TypeAlias = DataRoot | Path


def find_data_root(given: Path | None = None) -> DataRoot:
    """The folders of a run whose `--data-root` is `given`."""
    asked = FOLDERS if given is None else (given, *FOLDERS)
    places = [base / folder for folder in asked for base in (Path.cwd(), REPOSITORY)]
    return DataRoot(tuple(dict.fromkeys([*places, fetched_folder()])))


def read_data_root(text: str) -> DataRoot:
    """The folders that `str` made this text of."""
    return DataRoot(tuple(map(Path, text.split(os.pathsep))))


def fetched_folder() -> Path:
    """Where benchmarks are kept that were fetched from the hub."""
    return cache_folder() / "benchmark"


def find_annotation(file: Path, data_root: DataRoot, *, source: str) -> Path:
    """The path of a file of questions or answers. Raises EvalError that says where it was looked for."""
    path = data_root / file
    if not path.is_file():
        folders = ", ".join(map(str, data_root.folders))
        looked = f"; looked for {file} in {folders} (--data-root names another folder)" * (not file.is_absolute())
        raise EvalError(
            f"annotation file not found, expected at {path}{looked}; get it from {source}, or choose other --tasks"
        )
    return path


def find_media(name: object, data_root: Root, folders: Sequence[Path] = ()) -> Path:
    """The picture or video that a record names: in the first of `folders` that has it, else where it is expected.

    Without `folders` it is a path below the data root.

    Published files were written for a working directory with the folders of V2PE's README, so `data/x/1.png` and
    `dataset/benchmark/x/1.png` are `x/1.png` of the data root, whatever `folders` says.

    Raises DataError for a path that leads out of its folder, as training does, and for anything else than a relative
    path.
    """
    if not isinstance(name, str):
        raise DataError(f"the name of a picture or video is a {type(name).__name__}, expected str")
    path = Path(posixpath.normpath(name))
    if find_scheme(name) is not None or path.is_absolute() or not path.parts:
        raise DataError(f"{name!r:.200} is not a path below the benchmark's folder; write it relative to that folder")
    resolve_image_path(name, root=str(data_root))  # refuses what leads out
    for folder in FOLDERS:
        if Path(folder) in path.parents:
            return data_root / path.relative_to(folder)
    if not folders:
        return data_root / path
    places = [folder / path for folder in folders]
    return next((place for place in places if os.path.exists(place)), places[0])
