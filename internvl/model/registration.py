"""Make transformers' Auto classes and tokenizer loading know this model (called by entry points, never at import)."""

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
    if (folder / "tokenizer.model").is_file():
        return InternLM2Tokenizer.from_pretrained(folder)
    if (folder / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(folder, use_fast=True)
    raise CheckpointError(f"{folder} holds no tokenizer: expected tokenizer.model (InternLM2) or tokenizer.json")
