"""Balance of attention over the ranks that share a packed row: zigzag chunks against internvl/parallel/deal.py.

    python benchmarks/balance.py [--rows 1000 --ranks 2 4 8 16 --tokens_per_rank 32768 --bandwidth 400]
    python benchmarks/balance.py --clock [--tokens 16384 32768 --ranks 2 --heads 2 --kv_heads 1 --head_dim 64]

Simulated, without tensors, for random packings of several mixes of lengths:

    work    pairs of tokens of the busiest rank, divided by the mean over ranks
    bytes   keys and values that travel, of all rows together, divided by those of zigzag
    time    forward and backward pass of the ring, divided by the ideal: all pairs / ranks, at the kernel's rate.
            Nothing is added to the ideal, so what no order of messages could hide counts as lost, too
    held    K/V of others that a rank holds at a time, in shards
    calls   of the kernel, in the forward pass of a layer and rank

How time is simulated: a pair costs 4 FLOPs per query head and dimension forward, and 2.5 times that backward. The
messages of a step start when both sides have posted them and all their earlier ones are done (as on a NCCL stream). A
rank sends one message at a time and receives one at a time; each takes latency + bytes / bandwidth. A rank posts before
it computes, and waits when it needs what comes. Backward, K and V travel again, and the gradients of a step leave when
it is computed; they are waited for after the next step. Zigzag is simulated with the ring that suits it: the diagonal,
then one rank of the ring per step, sent one step ahead. Defaults are an H100's: 400 TFLOP/s in attention, 400 GB/s and
20 us between GPUs of a node (about 50 GB/s between nodes), and InternVL2-2B's 16 query and 8 K/V heads of 128.

`--clock` runs both rings on CPU processes of one thread each, in turns, forward and backward, on rows of the mixes and
on one document. The best of `--repeats` counts. CPU seconds are those of the busiest rank.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from internvl.parallel.comm import Messenger
from internvl.parallel.deal import Runs, Span, deal_row
from internvl.parallel.kernels import CpuFlash
from internvl.parallel.launch import find_free_port, finish_distributed, init_distributed, read_rank_env
from internvl.parallel.ring import RingWork, run_backward, run_forward
from internvl.parallel.ring_plan import (
    Piece,
    RingPlan,
    Timetable,
    list_needed,
    plan_all_ranks,
    plan_timetables,
)

MIX = Path(__file__).with_name("long_vqa_lengths.json")
BACKWARD = 2.5  # FLOPs of the backward pass over those of the forward pass


# ------------------------------------------------------------------------------------------------------------ lengths


def draw_log_uniform(rng: np.random.Generator, low: float, high: float) -> int:
    """A length between two others."""
    return int(np.exp(rng.uniform(np.log(low), np.log(high))))


def draw_v2pe_data(rng: np.random.Generator, length: int) -> Iterator[int]:
    """The mixture of long_vqa_lengths.json: 600 to 32,000 tokens."""
    sources = json.loads(MIX.read_text())["sources"]
    shares = [source["share"] for source in sources]
    while True:
        yield draw_log_uniform(rng, *sources[rng.choice(len(sources), p=shares)]["tokens"])


def draw_long_vqa(rng: np.random.Generator, length: int) -> Iterator[int]:
    """Long-VQA as it is built for long rows: 2,000 tokens to the whole row."""
    while True:
        yield draw_log_uniform(rng, 2000, length)


def draw_few(rng: np.random.Generator, length: int) -> Iterator[int]:
    """Two or three documents."""
    yield from np.diff([0, *np.sort(rng.integers(1, length, rng.integers(1, 3))), length]).tolist()


def draw_adversarial(rng: np.random.Generator, length: int) -> Iterator[int]:
    """One long document among single tokens, all lengths from 1, equal lengths near a share, doubling lengths."""
    kind = rng.integers(4)
    if kind == 0:
        yield from [1] * int(rng.integers(1, 300))
        yield int(rng.uniform(0.1, 0.9) * length)
    elif kind == 3:
        yield from (2**power for power in range(int(np.log2(length))))
    equal = int(rng.uniform(0.05, 0.6) * length)
    while True:
        yield equal if kind == 2 else draw_log_uniform(rng, 1, length)


MIXES: dict[str, Callable[[np.random.Generator, int], Iterator[int]]] = {
    "V2PE-Data": draw_v2pe_data,
    "Long-VQA": draw_long_vqa,
    "two or three": draw_few,
    "adversarial": draw_adversarial,
}


def draw_row(rng: np.random.Generator, mix: str, length: int) -> tuple[int, ...]:
    """Borders of documents that fill a row; the last one is cut off."""
    borders = [0]
    for tokens in MIXES[mix](rng, length):
        borders.append(min(borders[-1] + tokens, length))
        if borders[-1] == length:
            return tuple(borders)
    raise AssertionError("lengths end before the row does")


# ------------------------------------------------------------------------------------------------------------- zigzag


def deal_zigzag(*, num_tokens: int, size: int) -> tuple[Runs, ...]:
    """Rank r holds chunks r and 2P - 1 - r of 2P, whatever the documents are."""
    chunk = num_tokens // 2
    chunks = [Span(number * chunk, (number + 1) * chunk) for number in range(2 * size)]
    return tuple((chunks[rank], chunks[-1 - rank]) for rank in range(size))


def plan_by_distance(borders: Sequence[int], shares: Sequence[Runs]) -> tuple[RingPlan, ...]:
    """The plain order: the diagonal, then everything of rank r - 1, everything of rank r - 2, ..."""
    size = len(shares)
    timetables = []
    for rank, needed in enumerate(list_needed(borders, shares)):
        steps: list[list[Piece]] = [[] for _ in range(size)]
        for piece in needed:
            steps[(rank - piece.source) % size].append(piece)
        timetables.append(Timetable(0, tuple(map(tuple, steps))))
    return plan_timetables(borders, shares, timetables, lead=1)


# --------------------------------------------------------------------------------------------------------- simulation


@dataclass(frozen=True)
class Machine:
    """Seconds of what ranks do."""

    pair: float  # of attention, forward
    row: float  # K and V of a token, sent
    latency: float  # of a message


class Clock:
    """When each rank computes and sends, in seconds; see the top of the file."""

    def __init__(self, plans: Sequence[RingPlan], machine: Machine) -> None:
        self.plans, self.machine = plans, machine
        self.pairs = [plan.count_pairs() for plan in plans]
        self.now = np.zeros(len(plans))  # when a rank's kernel is free
        self.sent = np.zeros(len(plans))  # when its last messages are done

    def exchange(self, number: int, *, returns: bool = False) -> np.ndarray:
        """Post the messages of a step now; seconds at which each rank's are done."""
        start = np.maximum(self.now, self.sent)
        sending, receiving, done = start.copy(), start.copy(), np.zeros(len(start))
        for rank, plan in enumerate(self.plans):
            for loan in plan.steps[number].borrowed if number < len(plan.steps) else ():
                source, target = (rank, loan.rank) if returns else (loan.rank, rank)
                end = max(sending[source], receiving[target]) + len(loan.tokens) * self.machine.row
                sending[source] = receiving[target] = end
                for side in (source, target):
                    done[side] = max(done[side], end + self.machine.latency)
        self.sent = np.maximum(self.sent, done)
        return done

    def run(self, *, backward: bool) -> float:
        """Seconds of one pass."""
        lead, size = self.plans[0].lead, len(self.plans)
        self.now, self.sent = np.zeros(size), np.zeros(size)
        cost = self.machine.pair * (BACKWARD if backward else 1)
        arrivals = [self.exchange(number) for number in range(lead)]
        returned = np.zeros(size)
        for number in range(size):
            arrivals.append(self.exchange(number + lead))
            for rank, plan in enumerate(self.plans):
                step, pairs = plan.steps[number], self.pairs[rank][number]
                if step.has_diagonal:
                    diagonal = plan.count_diagonal()
                    self.now[rank] += diagonal * cost
                    pairs -= diagonal
                if step.blocks:
                    self.now[rank] = max(self.now[rank], arrivals[number][rank]) + pairs * cost
                if step.has_diagonal or step.blocks:
                    self.now[rank] = max(self.now[rank], returned[rank])
            if backward:
                returned = np.maximum(returned, self.exchange(number, returns=True))
        return float(max(self.now.max(), returned.max()))


