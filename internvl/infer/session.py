"""A loaded model that answers questions about images.

    question with <image> ... --(files -> tiles -> features, cached per image)--> ids and features --generate--> text

A conversation is a list of earlier (question, answer) pairs, given again with every question. Text is made harmless
first: `<img>` or `<IMG_CONTEXT>` written in a question stays text. Every `<image>` becomes
`<img>`, T visual tokens per tile, `</img>`.

Several ranks can answer a question together (`context_parallel`): each loads and encodes some of the images and keeps
some of the keys and values, all of them get the answer.
"""

import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from internvl.data.encode import neutralise_special_tokens
from internvl.data.media import load_image, read_image_size
from internvl.data.tiling import count_tiles, split_into_tiles
from internvl.data.transform import build_transform
from internvl.errors import ConfigError, DataError
from internvl.infer.checkpoint import load_checkpoint
from internvl.infer.context_parallel import ContextParallel, ShardedFeatures, check_shareable, split_images
from internvl.infer.feature_cache import FeatureCache
from internvl.infer.layer_split import split_over_devices
from internvl.infer.stream import TextStream, decode_answer
from internvl.model.caches import check_kv_cache
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.constants import IMAGE_PLACEHOLDER, IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN
from internvl.model.conversation import Role, get_conversation
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.rope_scaling import RopeScaling
from internvl.model.v2pe import check_stride

ImageSource = str | Path | Image.Image
Turn = tuple[str, str]  # an earlier question and its answer
DEFAULT_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Answer:
    """What a question got back.

    Attributes:
        text: The answer, without special tokens.
        num_prompt_tokens: Tokens of the prompt, visual ones included.
        num_new_tokens: Generated tokens, the closing one included.
        num_tiles: Tiles of all images.
        last_position: Rotary position of the last prompt token.
        seconds: From question to answer.
    """

    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    num_tiles: int
    last_position: float
    seconds: float


def check_placeholders(questions: Sequence[str], num_images: int) -> None:
    """Make sure that there is one `<image>` per image.

    Args:
        questions: User messages of a conversation.
        num_images: Images of the whole conversation.

    Raises:
        DataError: Another number.
    """
    num_placeholders = sum(question.count(IMAGE_PLACEHOLDER) for question in questions)
    if num_placeholders != num_images:
        where = "the prompt has" if len(questions) == 1 else f"the {len(questions)} questions of the conversation have"
        raise DataError(
            f"{where} {num_placeholders} {IMAGE_PLACEHOLDER} for {num_images} images, expected one per image; "
            "change the text or the list of images"
        )


