"""Scalings by name: how a flag and a decoder's config say them, and which ones are allowed.

    --rope_scaling   yarn:4    linear:2    dynamic:2    none    {"type": "yarn", "factor": 4, ...}
    --logn_scaling   32768

What they compute, and which positions they apply to, is in rotary.py. A config's scaling means ordinary positions. A
flag means the positions of the run, V2PE's included (`scale_v2pe`).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict, TypeGuard, cast, get_args

from transformers import PreTrainedConfig

from .errors import ConfigError

Kind = Literal["none", "linear", "dynamic", "yarn"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Types whose frequencies the model was trained with: never replaced, and V2PE positions have them as well.
TRAINED_ROPE_TYPES = ("llama3", "longrope")
_KIND_OF_NAME: dict[object, Kind] = {"default": "none", "v2pe": "none", **{kind: kind for kind in KINDS}}
_FORMS = (
    "none, linear:FACTOR, dynamic:FACTOR, yarn:FACTOR, or a json object such as "
    '{"type": "yarn", "factor": 4, "original_max_position_embeddings": 8192}'
)


class ScalingEntry(TypedDict, total=False):
    """`rope_scaling` of InternLM2's config (`type`), `rope_parameters` of transformers' (`rope_type` and the rest)."""

    type: str
    rope_type: str
    factor: float
    original_max_position_embeddings: int
    scale_v2pe: bool
    rope_theta: float
    partial_rotary_factor: float


def read_scaling_entry(config: PreTrainedConfig) -> ScalingEntry:
    """What a decoder's config says about scaling; empty without any."""
    entry = config.rope_scaling if config.model_type == "internlm2" else getattr(config, "rope_parameters", None)
    return cast(ScalingEntry, entry or {})


@dataclass(frozen=True)
class RopeScaling:
    """One choice of scaling."""

    kind: Kind  # `none`, `linear`, `dynamic` or `yarn`
    factor: float = 1.0  # how many times longer the context is to be, at least 1 (1 for `none`)
    # tokens that the model was trained on before stretching (`yarn` only); None: what the config says
    original_length: int | None = None
    scale_v2pe: bool = False  # V2PE positions are scaled, too (`linear` and `yarn` only)

    def __str__(self) -> str:
        """Short form, `yarn:4` or `yarn:4:8192`, with `:default` at the end when V2PE positions are left alone."""
        if self.kind == "none":
            return "none"
        parts = [self.kind, repr(self.factor).removesuffix(".0")]
        if self.original_length is not None:
            parts.append(str(self.original_length))
        if self.kind != "dynamic" and not self.scale_v2pe:
            parts.append("default")
        return ":".join(parts)

    def check_version(self, rope_pos_id_version: str) -> None:
        """Raise ConfigError for dynamic NTK with V2PE positions, where it has no meaning."""
        if self.kind == "dynamic" and rope_pos_id_version != "default":
            raise ConfigError(
                f"--rope_scaling {self} has no meaning with rope_pos_id_version {rope_pos_id_version}: dynamic NTK "
                "follows the number of tokens, not V2PE positions; use linear or yarn, or version default"
            )

    def to_dict(self) -> ScalingEntry | None:
        """The entry `rope_scaling` of InternLM2's config; None: no scaling."""
        if self.kind == "none":
            return None
        entry = ScalingEntry(type=self.kind, factor=self.factor)
        if self.original_length is not None:
            entry["original_max_position_embeddings"] = self.original_length
        if self.scale_v2pe:
            entry["scale_v2pe"] = True
        return entry


def parse_rope_scaling(value: object) -> RopeScaling:
    """What `--rope_scaling` asks for: all positions of the run are scaled.

    Args:
        value: `none`, `KIND:FACTOR`, `yarn:FACTOR:ORIGINAL_LENGTH`, or a json object (text or parsed). An object may
            say `"scale_v2pe": false` to leave V2PE positions alone.

    Raises:
        ConfigError: Anything else.
    """
    entry = value if isinstance(value, Mapping) else _entry_of_text(str(value))
    return read_rope_scaling(entry, source="--rope_scaling", scale_v2pe=True)


def _entry_of_text(text: str) -> Mapping[str, object]:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"--rope_scaling {text!r} is no json object: {error}; expected {_FORMS}") from None
    kind, *numbers = text.split(":")
    names = ("factor", "original_max_position_embeddings")
    try:
        values = [convert(number) for convert, number in zip((float, int), numbers, strict=False)]
    except ValueError:
        raise ConfigError(f"--rope_scaling {text!r}: {numbers} are no numbers; expected {_FORMS}") from None
    if kind not in KINDS or len(numbers) > (0 if kind == "none" else len(names)):
        raise ConfigError(f"--rope_scaling {text!r} is not known; expected {_FORMS}")
    return {"type": kind, **dict(zip(names, values, strict=False))}