def measure(borders: tuple[int, ...], plans: Sequence[RingPlan], machine: Machine) -> dict[str, float]:
    """Work, rows sent, time, rows held and kernel calls of a row."""
    pairs = np.array([sum(plan.count_pairs()) for plan in plans])
    rows = np.array([plan.count_received_rows() for plan in plans])
    lead = plans[0].lead
    clock = Clock(plans, machine)
    ideal = pairs.mean() * machine.pair * (1 + BACKWARD)
    return {
        "work": pairs.max() / pairs.mean(),
        "rows": rows.sum(),
        "time": (clock.run(backward=False) + clock.run(backward=True)) / ideal,
        "held": max(rows[:, n : n + lead + 1].sum(axis=1).max() for n in range(len(plans))) / plans[0].num_tokens,
        "calls": np.mean([sum(step.has_diagonal + bool(step.blocks) for step in plan.steps) for plan in plans]),
    }


def simulate(mix: str, size: int, args: argparse.Namespace) -> list[dict[str, np.ndarray]]:
    """Measurements of all rows: of zigzag, of the deal."""
    rng = np.random.default_rng(0)
    machine = Machine(
        pair=4 * args.heads * args.head_dim / (args.tflops * 1e12),
        row=2 * args.kv_heads * args.head_dim * 2 / (args.bandwidth * 1e9),
        latency=args.latency * 1e-6,
    )
    results: list[list[dict[str, float]]] = [[], []]
    for _ in range(args.rows):
        borders = draw_row(rng, mix, size * args.tokens_per_rank)
        zigzag = plan_by_distance(borders, deal_zigzag(num_tokens=args.tokens_per_rank, size=size))
        start = time.perf_counter()
        plans = plan_all_ranks(borders, deal_row(borders, num_tokens=args.tokens_per_rank, size=size))
        seconds = time.perf_counter() - start
        results[0].append(measure(borders, zigzag, machine))
        results[1].append({**measure(borders, plans, machine), "plan": seconds * 1e3, "documents": len(borders) - 1})
    return [{name: np.array([row[name] for row in rows]) for name in rows[0]} for rows in results]


