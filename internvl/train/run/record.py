"""Record of a run: run.json, written at every start, and summary.json, written at the end.

run.json holds what a person needs to repeat the run or to compare it with another: arguments as they were understood,
processes, versions, the state of the code, the device, and a fingerprint of the data. A later start compares its data
with that fingerprint.
"""

import hashlib
import logging
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypedDict

import torch

from internvl.data.meta import SourceSpec
from internvl.errors import CheckpointError
from internvl.parallel.launch import RankEnv
from internvl.train.run.counts import Counts
from internvl.train.run.metrics import format_duration
from internvl.train.state_files import WRONG_CONTENT, read_state_file

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
CONFIG_FILE = "run.yaml"
SUMMARY_FILE = "summary.json"

_PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "flash-attn")
_HASHED_BYTES = 8 * 2**20  # larger annotation files are compared by size and time of change, which costs no reading
_GIT_TIMEOUT_S = 10.0


def to_json(value: object) -> object:
    """What json writes for values that it does not know: the value of an enum, the text of others."""
    return value.value if isinstance(value, Enum) else str(value)


# The data --------------------------------------------------------------------------------------------------------


class DataFingerprint(TypedDict):
    """What identifies the data of a run."""

    meta: str  # sha256 of the meta file
    # by data set its entry in the meta file (resolved paths), and size and sha256 of its annotation file (`mtime_ns` in
    # place of sha256 for a large one)
    sources: dict[str, dict[str, object]]


def fingerprint_data(meta_path: str | Path, specs: Sequence[SourceSpec]) -> DataFingerprint:
    """Identify the data of a run within a moment: pictures are not looked at."""
    return {
        "meta": hashlib.sha256(Path(meta_path).read_bytes()).hexdigest(),
        "sources": {spec.name: _fingerprint_source(spec) for spec in specs},
    }


def _fingerprint_source(spec: SourceSpec) -> dict[str, object]:
    status = spec.annotation.stat()
    entry: dict[str, object] = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(spec).items()
    }
    entry |= {"annotation": str(spec.annotation), "annotation_bytes": status.st_size}
    if status.st_size <= _HASHED_BYTES:
        return entry | {"annotation_sha256": hashlib.sha256(spec.annotation.read_bytes()).hexdigest()}
    return entry | {"annotation_mtime_ns": status.st_mtime_ns}


def compare_data(saved: DataFingerprint, current: DataFingerprint) -> list[str]:
    """What differs between two fingerprints, one line each. Paths are not compared: data may move."""
    before, now = saved.get("sources", {}), current["sources"]
    changes = [f"data set {name!r} is new" for name in now if name not in before]
    changes += [f"data set {name!r} is gone" for name in before if name not in now]
    for name in now:
        changes += [] if name not in before else _compare_source(name, before[name], now[name])
    if not changes and saved.get("meta") != current["meta"]:
        changes.append("the meta file was edited, in order or layout only")
    return changes


