"""Sizes of a chat model and how many parameters it has, from its config alone.

    part       parameters                                                        trained
    vision     embeddings + layers x (4 linear layers, norms, scales)            unless frozen; or adapters only
    projector  LayerNorm + two linear layers                                     unless frozen
    decoder    embeddings + layers x (attention, SwiGLU, norms) + output layer   unless frozen; or adapters only

Shapes are those of the modules in internvl/model; which weights train follows internvl/train/trainable.py.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, cast

from transformers import PreTrainedConfig

from internvl.errors import CheckpointError, ConfigError
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.loading import read_chat_config
from internvl.plan.released_models import RELEASED

Family = Literal["internlm2", "llama", "qwen2", "qwen3", "phi3"]


@dataclass(frozen=True)
class Linear:
    """A linear layer: `inputs` -> `outputs` numbers per token."""

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def matrix(self) -> int:
        """Weights of the matrix; two FLOPs each per token."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Weights and bias."""
        return self.matrix + self.outputs * self.bias

    def count_adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter: A (rank, inputs), B (outputs, rank)."""
        return rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of the vision tower; names as in `InternVisionConfig`."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    qkv_bias: bool
    qk_normalization: bool
    norm_type: str

    @property
    def num_patches(self) -> int:
        """Patches of a tile; the tower sees one more token, the class token."""
        return (self.image_size // self.patch_size) ** 2

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Of a layer: qkv, proj, fc1, fc2."""
        hidden, wide = self.hidden_size, self.intermediate_size
        return (
            Linear(hidden, 3 * hidden, self.qkv_bias),
            Linear(hidden, hidden, True),
            Linear(hidden, wide, True),
            Linear(wide, hidden, True),
        )

    @property
    def layer_parameters(self) -> int:
        """Linear layers, two norms, two scales, and norms of queries and keys if there are any."""
        norms = 2 * self.hidden_size * (2 if self.norm_type == "layer_norm" else 1)
        others = 2 * self.hidden_size * (2 if self.qk_normalization else 1)
        return sum(linear.parameters for linear in self.linears) + norms + others

    @property
    def embedding_parameters(self) -> int:
        """Patch convolution with bias, class token, positions."""
        return self.hidden_size * (3 * self.patch_size**2 + 1 + 1 + self.num_patches + 1)


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of the decoder; names as in its config."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False

    @property
    def query_width(self) -> int:
        """Numbers per token in the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Numbers per token in the keys (or values) of all heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def fused_qkv(self) -> bool:
        """One matrix makes queries, keys and values."""
        return self.family in ("internlm2", "phi3")

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Of a layer: queries, keys, values, output of attention; then the three of SwiGLU (fused where they are)."""
        hidden, wide, query, kv = self.hidden_size, self.intermediate_size, self.query_width, self.kv_width
        widths = (query + 2 * kv,) if self.fused_qkv else (query, kv, kv)
        gates = (2 * wide,) if self.family == "phi3" else (wide, wide)
        return (
            *(Linear(hidden, width, self.qkv_bias) for width in widths),
            Linear(query, hidden, self.output_bias),
            *(Linear(hidden, width, self.mlp_bias) for width in gates),
            Linear(wide, hidden, self.mlp_bias),
        )

    @property
    def layer_parameters(self) -> int:
        """Linear layers and norms (Qwen3 norms queries and keys per head)."""
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.family == "qwen3" else 0)
        return sum(linear.parameters for linear in self.linears) + norms

    @property
    def table(self) -> int:
        """Weights of the embeddings, and of the output layer."""
        return self.vocab_size * self.hidden_size


@dataclass(frozen=True)
class ModelSizes:
    """A chat model."""

    name: str  # what was asked for
    vision: VisionSizes  # the tower
    decoder: DecoderSizes  # the decoder
    num_image_token: int  # T, visual tokens per tile
    shuffle_width: int  # numbers per visual token after pixel shuffle

    @property
    def projector_linears(self) -> tuple[Linear, Linear]:
        """The two of mlp1."""
        width = self.decoder.hidden_size
        return Linear(self.shuffle_width, width, True), Linear(width, width, True)


@dataclass(frozen=True)
class Trained:
    """Which weights train: the flags of internvl_chat_finetune.py, with their meaning there."""

    freeze_backbone: bool = False
    freeze_llm: bool = False
    freeze_mlp: bool = False
    use_backbone_lora: int = 0
    use_llm_lora: int = 0
    unfreeze_lm_head: bool = False
    unfreeze_vit_layers: int = 0

    def __post_init__(self) -> None:
        for name in ("use_backbone_lora", "use_llm_lora"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name} {getattr(self, name)}: expected a rank, 0 or larger")
        nothing = self.freeze_backbone and self.freeze_llm and self.freeze_mlp
        if nothing and not (
            self.use_backbone_lora or self.use_llm_lora or self.unfreeze_lm_head or self.unfreeze_vit_layers
        ):
            raise ConfigError("--freeze_backbone, --freeze_llm and --freeze_mlp leave nothing to train; drop one")

    @property
    def llm(self) -> bool:
        """Whether the decoder's own weights train."""
        return not (self.freeze_llm or self.use_llm_lora)

    @property
    def vision(self) -> bool:
        """Whether the tower's own weights train (but see `unfreeze_vit_layers`)."""
        return not (self.freeze_backbone or self.use_backbone_lora)

    @property
    def head(self) -> bool:
        """Whether the output layer trains."""
        return self.llm or self.unfreeze_lm_head

    @property
    def vision_has_gradient(self) -> bool:
        """Whether the backward pass enters the tower."""
        return self.vision or self.use_backbone_lora > 0 or self.unfreeze_vit_layers != 0

    @property
    def decoder_has_gradient(self) -> bool:
        """Whether the backward pass enters the decoder's layers."""
        return self.vision_has_gradient or not self.freeze_mlp or self.llm or self.use_llm_lora > 0

    def count_vit_layers(self, num_layers: int) -> tuple[int, int]:
        """Layers of the tower that the backward pass runs through, and those whose own weights train.

        Raises:
            ConfigError: `unfreeze_vit_layers` names no layer.
        """
        first = self.unfreeze_vit_layers
        if first and not -num_layers <= first < num_layers:
            raise ConfigError(f"--unfreeze_vit_layers {first}: the vision tower has {num_layers} layers")
        num_unfrozen = len(range(num_layers)[first:]) if first else 0
        if self.vision:
            return num_layers, num_layers
        return (num_layers if self.use_backbone_lora else num_unfrozen), num_unfrozen


