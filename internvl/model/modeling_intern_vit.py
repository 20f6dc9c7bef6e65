"""InternViT, the vision tower: patches of square tiles -> hidden states.

Pre-norm transformer with a class token, learned positions and a learned scale on every residual branch. Parameter
names are those of released InternVL2 checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import attend_fused
from .configuration_internvl_chat import InternVisionConfig
from .errors import ConfigError
from .shapes import Float


class InternRMSNorm(nn.Module):
    """Root-mean-square norm with float32 statistics."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:  # noqa: D102
        if hidden_states.is_cuda and hidden_states.dtype == self.weight.dtype:
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)  # one kernel
        states = hidden_states.float()
        states = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * states.to(hidden_states.dtype)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the branch of a whole tile with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, " tiles *rest"]) -> Float[Tensor, " tiles *rest"]:
        """Kept branches are scaled by 1 / (1 - rate), so that the expected value stays."""
        if self.rate == 0.0 or not self.training:
            return branch
        keep = 1.0 - self.rate
        mask = branch.new_empty(branch.shape[0], *[1] * (branch.dim() - 1)).bernoulli_(keep)
        return branch * mask / keep


def _build_norm(config: InternVisionConfig) -> nn.Module:
    if config.norm_type == "rms_norm":
        return InternRMSNorm(config.hidden_size, config.layer_norm_eps)
    if config.norm_type == "layer_norm":
        return nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
    raise ConfigError(f"vision_config.norm_type must be 'rms_norm' or 'layer_norm', got {config.norm_type!r}")


class InternVisionEmbeddings(nn.Module):
    """Patch convolution, class token, learned positions (resized bicubically for another image size)."""

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.grid = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(1, self.grid**2 + 1, config.hidden_size))

    def forward(  # noqa: D102
        self, pixel_values: Float[Tensor, "tiles channels height width"]
    ) -> Float[Tensor, "tiles tokens hidden"]:
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        height, width = patches.shape[-2:]
        classes = self.class_embedding.expand(len(patches), -1, -1).to(patches.dtype)
        states = torch.cat([classes, patches.flatten(2).transpose(1, 2)], dim=1)
        return states + self._positions(height, width).to(states.dtype)

    def _positions(self, height: int, width: int) -> Tensor:
        if (height, width) == (self.grid, self.grid):
            return self.position_embedding
        return resize_position_embedding(self.position_embedding, (height, width))


