"""Arguments of `from_pretrained` that InternVL2's model cards show and transformers' own classes do not know."""

import logging
from collections.abc import Mapping
from typing import Any

from .attention import DEFAULT_ATTENTION, is_registered
from .errors import ConfigError

logger = logging.getLogger(__name__)

# Kernels that `packed_sdpa` chooses among by itself: torch's fused ones, flash attention on a GPU.
_CHOSEN_BY_TORCH = ("eager", "sdpa", "flash_attention_2", DEFAULT_ATTENTION)


def translate_loading_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as transformers takes them.

    `use_flash_attn` and the usual values of `attn_implementation` change nothing: torch's fused kernels run anyway.

    Raises:
        ConfigError: Quantisation is asked for, or an attention that is not registered.
    """
    options = dict(options)
    for name in ("load_in_8bit", "load_in_4bit", "quantization_config"):
        if options.pop(name, None):
            raise ConfigError(
                f"{name} is not supported: V2PE's positions were not tried on quantised weights; leave it out, and "
                "pass dtype=torch.bfloat16 or device_map='auto' for a model that does not fit"
            )
    if options.pop("use_flash_attn", None) is not None:
        logger.info("use_flash_attn has no effect: torch's fused attention runs, with its flash kernels on a GPU")
    attention = options.get("attn_implementation")
    if attention in _CHOSEN_BY_TORCH:
        logger.info("attn_implementation %s is run by %s, torch's fused attention", attention, DEFAULT_ATTENTION)
        del options["attn_implementation"]
    elif attention is not None and not is_registered(attention):
        raise ConfigError(
            f"attn_implementation is {attention!r}, expected one of {', '.join(_CHOSEN_BY_TORCH)}, or leave it out"
        )
    return options
