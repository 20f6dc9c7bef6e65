"""Inference settings: everything that can be set about answering, in one frozen record.

    command line, options of another suite, Python  ->  InferenceSettings  ->  Session
                                                            |
                                                            +-> fingerprint, in the settings.json of an evaluation

A setting is a field of `InferenceSettings` with its help, default and check, and a line at the place that uses it.
Parsers, `Session.from_pretrained`, evaluations and bridges take all fields from here (`docs/decisions/
inference_settings.md` shows one being added). `Sampling` is the same for what may change from question to question.
"""

import math
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import get_args

import torch
from transformers import LogitsProcessorList

from internvl.data.storage.pixels import Alpha
from internvl.errors import ConfigError
from internvl.infer.flags import at_least, check_flags, flag, one_of
from internvl.model.caches import KV_CACHES
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.positions import ROPE_POS_ID_VERSIONS, check_stride, check_version, choose_positions
from internvl.model.scaling import RopeScaling, check_logn_scaling, parse_rope_scaling
from internvl.parallel.launch import RankEnv

DTYPES = ("float32", "bfloat16", "float16")
# Settings that change where and how fast an answer is made, and not the answer.
SAME_ANSWERS = ("cache_mib", "reuse_prefix", "device")
# Pieces of a quantised cache share one scale, so answers follow its name and the pieces. Other caches change nothing.
_LOSSY_CACHE = ("kv_cache", "prefill_chunk_size")
_ALWAYS_TOLD = ("rope_pos_id_version", "rope_pos_id_stride", "dtype")


def read_stride(text: str) -> int | float:
    """A stride from text; fractions are allowed.

    Raises:
        ConfigError: Another text.
    """
    try:
        stride = float(Fraction(text))
        return int(stride) if stride.is_integer() else stride
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(f"--rope_pos_id_stride: expected a number such as 64, 0.25 or 1/16, got {text!r}") from error


def _check_device(name: str, value: str) -> None:
    one_of(("cpu", "cuda"))(name, value.partition(":")[0])
    if value != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"--{name} is {value}, but torch sees no GPU; leave the option out or pass cpu")


