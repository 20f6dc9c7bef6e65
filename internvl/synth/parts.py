"""Work in parts that survive a crash: samples by number, parts by file, folders that appear when they are whole.

    OUT.partial/arguments.json          what is being made; started again with the same, the work goes on
    OUT.partial/parts/FILE.000016.jsonl samples 16 to 31 of FILE, there when they are finished
    OUT                                 the finished folder: parts joined in order, OUT.partial renamed

A sample is a function of (arguments, file, number), so it does not matter which process makes it, or when: what comes
out is the same with any number of workers and interruptions.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from internvl.atomic import publish_folder, write_atomically
from internvl.errors import ConfigError, DataError
from internvl.synth.folders import check_replaceable

Record = dict[str, Any]
MakeSample = Callable[["Part", int], Record]
_ARGUMENTS = "arguments.json"
_PARTS = "parts"


@dataclass(frozen=True)
class Part:
    """Samples `first` to `stop - 1` of a file.

    Attributes:
        file: Path of the file in the finished folder.
        first: Number of the first sample.
        stop: One more than the number of the last.
    """

    file: str
    first: int
    stop: int

    @property
    def path(self) -> Path:
        """Where it lies until it is joined, below the folder under construction."""
        return Path(_PARTS, f"{self.file.replace('/', '@')}.{self.first:06d}.jsonl")


def cut_parts(files: Mapping[str, int], *, samples_per_part: int) -> list[Part]:
    """Parts of files, by their numbers of samples."""
    return [
        Part(file, first, min(first + samples_per_part, number))
        for file, number in files.items()
        for first in range(0, number, samples_per_part)
    ]


@contextmanager
def open_workspace(out: Path, builder: str, arguments: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """The folder under construction; renamed to `out` when the block ends well, kept for the next start when not.

    Raises:
        DataError: `out`, or a folder under construction, was made by somebody else or with other arguments.
    """
    check_replaceable(out, builder, arguments, overwrite=overwrite)
    partial = out.with_name(f"{out.name}.partial")
    stamp = {"builder": builder, "arguments": dict(arguments)}
    if partial.exists() and _read_stamp(partial) != stamp:
        if any((partial / _PARTS).glob("*.jsonl")) and not overwrite:
            raise DataError(
                f"{partial} was begun with other arguments; start again with those, or add --overwrite to throw it away"
            )
        shutil.rmtree(partial)
    (partial / _PARTS).mkdir(parents=True, exist_ok=True)
    write_atomically(partial / _ARGUMENTS, json.dumps(stamp, indent=2) + "\n")
    yield partial
    shutil.rmtree(partial / _PARTS)
    (partial / _ARGUMENTS).unlink()
    publish_folder(partial, out)


def _read_stamp(partial: Path) -> Any:
    try:
        return json.loads((partial / _ARGUMENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def make_parts(folder: Path, parts: Sequence[Part], make: MakeSample, *, num_workers: int, label: str) -> None:
    """Make the parts that are not there yet.

    Args:
        folder: The folder under construction.
        parts: All parts.
        make: (part, number) -> sample; for worker processes it has to be picklable.
        num_workers: Processes; 0 works in this one.
        label: What the progress bar says.
    """
    if num_workers < 0:
        raise ConfigError(f"workers is {num_workers}, expected 0 or more")
    missing = [part for part in parts if not (folder / part.path).is_file()]
    total = sum(part.stop - part.first for part in parts)
    done = total - sum(part.stop - part.first for part in missing)
    with tqdm(total=total, initial=done, desc=label, unit="sample", mininterval=0.5) as bar:
        for size in _run(folder, missing, make, num_workers):
            bar.update(size)


def _run(folder: Path, parts: Sequence[Part], make: MakeSample, num_workers: int) -> Iterable[int]:
    if num_workers == 0:
        for part in parts:
            yield make_part(folder, part, make)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        futures = [pool.submit(make_part, folder, part, make) for part in parts]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def make_part(folder: Path, part: Part, make: MakeSample) -> int:
    """Write one part; returns its number of samples."""
    lines = (json.dumps(make(part, number), ensure_ascii=False) + "\n" for number in range(part.first, part.stop))
    write_atomically(folder / part.path, "".join(lines))
    return part.stop - part.first


def join_parts(folder: Path, parts: Sequence[Part]) -> Iterator[tuple[str, Record]]:
    """Write the files from their parts; yields (file, sample) on the way, one in memory at a time."""
    for file in dict.fromkeys(part.file for part in parts):
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8") as joined:
            for part in parts:
                if part.file != file:
                    continue
                with (folder / part.path).open(encoding="utf-8") as lines:
                    for line in lines:
                        joined.write(line)
                        yield file, json.loads(line)
