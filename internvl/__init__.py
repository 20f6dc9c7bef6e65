"""Training and inference of long-context vision-language models: InternVL2 with Variable Visual Position Encoding."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from internvl.command import announce_interrupts
from internvl.moved_names import FINDER

__version__ = "0.2.0"

sys.meta_path.append(FINDER)
# `python -m` is looking for a command of this package, and importing what the command needs takes seconds.
if sys.argv[:1] == ["-m"]:
    announce_interrupts()

if TYPE_CHECKING:
    from internvl.infer.session import Session
    from internvl.model.modeling_internvl_chat import InternVLChatModel
    from internvl.model.registration import load_tokenizer

__all__ = ["InternVLChatModel", "Session", "load_tokenizer"]
_HOMES = {
    "InternVLChatModel": "internvl.model.modeling_internvl_chat",
    "Session": "internvl.infer.session",
    "load_tokenizer": "internvl.model.registration",
}


def __getattr__(name: str) -> object:
    """Names of the top level, imported when they are asked for: torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
