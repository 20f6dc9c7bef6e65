"""Our decoder and vision tower against transformers' classes of the same size, as ratios within one run.

    python benchmarks/decoder.py [--threads 1] [--tokens 4096] [--only decoder|vision] [--profile]

Decoder: forward and backward of the mean cross entropy of 8 documents of unequal lengths (`--tokens` in total), in
float32. `InternLM2ForCausalLM` takes them as one packed row, `LlamaForCausalLM` (sdpa) one by one and as one batch
padded on the right. Tokens per second count real tokens only. Vision: forward of 16 tiles of 224 pixels by
`InternVisionModel` and by `InternVLVisionModel` (sdpa).

The models share their weights and every round compares their results, so all variants do the same work. Variants take
turns, and the best repeat counts. Wall time and CPU time are both given, because other programs on the machine change
CPU time less. The process keeps memory that it frees, as training on a CPU does (not with `--give_back`), so it reaches
its final size after two rounds.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.internvl import InternVLVisionConfig, InternVLVisionModel

from internvl.model.configuration_internvl_chat import InternLM2Config, InternVisionConfig
from internvl.model.loss import shift_targets, weighted_cross_entropy
from internvl.model.modeling_intern_vit import InternVisionModel
from internvl.model.modeling_internlm2 import InternLM2ForCausalLM
from internvl.train.memory_savings import keep_freed_memory

SHARES = (24, 14, 10, 6, 4, 3, 2, 1)  # lengths of the documents in 64ths of the row
WIDTH, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY = 512, 1536, 12, 8, 4, 2048
TILES, SIDE, PATCH, VIT_WIDTH, VIT_LAYERS, VIT_HEADS = 16, 224, 14, 384, 6, 6


def make_decoders() -> tuple[InternLM2ForCausalLM, LlamaForCausalLM]:
    """Both decoders with the same random weights, in training mode."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
    }
    ours = InternLM2ForCausalLM(InternLM2Config(**sizes, bias=False, rope_theta=1e4, rope_scaling=None))
    rope = {"rope_type": "default", "rope_theta": 1e4}
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope, attn_implementation="sdpa"))
    weights = {
        "model.embed_tokens.weight": ours.model.tok_embeddings.weight,
        "model.norm.weight": ours.model.norm.weight,
        "lm_head.weight": ours.output.weight,
    }
    for i, layer in enumerate(ours.model.layers):
        to = f"model.layers.{i}"
        groups = layer.attention.wqkv.weight.unflatten(0, (KV_HEADS, -1, WIDTH // HEADS))
        weights |= {
            f"{to}.self_attn.q_proj.weight": groups[:, :-2].flatten(0, 2),
            f"{to}.self_attn.k_proj.weight": groups[:, -2].flatten(0, 1),
            f"{to}.self_attn.v_proj.weight": groups[:, -1].flatten(0, 1),
            f"{to}.self_attn.o_proj.weight": layer.attention.wo.weight,
            f"{to}.mlp.gate_proj.weight": layer.feed_forward.w1.weight,
            f"{to}.mlp.up_proj.weight": layer.feed_forward.w3.weight,
            f"{to}.mlp.down_proj.weight": layer.feed_forward.w2.weight,
            f"{to}.input_layernorm.weight": layer.attention_norm.weight,
            f"{to}.post_attention_layernorm.weight": layer.ffn_norm.weight,
        }
    theirs.load_state_dict({name: weight.detach() for name, weight in weights.items()})
    return ours.train(), theirs.train()


def make_decoder_variants(lengths: Sequence[int]) -> dict[str, Callable[[], float]]:
    """Forward and backward over all documents, each returning the mean loss of all supervised tokens."""
    ours, theirs = make_decoders()
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in lengths]
    row = torch.cat(documents).unsqueeze(0)
    borders = torch.tensor([0, *lengths]).cumsum(0)
    row_labels = row.clone()
    row_labels[0, borders[:-1]] = -100  # the first token of a document has none in front that could foretell it
    longest = max(lengths)
    padded = torch.stack([F.pad(ids, (0, longest - len(ids))) for ids in documents])
    mask = torch.stack([F.pad(torch.ones_like(ids), (0, longest - len(ids))) for ids in documents])
    padded_labels = padded.masked_fill(mask == 0, -100)
    supervised = sum(lengths) - len(lengths)

    def packed() -> float:
        states = ours.model(input_ids=row, cu_seqlens=borders, use_cache=False).last_hidden_state
        loss = weighted_cross_entropy(states, ours.output.weight, *shift_targets(row_labels, None))
        loss.backward()
        return loss.item()

    def one_by_one() -> float:
        total = 0.0
        for ids in documents:
            batch = ids.unsqueeze(0)
            loss = theirs(input_ids=batch, labels=batch, use_cache=False).loss * ((len(ids) - 1) / supervised)
            loss.backward()
            total += loss.item()
        return total

    def one_padded_batch() -> float:
        loss = theirs(input_ids=padded, attention_mask=mask, labels=padded_labels, use_cache=False).loss
        loss.backward()
        return loss.item()

    def with_fresh_gradients(model: nn.Module, work: Callable[[], float]) -> Callable[[], float]:
        def step() -> float:
            model.zero_grad(set_to_none=True)
            return work()

        return step

    return {
        "ours, packed row": with_fresh_gradients(ours, packed),
        "Llama, one by one": with_fresh_gradients(theirs, one_by_one),
        "Llama, padded batch": with_fresh_gradients(theirs, one_padded_batch),
    }


def make_vision_towers() -> tuple[InternVisionModel, InternVLVisionModel]:
    """Both towers with the same random weights, in evaluation mode."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": VIT_WIDTH,
        "num_hidden_layers": VIT_LAYERS,
        "num_attention_heads": VIT_HEADS,
        "intermediate_size": 4 * VIT_WIDTH,
        "layer_norm_eps": 1e-6,
    }
    ours = InternVisionModel(
        InternVisionConfig(
            **sizes,
            image_size=SIDE,
            patch_size=PATCH,
            qkv_bias=True,
            qk_normalization=False,
            norm_type="layer_norm",
        )
    )
    theirs = InternVLVisionModel(
        InternVLVisionConfig(
            **sizes,
            image_size=[SIDE, SIDE],
            patch_size=[PATCH, PATCH],
            attention_bias=True,
            use_qk_norm=False,
            norm_type="layer_norm",
            use_absolute_position_embeddings=True,
            use_mean_pooling=True,
            attn_implementation="sdpa",
        )
    )
    weights = {
        "embeddings.cls_token": ours.embeddings.class_embedding,
        "embeddings.position_embeddings": ours.embeddings.position_embedding,
        "embeddings.patch_embeddings.projection.weight": ours.embeddings.patch_embedding.weight,
        "embeddings.patch_embeddings.projection.bias": ours.embeddings.patch_embedding.bias,
    }
    for i, layer in enumerate(ours.encoder.layers):
        to = f"encoder.layer.{i}"
        for kind in ("weight", "bias"):
            query, key, value = getattr(layer.attn.qkv, kind).chunk(3)
            weights |= {
                f"{to}.attention.q_proj.{kind}": query,
                f"{to}.attention.k_proj.{kind}": key,
                f"{to}.attention.v_proj.{kind}": value,
                f"{to}.attention.projection_layer.{kind}": getattr(layer.attn.proj, kind),
                f"{to}.mlp.fc1.{kind}": getattr(layer.mlp.fc1, kind),
                f"{to}.mlp.fc2.{kind}": getattr(layer.mlp.fc2, kind),
                f"{to}.layernorm_before.{kind}": getattr(layer.norm1, kind),
                f"{to}.layernorm_after.{kind}": getattr(layer.norm2, kind),
            }
        weights |= {f"{to}.lambda_1": layer.ls1, f"{to}.lambda_2": layer.ls2}
    theirs.load_state_dict({name: weight.detach() for name, weight in weights.items()})
    return ours.eval(), theirs.eval()


def make_vision_variants() -> dict[str, Callable[[], float]]:
    """Forward of all tiles without gradients, each returning the mean absolute hidden state."""
    ours, theirs = make_vision_towers()
    tiles = torch.randn(TILES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def our_tower() -> Tensor:
        return ours(tiles)

    @torch.no_grad()
    def their_tower() -> Tensor:
        return theirs(tiles).last_hidden_state

    torch.testing.assert_close(our_tower(), their_tower(), rtol=1e-4, atol=1e-4)
    return {
        "ours": lambda: our_tower().abs().mean().item(),
        "InternVLVisionModel": lambda: their_tower().abs().mean().item(),
    }


def measure_seconds(variants: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, tuple[float, float]]:
    """Best (clock, CPU) seconds of every variant; they take turns and must agree on their result every time."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(repeats):
        results = []
        for name, work in variants.items():
            clock, cpu = time.perf_counter(), time.process_time()
            results.append(work())
            seconds[name].append((time.perf_counter() - clock, time.process_time() - cpu))
            print(f"  {name} {seconds[name][-1][0]:.3f} s", file=sys.stderr, flush=True)
        torch.testing.assert_close(torch.tensor(results), torch.full((len(results),), results[0]), rtol=1e-4, atol=0)
    return {name: (min(t[0] for t in times), min(t[1] for t in times)) for name, times in seconds.items()}


def print_table(title: str, unit: str, count: int, seconds: Mapping[str, tuple[float, float]]) -> None:
    """One line per variant; the first variant is ours."""
    print(title)
    our_clock, our_cpu = next(iter(seconds.values()))
    for name, (clock, cpu) in seconds.items():
        print(
            f"  {name:20} clock {clock:7.3f} s, {count / clock:8.1f} {unit}/s, ours is {clock / our_clock:.2f}x;  "
            f"CPU {cpu:7.3f} s, ours is {cpu / our_cpu:.2f}x"
        )


def print_profiles(variants: Mapping[str, Callable[[], float]]) -> None:
    """The costliest operators of every variant."""
    for name, work in variants.items():
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            work()
        print(name)
        print(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=60))


def main() -> None:
    """Compare the decoders, then the towers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=4096, help="real tokens of the decoder's row")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--only", choices=["decoder", "vision"])
    parser.add_argument("--profile", action="store_true", help="print the costliest operators instead of times")
    parser.add_argument("--give_back", action="store_true", help="leave the C library's habit of giving memory back")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.give_back:
        keep_freed_memory()
    if args.only != "vision":
        lengths = [share * args.tokens // sum(SHARES) for share in SHARES]
        decoders = make_decoder_variants(lengths)
        if args.profile:
            print_profiles(decoders)
        else:
            title = f"decoder, forward and backward, documents of {', '.join(map(str, lengths))} tokens"
            print_table(title, "tokens", sum(lengths), measure_seconds(decoders, args.repeats))
    if args.only != "decoder":
        towers = make_vision_variants()
        if args.profile:
            print_profiles(towers)
        else:
            title = f"vision tower, forward, {TILES} tiles of {SIDE} pixels"
            print_table(title, "tiles", TILES, measure_seconds(towers, args.repeats))


if __name__ == "__main__":
    main()
