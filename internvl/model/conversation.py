"""Conversations: prompt templates as data, and the one place that turns a conversation into token ids.

    <s><|im_start|>system\n...<|im_end|>                       opening
    <|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat?<|im_end|>  question; an image is ONE visual token here ...
    <|im_start|>assistant\n A cat.<|im_end|>                    answer, which training supervises
                       |
                       |  join(tiles_per_image)                ... and T per tile here
                       v
    input_ids and labels

Turns are tokenized one by one. They begin and end with special tokens, where every tokenizer splits, so that the ids
are those of the whole rendered text. Templates are those that the released InternVL2 models were trained with.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .constants import IGNORE_INDEX, IMAGE_PLACEHOLDER, IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN
from .errors import ConfigError, did_you_mean
from .shapes import Int64

Role = Literal["user", "assistant"]

_MAX_REMEMBERED_TEXT = 256  # characters
_NUM_REMEMBERED_TEXTS = 2**14

_SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_SYSTEM_MESSAGE_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True)
class Conversation:
    """One prompt template."""

    name: str  # the name that `config.template` holds
    system_prefix: str  # text before the system message
    system_message: str  # default system message
    user_prefix: str  # text before a question
    assistant_prefix: str  # text before an answer
    separator: str  # text that closes every turn; generation stops at its token

    @property
    def stop_token(self) -> str:
        """The special token at which an answer ends."""
        return self.separator.strip()

    def render(self, messages: Sequence[tuple[Role, str | None]], *, system_message: str | None = None) -> str:
        """Render a conversation as text.

        Args:
            messages: Turns `(role, text)`; a text of None renders only the role's prefix.
            system_message: Replaces the template's own.
        """
        system = self.system_message if system_message is None else system_message
        turns = (self.render_turn(role, text) for role, text in messages)
        return self.system_prefix + system + self.separator + "".join(turns)

    def render_turn(self, role: Role, text: str | None) -> str:
        """Render one turn; a text of None renders only the role's prefix, which is how a prompt ends."""
        prefix = self.user_prefix if role == "user" else self.assistant_prefix
        return prefix if text is None else prefix + text + self.separator


def _im_template(name: str, system_message: str, separator: str) -> Conversation:
    return Conversation(
        name=name,
        system_prefix="<|im_start|>system\n",
        system_message=system_message,
        user_prefix="<|im_start|>user\n",
        assistant_prefix="<|im_start|>assistant\n",
        separator=separator,
    )


_TEMPLATES = {
    template.name: template
    for template in (
        _im_template("internlm2-chat", _SYSTEM_MESSAGE, "<|im_end|>"),
        _im_template("Hermes-2", _SYSTEM_MESSAGE, "<|im_end|>"),
        _im_template("internvl2_5", _SYSTEM_MESSAGE_2_5, "<|im_end|>\n"),
        Conversation(
            name="phi3-chat",
            system_prefix="<|system|>\n",
            system_message=_SYSTEM_MESSAGE,
            user_prefix="<|user|>\n",
            assistant_prefix="<|assistant|>\n",
            separator="<|end|>",
        ),
    )
}


def get_conversation(name: str) -> Conversation:
    """The template called `name`.

    Raises:
        ConfigError: No such template.
    """
    if name not in _TEMPLATES:
        guess = did_you_mean(name, _TEMPLATES)
        raise ConfigError(f"unknown conversation template {name!r}{guess}; expected one of {sorted(_TEMPLATES)}")
    return _TEMPLATES[name]


# Strings that steer the model or mark documents. Grounding tokens (<ref>, <box>, <quad>) may stand in text.
_STRUCTURAL_TOKENS = (
    IMG_START_TOKEN,
    IMG_END_TOKEN,
    IMG_CONTEXT_TOKEN,
    "<|im_start|>",
    "<|im_end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|endoftext|>",
    "<unk>",
    "<s>",
    "</s>",
)
_STRUCTURAL_PATTERN = re.compile("|".join(f"(?:{re.escape(token)})" for token in _STRUCTURAL_TOKENS))


def neutralise_special_tokens(text: str) -> str:
    """Make structural tokens that stand literally in a text harmless: `<img>` becomes `< img>`.

    A space after the opening bracket keeps the text readable, and the tokenizer no longer takes it for the token.
    Applying it twice changes nothing more. `<image>` placeholders stay.
    """
    return _STRUCTURAL_PATTERN.sub(lambda match: "< " + match.group()[1:], text)


@runtime_checkable
class TextTokenizer(Protocol):
    """What a conversation needs of a transformers tokenizer."""

    def __call__(self, text: str, *, add_special_tokens: bool = ..., verbose: bool = ...) -> Mapping[str, list[int]]:
        """Token ids of a text, under `input_ids`."""

    def convert_ids_to_tokens(self, ids: list[int]) -> str | list[str]:
        """The token of every id."""


class ImageMarkers(NamedTuple):
    """The tokens that an image becomes: `start`, then `context` for each visual token, then `end`."""

    start: str = IMG_START_TOKEN
    context: str = IMG_CONTEXT_TOKEN
    end: str = IMG_END_TOKEN


IMAGE_MARKERS = ImageMarkers()


