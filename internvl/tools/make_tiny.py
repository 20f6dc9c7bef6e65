"""Make a tiny InternVL2 checkpoint with random weights.

    python -m internvl.tools.make_tiny --out work_dirs/tiny

The folder has the layout, config fields and parameter names of released InternVL2 checkpoints, so every command of this
project takes it as it would take a real one. Default sizes and initial weights are a recipe that learns retrieval on a
CPU in minutes: 56-pixel tiles, four visual tokens each, two layers of width 64 on either side.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import GenerationConfig

from internvl.command import command
from internvl.errors import ConfigError
from internvl.model.configuration_internvl_chat import InternLM2Config, InternVisionConfig, InternVLChatConfig
from internvl.model.constants import IMG_CONTEXT_TOKEN
from internvl.model.conversation import get_conversation
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.tokenization_internlm2 import InternLM2Tokenizer
from internvl.options import describe_option, option
from internvl.parser import CommandParser
from internvl.synth.command import read_spec, run_builder
from internvl.synth.folders import Facts, Origin, make_folders
from internvl.synth.miniature.tiny_tokenizer import train_tokenizer

BUILDER = "internvl.tools.make_tiny"
TEMPLATE = "internlm2-chat"
_VISION_STD = 0.02
# Where transformers' Auto classes find the code that save_pretrained copies beside the weights.
_CHAT_AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}
_DECODER_AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternLM2Config",
    "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
    "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
}


@dataclass(frozen=True)
class TinySpec:
    """Sizes and initial weights."""

    seed: int = option(0, "Of the weights")
    vocab_size: int = option(896, "All tokens, special ones included")
    image_size: int = option(56, "Side of a tile in pixels")
    patch_size: int = option(14, "Side of a patch in pixels")
    max_dynamic_patch: int = option(64, "Most tiles per image")
    vision_hidden_size: int = option(64, "Width of the vision tower")
    vision_layers: int = option(2, "Layers of the vision tower")
    vision_heads: int = option(4, "Attention heads of the vision tower")
    vision_intermediate_size: int = option(128, "MLP width of the vision tower")
    hidden_size: int = option(64, "Width of the decoder")
    layers: int = option(2, "Layers of the decoder")
    heads: int = option(2, "Query heads of the decoder")
    kv_heads: int = option(2, "Key and value heads of the decoder")
    intermediate_size: int = option(128, "SwiGLU width of the decoder")
    bias: bool = option(False, "Biases in the decoder's attention (released checkpoints have none)")
    rope_theta: float = option(10000.0, "Base of the rotary angles")
    rope_factor: float = option(2.0, "Factor of dynamic NTK scaling")
    max_position_embeddings: int = option(512, "Positions beyond it are scaled when positions are `default`")
    embedding_std: float = option(
        0.1, "Standard deviation of token embeddings and of the output layer, which starts as their copy"
    )
    linear_std: float = option(0.05, "Standard deviation of the decoder's linear layers")

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("seed", "bias") and value <= 0:
                raise ConfigError(f"{field.name} is {value}, expected more than 0")
        for whole, part in (
            ("image_size", "patch_size"),
            ("vision_hidden_size", "vision_heads"),
            ("hidden_size", "heads"),
            ("heads", "kv_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ConfigError(
                    f"{whole} is {getattr(self, whole)}, expected a multiple of {part} ({getattr(self, part)})"
                )
        if self.image_size // self.patch_size % 2:
            raise ConfigError(
                f"a tile has {self.image_size // self.patch_size} patches a side, expected an even number"
            )


def build_config(spec: TinySpec, tokenizer: InternLM2Tokenizer) -> InternVLChatConfig:
    """The config of the chat model, with the fields of released InternVL2 checkpoints.

    No thumbnail: an image needle of two tiles shows two digits, and a thumbnail would show both at once, so that the
    order of visual tokens would not be needed to answer.
    """
    vision = InternVisionConfig(
        architectures=["InternVisionModel"],
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        hidden_size=spec.vision_hidden_size,
        num_hidden_layers=spec.vision_layers,
        num_attention_heads=spec.vision_heads,
        intermediate_size=spec.vision_intermediate_size,
        qkv_bias=True,
        qk_normalization=False,
        norm_type="layer_norm",
        initializer_factor=1.0,
    )
    decoder = InternLM2Config(
        architectures=["InternLM2ForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        intermediate_size=spec.intermediate_size,
        bias=spec.bias,
        max_position_embeddings=spec.max_position_embeddings,
        rope_theta=spec.rope_theta,
        rope_scaling={"type": "dynamic", "factor": spec.rope_factor},
        rms_norm_eps=1e-5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    decoder.update({"auto_map": dict(_DECODER_AUTO_MAP)})
    config = InternVLChatConfig(
        architectures=["InternVLChatModel"],
        vision_config=vision,
        llm_config=decoder,
        select_layer=-1,
        force_image_size=spec.image_size,
        downsample_ratio=0.5,
        template=TEMPLATE,
        ps_version="v2",
        dynamic_image_size=True,
        use_thumbnail=False,
        max_dynamic_patch=spec.max_dynamic_patch,
        img_context_token_id=cast(int, tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)),
    )
    config.update({"auto_map": dict(_CHAT_AUTO_MAP)})
    return config


@torch.no_grad()
def initialise(model: nn.Module, spec: TinySpec) -> None:
    """Draw all weights from a generator seeded by `spec.seed`, in the order of the parameters' names.

    Decoder: normal with the spec's deviations. Vision tower and projector: uniform within 1 / sqrt(inputs), as torch
    initialises linear layers; class token and positions normal with deviation 0.02. Norms and layer scales are 1,
    their biases 0.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    parameters = dict(model.named_parameters())
    for name in sorted(parameters):
        _draw(name, parameters, spec, generator)
    # Retrieval is copying: with the output layer a copy of the embeddings, what attention fetches is already readable.
    output, embeddings = (parameters[f"language_model.{name}.weight"] for name in ("output", "model.tok_embeddings"))
    output.copy_(embeddings)


