"""V2PE for vLLM: serves InternVL2 checkpoints whose visual tokens advance by fractions of a position."""


def register() -> None:
    """Make vLLM know the model; it calls this in every process (entry point `vllm.general_plugins`)."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from .config import InternLM2TextConfig, V2PEInternVLConfig

    for config in (InternLM2TextConfig, V2PEInternVLConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    ModelRegistry.register_model("V2PEInternVLChatModel", "v2pe_vllm.model:V2PEInternVLChatModel")
