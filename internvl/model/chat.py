"""Chat: how a loaded model answers questions about images, `chat`, `batch_chat` and `generate`.

    question, history --ConversationTokenizer--> ids --generate--> new ids --> text
    pixel_values      ---------------------------------^

A mixin of `InternVLChatModel`, whose forward pass and positions are in modeling_internvl_chat.py.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, overload, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import ModelOutput

from .caches import build_cache, check_kv_cache
from .configuration_internvl_chat import InternVLChatConfig
from .constants import IMAGE_PLACEHOLDER, IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN
from .conversation import ConversationTokenizer, ImageMarkers
from .errors import ConfigError
from .finite_scores import RefuseNonFiniteScores
from .positions import final_lengths, positions_per_row
from .shapes import Int, Num, Shaped

try:
    from typing import Unpack
except ImportError:  # Python 3.10; torch brings typing_extensions
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

Arguments = dict[str, Any]  # of a call of `generate`
Answers = str | list[str] | ModelOutput  # one, `num_return_sequences` of them, or all that `generate` returns
History = list[tuple[str, str]]  # (question, answer)
# Arguments of transformers' `generate` that are refused, by the reason.
_REFUSED = {
    "generate cannot take this for prompts with images, whose visual tokens have no ids of their own; leave it out": (
        "assistant_early_exit", "assistant_model", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
        "guidance_scale", "inputs", "is_assistant", "negative_prompt_attention_mask", "negative_prompt_ids",
        "prompt_lookup_num_tokens", "token_healing",
    ),
    "transformers runs this with code of the hub only; leave it out": (
        "constraints", "custom_generate", "dola_layers", "force_words_ids", "num_beam_groups", "penalty_alpha",
    ),
    "keys and values are kept as kv_cache says; give that instead": ("cache_implementation",),
}  # fmt: skip
_NO_EFFECT = {"encoder_repetition_penalty": 1, "guidance_scale": 1, "num_beam_groups": 1}


class ChatOptions(TypedDict, total=False):
    """Further arguments of `chat` and `batch_chat`, all optional; others are ignored."""

    IMG_START_TOKEN: str  # marker before an image
    IMG_END_TOKEN: str  # marker after an image
    IMG_CONTEXT_TOKEN: str  # the visual token
    verbose: bool  # log questions and answers
    rope_pos_id_version: str | None  # see `InternVLChatModel.build_positions`
    rope_pos_id_stride: float | None  # see `InternVLChatModel.build_positions`
    image_grids: Int[Tensor, "images 4"] | None  # see `InternVLChatModel.build_positions`
    system_message: str | None  # replaces the template's own


@runtime_checkable
class AnsweringRanks(Protocol):
    """Ranks that answer a prompt together, such as `internvl.infer.context_parallel.ContextParallel`."""

    def generate(self, model: PreTrainedModel, **arguments: object) -> Tensor:
        """Generate with the arguments of `ChatMixin.generate`."""


@dataclass(frozen=True)
class GenerateOptions:
    """The arguments of `generate` that are not transformers' own."""

    image_flags: Shaped[Tensor, " tiles"] | None = None  # (tiles,) 1 for real tiles; tiles with 0 are left out
    # positions of the prompt, one row for all prompts or one each; None: they are built. On several axes
    # (axes, rows, length), made for the version that is named here, or the checkpoint's own
    position_ids: Num[Tensor, "*rows length"] | None = None
    image_strides: Int[Tensor, " images"] | None = None  # see `InternVLChatModel.build_positions`
    image_grids: Int[Tensor, "images 4"] | None = None  # see `InternVLChatModel.build_positions`
    rope_pos_id_version: str | None = None  # see `InternVLChatModel.build_positions`
    rope_pos_id_stride: float | None = None  # see `InternVLChatModel.build_positions`
    # tokens of the prompt that pass the decoder at a time, so that activations of the whole prompt never exist at once;
    # None: all of them. The answer is the same.
    prefill_chunk_size: int | None = None
    # where keys and values are kept: `dynamic`, `static`, `offloaded` or `quantized` (see caches.py). All but
    # `quantized` give the same answer.
    kv_cache: str = "dynamic"
    # ranks that all make the same call. The prompt, its images and its keys and values are spread over them. The answer
    # is the same.
    context_parallel: AnsweringRanks | None = None

    @classmethod
    def take_from(cls, arguments: Arguments) -> "GenerateOptions":
        """Remove these arguments from keyword arguments; the rest is for transformers."""
        return cls(**{option.name: arguments.pop(option.name) for option in fields(cls) if option.name in arguments})

    def check(self) -> None:
        """Check cache and chunks.

        Raises:
            ConfigError: The cache is unknown, or a chunk is empty.
        """
        check_kv_cache(self.kv_cache)
        if self.prefill_chunk_size is not None and self.prefill_chunk_size < 1:
            raise ConfigError(f"prefill_chunk_size must be a positive number of tokens, got {self.prefill_chunk_size}")