@dataclass(frozen=True)
class Parameters:
    """Number of parameters by part: all of them (adapters included), and those that train."""

    vision: int
    projector: int
    decoder: int
    trained_vision: int
    trained_projector: int
    trained_decoder: int

    @property
    def total(self) -> int:
        """All."""
        return self.vision + self.projector + self.decoder

    @property
    def trained(self) -> int:
        """Those with a gradient."""
        return self.trained_vision + self.trained_projector + self.trained_decoder


@cache
def count_parameters(model: ModelSizes, trained: Trained = Trained()) -> Parameters:
    """Count the parameters of a model and of what trains in it (see the module's table).

    Raises:
        ConfigError: `unfreeze_vit_layers` names no layer.
    """
    vision, decoder = model.vision, model.decoder
    vit_adapters = vision.num_layers * sum(x.count_adapter(trained.use_backbone_lora) for x in vision.linears)
    llm_adapters = decoder.num_layers * sum(x.count_adapter(trained.use_llm_lora) for x in decoder.linears)
    vit_layers = vision.num_layers * vision.layer_parameters
    tables = decoder.table * (1 if decoder.tied else 2)
    own_decoder = tables + decoder.num_layers * decoder.layer_parameters + decoder.hidden_size
    projector = 2 * model.shuffle_width + sum(linear.parameters for linear in model.projector_linears)
    _, num_unfrozen = trained.count_vit_layers(vision.num_layers)
    return Parameters(
        vision=vision.embedding_parameters + vit_layers + vit_adapters,
        projector=projector,
        decoder=own_decoder + llm_adapters,
        trained_vision=num_unfrozen * vision.layer_parameters
        + (vision.embedding_parameters if trained.vision else 0)
        + vit_adapters,
        trained_projector=0 if trained.freeze_mlp else projector,
        trained_decoder=(own_decoder if trained.llm else decoder.table if trained.head else 0) + llm_adapters,
    )


def read_sizes(model: str | Path) -> ModelSizes:
    """Sizes of a model by its name in `RELEASED`, its folder, or its config.json.

    Raises:
        CheckpointError: No such name, folder or file, or a file that describes another kind of model.
        ConfigError: The config asks for what is not supported.
    """
    if str(model) in RELEASED:
        vision, decoder = RELEASED[str(model)]
        return extract_sizes(str(model), InternVLChatConfig(vision_config=dict(vision), llm_config=dict(decoder)))
    path = Path(model)
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"--model {model}: neither a folder with a config.json nor one of {', '.join(RELEASED)} "
            f"(current directory {Path.cwd()})"
        )
    return extract_sizes(str(model), read_chat_config(folder))


def extract_sizes(name: str, config: InternVLChatConfig) -> ModelSizes:
    """Read from a config what memory and work depend on."""
    tower, llm = config.vision_config, config.llm_config
    family = cast(Family, llm.model_type)
    factor = round(1 / config.downsample_ratio)
    vision = VisionSizes(
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_layers=tower.num_hidden_layers,
        num_heads=tower.num_attention_heads,
        image_size=config.image_size,
        patch_size=tower.patch_size,
        qkv_bias=tower.qkv_bias,
        qk_normalization=tower.qk_normalization,
        norm_type=tower.norm_type,
    )
    decoder = DecoderSizes(
        family=family,
        vocab_size=llm.vocab_size,
        hidden_size=llm.hidden_size,
        intermediate_size=llm.intermediate_size,
        num_layers=llm.num_hidden_layers,
        num_heads=llm.num_attention_heads,
        num_kv_heads=llm.num_key_value_heads,
        head_dim=getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads,
        qkv_bias=_flag(llm, {"internlm2": "bias", "llama": "attention_bias", "qwen3": "attention_bias"}, "qwen2"),
        output_bias=_flag(llm, {"internlm2": "bias", "llama": "attention_bias", "qwen3": "attention_bias"}),
        mlp_bias=_flag(llm, {"llama": "mlp_bias"}),
        tied=bool(llm.tie_word_embeddings),
    )
    return ModelSizes(name, vision, decoder, config.num_image_token, tower.hidden_size * factor**2)


def _flag(config: PreTrainedConfig, fields: dict[str, str], *always: str) -> bool:
    """A config's field under the name that its family gives it; True for the families in `always`."""
    kind = config.model_type
    return kind in always or (kind in fields and bool(getattr(config, fields[kind], False)))
