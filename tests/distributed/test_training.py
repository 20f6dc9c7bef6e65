"""Real runs of the training entry: one and two processes, DDP and DeepSpeed, a resumed run, a killed rank."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from tests.train.tiny_run import ENTRY, REPOSITORY, clean_environment, flags, launch, read_losses, tail

WORKER = Path(__file__).with_name("train_worker.py")
# One document a row: some ranks have rows without pictures.
UNPACKED = {"use_packed_ds": False}
LORA = {"use_llm_lora": 4, "use_backbone_lora": 2, "freeze_mlp": True, "max_steps": 2, "grad_checkpoint": True}


class Runs:
    """Named runs of one launch; the folder of a run is only handed out if the run was finished."""

    def __init__(self, folder: Path, checkpoint: Path, meta: Path):
        self.folder, self.checkpoint, self.meta = folder, checkpoint, meta
        self.arguments: list[list[str]] = []

    def add(self, name: str, **changes: object) -> None:
        self.arguments.append(flags(self.checkpoint, self.meta, self.folder / name, **changes))

    def start(self, *, num_processes: int) -> None:
        path = self.folder / "runs.json"
        path.write_text(json.dumps(self.arguments))
        self.result = launch(WORKER, [str(path)], num_processes=num_processes)

    def __getitem__(self, name: str) -> Path:
        assert (self.folder / name / "train_results.json").exists(), tail(self.result)
        return self.folder / name


def zero_config(folder: Path, stage: int) -> Path:
    """The recipe's file, but sharding even the smallest parameters."""
    config = json.loads((REPOSITORY / "shell" / "deepspeed" / f"zero{stage}.json").read_text())
    if stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def alone(checkpoint, meta, tmp_path_factory) -> Runs:
    """One process; two accumulation steps where a run is compared with two processes."""
    runs = Runs(tmp_path_factory.mktemp("alone"), checkpoint, meta)
    runs.add("packed", gradient_accumulation_steps=2, report_to="tensorboard")
    runs.add("unpacked", gradient_accumulation_steps=2, **UNPACKED)
    runs.add("stopped", gradient_accumulation_steps=2, save_strategy="steps", save_steps=4)
    runs.add("continued", gradient_accumulation_steps=2, resume_from_checkpoint=runs.folder / "stopped/checkpoint-4")
    runs.add("lora", **LORA)
    runs.add("epoch", max_steps=None, num_train_epochs=1, max_packed_tokens=2048)
    runs.add("zero2", gradient_accumulation_steps=2, deepspeed=zero_config(runs.folder, 2))
    runs.start(num_processes=1)
    return runs


@pytest.fixture(scope="module")
def together(checkpoint, meta, tmp_path_factory) -> Runs:
    """Two processes, one accumulation step."""
    runs = Runs(tmp_path_factory.mktemp("together"), checkpoint, meta)
    runs.add("packed-ddp")
    runs.add("unpacked-ddp", **UNPACKED)
    for stage in (1, 2, 3):
        runs.add(f"packed-zero{stage}", deepspeed=zero_config(runs.folder, stage))
    zero2 = zero_config(runs.folder, 2)
    runs.add("stopped-zero2", deepspeed=zero2, save_strategy="steps", save_steps=4)
    runs.add("continued-zero2", deepspeed=zero2, resume_from_checkpoint=runs.folder / "stopped-zero2/checkpoint-4")
    runs.add("unpacked-zero3", deepspeed=zero_config(runs.folder, 3), **UNPACKED)
    runs.start(num_processes=2)
    return runs


