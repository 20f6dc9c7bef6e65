"""Ring attention on CUDA devices: `pytest -m gpu`. One rank always, two over nccl where there are two devices."""

import os
from functools import partial
from itertools import accumulate

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from internvl.parallel.kernels import select_kernel
from internvl.parallel.launch import find_free_port, init_distributed, read_rank_env
from internvl.parallel.ring import ring_attention
from internvl.parallel.shards import shard_row, unshard_row
from tests.parallel.packed_attention import attend_with_gradients, make_row, reference_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROWS = {
    "one document": [700],
    "40 documents": [1 + (7 * i * i + 3 * i) % 53 for i in range(40)],
    "single tokens between": [1, 1, 300, 1, 1, 77, 1],
}
HEADS = {"as many": (4, 4), "grouped": (4, 2), "single": (4, 1)}


def largest_error(row, lengths, *, dtype, kernel, group) -> float:
    """Of output, dq, dk and dv, relative to the largest number."""
    rank, size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    borders = [0, *accumulate(lengths)]
    shards = [shard_row(x, rank=rank, size=size, borders=borders).cuda() for x in row]
    attend = partial(ring_attention, cu_seqlens=torch.tensor(borders), group=group, kernel=kernel)
    results = attend_with_gradients(attend, shards, dtype)
    if group is None:
        results = [x[: sum(lengths)].cpu() for x in results]
    else:
        results = [gather(x, size, borders)[: sum(lengths)].cpu() for x in results]
    scale = row[0].shape[-1] ** -0.5
    expected = attend_with_gradients(lambda q, k, v: reference_attention(q, k, v, lengths, scale), row, torch.float64)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(results, expected, strict=True))


def gather(local, size, borders):
    parts = [torch.empty_like(local) for _ in range(size)]
    dist.all_gather(parts, local.contiguous())
    return unshard_row(parts, borders=borders)


@pytest.mark.parametrize("kernel", ["cuda_flash", "flash_attn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", ROWS)
def test_one_device_equals_float64(kernel, dtype, heads, name):
    if kernel == "flash_attn":
        pytest.importorskip("flash_attn")
    row = make_row(sum(ROWS[name]), HEADS[heads], 64, seed=3)
    assert largest_error(row, ROWS[name], dtype=dtype, kernel=kernel, group=None) < 3e-2


@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
def test_a_dense_block_and_a_diagonal_make_causal_attention(head_dim):
    """The kernels of a ring of two, without a second device."""
    kernel = select_kernel(None, torch.device("cuda"), torch.bfloat16)
    q, k, v, grad_out = (x.bfloat16().cuda() for x in make_row(256, (4, 2), head_dim, seed=4))
    whole, whole_lse = kernel.forward(q, k, v, scale=0.1, borders=(0, 256))
    _, block_lse = kernel.forward(q[128:], k[:128], v[:128], scale=0.1, borders=None)
    _, diagonal_lse = kernel.forward(q[128:], k[128:], v[128:], scale=0.1, borders=(0, 128))
    torch.testing.assert_close(torch.logaddexp(block_lse, diagonal_lse), whole_lse[:, 128:], atol=1e-3, rtol=1e-3)
    late = (grad_out[128:], q[128:])
    of_late = (whole[128:], whole_lse[:, 128:])
    dq, dk, dv = kernel.backward(*late, k[:128], v[:128], *of_late, scale=0.1, borders=None)
    more_dq, _, _ = kernel.backward(*late, k[128:], v[128:], *of_late, scale=0.1, borders=(0, 128))
    early = (grad_out[:128], q[:128], k[:128], v[:128], whole[:128], whole_lse[:, :128])
    _, more_dk, more_dv = kernel.backward(*early, scale=0.1, borders=(0, 128))
    found = (
        torch.cat([kernel.backward(*early, scale=0.1, borders=(0, 128))[0], dq + more_dq]),
        dk + more_dk,
        dv + more_dv,
    )
    expected = kernel.backward(grad_out, q, k, v, whole, whole_lse, scale=0.1, borders=(0, 256))
    for a, b, rows in zip(found, expected, (slice(None), slice(128), slice(128)), strict=True):
        torch.testing.assert_close(a, b[rows], atol=5e-2, rtol=5e-2)


def run_rank(rank: int, size: int, port: int) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}
    init_distributed(read_rank_env(), device="cuda")
    dist.barrier()
    for lengths in ROWS.values():
        for heads in HEADS.values():
            row = make_row(sum(lengths), heads, 64, seed=5)
            error = largest_error(row, lengths, dtype=torch.bfloat16, kernel=None, group=dist.group.WORLD)
            assert error < 3e-2, (lengths, heads, error)
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_equal_float64():
    torch.multiprocessing.spawn(run_rank, args=(2, find_free_port()), nprocs=2)
