"""What is computed: InternVL2 with V2PE.

The folder needs torch and transformers only and uses relative imports, so that `save_pretrained` can copy it
beside a checkpoint and `AutoModel.from_pretrained(..., trust_remote_code=True)` loads it anywhere. Importing the
package loads nothing else: the names below are found when they are first asked for.
`internvl.model.registration.register_auto_classes` makes the Auto classes know the model.
"""

from importlib import import_module

_HOMES = {
    "InternVLChatModel": "modeling_internvl_chat",
    "InternVLChatConfig": "configuration_internvl_chat",
    "InternLM2Tokenizer": "tokenization_internlm2",
    "build_position_ids": "v2pe",
    "load_tokenizer": "registration",
    "register_auto_classes": "registration",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
