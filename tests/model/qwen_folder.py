"""A tiny checkpoint folder with a Qwen2 decoder and a byte-level tokenizer, as fast or slow tokenizers are saved."""

import json
from pathlib import Path

from transformers import AddedToken, Qwen2Tokenizer

from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.constants import SPECIAL_TOKENS
from internvl.model.modeling_internvl_chat import InternVLChatModel
from tests.train.tiny_run import CHAT_TOKENS


def make_qwen_checkpoint(folder: Path) -> None:
    """Weights in several shards, and a tokenizer.json."""
    letters = [*map(chr, range(33, 127)), "Ġ", "Ċ", "ab"]
    tokenizer = Qwen2Tokenizer(vocab={letter: number for number, letter in enumerate(letters)}, merges=[("a", "b")])
    special = [AddedToken(token, special=True, normalized=False) for token in (*CHAT_TOKENS, *SPECIAL_TOKENS)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
              "image_size": 28, "patch_size": 7}  # fmt: skip
    decoder = {"architectures": ["Qwen2ForCausalLM"], "vocab_size": len(tokenizer), "hidden_size": 8,
               "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
               "max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 2.0}}  # fmt: skip
    config = InternVLChatConfig(vision_config=vision, llm_config=decoder, template="Hermes-2", ps_version="v2")
    InternVLChatModel(config).save_pretrained(folder, max_shard_size="8KB")
    tokenizer.save_pretrained(folder)


def split_tokenizer(folder: Path) -> None:
    """Put vocab.json and merges.txt in the place of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("".join(" ".join(pair) + "\n" for pair in model["merges"]), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
