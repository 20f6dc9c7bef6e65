"""The estimator's peak memory against the measured one: real training steps of small models on the CPU.

    python benchmarks/plan.py [--only NAME]

Each case runs in its own process: a float32 model, Adam, two steps of two micro-batches, so that gradients and
optimiser states exist while activations do. Measured is the peak of resident memory above the level before the first
step, after a warm-up on a short row. Predicted is the estimator's peak without weights and batch, which were there
before. glibc is told to return freed memory at once, so that resident memory is the memory of tensors.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch

from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.plan.memory import MemoryPlan, plan_memory
from internvl.plan.setting import Setting
from internvl.plan.sizes import extract_sizes

VISUAL = 5
# tokens, tiles, vocabulary, decoder (width, SwiGLU width, layers), tower (width, layers), vit_batch_size
CASES = {
    "long row": (4096, 0, 2048, (256, 1024, 4), (64, 2), None),
    "long row, wide": (2048, 0, 2048, (512, 1536, 3), (64, 2), None),
    "many tiles": (1536, 16, 2048, (128, 512, 2), (192, 4), None),
    "tiles in batches": (1536, 16, 2048, (128, 512, 2), (192, 4), 4),
    "large vocabulary": (1024, 0, 49152, (256, 512, 2), (64, 2), None),
    "many weights": (512, 2, 4096, (512, 2048, 6), (192, 2), None),
}
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
}


def make_config(name: str) -> InternVLChatConfig:
    """Sizes of a case in the format of released checkpoints."""
    _, _, vocabulary, (width, wide, layers), (vision_width, vision_layers), _ = CASES[name]
    return InternVLChatConfig(
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": 4 * vision_width,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_width // 32,
            "image_size": 224,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
        },
        llm_config={
            "architectures": ["InternLM2ForCausalLM"],
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": wide,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": width // 64,
            "bias": False,
        },
        ps_version="v2",
        img_context_token_id=VISUAL,
    )


def make_setting(name: str, *, grad_checkpoint: bool) -> Setting:
    """What the estimator is asked: one process, no ZeRO, float32."""
    tokens, tiles, *_, vit_batch_size = CASES[name]
    return Setting(
        max_packed_tokens=tokens,
        tiles=max(tiles, 1),  # a row without images runs a blank tile
        vit_batch_size=vit_batch_size,
        grad_checkpoint=grad_checkpoint,
        gpus=1,
        zero_stage=0,
        dtype="float32",
    )


def predict(name: str, *, grad_checkpoint: bool) -> MemoryPlan:
    """The estimator's answer."""
    return plan_memory(extract_sizes(name, make_config(name)), make_setting(name, grad_checkpoint=grad_checkpoint))


def make_batch(config: InternVLChatConfig, tokens: int, tiles: int) -> dict[str, torch.Tensor]:
    """One row of two documents, all of it supervised."""
    ids = torch.randint(10, config.llm_config.vocab_size, (1, tokens))
    ids[:, 1 : 1 + tiles * config.num_image_token] = VISUAL
    batch = {
        "input_ids": ids,
        "labels": ids.clone(),
        "cu_seqlens": torch.tensor([0, tokens - tokens // 4, tokens]),
    }
    if tiles:
        batch["pixel_values"] = torch.randint(0, 256, (tiles, 3, 224, 224), dtype=torch.uint8)
    return batch


def measure(name: str, *, grad_checkpoint: bool) -> int:
    """Bytes of the peak above what was resident before the first step."""
    tokens, tiles, *_, vit_batch_size = CASES[name]
    torch.manual_seed(0)
    config = make_config(name)
    model = InternVLChatModel(config).float().train()
    model.vit_batch_size = vit_batch_size
    if grad_checkpoint:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batch = make_batch(config, tokens, tiles)
    model(**make_batch(config, 128, min(tiles, 1))).loss.backward()
    optimizer.zero_grad(set_to_none=True)
    before = _resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is reset
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        for _ in range(2):
            model(**batch).loss.backward()
        optimizer.step()
    return _read_status("VmHWM") - before


def _read_status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Run all cases with and without recomputation and print predicted against measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], grad_checkpoint=args.measure[1] == "True")))
        return
    print(f"{'case':18} recompute  predicted   measured  predicted / measured  peak in")
    worst = 0.0
    for name in [args.only] if args.only else CASES:
        for grad_checkpoint in (False, True):
            plan = predict(name, grad_checkpoint=grad_checkpoint)
            predicted = plan.total - plan.items["weights"] - plan.items["batch"]
            command = [sys.executable, __file__, "--measure", name, str(grad_checkpoint)]
            environment = {**os.environ, **_ENVIRONMENT}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            measured = json.loads(done.stdout.splitlines()[-1])
            ratio = predicted / measured
            worst = max(worst, abs(ratio - 1))
            print(
                f"{name:18} {'yes' if grad_checkpoint else 'no':9} {predicted / 2**20:6.0f} MiB "
                f"{measured / 2**20:6.0f} MiB  {ratio:20.3f}  {plan.phase}",
                flush=True,
            )
    print(f"largest deviation {worst:.1%}")


if __name__ == "__main__":
    main()
