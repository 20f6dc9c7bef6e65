"""Kept prefix: keys and values of the last prompt, for the next one that begins the same.

    asked before   system  <img>....</img>  text of the document  | which colour?  answer
    asked now      system  <img>....</img>  text of the document  | how many?
                   --------------- keys and values kept --------- | passes the decoder

Many questions about one context pay for it once. A key is reused where token, position and, in images, features are
equal for it and for everything before it: it is what the model would compute again. Nothing is reused where frequencies
depend on the final length (dynamic NTK on ordinary positions, long RoPE).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from internvl.errors import ConfigError
from internvl.model.caches import KeyCastingCache
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.positions import find_scheme

_LENGTH_FREE_SCALINGS = (None, "default", "linear", "yarn", "llama3")


def check_reusable(kv_cache: str, *, is_shared: bool) -> None:
    """Refuse caches of which a part cannot be kept.

    Raises:
        ConfigError: The cache is not `dynamic`, or is spread over ranks.
    """
    if kv_cache != "dynamic" or is_shared:
        raise ConfigError(
            f"reuse_prefix needs the kv_cache dynamic of a single process, got {kv_cache}"
            f"{' over several ranks' if is_shared else ''}; leave reuse_prefix out"
        )


@dataclass(frozen=True)
class _Kept:
    cache: KeyCastingCache
    input_ids: Int64[Tensor, "1 length"]
    position_ids: Shaped[Tensor, "*axes 1 length"]
    keys: Sequence[Hashable]
    version: str | None


class KeptPrefix:
    """The cache of one prompt between two questions."""

    def __init__(self, model: InternVLChatModel):
        self._model = model
        self._kept: _Kept | None = None

    def clear(self) -> None:
        """Forget what is kept."""
        self._kept = None

    def take(
        self,
        input_ids: Int64[Tensor, "1 length"],
        position_ids: Shaped[Tensor, "*axes 1 length"],
        *,
        keys: Sequence[Hashable],
        tiles: Sequence[int],
        version: str | None = None,
    ) -> KeyCastingCache:
        """A cache that holds the keys and values of as much of the prompt as is known, at most all but one token.

        What was kept is handed out or freed, so an answer that fails leaves nothing.

        Args:
            keys: What the features of every image depend on, equal only for equal features.
            tiles: Of every image.
            version: Of the positions. It decides how positions of several axes rotate keys.
        """
        kept, self._kept = self._kept, None
        # Integers are ordinary positions, which the decoder may scale otherwise than V2PE positions of equal value.
        if kept is None or kept.position_ids.dtype != position_ids.dtype or not _rotate_alike(kept.version, version):
            return KeyCastingCache()
        length = min(input_ids.shape[1] - 1, kept.input_ids.shape[1])
        same_places = position_ids[..., :length] == kept.position_ids[..., :length]
        same = (input_ids[0, :length] == kept.input_ids[0, :length]) & same_places.flatten(0, -2).all(dim=0)
        length = _count_true(same)
        num_same_images = _count_equal(keys, kept.keys)
        if num_same_images < len(tiles):
            visual = self._model.find_visual_tokens(input_ids)[0].nonzero().squeeze(1)
            length = min(length, int(visual[sum(tiles[:num_same_images]) * self._model.num_image_token]))
        if length < input_ids.shape[1] / 2:  # little would be saved, and another prompt's keys would stay in memory
            return KeyCastingCache()
        kept.cache.crop(length - kept.cache.get_seq_length())  # it holds the last answer, too
        return kept.cache

    def keep(
        self,
        cache: KeyCastingCache,
        input_ids: Int64[Tensor, "1 length"],
        position_ids: Shaped[Tensor, "*axes 1 length"],
        *,
        keys: Sequence[Hashable],
        version: str | None = None,
    ) -> None:
        """Remember the cache of a prompt that was answered; what it holds after the prompt is not used."""
        if not _depends_on_length(self._model, is_v2pe=position_ids.is_floating_point()):
            self._kept = _Kept(cache, input_ids, position_ids, keys, version)


def _rotate_alike(first: str | None, second: str | None) -> bool:
    """Whether equal positions of two versions give equal keys."""
    return find_scheme(first or "default") is find_scheme(second or "default")


def _count_true(row: Bool[Tensor, " length"]) -> int:
    """Leading True entries."""
    return int(row.long().cumprod(0).sum())


def _count_equal(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Leading equal entries."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _depends_on_length(model: InternVLChatModel, *, is_v2pe: bool) -> bool:
    """Whether rotary frequencies of a token change with the length of what follows it."""
    config = model.config.llm_config
    if config.model_type == "internlm2" and is_v2pe:
        return False  # V2PE positions are not scaled, or by linear and yarn, which are the same for any length
    scaling = (config.rope_scaling if config.model_type == "internlm2" else config.rope_parameters) or {}
    return scaling.get("type", scaling.get("rope_type")) not in _LENGTH_FREE_SCALINGS
