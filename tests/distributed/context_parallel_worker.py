"""Answers of a group of ranks beside those of this process alone; rank 0 writes what all ranks found to argv[1]."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from internvl.errors import DataError, ParallelError
from internvl.infer.context_parallel import ContextParallel, ShardedFeatures, build_context_parallel, split_images
from internvl.parallel.launch import finish_distributed, init_distributed, read_rank_env
from tests.model.test_language_models import FAMILIES, NEVER, build
from tests.model.tiny import document

V2PE = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.3}
PROMPTS = {
    "images": document(3, tiles=(2, 1, 3), text=7),
    "one tile": document(4, tiles=(1,), text=11),
    "text": document(5, tiles=(), text=37),
    "three words": document(6, tiles=(), text=3),
    "one word": document(7, tiles=(), text=1),
}
NUM_NEW = 6  # more than there are ranks
# (prompt, further arguments); 7 and 10 divide no length, pieces of 3 leave ranks with nothing but padding.
CASES = [
    ("images", V2PE),
    ("images", {**V2PE, "prefill_chunk_size": 10}),
    ("images", {**V2PE, "prefill_chunk_size": 10, "kv_cache": "static"}),
    ("images", {"prefill_chunk_size": 7}),
    ("one tile", {**V2PE, "prefill_chunk_size": 3}),
    ("one tile", V2PE),
    ("text", {}),
    ("text", {"prefill_chunk_size": 7}),
    ("three words", {}),
    ("one word", {"prefill_chunk_size": 10}),
    ("images", {**V2PE, "prefill_chunk_size": 10, "do_sample": True, "temperature": 2.0}),
]


def answer(model, prompt: str, arguments: dict, parallel: ContextParallel | None = None):
    """Greedy tokens and their logits (or draws from rank 0's seed)."""
    ids, pixels = PROMPTS[prompt]
    # Draws must not depend on what a rank's own generator would give.
    torch.manual_seed(1 if parallel is None else 1 + parallel.rank)
    return model.generate(
        input_ids=ids.unsqueeze(0),
        pixel_values=pixels if len(pixels) else None,
        max_new_tokens=NUM_NEW,
        suppress_tokens=NEVER,
        output_logits=True,
        return_dict_in_generate=True,
        **{"do_sample": False, **arguments},
        **({} if parallel is None else {"context_parallel": parallel}),
    )


def compare(model, prompt: str, arguments: dict, parallel: ContextParallel) -> dict:
    """What differs between the group and its first rank alone, and how the cache is spread."""
    alone = answer(model, prompt, arguments) if parallel.is_first else None
    expected, logits = parallel.share(alone and (alone.sequences[0].tolist(), alone.logits))
    found = answer(model, prompt, arguments, parallel)
    error = (torch.stack(found.logits) - torch.stack(logits)).abs().max()
    layers = found.past_key_values.layers
    held = [layer.get_seq_length() for layer in layers]
    return {
        "tokens": found.sequences[0].tolist(),
        "expected": expected,
        "error": float(error),
        "held": held[0] if len(set(held)) == 1 else held,
        "length": len(PROMPTS[prompt][0]) + NUM_NEW - 1,
    }


def answer_from_own_tiles(model, parallel: ContextParallel) -> list[int]:
    """Every rank has encoded whole images of its own, in batches of one tile."""
    ids, pixels = PROMPTS["images"]
    tiles = [2, 1, 3]
    images = split_images(tiles, parallel.size)
    owners = [range(sum(tiles[: own.start]), sum(tiles[: own.stop])) for own in images]
    own = owners[parallel.rank]
    model.vit_batch_size = 1
    local = model.extract_feature(pixels[own.start : own.stop])
    model.vit_batch_size = None
    features = ShardedFeatures(local, owners)
    return model.generate(
        input_ids=ids.unsqueeze(0), visual_features=features, max_new_tokens=NUM_NEW, suppress_tokens=NEVER,
        do_sample=False, prefill_chunk_size=10, context_parallel=parallel, **V2PE,
    )[0].tolist()  # fmt: skip


def fail_on_one_rank(parallel: ContextParallel) -> str:
    """What every rank raises when the last one meets a bad file."""
    try:
        with parallel.fail_together():
            if parallel.rank == parallel.size - 1:
                raise DataError("a.png cannot be read")
    except DataError as error:
        return str(error)
    return "no error"


def refuse_different_prompts(model, parallel: ContextParallel) -> str:
    """What every rank raises when one of them was asked something else."""
    try:
        answer(model, "text" if parallel.is_first else "three words", {}, parallel)
    except ParallelError as error:
        return str(error)
    return "no error"


def check_family(family: str, parallel: ContextParallel, cases) -> dict:
    # With dynamic NTK, a prompt and its answer lie on both sides of the length at which the base changes.
    model = build(family, **({"max_position_embeddings": 40} if family == "InternLM2ForCausalLM" else {}))
    usual = model.language_model.config._attn_implementation
    results = {
        f"{family} {prompt} {arguments}": compare(model, prompt, arguments, parallel) for prompt, arguments in cases
    }
    assert model.language_model.config._attn_implementation == usual
    return results


def check_group(parallel: ContextParallel, *, cases: dict[str, list]) -> dict:
    answers = {}
    for family in cases:
        answers |= check_family(family, parallel, cases[family])
    model = build("InternLM2ForCausalLM")
    return {
        "answers": answers,
        "from own tiles": answer_from_own_tiles(model, parallel),
        "from all tiles": answer(model, "images", V2PE)["sequences"][0].tolist(),
        "failure": fail_on_one_rank(parallel),
        "different prompts": refuse_different_prompts(model, parallel),
        "shared": parallel.share(dist.get_rank()),
        "is_first": parallel.is_first,
    }


def main(output: Path, size: int) -> None:
    """Every decoder with all processes in one group, or one in that group and another in several of them."""
    init_distributed(read_rank_env(), device="cpu", timeout_s=60)
    cases = {"InternLM2ForCausalLM": CASES}
    if size == dist.get_world_size():
        others = sorted(FAMILIES.keys() - {"InternLM2ForCausalLM", "LlamaForCausalLM"})
        cases |= {"LlamaForCausalLM": CASES, **dict.fromkeys(others, CASES[1:2])}
    with torch.inference_mode():
        found = [check_group(build_context_parallel(dist.get_world_size()), cases=cases)]
        if size != dist.get_world_size():
            found.append(check_group(build_context_parallel(size), cases={"LlamaForCausalLM": CASES[1:4]}))
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        output.write_text(json.dumps(everyone))
    finish_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
