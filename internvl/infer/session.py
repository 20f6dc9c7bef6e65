"""A loaded model that answers questions about images.

    question with <image> ... --(files -> tiles -> features, cached per image)--> ids and features --generate--> text

A conversation is a list of earlier (question, answer) pairs, given again with every question. Text is made harmless
first: `<img>` or `<IMG_CONTEXT>` written in a question stays text. Every `<image>` becomes
`<img>`, T visual tokens per tile, `</img>`. Every `<video>` becomes labelled frames, each an image of one tile:

    <video>\\nq   -->   Frame1: <image>\\nFrame2: <image>\\n ... FrameN: <image>\\nq

Several ranks can answer a question together (`context_parallel`): each loads and encodes some of the images and keeps
some of the keys and values, all of them get the answer. One process can answer several questions at once
(`answer_batch`), and can keep the keys and values of a prompt for the next one that begins the same (`reuse_prefix`).
"""

import math
import re
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from internvl.data.encode import neutralise_special_tokens
from internvl.data.storage.media import load_image, read_image_size
from internvl.data.tiling import count_tiles, split_into_tiles
from internvl.data.transform import build_transform
from internvl.data.video import (
    VIDEO_PLACEHOLDER,
    VideoClip,
    choose_frames,
    label_frames,
    list_frames,
    load_frames,
)
from internvl.errors import ConfigError, DataError
from internvl.infer.checkpoint import load_checkpoint
from internvl.infer.context_parallel import ContextParallel, ShardedFeatures, check_shareable, split_images
from internvl.infer.feature_cache import FeatureCache
from internvl.infer.layer_split import split_over_devices
from internvl.infer.prefix import KeptPrefix, check_reusable
from internvl.infer.stream import TextStream, decode_answer
from internvl.model.caches import check_kv_cache
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.constants import IMAGE_PLACEHOLDER, IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN
from internvl.model.conversation import Role, get_conversation
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.scaling import RopeScaling
from internvl.model.v2pe import check_stride


class StoredImage(Hashable, Protocol):
    """A picture that is opened when its features are needed; equal objects show the same."""

    def open(self) -> Image.Image:
        """The picture."""


ImageSource = str | Path | Image.Image | StoredImage
VideoSource = str | Path | VideoClip
Turn = tuple[str, str]  # an earlier question and its answer
DEFAULT_CACHE_BYTES = 2**30
DEFAULT_NUM_FRAMES = 16  # of a video, as in the published MVBench evaluation
_ONLY_IMAGES = re.compile(IMAGE_PLACEHOLDER)
_IMAGES_AND_VIDEOS = re.compile(f"{IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER}")


@dataclass(frozen=True)
class Answer:
    """What a question got back.

    Attributes:
        text: The answer, without special tokens.
        num_prompt_tokens: Tokens of the prompt, visual ones included.
        num_new_tokens: Generated tokens, the closing one included.
        num_tiles: Tiles of all images and frames.
        last_position: Rotary position of the last prompt token.
        seconds: From question to answer.
        num_frames: Frames of all videos.
    """

    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    num_tiles: int
    last_position: float
    seconds: float
    num_frames: int = 0


@dataclass(frozen=True)
class Question:
    """A question of `Session.answer_batch`; fields as of `Session.answer`."""

    prompt: str
    images: Sequence[ImageSource] = ()
    videos: Sequence[VideoSource] = ()
    max_num: int | Sequence[int] | None = None


@dataclass(frozen=True)
class _Prompt:
    """A question as the model takes it.

    Attributes:
        input_ids: (1, length).
        position_ids: (1, length).
        features: Of all tiles; None without images.
        tiles_per_image: Of images and frames.
        keys: What the features of every picture depend on.
        num_frames: Frames of all videos.
    """

    input_ids: Int64[Tensor, "1 length"]
    position_ids: Tensor
    features: Any
    tiles_per_image: Sequence[int]
    keys: Sequence[Hashable]
    num_frames: int

    @property
    def length(self) -> int:
        """Tokens."""
        return self.input_ids.shape[1]


