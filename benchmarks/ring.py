"""Ring attention on CPU processes: speed, balance and bytes of forward and backward of one attention layer.

    python benchmarks/ring.py [--tokens 8192 16384 32768 --ranks 2 --heads 8 --head_dim 64 --dtype float32]

Three questions, each with its own table:
 1. speed: R ranks with one thread each against torch's causal attention on one process with R threads, and against a
    plain ring (contiguous shards, neighbour to neighbour, blocks hidden by causality are skipped);
 2. balance: CPU seconds inside the kernel per rank, for R and 2R ranks. On a machine with one core per rank the largest
    decides the wall time, so their ratio is the gain over the plain ring there. Arithmetic gives (2N - 1) / N for N
    ranks: 1.50 for 2 ranks, 1.75 for 4, 2 for many;
 3. bytes: what each rank sent per step, counted where it is sent, against the formula; one document and 16 documents.

Rank processes are forks that compute alone; the best of --repeats counts. Nothing else should run on the machine.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from internvl.parallel.comm import Message, Messenger
from internvl.parallel.kernels import CpuFlash
from internvl.parallel.launch import find_free_port, finish_distributed, init_distributed, read_rank_env
from internvl.parallel.ring import RingWork, merge_partial, ring_attention, run_backward, run_forward
from internvl.parallel.ring_plan import build_ring_plan
from internvl.parallel.shards import shard_row


@dataclass
class TimedKernel:
    """The CPU kernel, with its CPU seconds."""

    seconds: float = 0.0
    kernel: CpuFlash = field(default_factory=CpuFlash)

    def forward(self, *tensors, **settings):
        """See `AttentionKernel`."""
        return self._time(self.kernel.forward, tensors, settings)

    def backward(self, *tensors, **settings):
        """See `AttentionKernel`."""
        return self._time(self.kernel.backward, tensors, settings)

    def _time(self, function, tensors, settings):
        start = time.thread_time()
        result = function(*tensors, **settings)
        self.seconds += time.thread_time() - start
        return result


class PlainRing(torch.autograd.Function):
    """The baseline: rank r holds the r-th of P equal pieces; keys, values and their gradients go round, block by block.

    Blocks of later ranks are hidden from the queries and skipped, so rank P - 1 works longest.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale, kernel):
        """Queries, keys and values of one contiguous piece."""
        rank, size = dist.get_rank(), dist.get_world_size()
        out, lse = kernel.forward(q, k, v, scale=scale, borders=(0, len(q)))
        out, block = out.float(), (k, v)
        for step in range(1, size):
            block = pass_on(block)
            if step <= rank:
                merge_partial(out, lse, *kernel.forward(q, *block, scale=scale, borders=None))
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.settings = scale, kernel
        return out

    @staticmethod
    def backward(ctx, grad_out):
        """The gradient accumulators go round with the blocks and come home after a whole turn."""
        q, k, v, out, lse = ctx.saved_tensors
        scale, kernel = ctx.settings
        rank, size = dist.get_rank(), dist.get_world_size()
        grads = kernel.backward(grad_out, q, k, v, out, lse, scale=scale, borders=(0, len(q)))
        dq, travelling = grads[0].float(), (k, v, grads[1].float(), grads[2].float())
        for step in range(1, size):
            travelling = pass_on(travelling)
            if step <= rank:
                grads = kernel.backward(grad_out, q, *travelling[:2], out, lse, scale=scale, borders=None)
                for total, grad in zip((dq, *travelling[2:]), grads, strict=True):
                    total += grad
        _, _, dk, dv = pass_on(travelling)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def pass_on(tensors):
    """Send to the next rank, receive from the one before."""
    rank, size = dist.get_rank(), dist.get_world_size()
    tensors = [tensor.contiguous() for tensor in tensors]
    arriving = [torch.empty_like(tensor) for tensor in tensors]
    Messenger(dist.group.WORLD).post(
        sends=[Message((rank + 1) % size, tensor) for tensor in tensors],
        receives=[Message((rank - 1) % size, tensor) for tensor in arriving],
    ).wait()
    return arriving


def make_row(args: argparse.Namespace, tokens: int) -> list[torch.Tensor]:
    """Queries, keys, values and the gradient of the output: (tokens, heads, head_dim)."""
    generator = torch.Generator().manual_seed(0)
    heads = (args.heads, args.kv_heads, args.kv_heads, args.heads)
    dtype = getattr(torch, args.dtype)
    return [torch.randn(tokens, n, args.head_dim, generator=generator).to(dtype) for n in heads]


def time_runs(attend, row, repeats: int) -> dict[str, float]:
    """Seconds of forward and backward on the clock and on all threads of this process, the best of each; checksum."""
    *inputs, grad_out = row
    inputs = [x.requires_grad_() for x in inputs]
    clock, cpu = [], []
    for _ in range(repeats):
        synchronise()
        start, cpu_start = time.perf_counter(), time.process_time()
        out = attend(*inputs)
        grads = torch.autograd.grad(out, inputs, grad_out)
        cpu.append(time.process_time() - cpu_start)
        synchronise()
        clock.append(time.perf_counter() - start)
    checksum = sum(float(x.detach().double().square().sum()) for x in (out, *grads))
    return {"seconds": min(clock), "cpu": min(cpu), "checksum": checksum}