def resize_position_embedding(
    embedding: Float[Tensor, "1 old_tokens hidden"], size: tuple[int, int]
) -> Float[Tensor, "1 tokens hidden"]:
    """Resize learned positions to another patch grid: 1 + n*n -> 1 + height*width, the class token's unchanged."""
    class_position, grid_positions = embedding[:, :1], embedding[:, 1:]
    side = int(grid_positions.shape[1] ** 0.5)
    image = grid_positions.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=size, mode="bicubic", align_corners=False)
    return torch.cat([class_position, image.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)


class InternAttention(nn.Module):
    """Full attention over the patches of one tile."""

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        if config.hidden_size % self.num_heads:
            raise ConfigError(
                f"vision hidden_size {config.hidden_size} must be a multiple of num_attention_heads {self.num_heads}"
            )
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.qk_normalization = config.qk_normalization
        if self.qk_normalization:  # over the full width, all heads together
            self.q_norm = InternRMSNorm(config.hidden_size, config.layer_norm_eps)
            self.k_norm = InternRMSNorm(config.hidden_size, config.layer_norm_eps)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(  # noqa: D102
        self, hidden_states: Float[Tensor, "tiles tokens hidden"]
    ) -> Float[Tensor, "tiles tokens hidden"]:
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        if self.qk_normalization:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (
            states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for states in (query, key, value)
        )
        dropout = self.dropout if self.training else 0.0
        scaling = query.shape[-1] ** -0.5
        out = attend_fused(query, key, value, scaling=scaling, is_causal=False, dropout=dropout)
        return self.proj(out.transpose(1, 2).flatten(2))


class InternMLP(nn.Module):
    """Two linear layers."""

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:  # noqa: D102
        return self.fc2(self.act(self.fc1(hidden_states)))


class InternVisionEncoderLayer(GradientCheckpointingLayer):
    """x + drop(attn(norm1 x) * ls1), then x + drop(mlp(norm2 x) * ls2)."""

    def __init__(self, config: InternVisionConfig, drop_path_rate: float):
        super().__init__()
        self.attn = InternAttention(config)
        self.mlp = InternMLP(config)
        self.norm1 = _build_norm(config)
        self.norm2 = _build_norm(config)
        self.ls1 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.ls2 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.drop_path1 = DropPath(drop_path_rate)
        self.drop_path2 = DropPath(drop_path_rate)

    def forward(  # noqa: D102
        self, hidden_states: Float[Tensor, "tiles tokens hidden"]
    ) -> Float[Tensor, "tiles tokens hidden"]:
        attended = self.attn(self.norm1(hidden_states).to(hidden_states.dtype))
        hidden_states = torch.addcmul(hidden_states, self.drop_path1(attended), self.ls1)
        refined = self.mlp(self.norm2(hidden_states).to(hidden_states.dtype))
        return torch.addcmul(hidden_states, self.drop_path2(refined), self.ls2)


class InternVisionEncoder(nn.Module):
    """The stack of layers; the drop-path rate rises linearly from 0 to `drop_path_rate`."""

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(InternVisionEncoderLayer(config, rate) for rate in rates)

    def forward(
        self, hidden_states: Float[Tensor, "tiles tokens hidden"], select_layer: int = -1
    ) -> Float[Tensor, "tiles tokens hidden"]:
        """Hidden state number `select_layer` (0: the embeddings, -1: after the last layer)."""
        count = len(self.layers)
        last = select_layer if select_layer >= 0 else count + 1 + select_layer
        if not 0 <= last <= count:
            raise ConfigError(f"select_layer {select_layer} is outside the {count} layers of the vision tower")
        for layer in self.layers[:last]:
            hidden_states = layer(hidden_states)
        return hidden_states


class InternVisionModel(PreTrainedModel):
    """Vision tower: tiles -> hidden states of the class token and the patches."""

    config_class = InternVisionConfig
    main_input_name = "pixel_values"
    base_model_prefix = "vision_model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternVisionEncoderLayer"]

    def __init__(self, config: InternVisionConfig):
        super().__init__(config)
        self.embeddings = InternVisionEmbeddings(config)
        self.encoder = InternVisionEncoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_vision_weights(module, self.config.initializer_range)

    def resize_pos_embeddings(self, new_image_size: int) -> None:
        """Make the tower's native tile side `new_image_size` pixels (positions resized once, as a parameter)."""
        grid = new_image_size // self.config.patch_size
        resized = resize_position_embedding(self.embeddings.position_embedding.data, (grid, grid))
        self.embeddings.position_embedding = nn.Parameter(resized)
        self.embeddings.grid = grid
        self.config.image_size = new_image_size

    def forward(
        self, pixel_values: Float[Tensor, "..."], select_layer: int = -1
    ) -> Float[Tensor, "tiles tokens hidden"]:
        """Hidden states of the class token and the patches of (tiles, 3, side, side) pixels, after `select_layer`."""
        if pixel_values.dim() != 4:
            raise ValueError(f"pixel_values must be (tiles, 3, height, width), got shape {tuple(pixel_values.shape)}")
        return self.encoder(self.embeddings(pixel_values), select_layer)


def init_vision_weights(module: nn.Module, std: float) -> None:
    """Normal weights, zero biases."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, InternVisionEmbeddings):
        nn.init.normal_(module.class_embedding, std=std)
        nn.init.normal_(module.position_embedding, std=std)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, InternRMSNorm):
        nn.init.ones_(module.weight)
