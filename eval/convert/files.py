"""Output of converters: jsonl lines, and names from foreign archives that must not leave the output folder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from internvl.errors import DataError


def write_line(file: IO[bytes], record: Mapping[str, object]) -> None:
    """Write one record of a jsonl file."""
    file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


def place_inside(name: str, folder: Path) -> Path:
    """Path of a file below a folder.

    Raises:
        DataError: The name is absolute or empty, climbs out of the folder, or passes a link that leaves it.
    """
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    is_absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name) is not None
    if not parts or is_absolute or ".." in parts or "\0" in name:
        raise DataError(f"the name {name!r} leads out of its folder; it is not written; do not trust its source")
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path} leads out of {folder} through a link; remove the link or choose another --out")
    return path