def synchronise() -> None:
    """Wait for the other ranks, if there are any."""
    if dist.is_initialized():
        dist.barrier()


def run_sdpa(args, tokens: int) -> dict:
    """Torch's own causal attention on this process, in the faster of two memory layouts."""
    results = []
    for layout in ("tokens first", "heads first"):
        row = [x.transpose(0, 1).unsqueeze(0) for x in make_row(args, tokens)]
        if layout == "heads first":
            row = [x.contiguous() for x in row]
        attend = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=args.heads != args.kv_heads)
        results.append(time_runs(attend, row, args.repeats))
    best = {name: min(result[name] for result in results) for name in results[0]}
    return {**best, "cpu": best["cpu"] / torch.get_num_threads()}


def run_ring(args, tokens: int) -> dict:
    """Our ring over all ranks."""
    rank, size, kernel = dist.get_rank(), dist.get_world_size(), TimedKernel()
    row = [shard_row(x, rank=rank, size=size) for x in make_row(args, tokens)]
    attend = partial(ring_attention, cu_seqlens=[0, tokens], group=dist.group.WORLD, kernel=kernel)
    return gather_result(time_runs(attend, row, args.repeats), kernel.seconds / args.repeats)


def run_plain(args, tokens: int) -> dict:
    """The plain ring over all ranks."""
    rank, size, kernel = dist.get_rank(), dist.get_world_size(), TimedKernel()
    row = [x.chunk(size)[rank].contiguous() for x in make_row(args, tokens)]

    def attend(q, k, v):
        return PlainRing.apply(q, k, v, args.head_dim**-0.5, kernel)

    return gather_result(time_runs(attend, row, args.repeats), kernel.seconds / args.repeats)


def gather_result(result: dict[str, float], kernel_seconds: float) -> dict:
    """Results of all ranks: the time of the busiest, the sum of the checksums, kernel seconds one by one."""
    mine = torch.tensor([*result.values(), kernel_seconds], dtype=torch.float64)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    seconds, cpu, checksums, kernels = torch.stack(parts).T.tolist()
    return {"seconds": max(seconds), "cpu": max(cpu), "checksum": sum(checksums), "kernel_seconds": kernels}


def count_bytes(args, tokens: int, lengths: list[int]) -> dict:
    """Bytes that every rank sent, per exchange of a forward pass and in a backward pass."""
    rank, size = dist.get_rank(), dist.get_world_size()
    borders = [0, *accumulate(lengths)]
    q, k, v, grad_out = (shard_row(x, rank=rank, size=size, borders=borders) for x in make_row(args, tokens))
    plan = build_ring_plan(borders, num_tokens=len(q), rank=rank, size=size)
    work = RingWork(plan, 1.0, CpuFlash())
    forward, backward = Messenger(dist.group.WORLD), Messenger(dist.group.WORLD)
    out, lse = run_forward(q, k, v, work, forward)
    run_backward(grad_out, q, k, v, out, lse, work, backward)
    mine = torch.tensor([*forward.sent_bytes, sum(backward.sent_bytes)])
    parts = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(parts, mine)
    return {"sent": torch.stack(parts).tolist()}


def run_rank(rank: int, size: int, port: int, threads: int, task, output: str) -> None:
    """One process of a world; rank 0 writes the result."""
    torch.set_num_threads(threads)
    if size > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
        init_distributed(read_rank_env(), device="cpu", timeout_s=600)
    result = task()
    if rank == 0:
        Path(output).write_text(json.dumps(result))
    finish_distributed()


