"""Command line of the check; see the package."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks.gpu_check
from benchmarks.gpu_check.machine import ROOT, describe_machine, name_result
from benchmarks.gpu_check.page import PAGE, RESULTS, Result, describe_result, draw_plots, load_results, make_page
from internvl.atomic import write_atomically, write_json
from internvl.command import command
from internvl.errors import ConfigError
from internvl.parser import CommandParser


@dataclass(frozen=True)
class Part:
    """A module of this package."""

    seconds: float  # that it needs on a card; with less it is not started
    text: str  # what it does, for the page


# In the order in which they run; training takes what time is left.
PARTS = {
    "kernels": Part(40, "attention (packed rows, ring, cached keys) and the fused functions against float64"),
    "gpu_tests": Part(90, "every test that is marked `gpu`"),
    "rates": Part(20, "products, attention kernels and memory: TFLOP/s and GB/s beside what the planner assumes"),
    "native": Part(60, "InternVL2-2B here and in transformers, same weights: 32k tokens trained, 128k prefilled"),
    "inference": Part(60, "InternVL2-2B: a prompt of 128k tokens, whole and in chunks, and the tokens after it"),
    "ring": Part(60, "a row shared by all cards over NCCL: attention against float64, a training pass; needs two"),
    "training": Part(60, "InternVL2-2B: steps with AdamW at 32k tokens and at longer rows until none fits"),
}
# As shell/prelude.sh sets it for training.
_ENVIRONMENT = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTHONWARNINGS": "ignore"}


def run_part(name: str, seconds: float) -> dict[str, Any]:
    """State, reason, seconds and rows of a part that runs in a process of its own, and is ended when its time is up."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_check.run_part", name, str(path), str(seconds)],
            cwd=ROOT,
            env={**_ENVIRONMENT, **os.environ},
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
            end = {"state": "failed", "reason": f"its process ended with code {code}"}
        except subprocess.TimeoutExpired:
            end = {"state": "failed", "reason": f"stopped after {seconds:.0f} s, when the time of --minutes was up"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its ranks, too
            process.wait()
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [line["row"] for line in lines if "row" in line]
    if lines and "state" in lines[-1]:
        end = lines[-1]
    return {**end, "seconds": time.monotonic() - start, "rows": rows}


def run_parts(names: Sequence[str], minutes: float, result: Result, path: Path) -> None:
    """Run one part after the other, and write the result after each."""
    deadline = time.monotonic() + 60 * minutes
    for number, name in enumerate(names, start=1):
        left, needed = deadline - time.monotonic(), PARTS[name].seconds
        if left < needed:
            reason = f"needs about {needed:.0f} s, and {max(left, 0):.0f} s of --minutes {minutes:g} are left"
            part: dict[str, Any] = {"state": "skipped", "reason": reason, "seconds": 0.0, "rows": []}
        else:
            print(f"[{number}/{len(names)}] {name}: {PARTS[name].text}; at most {left:.0f} s", flush=True)
            part = run_part(name, left)
        print(f"[{number}/{len(names)}] {name}: {part['state']} {part.get('reason', '')}".rstrip(), flush=True)
        result["parts"][name] = part
        write_json(path.with_suffix(".json"), result)
    draw_plots(result, path.with_suffix(".svg"))
    write_atomically(path.with_suffix(".md"), describe_result(result))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m benchmarks.gpu_check",
        description=benchmarks.gpu_check.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--minutes", type=float, default=10, help="time for all parts (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, help="folder of the results (benchmarks/results/gpu; without a card work_dirs/gpu_check)"
    )
    parser.add_argument("--page", action="store_true", help="only make docs/gpu.md from the newest results")
    return parser


@command(go_on="start the same command again")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns 1 if a part failed."""
    arguments = build_parser().parse_args(argv)
    if arguments.page:
        write_atomically(PAGE, make_page(load_results(), {name: part.text for name, part in PARTS.items()}))
        return 0
    machine = describe_machine()
    is_tiny = machine["card"] is None
    folder = arguments.output or (ROOT / "work_dirs/gpu_check" if is_tiny else RESULTS)
    if is_tiny:
        if folder.resolve() == RESULTS:
            raise ConfigError(f"--output {folder} holds results of cards, and there is none here; name another folder")
        print("no card: every part runs at tiny size on the CPU; its numbers say nothing about a GPU", flush=True)
    name = name_result(machine)
    result: Result = {"tiny": is_tiny, "name": name, "machine": machine, "parts": {}}
    run_parts(arguments.parts, arguments.minutes, result, folder / name)
    print(f"{folder / name}.json, .md", flush=True)
    return int(any(part["state"] == "failed" for part in result["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