def _draw(name: str, parameters: Mapping[str, nn.Parameter], spec: TinySpec, generator: torch.Generator) -> None:
    parameter = parameters[name]
    layer, _, kind = name.rpartition(".")
    weight = parameters.get(f"{layer}.weight", parameter)
    if name.startswith("language_model."):
        _draw_decoder(name, parameter, spec, generator)
    elif kind in ("class_embedding", "position_embedding"):
        parameter.normal_(0.0, _VISION_STD, generator=generator)
    elif kind in ("ls1", "ls2"):
        parameter.fill_(1.0)
    elif weight.dim() == 1:  # a norm
        parameter.fill_(1.0 if kind == "weight" else 0.0)
    else:
        bound = 1 / math.sqrt(weight[0].numel())
        parameter.uniform_(-bound, bound, generator=generator)


def _draw_decoder(name: str, parameter: nn.Parameter, spec: TinySpec, generator: torch.Generator) -> None:
    if name.endswith("bias"):
        parameter.zero_()
    elif parameter.dim() == 1:
        parameter.fill_(1.0)
    elif "tok_embeddings" in name:
        parameter.normal_(0.0, spec.embedding_std, generator=generator)
    else:
        parameter.normal_(0.0, spec.linear_std, generator=generator)


def make_checkpoint(out: Path, spec: TinySpec, *, max_shard_size: str = "5GB", overwrite: bool = False) -> bool:
    """Make the checkpoint folder `out`.

    Args:
        out: The folder; it appears only when it is complete.
        spec: Sizes and weights.
        max_shard_size: Largest weight file, for example `200KB`; weights that need more are split over several.
        overwrite: Replace a folder that this tool made with other arguments.

    Returns:
        False when the finished folder was there already.

    Raises:
        DataError: `out` exists and may not be replaced.
        ConfigError: A size is wrong.
    """

    def write(staging: Path) -> Facts:
        folder = staging / out.name
        num_parameters = _write_checkpoint(folder, spec, max_shard_size)
        (folder / "README.md").write_text(_write_card(spec, num_parameters), encoding="utf-8")
        return {"num_parameters": num_parameters}

    origin = Origin.of(BUILDER, {**asdict(spec), "max_shard_size": max_shard_size})
    return make_folders(out.parent, [Path(out.name)], origin, write, overwrite=overwrite)


def _write_checkpoint(folder: Path, spec: TinySpec, max_shard_size: str) -> int:
    tokenizer = train_tokenizer(folder, vocab_size=spec.vocab_size, template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    model = InternVLChatModel(build_config(spec, tokenizer)).float()
    initialise(model, spec)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    stop_id = tokenizer.convert_tokens_to_ids(get_conversation(TEMPLATE).stop_token)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, stop_id],
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _write_card(spec: TinySpec, num_parameters: int) -> str:
    num_image_token = (spec.image_size // spec.patch_size) ** 2 // 4
    return f"""# A tiny InternVL2

Random weights in the format of InternVL2 checkpoints, made by `python -m {BUILDER}` (seed {spec.seed}). This is not a
released model and knows nothing: it is what a fine-tuning run on a CPU starts from.

- {num_parameters:,} parameters, vocabulary {spec.vocab_size}
- vision tower: {spec.vision_layers} layers of width {spec.vision_hidden_size}
- decoder: {spec.layers} layers of width {spec.hidden_size}
- tiles of {spec.image_size} x {spec.image_size} pixels, {num_image_token} visual tokens each, no thumbnail
- tokenizer: sentencepiece BPE with the conventions of InternLM2, trained on documentation that ships with Python
- weights are drawn, not trained; all arguments are in `datasheet.json`
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line: one option per field of `TinySpec`."""
    parser = CommandParser(
        prog=f"python -m {BUILDER}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("work_dirs/tiny"),
                        help="checkpoint folder to make (default: %(default)s)")  # fmt: skip
    parser.add_argument("--max_shard_size", default="5GB",
                        help="largest weight file, for example 200KB (default: %(default)s)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true",
                        help="replace a folder that this command made with other arguments")  # fmt: skip
    for field in fields(TinySpec):
        text = describe_option(field)
        if field.type is bool:
            parser.add_argument(f"--{field.name}", action="store_true", help=text)
        else:
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default, help=text)
    return parser


def build(arguments: argparse.Namespace) -> tuple[bool, list[Path]]:
    """Make the checkpoint that a command line asks for."""
    spec = read_spec(TinySpec, arguments)
    out: Path = arguments.out
    made = make_checkpoint(out, spec, max_shard_size=arguments.max_shard_size, overwrite=arguments.overwrite)
    return made, [out]


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_builder(build_parser(), argv, build)


if __name__ == "__main__":
    sys.exit(main())