def run_world(task, *, size: int, threads: int = 1) -> dict:
    """Run `task` on every rank of a new world and return rank 0's result."""
    sys.stderr.write(f"  {size} x {threads} thread(s): {task.func.__name__} {task.args[1]} tokens ...\n")
    context = multiprocessing.get_context("fork")
    with tempfile.NamedTemporaryFile("r") as output:
        port = find_free_port()
        ranks = [
            context.Process(target=run_rank, args=(rank, size, port, threads, task, output.name))
            for rank in range(size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(f"a rank failed: exit codes {[process.exitcode for process in ranks]}")
        return json.load(output)


def report_speed(args) -> None:
    """Table 1."""
    print(f"## Speed: forward + backward, {args.heads} heads x {args.head_dim}, {args.dtype}, one document")
    print(f"sdpa: 1 process x {args.ranks} threads; ring and plain ring: {args.ranks} ranks x 1 thread\n")
    print("clock: seconds from start to end. CPU: seconds that the busiest core worked, which other programs on the")
    print("machine change less (for sdpa: of all threads, divided by their number).\n")
    print("| tokens | measured by | sdpa | ring | plain ring | speed of ring / sdpa | of ring / plain ring |")
    print("|---|---|---|---|---|---|---|")
    for tokens in args.tokens:
        sdpa = run_world(partial(run_sdpa, args, tokens), size=1, threads=args.ranks)
        ring = run_world(partial(run_ring, args, tokens), size=args.ranks)
        plain = run_world(partial(run_plain, args, tokens), size=args.ranks)
        for other in (ring, plain):
            assert abs(other["checksum"] / sdpa["checksum"] - 1) < 1e-3, (sdpa, other)
        for name, key in (("clock", "seconds"), ("CPU", "cpu")):
            seconds = [result[key] for result in (sdpa, ring, plain)]
            ratios = f"{seconds[0] / seconds[1]:.1%} | {seconds[2] / seconds[1]:.2f}x"
            print(f"| {tokens} | {name} | {' | '.join(f'{s:.2f}' for s in seconds)} | {ratios} |", flush=True)


def report_balance(args) -> None:
    """Table 2."""
    tokens = min(args.tokens)
    print(f"\n## Balance: CPU seconds in the kernel per rank, {tokens} tokens, one document\n")
    print("| ranks | ring, per rank | plain ring, per rank | longest plain / longest ring | by arithmetic |")
    print("|---|---|---|---|---|")
    for size in (args.ranks, 2 * args.ranks):
        ring, plain = (
            run_world(partial(run, args, tokens), size=size)["kernel_seconds"] for run in (run_ring, run_plain)
        )
        columns = [" ".join(f"{seconds:.2f}" for seconds in result) for result in (ring, plain)]
        ratio = f"{max(plain) / max(ring):.2f}x | {(2 * size - 1) / size:.2f}x"
        print(f"| {size} | {' | '.join(columns)} | {ratio} |", flush=True)


def report_bytes(args) -> None:
    """Table 3."""
    tokens = min(args.tokens)
    torch.manual_seed(0)
    cuts = (torch.rand(16) + 0.3).cumsum(0)
    borders = [0, *(cuts / cuts[-1] * tokens).round().int().tolist()]
    packed = [b - a for a, b in pairwise(borders)]
    row_bytes = 2 * args.kv_heads * args.head_dim * getattr(torch, args.dtype).itemsize
    print(f"\n## Bytes sent, {tokens} tokens; K and V of one token are {row_bytes} bytes")
    print("formula: one document, chunk c = tokens / 2P: rank r lends c tokens to each later rank, 2c to each earlier;")
    print("backward sends them again and, from the borrower, as many gradients. All K/V: 2c to every other rank.\n")
    print("| row | ranks | rank | forward KiB per step, counted | planned | by formula | backward KiB | of all K/V |")
    print("|---|---|---|---|---|---|---|---|")
    for name, lengths in (("1 document", [tokens]), ("16 documents", packed)):
        for size in (args.ranks, 2 * args.ranks):
            sent = run_world(partial(count_bytes, args, tokens, lengths), size=size)["sent"]
            for rank in range(size):
                print_bytes(name, lengths, rank, size, row_bytes, sent[rank])
            everything = (size - 1) * tokens * row_bytes
            share = sum(sum(steps[:-1]) for steps in sent) / everything
            print(f"| {name} | {size} | all | | | | | {share:.1%} |", flush=True)


def print_bytes(name: str, lengths: list[int], rank: int, size: int, row_bytes: int, sent: list[int]) -> None:
    """One rank's line; what was counted must be what the plan says."""
    chunk = sum(lengths) // (2 * size)
    plan = build_ring_plan([0, *accumulate(lengths)], num_tokens=2 * chunk, rank=rank, size=size)
    planned = [rows * row_bytes for rows in plan.count_sent_rows()]
    later = [(rank + step) % size > rank for step in range(1, size)]
    formula = [0, *((chunk if is_later else 2 * chunk) * row_bytes for is_later in later)] if len(lengths) == 1 else []
    *forward, backward = sent
    assert forward == planned
    assert not formula or formula == planned
    assert backward == sum(planned) + sum(plan.count_received_rows()) * row_bytes
    share = sum(forward) / ((size - 1) * 2 * chunk * row_bytes)
    columns = [" ".join(f"{n / 1024:.0f}" for n in steps) or "-" for steps in (forward, planned, formula)]
    print(f"| {name} | {size} | {rank} | {' | '.join(columns)} | {backward / 1024:.0f} | {share:.1%} |")


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768], help="lengths of the row")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of the ring, and threads of torch's attention")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv_heads", type=int, help="as many as --heads if not given")
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=2, help="the best counts")
    parser.add_argument(
        "--report", nargs="+", choices=["speed", "balance", "bytes"], default=["speed", "balance", "bytes"]
    )
    args = parser.parse_args()
    args.kv_heads = args.kv_heads or args.heads
    if any(tokens % (4 * args.ranks) for tokens in args.tokens):
        parser.error(f"--tokens must be multiples of {4 * args.ranks}, so that no rank holds padding")
    reports = {"speed": report_speed, "balance": report_balance, "bytes": report_bytes}
    for name in args.report:
        reports[name](args)


if __name__ == "__main__":
    main()