class Session:
    """A model with its tokenizer and one choice of visual positions.

    Args:
        model: The model, in evaluation mode on its device.
        tokenizer: Its tokenizer.
        rope_pos_id_version: `default`, `v2pe_fix` or `v2pe_rnd`; None: `v2pe_fix` when a stride is given, otherwise
            the checkpoint's own (ordinary positions for one that was trained with random strides).
        rope_pos_id_stride: Positions that one tile spans; None: the checkpoint's own.
        max_num: Largest number of tiles per image; None: the checkpoint's own (`max_dynamic_patch`).
        max_cache_bytes: Limit of the image feature cache (in main memory).
        prefill_chunk_size: Tokens of a prompt that pass the decoder at a time, which bounds memory for long prompts;
            None: all at once. Does not change answers.
        kv_cache: Where keys and values are kept: `dynamic`, `static`, `offloaded` or `quantized` (see
            internvl/model/caches.py). Only `quantized` changes answers, and its answers depend on `prefill_chunk_size`.
        context_parallel: The ranks that answer together, see internvl/infer/context_parallel.py; None: this process
            alone. All of them make a session and ask it the same questions in the same order.

    Raises:
        ConfigError: Version and stride do not fit together, the config names an unknown template, or the cache is
            unknown or cannot be shared.
    """

    def __init__(
        self,
        model: InternVLChatModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: float | None = None,
        max_num: int | None = None,
        max_cache_bytes: int = DEFAULT_CACHE_BYTES,
        prefill_chunk_size: int | None = None,
        kv_cache: str = "dynamic",
        context_parallel: ContextParallel | None = None,
    ):
        config = model.config
        self.model, self.tokenizer = model, tokenizer
        self.rope_pos_id_version = rope_pos_id_version or _choose_version(config, rope_pos_id_stride)
        self.rope_pos_id_stride = config.rope_pos_id_stride if rope_pos_id_stride is None else rope_pos_id_stride
        check_stride(self.rope_pos_id_version, self.rope_pos_id_stride)
        self.max_num = config.max_dynamic_patch if max_num is None else max_num
        self.conversation = get_conversation(config.template or "internlm2-chat")
        if prefill_chunk_size is not None and prefill_chunk_size < 1:
            raise ConfigError(f"prefill_chunk_size must be a positive number of tokens, got {prefill_chunk_size}")
        self.prefill_chunk_size = prefill_chunk_size
        check_kv_cache(kv_cache)
        if context_parallel is not None:
            check_shareable(kv_cache)
        self.kv_cache, self.context_parallel = kv_cache, context_parallel
        self.cache = FeatureCache(max_cache_bytes)
        self._transform = build_transform(config.image_size, pad2square=config.pad2square)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        rope_scaling: RopeScaling | None = None,
        layer_devices: Sequence[str] = (),
        **options: Any,
    ) -> "Session":
        """Load a checkpoint folder.

        Args:
            checkpoint: Folder as `save_pretrained` writes it.
            dtype: Of the weights; None: bfloat16 on CUDA, float32 elsewhere.
            device: None: CUDA when there is a GPU.
            rope_scaling: Scaling of rotary positions, instead of what the checkpoint's config says (see
                internvl/model/rope_scaling.py); None: the config's.
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
        model, tokenizer = load_checkpoint(checkpoint, dtype=dtype, device=home, rope_scaling=rope_scaling)
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
        max_new_tokens: int,
        history: Sequence[Turn] = (),
        on_text: Callable[[str], None] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        max_num: int | None = None,
        system_message: str | None = None,
    ) -> Answer:
        """Answer one question, greedily unless a temperature is given.

        Args:
            prompt: User message with one `<image>` per image.
            images: Files or pictures in the order of their placeholders, those of earlier questions first.
            max_new_tokens: Limit of the answer in tokens.
            history: Earlier questions, with their `<image>`, and answers.
            on_text: Called with every piece of the answer as it comes; the pieces add up to the answer's text.
            temperature: Divides the logits; 0: the most probable token always.
            top_p: Draw from the most probable tokens that make up this share (0 to 1, with a temperature only).
            seed: Of what is drawn; None: the global generator of torch.
            max_num: Tiles per image for this question; None: the session's.
            system_message: Replaces the template's own.

        Raises:
            ConfigError: A limit, a temperature or a share out of range.
            DataError: Another number of `<image>` than of images, or an image that cannot be read.
        """
        start = time.perf_counter()
        max_num = self.max_num if max_num is None else max_num
        for name, value in (("max_new_tokens", max_new_tokens), ("max_num", max_num)):
            if value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        sampling = _choose_sampling(temperature, top_p)
        questions = [*(question for question, _ in history), prompt]
        check_placeholders(questions, len(images))
        features, tiles_per_image = self._prepare_images(images, max_num)
        input_ids = self._encode_prompt(prompt, tiles_per_image, system_message, history)
        input_ids = input_ids.to(self.model.device)
        position_ids = self.model.build_positions(
            input_ids, rope_pos_id_version=self.rope_pos_id_version, rope_pos_id_stride=self.rope_pos_id_stride
        )
        if on_text is not None:
            sampling["streamer"] = TextStream(self.tokenizer, on_text, **self._stops())
        with _seeded(seed, self.model.device):
            new_ids = self.model.generate(
                input_ids=input_ids,
                visual_features=features,
                position_ids=position_ids,
                max_new_tokens=max_new_tokens,
                eos_token_id=self._stop_ids(),
                pad_token_id=self.tokenizer.pad_token_id,
                prefill_chunk_size=self.prefill_chunk_size,
                kv_cache=self.kv_cache,
                context_parallel=self.context_parallel,
                **sampling,
            )
        return Answer(
            text=decode_answer(self.tokenizer, new_ids[0].tolist(), **self._stops()),
            num_prompt_tokens=input_ids.shape[1],
            num_new_tokens=new_ids.shape[1],
            num_tiles=sum(tiles_per_image),
            last_position=float(position_ids[0, -1]),
            seconds=time.perf_counter() - start,
        )

    def _prepare_images(self, images: Sequence[ImageSource], max_num: int) -> tuple[Any, list[int]]:
        """Features as `generate` takes them (None without images), and tiles per image."""
        if not images:
            return None, []
        if self.context_parallel is None:
            features = self._encode_images(images, max_num)
            return torch.cat(features).to(self.model.device), [len(f) for f in features]
        parallel = self.context_parallel
        with parallel.fail_together():
            tiles = [self._count_tiles(image, max_num) for image in images]
            shares = split_images(tiles, parallel.size)
            own = shares[parallel.rank]
            encoded = self._encode_images(images[own.start : own.stop], max_num)
        # An own tensor of zero tiles: a rank that has no image still takes part in the exchange.
        none = torch.zeros(0, self.model.num_image_token, self.model.config.llm_config.hidden_size)
        local = torch.cat([none.to(self.model.dtype), *encoded]).to(self.model.device)
        owners = [range(sum(tiles[: share.start]), sum(tiles[: share.stop])) for share in shares]
        return ShardedFeatures(local, owners), tiles

    def _count_tiles(self, image: ImageSource, max_num: int) -> int:
        """Tiles of an image, from its size alone."""
        width, height = image.size if isinstance(image, Image.Image) else read_image_size(image)
        return count_tiles(width, height, **self._tiling(max_num))

    def _tiling(self, max_num: int) -> dict[str, Any]:
        config = self.model.config
        return {
            "min_num": min(config.min_dynamic_patch, max_num),
            "max_num": max_num,
            "image_size": config.image_size,
            "use_thumbnail": config.use_thumbnail,
        }

    def _encode_images(self, images: Sequence[ImageSource], max_num: int) -> list[Float[Tensor, "tiles tokens dim"]]:
        """Features of every image in main memory; an image that appears twice is encoded once."""
        encoded: dict[Hashable, Tensor] = {}
        keys = [_image_key(image, max_num) for image in images]
        for key, image in zip(keys, images, strict=True):
            if key in encoded:
                continue
            features = self.cache.get(key)
            if features is None:
                features = self._encode_image(image, max_num)
                if not isinstance(image, Image.Image):
                    self.cache.put(key, features)
            encoded[key] = features
        return [encoded[key] for key in keys]

    def _encode_image(self, image: ImageSource, max_num: int) -> Float[Tensor, "tiles tokens dim"]:
        """One forward of the vision tower per image: its features depend on no other image in the prompt or cache."""
        picture = image.convert("RGB") if isinstance(image, Image.Image) else load_image(image)
        tiles = split_into_tiles(picture, **self._tiling(max_num))
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


def _image_key(image: ImageSource, max_num: int) -> Hashable:
    """What an image's features depend on; pictures in memory are told apart for the time of one question only."""
    if isinstance(image, Image.Image):
        return ("picture", id(image), max_num)
    path = Path(image)
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error}") from error
    return (str(path), status.st_mtime_ns, status.st_size, max_num)
