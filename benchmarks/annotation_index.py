"""Opening a large annotation file: time of the first and the second opening, and memory.

    python benchmarks/annotation_index.py [--lines 10000 150000 1000000 --line_bytes 1000]

Each number comes from its own process, with the file in the page cache:
- first: the file is read through and its index is written to an empty cache folder;
- second: the index is memory-mapped from there;
- list: the baseline, all lines read into a list, as public training code does on every rank.

Then 1,000 random rows are read and parsed. Memory is the growth of the resident set over these steps.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

NUM_READ = 1000


def write_lines(path: Path, num_lines: int, line_bytes: int) -> None:
    """Records of text whose lines have `line_bytes` bytes on average, each of another length."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(num_lines):
            answer = "a" * rng.randint(0, 2 * max(line_bytes - 100, 0))
            turns = [{"from": "human", "value": f"question {number}"}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"id": number, "conversations": turns}) + "\n")


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_list(path: Path) -> Sequence[bytes]:
    """The baseline."""
    with path.open("rb") as file:
        return file.readlines()


def measure(path: Path, variant: str) -> dict[str, float]:
    """Seconds and bytes of one variant, in this process."""
    from internvl.data.storage.annotation import AnnotationFile

    before = resident_bytes()
    start = time.perf_counter()
    lines = open_list(path) if variant == "list" else AnnotationFile(path)
    opened = time.perf_counter()
    rng = random.Random(1)
    for _ in range(NUM_READ):
        json.loads(lines[rng.randrange(len(lines))])
    read = time.perf_counter()
    return {"open_s": opened - start, "read_s": read - opened, "bytes": resident_bytes() - before}


def run_apart(path: Path, variant: str, cache: str) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--measure", str(path), "--variant", variant]
    result = subprocess.run(command, env=os.environ | {"INTERNVL_CACHE": cache}, stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout)


def main() -> None:
    """Write the files, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 150_000, 1_000_000])
    parser.add_argument("--line_bytes", type=int, default=1000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure(args.measure, args.variant)))
        return
    print(f"| lines | MB | variant | opening | {NUM_READ:,} rows | memory |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lines.jsonl")
        for num_lines in args.lines:
            write_lines(path, num_lines, args.line_bytes)
            for variant in ("first", "second", "list"):
                found = run_apart(path, variant, str(Path(folder, "cache")))
                print(
                    f"| {num_lines:,} | {path.stat().st_size / 1e6:,.0f} | {variant} | {found['open_s'] * 1e3:,.1f} ms "
                    f"| {found['read_s'] * 1e3:,.1f} ms | {found['bytes'] / 1e6:,.1f} MB |"
                )


if __name__ == "__main__":
    main()
