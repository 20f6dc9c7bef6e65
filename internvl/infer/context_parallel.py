"""One long prompt answered by the ranks of a group together: its keys and values stay spread over them.

    prompt     chunk by chunk, every chunk dealt out in zigzag order (internvl/parallel/deal.py)
    per rank   embed and project own tokens, keep own keys and values; see internvl/parallel/cached_attention.py
    images     every tile is encoded by one rank, its features go once to the ranks that hold its visual tokens
    answer     every rank runs the same decoder on the same new token; its keys and values are kept by one rank

    rank 0     | 0 . . 3 | 0 . . 3 | 0 3 |   t1    t3          two ranks, chunks of four pieces,
    rank 1     | . 1 2 . | . 1 2 . | 1 2 |      t2    t4       then tokens of the answer in turn

Positions and the rotary base belong to the whole prompt and are the same on every rank. The decoder and
`transformers.generate` take part through what they are given with the call: a cache that stores a share, and the
attention function over all shares. Answers are those of one process.

All ranks of the group call with the same arguments (pictures apart, see `ShardedFeatures`); all of them get the answer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Bool, Float, Int64, Num, Shaped
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.utils import ModelOutput

from internvl.errors import ConfigError, InternVLError, ParallelError
from internvl.model.attention import Padding
from internvl.model.caches import FilledStaticLayer, KeyCastingCache
from internvl.model.chat import Arguments, GenerateOptions
from internvl.model.finite_scores import RefuseNonFiniteScores
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.positions import final_lengths, positions_per_row
from internvl.model.visual_features import merge_visual_features
from internvl.parallel.cached_attention import attend_chunk, attend_first_chunk, attend_token, count_shard_tokens
from internvl.parallel.comm import get_rank_and_size
from internvl.parallel.grid import build_grid
from internvl.parallel.kernels import AttentionKernel, select_kernel
from internvl.parallel.shards import shard_row
from internvl.parallel.vision import exchange_features, split_tiles

KV_CACHES = ("dynamic", "static")
Value = TypeVar("Value")


@dataclass(frozen=True)
class ShardedFeatures:
    """Visual features of a prompt, every tile's on one rank."""

    local: Float[Tensor, "tiles tokens dim"]  # (own tiles, T, D), from `InternVLChatModel.extract_feature`
    # tiles of each rank: ranges that follow each other and cover all tiles of the prompt in order
    owners: Sequence[range]


