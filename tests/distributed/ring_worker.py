"""Rings of several sizes, each in a world of its own; one rank of each writes the errors to argv[1]/SIZE.json.

    python ring_worker.py FOLDER 2 3 4 8

The ranks are forks of this process, which imports torch once for all of them and never computes anything itself.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import types
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
import torch._dynamo  # the first checkpoint of every process would import it, for a second
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from internvl.parallel.kernels import CudaFlash, FlashAttn
from internvl.parallel.launch import find_free_port, finish_distributed, init_distributed, read_rank_env
from internvl.parallel.recompute import keep_ring_outputs
from internvl.parallel.ring import ring_attention
from internvl.parallel.shards import shard_row, unshard_row
from tests.parallel.packed_attention import (
    attend_with_gradients,
    double_of_aten_backward,
    double_of_aten_forward,
    double_of_flash_attn_2_6,
    double_of_flash_attn_2_8,
    make_row,
    reference_attention,
)

CUDA_DOUBLE = CudaFlash(double_of_aten_forward, double_of_aten_backward)


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]  # of the documents
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 32
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    kernel: object = None
    scale: float | None = None
    extra_padding: int = 0  # tokens after the last document, before the row is padded
    checkpoint: dict | None = None


def build_cases(size: int) -> dict[str, Case]:
    """Rows of documents that lie in every way across the 2 * size chunks."""
    chunks = 2 * size
    uneven = tuple(1 + (7 * i * i + 3 * i) % 23 for i in range(40))
    every = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    low = (torch.bfloat16, torch.float16)
    flash_attn = {"2.6": FlashAttn(double_of_flash_attn_2_6()), "2.8": FlashAttn(double_of_flash_attn_2_8())}
    cases = {
        "one document": Case((400 // chunks * chunks,), dtypes=every),
        "40 documents": Case(uneven, dtypes=every),
        "single tokens between": Case((1, 1, 5 * chunks, 1, 3, 1, 1, 2 * chunks + 1, 1)),
        "single tokens only": Case((1,) * 40),
        "borders on chunk borders": Case((8, 16, 8, *(8,) * (chunks - 4))),
        "long documents that end on chunk borders": Case((8 * (chunks - 1), 8)),
        "shorter than the padding": Case((1,)),
        "odd length": Case((3 * chunks, 2 * chunks + 1)),
        "empty documents": Case((0, 9, 0, 0, 5 * chunks, 0, 13, 0)),
        "padding over whole chunks": Case((5, 2 * chunks), extra_padding=6 * chunks),
        "no documents": Case((0,), extra_padding=3 * chunks),
        "one KV head": Case(uneven[:7], heads=(4, 1), dtypes=every[:2]),
        "as many KV heads": Case(uneven[:7], heads=(3, 3)),
        "head dim 64": Case(uneven[:9], head_dim=64),
        "head dim 128": Case(uneven[:9], head_dim=128, heads=(2, 1)),
        "head dim 256": Case(uneven[:5], head_dim=256, heads=(2, 1)),
        "large scores": Case((4 * chunks, 31), scale=60.0),
        "gradient checkpointing": Case(uneven[:9], checkpoint={}),
        "outputs kept": Case(uneven[:9], checkpoint={"context_fn": keep_ring_outputs}),
        "double of torch's CUDA kernel": Case(uneven[:12], kernel=CUDA_DOUBLE, dtypes=low),
        **{f"double of flash-attn {v}": Case(uneven[:12], kernel=k, dtypes=low) for v, k in flash_attn.items()},
        "double of ring-flash-attn": Case((50,), kernel="ring_flash_attn", dtypes=low),
    }
    few = ("one document", "40 documents", "single tokens between", "shorter than the padding", "empty documents")
    return cases if size < 4 else {name: cases[name] for name in few}


def measure(case: Case, dtype: torch.dtype, group: dist.ProcessGroup) -> dict[str, float]:
    """Errors of one case: of the ring, and of one process with the same kernel. All gather, the first rank compares."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    borders = torch.tensor([0, *accumulate(case.lengths)], dtype=torch.int32)
    num_real = int(borders[-1])
    num_tokens = num_real + case.extra_padding
    row = make_row(num_tokens, case.heads, case.head_dim, seed=num_tokens)
    scale = case.head_dim**-0.5 if case.scale is None else case.scale
    settings = {"cu_seqlens": borders, "softmax_scale": case.scale, "kernel": case.kernel}

    attend = partial(ring_attention, group=group, **settings)
    if case.checkpoint is not None:
        attend = partial(checkpoint, attend, use_reentrant=False, **case.checkpoint)
    shards = [shard_row(x, rank=rank, size=size, borders=borders.tolist()) for x in row]
    results = [gather(x, group, borders.tolist()) for x in attend_with_gradients(attend, shards, dtype)]
    if rank > 0:
        return {}
    padding = max((float(x[num_real:].abs().max()) for x in results if len(x) > num_real), default=0.0)

    real = [x[:num_real] for x in row]
    results = [x[:num_real] for x in results]
    if num_real == 0:
        return {"error": 0.0, "alone": 0.0, "mean_ratio": 0.0, "padding": padding}
    expected = attend_with_gradients(
        lambda q, k, v: reference_attention(q, k, v, list(case.lengths), scale), real, torch.float64
    )
    settings["kernel"] = None  # the doubles compute with the CPU's kernel
    alone = attend_with_gradients(
        partial(ring_attention, group=None, **settings), [shard_row(x, rank=0, size=1) for x in real], dtype
    )
    alone = [x[:num_real] for x in alone]
    return {
        "error": error(results, expected),
        "alone": error(alone, expected),
        "mean_ratio": compare_errors(results, alone, expected),
        "padding": padding,
    }


