"""Setting: the flags of a job and the machine that it is to run on."""

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from internvl.errors import ConfigError
from internvl.model.caches import KV_CACHES
from internvl.model.constants import TILES_AT_ONCE
from internvl.options import option
from internvl.parallel.grid import GridShape, check_heads
from internvl.plan.cards import Card, Rates, read_card
from internvl.plan.sizes import ModelSizes, Trained

Mode = Literal["train", "infer"]
Dtype = Literal["bfloat16", "float32"]
_AT_LEAST_ZERO = ("tiles", "reserve_gib", "max_new_tokens")


@dataclass(frozen=True)
class Setting:
    """A job and its machine. Names are those of the flags."""

    mode: Mode = option("train", "Train, or answer a prompt")
    max_packed_tokens: int = option(32768, "Tokens of a row (of the prompt when answering)")
    tiles: int = option(0, "Tiles of a row")
    documents: int = option(1, "Documents of equal length in a row; they decide how much attention costs")
    supervised: float = option(1.0, "Share of tokens that are trained on, 0 < share <= 1; they meet the output layer")
    dtype: Dtype = option(
        "bfloat16", "Of weights and activations. bfloat16 means DeepSpeed's, with float32 master weights"
    )
    gpus: int = option(8, "GPUs of the job")
    chunk_num: int = option(1, "Ranks that share a row")
    ulysses_degree: int = option(1, "Ranks among which heads are dealt out")
    zero_stage: int = option(1, "DeepSpeed ZeRO, 0 to 3")
    grad_checkpoint: bool = option(False, "Recompute layers in the backward pass")
    keep_attention: bool = option(False, "Keep outputs of attention over several ranks although layers are recomputed")
    vit_batch_size: int | None = option(
        None, f"Tiles that the vision tower sees at a time; None: all in training, {TILES_AT_ONCE} to answer"
    )
    offload_optimizer: bool = option(False, "Optimiser states in main memory")
    offload_activations: bool = option(False, "Inputs of recomputed layers in main memory")
    mlp_tile_tokens: int | None = option(None, "Tokens that pass a decoder MLP at a time; None: all")
    prefill_chunk_size: int | None = option(None, "Tokens of the prompt that pass the decoders at a time; None: all")
    max_new_tokens: int = option(128, "Tokens of the answer")
    kv_cache: str = option("dynamic", "Where keys and values are kept, see internvl/model/caches.py")
    fused: bool = option(True, "RMS norm, rotary embedding and SwiGLU are one kernel each")
    gpu: str = option("H100", "Card, see internvl/plan/cards.py")
    gpu_memory_gib: float | None = option(None, "Memory per GPU", absent="the card's")
    reserve_gib: float = option(6.0, "Part of it that fragments of the allocator take. An assumption")
    matmul_tflops: float | None = option(None, "Assumed rate of matrix products", absent="by card")
    attention_tflops: float | None = option(None, "Assumed rate of attention kernels", absent="by card")
    memory_gbs: float | None = option(
        None, "Assumed rate of all other kernels, which read and write, in 10^9 bytes per second", absent="by card"
    )
    bandwidth_gbs: float = option(50.0, "Assumed rate at which a GPU sends, in 10^9 bytes per second")
    offload_gbs: float = option(25.0, "Assumed rate between a GPU and main memory, in 10^9 bytes per second")
    trained: Trained = field(default_factory=Trained)

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or f.name == "zero_stage":
                continue
            if value < 0 or (value == 0 and f.name not in _AT_LEAST_ZERO):
                raise ConfigError(f"--{f.name} {value}: expected a number {'from' if value < 0 else 'above'} 0")
        if self.supervised > 1:
            raise ConfigError(f"--supervised {self.supervised}: expected a share of the tokens, at most 1")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"--zero_stage {self.zero_stage}: expected 0, 1, 2 or 3")
        for name, values in (("mode", get_args(Mode)), ("dtype", get_args(Dtype)), ("kv_cache", KV_CACHES)):
            if getattr(self, name) not in values:
                raise ConfigError(f"--{name} {getattr(self, name)}: expected one of {', '.join(values)}")
        if self.documents > self.max_packed_tokens:
            raise ConfigError(
                f"--documents {self.documents}: a row of --max_packed_tokens {self.max_packed_tokens} has no room"
            )
        if self.keep_attention and not (self.grad_checkpoint and self.chunk_num > 1):
            raise ConfigError(
                "--keep_attention keeps outputs of attention over several ranks while layers are recomputed; it needs "
                f"--grad_checkpoint (got {self.grad_checkpoint}) and --chunk_num above 1 (got {self.chunk_num})"
            )
        if self.offload_activations and not self.grad_checkpoint:
            raise ConfigError("--offload_activations moves what recomputation starts from; add --grad_checkpoint True")
        if self.offload_optimizer and self.zero_stage < 2:
            raise ConfigError(
                f"--offload_optimizer needs --zero_stage 2 or 3, got {self.zero_stage} "
                "(shell/deepspeed/zero2_offload.json, zero3_offload.json)"
            )
        self._check_machine()
        _ = self.grid

    def _check_machine(self) -> None:
        card = self.card
        for name, most in (("gpu_memory_gib", card.memory_gib), *vars(card.peak).items()):
            value = getattr(self, name)
            if value is not None and value > most:
                raise ConfigError(
                    f"--{name} {value:g}: --gpu {card.name} has {most:g}; lower it, or name another --gpu"
                )
        if self.reserve_gib >= self.memory_gib:
            raise ConfigError(f"--reserve_gib {self.reserve_gib:g} leaves nothing of {self.memory_gib:g} GiB per GPU")

    @property
    def card(self) -> Card:
        """What is known about `gpu`."""
        return read_card(self.gpu)

    @property
    def memory_gib(self) -> float:
        """Memory per GPU."""
        return self.gpu_memory_gib or self.card.memory_gib

    @property
    def rates(self) -> Rates:
        """What a GPU is assumed to sustain."""
        return Rates(*(getattr(self, name) or rate for name, rate in vars(self.card.realistic).items()))

    @property
    def grid(self) -> GridShape:
        """Sizes of the process grid."""
        return GridShape(self.gpus, self.chunk_num, self.ulysses_degree)

    @property
    def width(self) -> int:
        """Bytes of a weight or activation."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def local_tokens(self) -> int:
        """Tokens of a row that a rank holds, padding included."""
        return self.grid.pad_length(self.max_packed_tokens) // self.chunk_num

    @property
    def local_tiles(self) -> int:
        """Most tiles of a row that a rank encodes."""
        return -(-self.tiles // self.chunk_num)

    @property
    def first_chunk(self) -> int:
        """Tokens of a prompt that pass the decoders of all ranks at a time."""
        return min(self.prefill_chunk_size or self.max_packed_tokens, self.max_packed_tokens)

    @property
    def vit_tiles(self) -> int:
        """Tiles that pass the vision tower at a time."""
        unset = self.local_tiles if self.mode == "train" else TILES_AT_ONCE
        return min(self.local_tiles, self.vit_batch_size or unset)


def check_setting(model: ModelSizes, setting: Setting) -> None:
    """Check what depends on the model.

    Raises:
        ConfigError: More visual tokens than tokens.
        ParallelError: `ulysses_degree` does not divide the heads.
    """
    visual = setting.tiles * model.num_image_token
    if visual > setting.max_packed_tokens:
        raise ConfigError(
            f"--tiles {setting.tiles} are {visual} visual tokens of {model.num_image_token} per tile, more than "
            f"--max_packed_tokens {setting.max_packed_tokens}"
        )
    decoder = model.decoder
    check_heads(decoder.num_heads, decoder.num_kv_heads, ulysses_degree=setting.ulysses_degree)
