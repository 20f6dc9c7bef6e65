"""Part: what the card sustains of what the planner assumes: matrix products, attention kernels, reading and writing."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu_check.part import Job, Row, measure
from benchmarks.gpu_check.planned import find_own_card
from internvl.model.modeling_internlm2 import InternLM2RMSNorm
from internvl.parallel.kernels import select_kernel

# On a card as in InternVL2-2B, on the CPU.
TOKENS, HIDDEN, INTERMEDIATE = (32768, 256), (2048, 64), (8192, 128)
HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128
REPEATS = 3


def run(job: Job) -> Iterator[Row]:
    """A row per kind of work."""
    card = find_own_card(job.device)
    peak, assumed = (vars(card.peak), vars(card.realistic)) if card else ({}, {})
    for name, unit, field, amount, work in list_works(job):
        work()  # the first call is slower
        seconds = measure(work, job.device, repeats=REPEATS).seconds
        yield {
            "work": name,
            "unit": unit,
            "measured": amount / seconds,
            "assumed by the planner": assumed.get(field),
            "peak": peak.get(field),
        }


def list_works(job: Job) -> Iterator[tuple[str, str, str, float, Callable[[], object]]]:
    """(name, unit, field of the planner's rates, amount of work in that unit times seconds, the work)."""
    tokens, hidden, wide = (sizes[job.is_tiny] for sizes in (TOKENS, HIDDEN, INTERMEDIATE))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=job.device)

    states, matrix = random(tokens, hidden), random(hidden, wide)
    flops = 2e-12 * tokens * hidden * wide
    yield f"product, {tokens} x {hidden} x {wide}", "TFLOP/s", "matmul_tflops", flops, lambda: states @ matrix
    kernel = select_kernel(None, job.device, torch.bfloat16)
    q, k, v, grad = (random(tokens, n, HEAD_DIM) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS))
    settings = {"scale": HEAD_DIM**-0.5, "borders": (0, tokens)}
    out, lse = kernel.forward(q, k, v, **settings)
    flops = 4e-12 * HEADS * HEAD_DIM * tokens * (tokens + 1) / 2
    name = f"attention, {tokens} tokens, "
    yield name + "forward", "TFLOP/s", "attention_tflops", flops, lambda: kernel.forward(q, k, v, **settings)
    yield (
        *(name + "backward", "TFLOP/s", "attention_tflops", 2.5 * flops),
        lambda: kernel.backward(grad, q, k, v, out, lse, **settings),
    )
    norm = InternLM2RMSNorm(hidden, 1e-6).to(job.device, torch.bfloat16)
    yield f"RMS norm, {tokens} x {hidden}", "GB/s", "memory_gbs", 2e-9 * states.nbytes, lambda: norm(states)