def split_images(tiles_per_image: Sequence[int], size: int) -> list[range]:
    """Which images each of `size` ranks encodes: whole ones, consecutive, about as many tiles each.

    An image goes to the rank in whose share of all tiles its middle lies: 4, 1, 1, 4, 2 tiles among 3 ranks give
    0, 1-2, 3-4.
    """
    total = sum(tiles_per_image)
    stops = list(accumulate(tiles_per_image))
    middles = [2 * stop - tiles for stop, tiles in zip(stops, tiles_per_image, strict=True)]  # in half tiles
    ranks = [min(middle * size // (2 * total), size - 1) if total else 0 for middle in middles]
    borders = [sum(rank < border for rank in ranks) for border in range(size + 1)]
    return [range(borders[rank], borders[rank + 1]) for rank in range(size)]


def check_shareable(kv_cache: str) -> None:
    """Raise ConfigError unless ranks can share the cache, which must be one of `KV_CACHES`."""
    if kv_cache not in KV_CACHES:
        raise ConfigError(f"--kv_cache is {kv_cache}, but ranks that answer together take {' or '.join(KV_CACHES)}")


class ShardedCache(KeyCastingCache):
    """This rank's share of the keys and values of one sequence.

    Args:
        name: `dynamic` or `static`.
        max_length: Tokens of prompt and answer together, which `static` takes memory for.
        num_chunks: Chunks in which the prompt comes.

    Attributes:
        chunk_length: Tokens of the chunk that is being stored; None: a single token that all ranks have.
        num_tokens: Tokens of the whole sequence, those of the forward pass that runs included.
        num_before: Those not included.
    """

    def __init__(self, *, rank: int, size: int, name: str = "dynamic", max_length: int = 0, num_chunks: int = 1):
        self.rank, self.size = rank, size
        self.chunk_length: int | None = None
        self.num_tokens = self.num_before = 0
        if name == "static":
            room = -(-max_length // size) + 2 * num_chunks  # a share is longer than the mean by two tokens per chunk
            super().__init__(partial(FilledStaticLayer, room))
        else:
            super().__init__()

    def update(
        self,
        key_states: Float[Tensor, "1 kv_heads tokens head_dim"],
        value_states: Float[Tensor, "1 kv_heads tokens head_dim"],
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[Float[Tensor, "1 kv_heads held head_dim"], Float[Tensor, "1 kv_heads held head_dim"]]:
        """Store this rank's share of new keys and values; returns all that it holds."""
        if layer_idx == 0:
            self.num_before = self.num_tokens
            self.num_tokens += self.chunk_length or 1
        if self.chunk_length is not None:
            num_own = count_shard_tokens(self.chunk_length, rank=self.rank, size=self.size)
        else:
            num_own = int(self.num_before % self.size == self.rank)
        own = slice(num_own)
        return super().update(key_states[:, :, own], value_states[:, :, own], layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the whole sequence, on whatever rank they are."""
        return self.num_tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(keys that the next `query_length` queries meet, 0)."""
        return self.num_tokens + query_length, 0


class _SameScores(LogitsProcessor):
    """All ranks choose the next token from the scores of the first one, to the bit."""

    def __init__(self, group: dist.ProcessGroup | None):
        self.group = group

    def __call__(
        self, input_ids: Int64[Tensor, "batch length"], scores: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        scores = scores.contiguous()
        if self.group is not None:
            dist.broadcast(scores, group=self.group, group_src=0)
        return scores


class ContextParallel:
    """The ranks that answer a prompt together, as an argument of `InternVLChatModel.generate` and of `Session`.

    Args:
        group: The ranks; None: this process alone.
        kernel: What computes attention; None: torch's own for the device.
    """

    def __init__(self, group: dist.ProcessGroup | None, *, kernel: AttentionKernel | None = None):
        self.group, self.kernel = group, kernel
        self.rank, self.size = get_rank_and_size(group)

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for the group: writes answers, reads questions."""
        return self.rank == 0

    def share(self, value: Value) -> Value:
        """The first rank's value, on every rank. Collective over the group."""
        values = [value]
        if self.group is not None:
            dist.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """An error of the user's that one rank meets in the block is raised on every rank. Collective at its end.

        Without it the other ranks would wait in their next message for one that has given up.

        Raises:
            InternVLError: This rank's, or of the same class and with the same text as that of the first that failed.
        """
        error: InternVLError | None = None
        try:
            yield
        except InternVLError as raised:
            error = raised
        found: list[tuple[type[InternVLError], str] | None] = [None] * self.size
        if self.group is not None:
            dist.all_gather_object(found, error and (type(error), str(error)), group=self.group)
        if error is not None:
            raise error
        first = next((other for other in found if other is not None), None)
        if first is not None:
            raise first[0](first[1])

    @torch.no_grad()
    def generate(
        self,
        model: InternVLChatModel,
        *,
        input_ids: Int64[Tensor, "batch length"],
        options: GenerateOptions,
        pixel_values: Num[Tensor, "tiles 3 size size"] | None = None,
        attention_mask: Shaped[Tensor, "batch length"] | None = None,
        visual_features: Tensor | ShardedFeatures | None = None,
        **generate_kwargs: Any,
    ) -> Tensor | ModelOutput:
        """What `InternVLChatModel.generate` does when it is given `context_parallel`. Collective over the group.

        Random draws are those of the first rank: its generator's state becomes that of all. An answer needs
        `max_new_tokens`, because the rotary base may depend on it.

        Args:
            model: The same on every rank.
            input_ids: One prompt, without padding.
            options: Positions, chunks (tokens that pass the decoders of all ranks together) and cache.
            pixel_values: Tiles of the whole prompt; a rank encodes its share of them.
            attention_mask: All ones, if given.
            visual_features: Of all tiles, on every rank; or `ShardedFeatures`.
            **generate_kwargs: As transformers' `generate` takes them.

        Raises:
            ConfigError: Several prompts, padding, beams, or a cache that cannot be shared.
            ParallelError: The ranks were not called with the same prompt.
            ValueError: Another number of visual tokens than of features.
        """
        _check_prompt(input_ids, attention_mask)
        _check_options(options, generate_kwargs)
        num_new_tokens = int(_asked("max_new_tokens", generate_kwargs) or 0)
        self._check_same_call(input_ids, num_new_tokens, options.prefill_chunk_size)
        position_ids = options.position_ids
        if position_ids is None:
            position_ids = model.build_positions(
                input_ids,
                image_strides=options.image_strides,
                image_grids=options.image_grids,
                rope_pos_id_version=options.rope_pos_id_version,
                rope_pos_id_stride=options.rope_pos_id_stride,
            )
        position_ids = positions_per_row(position_ids, input_ids)
        length = input_ids.shape[1]
        chunks = _list_chunks(length - 1, options.prefill_chunk_size or length)
        visual = model.find_visual_tokens(input_ids)
        if bool(visual[0, -1]):
            raise ConfigError("the prompt ends with a visual token, expected text after the last image (</img>)")
        if pixel_values is not None and visual_features is None:
            visual_features = self._encode_share(model, pixel_values, options.image_flags)
        features = self._take_features(visual, chunks, visual_features)
        self._share_generator(input_ids.device)
        cache = ShardedCache(
            rank=self.rank,
            size=self.size,
            name=options.kv_cache,
            max_length=length + num_new_tokens,
            num_chunks=len(chunks),
        )
        named = model.name_version(position_ids, options)
        decoding = {
            "past_key_values": cache,
            "rope_lengths": final_lengths(position_ids, num_new_tokens, named.get("rope_pos_id_version")),
            "attention": partial(self._attend, cache),
            **named,
        }
        self._prefill(model, input_ids, visual, position_ids, features, chunks, decoding)
        # The last token of the prompt is on all ranks, like those of the answer. Of the embeddings of the whole
        # prompt, generate reads that token's only: the others share its memory.
        last = model.get_input_embeddings()(input_ids[:, -1:])
        given = generate_kwargs.pop("logits_processor", None) or []
        processors = LogitsProcessorList([_SameScores(self.group), RefuseNonFiniteScores(model.name_or_path), *given])
        return model.language_model.generate(
            inputs_embeds=last.expand(1, length, -1),
            attention_mask=torch.ones_like(input_ids),
            position_ids=position_ids,
            logits_processor=processors,
            **decoding,
            **generate_kwargs,
        )

    def _encode_share(
        self, model: InternVLChatModel, pixel_values: Tensor, image_flags: Tensor | None
    ) -> ShardedFeatures:
        """Encode this rank's share of the real tiles."""
        if image_flags is not None:
            pixel_values = pixel_values[image_flags.reshape(-1).to(pixel_values.device) == 1]
        owners = split_tiles(len(pixel_values), self.size)
        own = owners[self.rank]
        if own:
            local = model.extract_feature(pixel_values[own.start : own.stop])
        else:
            shape = (0, model.num_image_token, model.config.llm_config.hidden_size)
            local = torch.zeros(shape, dtype=model.dtype, device=pixel_values.device)
        return ShardedFeatures(local, owners)

    def _take_features(
        self,
        visual: Bool[Tensor, "1 length"],
        chunks: Sequence[range],
        features: Tensor | ShardedFeatures | None,
    ) -> Float[Tensor, "own_visual dim"] | None:
        """Features of this rank's visual tokens in the order in which it meets them; None without images."""
        num_visual = int(visual.sum())
        if features is None:
            if num_visual:
                raise ValueError(f"the text has {num_visual} visual tokens but there are no images; pass their tiles")
            return None
        numbers = torch.where(visual[0], visual[0].cumsum(0) - 1, -1)
        if isinstance(features, ShardedFeatures):
            wanted = [_list_wanted(numbers, chunks, rank=rank, size=self.size) for rank in range(self.size)]
            return exchange_features(features.local, owner_ranges=features.owners, wanted=wanted, group=self.group)
        if num_visual != features.shape[:-1].numel():
            raise ValueError(
                f"the text has {num_visual} visual tokens but the images give {features.shape[:-1].numel()} features; "
                "every image needs <img>, T <IMG_CONTEXT> per tile, </img> in the text"
            )
        return features.flatten(0, -2)[_list_wanted(numbers, chunks, rank=self.rank, size=self.size)]

    def _prefill(
        self,
        model: InternVLChatModel,
        input_ids: Int64[Tensor, "1 length"],
        visual: Bool[Tensor, "1 length"],
        position_ids: Shaped[Tensor, "*axes 1 length"],
        features: Float[Tensor, "own_visual dim"] | None,
        chunks: Sequence[range],
        decoding: Arguments,
    ) -> None:
        """Run everything but the last token of the prompt through the decoder."""
        num_used = 0
        num_keys = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device).unsqueeze(0)
        cache: ShardedCache = decoding["past_key_values"]
        for chunk in chunks:
            own_ids, own_visual, own_positions, own_num_keys = (
                shard_row(x[..., chunk.start : chunk.stop], rank=self.rank, size=self.size, dim=-1)
                for x in (input_ids, visual, position_ids, num_keys)
            )
            embeds = model.get_input_embeddings()(own_ids)
            num_visual = int(own_visual.sum())
            if features is not None and num_visual:
                embeds = merge_visual_features(embeds, own_visual, features[num_used : num_used + num_visual])
                num_used += num_visual
            cache.chunk_length = len(chunk)
            model.language_model.model(
                inputs_embeds=embeds, position_ids=own_positions, use_cache=True, num_keys=own_num_keys, **decoding
            )
        cache.chunk_length = None

    def _check_same_call(self, input_ids: Tensor, num_new_tokens: int, chunk_size: int | None) -> None:
        """Ranks with different prompts would wait for each other for ever."""
        if self.group is None:
            return
        order = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        numbers = [len(order), num_new_tokens, chunk_size or 0, int((input_ids * order).sum())]
        own = torch.tensor(numbers, device=input_ids.device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self.group)
        calls = torch.stack(found).tolist()
        if any(call != calls[0] for call in calls):
            raise ParallelError(
                "the ranks that answer together were called with different prompts or limits: (tokens, max_new_tokens, "
                f"prefill_chunk_size, sum of the prompt) by rank {calls}; give all of them the same"
            )

    def _share_generator(self, device: torch.device) -> None:
        """Every rank's random numbers go on as those of the first."""
        if self.group is None:
            return
        on_gpu = device.type == "cuda"
        state = torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()
        sent = state.to(device)
        dist.broadcast(sent, group=self.group, group_src=0)
        if on_gpu:
            torch.cuda.set_rng_state(sent.cpu(), device)
        else:
            torch.set_rng_state(sent)

    def _attend(
        self,
        cache: ShardedCache,
        query: Float[Tensor, "1 heads queries head_dim"],
        key: Float[Tensor, "1 kv_heads held head_dim"],
        value: Float[Tensor, "1 kv_heads held head_dim"],
        *,
        scaling: float,
        cu_seqlens: Tensor | None,
        attention_mask: Padding | None,
    ) -> Float[Tensor, "1 heads queries head_dim"]:
        """`AttentionFunction` over the shares of all ranks; `key` and `value` are what this rank's cache returned."""
        assert cu_seqlens is None  # a prompt is one document
        q, k, v = (rearrange(x, "1 heads tokens dim -> tokens heads dim") for x in (query, key, value))
        kernel = self.kernel or select_kernel(None, q.device, q.dtype)
        if cache.chunk_length is None:
            out = attend_token(q, k, v, group=self.group, scale=scaling, kernel=kernel)
        else:
            attend = attend_chunk if cache.num_before else attend_first_chunk
            out = attend(q, k, v, length=cache.chunk_length, group=self.group, scale=scaling, kernel=kernel)
        return rearrange(out, "tokens heads dim -> 1 heads tokens dim")


def build_context_parallel(size: int) -> ContextParallel:
    """Groups of `size` consecutive ranks. Collective over all processes of the run.

    Raises:
        ParallelError: `size` does not divide the number of processes.
    """
    num_processes = dist.get_world_size() if dist.is_initialized() else 1
    if size < 1 or num_processes % size:
        raise ParallelError(
            f"--gpus_per_task {size} does not divide the {num_processes} processes of the run; start a multiple of "
            "it, or choose another number"
        )
    return ContextParallel(build_grid(chunk_num=size).group)


def _check_prompt(
    input_ids: Int64[Tensor, "batch length"], attention_mask: Shaped[Tensor, "batch length"] | None
) -> None:
    if input_ids.ndim != 2 or len(input_ids) != 1 or not input_ids.shape[1]:
        raise ConfigError(
            f"context_parallel answers one prompt at a time, got input_ids of shape {tuple(input_ids.shape)}; "
            "expected (1, length), call once per prompt"
        )
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ConfigError("context_parallel takes no padding, but attention_mask has zeros; cut the padding off")


def _check_options(options: GenerateOptions, generate_kwargs: Arguments) -> None:
    options.check()
    check_shareable(options.kv_cache)
    if _asked("max_new_tokens", generate_kwargs) is None:
        raise ConfigError("context_parallel needs max_new_tokens: the rotary base depends on it")
    for name in ("num_beams", "num_return_sequences"):
        if (_asked(name, generate_kwargs) or 1) != 1:
            raise ConfigError(f"{name} is more than 1, but context_parallel follows one answer only; leave it out")
    for name, usual in (("use_cache", True), ("past_key_values", None), ("max_time", None)):
        if generate_kwargs.get(name, usual) is not usual:
            raise ConfigError(f"context_parallel brings a cache of its own and takes no clock; leave {name} out")


def _asked(name: str, generate_kwargs: Arguments) -> int | None:
    """An argument of transformers' `generate`, given by itself or in a generation config."""
    given = generate_kwargs.get(name)
    return getattr(generate_kwargs.get("generation_config"), name, None) if given is None else given


def _list_chunks(length: int, chunk_size: int) -> list[range]:
    return [range(first, min(first + chunk_size, length)) for first in range(0, length, chunk_size)]


def _list_wanted(
    numbers: Int64[Tensor, " length"], chunks: Sequence[range], *, rank: int, size: int
) -> Int64[Tensor, " wanted"]:
    """Of a row of numbers (-1: none), those at the tokens that `rank` holds; they rise if the row's do."""
    shards = [shard_row(numbers[chunk.start : chunk.stop], rank=rank, size=size, pad_value=-1) for chunk in chunks]
    held = torch.cat(shards) if shards else numbers[:0]
    return held[held >= 0]