def read_rope_scaling(entry: Mapping[str, object], *, source: str, scale_v2pe: bool = False) -> RopeScaling:
    """A checked entry of a config or of a flag.

    Args:
        entry: `type` (or `rope_type`), `factor`, and optionally `original_max_position_embeddings` (YaRN) and
            `scale_v2pe` (linear, YaRN). Types `default` and `v2pe` (older V2PE checkpoints) stand for no scaling.
        source: Where it comes from, for the error.
        scale_v2pe: What holds when the entry does not say it.

    Raises:
        ConfigError: Unknown type or key, a factor that is not a finite number of at least 1, an original length that
            is not a positive whole number, or dynamic NTK for V2PE positions.
    """
    name = entry.get("type", entry.get("rope_type"))
    kind = _KIND_OF_NAME.get(name)
    if kind is None:
        raise ConfigError(f"{source}: type {name!r} in {dict(entry)}; expected one of {', '.join(KINDS)}")
    if kind == "none":
        return RopeScaling("none")
    _refuse_unknown_keys(entry, kind, source)
    factor = entry.get("factor")
    if not _is_number(factor) or not math.isfinite(factor) or factor < 1:
        raise ConfigError(
            f"{source}: factor is {factor!r} in {dict(entry)}; expected a finite number of at least 1, such as {kind}:4"
        )
    length = entry.get("original_max_position_embeddings")
    if length is not None and (not _is_number(length) or length != length // 1 or length < 1):
        raise ConfigError(
            f"{source}: original_max_position_embeddings is {length!r}; expected the number of tokens that the model "
            "was trained on, or leave it out"
        )
    scales = entry.get("scale_v2pe", scale_v2pe and kind != "dynamic")
    if not isinstance(scales, bool):
        raise ConfigError(f"{source}: scale_v2pe is {scales!r}; expected true or false")
    if scales and kind == "dynamic":
        raise ConfigError(
            f"{source}: dynamic NTK follows the number of tokens and does not fit V2PE positions; "
            "leave scale_v2pe out, or use linear or yarn"
        )
    return RopeScaling(kind, float(factor), None if length is None else int(length), scales)


def _refuse_unknown_keys(entry: Mapping[str, object], kind: Kind, source: str) -> None:
    known = {"type", "rope_type", "factor", "scale_v2pe"}
    if kind == "yarn":
        known.add("original_max_position_embeddings")
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ConfigError(f"{source}: {kind} takes no {', '.join(unknown)}; expected {', '.join(sorted(known))} only")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def apply_rope_scaling(config: PreTrainedConfig, scaling: RopeScaling) -> None:
    """Write a flag's scaling into a decoder's config, in place of what it says now.

    Args:
        config: Of InternLM2 or of a decoder of transformers, before the decoder is built.
        scaling: From `parse_rope_scaling`. YaRN without an original length takes the one that the config's scaling
            names, else `max_position_embeddings`.

    Raises:
        ConfigError: The model was trained with frequencies of its own (llama3, longrope).
    """
    current = read_scaling_entry(config)
    if current.get("rope_type") in TRAINED_ROPE_TYPES:
        raise ConfigError(
            f"--rope_scaling {scaling}: the model was trained with rope type {current['rope_type']}, whose frequencies "
            "would be lost; leave the flag out"
        )
    entry = scaling.to_dict() or ScalingEntry(type="default")
    if scaling.kind == "yarn" and scaling.original_length is None:
        known = current.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        entry["original_max_position_embeddings"] = known or config.max_position_embeddings
    if config.model_type == "internlm2":
        config.rope_scaling = None if scaling.kind == "none" else entry
        return
    # transformers knows nothing of V2PE, so this flag goes beside the entry and not into it.
    config.scale_v2pe = entry.pop("scale_v2pe", False)
    kept = {name: current[name] for name in ("rope_theta", "partial_rotary_factor") if name in current}
    config.rope_parameters = {"rope_type": entry.pop("type"), **kept, **entry}
    if scaling.kind == "yarn" and hasattr(config, "original_max_position_embeddings"):
        # transformers prefers this field over the entry's.
        config.original_max_position_embeddings = entry["original_max_position_embeddings"]


# --------------------------------------------------------------------------------------------------------------------
# Log-n scaling of queries


def check_logn_scaling(train_length: object, *, source: str) -> None:
    """Check the training length of log-n scaling.

    Args:
        train_length: Tokens of the contexts that the model was trained on; None: no scaling.
        source: Where it comes from, for the error.

    Raises:
        ConfigError: Not a whole number of at least 2 (whose logarithm queries are divided by).
    """
    if train_length is None:
        return
    if isinstance(train_length, bool) or not isinstance(train_length, int) or train_length < 2:
        raise ConfigError(
            f"{source} is {train_length!r}, expected the number of tokens that the model was trained on, a whole "
            "number of at least 2, such as 32768"
        )


def choose_logn_scaling(config: PreTrainedConfig, train_length: int | None) -> None:
    """Write a flag's training length into a decoder's config; 0: no scaling; None: the config stays as it is.

    Raises:
        ConfigError: See `check_logn_scaling`.
    """
    if train_length is None:
        return
    check_logn_scaling(train_length or None, source="--logn_scaling")
    config.logn_scaling = train_length or None


def read_logn_scaling(config: PreTrainedConfig) -> int | None:
    """The training length that a decoder's config names for log-n scaling; None: no scaling."""
    return getattr(config, "logn_scaling", None)
