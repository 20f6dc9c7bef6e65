"""Resumable building: samples are written in parts that survive a crash, and joined when all are there.

    OUT.partial/arguments.json          what is being made; the same arguments resume the work
    OUT.partial/parts/FILE.000016.jsonl samples 16 to 31 of FILE, written when all are finished
    OUT                                 the finished folder: parts joined in order, OUT.partial renamed

A sample is a function of (arguments, file, number), so it does not matter which process makes it, or when.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from internvl.atomic import publish_folder, write_atomically
from internvl.errors import ConfigError, DataError
from internvl.folder_owner import own_folder
from internvl.synth.folders import Origin, check_replaceable, is_finished
from internvl.synth.forms import Record

_ARGUMENTS = "arguments.json"
_PARTS = "parts"


@dataclass(frozen=True)
class Part:
    """Samples `first` to `stop - 1` of a file."""

    file: str  # path of the file in the finished folder
    first: int  # number of the first sample
    stop: int  # exclusive

    @property
    def path(self) -> Path:
        """Where it lies until it is joined, below the folder under construction."""
        return Path(_PARTS, f"{self.file.replace('/', '@')}.{self.first:06d}.jsonl")

    @property
    def num_samples(self) -> int:
        """Its samples."""
        return self.stop - self.first


@dataclass(frozen=True)
class Recipe:
    """How a folder is made; every function gets the folder under construction first."""

    origin: Origin  # what it is made from
    files: Mapping[str, int]  # number of samples by file
    samples_per_part: int  # samples that a crash can cost each worker
    prepare: Callable[[Path], None]  # writes what samples share
    # (folder, file, number) -> sample; must be picklable for worker processes
    make_sample: Callable[[Path, str, int], Record]
    # (folder, (file, sample) of all samples in order): writes the rest; it must read all samples
    finish: Callable[[Path, Iterator[tuple[str, Record]]], None]

    def cut(self) -> list[Part]:
        """The parts of all files."""
        size = self.samples_per_part
        return [
            Part(file, first, min(first + size, number))
            for file, number in self.files.items()
            for first in range(0, number, size)
        ]


def build_in_parts(out: Path, recipe: Recipe, *, label: str, num_workers: int, overwrite: bool) -> bool:
    """Make the folder `out` with `num_workers` processes (0: in this one); returns False when it was there already.

    Raises:
        DataError: Something is in the way that may not be replaced.
        ConfigError: The data cannot be made as asked, or another process is making it.
    """
    if num_workers < 0:
        raise ConfigError(f"workers is {num_workers}, expected 0 or more")
    with own_folder(out, recipe.origin.builder):
        if is_finished(out, recipe.origin):
            return False
        _build(out, recipe, label=label, num_workers=num_workers, overwrite=overwrite)
        return True


def _build(out: Path, recipe: Recipe, *, label: str, num_workers: int, overwrite: bool) -> None:
    with _open_workspace(out, recipe.origin, overwrite=overwrite) as folder:
        recipe.prepare(folder)
        parts = recipe.cut()
        missing = [part for part in parts if not (folder / part.path).is_file()]
        total = sum(part.num_samples for part in parts)
        done = total - sum(part.num_samples for part in missing)
        with tqdm(total=total, initial=done, desc=label, unit="sample", mininterval=0.5) as bar:
            for size in _make_parts(folder, missing, recipe, num_workers):
                bar.update(size)
        recipe.finish(folder, _join_parts(folder, parts))


@contextmanager
def _open_workspace(out: Path, origin: Origin, *, overwrite: bool) -> Iterator[Path]:
    """The folder under construction; renamed to `out` when the block ends well, kept for the next start when not."""
    check_replaceable(out, origin, overwrite=overwrite)
    workspace = out.with_name(f"{out.name}.partial")
    stamp = {"builder": origin.builder, "arguments": dict(origin.arguments)}
    if workspace.exists() and _read_stamp(workspace) != stamp:
        if any((workspace / _PARTS).glob("*.jsonl")) and not overwrite:
            raise DataError(
                f"{workspace} was begun with other arguments; start again with those, or add --overwrite to throw it "
                "away"
            )
        shutil.rmtree(workspace)
    (workspace / _PARTS).mkdir(parents=True, exist_ok=True)
    write_atomically(workspace / _ARGUMENTS, json.dumps(stamp, indent=2) + "\n")
    yield workspace
    shutil.rmtree(workspace / _PARTS)
    (workspace / _ARGUMENTS).unlink()
    publish_folder(workspace, out)


def _read_stamp(workspace: Path) -> object:
    try:
        return json.loads((workspace / _ARGUMENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _make_parts(folder: Path, parts: Sequence[Part], recipe: Recipe, num_workers: int) -> Iterable[int]:
    """Write parts; yields the size of each as it is finished."""
    if num_workers == 0:
        for part in parts:
            yield _make_part(folder, part, recipe.make_sample)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        futures = [pool.submit(_make_part, folder, part, recipe.make_sample) for part in parts]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else the parts in the queue are made before the error is seen
            raise


def _make_part(folder: Path, part: Part, make_sample: Callable[[Path, str, int], Record]) -> int:
    samples = (make_sample(folder, part.file, number) for number in range(part.first, part.stop))
    write_atomically(folder / part.path, "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
    return part.num_samples


def _join_parts(folder: Path, parts: Sequence[Part]) -> Iterator[tuple[str, Record]]:
    """Write the files from their parts; yields (file, sample) on the way, one in memory at a time."""
    for file in dict.fromkeys(part.file for part in parts):
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8") as joined:
            for part in (part for part in parts if part.file == file):
                with (folder / part.path).open(encoding="utf-8") as lines:
                    for line in lines:
                        joined.write(line)
                        yield file, json.loads(line)
