import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.distributed as dist

from internvl.errors import ParallelError
from internvl.parallel.launch import RankEnv, choose_gpu, find_free_port, init_distributed, read_rank_env
from tests.warm_python import warm_python

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SLURM_STEP = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_NODEID": "2",
}


def test_plain_python_is_a_single_process():
    assert read_rank_env({}) == RankEnv(0, 0, 1, 1, "none")


def test_torchrun_variables_are_read():
    assert read_rank_env(TORCHRUN) == RankEnv(3, 1, 4, 2, "pytorch")


def test_deepspeed_launcher_uses_torchrun_names():
    env = read_rank_env({**TORCHRUN, "LAUNCHER": "deepspeed"})
    assert env == RankEnv(3, 1, 4, 2, "deepspeed")


def test_slurm_step_is_read_with_uneven_nodes():
    assert read_rank_env(SLURM_STEP) == RankEnv(5, 1, 7, 2, "slurm")
    last = {**SLURM_STEP, "SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "3"}
    assert read_rank_env(last) == RankEnv(6, 0, 7, 1, "slurm")


def test_batch_shell_of_slurm_is_a_single_process():
    """sbatch sets SLURM_PROCID and SLURM_NTASKS in the batch shell as well; python there must not wait for others."""
    assert read_rank_env({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "7"}).launcher == "none"


def test_torchrun_inside_slurm_wins():
    assert read_rank_env({**SLURM_STEP, **TORCHRUN}).launcher == "pytorch"


def test_launcher_none_ignores_ranks():
    assert read_rank_env({**TORCHRUN, "LAUNCHER": "none"}) == RankEnv()


@pytest.mark.parametrize(
    ("environ", "match"),
    [
        ({"LAUNCHER": "mpi"}, "LAUNCHER is 'mpi', expected one of pytorch"),
        ({"LAUNCHER": "pytorch"}, "WORLD_SIZE is not set; start through torchrun"),
        ({"LAUNCHER": "slurm"}, "SLURM_NTASKS is not set; start through srun"),
        ({**TORCHRUN, "RANK": "three"}, "RANK is 'three', expected a whole number"),
        ({**TORCHRUN, "RANK": "4"}, "rank 4 of 4"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "local rank 2 of 2"),
    ],
)
def test_wrong_environments_are_explained(environ, match):
    with pytest.raises(ParallelError, match=match):
        read_rank_env(environ)


def run_python(python: str, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    drop = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "SLURM_", "LAUNCHER")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    command = [python, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env={**clean, **environ}, capture_output=True, text=True, timeout=120)


INIT = """
from internvl.parallel.launch import *
import os
init_distributed(read_rank_env(), device="cpu")
"""


def test_single_process_gets_no_group():
    code = INIT + "import torch.distributed as d; assert not d.is_initialized(); assert 'RANK' not in os.environ"
    assert run_python(warm_python(), code).returncode == 0


def test_slurm_ranks_meet_without_an_address(tmp_path):
    """Two tasks of one step: address and port are derived, the torchrun names exported, the exit code is kept."""
    code = INIT + (
        "import torch, torch.distributed as d; x = torch.ones(1); d.all_reduce(x)\n"
        "print(int(x), os.environ['RANK'], os.environ['WORLD_SIZE'], d.get_backend(), flush=False)\n"
        "finish_distributed(0)"
    )
    step = {"LAUNCHER": "slurm", "SLURM_NTASKS": "2", "SLURM_JOB_ID": str(find_free_port()), "OMP_NUM_THREADS": "1"}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "RANK", "WORLD_SIZE"))}
    tasks = [
        subprocess.Popen(
            [warm_python(), "-c", code],
            env={**clean, **step, "SLURM_PROCID": str(r), "SLURM_LOCALID": str(r)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    outputs = [task.communicate(timeout=120)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    # Older releases of torch say on standard output, too, that ranks have met.
    assert [output.splitlines()[-1] for output in outputs] == ["2 0 2 gloo", "2 1 2 gloo"]


def test_several_machines_need_an_address():
    code = INIT + "finish_distributed()"
    result = run_python(warm_python(), code, RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="1")
    assert "ParallelError: MASTER_ADDR is not set" in result.stderr
    assert result.returncode == 1


def test_deepspeed_on_cpu_needs_no_compiler(tmp_path):
    """With an empty PATH there is no c++: DeepSpeed's backend must come up without building anything."""
    code = """
    from internvl.parallel.launch import init_distributed, read_rank_env
    init_distributed(read_rank_env(), device="cpu", use_deepspeed=True)
    import deepspeed.comm
    deepspeed.comm.init_distributed("gloo")
    from deepspeed.comm.comm import cdb
    assert cdb.is_initialized() and cdb.shm_comm_op is None
    """
    extensions = tmp_path / "extensions"
    bare = {"PATH": str(tmp_path), "CXX": "", "TORCH_EXTENSIONS_DIR": str(extensions), "DS_ACCELERATOR": "cpu"}
    result = run_python(sys.executable, code, **bare)
    assert result.returncode == 0, result.stderr[-2000:]
    assert not extensions.exists()


@pytest.mark.parametrize(
    ("num_gpus", "local_rank", "expected"), [(8, 0, 0), (8, 5, 5), (1, 0, 0), (1, 5, 0)], ids=["first", "sixth", *"ab"]
)
def test_a_process_that_sees_one_gpu_takes_it_whatever_its_local_rank(monkeypatch, num_gpus, local_rank, expected):
    """Batch systems may show every task its own GPU, which is number 0 for all of them."""
    calls = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.update(set_device=device))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: calls.update(options, backend=backend))
    variables = {
        "SLURM_PROCID": str(8 + local_rank),
        "SLURM_LOCALID": str(local_rank),
        "SLURM_NTASKS": "16",
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
        "SLURM_NODEID": "1",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500",
    }
    monkeypatch.setattr(os, "environ", {**variables})
    env = read_rank_env()
    init_distributed(env, device="cuda")
    assert (calls["set_device"], calls["device_id"]) == (expected, torch.device("cuda", expected))
    assert calls["backend"] == "nccl"
    # DeepSpeed and accelerate take LOCAL_RANK as the number of a GPU; our own place is still known.
    assert os.environ["LOCAL_RANK"] == str(expected)
    assert read_rank_env() == env


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ParallelError, match="local rank 3 has no GPU: this machine shows 2"):
        choose_gpu(RankEnv(3, 3, 4, 4, "pytorch"))
