"""Part: a prompt of 128k tokens, whole and in chunks, and the tokens after it."""

from collections.abc import Iterator

import torch

from benchmarks.gpu_check.chat_model import Row as ModelRow
from benchmarks.gpu_check.chat_model import build_model, make_row
from benchmarks.gpu_check.part import Job, Row, measure
from benchmarks.gpu_check.planned import describe, find_own_card, plan_row

TOKENS, CHUNK = (131072, 512), (32768, 128)  # on a card, on the CPU
NEW_TOKENS = 33
VIT_BATCH_SIZE = 16


def run(job: Job) -> Iterator[Row]:
    """A row per prefill: seconds until the first token, and tokens per second after it."""
    model = build_model(job).eval()
    model.vit_batch_size = VIT_BATCH_SIZE

    def answer(row: ModelRow, num_new: int, chunk: int | None) -> None:
        with torch.inference_mode():
            model.generate(
                pixel_values=row.pixel_values,
                input_ids=row.input_ids,
                max_new_tokens=num_new,
                min_new_tokens=num_new,
                do_sample=False,
                prefill_chunk_size=chunk,
                rope_pos_id_version="v2pe_fix",
                rope_pos_id_stride=1,
            )

    tokens = TOKENS[job.is_tiny]
    answer(make_row(model.config, min(tokens, 1024), job.device), 2, None)  # kernels are compiled
    row = make_row(model.config, tokens, job.device)
    for chunk in (None, CHUNK[job.is_tiny]):
        first = measure(lambda chunk=chunk: answer(row, 1, chunk), job.device)
        whole = measure(lambda chunk=chunk: answer(row, NEW_TOKENS, chunk), job.device)
        plan = plan_row(
            model.config, row, find_own_card(job.device),
            mode="infer", prefill_chunk_size=chunk, vit_batch_size=VIT_BATCH_SIZE, max_new_tokens=NEW_TOKENS,
        )  # fmt: skip
        yield {
            "prompt": "whole" if chunk is None else f"in chunks of {chunk}",
            "tokens": tokens,
            **describe(first, plan, job),
            "new tokens/s": (NEW_TOKENS - 1) / max(whole.seconds - first.seconds, 1e-9),
        }