def report_simulation(args: argparse.Namespace) -> None:
    """The table."""
    print(
        f"{args.rows} rows of {args.tokens_per_rank} tokens a rank; {args.tflops:g} TFLOP/s, {args.bandwidth:g} GB/s, "
        f"{args.latency:g} us\nmean / worst of zigzag -> of the deal; held: mean / worst; plan: milliseconds\n"
    )
    print("| documents | ranks | a row | work | bytes | time | held | calls | plan |")
    print("|---|---|---|---|---|---|---|---|---|")
    for mix in args.mixes:
        for size in args.ranks:
            zigzag, deal = simulate(mix, size, args)
            both = {
                name: " -> ".join(f"{x[name].mean():.3f} / {x[name].max():.3f}" for x in (zigzag, deal))
                for name in ("work", "time")
            }
            print(
                f"| {mix} | {size} | {deal['documents'].mean():.0f} | {both['work']} | "
                f"{deal['rows'].sum() / zigzag['rows'].sum():.2f} | {both['time']} | "
                f"{deal['held'].mean():.1f} / {deal['held'].max():.1f} | "
                f"{zigzag['calls'].mean():.1f} -> {deal['calls'].mean():.1f} | {deal['plan'].mean():.0f} |",
                flush=True,
            )


# -------------------------------------------------------------------------------------------------------------- clock


def draw_clocked_rows(args: argparse.Namespace, tokens: int) -> dict[str, tuple[int, ...]]:
    """One document, and `--rows` rows of every mix."""
    rng = np.random.default_rng(0)
    rows: dict[str, tuple[int, ...]] = {"one document": (0, tokens)}
    return rows | {f"{mix} {n + 1}": draw_row(rng, mix, tokens) for mix in args.mixes for n in range(args.rows)}


