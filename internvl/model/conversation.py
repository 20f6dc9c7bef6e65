"""Prompt templates as data.

A template is a system prefix, two role strings and a separator; a conversation is rendered by joining
`system + sep`, then `role + message + sep` for every turn. A turn without a message renders its role only, which is
how a prompt ends just before the answer. Strings follow the templates that the released InternVL2 models were
trained with.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .constants import IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN
from .errors import ConfigError

Role = Literal["user", "assistant"]

_SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_SYSTEM_MESSAGE_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True)
class Conversation:
    """One prompt template.

    Attributes:
        name: The name that `config.template` holds.
        system_prefix: Text in front of the system message.
        system_message: Default system message.
        user_prefix: Text in front of a user message.
        assistant_prefix: Text in front of an answer.
        separator: Text that closes every turn; generation stops at its token.
    """

    name: str
    system_prefix: str
    system_message: str
    user_prefix: str
    assistant_prefix: str
    separator: str

    def role_prefix(self, role: Role) -> str:
        """Text that opens a turn of `role`."""
        return self.user_prefix if role == "user" else self.assistant_prefix

    def render(self, messages: Sequence[tuple[Role, str | None]], *, system_message: str | None = None) -> str:
        """Render a conversation to the text that the tokenizer gets.

        Args:
            messages: Turns `(role, text)`; a text of None renders only the role's prefix.
            system_message: Replaces the template's own.
        """
        system = self.system_message if system_message is None else system_message
        parts = [self.system_prefix + system + self.separator]
        for role, text in messages:
            parts.append(self.role_prefix(role) + (text + self.separator if text is not None else ""))
        return "".join(parts)

    @property
    def stop_token(self) -> str:
        """The single special token at which an answer ends."""
        return self.separator.strip()


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
        raise ConfigError(f"unknown conversation template {name!r}; expected one of {sorted(_TEMPLATES)}")
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

    A space behind the opening bracket keeps the text readable and keeps the tokenizer from taking it for the token.
    Applying it twice changes nothing more. `<image>` placeholders stay.
    """
    return _STRUCTURAL_PATTERN.sub(lambda match: "< " + match.group()[1:], text)
