"""Ulysses and hybrid attention on every rank of a world; rank 0 writes the errors of all cases to argv[1] as json."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from internvl.parallel.grid import Grid, build_grid
from internvl.parallel.launch import finish_distributed, init_distributed, read_rank_env
from internvl.parallel.ring import ring_attention
from internvl.parallel.ulysses import hybrid_attention, ulysses_attention

HEAD_DIM = 32
ROWS = {
    "one document": [60],
    "packed": [1, 13, 1, 1, 24, 9, 1, 16],
    "padded at its end": [5, 1, 2],
}
MEASURED = ("error", "mean_error", "mean_error_alone", "padding")
HEADS = {"as many": (12, 12), "grouped": (12, 4), "two": (12, 2), "single": (12, 1)}


def make_row(lengths, heads, *, seed: int) -> list[torch.Tensor]:
    """Queries, keys, values and the gradient of the output, float64."""
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    return [
        torch.randn(sum(lengths), n, HEAD_DIM, generator=generator, dtype=torch.float64)
        for n in (num_heads, num_kv_heads, num_kv_heads, num_heads)
    ]


def dense_attention(q, k, v, lengths) -> torch.Tensor:
    """Softmax over every document on its own."""
    group = q.shape[1] // k.shape[1]
    outs = []
    pieces = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    for q_doc, k_doc, v_doc in pieces:
        k_doc, v_doc = k_doc.repeat_interleave(group, 1), v_doc.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q_doc, k_doc) * HEAD_DIM**-0.5
        hidden = torch.ones(len(q_doc), len(q_doc)).triu(1).bool()
        outs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v_doc))
    return torch.cat(outs)


def run(attend, tensors, dtype) -> list[torch.Tensor]:
    """Output and gradients, in float64."""
    q, k, v = (x.to(dtype).requires_grad_() for x in tensors[:3])
    out = attend(q, k, v)
    grads = torch.autograd.grad(out, (q, k, v), tensors[3].to(dtype))
    return [x.detach().double() for x in (out, *grads)]


def largest_error(found, expected) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def mean_error(found, expected) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def gather(grid: Grid, local: torch.Tensor, borders: list[int]) -> torch.Tensor:
    """The row with its padding."""
    parts = [torch.empty_like(local) for _ in range(grid.group_size)]
    dist.all_gather(parts, local.contiguous(), group=grid.group)
    return grid.unshard(parts, borders=borders)


def measure(grid: Grid, lengths, heads, dtype, function: str) -> dict[str, float]:
    """Errors of a group's row. All of its ranks gather it, the first one compares."""
    tensors = make_row(lengths, heads, seed=grid.data_rank)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()

    def attend(q, k, v):
        if function == "ulysses":
            return ulysses_attention(q, k, v, cu_seqlens=cu_seqlens, group=grid.group)
        return hybrid_attention(q, k, v, cu_seqlens=cu_seqlens, grid=grid)

    # The padding holds something, which must not be seen, and must not get a gradient.
    borders = cu_seqlens.tolist()
    shards = [grid.shard(x, pad_value=3.0, borders=borders) for x in tensors]
    found = [gather(grid, x, borders) for x in run(attend, shards, dtype)]
    if grid.group_rank > 0:
        return dict.fromkeys(MEASURED, 0.0)
    length = sum(lengths)
    expected = run(lambda q, k, v: dense_attention(q, k, v, lengths), tensors, torch.float64)
    alone = run(lambda q, k, v: ring_attention(q, k, v, cu_seqlens=cu_seqlens, group=None), tensors, dtype)
    numbers = (
        largest_error([x[:length] for x in found], expected),
        mean_error([x[:length] for x in found], expected),
        mean_error(alone, expected),
        max([float(x[length:].abs().max()) for x in found if len(x) > length], default=0.0),
    )
    return dict(zip(MEASURED, numbers, strict=True))


def worst_of_all_ranks(numbers: dict[str, float]) -> dict[str, float]:
    values = torch.tensor(list(numbers.values()), dtype=torch.float64).nan_to_num(torch.inf)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return dict(zip(numbers, values.tolist(), strict=True))


def check_groups(grid: Grid) -> None:
    """The process groups are those of the arithmetic, in the same order."""
    for group, groups in (
        (grid.group, grid.shape.row_groups()),
        (grid.ring_group, grid.shape.ring_groups()),
        (grid.ulysses_group, grid.shape.ulysses_groups()),
    ):
        (expected,) = [ranks for ranks in groups if grid.rank in ranks]
        found = [grid.rank] if group is None else dist.get_process_group_ranks(group)
        if found != expected:
            raise AssertionError(f"rank {grid.rank} has group {found}, expected {expected}")


def main(output: Path, sizes: list[tuple[int, int]]) -> None:
    init_distributed(read_rank_env(), device="cpu", timeout_s=60)
    results = {}
    for chunk_num, degree in sizes:
        grid = build_grid(chunk_num=chunk_num, ulysses_degree=degree, num_heads=12)
        check_groups(grid)
        function = "ulysses" if chunk_num == degree else "hybrid"
        for row, lengths in ROWS.items():
            for name, heads in HEADS.items():
                for dtype in (torch.float32, torch.bfloat16) if row == "packed" else (torch.float32,):
                    case = f"{chunk_num}/{degree} {row}, {name}, {str(dtype).removeprefix('torch.')}"
                    results[case] = worst_of_all_ranks(measure(grid, lengths, heads, dtype, function))
    if dist.get_rank() == 0:
        output.write_text(json.dumps(results))
    finish_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
