"""Key/value caches of generation, by name, made of transformers' cache layers.

    name        keys and values are kept in             memory grows         answers
    dynamic     the model's device                      token by token       -
    static      the model's device                      once, at the start   those of dynamic
    offloaded   main memory, but for one or two layers  token by token       those of dynamic
    quantized   the model's device, as 8-bit floats     token by token       close to those of dynamic

`generate(kv_cache=name)` makes one. Every layer returns the keys and values stored so far, so that attention never sees
empty slots and needs no mask for them.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, StaticLayer

from .errors import ConfigError
from .shapes import Float

KV_CACHES = ("dynamic", "static", "offloaded", "quantized")


def check_kv_cache(name: str) -> None:
    """Raise ConfigError unless `name` is one of `KV_CACHES`."""
    if name not in KV_CACHES:
        raise ConfigError(f"kv_cache is {name!r}, expected one of {', '.join(KV_CACHES)}")


class KeyCastingCache(Cache):
    """A key/value cache that keeps keys in the dtype of the values.

    transformers' decoders hand over keys in the dtype of the rotary tables (float32 here), and its cache would then
    keep everything in that.

    Args:
        make_layer: Makes the cache of one decoder layer; called when a layer stores its first keys.
        num_offloaded_layers: Layers of the decoder whose keys and values live in main memory while other layers
            run (CUDA only); 0: none.
    """

    def __init__(self, make_layer: Callable[[], CacheLayerMixin] = DynamicLayer, *, num_offloaded_layers: int = 0):
        if num_offloaded_layers:
            # All of them at once: the next layer is fetched while one runs, so it must be known which one that is.
            layers = [make_layer() for _ in range(num_offloaded_layers)]
            super().__init__(layers=list(layers), offloading=True, offload_only_non_sliding=False)
        else:
            super().__init__(layer_class_to_replicate=make_layer)  # type: ignore[arg-type]

    def update(
        self,
        key_states: Float[Tensor, "batch kv_heads new head_dim"],
        value_states: Float[Tensor, "batch kv_heads new head_dim"],
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[Float[Tensor, "batch kv_heads keys head_dim"], Float[Tensor, "batch kv_heads keys head_dim"]]:
        """Store new tokens of a layer; all of its tokens so far."""
        return super().update(key_states.to(value_states.dtype), value_states, layer_idx, *args, **kwargs)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes row `beam_idx[i]`."""
        self._finish_copies()
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, side by side."""
        self._finish_copies()
        super().batch_repeat_interleave(repeats)

    def _finish_copies(self) -> None:
        # Copies to main memory run on their own; `update` waits for them, reading the tensors directly must, too.
        if self.offloading:
            for device in {getattr(layer, "device", None) for layer in self.layers} - {None}:
                torch.cuda.synchronize(device)


class FilledStaticLayer(StaticLayer):
    """Memory for `max_cache_len` tokens, taken at once; returns the tokens stored so far, not the whole room."""

    is_compileable = False  # what it returns grows

    def __init__(self, max_cache_len: int):
        super().__init__(max_cache_len)
        self._num_filled = 0

    def update(
        self,
        key_states: Float[Tensor, "batch kv_heads new head_dim"],
        value_states: Float[Tensor, "batch kv_heads new head_dim"],
        *args: object,
        **kwargs: object,
    ) -> tuple[Float[Tensor, "batch kv_heads filled head_dim"], Float[Tensor, "batch kv_heads filled head_dim"]]:
        """Store new tokens; views of all tokens so far.

        Raises:
            ValueError: No room for so many tokens.
        """
        filled = self._num_filled + key_states.shape[-2]
        if filled > self.max_cache_len:
            raise ValueError(f"the static cache has room for {self.max_cache_len} tokens, {filled} are to be stored")
        self._num_filled = filled
        keys, values = super().update(key_states, value_states)
        return keys[:, :, :filled], values[:, :, :filled]

    def get_seq_length(self) -> int:
        """Tokens stored so far."""
        return self._num_filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys that the next `query_length` queries meet, 0)."""
        return self._num_filled + query_length, 0

    def reset(self) -> None:
        """Forget all tokens, keep the memory."""
        super().reset()
        self._num_filled = 0

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.repeat_interleave(repeats, dim=0)
            self.values = self.values.repeat_interleave(repeats, dim=0)


class Fp8Layer(DynamicLayer):
    """Keys and values as 8-bit floats (e4m3) with one scale each, fixed by the first tokens stored.

    Later tokens may be `HEADROOM` times larger than the largest of those before they are cut off. A floating format
    loses no precision by that: relative error stays 1/16 at most down to 2**-11 of the largest of the first tokens.
    """

    HEADROOM = 14.0  # 448 / 14 = 2**5
    _LARGEST = torch.finfo(torch.float8_e4m3fn).max

    def update(
        self,
        key_states: Float[Tensor, "batch kv_heads new head_dim"],
        value_states: Float[Tensor, "batch kv_heads new head_dim"],
        *args: object,
        **kwargs: object,
    ) -> tuple[Float[Tensor, "batch kv_heads keys head_dim"], Float[Tensor, "batch kv_heads keys head_dim"]]:
        """Store new tokens; all tokens so far as they were stored, but the first ones as they came."""
        is_first = not self.is_initialized
        if is_first:
            self._key_scale, self._value_scale = self._choose_scale(key_states), self._choose_scale(value_states)
        keys, values = super().update(
            self._quantize(key_states, self._key_scale), self._quantize(value_states, self._value_scale)
        )
        if is_first:
            return key_states, value_states
        dtype = value_states.dtype
        return (keys.float() * self._key_scale).to(dtype), (values.float() * self._value_scale).to(dtype)

    def _choose_scale(self, states: Tensor) -> Tensor:
        smallest = torch.finfo(torch.float32).tiny  # for states that are all zero
        return (states.abs().amax().float() * (self.HEADROOM / self._LARGEST)).clamp(min=smallest)

    def _quantize(self, states: Tensor, scale: Tensor) -> Tensor:
        return (states.float() / scale).clamp(-self._LARGEST, self._LARGEST).to(torch.float8_e4m3fn)


def build_cache(name: str, *, num_layers: int, max_length: int | None, device: torch.device) -> KeyCastingCache:
    """An empty cache.

    Args:
        name: One of `KV_CACHES`. On the CPU `offloaded` is `dynamic`: the cache is in main memory anyway.
        num_layers: Layers of the decoder.
        max_length: Tokens of prompt and answer together; `static` needs it.
        device: The decoder's.

    Raises:
        ConfigError: Unknown name, or `static` without a length.
    """
    check_kv_cache(name)
    if name == "static":
        if max_length is None:
            raise ConfigError("kv_cache 'static' needs max_new_tokens: memory is taken for the whole answer at once")
        return KeyCastingCache(partial(FilledStaticLayer, max_length))
    if name == "quantized":
        return KeyCastingCache(Fp8Layer)
    if name == "offloaded" and device.type == "cuda":
        return KeyCastingCache(num_offloaded_layers=num_layers)
    return KeyCastingCache()