@dataclass(frozen=True)
class _Picture:
    """An image of a prompt, or a frame of a video.

    Attributes:
        source: The image, or the video file.
        max_num: Tile limit.
        frame: Number of the frame in the video file; None: an image.
    """

    source: ImageSource
    max_num: int
    frame: int | None = None


def check_placeholders(questions: Sequence[str], num_images: int, num_videos: int = 0) -> None:
    """Make sure that there is one `<image>` per image and one `<video>` per video.

    Without videos `<video>` is text (it is a tag of web pages).

    Args:
        questions: User messages of a conversation.
        num_images: Images of the whole conversation.
        num_videos: Videos of the whole conversation.

    Raises:
        DataError: Another number.
    """
    _check_placeholders(questions, IMAGE_PLACEHOLDER, num_images)
    if num_videos:
        _check_placeholders(questions, VIDEO_PLACEHOLDER, num_videos)


def _check_placeholders(questions: Sequence[str], placeholder: str, num_expected: int) -> None:
    num_placeholders = sum(question.count(placeholder) for question in questions)
    if num_placeholders != num_expected:
        kind = placeholder.strip("<>")
        where = "the prompt has" if len(questions) == 1 else f"the {len(questions)} questions of the conversation have"
        raise DataError(
            f"{where} {num_placeholders} {placeholder} for {num_expected} {kind}s, expected one per {kind}; "
            f"change the text or the list of {kind}s"
        )


def check_batchable(kv_cache: str, *, is_shared: bool) -> None:
    """Refuse several questions at once where answers would depend on their company, or ranks answer together.

    Raises:
        ConfigError: Quantised keys and values (one scale for all rows), or `is_shared`.
    """
    if kv_cache == "quantized" or is_shared:
        cause = "ranks that answer together take" if is_shared else "kv_cache quantized takes"
        raise ConfigError(f"{cause} one question at a time, got several; use a batch of 1")


