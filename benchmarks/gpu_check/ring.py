"""Part: a row shared by all cards of this machine: attention against float64, and a training pass of InternVL2-2B.

Processes are started by torchrun, one per card (NCCL); on the CPU two (gloo).
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu_check.chat_model import build_model, make_row
from benchmarks.gpu_check.kernels import HEADS, LIMITS, ROWS, attend_in_float64, largest_error
from benchmarks.gpu_check.part import CheckFailed, Job, Row, Skipped, measure
from internvl.parallel.grid import build_grid
from internvl.parallel.launch import finish_distributed, init_distributed, read_rank_env
from internvl.parallel.ring import ring_attention
from internvl.parallel.shards import shard_row, unshard_row
from internvl.parallel.shared_row import SHARED_ATTENTION, SharedRow, register_shared_attention
from internvl.parallel.vision import split_tiles
from tests.parallel.packed_attention import attend_with_gradients
from tests.parallel.packed_attention import make_row as make_attention_row

TOKENS_PER_RANK = (32768, 64)  # on a card, on the CPU


def run(job: Job) -> Iterator[Row]:
    """Rows of the first rank."""
    size = 2 if job.is_tiny else torch.cuda.device_count()
    if size == 1:
        raise Skipped("one card; a ring needs two or more")
    with tempfile.NamedTemporaryFile("r") as file:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
        done = subprocess.run([*launcher, "-m", __spec__.name, file.name], check=False)
        rows = [json.loads(line) for line in file]
    yield from rows
    if done.returncode:
        raise CheckFailed(f"a rank ended with code {done.returncode}; its error stands above")
    if wrong := [row["row"] for row in rows if "limit" in row and not row["largest error"] <= row["limit"]]:
        raise CheckFailed(f"beyond their limit: {', '.join(wrong)}")


def main(path: str) -> None:
    """One rank."""
    env = read_rank_env()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    init_distributed(env, device=kind)
    device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
    with Path(path).open("a") as file:
        for row in work(Job(device, time.monotonic())):
            if env.is_main:
                file.write(json.dumps(row) + "\n")
                file.flush()
    finish_distributed()


def work(job: Job) -> Iterator[Row]:
    """What every rank does."""
    name = f"{dist.get_world_size()} ranks, {dist.get_backend()}"
    for row, lengths in ROWS.items():
        error, limit = compare_attention(job, lengths), LIMITS[torch.bfloat16]
        yield {"ranks": name, "row": f"attention, {row}", "largest error": error, "limit": limit}
    yield {"ranks": name, **train_shared_row(job)}


def compare_attention(job: Job, lengths: list[int]) -> float:
    """Largest error of output, dq, dk, dv, of the whole row."""
    rank, size = dist.get_rank(), dist.get_world_size()
    borders = [0, *accumulate(lengths)]
    heads, kv_heads, head_dim = HEADS["InternVL2-1B"]
    row = [x.to(job.device) for x in make_attention_row(sum(lengths), (heads, kv_heads), head_dim, seed=3)]
    shards = [shard_row(x, rank=rank, size=size, borders=borders) for x in row]
    attend = partial(ring_attention, cu_seqlens=torch.tensor(borders), group=dist.group.WORLD)
    found = [gather(x, borders) for x in attend_with_gradients(attend, shards, torch.bfloat16)]
    reference = partial(attend_in_float64, lengths=lengths, scale=head_dim**-0.5)
    return largest_error(found, attend_with_gradients(reference, row, torch.float64))


def gather(local: Tensor, borders: list[int]) -> Tensor:
    """The whole row from all ranks."""
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return unshard_row(parts, borders=borders)


def train_shared_row(job: Job) -> Row:
    """Forward and backward of the chat model on one row that all ranks share."""
    size = dist.get_world_size()
    grid = build_grid(chunk_num=size)
    register_shared_attention(grid)
    model = build_model(job).train()
    model.config.llm_config._attn_implementation = SHARED_ATTENTION
    model.activation_checkpointing_enable()
    model.vit_batch_size = 16
    row = make_row(model.config, TOKENS_PER_RANK[job.is_tiny] * size, job.device)
    own = split_tiles(len(row.pixel_values), size)[grid.group_rank]

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(
            input_ids=row.input_ids,
            labels=row.labels,
            pixel_values=row.pixel_values[own.start : own.stop],
            cu_seqlens=row.cu_seqlens,
            rope_pos_id_version="v2pe_fix",
            rope_pos_id_stride=1,
            row_sharing=SharedRow(grid),
            use_cache=False,
        ).loss.backward()

    step()
    measured = measure(step, job.device)
    peak = None if measured.peak_bytes is None else measured.peak_bytes / 2**30
    tokens = row.num_tokens
    return {"row": "training", "tokens": tokens, "tokens/s": tokens / measured.seconds, "peak GiB": peak}


if __name__ == "__main__":
    main(sys.argv[1])
