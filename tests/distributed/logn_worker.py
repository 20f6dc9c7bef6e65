"""Log-n scaling where two ranks hold parts of a row; rank 0 writes the largest errors of all ranks to argv[1]."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from internvl.infer.context_parallel import build_context_parallel
from internvl.parallel.grid import build_grid
from internvl.parallel.launch import finish_distributed, init_distributed, read_rank_env
from internvl.parallel.shared_row import SHARED_ATTENTION, SharedRow, register_shared_attention
from internvl.parallel.vision import split_tiles
from tests.model.test_language_models import NEVER, build
from tests.model.tiny import document

V2PE = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.3}
FAMILIES = ("InternLM2ForCausalLM", "LlamaForCausalLM")


@torch.no_grad()
def compare_shared_row(family: str) -> dict[str, float]:
    """Loss of a packed row that the ranks share, against the whole row's."""
    documents = [document(2, tiles=(3, 1)), document(3, tiles=(2,)), document(4, tiles=(), text=7)]
    ids, pixels = (torch.cat(parts) for parts in zip(*documents, strict=True))
    borders = torch.tensor([0, *(len(ids) for ids, _ in documents)]).cumsum(0)
    inputs = {"input_ids": ids.unsqueeze(0), "labels": ids.unsqueeze(0), "cu_seqlens": borders, **V2PE}
    model = build(family, logn_scaling=4)
    expected = model(pixel_values=pixels, **inputs).loss
    without = build(family)(pixel_values=pixels, **inputs).loss
    grid = build_grid(chunk_num=dist.get_world_size())
    register_shared_attention(grid)
    model.language_model.config._attn_implementation = SHARED_ATTENTION
    own = split_tiles(len(pixels), grid.group_size)[grid.group_rank]
    loss = model(pixel_values=pixels[own.start : own.stop], row_sharing=SharedRow(grid), **inputs).loss
    dist.all_reduce(loss, group=grid.group)
    return {"error": float((loss - expected).abs()), "effect": float((without - expected).abs())}


def compare_answer(family: str, chunk: int | None) -> dict[str, float]:
    """Logits of an answer of the ranks together, against those of one process."""
    model, plain = build(family, logn_scaling=4), build(family)
    ids, pixels = document(3, tiles=(2, 1, 3), text=7)
    arguments = {
        "input_ids": ids.unsqueeze(0), "pixel_values": pixels, "max_new_tokens": 5, "do_sample": False,
        "suppress_tokens": NEVER, "output_logits": True, "return_dict_in_generate": True, **V2PE,
    }  # fmt: skip
    expected, without = (torch.stack(m.generate(**arguments).logits) for m in (model, plain))
    parallel = build_context_parallel(dist.get_world_size())
    found = model.generate(**arguments, prefill_chunk_size=chunk, context_parallel=parallel)
    error = (torch.stack(found.logits) - expected).abs().max()
    return {"error": float(error), "effect": float((without[0] - expected[0]).abs().max())}


def main(output: Path) -> None:
    init_distributed(read_rank_env(), device="cpu", timeout_s=60)
    found = {f"shared row, {family}": compare_shared_row(family) for family in FAMILIES}
    for family in FAMILIES:
        for chunk in (None, 10):
            found[f"answer, {family}, {chunk}"] = compare_answer(family, chunk)
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        output.write_text(json.dumps(everyone))
    finish_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
