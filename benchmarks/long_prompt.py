"""A very long multimodal prompt whose keys and values are spread over ranks: time and peak memory, tiny random model.

    python benchmarks/long_prompt.py --compare                         # 131,072 tokens, compared with one process
    python benchmarks/long_prompt.py --tokens 1048576 --layers 1 --heads 1 --kv_heads 1 --head_dim 16

The prompt has images of four tiles (256 visual tokens each, stride 16) with 100 words between them, and is read in
chunks of `--chunk` tokens; then 8 tokens are generated greedily. Every rank makes and encodes only the pixels of its
own tiles. `vision`, `prefill` (to the first token) and `token` (each further one) are seconds of the slowest rank.
`peak` is the growth of a rank's largest resident memory over that of the loaded model, `cache` the memory of its keys
and values.

Attention is quadratic: half a trillion scores per head and layer for a million tokens. The flags of the second command
make a decoder of one layer with one head of 16, so that two CPU cores finish in minutes. With --compare the same prompt
goes through one process with as many threads as there are ranks, and the answers must be equal.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from internvl.infer.context_parallel import ShardedFeatures, build_context_parallel
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parallel.launch import finish_distributed, init_distributed, read_rank_env
from internvl.parallel.vision import split_tiles

MIB = 2**20
NUM_NEW_TOKENS, NUM_WORDS, TILES_PER_IMAGE, VIT_BATCH = 8, 100, 4, 32
BEGIN, END, VISUAL, VOCABULARY = 253, 254, 255, 256


class Clock(BaseStreamer):
    """Notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """A prompt comes with two dimensions, tokens with one."""
        if value.ndim == 1:
            self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to do."""


def build_model(args: argparse.Namespace) -> InternVLChatModel:
    """A random InternLM2 chat model with weights so large that answers depend on the whole prompt."""
    torch.manual_seed(0)
    width = args.heads * args.head_dim
    config = InternVLChatConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 64,
            "patch_size": 2,
            "norm_type": "layer_norm",
            "qk_normalization": False,
        },
        llm_config={
            "architectures": ["InternLM2ForCausalLM"],
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": args.layers,
            "num_attention_heads": args.heads,
            "num_key_value_heads": args.kv_heads,
            "bias": False,
            "initializer_range": 0.3,
        },
        img_context_token_id=VISUAL,
    )
    return InternVLChatModel(config).eval()


def build_prompt(num_tokens: int, tokens_per_tile: int) -> tuple[Tensor, int]:
    """(1, num_tokens) ids, and their tiles: images with words between them, words at the end."""
    image = [BEGIN, *[VISUAL] * (TILES_PER_IMAGE * tokens_per_tile), END]
    num_images = (num_tokens - NUM_WORDS) // (len(image) + NUM_WORDS)
    ids = torch.randint(0, 250, (num_tokens,), generator=torch.Generator().manual_seed(0))
    for index in range(num_images):
        first = index * (len(image) + NUM_WORDS)
        ids[first : first + len(image)] = torch.tensor(image)
    return ids.unsqueeze(0), num_images * TILES_PER_IMAGE


def encode_tiles(model: InternVLChatModel, tiles: range) -> Tensor:
    """Features of random tiles; those of a tile depend on its number alone."""
    features = [torch.zeros(0, model.num_image_token, model.config.llm_config.hidden_size)]
    for first in range(tiles.start, tiles.stop, VIT_BATCH):
        batch = range(first, min(first + VIT_BATCH, tiles.stop))
        pixels = [torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index)) for index in batch]
        features.append(model.extract_feature(torch.stack(pixels)))
    return torch.cat(features)


@torch.inference_mode()
def answer(model: InternVLChatModel, num_tokens: int, chunk: int, parallel: Any) -> dict[str, Any]:
    """One prompt: seconds of its parts, bytes, tokens, logits of the first of them."""
    start = time.perf_counter()
    ids, num_tiles = build_prompt(num_tokens, model.num_image_token)
    if parallel is None:
        features: Any = encode_tiles(model, range(num_tiles))
    else:
        owners = split_tiles(num_tiles, parallel.size)
        features = ShardedFeatures(encode_tiles(model, owners[parallel.rank]), owners)
    encoded, clock = time.perf_counter(), Clock()
    output: Any = model.generate(
        input_ids=ids,
        visual_features=features,
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        rope_pos_id_version="v2pe_fix",
        rope_pos_id_stride=16,
        prefill_chunk_size=chunk,
        streamer=clock,
        return_dict_in_generate=True,
        output_logits=True,
        **({} if parallel is None else {"context_parallel": parallel}),
    )
    return {
        "vision": encoded - start,
        "prefill": clock.times[0] - encoded,
        "token": (clock.times[-1] - clock.times[0]) / (NUM_NEW_TOKENS - 1),
        "cache": sum(x.nbytes for layer in output.past_key_values.layers for x in (layer.keys, layer.values)),
        "tiles": num_tiles,
        "tokens": output.sequences[0].tolist(),
        "logits": output.logits[0][0].tolist(),
    }


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_worker(args: argparse.Namespace) -> None:
    """One rank (or the process on its own); the first writes what all found."""
    env = read_rank_env()
    init_distributed(env, device="cpu", timeout_s=7200)
    torch.set_num_threads(args.threads)
    parallel = build_context_parallel(env.world_size) if env.world_size > 1 else None
    model = build_model(args)
    answer(model, 2048, 512, parallel)  # what the first call loads is not the prompt's
    before = peak_bytes()
    result = answer(model, args.tokens, args.chunk, parallel)
    result["peak"] = peak_bytes() - before
    found: list[Any] = [result]
    if dist.is_initialized():
        found = [None] * env.world_size
        dist.all_gather_object(found, result)
    if env.is_main:
        args.worker.write_text(json.dumps(found))
    finish_distributed()


def run(args: argparse.Namespace, num_ranks: int) -> list[dict[str, Any]]:
    """What every rank found, from processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
        threads = 1 if num_ranks > 1 else args.ranks
        command = [__file__, *sys.argv[1:], "--worker", str(output), "--threads", str(threads)]
        subprocess.run([sys.executable, *(launcher if num_ranks > 1 else []), *command], check=True)
        return json.loads(output.read_text())