def _compare_source(name: str, before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    paths = ("annotation", "root", "root2", "http_root")
    changed = [key for key in now if key in before and key not in paths and before[key] != now[key]]
    of_file = [key for key in changed if key.startswith("annotation_")]
    lines = [f"data set {name!r}: {key} was {before[key]}, is {now[key]}" for key in changed if key not in of_file]
    if of_file:
        sizes = f"{before.get('annotation_bytes')} bytes, now {now['annotation_bytes']}"
        lines.append(f"data set {name!r}: the annotation file {now['annotation']} has other content (it had {sizes})")
    return lines


def warn_of_changed_data(folder: Path, current: DataFingerprint) -> list[str]:
    """Log and return what changed since the run.json in `folder` was written, if there is one."""
    try:
        changes = compare_data(read_state_file(folder / RUN_FILE)["data"], current)
    except (OSError, CheckpointError, *WRONG_CONTENT):  # the record is for people, and nothing follows from it
        return []
    for change in changes:
        logger.warning("the data is not what this run was started with: %s", change)
    return changes


# The run ---------------------------------------------------------------------------------------------------------


def describe_run(
    arguments: Mapping[str, object], *, env: RankEnv, data: DataFingerprint, device: str, attempt: int
) -> dict[str, object]:
    """Content of run.json; `arguments` are dataclasses or namespaces under `model`, `data`, `training`."""
    values = {name: _read_values(given) for name, given in arguments.items()}
    model = values["model"]
    return {
        "arguments": values,
        "model_path": _absolute(model.get("model_name_or_path")),
        "tokenizer_path": _absolute(model.get("tokenizer_path") or model.get("model_name_or_path")),
        "world_size": env.world_size,
        "launcher": env.launcher,
        "attempt": attempt,
        "device": device,
        "versions": read_versions(),
        "code": read_code_state(Path(__file__).parents[3]),
        "data": data,
    }


def _read_values(arguments: object) -> dict[str, object]:
    # Of a secret (--hub_token) only that it was given.
    values = sorted(vars(arguments).items())
    return {name: "given" if value and name.endswith("_token") else value for name, value in values}


def _absolute(path: object) -> str | None:
    return None if path is None else str(Path(str(path)).resolve())


def read_versions() -> dict[str, str]:
    """Versions of Python, of this package, and of the installed packages that results depend on."""
    found = {"python": platform.python_version(), "v2pe": import_module("internvl").__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_code_state(root: Path) -> dict[str, str | bool] | None:
    """Commit of the git checkout at `root`, and whether files differ from it; None without a checkout."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _ask_git(root, "rev-parse", "HEAD")
        changed = _ask_git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changed.strip())}


def _ask_git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S).stdout


def name_device(*, use_cpu: bool) -> str:
    """Name of this process's device."""
    if use_cpu or not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name()


# The end ---------------------------------------------------------------------------------------------------------


Ending = Literal["finished", "preempted"]


@dataclass(frozen=True)
class RunSummary:
    """What a run came to, over all its starts; `steps_this_start` and `seconds_this_start` cover the last one."""

    status: Ending  # `finished`, or `preempted` when a signal ended this start
    steps: int  # optimiser steps, left-out ones (`bad_steps`) included
    bad_steps: int
    skipped_documents: int  # documents that could not be used
    counts: Counts  # rows, tokens, tiles, and the same by data set
    seconds: float
    steps_this_start: int
    seconds_this_start: float
    peak_memory_bytes: int  # most that a process held at a time
    final_loss: float | None  # loss of the last report, or the mean loss of a run without one; None without a step
    model: str  # where the weights are

    @property
    def tokens_per_second(self) -> float:
        """Of all processes."""
        return round(self.counts["tokens"] / self.seconds if self.seconds else 0.0, 1)

    def to_json(self) -> dict[str, object]:
        """Content of summary.json."""
        values = {name: value for name, value in vars(self).items() if name != "counts"}
        return {**values, "tokens_per_second": self.tokens_per_second, **self.counts.to_json()}

    def describe(self) -> list[str]:
        """Lines for the log."""
        loss = "" if self.final_loss is None else f"; last loss {self.final_loss:.4f}"
        lines = [
            f"{self.status} at step {self.steps} ({self.steps_this_start} in this start, "
            f"{format_duration(self.seconds_this_start)}; {format_duration(self.seconds)} in all)",
            ", ".join(f"{self.counts[name]:.0f} {name}" for name in ("samples", "tokens", "tiles"))
            + f"; {self.tokens_per_second:.1f} tokens/s; {self.skipped_documents} documents skipped, "
            f"{self.bad_steps} steps left out",
        ]
        for name, counts in self.counts.by_source():
            mean = f", mean loss {counts['loss'] / counts['weight']:.4f}" if counts["weight"] else ""
            lines.append(f"  {name}: {counts['samples']:.0f} samples, {counts['tokens']:.0f} tokens{mean}")
        lines.append(f"peak memory {self.peak_memory_bytes / 2**30:.2f} GiB per process{loss}")
        return [*lines, f"model: {self.model}"]