class Session:
    """A model with its tokenizer and one choice of visual positions.

    Args:
        model: The model, in evaluation mode on its device.
        tokenizer: Its tokenizer.
        rope_pos_id_version: `default`, `v2pe_fix` or `v2pe_rnd`; None: `v2pe_fix` when a stride is given, otherwise
            the checkpoint's own (ordinary positions for one that was trained with random strides).
        rope_pos_id_stride: Positions that one tile spans; None: the checkpoint's own.
        max_num: Largest number of tiles per image; None: the checkpoint's own (`max_dynamic_patch`). A frame of a
            video is one tile.
        num_frames: Frames per video, spread evenly (`sample_segments` of internvl/data/video.py).
        max_cache_bytes: Limit of the image feature cache (in main memory).
        prefill_chunk_size: Tokens of a prompt that pass the decoder at a time, which bounds memory for long prompts;
            None: all at once. Does not change answers.
        kv_cache: Where keys and values are kept: `dynamic`, `static`, `offloaded` or `quantized` (see
            internvl/model/caches.py). Only `quantized` changes answers, and its answers depend on `prefill_chunk_size`.
        context_parallel: The ranks that answer together, see internvl/infer/context_parallel.py; None: this process
            alone. All of them make a session and ask it the same questions in the same order.
        reuse_prefix: Keep the keys and values of a prompt, so that of the next one only what differs from it passes
            the decoder (`dynamic` cache of a single process; see internvl/infer/prefix.py). Takes their memory
            between questions, does not change answers.

    Raises:
        ConfigError: Version and stride do not fit together, the config names an unknown template, or the cache is
            unknown or cannot be shared or kept.
    """

    def __init__(
        self,
        model: InternVLChatModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: float | None = None,
        max_num: int | None = None,
        num_frames: int = DEFAULT_NUM_FRAMES,
        max_cache_bytes: int = DEFAULT_CACHE_BYTES,
        prefill_chunk_size: int | None = None,
        kv_cache: str = "dynamic",
        context_parallel: ContextParallel | None = None,
        reuse_prefix: bool = False,
    ):
        config = model.config
        self.model, self.tokenizer = model, tokenizer
        self.rope_pos_id_version = rope_pos_id_version or _choose_version(config, rope_pos_id_stride)
        self.rope_pos_id_stride = config.rope_pos_id_stride if rope_pos_id_stride is None else rope_pos_id_stride
        check_stride(self.rope_pos_id_version, self.rope_pos_id_stride)
        self.max_num = config.max_dynamic_patch if max_num is None else max_num
        self.num_frames = num_frames
        self.conversation = get_conversation(config.template or "internlm2-chat")
        if prefill_chunk_size is not None and prefill_chunk_size < 1:
            raise ConfigError(f"prefill_chunk_size must be a positive number of tokens, got {prefill_chunk_size}")
        self.prefill_chunk_size = prefill_chunk_size
        check_kv_cache(kv_cache)
        if context_parallel is not None:
            check_shareable(kv_cache)
        self.kv_cache, self.context_parallel = kv_cache, context_parallel
        self.cache = FeatureCache(max_cache_bytes)
        self.prefix: KeptPrefix | None = None
        if reuse_prefix:
            check_reusable(kv_cache, is_shared=context_parallel is not None)
            self.prefix = KeptPrefix(model, self.rope_pos_id_version)
        self._transform = build_transform(config.image_size, pad2square=config.pad2square)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        rope_scaling: RopeScaling | None = None,
        logn_scaling: int | None = None,
        layer_devices: Sequence[str] = (),
        **options: Any,
    ) -> "Session":
        """Load a checkpoint folder.

        Args:
            checkpoint: Folder as `save_pretrained` writes it.
            dtype: Of the weights; None: bfloat16 on CUDA, float32 elsewhere.
            device: None: CUDA when there is a GPU.
            rope_scaling: Scaling of rotary positions, instead of what the checkpoint's config says (see
                internvl/model/scaling.py); None: the config's.
            logn_scaling: Training length in tokens beyond which queries are made longer (see
                internvl/model/scaling.py), instead of the config's; 0: none; None: the config's.
            layer_devices: Devices that share the layers of a model which does not fit on one (see
                internvl/infer/layer_split.py), instead of `device`.
            **options: As of `Session`.

        Raises:
            CheckpointError: The folder is missing or incomplete.
            ConfigError: The model cannot take the scaling, or the visual positions cannot.
        """
        target = torch.device([*layer_devices, device][0] or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if target.type == "cuda" else torch.float32)
        home = "cpu" if layer_devices else target
        model, tokenizer = load_checkpoint(
            checkpoint, dtype=dtype, device=home, rope_scaling=rope_scaling, logn_scaling=logn_scaling
        )
        if layer_devices:
            split_over_devices(model, layer_devices)
        session = cls(model, tokenizer, **options)
        if rope_scaling is not None:
            rope_scaling.check_version(session.rope_pos_id_version)
        return session

    @torch.inference_mode()
    def answer(
        self,
        prompt: str,
        images: Sequence[ImageSource] = (),
        *,
        videos: Sequence[VideoSource] = (),
        max_new_tokens: int,
        history: Sequence[Turn] = (),
        on_text: Callable[[str], None] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        max_num: int | Sequence[int] | None = None,
        num_frames: int | None = None,
        system_message: str | None = None,
        logits_processor: LogitsProcessorList | None = None,
    ) -> Answer:
        """Answer one question, greedily unless a temperature is given.

        Args:
            prompt: User message with one `<image>` per image and one `<video>` per video.
            images: Files or pictures in the order of their placeholders, those of earlier questions first.
            videos: Files, folders of frames, or parts of them (`VideoClip`), in the order of their placeholders.
            max_new_tokens: Limit of the answer in tokens.
            history: Earlier questions, with their `<image>`, and answers.
            on_text: Called with every piece of the answer as it comes; the pieces add up to the answer's text.
            temperature: Divides the logits; 0: the most probable token always.
            top_p: Draw from the most probable tokens that make up this share (0 to 1, with a temperature only).
            seed: Of what is drawn; None: the global generator of torch.
            max_num: Tiles per image for this question, one limit for all or one per image; None: the session's.
            num_frames: Frames per video for this question; None: the session's.
            system_message: Replaces the template's own.
            logits_processor: Changes the logits of every new token, as of transformers.

        Raises:
            ConfigError: A limit, a temperature or a share out of range.
            DataError: Another number of `<image>` or `<video>` than of images or videos, or one that cannot be read.
        """
        start = time.perf_counter()
        sampling = _choose_sampling(temperature, top_p)
        question = self._prepare(
            Question(prompt, images, videos, max_num),
            max_new_tokens=max_new_tokens,
            num_frames=num_frames,
            history=history,
            system_message=system_message,
        )
        if on_text is not None:
            sampling["streamer"] = TextStream(self.tokenizer, on_text, **self._stops())
        with _seeded(seed, self.model.device):
            new_ids = self._generate(
                [question], max_new_tokens=max_new_tokens, logits_processor=logits_processor, **sampling
            )
        return self._read_answer(question, new_ids[0].tolist(), seconds=time.perf_counter() - start)

    @torch.inference_mode()
    def answer_batch(
        self, questions: Sequence[Question], *, max_new_tokens: int, num_frames: int | None = None
    ) -> list[Answer]:
        """Answer several questions at once, greedily; prompts are padded on the left to the longest.

        Answers are those of `answer`, up to rounding: matrix products of several rows may add up in another order.

        Args:
            questions: One or more.
            max_new_tokens: Limit of every answer in tokens.
            num_frames: Frames per video; None: the session's.

        Returns:
            An answer per question; `seconds` is an equal share of the time of all.

        Raises:
            ConfigError: A limit out of range, or several questions where one at a time can be answered.
            DataError: As of `answer`, for any of the questions.
        """
        start = time.perf_counter()
        if len(questions) > 1:
            check_batchable(self.kv_cache, is_shared=self.context_parallel is not None)
        prompts = [
            self._prepare(question, max_new_tokens=max_new_tokens, num_frames=num_frames) for question in questions
        ]
        rows = self._generate(prompts, max_new_tokens=max_new_tokens, do_sample=False).tolist()
        seconds = (time.perf_counter() - start) / len(questions)
        return [self._read_answer(prompt, ids, seconds=seconds) for prompt, ids in zip(prompts, rows, strict=True)]

    def release_memory(self) -> None:
        """Forget the features of images and the keys and values that are kept for later questions."""
        self.cache.clear()
        if self.prefix is not None:
            self.prefix.clear()

    def _prepare(
        self,
        question: Question,
        *,
        max_new_tokens: int,
        num_frames: int | None,
        history: Sequence[Turn] = (),
        system_message: str | None = None,
    ) -> _Prompt:
        """Read and encode what a question shows, and write its prompt."""
        images, videos = question.images, question.videos
        max_num = self.max_num if question.max_num is None else question.max_num
        num_frames = self.num_frames if num_frames is None else num_frames
        limits = list(max_num) if isinstance(max_num, Sequence) else [max_num] * len(images)
        if len(limits) != len(images):
            raise ConfigError(f"max_num has {len(limits)} limits for {len(images)} images, expected one per image")
        lowest = min(limits, default=1) if isinstance(max_num, Sequence) else max_num
        for name, value in (("max_new_tokens", max_new_tokens), ("max_num", lowest), ("num_frames", num_frames)):
            if value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        texts = [*(text for text, _ in history), question.prompt]
        check_placeholders(texts, len(images), len(videos))
        frames = self._choose_frames(videos, num_frames)
        pictures = [_Picture(image, limit) for image, limit in zip(images, limits, strict=True)]
        texts, pictures = _place_pictures(texts, pictures, frames)
        features, tiles_per_image = self._prepare_images(pictures)
        *earlier, prompt = texts
        history = [(text, answer) for text, (_, answer) in zip(earlier, history, strict=True)]
        input_ids = self._encode_prompt(prompt, tiles_per_image, system_message, history).to(self.model.device)
        position_ids = self.model.build_positions(
            input_ids, rope_pos_id_version=self.rope_pos_id_version, rope_pos_id_stride=self.rope_pos_id_stride
        )
        keys: list[Hashable] = []
        if self.prefix is not None:  # a picture in memory is like no other
            keys = [object() if isinstance(p.source, Image.Image) else _picture_key(p) for p in pictures]
        return _Prompt(input_ids, position_ids, features, tiles_per_image, keys, sum(map(len, frames)))

    def _generate(self, prompts: Sequence[_Prompt], **options: Any) -> Int64[Tensor, "prompts new_tokens"]:
        """New tokens of every prompt."""
        width = max(prompt.length for prompt in prompts)
        pad_id = self.tokenizer.pad_token_id
        padded = [
            (
                F.pad(prompt.input_ids, (width - prompt.length, 0), value=pad_id or 0),
                F.pad(prompt.position_ids, (width - prompt.length, 0), value=1),
                F.pad(torch.ones_like(prompt.input_ids), (width - prompt.length, 0)),
            )
            for prompt in prompts
        ]
        input_ids, position_ids, mask = (torch.cat(rows) for rows in zip(*padded, strict=True))
        features = [prompt.features for prompt in prompts if prompt.features is not None]
        kept = None
        if self.prefix is not None and len(prompts) == 1:
            kept = self.prefix.take(input_ids, position_ids, keys=prompts[0].keys, tiles=prompts[0].tiles_per_image)
            options["past_key_values"] = kept
        new_ids = self.model.generate(
            input_ids=input_ids,
            attention_mask=mask if len(prompts) > 1 else None,
            visual_features=torch.cat(features) if len(features) > 1 else next(iter(features), None),
            position_ids=position_ids,
            eos_token_id=self._stop_ids(),
            pad_token_id=pad_id,
            prefill_chunk_size=self.prefill_chunk_size,
            kv_cache=self.kv_cache,
            context_parallel=self.context_parallel,
            **options,
        )
        if kept is not None and self.prefix is not None:
            self.prefix.keep(kept, input_ids, position_ids, keys=prompts[0].keys)
        return new_ids

    def _read_answer(self, prompt: _Prompt, new_ids: list[int], *, seconds: float) -> Answer:
        """The answer in a row of new tokens, which may go on with padding behind its stop."""
        stops = self._stop_ids()
        num_new_tokens = next((place for place, token in enumerate(new_ids, start=1) if token in stops), len(new_ids))
        return Answer(
            text=decode_answer(self.tokenizer, new_ids, **self._stops()),
            num_prompt_tokens=prompt.length,
            num_new_tokens=num_new_tokens,
            num_tiles=sum(prompt.tiles_per_image),
            last_position=float(prompt.position_ids[0, -1]),
            seconds=seconds,
            num_frames=prompt.num_frames,
        )

    def _choose_frames(self, videos: Sequence[VideoSource], num_frames: int) -> list[list[_Picture]]:
        """The frames of every video that the model sees, one tile each."""
        if not videos:
            return []
        clips = [video if isinstance(video, VideoClip) else VideoClip(video) for video in videos]
        with (self.context_parallel or ContextParallel(None)).fail_together():
            frames = [_list_pictures(clip, choose_frames(clip, num_frames=num_frames)) for clip in clips]
        return frames

    def _prepare_images(self, pictures: Sequence[_Picture]) -> tuple[Any, list[int]]:
        """Features as `generate` takes them (None without images), and tiles per image or frame."""
        if not pictures:
            return None, []
        if self.context_parallel is None:
            features = self._encode_images(pictures)
            return torch.cat(features).to(self.model.device), [len(f) for f in features]
        parallel = self.context_parallel
        with parallel.fail_together():
            tiles = [self._count_tiles(picture) for picture in pictures]
            shares = split_images(tiles, parallel.size)
            own = shares[parallel.rank]
            encoded = self._encode_images(pictures[own.start : own.stop])
        # An own tensor of zero tiles: a rank that has no image still takes part in the exchange.
        none = torch.zeros(0, self.model.num_image_token, self.model.config.llm_config.hidden_size)
        local = torch.cat([none.to(self.model.dtype), *encoded]).to(self.model.device)
        owners = [range(sum(tiles[: share.start]), sum(tiles[: share.stop])) for share in shares]
        return ShardedFeatures(local, owners), tiles

    def _count_tiles(self, picture: _Picture) -> int:
        """Tiles of an image, from its size alone."""
        if picture.max_num == 1:
            return 1
        image = picture.source
        if isinstance(image, str | Path):
            width, height = read_image_size(image)
        else:
            width, height = (image if isinstance(image, Image.Image) else image.open()).size
        return count_tiles(width, height, **self._tiling(picture.max_num))

    def _tiling(self, max_num: int) -> dict[str, Any]:
        config = self.model.config
        return {
            "min_num": min(config.min_dynamic_patch, max_num),
            "max_num": max_num,
            "image_size": config.image_size,
            "use_thumbnail": config.use_thumbnail,
        }

    def _encode_images(self, pictures: Sequence[_Picture]) -> list[Float[Tensor, "tiles tokens dim"]]:
        """Features of every picture in main memory; one that appears twice is encoded once."""
        encoded: dict[Hashable, Tensor] = {}
        missing: dict[Hashable, _Picture] = {}
        keys = [_picture_key(picture) for picture in pictures]
        for key, picture in zip(keys, pictures, strict=True):
            features = encoded.get(key, self.cache.get(key))
            if features is None:
                missing[key] = picture
            else:
                encoded[key] = features
        loaded = _load_pictures(list(missing.values()))
        for (key, picture), image in zip(missing.items(), loaded, strict=True):
            encoded[key] = self._encode_image(image, picture.max_num)
            if not isinstance(picture.source, Image.Image):
                self.cache.put(key, encoded[key])
        return [encoded[key] for key in keys]

    def _encode_image(self, image: Image.Image, max_num: int) -> Float[Tensor, "tiles tokens dim"]:
        """One forward of the vision tower per image: its features depend on no other image in the prompt or cache."""
        tiles = split_into_tiles(image, **self._tiling(max_num))
        pixel_values = self._transform(tiles).to(self.model.device, self.model.dtype)
        return self.model.extract_feature(pixel_values).cpu()

    def _encode_prompt(
        self,
        prompt: str,
        tiles_per_image: Sequence[int],
        system_message: str | None,
        history: Sequence[Turn] = (),
    ) -> Int64[Tensor, "1 tokens"]:
        """Ids of the rendered conversation, every image's visual token repeated T times per tile."""
        messages: list[tuple[Role, str | None]] = []
        for question, answer in history:
            messages += [("user", _mark_images(question)), ("assistant", neutralise_special_tokens(answer))]
        messages += [("user", _mark_images(prompt)), ("assistant", None)]
        system = None if system_message is None else neutralise_special_tokens(system_message)
        text = self.conversation.render(messages, system_message=system)
        ids = torch.tensor(self.tokenizer(text, verbose=False)["input_ids"])
        repeats = torch.ones_like(ids)
        visual = ids == self.model.img_context_token_id
        repeats[visual] = self.model.num_image_token * torch.tensor(list(tiles_per_image), dtype=ids.dtype)
        return torch.repeat_interleave(ids, repeats).unsqueeze(0)

    def _stop_ids(self) -> list[int]:
        stop_id = self.tokenizer.convert_tokens_to_ids(self.conversation.stop_token)
        return [token_id for token_id in dict.fromkeys((stop_id, self.tokenizer.eos_token_id)) if token_id is not None]

    def _stops(self) -> dict[str, Any]:
        return {"stop_ids": frozenset(self._stop_ids()), "stop_text": self.conversation.stop_token}


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Torch's generators start from a seed and go on afterwards where they were before; None: they are not touched."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _choose_version(config: InternVLChatConfig, stride: float | None) -> str:
    if stride is not None:
        return "v2pe_fix"
    return "default" if config.rope_pos_id_version == "v2pe_rnd" else config.rope_pos_id_version


