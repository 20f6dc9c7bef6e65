"""Steps whose loss or gradient is not finite: real runs, in which the embedding of one letter is not a number.

Only the documents with a "z" are bad then, and only their own losses; every optimiser step with one of them would
spoil all weights.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl.model.registration import load_tokenizer
from internvl.train.checkpoint.contents import find_problem
from tests.distributed.test_training import zero_config
from tests.train.tiny_run import flags, launch, tail

WORKER = Path(__file__).with_name("bad_step_worker.py")
BAD_ROWS = (9, 14, 15)
STEPS = 8


@pytest.fixture(scope="module")
def broken_checkpoint(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("broken") / "tiny"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    (token,) = load_tokenizer(folder).encode("z", add_special_tokens=False)
    weights["language_model.model.tok_embeddings.weight"][token] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def text_meta(tmp_path_factory) -> Path:
    """Two data sets of short texts; some rows of the first have a "z"."""
    folder = tmp_path_factory.mktemp("texts")
    for name in ("first", "second"):
        records = []
        for row in range(18 if name == "first" else 60):
            question = "zoo" if name == "first" and row in BAD_ROWS else "what"
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "ab cd " * (1 + row % 3)}]
            records.append({"conversations": turns})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    meta = {name: {"annotation": f"{name}.jsonl"} for name in ("first", "second")}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder / "meta.json"


class Runs:
    def __init__(self, folder: Path, checkpoint: Path, meta: Path):
        self.folder, self.checkpoint, self.meta = folder, checkpoint, meta
        self.arguments: list[list[str]] = []

    def add(self, name: str, **changes: object) -> None:
        options = {"max_steps": STEPS, "drop_path_rate": 0.3, "weight_decay": 0.1, "max_packed_tokens": 700}
        options |= {"max_buffer_size": 1, "data_order": "sequential", **changes}
        self.arguments.append(flags(self.checkpoint, self.meta, self.folder / name, **options))

    def start(self, *, num_processes: int) -> "Runs":
        path = self.folder / "runs.json"
        path.write_text(json.dumps(self.arguments))
        self.result = launch(WORKER, [str(path)], num_processes=num_processes)
        assert self.result.returncode == 0, tail(self.result)
        return self

    def history(self, name: str) -> list[dict]:
        history = json.loads((self.folder / name / "trainer_state.json").read_text())["log_history"]
        return [entry for entry in history if "tokens_per_second" in entry]

    def bad_steps(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name / "bad_steps.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(broken_checkpoint, text_meta, tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("alone"), broken_checkpoint, text_meta)
    runs.add("skip", nan_policy="skip")
    runs.add("stop")
    runs.add("stop", nan_policy="skip")
    runs.add("limit", nan_policy="skip", max_bad_steps=1)
    return runs.start(num_processes=1)


def test_a_stopped_run_names_the_documents_and_saves_the_state_before(alone):
    (bad_step, *_) = alone.bad_steps("skip")
    message = (alone.folder / "stop" / "stopped-0.txt").read_text()
    assert message.startswith(f"step {bad_step['step']}: the loss is not finite for [first, row ")
    assert "\n" not in message
    checkpoint = alone.folder / "stop" / f"checkpoint-{bad_step['step'] - 1}"
    assert f"is {checkpoint.name}:" in message
    assert find_problem(checkpoint) is None


def test_only_documents_that_are_bad_themselves_are_listed(alone):
    named = [document for step in alone.bad_steps("skip") for document in step["documents"]]
    assert {step["cause"] for step in alone.bad_steps("skip")} == {"document loss"}
    assert named
    assert all(document["source"] == "first" and document["row"] in BAD_ROWS for document in named)


def test_a_left_out_step_is_counted_and_spoils_neither_weights_nor_logs(alone):
    history, bad_steps = alone.history("skip"), alone.bad_steps("skip")
    assert len(history) == STEPS
    assert history[-1]["bad_steps"] == len(bad_steps) == len([entry for entry in history if "loss" not in entry])
    assert all(math.isfinite(value) for entry in history for value in entry.values())
    weights = load_file(alone.folder / "skip" / "model.safetensors")
    num_bad = {name: int((~torch.isfinite(value)).sum()) for name, value in weights.items()}
    assert {name for name, number in num_bad.items() if number} == {"language_model.model.tok_embeddings.weight"}
    summary = json.loads((alone.folder / "skip" / "summary.json").read_text())
    assert summary["bad_steps"] == len(bad_steps)
    assert summary["rows"] == STEPS - len(bad_steps)


def test_the_run_goes_on_exactly_from_the_state_before_the_bad_step(alone):
    """Stopped, then started again with skip, it ends as one that skipped from the beginning: data, draws, optimiser."""
    names = ("step", "loss", "grad_norm", "learning_rate", "targets", "samples/first", "loss/second")
    curves = [[[entry.get(name) for name in names] for entry in alone.history(run)] for run in ("stop", "skip")]
    assert curves[0] == curves[1]
    weights, expected = (load_file(alone.folder / run / "model.safetensors") for run in ("stop", "skip"))
    assert [key for key in expected if not torch.equal(weights[key].nan_to_num(), expected[key].nan_to_num())] == []


def test_too_many_bad_steps_in_sequence_end_the_run(alone):
    message = (alone.folder / "limit" / "stopped-0.txt").read_text()
    assert "(--max_bad_steps 1)" in message
    assert "--nan_policy skip" not in message


def test_the_learning_rate_follows_the_number_of_the_step(alone):
    """Cosine from 5e-3, without warm-up."""
    rates = [entry["learning_rate"] for entry in alone.history("skip")]
    assert rates == pytest.approx([5e-3 * 0.5 * (1 + math.cos(math.pi * step / STEPS)) for step in range(STEPS)])


def check_together(runs: Runs, kind: str) -> None:
    errors = {(runs.folder / f"{kind}-stop" / f"stopped-{rank}.txt").read_text() for rank in (0, 1)}
    (error,) = errors
    (bad_step, *_) = runs.bad_steps(f"{kind}-skip")
    assert error.startswith(f"step {bad_step['step']}: the loss is not finite for [first, row ")
    named = [document for step in runs.bad_steps(f"{kind}-skip") for document in step["documents"]]
    assert all(document["source"] == "first" and document["row"] in BAD_ROWS for document in named)
    assert len({document["row"] for document in named}) == len(named)
    history = runs.history(f"{kind}-skip")
    assert len(history) == STEPS
    assert all(math.isfinite(value) for entry in history for value in entry.values())
    names = ("step", "loss", "grad_norm", "learning_rate", "targets", "samples/first")
    curves = [
        [[entry.get(name) for name in names] for entry in runs.history(run)] for run in (f"{kind}-stop", f"{kind}-skip")
    ]
    assert curves[0] == curves[1]
    weights = load_file(runs.folder / f"{kind}-skip" / "model.safetensors")
    spoiled = {name for name, value in weights.items() if not torch.isfinite(value).all()}
    assert spoiled == {"language_model.model.tok_embeddings.weight"}


def run_kinds(broken_checkpoint, text_meta, folder, kinds) -> Runs:
    runs = Runs(folder, broken_checkpoint, text_meta)
    for kind, options in kinds.items():
        runs.add(f"{kind}-skip", nan_policy="skip", **options)
        runs.add(f"{kind}-stop", **options)
        runs.add(f"{kind}-stop", nan_policy="skip", **options)
    return runs.start(num_processes=2)


@pytest.fixture(scope="module")
def together(broken_checkpoint, text_meta, tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("together")
    kinds = {"ring": {"chunk_num": 2}, "zero2": {"deepspeed": zero_config(folder, 2)}}
    return run_kinds(broken_checkpoint, text_meta, folder, kinds)


@pytest.mark.parametrize("kind", ["ring", "zero2"])
def test_two_ranks_agree(together, kind):
    check_together(together, kind)


@pytest.mark.slow  # a launch per kind; ranks that share rows, above, do all that DDP does
@pytest.mark.parametrize("kind", ["ddp", "zero1", "ring-zero2", "zero3"])
def test_two_ranks_agree_under_further_engines(broken_checkpoint, text_meta, tmp_path, kind):
    options: dict[str, object] = {"chunk_num": 2} if "ring" in kind else {}
    if "zero" in kind:
        options["deepspeed"] = zero_config(tmp_path, int(kind[-1]))
    check_together(run_kinds(broken_checkpoint, text_meta, tmp_path, {kind: options}), kind)
