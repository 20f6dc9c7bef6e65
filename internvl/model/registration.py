"""Make transformers' Auto classes and tokenizer loading know this model (called by entry points, never at import)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from .checkpoint_folder import check_text_files, find_checkpoint, read_json
from .configuration_internvl_chat import InternLM2Config, InternVisionConfig, InternVLChatConfig
from .errors import CheckpointError, summarise
from .modeling_intern_vit import InternVisionModel
from .modeling_internlm2 import InternLM2ForCausalLM, InternLM2Model
from .modeling_internvl_chat import InternVLChatModel
from .tokenization_internlm2 import InternLM2Tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken")


def register_auto_classes() -> None:
    """Register configs and models under their `model_type`; calling it again changes nothing."""
    for config in (InternVLChatConfig, InternLM2Config, InternVisionConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(InternVLChatConfig, InternVLChatModel, exist_ok=True)
    AutoModel.register(InternLM2Config, InternLM2Model, exist_ok=True)
    AutoModel.register(InternVisionConfig, InternVisionModel, exist_ok=True)
    AutoModelForCausalLM.register(InternLM2Config, InternLM2ForCausalLM, exist_ok=True)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint: InternLM2's, or any that AutoTokenizer loads without code of the folder.

    Raises:
        CheckpointError: No such folder, or no tokenizer in it that can be loaded.
    """
    folder = find_checkpoint(folder)
    check_text_files(folder)
    if not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        raise CheckpointError(
            f"{folder} holds no tokenizer: expected tokenizer.model (InternLM2), tokenizer.json, or vocab.json and "
            "merges.txt; copy the release's into the folder"
        )
    settings = folder / "tokenizer_config.json"
    fields = read_json(settings) if settings.is_file() else {}
    name = fields.get("tokenizer_class")
    is_internlm2 = (folder / "tokenizer.model").is_file() and (name is None or "InternLM2" in str(name))
    try:
        with _without_nulls(folder, fields, may_lack_tokens=not is_internlm2) as source:
            if is_internlm2:
                tokenizer = InternLM2Tokenizer.from_pretrained(source)
            else:
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # libraries that read tokenizers raise whatever they like
        raise CheckpointError(
            f"the tokenizer of {folder} cannot be loaded: {summarise(error)}; copy the release's tokenizer files"
        ) from error
    tokenizer.name_or_path = str(folder)
    return tokenizer


@contextmanager
def _without_nulls(folder: Path, fields: dict[str, object], *, may_lack_tokens: bool) -> Iterator[Path]:
    """The folder, or links to its files with a tokenizer_config.json in which no field is null.

    Null means the default, which libraries take from a field that is absent only. That of a token (`bos_token`, ...)
    says that there is none.
    """
    kept = {
        name: value
        for name, value in fields.items()
        if value is not None or (may_lack_tokens and name.endswith("_token"))
    }
    if kept == fields:
        yield folder
        return
    with TemporaryDirectory() as links:
        for path in folder.resolve().iterdir():
            if path.name != "tokenizer_config.json":
                (Path(links) / path.name).symlink_to(path)
        (Path(links) / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
        yield Path(links)
