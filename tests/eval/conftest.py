"""A tiny checkpoint and data sets in MM-NIAH's published form."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.core.predictions import PredictionStore
from eval.core.sample import Prediction
from eval.tasks.registry import find_task

_spec = importlib.util.spec_from_file_location("tiny_checkpoint", Path(__file__).parents[1] / "infer" / "conftest.py")
_tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tiny)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return _tiny.write_checkpoint(tmp_path_factory.mktemp("eval") / "tiny")


@pytest.fixture(autouse=True)
def no_plots(monkeypatch, request):
    """No plots, except where a test's name asks for them: drawing takes longer than scoring, and than answering."""
    if "plots" not in request.node.name:
        monkeypatch.setattr("eval.score.write_task_plots", lambda folder, result: None)


def make_record(index, *, answer="blue", num_images=1, **meta):
    return {
        "id": index,
        "images_list": [f"{i}.png" for i in range(num_images)],
        "context": "".join(f"text {i} <image>\n" for i in range(num_images)) + f"secret {index}. ",
        "question": "What is the secret?",
        "answer": answer,
        "meta": {
            "placed_depth": (index % 5) / 5,
            "context_length": 100 * (1 + index % 4),
            "num_images": num_images,
            "needles": ["secret"],
            "choices": None,
            "choices_image_path": None,
            **meta,
        },
    }


class Benchmark:
    """A data root with MM-NIAH annotations and images."""

    def __init__(self, root):
        self.root = root

    def write(self, stem, records, *, split="test"):
        folder = self.root / "MM-NIAH" / f"mm_niah_{split}"
        for name in ("annotations", "images"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 256, (28, 28 * (1 + index % 2), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        path = folder / "annotations" / f"{stem}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path


@pytest.fixture
def benchmark_root(tmp_path):
    return Benchmark(tmp_path / "benchmark")


@pytest.fixture
def record():
    return make_record


class SavedRuns:
    """Finished predictions without a model."""

    def write(self, run, task_name, responses, *, data_root, failures=(), stride=64, version="v2pe_fix", **settings):
        """Predictions of a task's own samples; `responses` are given in their order, `failures` are places."""
        task = find_task(task_name)
        samples = task.read_samples(data_root)
        store = PredictionStore(
            run / task.name,
            {
                "task": task.name,
                "task_version": task.version,
                **task.details,
                "max_num": task.max_num,
                "checkpoint": "abc",
                "rope_pos_id_version": version,
                "rope_pos_id_stride": stride,
                "dtype": "float32",
                **settings,
            },
            {"checkpoint": "/models/tiny", "data_root": str(data_root)},
        )
        store.prepare()
        writer = store.open_part(0, 1)
        for place, (sample, response) in enumerate(zip(samples, responses, strict=True)):
            failure = "out of memory" if place in failures else None
            text = "" if failure else response
            writer.append(Prediction(sample.id, text, sample.answer, sample.metadata, 120, 2, 60.5, 0.5, failure))
        writer.close()
        store.merge(samples)
        return store.folder


@pytest.fixture
def saved_runs():
    return SavedRuns()