def _choose_sampling(temperature: float, top_p: float) -> dict[str, Any]:
    """Arguments of `generate`: greedy, or draws from the model's own distribution."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"temperature is {temperature}, expected 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p is {top_p}, expected more than 0 and at most 1")
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def _mark_images(question: str) -> str:
    """Text that is safe to tokenise, one visual token for every `<image>`."""
    one_token_image = IMG_START_TOKEN + IMG_CONTEXT_TOKEN + IMG_END_TOKEN
    return neutralise_special_tokens(question).replace(IMAGE_PLACEHOLDER, one_token_image)


def _list_pictures(clip: VideoClip, numbers: Sequence[int]) -> list[_Picture]:
    path = Path(clip.path)
    if path.is_dir():
        files = list_frames(path)
        return [_Picture(files[number], max_num=1) for number in numbers]
    return [_Picture(path, max_num=1, frame=number) for number in numbers]


def _place_pictures(
    questions: Sequence[str], images: Sequence[_Picture], videos: Sequence[Sequence[_Picture]]
) -> tuple[list[str], list[_Picture]]:
    """The questions with labelled frames instead of `<video>`, and all pictures in the order of their `<image>`."""
    following_images, following_videos = iter(images), iter(videos)
    pictures: list[_Picture] = []

    def place(placeholder: re.Match[str]) -> str:
        if placeholder[0] == IMAGE_PLACEHOLDER:
            pictures.append(next(following_images))
            return IMAGE_PLACEHOLDER
        frames = next(following_videos)
        pictures.extend(frames)
        return label_frames(len(frames))

    pattern = _IMAGES_AND_VIDEOS if videos else _ONLY_IMAGES
    return [pattern.sub(place, question) for question in questions], pictures


def _load_pictures(pictures: Sequence[_Picture]) -> Iterator[Image.Image]:
    """Decoded RGB pictures, one in memory at a time; frames of a video file in one pass."""
    frames_of: dict[str, list[int]] = {}
    for picture in pictures:
        if picture.frame is not None:
            frames_of.setdefault(str(picture.source), []).append(picture.frame)
    videos = {path: load_frames(path, frames) for path, frames in frames_of.items()}
    for picture in pictures:
        source = picture.source
        if picture.frame is not None:
            yield next(videos[str(source)])
        else:
            yield _open_image(source)


def _open_image(source: ImageSource) -> Image.Image:
    """The picture in RGB."""
    if isinstance(source, str | Path):
        return load_image(source)
    return (source if isinstance(source, Image.Image) else source.open()).convert("RGB")


def _picture_key(picture: _Picture) -> Hashable:
    """What features depend on; pictures in memory are told apart for the time of one question only."""
    source = picture.source
    if isinstance(source, Image.Image):
        return ("picture", id(source), picture.max_num)
    if not isinstance(source, str | Path):
        return (source, picture.max_num)
    path = Path(source)
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error}") from error
    return (str(path), status.st_mtime_ns, status.st_size, picture.max_num, picture.frame)