def clock_rank(rank: int, size: int, port: int, args: argparse.Namespace) -> None:
    """One process of the ring; the first one prints the table."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
    init_distributed(read_rank_env(), device="cpu", timeout_s=600)
    for tokens in args.tokens:
        for name, borders in draw_clocked_rows(args, tokens).items():
            line = clock_row(name, borders, args)
            if rank == 0:
                print(line, flush=True)
    finish_distributed()


def clock_row(name: str, borders: tuple[int, ...], args: argparse.Namespace) -> str:
    """Both rings in turns on one row."""
    rank, size = dist.get_rank(), dist.get_world_size()
    num_tokens = borders[-1] // size
    generator = torch.Generator().manual_seed(rank)
    heads = (args.heads, args.kv_heads, args.kv_heads, args.heads)
    q, k, v, grad_out = (torch.randn(num_tokens, n, args.head_dim, generator=generator) for n in heads)
    plans = (
        plan_by_distance(borders, deal_zigzag(num_tokens=num_tokens, size=size)),
        plan_all_ranks(borders, deal_row(borders, num_tokens=num_tokens, size=size)),
    )
    best = torch.full((2, 2), torch.inf, dtype=torch.float64)  # (zigzag and deal, clock and CPU seconds)
    for _ in range(args.repeats):
        for number, plan in enumerate(plans):
            work = RingWork(plan[rank], args.head_dim**-0.5, CpuFlash())
            dist.barrier()
            start, cpu_start = time.perf_counter(), time.process_time()
            out, lse = run_forward(q, k, v, work, Messenger(dist.group.WORLD))
            run_backward(grad_out, q, k, v, out, lse, work, Messenger(dist.group.WORLD))
            cpu = time.process_time() - cpu_start
            dist.barrier()
            seconds = torch.tensor([time.perf_counter() - start, cpu], dtype=torch.float64)
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
            best[number] = torch.minimum(best[number], seconds)
    pairs = [[sum(own.count_pairs()) for own in plan] for plan in plans]
    (zigzag, zigzag_cpu), (deal, deal_cpu) = best.tolist()
    return (
        f"| {borders[-1]} | {name} | {len(borders) - 1} | {max(pairs[0]) / max(pairs[1]):.2f}x | {zigzag:.2f} | "
        f"{deal:.2f} | {zigzag / deal:.2f}x | {zigzag_cpu / deal_cpu:.2f}x |"
    )


def report_clock(args: argparse.Namespace) -> None:
    """The table of real runs."""
    size = args.ranks[0]
    print(
        f"{size} ranks x 1 thread, float32, {args.heads} query and {args.kv_heads} K/V heads of {args.head_dim}, "
        f"best of {args.repeats}\n"
    )
    print("| tokens | row | documents | by work | zigzag s | deal s | clock | CPU |")
    print("|---|---|---|---|---|---|---|---|")
    torch.multiprocessing.spawn(clock_rank, args=(size, find_free_port(), args), nprocs=size)


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="random packings of every mix")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--tokens_per_rank", type=int, default=32768)
    parser.add_argument("--mixes", nargs="+", choices=list(MIXES), default=list(MIXES))
    parser.add_argument("--bandwidth", type=float, default=400.0, help="GB/s of a rank, each way")
    parser.add_argument("--latency", type=float, default=20.0, help="microseconds of a message")
    parser.add_argument("--tflops", type=float, default=400.0, help="of the attention kernel")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv_heads", type=int, default=8)
    parser.add_argument("--head_dim", type=int, default=128)
    parser.add_argument("--clock", action="store_true", help="run both rings on CPU processes, on the first of --ranks")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 32768], help="of the rows of --clock")
    parser.add_argument("--repeats", type=int, default=3, help="of --clock")
    args = parser.parse_args()
    (report_clock if args.clock else report_simulation)(args)


if __name__ == "__main__":
    main()
