"""Launch: how processes start and end. The only reader of RANK, WORLD_SIZE, SLURM_* and MASTER_*.

    torchrun, deepspeed   RANK LOCAL_RANK WORLD_SIZE ...   \
    srun                  SLURM_PROCID SLURM_NTASKS ...     >  read_rank_env() -> RankEnv -> init_distributed()
    plain python          nothing                          /

The rest of the project asks a `RankEnv` or torch.distributed. `init_distributed` writes the torchrun names back into
the environment, where accelerate and DeepSpeed read them. Every distributed program ends a successful run with
`finish_distributed`; a failed one lets its exception through, so that the launcher sees the code and stops the others.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

import torch
import torch.distributed as dist

from internvl.errors import InternVLError, ParallelError
from internvl.folder_owner import own_folder

Launcher = Literal["pytorch", "slurm", "deepspeed", "none"]
DeviceType = Literal["cpu", "cuda"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankEnv:
    """The place of this process among all processes of the run."""

    rank: int = 0  # number of the process, 0 <= rank < world_size
    local_rank: int = 0  # number of the process on its machine
    world_size: int = 1  # number of processes
    local_world_size: int = 1  # number of processes on this machine
    launcher: Launcher = "none"  # who started the processes

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size or not 0 <= self.local_rank < self.local_world_size <= self.world_size:
            raise ParallelError(
                f"the launcher's environment is inconsistent: rank {self.rank} of {self.world_size}, local rank "
                f"{self.local_rank} of {self.local_world_size}; start through torchrun, srun or shell/launch.sh, "
                "or unset stale RANK/WORLD_SIZE/LOCAL_RANK variables"
            )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the process that logs and writes."""
        return self.rank == 0

    @property
    def is_single_machine(self) -> bool:
        """Whether all processes are on this machine."""
        return self.local_world_size == self.world_size


def read_rank_env(environ: Mapping[str, str] | None = None) -> RankEnv:
    """Read the launcher's environment (None: `os.environ`).

    The variable LAUNCHER (pytorch, slurm, deepspeed, none) decides when set. Otherwise RANK and WORLD_SIZE mean
    torchrun (also inside a slurm allocation), a slurm step (srun, not the batch shell itself) means slurm.

    Raises:
        ParallelError: LAUNCHER is unknown, a variable is missing or is not a whole number, or the numbers contradict.
    """
    environ = os.environ if environ is None else environ
    launcher = _detect_launcher(environ)
    if launcher == "none":
        return RankEnv()
    if launcher == "slurm":
        world_size = _read_int(environ, "SLURM_NTASKS", launcher, fallback="SLURM_STEP_NUM_TASKS")
        local_world_size = _count_local_tasks(environ, world_size)
        rank = _read_int(environ, "SLURM_PROCID", launcher)
        local_rank = _read_int(environ, "SLURM_LOCALID", launcher)
        return RankEnv(rank, local_rank, world_size, local_world_size, launcher)
    world_size = _read_int(environ, "WORLD_SIZE", launcher)
    # The deepspeed launcher says LOCAL_SIZE.
    local_world_size = _read_int(environ, "LOCAL_WORLD_SIZE", launcher, fallback="LOCAL_SIZE", default=world_size)
    rank = _read_int(environ, "RANK", launcher)
    return RankEnv(rank, _read_int(environ, "LOCAL_RANK", launcher), world_size, local_world_size, launcher)


