"""Tiny questions in MM-NIAH's form, and how an evaluation script is started on the test slurm."""

import json
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from eval.tasks.registry import find_task
from tests.slurm.cluster import PARTITION, Cluster
from tests.train.tiny_run import clean_environment


def write_benchmark(root: Path, *tasks: str, num_records: int) -> Path:
    """Annotation files of the tasks below `root`, and the pictures they share. Returns `root`."""
    images = root / "MM-NIAH" / "mm_niah_test" / "images"
    images.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "0.png")
    for task in tasks:
        annotation = root / find_task(task).annotation
        annotation.parent.mkdir(parents=True, exist_ok=True)
        annotation.write_text("".join(json.dumps(make_record(index)) + "\n" for index in range(num_records)))
    return root


def make_record(index: int) -> dict[str, object]:
    """A question about one picture and a line of text."""
    return {
        "id": index,
        "images_list": ["0.png"],
        "context": f"a picture <image> and a secret {index} ",
        "question": "which secret?",
        "answer": str(index),
        "meta": {
            "placed_depth": 0.5,
            "context_length": 100,
            "num_images": 1,
            "needles": ["secret"],
            "choices": None,
            "choices_image_path": None,
        },
    }


def run_script(cluster: Cluster, script: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run an evaluation script to its end, with tasks on the cluster."""
    return subprocess.run(
        ["sh", str(script), *arguments],
        env=clean_environment(PARTITION=PARTITION, CUDA_VISIBLE_DEVICES="", **cluster.environ, **environ),
        capture_output=True,
        text=True,
        timeout=600,
    )
