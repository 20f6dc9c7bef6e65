"""Runs with DeepSpeed that are stopped on some ranks and go on with another number of them."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from internvl.train.checkpoint.resharding import find_slices
from tests.distributed.test_resume import LORA, read_curve
from tests.distributed.test_training import zero_config
from tests.train.tiny_run import flags, launch, tail

pytestmark = pytest.mark.slow  # quick ones are in test_training.py

WORKER = Path(__file__).with_name("resume_worker.py")
ROWS_PER_STEP = 4
STEPS, SAVED, FAILS_IN = 8, 4, 6


class Runs:
    """Pairs of runs of one kind on `before` ranks; `moved` fails and goes on with `after` ranks, `whole` does not."""

    def __init__(self, folder: Path, checkpoint: Path, meta: Path, kinds: dict[str, dict]):
        self.folder, self.checkpoint, self.meta, self.kinds = folder, checkpoint, meta, kinds

    def path(self, kind: str, name: str) -> Path:
        return self.folder / f"{kind}-{name}"

    def run(self, *, before: int, after: int, chunk_num: int = 1) -> None:
        """Train with `before` ranks, then, rows shared by `chunk_num` of them, with `after`; as many rows per step."""
        self.before, self.after = before, after
        raising = ["raise", FAILS_IN, 0]
        self.launch([(name, faults) for name, faults in (("whole", []), ("moved", [raising]))], before)
        self.launch([("moved", [])], after, chunk_num)

    def launch(self, starts: list[tuple[str, list]], num_processes: int, chunk_num: int = 1) -> None:
        entries = [
            [self.arguments(kind, name, num_processes, chunk_num), faults]
            for kind in self.kinds
            for name, faults in starts
        ]
        path = self.folder / "runs.json"
        path.write_text(json.dumps(entries))
        self.result = launch(WORKER, [str(path)], num_processes=num_processes)
        assert self.result.returncode == 0, tail(self.result)

    def arguments(self, kind: str, name: str, num_processes: int, chunk_num: int) -> list[str]:
        return flags(
            self.checkpoint,
            self.meta,
            self.path(kind, name),
            max_steps=STEPS,
            save_strategy="steps",
            save_steps=SAVED,
            weight_decay=0.5,  # of one group of parameters only
            gradient_accumulation_steps=ROWS_PER_STEP * chunk_num // num_processes,
            chunk_num=chunk_num,
            **self.kinds[kind],
        )

    def assert_moved(self, kind: str, *, tolerance: float) -> None:
        """Losses and norms are those of the run on `before` ranks; before the move they are the same bits."""
        moved, whole = self.path(kind, "moved"), self.path(kind, "whole")
        assert find_slices(whole / f"checkpoint-{STEPS}").num_ranks == self.before
        assert find_slices(moved / f"checkpoint-{SAVED}").num_ranks == self.before
        assert find_slices(moved / f"checkpoint-{STEPS}").num_ranks == self.after
        assert [path.name for path in moved.glob(".*")] == []
        curve, expected = read_curve(moved), read_curve(whole)
        assert len(curve) == STEPS
        assert curve[:SAVED] == expected[:SAVED]
        for step, (values, references) in enumerate(zip(curve, expected, strict=True), start=1):
            assert values == pytest.approx(references, rel=tolerance), step

    def assert_same_weights(self, kind: str) -> None:
        weights, references = (load_file(self.path(kind, name) / "model.safetensors") for name in ("moved", "whole"))
        assert weights.keys() == references.keys()
        for name, weight in weights.items():
            assert_close(weight, references[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name} {text}")


MOVES = {
    "halved": (2, 1, 1),
    "doubled": (2, 4, 1),
    "joined": (4, 2, 1),
    "shared": (2, 4, 2),
}  # before, after, chunk_num
EXACT = ("zero1", "zero2", "frozen-vit-zero3", "zero3")


@pytest.fixture(scope="module", params=MOVES)
def runs(request, checkpoint, meta, tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp(f"{request.param}+")  # a name that is no plain pattern
    zero = {stage: {"deepspeed": zero_config(folder, stage)} for stage in (1, 2, 3)}
    kinds = {
        "zero1": zero[1],
        "zero2": zero[2],
        "lora-zero2": LORA | zero[2],
        "frozen-vit-zero3": {"freeze_backbone": True, **zero[3]},
        "zero3": zero[3],
    }
    runs = Runs(folder, checkpoint, meta, kinds)
    before, after, chunk_num = MOVES[request.param]
    runs.run(before=before, after=after, chunk_num=chunk_num)
    return runs


@pytest.mark.parametrize("kind", EXACT)
def test_a_run_goes_on_with_another_number_of_ranks(runs, kind):
    runs.assert_moved(kind, tolerance=1e-5)
    runs.assert_same_weights(kind)


def test_a_run_of_adapters_does_too(runs):
    """Their dropout draws other numbers on other ranks."""
    runs.assert_moved("lora-zero2", tolerance=0.1)
