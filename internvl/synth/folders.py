"""Finished folders: which builder made a folder from which arguments, and when it may be replaced.

Builders write below a temporary name and rename at the end, so a folder is complete or absent. Its
`datasheet.json` holds the builder and its arguments. That is how a builder recognises its own folders (which it may
replace) and those of a user (which it never touches), and sees that there is nothing to do.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from internvl.atomic import stage_folders
from internvl.data.storage.text import read_text
from internvl.errors import ConfigError, DataError
from internvl.folder_owner import own_folder

DATASHEET = "datasheet.json"
Facts = Mapping[str, object]


@dataclass(frozen=True)
class Origin:
    """What a folder is made from."""

    builder: str  # module of the command
    arguments: Facts  # everything that the files follow from, as json values

    @classmethod
    def of(cls, builder: str, arguments: Facts) -> "Origin":
        """The origin with `arguments` as json has them: tuples become lists, paths strings."""
        return cls(builder, json.loads(json.dumps(arguments, default=str)))


def digest_annotation(path: Path) -> str:
    """sha256 of the file given as --annotation; ConfigError if it cannot be read."""
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"annotation {path} cannot be read: {error}; check --annotation") from None


def read_annotation(path: Path) -> list[str]:
    """Lines of the file given as --annotation, cut as the trainer cuts it; ConfigError if it cannot be read."""
    try:
        return read_text(path).split("\n")
    except DataError as error:
        raise ConfigError(f"annotation {path} cannot be read: {error.message}; check --annotation") from None


def write_datasheet(folder: Path, origin: Origin, facts: Facts) -> None:
    """Write a datasheet: the origin, and whatever else is worth knowing."""
    sheet = {"builder": origin.builder, "arguments": dict(origin.arguments), **facts}
    (folder / DATASHEET).write_text(json.dumps(sheet, indent=2) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """The origin that a folder's datasheet names; None without a readable datasheet."""
    try:
        sheet = json.loads((folder / DATASHEET).read_text(encoding="utf-8"))
        return Origin(sheet["builder"], dict(sheet["arguments"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_finished(folder: Path, origin: Origin) -> bool:
    """Whether the folder was made from exactly this."""
    return read_origin(folder) == origin


def check_replaceable(folder: Path, origin: Origin, *, overwrite: bool) -> None:
    """Raise DataError if a user or another builder made the folder, or if arguments differ without `overwrite`."""
    if not folder.exists() or is_finished(folder, origin):
        return
    found = read_origin(folder)
    if found is None or found.builder != origin.builder:
        raise DataError(f"{folder} exists and was not made by {origin.builder}; move it away or choose another folder")
    if not overwrite:
        old, new = found.arguments, origin.arguments
        changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        raise DataError(
            f"{folder} was made with other arguments ({', '.join(changed)}); add --overwrite to make it again, "
            "or choose another folder"
        )


def make_folders(
    root: Path, folders: Iterable[Path], origin: Origin, write: Callable[[Path], Facts], *, overwrite: bool
) -> bool:
    """Make several folders at once: all of them appear, or none. Returns False when all are finished already.

    Args:
        root: The folder they belong to.
        folders: Paths relative to `root`; the one that refers to the others comes last.
        origin: What they are made from.
        write: Fills the folders below the staging folder that it is given; returns what else the datasheets say.
        overwrite: Replace folders that were made with other arguments.

    Raises:
        DataError: A folder is in the way that may not be replaced.
        ConfigError: Another process is making them.
    """
    folders = list(folders)
    with own_folder(root / folders[-1], origin.builder):
        if all(is_finished(root / folder, origin) for folder in folders):
            return False
        for folder in folders:
            check_replaceable(root / folder, origin, overwrite=overwrite)
        with stage_folders(root, folders) as staging:
            for folder in folders:
                (staging / folder).mkdir(parents=True)
            facts = write(staging)
            for folder in folders:
                write_datasheet(staging / folder, origin, facts)
        return True
