"""Evaluation with less memory than a picture needs: that question fails alone, and is answered when there is more."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
SIDE = 13_000  # pixels: half a gigabyte once it is decoded, 0.5 MB as a file


def start(arguments, *, gib=None):
    """The command as users start it, with that much address space."""
    limit = (lambda: resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30),) * 2)) if gib else None
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-m", "eval.run", *arguments]
    return subprocess.run(command, env=environ, preexec_fn=limit, capture_output=True, text=True, timeout=600)


@pytest.mark.slow  # three starts
def test_a_picture_that_needs_more_memory_fails_alone_and_is_asked_again(checkpoint, benchmark_root, record, tmp_path):
    benchmark_root.write("retrieval-text", [record(index) for index in range(4)])
    picture = benchmark_root.root / "MM-NIAH/mm_niah_test/images/0.png"
    records = [record(index, num_images=1 + (index == 2)) for index in range(4)]
    benchmark_root.write("retrieval-text", records)
    Image.new("RGB", (SIDE, SIDE), "red").save(picture.with_name("1.png"))
    out = tmp_path / "out"
    arguments = [
        *("--checkpoint", str(checkpoint), "--tasks", "mm_niah/retrieval-text-test", "--device", "cpu"),
        *("--data-root", str(benchmark_root.root), "--out", str(out)),
    ]

    def failures():
        path = out / "mm_niah/retrieval-text-test/predictions.jsonl"
        return [json.loads(line)["failure"] for line in path.read_text().splitlines()]

    limited = start(arguments, gib=1.6)
    assert limited.returncode == 0, limited.stderr[-2000:]
    assert failures() == [None, None, "out of memory", None]
    assert "1 of 4 questions FAILED" in limited.stdout
    again = start([*arguments, "--retry_failed"])
    assert again.returncode == 0, again.stderr[-2000:]
    assert failures() == [None] * 4
