"""MileBench's pictures -> the canvases of its combined-image setting.

    python -m eval.convert.milebench dataset/benchmark/MileBench --max_canvases 1

    SET/SET.json, SET/images/   ->   SET/combined_1_images/ID-0.jpg     for the task milebench/SET-combined-1;
                                     SET/SET_combined_N.json as well    for more canvases than one

Cells, captions and names are those of the benchmark's own script, in pillow's font. Existing canvases are kept.
"""

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from eval.convert.command import run_converter
from eval.convert.files import place_inside
from eval.core.data_root import find_media
from eval.core.fields import KEY, WHOLE, parse_rows, read_object
from eval.core.output import write_result
from eval.metrics.milebench import CELL_PX, SETS, plan_canvases
from eval.tasks.milebench import name_canvas_folder, name_canvases
from internvl.command import command
from internvl.data.storage.media import load_image
from internvl.errors import ConfigError, DataError

CAPTION_PX = 32
PADDING_PX = 12


@dataclass(frozen=True)
class _Instance:
    images_path: list[str]


@dataclass(frozen=True)
class _Set:
    data: list[Any]
    content: dict[str, Any] = field(metadata={KEY: WHOLE})


@dataclass(frozen=True)
class _Record:
    sample_id: str | int
    task_instance: _Instance


def convert(folder: Path, out: Path, *, max_canvases: int) -> dict[str, int]:
    """Combine the pictures of every set that lies in `folder`.

    Returns:
        Number of questions by folder of canvases.

    Raises:
        ConfigError: `max_canvases` is less than 1.
        DataError: There is no set, a record is wrong, or a picture cannot be read.
        EvalError: A file cannot be written.
    """
    if max_canvases < 1:
        raise ConfigError(f"--max_canvases must be at least 1, got {max_canvases}")
    names = [name for name in SETS if (folder / name / f"{name}.json").is_file()]
    if not names:
        raise DataError(f"no file SET/SET.json below {folder.absolute()}; sets: {', '.join(SETS)}")
    return {
        f"{name}/{name_canvas_folder(max_canvases)}": _combine_set(folder / name, out / name, max_canvases)
        for name in names
    }


def _combine_set(folder: Path, out: Path, max_canvases: int) -> int:
    path = folder / f"{folder.name}.json"
    whole = read_object(path, _Set)
    rows = whole.data
    records = parse_rows(path, rows, _Record, lambda _, record: record)
    for row, record in zip(rows, tqdm(records, desc=folder.name, unit="q", disable=None), strict=True):
        pictures = [find_media(name, folder / "images") for name in record.task_instance.images_path]
        row["task_instance"][name_canvas_folder(max_canvases)] = _write_canvases(
            record.sample_id, pictures, out / name_canvas_folder(max_canvases), max_canvases
        )
    if max_canvases > 1:
        text = json.dumps(whole.content, ensure_ascii=False, indent=4)
        write_result(out / f"{folder.name}_combined_{max_canvases}.json", text + "\n")
    return len(rows)


def _write_canvases(sample_id: str | int, pictures: Sequence[Path], out: Path, max_canvases: int) -> list[str]:
    """Write a question's canvases; returns their names."""
    names = name_canvases(sample_id, len(pictures), max_canvases)
    remaining, number = iter(pictures), 1
    for name, (num_cells, size) in zip(names, plan_canvases(len(pictures), max_images=max_canvases), strict=True):
        cells, path = list(islice(remaining, num_cells)), place_inside(name, out)
        if not path.exists():
            buffer = io.BytesIO()
            draw_canvas(cells, size, first_number=number).save(buffer, "jpeg")
            write_result(path, buffer.getvalue())
        number += num_cells
    return names


def draw_canvas(pictures: Sequence[Path], size: tuple[int, int], *, first_number: int) -> Image.Image:
    """Pictures on a black canvas of `size` (width, height) in px, row by row, each with its number as caption."""
    canvas = Image.new("RGB", size)
    num_columns = size[0] // CELL_PX
    for index, picture in enumerate(pictures):
        cell = load_image(picture).resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
        _write_caption(cell, f"Image {first_number + index}")
        canvas.paste(cell, (CELL_PX * (index % num_columns), CELL_PX * (index // num_columns)))
    return canvas


def _write_caption(cell: Image.Image, text: str) -> None:
    """White text in a black box at the bottom, in the middle."""
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(CAPTION_PX)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left, bottom - top
    x, y = (cell.width - width) // 2, cell.height - height
    box = (x - PADDING_PX, y - PADDING_PX - 10, x + width + PADDING_PX, y + height + PADDING_PX)
    draw.rectangle(box, fill="black")
    draw.text((x, y - top), text, fill="white", font=font)


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_converter(
        convert,
        name="milebench",
        description=__doc__,
        out="dataset/benchmark/MileBench",
        argv=argv,
        options={"--max_canvases": {"type": int, "default": 1, "help": "canvases per question (%(default)s)"}},
    )


if __name__ == "__main__":
    sys.exit(main())