class _Prompt(NamedTuple):
    """A question, the tiles of every image of its conversation, and the earlier turns."""

    question: str
    tiles_per_image: Sequence[int]
    history: Sequence[tuple[str, str]] = ()


class ChatMixin(PreTrainedModel):
    """`chat`, `batch_chat` and `generate` of `InternVLChatModel`."""

    config: InternVLChatConfig
    language_model: Any  # one of several decoder classes, all with transformers' `generate`
    num_image_token: int
    img_context_token_id: int | None
    build_positions: Callable[..., Tensor]
    choose_version: Callable[..., str]
    _embed: Callable[..., Tensor]

    @overload
    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: Num[Tensor, "tiles 3 size size"] | None,
        question: str,
        generation_config: Arguments | GenerationConfig | None,
        history: Sequence[tuple[str, str]] | None = None,
        return_history: Literal[False] = False,
        num_patches_list: Sequence[int] | None = None,
        **options: Unpack[ChatOptions],
    ) -> Answers: ...

    @overload
    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: Num[Tensor, "tiles 3 size size"] | None,
        question: str,
        generation_config: Arguments | GenerationConfig | None,
        history: Sequence[tuple[str, str]] | None = None,
        *,
        return_history: Literal[True],
        num_patches_list: Sequence[int] | None = None,
        **options: Unpack[ChatOptions],
    ) -> tuple[Answers, History]: ...

    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: Num[Tensor, "tiles 3 size size"] | None,
        question: str,
        generation_config: Arguments | GenerationConfig | None,
        history: Sequence[tuple[str, str]] | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        **options: Unpack[ChatOptions],
    ) -> Answers | tuple[Answers, History]:
        """Answer one question about images.

        Args:
            tokenizer: Tokenizer of the checkpoint.
            pixel_values: Tiles of all images, those of earlier turns first: uint8, or normalised floats; None without
                images.
            question: Text with one `<image>` per image; without any, `<image>` opens the first turn. Chat markers and
                image tokens that stand literally in texts are neutralised.
            generation_config: Arguments of `generate`, as a dict or GenerationConfig; not changed.
            history: Earlier turns (question, answer).
            return_history: Return `(answer, history)`.
            num_patches_list: Tiles per image; None: one image that holds all tiles.
            **options: See `ChatOptions`.

        Returns:
            The answer, or `(answer, history)`. With `num_return_sequences` above 1 a list of answers, of which the
            first joins the history. With `return_dict_in_generate` the output of `generate` (`sequences`,
            `scores`, ...), whose `answers` are the texts.

        Raises:
            ConfigError: The tokenizer does not know the visual token, or `generate` cannot take an option.
            CheckpointError: The model's output is NaN or infinite.
            ValueError: Numbers of placeholders, images and tiles do not fit.
        """
        if num_patches_list is None:
            num_patches_list = [] if pixel_values is None else [len(pixel_values)]
        if history is None and pixel_values is not None and IMAGE_PLACEHOLDER not in question:
            question = f"{IMAGE_PLACEHOLDER}\n{question}"
        prompt = _Prompt(question, num_patches_list, history or [])
        texts, output = self._answer(tokenizer, [prompt], pixel_values, generation_config, options)
        answer = output or (texts if len(texts) > 1 else texts[0])
        return (answer, [*prompt.history, (question, texts[0])]) if return_history else answer

    def batch_chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: Num[Tensor, "tiles 3 size size"] | None,
        questions: Sequence[str],
        generation_config: Arguments | GenerationConfig | None,
        num_patches_list: Sequence[int] | None = None,
        image_counts: Sequence[int] | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[str] | ModelOutput:
        """Answer several questions at once; prompts of unequal length are padded on the left.

        Returns the answers, `num_return_sequences` of each question after one another, or the output of `generate`
        as `chat` does.

        Args:
            tokenizer: Tokenizer of the checkpoint.
            pixel_values: Tiles of all images in the order of the questions; None without images.
            questions: Texts with one `<image>` per image; a question that has images and no `<image>` gets them first.
            generation_config: Arguments of `generate`, as a dict or GenerationConfig; not changed.
            num_patches_list: Tiles per image; None: one image of one tile per question.
            image_counts: Images per question; None: one each, or none without `pixel_values`.
            **options: See `ChatOptions`.

        Raises:
            ConfigError: The tokenizer does not know the visual token.
            ValueError: Numbers of questions, placeholders, images and tiles do not fit.
        """
        if image_counts is None:
            image_counts = [0 if pixel_values is None else 1] * len(questions)
        if num_patches_list is None:
            num_patches_list = [1] * sum(image_counts)
        if len(image_counts) != len(questions) or sum(image_counts) != len(num_patches_list):
            raise ValueError(
                f"{len(questions)} questions, image_counts for {len(image_counts)} of them with {sum(image_counts)} "
                f"images, num_patches_list for {len(num_patches_list)} images: these numbers must fit together"
            )
        prompts, first = [], 0
        for question, count in zip(questions, image_counts, strict=True):
            if IMAGE_PLACEHOLDER not in question:
                question = f"{IMAGE_PLACEHOLDER}\n" * count + question
            prompts.append(_Prompt(question, num_patches_list[first : first + count]))
            first += count
        texts, output = self._answer(tokenizer, prompts, pixel_values, generation_config, options)
        return output or texts

    def _answer(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[_Prompt],
        pixel_values: Tensor | None,
        generation_config: Arguments | GenerationConfig | None,
        options: ChatOptions,
    ) -> tuple[list[str], ModelOutput | None]:
        """Texts, and the output of `generate` where it was asked for."""
        num_tiles = 0 if pixel_values is None else len(pixel_values)
        num_placed = sum(sum(prompt.tiles_per_image) for prompt in prompts)
        if num_placed != num_tiles:
            raise ValueError(f"num_patches_list adds up to {num_placed} tiles, pixel_values has {num_tiles}")
        markers = ImageMarkers(
            options.get("IMG_START_TOKEN", IMG_START_TOKEN),
            options.get("IMG_CONTEXT_TOKEN", IMG_CONTEXT_TOKEN),
            options.get("IMG_END_TOKEN", IMG_END_TOKEN),
        )
        conversation = ConversationTokenizer(tokenizer, self.config.template or "internlm2-chat", markers=markers)
        system_message = options.get("system_message")
        rows = []
        for prompt in prompts:
            pieces = conversation.encode_prompt(prompt.question, history=prompt.history, system_message=system_message)
            rows.append(conversation.join(pieces, prompt.tiles_per_image, num_image_token=self.num_image_token)[0])
        self.img_context_token_id = conversation.image_token_id
        stop_token = conversation.template.stop_token
        pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        input_ids = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        arguments: Arguments = {"eos_token_id": tokenizer.convert_tokens_to_ids(stop_token), "pad_token_id": pad_id}
        arguments |= _spread(generation_config)
        if arguments.get("stop_strings") is not None:
            arguments.setdefault("tokenizer", tokenizer)
        generated = self.generate(
            pixel_values=None if pixel_values is None else pixel_values.to(self.device),
            input_ids=input_ids.to(self.device),
            attention_mask=mask.to(self.device),
            rope_pos_id_version=options.get("rope_pos_id_version"),
            rope_pos_id_stride=options.get("rope_pos_id_stride"),
            image_grids=options.get("image_grids"),
            **arguments,
        )
        output = None if isinstance(generated, Tensor) else generated
        sequences = generated if output is None else output.sequences
        texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
        answers = [text.split(stop_token)[0].strip() for text in texts]
        if options.get("verbose", False):
            for number, answer in enumerate(answers):
                logger.info("%s %s", prompts[number * len(prompts) // len(answers)].question, answer)
        if output is not None:
            output["answers"] = answers
        return answers, output

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Num[Tensor, "tiles 3 size size"] | None = None,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Shaped[Tensor, "batch length"] | None = None,
        visual_features: Any = None,
        generation_config: Arguments | GenerationConfig | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Generate with a key/value cache; returns new tokens only, (batch, new_tokens), or an output that holds them.

        The n-th generated token sits at `ceil(last prompt position) + n`.

        Args:
            pixel_values: See `InternVLChatModel.forward`.
            input_ids: The prompts.
            attention_mask: 0 where padded, on the left.
            visual_features: See `InternVLChatModel.forward`; ranks that answer together take their own form.
            generation_config: As in transformers, or a dict; single arguments win.
            **generate_kwargs: `GenerateOptions`, and the arguments of transformers' `generate` (`max_new_tokens`,
                `do_sample`, ...).

        Raises:
            ConfigError: An option is wrong, or needs the prompt's ids, which an image does not have.
            CheckpointError: The model's output is NaN or infinite.
            ValueError: Numbers of positions, visual tokens or features do not fit.
        """
        generate_kwargs = _spread(generation_config) | generate_kwargs
        options = GenerateOptions.take_from(generate_kwargs)
        if input_ids is None:
            raise ValueError("generate needs input_ids")
        _check_supported(generate_kwargs)
        num_new_tokens = _take_limit(generate_kwargs, input_ids.shape[1])
        if options.context_parallel is not None:
            return options.context_parallel.generate(
                self,
                input_ids=input_ids,
                pixel_values=pixel_values,
                attention_mask=attention_mask,
                visual_features=visual_features,
                options=options,
                **generate_kwargs,
            )
        options.check()
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if generate_kwargs.get("use_cache", True) and generate_kwargs.get("past_key_values") is None:
            generate_kwargs["past_key_values"] = build_cache(
                options.kv_cache,
                num_layers=self.config.llm_config.num_hidden_layers,
                max_length=None if num_new_tokens is None else input_ids.shape[1] + num_new_tokens,
                device=input_ids.device,
            )
        position_ids = options.position_ids
        if position_ids is None:
            position_ids = self.build_positions(
                input_ids,
                attention_mask=attention_mask,
                image_strides=options.image_strides,
                image_grids=options.image_grids,
                rope_pos_id_version=options.rope_pos_id_version,
                rope_pos_id_stride=options.rope_pos_id_stride,
            )
        prompt = {
            "inputs_embeds": self._embed(input_ids, pixel_values, options.image_flags, visual_features),
            "attention_mask": attention_mask,
            "position_ids": positions_per_row(position_ids, input_ids),
        }
        generate_kwargs |= self.name_version(prompt["position_ids"], options)
        cache = generate_kwargs.get("past_key_values")
        if options.prefill_chunk_size is not None and cache is not None:
            if num_new_tokens is None:
                raise ConfigError("prefill_chunk_size needs max_new_tokens: the rotary base depends on it")
            # The rotary base of dynamic NTK belongs to the whole sequence, so it is fixed before the first chunk.
            version = generate_kwargs.get("rope_pos_id_version")
            generate_kwargs["rope_lengths"] = final_lengths(prompt["position_ids"], num_new_tokens, version)
            sequences = {name: generate_kwargs.get(name) for name in ("rope_lengths", "rope_pos_id_version")}
            self._prefill(prompt, cache, sequences, chunk_size=options.prefill_chunk_size)
            num_copies = max(  # rows that transformers makes of every prompt
                generate_kwargs.get(name) or 1 for name in ("num_beams", "num_return_sequences")
            )
            if num_copies > 1:
                cache.batch_repeat_interleave(num_copies)
        # First, because other processors (teacher forcing) hide what the model said.
        given = generate_kwargs.pop("logits_processor", None) or []
        processors = LogitsProcessorList([RefuseNonFiniteScores(self.name_or_path), *given])
        return self.language_model.generate(**prompt, logits_processor=processors, **generate_kwargs)

    def name_version(self, position_ids: Tensor, options: GenerateOptions) -> dict[str, str]:
        """The version as an argument of the decoder, which needs it where positions are on several axes."""
        if position_ids.dim() == 2:
            return {}
        chosen = (options.rope_pos_id_version, options.rope_pos_id_stride, options.image_strides)
        return {"rope_pos_id_version": self.choose_version(*chosen)}

    def _prefill(
        self, prompt: dict[str, Tensor], cache: Cache, sequences: dict[str, object], *, chunk_size: int
    ) -> None:
        """Fill the cache, which may hold the beginning of the prompt, with all chunks of the prompt but the last."""
        length = prompt["inputs_embeds"].shape[1]
        for first in range(cache.get_seq_length(), length - chunk_size, chunk_size):
            chunk = slice(first, first + chunk_size)
            self.language_model.model(
                inputs_embeds=prompt["inputs_embeds"][:, chunk],
                attention_mask=prompt["attention_mask"][:, : chunk.stop],
                position_ids=prompt["position_ids"][..., chunk],
                past_key_values=cache,
                use_cache=True,
                **sequences,
            )


def _spread(generation_config: Arguments | GenerationConfig | None) -> Arguments:
    """A generation config as single arguments, those that it sets."""
    if isinstance(generation_config, GenerationConfig):
        generation_config = generation_config.to_diff_dict()
        generation_config.pop("transformers_version", None)
    return dict(generation_config or {})


def _check_supported(arguments: Arguments) -> None:
    """Raise ConfigError for arguments of transformers' `generate` that would be ignored or fail."""
    for reason, names in _REFUSED.items():
        given = [name for name in names if arguments.get(name) not in (None, False, _NO_EFFECT.get(name))]
        if given:
            raise ConfigError(f"{', '.join(given)}: {reason}")


def _take_limit(arguments: Arguments, prompt_length: int) -> int | None:
    """Limit of new tokens, from `max_new_tokens` or from `max_length`, which counts the prompt as well."""
    max_length = arguments.pop("max_length", None)
    if max_length is not None and arguments.get("max_new_tokens") is None:
        if max_length <= prompt_length:
            raise ConfigError(
                f"max_length is {max_length} and the prompt has {prompt_length} tokens; give more, or max_new_tokens"
            )
        arguments["max_new_tokens"] = max_length - prompt_length
    return arguments.get("max_new_tokens")