class Piece(NamedTuple):
    """A part of a conversation as token ids, one visual token per image."""

    ids: list[int]  # token ids
    is_answer: bool = False  # whether training supervises them


class ConversationTokenizer:
    """Turns the parts of a conversation into pieces of token ids, and joins pieces.

    Texts are neutralised first, so `<img>` written in a question stays text. Every `<image>` of a question becomes one
    visual token between its two markers: ids do not depend on the sizes of images until `join`.

    Args:
        tokenizer: A tokenizer that knows the markers and the template's special tokens.
        template: Name of the prompt template.
        markers: The tokens of an image.

    Raises:
        ConfigError: Unknown template.
    """

    def __init__(self, tokenizer: TextTokenizer, template: str, *, markers: ImageMarkers = IMAGE_MARKERS):
        self.tokenizer = tokenizer
        self.template = get_conversation(template)
        self.markers = markers
        # Stock questions and answers come again and again.
        self._remembered_ids = lru_cache(maxsize=_NUM_REMEMBERED_TEXTS)(self._tokenize_uncached)

    def encode_prompt(
        self, question: str, *, history: Sequence[tuple[str, str]] = (), system_message: str | None = None
    ) -> list[Piece]:
        """Tokenize a question and the earlier `(question, answer)` pairs, up to where the model's answer begins."""
        pieces = [self.encode_opening(system_message)]
        for earlier_question, earlier_answer in history:
            pieces += [self.encode_turn("user", earlier_question), self.encode_turn("assistant", earlier_answer)]
        return [*pieces, self.encode_turn("user", question), self.encode_turn("assistant", None)]

    def encode_opening(self, system_message: str | None = None) -> Piece:
        """Tokenize the system message (None: the template's own), after `<s>` where the tokenizer has one."""
        message = None if system_message is None else neutralise_special_tokens(system_message)
        return Piece(self._opening_ids + self._tokenize(self.template.render([], system_message=message)))

    def encode_turn(self, role: Role, text: str | None) -> Piece:
        """Tokenize a turn that is not trained on; a text of None is that of an answer still to be generated."""
        if text is not None:
            text = neutralise_special_tokens(text)
            if role == "user":
                text = text.replace(IMAGE_PLACEHOLDER, "".join(self.markers))
        return Piece(self._tokenize(self.template.render_turn(role, text)))

    def encode_answer(self, text: str) -> list[Piece]:
        """Tokenize an answer to train on: the role, the answer with its stop token, what follows the stop token."""
        answer = neutralise_special_tokens(text) + self.template.stop_token
        prefix = self._tokenize(self.template.assistant_prefix)
        ids = self._tokenize(self.template.assistant_prefix + answer)
        # Where role and answer would merge into one token, these are the ids that generation gives after the prompt.
        ids = ids[len(prefix) :] if ids[: len(prefix)] == prefix else self._tokenize(answer)
        rest = self._tokenize(self.template.separator)[1:]
        return [Piece(prefix), Piece(ids, is_answer=True), Piece(rest)]

    def join(
        self, pieces: Sequence[Piece], tiles_per_image: Sequence[int], *, num_image_token: int
    ) -> tuple[Int64[Tensor, " tokens"], Int64[Tensor, " tokens"]]:
        """Join pieces, `num_image_token` visual tokens for every tile of an image.

        Returns:
            input_ids, and labels (-100 outside of answers).

        Raises:
            ValueError: Another number of images in the pieces.
        """
        ids = torch.tensor([token for piece in pieces for token in piece.ids], dtype=torch.int64)
        lengths = torch.tensor([len(piece.ids) for piece in pieces])
        is_answer = torch.tensor([piece.is_answer for piece in pieces]).repeat_interleave(lengths)
        labels = ids.masked_fill(~is_answer, IGNORE_INDEX)
        is_visual = ids == self.image_token_id
        num_images = int(is_visual.sum())
        if num_images != len(tiles_per_image):
            raise ValueError(
                f"the conversation has {num_images} {IMAGE_PLACEHOLDER} placeholders for {len(tiles_per_image)} images"
            )
        repeats = torch.ones_like(ids)
        repeats[is_visual] = num_image_token * torch.tensor(tiles_per_image, dtype=torch.int64)
        return ids.repeat_interleave(repeats), labels.repeat_interleave(repeats)

    @cached_property
    def image_token_id(self) -> int:
        """Id of the visual token; ConfigError if the tokenizer does not know it."""
        return self.find_special_token(self.markers.context)

    def find_special_token(self, token: str) -> int:
        """Id of a special token; ConfigError if the tokenizer does not know it."""
        ids = self._tokenize(token)
        if self.tokenizer.convert_ids_to_tokens(ids) != [token]:
            raise ConfigError(
                f"the tokenizer does not know {token} (it makes {len(ids)} tokens of it), expected one special token; "
                f"load the tokenizer from the checkpoint's own folder, or choose another template than "
                f"{self.template.name!r}"
            )
        return ids[0]

    @cached_property
    def _opening_ids(self) -> list[int]:
        return list(self.tokenizer("")["input_ids"])

    def _tokenize(self, text: str) -> list[int]:
        return list(self._remembered_ids(text)) if len(text) <= _MAX_REMEMBERED_TEXT else self._tokenize_uncached(text)

    def _tokenize_uncached(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
