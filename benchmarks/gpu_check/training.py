"""Part: training steps of InternVL2-2B, at 32k tokens and at the longest row that the card holds.

Weights and gradients in bfloat16; AdamW on float32 copies, as DeepSpeed does without ZeRO's sharding.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.gpu_check.chat_model import Row as ModelRow
from benchmarks.gpu_check.chat_model import build_model, make_row
from benchmarks.gpu_check.part import Job, Measured, Row, measure
from benchmarks.gpu_check.planned import describe, find_own_card, plan_row
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.train.memory_savings import tile_mlps

VIT_BATCH_SIZE = 16
MLP_TILE_TOKENS = 8192
# On a card, on the CPU. Longer rows have documents of the first length: memory goes by the row, time by its documents.
TOKENS, MOST_TOKENS = (32768, 128), (2**22, 256)


class Training:
    """The model and its optimiser."""

    def __init__(self, job: Job):
        self.job, self.model = job, build_model(job).train()
        self.model.vit_batch_size = VIT_BATCH_SIZE
        self.parameters = list(self.model.parameters())
        self.masters = [parameter.detach().float() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-6, fused=job.device.type == "cuda")

    def step(self, row: ModelRow) -> None:
        """Forward, backward, optimiser."""
        compute_loss(self.model, row).backward()
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_copy_([parameter.data for parameter in self.parameters], self.masters)

    def try_step(self, row: ModelRow, *, repeats: int = 1) -> Measured | None:
        """The time and memory of a step; None if the card has not enough."""
        try:
            return measure(lambda: self.step(row), self.job.device, repeats=repeats)
        except torch.OutOfMemoryError:
            pass  # what was allocated is free once the exception is gone
        for tensor in (*self.parameters, *self.masters):
            tensor.grad = None
        gc.collect()
        torch.cuda.empty_cache()
        return None


def compute_loss(model: InternVLChatModel, row: ModelRow) -> torch.Tensor:
    """With V2PE's positions."""
    return model(
        input_ids=row.input_ids,
        labels=row.labels,
        pixel_values=row.pixel_values,
        cu_seqlens=row.cu_seqlens,
        rope_pos_id_version="v2pe_fix",
        rope_pos_id_stride=1,
        use_cache=False,
    ).loss


@dataclass
class Bracket:
    """A search for the longest row that fits: doubling, then halving what lies between, to an eighth."""

    fitting: int
    failing: int | None = None

    def choose_next(self) -> int | None:
        """The next length to try; None: `fitting` is close enough."""
        if self.failing is None:
            return 2 * self.fitting
        middle = (self.fitting + self.failing) // 2
        return middle if middle - self.fitting >= self.fitting / 16 else None

    def note(self, length: int, *, fits: bool) -> None:
        """What came of it."""
        if fits:
            self.fitting = length
        else:
            self.failing = length


def run(job: Job) -> Iterator[Row]:
    """A row per attempt."""
    training, tokens = Training(job), TOKENS[job.is_tiny]
    training.try_step(make_row(training.model.config, min(tokens, 1024), job.device))  # to compile kernels
    row = make_row(training.model.config, tokens, job.device)
    yield describe_step(training, row, training.try_step(row, repeats=2), recompute=False)
    training.model.activation_checkpointing_enable()
    tile_mlps(training.model.language_model, num_tokens=MLP_TILE_TOKENS)
    first = training.try_step(row, repeats=2)
    yield describe_step(training, row, first, recompute=True)
    if first is not None:
        yield from search_longest(training, first.seconds / tokens)


def search_longest(training: Training, seconds_per_token: float) -> Iterator[Row]:
    """Steps at longer and longer rows, as time allows."""
    job, document = training.job, TOKENS[training.job.is_tiny]
    bracket = Bracket(document)
    while (tokens := bracket.choose_next()) is not None and tokens <= MOST_TOKENS[job.is_tiny]:
        if 2 * tokens * seconds_per_token > job.seconds_left:
            yield {"row": "stopped: no time left for a longer one", "tokens": tokens}
            return
        row = make_row(training.model.config, tokens, job.device, document=document)
        measured = training.try_step(row)
        yield describe_step(training, row, measured, recompute=True)
        bracket.note(tokens, fits=measured is not None)
        if measured is not None:
            seconds_per_token = measured.seconds / tokens


def describe_step(training: Training, row: ModelRow, measured: Measured | None, *, recompute: bool) -> Row:
    """The step beside its plan; a row that does not fit has the plan's memory only."""
    flags = {"mlp_tile_tokens": MLP_TILE_TOKENS} if recompute else {}
    card = find_own_card(training.job.device)
    plan = plan_row(training.model.config, row, card, grad_checkpoint=recompute, vit_batch_size=VIT_BATCH_SIZE, **flags)
    documents = plan.setting.documents
    result: Row = {
        "row": "one document" if documents == 1 else f"{documents} documents",
        "tokens": row.num_tokens,
        "recomputation": "yes" if recompute else "no",
    }
    if measured is None:
        return {**result, "tokens/s": "out of memory", "planned GiB": plan.memory.total / 2**30}
    return {**result, **describe(measured, plan, training.job)}
