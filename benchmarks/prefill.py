"""Peak memory of a long prompt: chunked prefill against its key/value cache, on a tiny random model.

    python benchmarks/prefill.py [--lengths 32768 65536 131072 --chunks 2048 8192 --kv_caches dynamic static quantized]

Each line runs in its own process, which makes peak memory its own. `cache` is the final size of the cache, `prompt`
what else is kept of the prompt (ids, mask, positions, token embeddings), and `peak` the growth of the largest resident
memory over that of the model while the answer was made. `rest` is peak - cache - prompt. Chunked prefill works as
intended when `rest` stays constant while the prompt grows. The last line is one prompt in one piece.

Attention over the whole prompt is quadratic: 131,072 tokens take minutes on a CPU.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

from internvl.model.caches import KV_CACHES
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.modeling_internvl_chat import InternVLChatModel

MIB = 2**20
NUM_NEW_TOKENS = 2


def build_model(args: argparse.Namespace) -> InternVLChatModel:
    """A random InternLM2 chat model with grouped-query heads."""
    torch.manual_seed(0)
    config = InternVLChatConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        llm_config={
            "architectures": ["InternLM2ForCausalLM"],
            "vocab_size": 256,
            "hidden_size": args.heads * args.head_dim,
            "intermediate_size": 4 * args.heads * args.head_dim,
            "num_hidden_layers": args.layers,
            "num_attention_heads": args.heads,
            "num_key_value_heads": args.kv_heads,
            "bias": False,
        },
        img_context_token_id=255,
    )
    return InternVLChatModel(config).eval()


def answer(model: InternVLChatModel, length: int, chunk: int | None, kv_cache: str) -> Any:
    """A greedy answer to a random prompt whose tokens lie a quarter of a position apart (V2PE)."""
    input_ids = torch.randint(0, 200, (1, length), generator=torch.Generator().manual_seed(0))
    return model.generate(
        input_ids=input_ids,
        position_ids=torch.arange(length, dtype=torch.float64).unsqueeze(0) / 4,
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        prefill_chunk_size=chunk,
        kv_cache=kv_cache,
        return_dict_in_generate=True,
    )


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One prompt: bytes, seconds, new tokens."""
    model = build_model(args)
    answer(model, 256, 128, args.kv_cache)  # what the first call loads is not the prompt's
    before, start = peak_bytes(), time.perf_counter()
    output = answer(model, args.length, args.chunk or None, args.kv_cache)
    seconds, peak = time.perf_counter() - start, peak_bytes() - before
    width = args.heads * args.head_dim
    return {
        "seconds": seconds,
        "peak": peak,
        "cache": sum(count_bytes(layer) for layer in output.past_key_values.layers),
        "prompt": args.length * (3 * 8 + 4 * width),
        "tokens": output.sequences[0].tolist(),
    }


def count_bytes(layer: Any) -> int:
    """Memory of one layer's keys and values."""
    quantized = getattr(layer, "_quantized_keys", None)
    tensors = (layer.keys, layer.values) if quantized is None else (quantized[0], layer._quantized_values[0])
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def run_alone(length: int, chunk: int, kv_cache: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    variant = ["--length", str(length), "--chunk", str(chunk), "--kv_cache", kv_cache]
    done = subprocess.run([sys.executable, *sys.argv, *variant], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run every variant and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32768, 65536, 131072], help="tokens of the prompt")
    parser.add_argument("--chunks", type=int, nargs="+", default=[2048, 8192], help="values of prefill_chunk_size")
    parser.add_argument("--kv_caches", nargs="+", default=["dynamic"], choices=KV_CACHES)
    parser.add_argument("--whole", type=int, default=32768, help="tokens of a prompt in one piece; 0: none")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4, help="query heads")
    parser.add_argument("--kv_heads", type=int, default=2)
    parser.add_argument("--head_dim", type=int, default=16)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kv_cache", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.length:
        print(json.dumps(measure(args)))
        return
    print(f"{'tokens':>7} {'chunk':>6} {'kv_cache':10} {'seconds':>8}   cache prompt   peak   rest  (MiB)")
    variants = [(length, chunk, name) for name in args.kv_caches for chunk in args.chunks for length in args.lengths]
    if args.whole:
        variants.append((args.whole, 0, "dynamic"))
    answers: dict[int, list[int]] = {}
    for length, chunk, name in variants:
        result = run_alone(length, chunk, name)
        if name != "quantized":
            assert answers.setdefault(length, result["tokens"]) == result["tokens"], "answers differ"
        cache, prompt, peak = (result[key] / MIB for key in ("cache", "prompt", "peak"))
        print(
            f"{length:7} {chunk or 'all':>6} {name:10} {result['seconds']:8.1f} {cache:6.0f} {prompt:6.0f} {peak:6.0f} "
            f"{peak - cache - prompt:6.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
