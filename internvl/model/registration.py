"""Make transformers' Auto classes and tokenizer loading know this model (called by entry points, never at import)."""

import json
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from .configuration_internvl_chat import InternLM2Config, InternVisionConfig, InternVLChatConfig
from .errors import CheckpointError
from .modeling_intern_vit import InternVisionModel
from .modeling_internlm2 import InternLM2ForCausalLM, InternLM2Model
from .modeling_internvl_chat import InternVLChatModel
from .tokenization_internlm2 import InternLM2Tokenizer


def register_auto_classes() -> None:
    """Register configs and models under their `model_type`; calling it again changes nothing."""
    for config in (InternVLChatConfig, InternLM2Config, InternVisionConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(InternVLChatConfig, InternVLChatModel, exist_ok=True)
    AutoModel.register(InternLM2Config, InternLM2Model, exist_ok=True)
    AutoModel.register(InternVisionConfig, InternVisionModel, exist_ok=True)
    AutoModelForCausalLM.register(InternLM2Config, InternLM2ForCausalLM, exist_ok=True)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: No such folder, or no tokenizer in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    settings = folder / "tokenizer_config.json"
    name = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") if settings.is_file() else None
    if (folder / "tokenizer.model").is_file() and (name is None or "InternLM2" in name):
        return InternLM2Tokenizer.from_pretrained(folder)
    if (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file():
        return AutoTokenizer.from_pretrained(folder)
    raise CheckpointError(f"{folder} holds no tokenizer: expected tokenizer.model (InternLM2) or tokenizer.json")
