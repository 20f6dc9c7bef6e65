"""Finished folders only: everything is written to a temporary place and renamed at the end.

Every finished folder holds a `datasheet.json` with the arguments it was made with. So a builder can tell what it made
itself (and may replace) from what a user put there (and is never touched), and can see that there is nothing to do.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl.errors import DataError

DATASHEET = "datasheet.json"


def read_datasheet(folder: Path) -> dict[str, Any] | None:
    """The datasheet of a finished folder; None when there is none that can be read."""
    try:
        sheet = json.loads((folder / DATASHEET).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return sheet if isinstance(sheet, dict) else None


def write_datasheet(folder: Path, sheet: Mapping[str, Any]) -> None:
    """Write a datasheet; `sheet` has `builder`, `arguments` and whatever else is worth knowing."""
    (folder / DATASHEET).write_text(json.dumps(sheet, indent=2) + "\n", encoding="utf-8")


def is_finished(folder: Path, builder: str, arguments: Mapping[str, Any]) -> bool:
    """Whether `builder` made this folder with exactly these arguments."""
    sheet = read_datasheet(folder)
    return sheet is not None and sheet.get("builder") == builder and sheet.get("arguments") == dict(arguments)


def check_replaceable(folder: Path, builder: str, arguments: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse to replace what is not ours, or what was made with other arguments.

    Raises:
        DataError: The folder was not made by `builder`; or with other arguments, and `overwrite` is False.
    """
    if not folder.exists() or is_finished(folder, builder, arguments):
        return
    sheet = read_datasheet(folder)
    if sheet is None or sheet.get("builder") != builder:
        raise DataError(f"{folder} exists and was not made by {builder}; move it away or choose another folder")
    if not overwrite:
        old = sheet.get("arguments", {})
        changed = sorted(name for name in {*old, *arguments} if old.get(name) != arguments.get(name))
        raise DataError(
            f"{folder} was made with other arguments ({', '.join(changed)}); add --overwrite to make it anew, "
            "or choose another folder"
        )
