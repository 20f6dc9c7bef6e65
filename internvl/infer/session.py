"""A loaded model that answers questions about images.

    question with <image> ... --(files -> tiles -> features, cached per image)--> ids and features --generate--> text

Text is made harmless first: `<img>` or `<IMG_CONTEXT>` written in a question stays text. Every `<image>` becomes
`<img>`, T visual tokens per tile, `</img>`.
"""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from internvl.data.encode import neutralise_special_tokens
from internvl.data.media import load_image
from internvl.data.tiling import split_into_tiles
from internvl.data.transform import build_transform
from internvl.errors import DataError
from internvl.infer.checkpoint import load_checkpoint
from internvl.infer.feature_cache import FeatureCache
from internvl.model.constants import IMAGE_PLACEHOLDER, IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN
from internvl.model.conversation import get_conversation
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.v2pe import check_stride

ImageSource = str | Path | Image.Image
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


class Session:
    """A model with its tokenizer and one choice of visual positions.

    Args:
        model: The model, in evaluation mode on its device.
        tokenizer: Its tokenizer.
        rope_pos_id_version: `default`, `v2pe_fix` or `v2pe_rnd`.
        rope_pos_id_stride: Positions that one tile spans; None: the checkpoint's own.
        max_num: Largest number of tiles per image; None: the checkpoint's own (`max_dynamic_patch`).
        max_cache_bytes: Limit of the image feature cache (in main memory).

    Raises:
        ConfigError: Version and stride do not fit together, or the config names an unknown template.
    """

    def __init__(
        self,
        model: InternVLChatModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rope_pos_id_version: str = "default",
        rope_pos_id_stride: float | None = None,
        max_num: int | None = None,
        max_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ):
        config = model.config
        self.model, self.tokenizer = model, tokenizer
        self.rope_pos_id_version = rope_pos_id_version
        self.rope_pos_id_stride = config.rope_pos_id_stride if rope_pos_id_stride is None else rope_pos_id_stride
        check_stride(self.rope_pos_id_version, self.rope_pos_id_stride)
        self.max_num = config.max_dynamic_patch if max_num is None else max_num
        self.conversation = get_conversation(config.template or "internlm2-chat")
        self.cache = FeatureCache(max_cache_bytes)
        self._transform = build_transform(config.image_size, pad2square=config.pad2square)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> "Session":
        """Load a checkpoint folder.

        Args:
            checkpoint: Folder as `save_pretrained` writes it.
            dtype: Of the weights; None: bfloat16 on CUDA, float32 elsewhere.
            device: None: CUDA when there is a GPU.
            **options: As of `Session`.

        Raises:
            CheckpointError: The folder is missing or incomplete.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        model, tokenizer = load_checkpoint(checkpoint, dtype=dtype, device=device)
        return cls(model, tokenizer, **options)

    @torch.inference_mode()
    def answer(
        self,
        prompt: str,
        images: Sequence[ImageSource] = (),
        *,
        max_new_tokens: int,
        max_num: int | None = None,
        system_message: str | None = None,
    ) -> Answer:
        """Answer one question, greedily.

        Args:
            prompt: User message with one `<image>` per image.
            images: Files or pictures in the order of their placeholders.
            max_new_tokens: Limit of the answer in tokens.
            max_num: Tiles per image for this question; None: the session's.
            system_message: Replaces the template's own.

        Raises:
            DataError: Another number of `<image>` than of images, or an image that cannot be read.
        """
        start = time.perf_counter()
        num_placeholders = prompt.count(IMAGE_PLACEHOLDER)
        if num_placeholders != len(images):
            raise DataError(f"the prompt has {num_placeholders} {IMAGE_PLACEHOLDER} for {len(images)} images")
        features = self._encode_images(images, self.max_num if max_num is None else max_num)
        input_ids = self._encode_prompt(prompt, [len(f) for f in features], system_message).to(self.model.device)
        position_ids = self.model.build_positions(
            input_ids, rope_pos_id_version=self.rope_pos_id_version, rope_pos_id_stride=self.rope_pos_id_stride
        )
        new_ids = self.model.generate(
            input_ids=input_ids,
            visual_features=torch.cat(features).to(self.model.device) if features else None,
            position_ids=position_ids,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self._stop_ids(),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return Answer(
            text=self._decode(new_ids[0].tolist()),
            num_prompt_tokens=input_ids.shape[1],
            num_new_tokens=new_ids.shape[1],
            num_tiles=sum(len(f) for f in features),
            last_position=float(position_ids[0, -1]),
            seconds=time.perf_counter() - start,
        )

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
        config = self.model.config
        picture = image.convert("RGB") if isinstance(image, Image.Image) else load_image(image)
        tiles = split_into_tiles(
            picture,
            min_num=min(config.min_dynamic_patch, max_num),
            max_num=max_num,
            image_size=config.image_size,
            use_thumbnail=config.use_thumbnail,
        )
        pixel_values = self._transform(tiles).to(self.model.device, self.model.dtype)
        return self.model.extract_feature(pixel_values).cpu()

    def _encode_prompt(
        self, prompt: str, tiles_per_image: Sequence[int], system_message: str | None
    ) -> Int64[Tensor, "1 tokens"]:
        """Ids of the rendered question, every image's visual token repeated T times per tile."""
        one_token_image = IMG_START_TOKEN + IMG_CONTEXT_TOKEN + IMG_END_TOKEN
        message = neutralise_special_tokens(prompt).replace(IMAGE_PLACEHOLDER, one_token_image)
        system = None if system_message is None else neutralise_special_tokens(system_message)
        text = self.conversation.render([("user", message), ("assistant", None)], system_message=system)
        ids = torch.tensor(self.tokenizer(text, verbose=False)["input_ids"])
        repeats = torch.ones_like(ids)
        visual = ids == self.model.img_context_token_id
        repeats[visual] = self.model.num_image_token * torch.tensor(list(tiles_per_image), dtype=ids.dtype)
        return torch.repeat_interleave(ids, repeats).unsqueeze(0)

    def _stop_ids(self) -> list[int]:
        stop_id = self.tokenizer.convert_tokens_to_ids(self.conversation.stop_token)
        return [token_id for token_id in dict.fromkeys((stop_id, self.tokenizer.eos_token_id)) if token_id is not None]

    def _decode(self, ids: list[int]) -> str:
        """Text up to the first stop token, without special tokens."""
        stop_ids = set(self._stop_ids())
        length = next((place for place, token_id in enumerate(ids) if token_id in stop_ids), len(ids))
        text = str(self.tokenizer.decode(ids[:length], skip_special_tokens=True))
        return text.split(self.conversation.stop_token)[0].strip()


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