def print_line(label: str, found: list[dict[str, Any]]) -> None:
    """Seconds of the slowest rank, memory of every rank."""
    vision, prefill, token = (max(rank[key] for rank in found) for key in ("vision", "prefill", "token"))
    caches, peaks = (", ".join(f"{rank[key] / MIB:.0f}" for rank in found) for key in ("cache", "peak"))
    print(f"{label:22} {vision:8.1f} {prefill:8.1f} {token:8.3f}   {caches:>12} {peaks:>14}", flush=True)


def main() -> None:
    """Run the ranks, and with --compare one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=131072, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="processes that answer together (default: %(default)s)")
    parser.add_argument("--chunk", type=int, default=16384, help="prefill_chunk_size (default: %(default)s)")
    parser.add_argument("--compare", action="store_true", help="also in one process, with a check of the answer")
    parser.add_argument("--layers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--heads", type=int, default=2, help="query heads (default: %(default)s)")
    parser.add_argument("--kv_heads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--head_dim", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        run_worker(args)
        return
    found = run(args, args.ranks)
    decoder = f"{args.layers} layers, {args.heads} heads of {args.head_dim}, {args.kv_heads} of keys and values"
    print(f"{args.tokens:,} tokens, {found[0]['tiles']:,} tiles, chunks of {args.chunk:,}; {decoder}")
    print(f"{'':22} {'vision':>8} {'prefill':>8} {'token':>8}   {'cache':>12} {'peak':>14}   (s, s, s, MiB, MiB)")
    print_line(f"{args.ranks} ranks, 1 thread each", found)
    print(f"answer {found[0]['tokens']}")
    assert all(rank["tokens"] == found[0]["tokens"] for rank in found), "the ranks have different answers"
    if args.compare:
        [alone] = run(args, 1)
        print_line(f"1 process, {args.ranks} threads", [alone])
        assert alone["tokens"] == found[0]["tokens"], f"one process answers {alone['tokens']}"
        error = max(abs(a - b) for a, b in zip(alone["logits"], found[0]["logits"], strict=True))
        spread = max(alone["logits"]) - min(alone["logits"])
        print(f"equal answers; logits of the first token lie {error:.1e} apart, they span {spread:.1f}")


if __name__ == "__main__":
    main()
