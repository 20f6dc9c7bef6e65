"""Every position scheme where two ranks hold parts of a row; rank 0 writes the errors of all ranks to argv[1]."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from internvl.infer.context_parallel import build_context_parallel
from internvl.model.positions import SCHEMES
from internvl.parallel.grid import build_grid
from internvl.parallel.launch import finish_distributed, init_distributed, read_rank_env
from internvl.parallel.shared_row import SHARED_ATTENTION, SharedRow, register_shared_attention
from internvl.parallel.vision import split_tiles
from tests.model.test_language_models import NEVER, build
from tests.model.tiny import document

CASES = [("InternLM2ForCausalLM", version) for version in SCHEMES]
CASES += [("Qwen2ForCausalLM", "mrope"), ("Qwen2ForCausalLM", "hope")]
GRIDS = torch.tensor([[2, 1, 1, 0], [1, 1, 0, 1], [1, 2, 0, 0]])


def choose(version: str) -> dict[str, object]:
    carried = {"image_strides": torch.tensor([65536, 32768, 98304])} if version in ("v2pe_fix", "v2pe_rnd") else {}
    return {"rope_pos_id_version": version, "image_grids": GRIDS, **carried}


def compare_shared_row(family: str, version: str) -> float:
    """Loss and gradient of a packed row that the ranks share, against the whole row's."""
    documents = [document(2, tiles=(3, 1)), document(3, tiles=(2,)), document(4, tiles=(), text=7)]
    ids, pixels = (torch.cat(parts) for parts in zip(*documents, strict=True))
    borders = torch.tensor([0, *(len(ids) for ids, _ in documents)]).cumsum(0)
    inputs = {"input_ids": ids.unsqueeze(0), "labels": ids.unsqueeze(0), "cu_seqlens": borders, **choose(version)}
    model = build(family)
    norms = [parameter for parameter in model.language_model.parameters() if parameter.dim() == 1]
    loss = model(pixel_values=pixels, **inputs).loss
    expected = torch.cat([loss.view(1), *torch.autograd.grad(loss, norms)])
    grid = build_grid(chunk_num=dist.get_world_size())
    register_shared_attention(grid)
    model.language_model.config._attn_implementation = SHARED_ATTENTION
    own = split_tiles(len(pixels), grid.group_size)[grid.group_rank]
    loss = model(pixel_values=pixels[own.start : own.stop], row_sharing=SharedRow(grid), **inputs).loss
    found = torch.cat([loss.view(1), *torch.autograd.grad(loss, norms)]).detach()
    dist.all_reduce(found, group=grid.group)
    return float((found - expected.detach()).abs().max())


@torch.no_grad()
def compare_answer(family: str, version: str) -> float:
    """Logits of an answer of the ranks together, against those of one process."""
    model = build(family)
    ids, pixels = document(3, tiles=(3, 1, 2), text=7)
    arguments = {
        "input_ids": ids.unsqueeze(0), "pixel_values": pixels, "max_new_tokens": 4, "do_sample": False,
        "suppress_tokens": NEVER, "output_logits": True, "return_dict_in_generate": True, **choose(version),
    }  # fmt: skip
    expected = torch.stack(model.generate(**arguments).logits)
    parallel = build_context_parallel(dist.get_world_size())
    found = model.generate(**arguments, prefill_chunk_size=10, context_parallel=parallel)
    return float((torch.stack(found.logits) - expected).abs().max())


def main(output: Path) -> None:
    init_distributed(read_rank_env(), device="cpu", timeout_s=60)
    found = {f"{family} {version}": [compare_shared_row(family, version), compare_answer(family, version)]
             for family, version in CASES}  # fmt: skip
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        output.write_text(json.dumps(everyone))
    finish_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
