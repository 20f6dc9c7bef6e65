"""One training step on one very long row, shared by ranks or whole on one rank: time and peak memory.

    python benchmarks/long_row.py [--tokens 262144] [--ranks 2] [--documents 1] [--only shared|whole]

A small random InternVL model (InternLM2 decoder, float32) takes a packed row of text and images through forward,
backward and an AdamW step. Shared: `--ranks` processes of one thread each (gloo), ring attention, tiles and tokens
split. Whole: one process with as many threads. Both compute the same loss, which is checked. Memory is the peak
resident size of a process minus its size before the row was made.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parallel.grid import build_grid
from internvl.parallel.launch import finish_distributed, init_distributed, read_rank_env
from internvl.parallel.shared_row import SHARED_ATTENTION, SharedRow, register_shared_attention
from internvl.parallel.vision import split_tiles
from internvl.train.memory_savings import tile_mlps

TOKENS_PER_TILE, SIDE, VISUAL, VOCABULARY = 16, 56, 3, 1024


def make_model(args: argparse.Namespace) -> InternVLChatModel:
    """A random model; 56-pixel tiles of 16 visual tokens."""
    torch.manual_seed(0)
    config = InternVLChatConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 7,
            "norm_type": "layer_norm",
            "qk_normalization": False,
            "qkv_bias": True,
        },
        llm_config={
            "architectures": ["InternLM2ForCausalLM"],
            "vocab_size": VOCABULARY,
            "hidden_size": 32 * args.heads,
            "intermediate_size": 96 * args.heads,
            "num_hidden_layers": args.layers,
            "num_attention_heads": args.heads,
            "num_key_value_heads": 1,
            "bias": False,
        },
        img_context_token_id=VISUAL,
    )
    model = InternVLChatModel(config).train()
    model.vit_batch_size = 64
    model.activation_checkpointing_enable()
    tile_mlps(model.language_model, num_tokens=8192)
    return model


def make_row(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (1, tokens) with a tile in every 512 tokens, and borders of equal documents."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, VOCABULARY, (1, args.tokens), generator=generator)
    for first in range(0, args.tokens - TOKENS_PER_TILE, 512):
        ids[0, first + 1 : first + 1 + TOKENS_PER_TILE] = VISUAL
    borders = torch.arange(args.documents + 1) * args.tokens // args.documents
    return ids, borders


def train_one_step(args: argparse.Namespace) -> None:
    """Print loss of the whole row, seconds, and the largest peak memory of a rank in MiB."""
    env = read_rank_env()
    init_distributed(env, device="cpu")
    grid = build_grid(chunk_num=env.world_size)
    model = make_model(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids, borders = make_row(args)
    labels = ids.masked_fill(ids == VISUAL, -100)
    num_tiles = int((ids == VISUAL).sum()) // TOKENS_PER_TILE
    own = split_tiles(num_tiles, grid.group_size)[grid.group_rank]
    picture = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    tiles = picture * torch.arange(own.start, own.stop).sin().view(-1, 1, 1, 1)  # the same tiles for any split
    start = time.perf_counter()
    row_sharing = None
    if grid.group_size > 1:
        register_shared_attention(grid)
        model.config.llm_config._attn_implementation = SHARED_ATTENTION
        row_sharing = SharedRow(grid)
    loss = model(
        pixel_values=tiles,
        input_ids=ids,
        labels=labels,
        cu_seqlens=borders,
        rope_pos_id_version="v2pe_fix",
        rope_pos_id_stride=1,
        row_sharing=row_sharing,
        use_cache=False,
    ).loss
    loss.backward()
    total = loss.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
    optimizer.step()
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if dist.is_initialized():
        peaks = torch.tensor([peak])
        dist.all_reduce(peaks, dist.ReduceOp.MAX)
        peak = peaks.item()
    if env.is_main:
        print(json.dumps({"loss": total.item(), "seconds": seconds, "peak_mib": peak}), flush=True)
    finish_distributed()


def run_variant(args: argparse.Namespace, *, num_ranks: int, num_threads: int) -> dict[str, float]:
    """Run this script in processes of its own."""
    launcher = [sys.executable]
    if num_ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    done = subprocess.run(
        [*launcher, *sys.argv, "--worker"], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run both variants and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=262144)
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--heads", type=int, default=2, help="query heads of 32; one key/value head")
    parser.add_argument("--only", choices=["shared", "whole"])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        train_one_step(args)
        return
    print(f"{args.tokens} tokens, {args.documents} documents, {args.layers} layers, {args.heads} heads of 32")
    losses = []
    for name, ranks, threads in (("shared", args.ranks, 1), ("whole", 1, args.ranks)):
        if args.only in (None, name):
            result = run_variant(args, num_ranks=ranks, num_threads=threads)
            losses.append(result["loss"])
            print(
                f"{name:7} {ranks} ranks x {threads} threads  {result['seconds']:7.1f} s  peak "
                f"{result['peak_mib']:7.0f} MiB a rank  loss {result['loss']:.6f}",
                flush=True,
            )
    assert max(losses) - min(losses) < 1e-4 * abs(losses[0])


if __name__ == "__main__":
    main()