def error(results: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest difference, relative to the largest number (the inputs are of size 1; some gradients are 0)."""
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(results, expected, strict=True))


def compare_errors(results: list[torch.Tensor], alone: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Root mean square error of the results over that of one process, of the tensor where it is largest."""
    errors = [((a - c).norm(), (b - c).norm()) for a, b, c in zip(results, alone, expected, strict=True)]
    return max(float(error / of_one) if of_one > 0 else float(error > 0) for error, of_one in errors)


def gather(local: torch.Tensor, group: dist.ProcessGroup, borders: list[int]) -> torch.Tensor:
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local.contiguous(), group=group)
    return unshard_row(parts, borders=borders)


def install_double_of_ring_flash_attn() -> None:
    """A module with the library's function: (batch, tokens, heads, head_dim) of a row that is one document."""

    def zigzag_ring_flash_attn_func(
        q,
        k,
        v,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        group=None,
    ):
        assert causal
        assert dropout_p == 0.0
        assert len(q) == 1
        borders = [0, q.shape[1] * dist.get_world_size(group)]
        out = ring_attention(q[0], k[0], v[0], cu_seqlens=borders, group=group, softmax_scale=softmax_scale)
        return out[None]

    sys.modules["ring_flash_attn"] = types.ModuleType("ring_flash_attn")
    sys.modules["ring_flash_attn"].zigzag_ring_flash_attn_func = zigzag_ring_flash_attn_func


def run_rank(rank: int, size: int, port: int, folder: Path) -> None:
    """The ring is ranks 1 to size - 1, so that a rank's number in the group is not its number in the world."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    init_distributed(read_rank_env(), device="cpu", timeout_s=120)
    install_double_of_ring_flash_attn()
    group = dist.new_group(list(range(1, size)))
    if rank > 0:
        results = {
            f"{name}, {str(dtype).removeprefix('torch.')}": measure(case, dtype, group)
            for name, case in build_cases(size - 1).items()
            for dtype in case.dtypes
        }
        if rank == 1:
            (folder / f"{size - 1}.json").write_text(json.dumps(results))
    finish_distributed()


def run_world(ring_size: int, folder: Path) -> bool:
    """Whether all ranks ended well; the first one that did not ends the others."""
    context = multiprocessing.get_context("fork")
    port, size = find_free_port(), ring_size + 1
    ranks = [context.Process(target=run_rank, args=(rank, size, port, folder)) for rank in range(size)]
    for process in ranks:
        process.start()
    waiting = {process.sentinel: process for process in ranks}
    while waiting:
        for sentinel in multiprocessing.connection.wait(waiting):
            process = waiting.pop(sentinel)
            process.join()
            if process.exitcode:
                for other in waiting.values():
                    other.kill()
    return not any(process.exitcode for process in ranks)


if __name__ == "__main__":
    sys.exit(not all(run_world(int(size), Path(sys.argv[1])) for size in sys.argv[2:]))
