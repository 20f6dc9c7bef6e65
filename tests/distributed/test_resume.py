"""Runs that are killed, stopped and started again end bit for bit as runs that were not (float32 on a CPU)."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from internvl.train.checkpoint.contents import find_problem
from tests.distributed.test_training import zero_config
from tests.train.tiny_run import flags, launch, read_losses, tail

WORKER = Path(__file__).with_name("resume_worker.py")
LORA = {"use_llm_lora": 4, "use_backbone_lora": 2, "freeze_mlp": True, "grad_checkpoint": True}


class Schedule(NamedTuple):
    """Steps of a run, and what strikes in which: `kill` is a kind of fault of resume_worker.py."""

    steps: int
    save_steps: int
    killed_in: int
    stopped_in: int
    kill: str = "kill"


class Runs:
    """Pairs of runs of one kind: `whole`, and `broken`, which is killed, started again, stopped, started again."""

    def __init__(self, folder: Path, checkpoint: Path, meta: Path, schedule: Schedule, kinds: dict[str, dict]):
        self.folder, self.checkpoint, self.meta = folder, checkpoint, meta
        self.schedule, self.kinds = schedule, kinds

    def path(self, kind: str, name: str) -> Path:
        return self.folder / f"{kind}-{name}"

    def entry(self, kind: str, name: str, *faults: list, **changes: object) -> list:
        options = {
            "max_steps": self.schedule.steps,
            "save_strategy": "steps",
            "save_steps": self.schedule.save_steps,
            "drop_path_rate": 0.3,  # draws from torch's generator
            **self.kinds[kind],
            **changes,
        }
        return [flags(self.checkpoint, self.meta, self.path(kind, name), **options), list(faults)]

    def launch(self, entries: list, *, num_processes: int) -> None:
        path = self.folder / "runs.json"
        path.write_text(json.dumps(entries))
        self.result = launch(WORKER, [str(path)], num_processes=num_processes)

    def run(self, *extra: list, num_processes: int) -> None:
        """Two launches: in the first one runs of the last kind are killed, which ends it, others by an exception.

        All of them then continue in new processes. A run's two parts stand on the same side of the first ZeRO-3 run of
        a process, if that kind comes last: DeepSpeed puts a linear layer of its own in place of torch's.
        """
        schedule, last = self.schedule, num_processes - 1
        *others, killed = self.kinds
        entries = []
        for kind in others:
            entries += [self.entry(kind, "whole"), self.entry(kind, "broken", ["raise", schedule.killed_in, last])]
        kill = self.entry(killed, "broken", [schedule.kill, schedule.killed_in, last])
        self.launch([*entries, self.entry(killed, "whole"), kill], num_processes=num_processes)
        assert self.result.returncode != 0
        assert (self.path(killed, "broken") / "training_log.txt").exists(), tail(self.result)
        log = (self.path(killed, "broken") / "training_log.txt").read_text()
        assert f"step {schedule.killed_in - 1}/" in log, tail(self.result)
        assert not (self.path(killed, "broken") / "train_results.json").exists()
        again = [self.entry(kind, "broken", ["term", schedule.stopped_in, last]) for kind in self.kinds]
        self.launch([*again, *extra], num_processes=num_processes)

    def assert_exact(self, kind: str, *, last_trained: int) -> None:
        """The broken run trained steps 1 to `last_trained`, then those from its last checkpoint on, nothing else."""
        schedule, broken = self.schedule, self.path(kind, "broken")
        assert (broken / "train_results.json").exists(), tail(self.result)
        saved = (schedule.killed_in - 1) // schedule.save_steps * schedule.save_steps
        log = (broken / "training_log.txt").read_text()
        trained = [int(step) for step in re.findall(rf" step (\d+)/{schedule.steps}  loss ", log)]
        assert trained == [*range(1, last_trained + 1), *range(saved + 1, schedule.steps + 1)]
        assert find_problem(broken / f"checkpoint-{schedule.stopped_in}") is None
        assert_same_run(broken, self.path(kind, "whole"))


def read_curve(run: Path) -> list[tuple[float, ...]]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    names = ("step", "epoch", "loss", "grad_norm", "learning_rate", "targets")
    return [tuple(entry[name] for name in names) for entry in history if "loss" in entry]


def assert_same_run(run: Path, reference: Path) -> None:
    curve = read_curve(run)
    assert len(curve) == len(read_losses(run)) == json.loads((run / "trainer_state.json").read_text())["max_steps"]
    assert curve == read_curve(reference)
    weights, expected = load_file(run / "model.safetensors"), load_file(reference / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert [key for key, value in weights.items() if not torch.equal(value, expected[key])] == []


QUICK = Schedule(steps=8, save_steps=4, killed_in=6, stopped_in=7)
LONG = Schedule(steps=60, save_steps=10, killed_in=23, stopped_in=41)
IN_SAVE = Schedule(steps=8, save_steps=4, killed_in=8, stopped_in=7, kill="save")

ALONE = {"lora": LORA, "packed": {"gradient_accumulation_steps": 2, "dataloader_num_workers": 2}}
TOGETHER = ("ring", "zero3")
OTHERS = ("ddp", "zero1", "zero2", "lora-zero2", "ring-zero3", "lora")


def kinds_of_two(folder: Path) -> dict[str, dict]:
    kinds: dict[str, dict] = {f"zero{stage}": {"deepspeed": zero_config(folder, stage)} for stage in (1, 2, 3)}
    positions = {"rope_pos_id_version": "mrope", "rope_pos_id_stride": 0.25}  # the others draw strides
    ring = {"chunk_num": 2, "gradient_accumulation_steps": 2, **positions}
    return {
        "ddp": {},
        **kinds,
        "ring": ring,
        "ring-zero3": ring | kinds["zero3"],
        "lora": LORA,
        "lora-zero2": LORA | kinds["zero2"],
    }


@pytest.fixture(scope="module")
def alone(checkpoint, meta, tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("alone"), checkpoint, meta, IN_SAVE, ALONE)
    last = runs.path("packed", "whole") / f"checkpoint-{IN_SAVE.steps}"
    late = runs.entry("packed", "late", resume_from_checkpoint=last)
    full = runs.entry("lora", "full", ["full", IN_SAVE.steps, 0])
    lost = [runs.entry("lora", "lost", ["stuck", 4, 0], ["raise", 6, 0]), runs.entry("lora", "lost")]
    runs.run(late, full, *lost, num_processes=1)
    return runs


@pytest.fixture(scope="module")
def together(checkpoint, meta, tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("together")
    kinds = kinds_of_two(folder)
    runs = Runs(folder, checkpoint, meta, QUICK, {kind: kinds[kind] for kind in TOGETHER})
    runs.run(num_processes=2)
    return runs


def test_a_process_killed_while_it_saves_resumes_exactly(alone):
    alone.assert_exact("packed", last_trained=IN_SAVE.killed_in)


def test_a_process_that_fails_resumes_exactly(alone):
    alone.assert_exact("lora", last_trained=IN_SAVE.killed_in - 1)


@pytest.mark.parametrize("kind", TOGETHER)
def test_two_processes_resume_exactly(together, kind):
    together.assert_exact(kind, last_trained=QUICK.killed_in - 1)


def test_a_run_that_lost_only_its_last_save_trains_no_further_step(alone):
    late = alone.path("packed", "late")
    assert json.loads((late / "trainer_state.json").read_text())["global_step"] == IN_SAVE.steps
    assert_same_run(late, alone.path("packed", "whole"))


def test_a_disk_that_is_full_during_a_save_costs_no_checkpoint(alone):
    full = alone.path("lora", "full")
    error = (full / "error.txt").read_text()
    assert error.startswith(f"a checkpoint could not be written to {full} (")
    assert "saved before are intact" in error
    assert_same_run(full, alone.path("lora", "whole"))


def test_a_run_that_fails_while_a_checkpoint_is_written_does_without_it(alone):
    lost = alone.path("lora", "lost")
    log = (lost / "training_log.txt").read_text()
    trained = [int(step) for step in re.findall(r" step (\d+)/8  loss ", log)]
    assert trained == [*range(1, 6), *range(1, 9)]
    assert_same_run(lost, alone.path("lora", "whole"))
    assert [path.name for path in lost.glob(".*")] == []


def test_a_checkpoint_holds_the_position_of_every_stream_once(together):
    for kind in TOGETHER:
        checkpoint = together.path(kind, "whole") / f"checkpoint-{QUICK.save_steps}"
        streams = json.loads((checkpoint / "data_position.json").read_text())["streams"]
        assert [(name, stream["rows"]) for name, stream in streams.items()] == [("0", 4), ("1", 4)]


def test_nothing_is_left_of_interrupted_saves(alone, together):
    for run in (alone.path("packed", "broken"), alone.path("lora", "full"), together.path("zero3", "broken")):
        assert [path.name for path in run.glob(".*")] == []


@pytest.mark.slow  # two launches per kind
@pytest.mark.parametrize("kind", [*TOGETHER, *OTHERS])
def test_sixty_steps_with_a_killed_rank_and_a_signal(checkpoint, meta, tmp_path, kind):
    runs = Runs(tmp_path, checkpoint, meta, LONG, {kind: kinds_of_two(tmp_path)[kind]})
    runs.run(num_processes=2)
    runs.assert_exact(kind, last_trained=LONG.killed_in - 1)
