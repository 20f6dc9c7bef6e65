"""A long question in MM-NIAH's form, made by our builder and answered by two processes together."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from internvl.synth.miniature.__main__ import main as build

ROOT = Path(__file__).parents[3]
NUM_TILES = 30_000  # a visual token each with the tiny model; a million take the same way


@pytest.mark.slow  # minutes on two cores
def test_two_processes_answer_one_long_question(checkpoint, tmp_path):
    sizes = ["--base_tiles", str(NUM_TILES), "--factors", "1", "--num_items", "1", "--num_test_needles", "20",
             "--max_dynamic_patch", "16"]  # fmt: skip
    assert build(["--out", str(tmp_path), "--tokenizer", str(checkpoint), "--name", "long", "--train", *sizes]) == 0
    done = subprocess.run(
        [
            "sh", str(ROOT / "scripts/evaluate_mmniah.sh"), str(checkpoint), "--data-root", str(tmp_path / "benchmark"),
            "--ring_attn", "--max_num", "16", "--prefill_chunk_size", "8192", "--rope_pos_id_version", "v2pe_fix",
            "--rope_pos_id_stride", "1/4", "--length_bins", "1000", "30000",
        ],
        env={
            **os.environ, "TASKS": "retrieval-image-test", "OUT": str(tmp_path / "out"), "NPROC": "2", "GPUS": "0",
            "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
        },
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "out/mm_niah/retrieval-image-test"
    (line,) = (json.loads(text) for text in (folder / "predictions.jsonl").read_text().splitlines())
    assert line["failure"] is None
    assert line["num_tiles"] >= NUM_TILES
    assert line["num_prompt_tokens"] > NUM_TILES
    assert line["num_prompt_tokens"] == pytest.approx(line["metadata"]["context_length"], rel=0.1)
    assert line["last_position"] < line["num_prompt_tokens"] / 2  # a tile spans a quarter of a position
    assert [path.name for path in (folder / "parts").iterdir()] == ["0000-of-0001.jsonl"]
    rows = json.loads((folder / "scores.json").read_text())["results"]["official"]["by_length"]
    assert [(row["low"], row["count"]) for row in rows if row["count"]] == [(30_000, 1)]