@dataclass(frozen=True)
class InferenceSettings:
    """How a checkpoint answers; the help of every field says what it means.

    Raises:
        ConfigError: A value is out of range, or version, stride and scaling do not fit together.
    """

    rope_pos_id_version: str | None = flag(
        None,
        f"visual positions: {', '.join(ROPE_POS_ID_VERSIONS)}; default: with a stride v2pe_fix, or the checkpoint's "
        "own on several axes; without one default in an evaluation, otherwise the checkpoint's own",
        check=lambda name, value: check_version(value),
        metavar="VERSION",
    )
    rope_pos_id_stride: int | float | None = flag(
        None,
        "positions that one tile spans, such as 64, 0.25 or 1/16; default: the checkpoint's own",
        read=read_stride,
        metavar="STRIDE",
    )
    dtype: str | None = flag(
        None,
        "of the weights; default: float32 on CPU, bfloat16 on CUDA",
        check=one_of(DTYPES),
        metavar=f"{{{','.join(DTYPES)}}}",
    )
    rope_scaling: RopeScaling | None = flag(
        None,
        "scale positions, visual ones included: yarn:4, linear:2, dynamic:2 (version default only), none, or a json "
        "object; default: the checkpoint's own",
        read=parse_rope_scaling,
        metavar="SCALING",
    )
    logn_scaling: int | None = flag(
        None,
        "training length beyond which queries are made longer, by log n / log TOKENS for n keys; 0: none; default: the "
        "checkpoint's own",
        read=int,
        check=lambda name, value: check_logn_scaling(value or None, source=f"--{name}"),
        metavar="TOKENS",
    )
    kv_cache: str = flag(
        "dynamic",
        "where keys and values are kept: dynamic grows token by token, static takes its memory at once, offloaded is "
        "main memory, quantized takes one byte per number and changes answers (default: %(default)s)",
        check=one_of(KV_CACHES),
        metavar=f"{{{','.join(KV_CACHES)}}}",
    )
    prefill_chunk_size: int | None = flag(
        None,
        "tokens of the prompt that pass the decoder at a time, which bounds memory; default: all",
        read=int,
        check=at_least(1),
        metavar="TOKENS",
    )
    max_num: int | None = flag(
        None,
        "largest number of tiles per image; default: the task's in an evaluation, otherwise the checkpoint's own",
        read=int,
        check=at_least(1),
        metavar="TILES",
    )
    num_frames: int = flag(
        16,  # as in the published MVBench evaluation
        "frames per video, spread evenly, one tile each (default: %(default)s)",
        read=int,
        check=at_least(1),
        metavar="FRAMES",
    )
    alpha: Alpha = flag(
        "white",
        "transparent parts of pictures show white, or (drop) the colour stored there, as in the public code "
        "(default: %(default)s)",
        check=one_of(get_args(Alpha)),
        metavar=f"{{{','.join(get_args(Alpha))}}}",
    )
    cache_mib: int = flag(
        1024,
        "memory for features of images that are asked again, in MiB (default: %(default)s); 0: keep nothing of a "
        "question for the next one, in an evaluation keys and values of a common beginning neither",
        read=int,
        check=at_least(0),
        metavar="MIB",
    )
    reuse_prefix: bool = flag(
        False,
        "keep the keys and values of a prompt for the next one that begins the same (dynamic cache, one process)",
        read=bool,
    )
    device: str | None = flag(
        None, "cpu or cuda; default: cuda when there is a GPU", check=_check_device, metavar="{cpu,cuda}"
    )

    def __post_init__(self) -> None:
        """Refuse wrong values, as far as they can be known before a checkpoint is read."""
        check_flags(self)
        version = self.rope_pos_id_version
        if self.rope_pos_id_stride is not None:
            version = version or "v2pe_fix"  # or one of several axes, for which the same is refused
            check_stride(version, self.rope_pos_id_stride)
        if self.rope_scaling is not None and version is not None:
            self.rope_scaling.check_version(version)

    def on_device(self, env: RankEnv | None = None) -> "InferenceSettings":
        """The same with device and dtype filled in; `env` gives every process of a machine a GPU of its own."""
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda" and env is not None:
            device = f"cuda:{env.local_rank % max(1, torch.cuda.device_count())}"
        return replace(self, device=device, dtype=self.dtype or ("float32" if device == "cpu" else "bfloat16"))

    def for_checkpoint(self, config: InternVLChatConfig) -> "InferenceSettings":
        """The same with positions and tiles filled in from a checkpoint's config.

        Raises:
            ConfigError: Version and stride do not fit together, or the scaling does not fit the positions.
        """
        # Random strides are drawn in training only. Without a stride there is no better choice than ordinary positions.
        saved = "default" if config.rope_pos_id_version == "v2pe_rnd" else config.rope_pos_id_version
        version, stride = choose_positions(
            self.rope_pos_id_version, self.rope_pos_id_stride, saved, config.rope_pos_id_stride
        )
        check_stride(version, stride)
        max_num = config.max_dynamic_patch if self.max_num is None else self.max_num
        return replace(self, rope_pos_id_version=version, rope_pos_id_stride=stride, max_num=max_num)

    def with_positions(self, version: str | None, stride: int | float | None) -> "InferenceSettings":
        """The same with the positions that a question asks for, as `choose_positions` decides.

        Raises:
            ConfigError: An unknown version, or one that does not fit the stride.
        """
        if version is None and stride is None:
            return self
        own = self.rope_pos_id_version or "default"
        version, stride = choose_positions(version, stride, own, self.rope_pos_id_stride)
        check_stride(version, stride)
        return replace(self, rope_pos_id_version=version, rope_pos_id_stride=stride)

    def fingerprint(self) -> dict[str, str | int | float | bool | None]:
        """What answers depend on, as an evaluation's settings.json has it.

        Predictions may be continued by a run with the same fingerprint. Positions and dtype always stand there; every
        other field does when it differs from its default, so a new setting leaves earlier evaluations valid.
        """
        is_lossy = self.kv_cache == "quantized"
        told = (*_ALWAYS_TOLD, *(_LOSSY_CACHE if is_lossy else ()))
        silent = (*SAME_ANSWERS, *(() if is_lossy else _LOSSY_CACHE))
        values = {entry.name: (getattr(self, entry.name), entry.default) for entry in fields(self)}
        return {
            name: str(value) if isinstance(value, RopeScaling) else value
            for name, (value, default) in values.items()
            if name not in silent and (name in told or value != default)
        }


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen: greedily unless a temperature is given.

    Raises:
        ConfigError: A temperature or a share out of range.
    """

    temperature: float = flag(0.0, "draw answers at this temperature (default: 0, greedy)", read=float)
    top_p: float = flag(
        1.0, "with a temperature: draw from the most probable tokens of this share (default: 1)", read=float
    )
    seed: int | None = flag(None, "of what is drawn; default: another one every time, 0 in an evaluation", read=int)
    num_beams: int = flag(
        1, "answers that are followed at a time, of which the most probable is taken (default: 1)", read=int
    )
    # changes the logits of every new token, as transformers takes it
    logits_processor: LogitsProcessorList | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if self.num_beams < 1:
            raise ConfigError(f"num_beams is {self.num_beams}, expected 1 or more")

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the most probable one after those before it."""
        return self.temperature == 0 and self.num_beams == 1

    def fingerprint(self) -> dict[str, int | float | None]:
        """What answers depend on, as in `InferenceSettings.fingerprint`: nothing when they are greedy."""
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return {
            **(drawn if self.temperature else {}),
            **({"num_beams": self.num_beams} if self.num_beams > 1 else {}),
        }

    def generate_options(self) -> dict[str, object]:
        """Arguments of `generate`; draws come from the model's own distribution, whatever its config says."""
        if self.temperature == 0:
            choice: dict[str, object] = {"do_sample": False}
        else:
            choice = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {**choice, "num_beams": self.num_beams, "logits_processor": self.logits_processor}


DEFAULTS = InferenceSettings()
GREEDY = Sampling()
