"""A tiny checkpoint and a tiny data set on disk, and how to train the one on the other in processes of their own."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image

from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.constants import IMG_CONTEXT_TOKEN, SPECIAL_TOKENS
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.tokenization_internlm2 import InternLM2Tokenizer
from internvl.parallel.launch import find_free_port
from tests.warm_python import warm_python

REPOSITORY = Path(__file__).parents[2]
ENTRY = REPOSITORY / "internvl" / "train" / "internvl_chat_finetune.py"
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>"]


def make_tokenizer(folder: Path) -> InternLM2Tokenizer:
    """A character-level sentencepiece model and the special tokens."""
    text = folder / "text.txt"
    text.write_text("abcdefghijklmnopqrstuvwxyz 0123456789 .,?\n" * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="char",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    text.unlink()
    tokenizer = InternLM2Tokenizer(str(folder / "tokenizer.model"))
    tokenizer.add_special_tokens({"additional_special_tokens": [*CHAT_TOKENS, *SPECIAL_TOKENS]})
    return tokenizer


def make_checkpoint(folder: Path) -> Path:
    """An InternVL2-format folder: 28-pixel tiles, 4 visual tokens each, width 32, 2 + 2 layers."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    config = InternVLChatConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
            "norm_type": "layer_norm",
            "qk_normalization": False,
            "qkv_bias": True,
            "initializer_factor": 1.0,
        },
        llm_config={
            "architectures": ["InternLM2ForCausalLM"],
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bias": False,
            "max_position_embeddings": 512,
        },
        ps_version="v2",
        template="internlm2-chat",
        img_context_token_id=tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN),
    )
    InternVLChatModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2], "transformers_version": "5.0.0"}')
    return folder


def make_data(folder: Path, num_records: int = 96) -> Path:
    """Texts and captioned pictures of uneven length; every third record has no picture. Returns the meta json."""
    rng = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir(parents=True)
    records = []
    for index in range(num_records):
        answer = " ".join(["ab", "cd", "ef"][: 1 + index % 3]) + f" {index % 7}" * (1 + index % 5)
        record = {"conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": answer}]}
        if index % 3:
            pixels = rng.integers(0, 256, (28, 28 * (1 + index % 2), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{index}.png")
            record["image"] = f"{index}.png"
        records.append(record)
    annotation = folder / "train.jsonl"
    annotation.write_text("".join(json.dumps(record) + "\n" for record in records))
    meta = folder / "meta.json"
    source = {"annotation": "train.jsonl", "root": "images", "data_augment": False, "repeat_time": 1}
    meta.write_text(json.dumps({"tiny": source}))
    return meta


def flags(checkpoint: Path, meta: Path, output_dir: Path, **changes: object) -> list[str]:
    """A complete command line for the tiny run; `changes` replace or (None) drop flags."""
    values: dict[str, object] = {
        "model_name_or_path": checkpoint,
        "meta_path": meta,
        "output_dir": output_dir,
        "force_image_size": 28,
        "max_seq_length": 256,
        "max_packed_tokens": 320,
        "num_images_expected": 16,
        "max_dynamic_patch": 2,
        "dynamic_image_size": True,
        "use_packed_ds": True,
        "per_device_train_batch_size": 1,
        "max_steps": 8,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "loss_reduction": "square",
        "loss_reduction_all_gather": True,
        "rope_pos_id_version": "v2pe_rnd",
        **changes,
    }
    return [text for name, value in values.items() if value is not None for text in (f"--{name}", str(value))]


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without any launcher's variables, one thread per process."""
    drop = ("RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "SLURM_", "LAUNCHER")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **extra}


def train(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the training entry in a process of its own."""
    return launch(ENTRY, arguments, num_processes=1)


def launch(script: Path, arguments: list[str], *, num_processes: int) -> subprocess.CompletedProcess[str]:
    """Run a script: plainly, or under torchrun for several processes."""
    launcher = torchrun(num_processes) if num_processes > 1 else [warm_python()]
    command = [*launcher, str(script), *arguments]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=900)


def torchrun(num_processes: int) -> list[str]:
    """What starts ranks on this machine; finding each other by itself, with --standalone, takes it another second."""
    port = f"--master_port={find_free_port()}"
    return [warm_python(), "-m", "torch.distributed.run", port, f"--nproc_per_node={num_processes}"]


def read_losses(output_dir: Path) -> list[float]:
    """Logged losses, step by step."""
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def tail(result: subprocess.CompletedProcess[str]) -> str:
    """The end of a failed run, for assertion messages, without blank lines."""
    return re.sub(r"\n+", "\n", result.stderr)[-3000:]
