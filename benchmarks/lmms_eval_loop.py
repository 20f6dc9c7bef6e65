"""lmms-eval's own loop over given questions, for benchmarks/eval_throughput.py, which starts this file.

    PYTHON benchmarks/lmms_eval_loop.py CHECKPOINT QUESTIONS OPTIONS

PYTHON has lmms-eval 0.7.3 beside this package. QUESTIONS is a jsonl file of prompt, images, videos and answer, OPTIONS
a JSON object of settings of the bridge. The output is a JSON object: number of questions and processor seconds of
`lmms_eval.evaluator.evaluate`; loading the model and the questions is not counted, as in eval_throughput.py.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

NAME = "throughput"
# Read by lmms-eval from the folder of the task.
FUNCTIONS = """
from PIL import Image


def show(doc):
    return [Image.open(path).convert("RGB") for path in doc["images"]] + list(doc["videos"])


def ask(doc, lmms_eval_specific_kwargs=None):
    return doc["prompt"]


def score(doc, results):
    return {"score": float(doc["answer"] == results[0])}
"""


def write_task(folder: Path, questions: Path, max_new_tokens: int) -> None:
    """A task of lmms-eval that asks the questions."""
    (folder / "utils.py").write_text(FUNCTIONS)
    functions = {"doc_to_visual": "show", "doc_to_text": "ask", "process_results": "score"}
    task = {
        "task": NAME,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": max_new_tokens},
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
    }
    lines = "".join(f"{field}: !function utils.{name}\n" for field, name in functions.items())
    (folder / f"{NAME}.yaml").write_text(yaml.safe_dump(task) + lines)


def main() -> None:
    """Ask, measure, print."""
    from lmms_eval.evaluator import evaluate
    from lmms_eval.tasks import TaskManager, get_task_dict

    from eval.bridges.lmms_eval import V2PE
    from internvl.infer.question import Question

    checkpoint, questions, options = sys.argv[1:]
    torch.set_num_threads(1)
    settings = json.loads(options)
    with tempfile.TemporaryDirectory() as name:
        write_task(Path(name), Path(questions), settings.pop("max_new_tokens"))
        model = V2PE(checkpoint, **settings)
        model.session.ask(Question("ready?"), max_new_tokens=1)
        tasks = get_task_dict([NAME], TaskManager("ERROR", include_path=name), "chat")
        model.task_dict = {NAME: tasks[NAME].dataset}  # as lmms-eval's `simple_evaluate` does
        start = time.process_time()
        results = evaluate(model, tasks)
        seconds = time.process_time() - start
    print("\n" + json.dumps([len(results["samples"][NAME]), seconds]))


if __name__ == "__main__":
    main()
