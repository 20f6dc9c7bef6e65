"""Two training processes with DataLoader workers; a signal goes to all processes of one rank, and both ranks stop."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from internvl.parallel.launch import find_free_port
from internvl.train.run.preemption import EXIT_PREEMPTED
from internvl.train.run.state import read_run_state
from tests.train.tiny_run import ENTRY, clean_environment, flags
from tests.warm_python import warm_python

NUM_RANKS = 2
# A process of the warm Python leads a group of its own, which is not that of its client.
NAMED = """
import os, runpy, sys
print(os.getpid(), flush=True)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Rank(NamedTuple):
    client: subprocess.Popen[str]
    group: int


def start_ranks(arguments: list[str]) -> list[Rank]:
    """What torchrun would start, each rank in a process group of its own."""
    port = str(find_free_port())
    ranks = []
    for rank in range(NUM_RANKS):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environ = clean_environment(**place, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        command = [warm_python(), "-c", NAMED, str(ENTRY), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        client = subprocess.Popen(command, env=environ, text=True, **pipes)
        ranks.append(Rank(client, int(client.stdout.readline())))
    return ranks


def wait_for_step(output: Path, step: int, ranks: list[Rank]) -> None:
    deadline = time.monotonic() + 120
    while (state := read_run_state(output)) is None or state.step < step:
        assert time.monotonic() < deadline
        assert [rank.client.poll() for rank in ranks] == [None] * NUM_RANKS
        time.sleep(0.05)


def test_a_signal_to_one_rank_stops_both_after_a_checkpoint(checkpoint, meta, tmp_path):
    output = tmp_path / "out"
    ranks = start_ranks(flags(checkpoint, meta, output, max_steps=100000, dataloader_num_workers=1))
    try:
        wait_for_step(output, 3, ranks)
        os.killpg(ranks[1].group, signal.SIGTERM)
        errors = [rank.client.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.client.kill()
    assert [rank.client.returncode for rank in ranks] == [EXIT_PREEMPTED] * NUM_RANKS, "\n".join(errors)[-3000:]
    state = read_run_state(output)
    assert state.status == "preempted"
    assert state.checkpoint == f"checkpoint-{state.step}"
    assert (output / state.checkpoint / "trainer_state.json").is_file()
    assert not (output / "model.safetensors").exists()
