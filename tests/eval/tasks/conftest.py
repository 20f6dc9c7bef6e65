"""Data roots in published forms, and whole evaluations with answers that the test gives."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from eval.core.predictions import PredictionStore
from eval.core.sample import Prediction
from eval.core.scoring import write_scores
from eval.run.queue import Job, check_jobs, run_jobs
from eval.tasks.registry import find_task


class DataRoot:
    """A folder of benchmarks that a test fills."""

    def __init__(self, folder):
        self.root, self.out = folder / "benchmark", folder / "out"

    def place(self, name):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_image(self, name, size=(30, 20)):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.place(name))

    def write_lines(self, name, records):
        self.place(name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    def write_json(self, name, content):
        self.place(name).write_text(json.dumps(content), encoding="utf-8")

    def write_table(self, name, rows):
        with self.place(name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)

    def read(self, name, *, prompts="upstream"):
        """Samples of a task, checked as a run checks them."""
        task = find_task(name, prompts=prompts)
        assert all((self.root / file).is_file() for file in task.files)
        samples = tuple(task.read_samples(self.root))
        check_jobs([Job(task, samples, PredictionStore(self.out / name, {}))])
        return samples

    def evaluate(self, name, responses, *, prompts="upstream"):
        """Contents of scores.json when sample number i is answered with `responses[i]`."""
        samples = self.read(name, prompts=prompts)
        said = dict(zip((sample.id for sample in samples), responses, strict=True))

        def answer(task, asked):
            return [Prediction(s.id, said[s.id], s.answer, s.metadata, 1, 1, 0.0, 0.0) for s in asked]

        task = find_task(name, prompts=prompts)
        jobs = [Job(task, samples, PredictionStore(self.out / name, {}))]
        (predictions,) = run_jobs(jobs, lambda: answer)
        scores = write_scores(self.out / name, task, predictions, settings={}, info={})
        return json.loads((self.out / name / "scores.json").read_text()) if scores else {}


@pytest.fixture
def data_root(tmp_path):
    return DataRoot(tmp_path)
