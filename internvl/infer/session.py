"""Session: a loaded model that answers questions about images and videos.

    question with <image> ... --(files -> tiles -> features, cached per image)--> ids and features --generate--> text

A conversation is a list of earlier (question, answer) pairs, given again with every question. Text is made harmless
first: `<img>` or `<IMG_CONTEXT>` written in a question stays text. Every `<image>` becomes
`<img>`, T visual tokens per tile, `</img>`. Every `<video>` becomes labelled frames, each an image of one tile:

    <video>\\nq   -->   Frame1: <image>\\nFrame2: <image>\\n ... FrameN: <image>\\nq

Several ranks can answer a question together (`context_parallel`): each loads and encodes some of the images and keeps
some of the keys and values, and all of them get the answer. One process can answer several questions at once
(`answer_batch`), and can keep the keys and values of a prompt for the next one that begins the same (`reuse_prefix`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList

from internvl.data.prompt import ImageSource
from internvl.errors import ConfigError
from internvl.infer.checkpoint import load_checkpoint
from internvl.infer.context_parallel import ContextParallel, ShardedFeatures, check_shareable
from internvl.infer.layer_split import split_over_devices
from internvl.infer.pictures import PictureEncoder
from internvl.infer.prefix import KeptPrefix, check_reusable
from internvl.infer.question import EncodedQuestion, Question, QuestionEncoder
from internvl.infer.rows import FollowRows, RecordLogprobs, Request, Row
from internvl.infer.settings import DEFAULTS, GREEDY, InferenceSettings, Sampling
from internvl.infer.stream import TextStream, decode_answer
from internvl.model.conversation import ConversationTokenizer
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.positions import may_share_batch


@dataclass(frozen=True)
class Answer:
    """What a question got back."""

    text: str  # the answer, without special tokens
    num_prompt_tokens: int  # tokens of the prompt, visual ones included
    num_new_tokens: int  # generated tokens, the closing one included
    num_tiles: int  # tiles of all images and frames
    last_position: float  # rotary position of the last prompt token
    seconds: float  # from question to answer
    num_frames: int = 0  # frames of all videos


def check_batchable(kv_cache: str, *, is_shared: bool) -> None:
    """Refuse several questions at once where answers would depend on their company, or ranks answer together.

    Raises:
        ConfigError: Quantised keys and values (one scale for all rows), or `is_shared`.
    """
    if kv_cache == "quantized" or is_shared:
        cause = "ranks that answer together take" if is_shared else "kv_cache quantized takes"
        raise ConfigError(f"{cause} one question at a time, got several; use a batch of 1")


class Session:
    """A model with its tokenizer and one choice of settings.

    Args:
        model: The model, in evaluation mode on its device.
        tokenizer: Its tokenizer.
        settings: How it answers; those of loading (device, dtype, scalings) have no effect on a model that is there.
        context_parallel: The ranks that answer together, see internvl/infer/context_parallel.py; None: this process
            alone. All of them make a session and ask it the same questions in the same order.
        **changes: Fields of `InferenceSettings` that differ from `settings`.

    Raises:
        ConfigError: Version and stride do not fit together, the config names an unknown template, or the cache cannot
            be shared or kept.
    """

    def __init__(
        self,
        model: InternVLChatModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: InferenceSettings = DEFAULTS,
        *,
        context_parallel: ContextParallel | None = None,
        **changes: Any,
    ):
        self.model, self.tokenizer, self.context_parallel = model, tokenizer, context_parallel
        self.settings = settings = replace(settings, **changes).for_checkpoint(model.config)
        if context_parallel is not None:
            check_shareable(settings.kv_cache)
        self._prefix: KeptPrefix | None = None
        if settings.reuse_prefix:
            check_reusable(settings.kv_cache, is_shared=context_parallel is not None)
            self._prefix = KeptPrefix(model)
        self.pictures = PictureEncoder(
            model,
            max_cache_bytes=settings.cache_mib * 2**20,
            context_parallel=context_parallel,
            alpha=settings.alpha,
        )
        conversation = ConversationTokenizer(tokenizer, model.config.template or "internlm2-chat")
        self.questions = QuestionEncoder(self.pictures, conversation, settings)
        self._stop_text = conversation.template.stop_token
        stop_ids = (tokenizer.convert_tokens_to_ids(self._stop_text), tokenizer.eos_token_id)
        self._stop_ids = [token for token in dict.fromkeys(stop_ids) if isinstance(token, int)]

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        settings: InferenceSettings = DEFAULTS,
        *,
        context_parallel: ContextParallel | None = None,
        layer_devices: Sequence[str] = (),
        **changes: Any,
    ) -> "Session":
        """Load a checkpoint folder: `Session.from_pretrained(folder, rope_pos_id_version="v2pe_fix", ...)`.

        Args:
            checkpoint: Folder as `save_pretrained` writes it.
            settings: How it is loaded and how it answers.
            context_parallel: See the class.
            layer_devices: Devices that share the layers of a model which does not fit on one (see
                internvl/infer/layer_split.py), instead of `settings.device`.
            **changes: Fields of `InferenceSettings` that differ from `settings`.

        Raises:
            CheckpointError: The folder is missing or incomplete.
            ConfigError: The model cannot take the scaling, or the visual positions cannot.
        """
        if layer_devices:
            changes["device"] = layer_devices[0]
        settings = replace(settings, **changes).on_device()
        # Layers that are to be split come from main memory: no single device has room for all of them.
        model, tokenizer = load_checkpoint(checkpoint, replace(settings, device="cpu") if layer_devices else settings)
        if layer_devices:
            split_over_devices(model, layer_devices)
        return cls(model, tokenizer, settings, context_parallel=context_parallel)

    def answer(
        self,
        prompt: str,
        images: Sequence[ImageSource] = (),
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        on_text: Callable[[str], None] | None = None,
        **details: Any,
    ) -> Answer:
        """Answer one question: `ask` with a `Question` of `prompt`, `images` and `details` (videos, history, ...)."""
        question = Question(prompt, images, **details)
        return self.ask(question, max_new_tokens=max_new_tokens, sampling=sampling, on_text=on_text)

    @torch.inference_mode()
    def ask(
        self,
        question: Question,
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer one question, greedily unless `sampling` says otherwise.

        Args:
            question: With everything that it shows.
            max_new_tokens: Limit of the answer in tokens.
            sampling: How its tokens are chosen.
            on_text: Called with every piece of the answer as it comes; the pieces add up to the answer's text.

        Raises:
            ConfigError: A limit out of range.
            DataError: Another number of `<image>` or `<video>` than of images or videos, or one that cannot be read.
        """
        start = time.perf_counter()
        _check_limit(max_new_tokens)
        encoded = self.questions.encode(question)
        options = sampling.generate_options()
        if on_text is not None:
            options["streamer"] = TextStream(
                self.tokenizer, on_text, stop_ids=self._stop_ids, stop_text=self._stop_text
            )
        with _seeded(sampling.seed, self.model.device):
            new_ids = self._generate([encoded], max_new_tokens=max_new_tokens, **options)
        return self._read_answer(encoded, new_ids[0].tolist(), seconds=time.perf_counter() - start)

    @torch.inference_mode()
    def answer_batch(self, questions: Sequence[Question], *, max_new_tokens: int) -> list[Answer]:
        """Answer several questions at once, greedily; prompts are padded on the left to the longest.

        Answers are those of `ask`, up to rounding: matrix products of several rows may add up in another order.

        Args:
            questions: One or more.
            max_new_tokens: Limit of every answer in tokens.

        Returns:
            An answer per question; `seconds` is an equal share of the time of all.

        Raises:
            ConfigError: A limit out of range, or several questions where one at a time can be answered.
            DataError: As `ask`, for any of the questions.
        """
        start = time.perf_counter()
        _check_limit(max_new_tokens)
        if len(questions) > 1:
            check_batchable(self.settings.kv_cache, is_shared=self.context_parallel is not None)
        encoded = [self.questions.encode(question) for question in questions]
        rows = self._generate(encoded, max_new_tokens=max_new_tokens, **GREEDY.generate_options()).tolist()
        seconds = (time.perf_counter() - start) / len(questions)
        return [self._read_answer(prompt, ids, seconds=seconds) for prompt, ids in zip(encoded, rows, strict=True)]

    @torch.inference_mode()
    def answer_rows(self, requests: Sequence[Request], *, sampling: Sampling = GREEDY) -> list[Row]:
        """Answer encoded prompts at once, each with its own limit, stop texts and cancellation.

        Args:
            requests: One or more, whose prompts are all on ordinary positions, or all on V2PE positions.
            sampling: How tokens are chosen; a seed stands for all of them together.

        Returns:
            The finished rows.

        Raises:
            ConfigError: Several prompts where one at a time can be answered.
            CheckpointError: The model's output is NaN or infinite.
        """
        if len(requests) > 1:
            check_batchable(self.settings.kv_cache, is_shared=self.context_parallel is not None)
        rows = [
            Row(request, self.tokenizer, stop_ids=self._stop_ids, stop_text=self._stop_text) for request in requests
        ]
        logprobs = None if all(request.num_top is None for request in requests) else RecordLogprobs()
        options = sampling.generate_options()
        if logprobs is not None:
            options["logits_processor"] = LogitsProcessorList([logprobs, *(sampling.logits_processor or [])])
        with _seeded(sampling.seed, self.model.device):
            self._generate(
                [request.prompt for request in requests],
                max_new_tokens=max(request.max_new_tokens for request in requests),
                stopping_criteria=StoppingCriteriaList([FollowRows(rows, logprobs)]),
                **options,
            )
        return rows

    def release_memory(self) -> None:
        """Forget the features of images and the keys and values that are kept for later questions."""
        self.pictures.cache.clear()
        if self._prefix is not None:
            self._prefix.clear()

    def _generate(self, prompts: Sequence[EncodedQuestion], **options: Any) -> Int64[Tensor, "prompts new_tokens"]:
        """New tokens of every prompt."""
        input_ids, position_ids, mask = self._pad_left(prompts)
        first, kept = prompts[0], None
        if self._prefix is not None and len(prompts) == 1:
            kept = self._prefix.take(
                input_ids,
                position_ids,
                keys=first.keys,
                tiles=first.tiles_per_image,
                version=first.rope_pos_id_version,
            )
            options["past_key_values"] = kept
        new_ids = self.model.generate(
            input_ids=input_ids,
            attention_mask=mask if len(prompts) > 1 else None,
            visual_features=_join_features(prompts),
            position_ids=position_ids,
            rope_pos_id_version=first.rope_pos_id_version,
            eos_token_id=self._stop_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            prefill_chunk_size=self.settings.prefill_chunk_size,
            kv_cache=self.settings.kv_cache,
            context_parallel=self.context_parallel,
            **options,
        )
        if kept is not None and self._prefix is not None:
            self._prefix.keep(kept, input_ids, position_ids, keys=first.keys, version=first.rope_pos_id_version)
        return new_ids

    def _pad_left(self, prompts: Sequence[EncodedQuestion]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, positions and mask, (prompts, length of the longest): answers begin in one column.

        Raises:
            ConfigError: Prompts on positions that cannot share a batch.
        """
        versions = [prompt.rope_pos_id_version for prompt in prompts]
        if not all(may_share_batch(versions[0], version) for version in versions):
            raise ConfigError(f"one batch asks for positions {', '.join(sorted({*versions}))}; ask for each by itself")
        width = max(prompt.length for prompt in prompts)
        padded = [
            (
                F.pad(prompt.input_ids, (width - prompt.length, 0), value=self.tokenizer.pad_token_id or 0),
                F.pad(prompt.position_ids, (width - prompt.length, 0), value=1),
                F.pad(torch.ones_like(prompt.input_ids), (width - prompt.length, 0)),
            )
            for prompt in prompts
        ]
        ids, positions, masks = zip(*padded, strict=True)
        return torch.cat(ids), torch.cat(positions, dim=-2), torch.cat(masks)

    def _read_answer(self, prompt: EncodedQuestion, new_ids: list[int], *, seconds: float) -> Answer:
        """The answer in a row of new tokens, where padding may follow its stop."""
        stops = (place for place, token in enumerate(new_ids, start=1) if token in self._stop_ids)
        return Answer(
            text=decode_answer(self.tokenizer, new_ids, stop_ids=self._stop_ids, stop_text=self._stop_text),
            num_prompt_tokens=prompt.length,
            num_new_tokens=next(stops, len(new_ids)),
            num_tiles=sum(prompt.tiles_per_image),
            last_position=prompt.last_position,
            seconds=seconds,
            num_frames=prompt.num_frames,
        )


def _check_limit(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}, expected at least 1")


def _join_features(prompts: Sequence[EncodedQuestion]) -> Tensor | ShardedFeatures | None:
    """Features of all prompts in order; those of a single one stay as they are, which is how ranks share them."""
    if len(prompts) == 1:
        return prompts[0].features
    features = [prompt.features for prompt in prompts if isinstance(prompt.features, Tensor)]
    return torch.cat(features) if features else None


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Start torch's generators from a seed and restore them afterwards; None leaves them alone."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
