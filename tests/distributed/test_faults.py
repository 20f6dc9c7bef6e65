"""What befalls a run from outside: missing ranks, taken ports, data that is damaged or gone for a while."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from internvl.errors import ParallelError
from internvl.parallel.launch import RankEnv, find_free_port, init_distributed
from internvl.train.checkpoint.contents import find_problem, list_checkpoints
from internvl.train.run.state import read_run_state
from tests.distributed.test_preemption import Rank, start_ranks
from tests.distributed.test_resume import assert_same_run
from tests.distributed.test_training import zero_config
from tests.train.tiny_run import clean_environment, flags, launch, make_data, read_losses, tail, train
from tests.warm_python import warm_python

WATCHDOG = Path(__file__).with_name("rank_watchdog_worker.py")
WORKER = Path(__file__).with_name("resume_worker.py")


# Ranks


def run_watchdog(missing: int, instead: str, *, num_ranks: int) -> list[tuple[int, str]]:
    """(exit code, log) of the ranks that stay; the missing one is ended afterwards."""
    port, ranks = str(find_free_port()), []
    for rank in range(num_ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
        environ = clean_environment(**place, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        command = [warm_python(), str(WATCHDOG), str(missing), instead]
        ranks.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
    try:
        logs = {rank: ranks[rank].communicate(timeout=120)[1] for rank in range(num_ranks) if rank != missing}
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [(ranks[rank].returncode, log) for rank, log in logs.items()]


@pytest.mark.parametrize("instead", ["hang", "die"])
def test_waiting_ranks_name_the_one_that_is_missing(instead):
    results = run_watchdog(1, instead, num_ranks=3)
    assert len(results) == 2
    for code, log in results:
        assert code == 1
        assert f"a collective failed: rank 1 on {socket.gethostname()} did not answer within 4 s" in log
        assert "Traceback" in log


def test_a_port_that_is_taken_is_an_error_that_says_so(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, "")  # restored afterwards
        with pytest.raises(ParallelError, match=f"MASTER_PORT {port} is taken on this machine"):
            init_distributed(RankEnv(0, 0, 2, 2, "pytorch"), device="cpu", timeout_s=10)
    assert not dist.is_initialized()


# Data


@pytest.fixture
def damaged_meta(tmp_path) -> Path:
    """Every other picture is cut short."""
    meta = make_data(tmp_path / "data")
    for path in sorted(meta.with_name("images").iterdir())[::2]:
        path.write_bytes(path.read_bytes()[:60])
    return meta


def test_a_storm_of_bad_samples_ends_the_run_with_a_summary(checkpoint, damaged_meta, tmp_path):
    output = tmp_path / "out"
    result = train(flags(checkpoint, damaged_meta, output, max_steps=1000, save_strategy="steps", save_steps=20))
    assert result.returncode == 2, tail(result)
    last = result.stderr[result.stderr.rindex("error: ") :]
    assert "documents cannot be used, the first ones: tiny, row " in last
    assert "allowed are 1.0% (max_skipped)" in last
    state = read_run_state(output)
    assert state.status == "stopped"
    assert state.step > 20
    assert [find_problem(path) for path in list_checkpoints(output)] == [None] * (state.step // 20)
    skipped = [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) > 10
    assert all(entry["source"] == "tiny" and "image" in entry["cause"] for entry in skipped)


def run_worker(folder: Path, entries: list, *, num_processes: int) -> subprocess.CompletedProcess[str]:
    path = folder / "runs.json"
    path.write_text(json.dumps(entries))
    return launch(WORKER, [str(path)], num_processes=num_processes)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_waits_for_a_data_folder_that_is_gone_for_a_while(checkpoint, tmp_path, num_workers):
    """Not a document is skipped: losses and weights are those of a run whose folder stayed."""
    meta = make_data(tmp_path / "data")
    runs = {
        name: flags(checkpoint, meta, tmp_path / name, dataloader_num_workers=num_workers)
        for name in ("whole", "broken")
    }
    result = run_worker(tmp_path, [[runs["whole"], []], [runs["broken"], [["gone", 3, 0]]]], num_processes=1)
    assert result.returncode == 0, tail(result)
    assert f"{meta.with_name('images')} is out of reach, trying again in" in result.stderr
    assert not (tmp_path / "broken" / "skipped.jsonl").exists()
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


# Slow, hanging and killed ranks in training


@pytest.mark.slow
def test_a_slow_rank_costs_time_only(checkpoint, meta, tmp_path):
    zero2 = zero_config(tmp_path, 2)
    runs = {name: flags(checkpoint, meta, tmp_path / name, deepspeed=zero2) for name in ("whole", "slow")}
    faults = [["slow", 3, 1], ["slow", 6, 0]]
    result = run_worker(tmp_path, [[runs["whole"], []], [runs["slow"], faults]], num_processes=2)
    assert result.returncode == 0, tail(result)
    assert_same_run(tmp_path / "slow", tmp_path / "whole")


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_the_run_goes_on_when_started_again(checkpoint, meta, tmp_path):
    limit = {"ddp_timeout": 20}  # the first run makes the process group of both
    arguments = flags(checkpoint, meta, tmp_path / "out", save_strategy="steps", save_steps=2, **limit)
    whole = flags(checkpoint, meta, tmp_path / "whole", **limit)
    result = run_worker(tmp_path, [[whole, []], [arguments, [["hang", 4, 1]]]], num_processes=2)
    assert result.returncode != 0
    assert f"a collective failed: rank 1 on {socket.gethostname()} did not answer" in result.stderr, tail(result)
    assert read_run_state(tmp_path / "out").step == 4
    assert read_run_state(tmp_path / "out").status == "running"
    result = run_worker(tmp_path, [[arguments, []]], num_processes=2)
    assert result.returncode == 0, tail(result)
    assert read_losses(tmp_path / "out") == read_losses(tmp_path / "whole")


def wait_for_save(output: Path, step: int, ranks: list[Rank]) -> None:
    """Until files of a checkpoint are being written."""
    deadline = time.monotonic() + 120
    while not any((output / ".saving" / f"checkpoint-{step}").rglob("*")):
        assert time.monotonic() < deadline
        assert [rank.client.poll() for rank in ranks] == [None] * len(ranks)
        time.sleep(0.002)


@pytest.mark.slow
def test_all_ranks_killed_during_a_save_lose_that_save_only(checkpoint, meta, tmp_path):
    output = tmp_path / "out"
    options = {"save_strategy": "steps", "save_steps": 4, "deepspeed": zero_config(tmp_path, 2)}
    ranks = start_ranks(flags(checkpoint, meta, output, **options))
    try:
        wait_for_save(output, 8, ranks)
    finally:
        for rank in ranks:
            os.killpg(rank.group, signal.SIGKILL)
            rank.client.communicate()
    assert [path.name for path in list_checkpoints(output)] == ["checkpoint-4"]
    assert (output / ".saving" / "checkpoint-8").is_dir()
    again = flags(checkpoint, meta, output, **options)
    whole = flags(checkpoint, meta, tmp_path / "whole", **options)
    result = run_worker(tmp_path, [[whole, []], [again, []]], num_processes=2)
    assert result.returncode == 0, tail(result)
    assert "from " + str(output / "checkpoint-4") in (output / "training_log.txt").read_text()
    assert_same_run(output, tmp_path / "whole")