def is_restart(environ: Mapping[str, str] | None = None) -> bool:
    """Whether slurm (after a requeue) or torchrun (elastic restart) started this run before."""
    environ = os.environ if environ is None else environ
    counts = (environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return any(count.isdigit() and int(count) > 0 for count in counts)


def init_distributed(
    env: RankEnv, *, device: DeviceType | None = None, use_deepspeed: bool = False, timeout_s: float = 1800.0
) -> None:
    """Create the default process group (gloo on CPU, nccl on CUDA) and give the process its GPU.

    A single process without DeepSpeed gets no group, since it has no peer. DeepSpeed needs one even then.

    Args:
        device: Where the model will be; None means CUDA when there is a GPU.
        timeout_s: A collective that waits longer fails; covers checkpoint loading and slow storage.

    Raises:
        ParallelError: The address of rank 0 is unknown, its port is taken, or a machine has fewer GPUs than processes.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed searches for a GPU, and warns
    if use_deepspeed and device == "cpu":
        _use_deepspeed_without_compiler()
    if env.launcher == "none" and not use_deepspeed:
        return
    gpu = choose_gpu(env) if device == "cuda" else None
    _export(env, local_rank=gpu if gpu is not None else env.local_rank)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    if not dist.is_initialized():
        backend = "gloo" if gpu is None else "nccl"
        # Without its device a barrier would guess one from the global rank.
        device_id = None if gpu is None else torch.device("cuda", gpu)
        with _explain_taken_port():
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), device_id=device_id)
        logger.info("process group: %d processes, backend %s, launcher %s", env.world_size, backend, env.launcher)


def choose_gpu(env: RankEnv) -> int:
    """Number of this process's GPU: its local rank, or 0 where it sees one GPU only (`srun --gpus-per-task=1`).

    Raises:
        ParallelError: The process sees fewer GPUs than there are processes before it on its machine.
    """
    num_gpus = torch.cuda.device_count()
    if num_gpus == 1:
        return 0
    if env.local_rank >= num_gpus:
        raise ParallelError(
            f"local rank {env.local_rank} has no GPU: this machine shows {num_gpus}; "
            "start at most as many processes per machine as GPUs (GPUS_PER_NODE), or pass --use_cpu True"
        )
    return env.local_rank


@contextmanager
def _explain_taken_port() -> Iterator[None]:
    try:
        yield
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ParallelError(
            f"MASTER_PORT {os.environ['MASTER_PORT']} is taken on this machine by another program; unset it to have a "
            "free one chosen, or set another one (the same for all processes)"
        ) from error


def finish_distributed(code: int = 0) -> NoReturn:
    """End the process after a SUCCESSFUL run: wait for the others, take the group down, flush, exit.

    Never call it on the way out of an error: the traceback and the exit code must reach the launcher, and the other
    ranks do not come to the barrier.
    """
    if not dist.is_initialized():
        sys.exit(code)
    dist.barrier()
    dist.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: in the interpreter's teardown torch's gloo threads sometimes abort ("terminate called without an
    # active exception") although all work is done.
    os._exit(code)


@contextmanager
def own_folder_together(folder: Path, command: str) -> Iterator[None]:
    """`own_folder` by rank 0 for all ranks, which fail together if another process has it. Collective."""
    with ExitStack() as stack:
        refusals: list[InternVLError | OSError | None] = [None]
        if not dist.is_initialized() or dist.get_rank() == 0:
            try:
                stack.enter_context(own_folder(folder, command))
            except (InternVLError, OSError) as error:
                refusals = [error]
        if dist.is_initialized():
            dist.broadcast_object_list(refusals, src=0)
        if refusals[0] is not None:
            raise refusals[0]
        yield


def _use_deepspeed_without_compiler() -> None:
    """Give DeepSpeed a CPU accelerator without its shared-memory all-reduce.

    DeepSpeed compiles that op (a minute, and a C++ compiler) whenever it meets a CPU process group, but only
    tensor-parallel inference uses it. An accelerator may say that it has no builder for an op.
    """
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    class CpuWithoutSharedMemory(CPU_Accelerator):
        def create_op_builder(self, op_name: str) -> object | None:
            return None if op_name == "ShareMemCommBuilder" else super().create_op_builder(op_name)

    set_accelerator(CpuWithoutSharedMemory())


def find_free_port() -> int:
    """Return a TCP port that was free on this machine a moment ago."""
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]


def _detect_launcher(environ: Mapping[str, str]) -> Launcher:
    wanted = environ.get("LAUNCHER", "")
    if wanted:
        if wanted not in get_args(Launcher):
            raise ParallelError(f"LAUNCHER is {wanted!r}, expected one of {', '.join(get_args(Launcher))}")
        return cast(Launcher, wanted)
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return "pytorch"
    if "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:
        return "slurm"
    return "none"


def _read_int(
    environ: Mapping[str, str], name: str, launcher: str, *, fallback: str = "", default: int | None = None
) -> int:
    text = environ.get(name) or environ.get(fallback)
    if not text:
        if default is not None:
            return default
        start = "srun" if launcher == "slurm" else "torchrun"
        raise ParallelError(
            f"the launcher is {launcher} but {name} is not set; start through {start} (or shell/launch.sh), "
            "or set LAUNCHER=none for a single process"
        )
    try:
        return int(text)
    except ValueError:
        raise ParallelError(f"{name} is {text!r}, expected a whole number") from None


def _count_local_tasks(environ: Mapping[str, str], world_size: int) -> int:
    """Tasks of the slurm step on this machine; SLURM_STEP_TASKS_PER_NODE reads like `2(x3),1`: one entry per node."""
    layout = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if not layout:
        return world_size
    counts: list[int] = []
    for entry in layout.split(","):
        count, _, repeats = entry.partition("(x")
        counts += [int(count)] * int(repeats.rstrip(")") or 1)
    return counts[_read_int(environ, "SLURM_NODEID", "slurm", default=0)]


def _export(env: RankEnv, *, local_rank: int) -> None:
    """Write the torchrun names; accelerate and DeepSpeed take `local_rank` as the number of a GPU."""
    os.environ.update(
        LAUNCHER=env.launcher,  # whose own variables are read from now on
        RANK=str(env.rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(env.world_size),
        LOCAL_WORLD_SIZE=str(env.local_world_size),
    )
    if not os.environ.get("MASTER_ADDR"):
        os.environ["MASTER_ADDR"] = _find_master_address(env)
    if not os.environ.get("MASTER_PORT"):
        os.environ["MASTER_PORT"] = str(_choose_port(env))


def _find_master_address(env: RankEnv) -> str:
    if env.is_single_machine:
        return "127.0.0.1"
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if env.launcher != "slurm" or not nodes:
        raise ParallelError("MASTER_ADDR is not set and the run has several machines; export rank 0's host name")
    try:
        command = ["scontrol", "show", "hostnames", nodes]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise ParallelError(f"`{' '.join(command)}` failed ({error}); export MASTER_ADDR yourself") from error


def _choose_port(env: RankEnv) -> int:
    """A free port for a single process; several ranks, which cannot talk yet, derive one from the job id."""
    if env.world_size == 1:
        return find_free_port()
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job.isdigit():
        raise ParallelError("MASTER_PORT is not set; start through torchrun or shell/launch.sh, or export it")
    return 20000 + (int(job) * 100 + int(os.environ.get("SLURM_STEP_ID", "0"))) % 12000
