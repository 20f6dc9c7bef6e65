"""Real runs of the training entry: one and two processes, DDP and DeepSpeed, a resumed run, a killed rank."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.train.checkpoint.contents import find_problem
from tests.train.tiny_run import REPOSITORY, flags, launch, read_losses, tail

WORKER = Path(__file__).with_name("train_worker.py")
FAILING = Path(__file__).with_name("failing_worker.py")
# One document a row: some ranks have rows without pictures.
UNPACKED = {"use_packed_ds": False, "max_steps": 4}
LORA = {"use_llm_lora": 4, "use_backbone_lora": 2, "freeze_mlp": True, "max_steps": 2, "grad_checkpoint": True}
FROZEN_VIT = {"freeze_backbone": True, "unfreeze_lm_head": True, "max_steps": 4, "grad_checkpoint": True}
SHARED = {"chunk_num": 2, "gradient_accumulation_steps": 2}
SAVED = {"save_strategy": "steps", "save_steps": 4}
# What is trained with which engine (0: DDP), and a run that it must equal. Adapters have dropout, so two ranks with
# adapters equal other two, and frozen towers a single process.
COMBINATIONS = {
    "lora-zero3": ("lora-ddp", 3, LORA),
    "lora-shared-zero2": ("lora-shared-ddp", 2, LORA | SHARED),
    "frozen-vit-zero2": ("frozen-vit", 2, FROZEN_VIT),
    "frozen-vit-shared-zero3": ("frozen-vit", 3, FROZEN_VIT | SHARED),
}
FURTHER_COMBINATIONS = {
    **{f"lora-zero{stage}": ("lora-ddp", stage, LORA) for stage in (1, 2)},
    "lora-shared-zero3": ("lora-shared-ddp", 3, LORA | SHARED),
    **{f"frozen-vit-zero{stage}": ("frozen-vit", stage, FROZEN_VIT) for stage in (1, 3)},
    "frozen-vit-shared-ddp": ("frozen-vit", 0, FROZEN_VIT | SHARED),
    "packed-zero1": ("packed", 1, {}),
}


class Runs:
    """Named runs of one launch; the folder of a run is only handed out if the run was finished."""

    def __init__(self, folder: Path, checkpoint: Path, meta: Path):
        self.folder, self.checkpoint, self.meta = folder, checkpoint, meta
        self.arguments: list[list[str]] = []

    def add(self, name: str, **changes: object) -> None:
        self.arguments.append(flags(self.checkpoint, self.meta, self.folder / name, **changes))

    @property
    def names(self) -> list[str]:
        return [Path(arguments[arguments.index("--output_dir") + 1]).name for arguments in self.arguments]

    def add_combinations(self, combinations: dict[str, tuple[str, int, dict]]) -> None:
        for name, (_, stage, options) in combinations.items():
            self.add(name, **options, deepspeed=zero_config(self.folder, stage) if stage else None)

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
def alone(checkpoint, meta, tmp_path_factory, together) -> Runs:
    """One process; two accumulation steps where a run is compared with two processes."""
    runs = Runs(tmp_path_factory.mktemp("alone"), checkpoint, meta)
    runs.add("packed", gradient_accumulation_steps=2, report_to="tensorboard", **SAVED)
    runs.add("unpacked", gradient_accumulation_steps=2, **UNPACKED)
    runs.add("continued", gradient_accumulation_steps=2, resume_from_checkpoint=runs.folder / "packed/checkpoint-4")
    runs.add("lora", gradient_accumulation_steps=2, **LORA)
    runs.add("frozen-vit", gradient_accumulation_steps=2, **FROZEN_VIT)
    runs.add("epoch", max_steps=None, num_train_epochs=1, max_packed_tokens=2048)
    runs.add("zero2", gradient_accumulation_steps=2, deepspeed=zero_config(runs.folder, 2))
    for stage in (2, 3):
        runs.add(
            f"moved-zero{stage}",
            gradient_accumulation_steps=2,
            deepspeed=zero_config(runs.folder, stage),
            resume_from_checkpoint=together.folder / f"packed-zero{stage}" / "checkpoint-4",
        )
    runs.start(num_processes=1)
    return runs


@pytest.fixture(scope="module")
def together(checkpoint, meta, tmp_path_factory) -> Runs:
    """Two processes, one accumulation step."""
    runs = Runs(tmp_path_factory.mktemp("together"), checkpoint, meta)
    runs.add("packed-ddp")
    runs.add("unpacked-ddp", **UNPACKED)
    for stage in (2, 3):
        runs.add(f"packed-zero{stage}", deepspeed=zero_config(runs.folder, stage), **SAVED)
    runs.add("unpacked-zero3", deepspeed=zero_config(runs.folder, 3), **UNPACKED)
    for stage in (2, 3):
        deepspeed = zero_config(runs.folder, stage)
        runs.add(f"bf16-zero{stage}", deepspeed=deepspeed, bf16=True, max_steps=2, save_strategy="steps", save_steps=2)
    runs.add("lora-ddp", **LORA)
    runs.add("lora-shared-ddp", **LORA, **SHARED)
    runs.add_combinations(COMBINATIONS)
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


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_two_processes_equal_one(alone, together, engine):
    """The same rows in every step, so the same losses and weights, whatever an engine averages."""
    assert_equal_runs(together[f"packed-{engine}"], alone["packed"])


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_ranks_without_pictures_keep_step(alone, together, engine):
    assert_equal_runs(together[f"unpacked-{engine}"], alone["unpacked"])


def test_deepspeed_divides_by_accumulation_steps_only_once(alone):
    assert_equal_runs(alone["zero2"], alone["packed"])


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_combination_trains_alike(alone, together, name):
    """Adapters, frozen towers, recomputed activations, packed rows, rows shared by two ranks, ZeRO."""
    reference = COMBINATIONS[name][0]
    assert_equal_runs(together[name], (alone if reference in alone.names else together)[reference])


@pytest.mark.slow  # half a minute, and each engine and each kind of training is in one of the combinations above
def test_further_combinations_train_alike(alone, together, checkpoint, meta, tmp_path):
    further = Runs(tmp_path, checkpoint, meta)
    further.add_combinations(FURTHER_COMBINATIONS)
    further.start(num_processes=2)
    for name, (reference, _, _) in FURTHER_COMBINATIONS.items():
        assert_equal_runs(further[name], (alone if reference in alone.names else together)[reference])


@pytest.mark.parametrize("name", ["lora-ddp", "lora-shared-ddp"])
def test_adapters_begin_alike_on_one_process_and_two(alone, together, name):
    """They add nothing to the first step; from then on dropout, which each rank draws for its rows, sets runs apart."""
    (first, second), (expected_first, expected_second) = read_losses(together[name]), read_losses(alone["lora"])
    assert first == pytest.approx(expected_first, abs=1e-5)
    assert second == pytest.approx(expected_second, abs=5e-3)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_on_two_ranks_goes_on_with_one(alone, together, stage):
    """All kinds of moves: tests/distributed/test_resharding.py."""
    run = alone[f"moved-zero{stage}"]
    log = (run / "training_log.txt").read_text()
    assert "from 2 to 1 ranks" in log
    assert [step for step in range(1, 9) if f"step {step}/8" in log] == [5, 6, 7, 8]
    assert read_losses(run) == pytest.approx(read_losses(together[f"packed-zero{stage}"]), rel=1e-5)


def assert_equal_runs(run: Path, reference: Path) -> None:
    assert read_losses(run) == pytest.approx(read_losses(reference), abs=1e-4)
    weights, expected = load_file(run / "model.safetensors"), load_file(reference / "model.safetensors")
    assert weights.keys() == expected.keys()
    for key, value in weights.items():
        torch.testing.assert_close(
            value, expected[key], atol=5e-4, rtol=1e-3, msg=lambda text, key=key: f"{key} {text}"
        )


def test_a_stopped_run_continues_as_if_it_had_not(alone):
    """Steps 5-8 from the checkpoint of step 4: optimiser, schedule and data go on. All engines: test_resume.py."""
    run = alone["continued"]
    log = (run / "training_log.txt").read_text()
    assert "step 5/8" in log
    assert "step 4/8" not in log
    assert read_losses(run) == pytest.approx(read_losses(alone["packed"]), abs=1e-6)


@pytest.mark.parametrize("name", ["packed-zero3", "lora-zero3", "bf16-zero3"])
def test_sharded_weights_are_left_in_one_folder_that_loads(together, name):
    """With our loader, and for a user of transformers alone."""
    ours = InternVLChatModel.from_pretrained(together[name], dtype=torch.float32)
    theirs = AutoModel.from_pretrained(together[name], dtype=torch.float32, trust_remote_code=True)
    saved = load_file(together[name] / "model.safetensors")
    assert ours.state_dict().keys() == theirs.state_dict().keys() == saved.keys()
    for key, value in saved.items():
        assert torch.equal(value.float(), ours.state_dict()[key]), key
        assert torch.equal(value.float(), theirs.state_dict()[key]), key


# Bytes per weight that is trained: what every rank's slices of the optimiser sum up to, what else global_stepN holds
# of weights, and the model's own file.
SIZES = {
    "packed-zero2/checkpoint-4": (12, 4, 4),
    "packed-zero3/checkpoint-4": (12, 0, 4),
    "bf16-zero2/checkpoint-2": (12, 2, 2),
    "bf16-zero3/checkpoint-2": (12, 0, 2),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_checkpoint_holds_every_number_once(together, name):
    checkpoint = together[name.split("/")[0]].parent / name
    num_weights = sum(tensor.numel() for tensor in load_file(checkpoint / "model.safetensors").values())
    patterns = ("global_step*/*optim_states.pt", "global_step*/*model_states.pt", "*.safetensors")
    for pattern, expected in zip(patterns, SIZES[name], strict=True):
        files = [path.stat().st_size for path in checkpoint.glob(pattern)]
        names_and_shapes = 30_000 * len(files)  # of some 60 tensors
        assert expected * num_weights <= sum(files) <= expected * num_weights + names_and_shapes, pattern


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


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_an_offloaded_optimiser_trains_alike(checkpoint, meta, tmp_path, stage):
    """The recipes' files as they are. The first run on a machine compiles DeepSpeed's AdamW for CPUs (minutes)."""
    runs = Runs(tmp_path, checkpoint, meta)
    folder = REPOSITORY / "shell" / "deepspeed"
    for name, file in (("plain", f"zero{stage}.json"), ("offloaded", f"zero{stage}_offload.json")):
        runs.add(name, deepspeed=folder / file, weight_decay=0.5, max_steps=4, save_strategy="steps", save_steps=4)
    runs.start(num_processes=1)
    assert_equal_runs(runs["offloaded"], runs["plain"])
    assert find_problem(runs["offloaded"] / "checkpoint-4") is None


def test_a_killed_rank_ends_the_job(checkpoint, meta, tmp_path):
    output = tmp_path / "out"
    job = launch(FAILING, ["killed", *flags(checkpoint, meta, output, max_steps=100000)], num_processes=2)
    assert job.returncode != 0
    assert "Signal 9" in job.stderr or "SIGKILL" in job.stderr
    assert not (output / "model.safetensors").exists()
