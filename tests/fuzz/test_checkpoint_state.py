"""Whatever happens to the state files of a checkpoint, resuming reads them or says in one line what is wrong."""

import json
import random
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from internvl.data.cursor import StreamCursor
from internvl.data.loader import TrainLoader
from internvl.data.plan import RankShare
from internvl.errors import InternVLError
from internvl.train.checkpoint.contents import find_best, list_files
from internvl.train.checkpoint.pickles import check_pickles
from internvl.train.checkpoint.resume import find_resume_checkpoint
from internvl.train.checkpoint.writing import publish_checkpoint
from internvl.train.finetune import resume_data
from internvl.train.run.counts import Counts, RunTotals
from internvl.train.run.record import warn_of_changed_data
from internvl.train.run.state import RunJournal, RunState, read_run_state

PLAN = {"data seed": 1}
VALUES = [None, True, -1, 0, 10**30, 1.5, float("nan"), float("inf"), "", "x", "../x", [], [1], {}, {"a": 1}, [[[]]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that saved checkpoint-4."""
    folder = tmp_path_factory.mktemp("run")
    staged = folder / ".saving" / "checkpoint-4"
    (staged / "global_step4").mkdir(parents=True)
    history = [{"step": step, "loss": 1.0 / step, "epoch": 0.1} for step in range(1, 5)]
    cursor = StreamCursor(0, 9, 4, 9).to_json(num_skipped=1)
    cursor |= {"open": [[10, 1, [0, 3, 0]]], "ready": [[12, 0, [0, 4, 0], [0, 5, 0]]]}
    states = {
        "trainer_state.json": {"global_step": 4, "epoch": 0.5, "max_steps": 8, "log_history": history},
        "data_position.json": {"version": 1, "plan": PLAN, "streams": {"0": cursor, "1": cursor}},
        "totals.json": RunTotals(Counts.zeros(["a"]), 3.0).to_json(more_seconds=1.0),
    }
    for name, content in states.items():
        (staged / name).write_text(json.dumps(content, indent=1))
    torch.save({"state": {0: torch.ones(2)}}, staged / "optimizer.pt")
    torch.save({"module": {"w": torch.ones(2)}}, staged / "global_step4" / "mp_rank_00_model_states.pt")
    (staged / "latest").write_text("global_step4")
    save_file({"w": torch.ones(2)}, staged / "model.safetensors")
    publish_checkpoint(staged, listings=[list_files(staged)], weight_names={"w"}, num_ranks=1)
    RunJournal(folder, RunState(step=3, checkpoint="checkpoint-4"), writes="main")
    (folder / "run.json").write_text(json.dumps({"data": {"meta": "0", "sources": {"a": {"annotation_bytes": 3}}}}))
    return folder


def make_loader() -> TrainLoader:
    """What `load_state_dict` sees of a loader of two streams."""
    loader = SimpleNamespace(
        plan=SimpleNamespace(describe=lambda: PLAN),
        dataset=SimpleNamespace(share=RankShare(range(2))),
        ledger=SimpleNamespace(restore=lambda num_seen, num_skipped: None),
    )
    loader.load_state_dict = partial(TrainLoader.load_state_dict, loader)
    return loader  # type: ignore[return-value]


def replace_a_value(path: Path, rng: random.Random) -> None:
    """Another value, or another name, somewhere in a json file."""
    content = json.loads(path.read_text())
    place = content
    while True:
        key = rng.choice([*place] if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    if isinstance(place, dict) and rng.random() < 0.3:
        place[rng.choice(["", "x", "global_step"])] = place.pop(key)
    else:
        place[key] = rng.choice(VALUES)
    path.write_text(json.dumps(content))


def damage_bytes(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    for _ in range(rng.randrange(4)):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def mutate(run: Path, rng: random.Random) -> None:
    path = rng.choice([path for path in sorted(run.rglob("*")) if path.is_file()])
    if path.suffix == ".json" and rng.random() < 0.7:
        replace_a_value(path, rng)
    else:
        damage_bytes(path, rng)
    marker = run / "checkpoint-4" / "complete.json"
    if rng.random() < 0.8 and path != marker:  # as whoever prepares a folder would
        content = json.loads(marker.read_text())
        content["files"] = {name: (marker.parent / name).stat().st_size for name in content["files"]}
        marker.write_text(json.dumps(content))


def resume(run: Path) -> None:
    """All that a start reads before it builds a model, and the readers of what it needs later."""
    if (state := read_run_state(run)) is not None:
        journal = RunJournal(run, state.next_attempt(), writes="never")
        journal.note_checkpoint(5)
    checkpoint = find_resume_checkpoint(str(run), overwrite=False)
    check_pickles(Path(str(checkpoint)))
    RunTotals.read(Path(str(checkpoint), "totals.json"), ["a"])
    resume_data(make_loader(), Path(str(checkpoint)))


def try_seeds(run: Path, work: Path, seeds: range) -> int:
    refused = 0
    for seed in seeds:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(run, work)
        mutate(work, random.Random(seed))
        try:
            resume(work)
        except InternVLError:
            refused += 1
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")
        warn_of_changed_data(work, {"meta": "1", "sources": {"a": {"annotation_bytes": 3, "annotation": "a.jsonl"}}})
        find_best([work / "checkpoint-4"])
    return refused


def test_an_untouched_run_is_resumed(run):
    resume(run)


def test_damaged_states_end_in_an_error_of_ours(run, tmp_path):
    assert try_seeds(run, tmp_path / "work", range(250)) > 100


@pytest.mark.slow
def test_many_damaged_states_end_in_an_error_of_ours(run, tmp_path):
    try_seeds(run, tmp_path / "work", range(250, 5_000))