def test_a_finished_run_leaves_a_complete_loadable_folder(alone, checkpoint):
    names = {path.name for path in alone["packed"].iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
        "generation_config.json",
        "trainer_state.json",
        "train_results.json",
        "training_log.txt",
        "runs",
    } <= names
    assert not [name for name in names if name.startswith(".")]
    model = InternVLChatModel.from_pretrained(alone["packed"])
    tokenizer = load_tokenizer(alone["packed"])
    assert model.config.rope_pos_id_version == "v2pe_rnd"
    assert model.img_context_token_id == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    before = load_file(checkpoint / "model.safetensors")
    assert model.state_dict().keys() == before.keys()
    assert [key for key, value in model.state_dict().items() if torch.equal(value, before[key])] == []


def test_loss_falls_and_speed_is_reported(alone):
    losses = read_losses(alone["packed"])
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5
    entry = json.loads((alone["packed"] / "trainer_state.json").read_text())["log_history"][0]
    assert entry["tokens_per_second"] > 0
    assert 0.5 < entry["fill_rate"] <= 1
    assert entry["skipped_documents"] == 0
    assert "step 8/8" in (alone["packed"] / "training_log.txt").read_text()


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3"])
def test_two_processes_equal_one(alone, together, engine):
    """The same rows in every step, so the same losses and weights, whatever an engine averages."""
    assert_equal_runs(together[f"packed-{engine}"], alone["packed"])


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_ranks_without_pictures_keep_step(alone, together, engine):
    assert_equal_runs(together[f"unpacked-{engine}"], alone["unpacked"])


def test_deepspeed_divides_by_accumulation_steps_only_once(alone):
    assert_equal_runs(alone["zero2"], alone["packed"])


def assert_equal_runs(run: Path, reference: Path) -> None:
    assert read_losses(run) == pytest.approx(read_losses(reference), abs=1e-4)
    weights, expected = load_file(run / "model.safetensors"), load_file(reference / "model.safetensors")
    assert weights.keys() == expected.keys()
    for key, value in weights.items():
        torch.testing.assert_close(
            value, expected[key], atol=5e-4, rtol=1e-3, msg=lambda text, key=key: f"{key} {text}"
        )


@pytest.mark.parametrize("engine", ["alone", "zero2"])
def test_a_stopped_run_continues_as_if_it_had_not(alone, together, engine):
    """Steps 5-8 from the checkpoint of step 4: optimiser, schedule and data go on where they were."""
    run = alone["continued"] if engine == "alone" else together["continued-zero2"]
    log = (run / "training_log.txt").read_text()
    assert "step 5/8" in log
    assert "step 4/8" not in log
    assert read_losses(run) == pytest.approx(read_losses(alone["packed"]), abs=1e-6 if engine == "alone" else 1e-4)


def test_lora_is_folded_into_plain_weights(alone, checkpoint):
    before, after = load_file(checkpoint / "model.safetensors"), load_file(alone["lora"] / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert "language_model.model.layers.0.attention.wqkv.weight" in changed
    assert "vision_model.encoder.layers.1.mlp.fc2.weight" in changed
    assert not [key for key in changed if key.startswith("mlp1") or "norm" in key or key.endswith("bias")]


def test_epochs_set_the_number_of_steps(alone):
    """Without --max_steps: the documents fill a few long rows, and all of them are seen once."""
    num_steps = json.loads((alone["epoch"] / "trainer_state.json").read_text())["global_step"]
    assert f"96 documents in {num_steps} rows" in (alone["epoch"] / "training_log.txt").read_text()


def test_a_killed_rank_ends_the_job(checkpoint, meta, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ENTRY)]
    argv = flags(checkpoint, meta, output, max_steps=100000)
    job = subprocess.Popen([*command, *argv], env=clean_environment(), stderr=subprocess.PIPE, text=True)
    try:
        log = output / "training_log.txt"
        deadline = time.monotonic() + 120
        while not (log.is_file() and "step 2/" in log.read_text()):
            assert time.monotonic() < deadline
            assert job.poll() is None
            time.sleep(0.1)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, errors = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode not in (0, None)
    assert "Signal 9" in errors or "SIGKILL" in errors
    assert not (output / "model.safetensors").exists()
