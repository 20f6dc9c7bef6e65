"""The sentencepiece tokenizer of InternLM2.

`<s>` opens every call, nothing closes it; unknown 0, `<s>` 1, `</s>` 2 (also used for padding). Chat markers and
image tokens are added tokens: they are split off before sentencepiece sees the text between them.

A `tokenizer.model` without `tokenizer_config.json` is enough: the chat markers are found among its pieces (InternLM2
reserves two for them), and `add_image_tokens` puts the rest where InternVL2 has them.
"""

import json
from typing import Any

from transformers import AddedToken
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from .constants import IMG_CONTEXT_TOKEN, SPECIAL_TOKENS
from .conversation import Conversation, get_conversation

# The pieces that InternLM2's tokenizer.model keeps free, by the marker that each became.
_RESERVED_PIECES = {"<|im_end|>": "[UNUSED_TOKEN_145]", "<|im_start|>": "[UNUSED_TOKEN_146]"}


def write_chat_template(
    conversation: Conversation, *, image: str = IMG_CONTEXT_TOKEN, video: str = "<video>", opening: str = ""
) -> str:
    """A Jinja template that renders chat messages as `conversation.render` does.

    A system message in front replaces the template's own; after it come `user` and `assistant` turns. A content is a
    text, or a list of `{"type": "text", "text": ...}`, `{"type": "image"}` and `{"type": "video"}`.

    Args:
        conversation: The template.
        image: What a picture becomes, on a line of its own: by default what transformers' processor replaces.
        video: The same for a video.
        opening: Text before everything else, for readers that add no `bos_token` to rendered text.
    """
    system, message, user, assistant, separator = (
        json.dumps(text, ensure_ascii=False)
        for text in (
            conversation.system_prefix,
            conversation.system_message,
            conversation.user_prefix,
            conversation.assistant_prefix,
            conversation.separator,
        )
    )
    start = f"{{{{- {json.dumps(opening)} -}}}}" if opening else ""
    return (
        f"{start}"
        "{%- macro text(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}{%- for part in content -%}"
        f"{{%- if part['type'] == 'image' -%}}{{{{- {json.dumps(image)} + '\\n' -}}}}"
        f"{{%- elif part['type'] == 'video' -%}}{{{{- {json.dumps(video)} + '\\n' -}}}}"
        "{%- else -%}{{- part['text'] -}}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
        "{%- set has_system = messages and messages[0]['role'] == 'system' -%}"
        f"{{{{- {system} + (text(messages[0]['content']) if has_system else {message}) + {separator} -}}}}"
        "{%- for turn in (messages[1:] if has_system else messages) -%}"
        f"{{%- if turn['role'] == 'user' -%}}{{{{- {user} + text(turn['content']) + {separator} -}}}}"
        f"{{%- elif turn['role'] == 'assistant' -%}}{{{{- {assistant} + text(turn['content']) + {separator} -}}}}"
        "{%- else -%}{{- raise_exception('got a turn of ' + turn['role'] + ', expected user or assistant (a system "
        "message may stand in front)') -}}{%- endif -%}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {assistant} -}}}}{{%- endif -%}}"
    )


class InternLM2Tokenizer(SentencePieceBackend):
    """Slow tokenizer over a `tokenizer.model` file.

    Args:
        vocab_file: Path of the sentencepiece model.
        add_bos_token: Put `bos_token` in front (only `add_special_tokens=False` in a call leaves it out otherwise).
        add_eos_token: Put `eos_token` at the end.
        chat_template: Jinja template of `apply_chat_template`; None: that of `internlm2-chat`. It renders no
            `bos_token`: the call that turns the text into ids puts it in front.
        **kwargs: Of `PreTrainedTokenizer`.
    """

    model_input_names = ["input_ids", "attention_mask"]
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        vocab_file: str,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken = "</s>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        chat_template: str | dict[str, str] | None = None,
        **kwargs: Any,
    ):
        kwargs.pop("special_tokens_pattern", None)
        kwargs = {name: value for name, value in kwargs.items() if value is not None}  # null: the default
        pattern = {(True, False): "bos", (True, True): "bos_eos", (False, True): "eos", (False, False): "none"}
        super().__init__(
            vocab_file=vocab_file,
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            special_tokens_pattern=pattern[add_bos_token, add_eos_token],
            chat_template=chat_template or write_chat_template(get_conversation("internlm2-chat")),
            **kwargs,
        )
        self._find_chat_markers()

    def _find_chat_markers(self) -> None:
        """Take chat markers that are pieces of the model, under their own or their reserved name, for added tokens."""
        for marker, reserved in _RESERVED_PIECES.items():
            if marker in self._added_tokens_encoder:
                continue
            for piece in (marker, reserved):
                token_id = self.sp_model.piece_to_id(piece)
                if self.sp_model.IdToPiece(token_id) == piece:
                    token = AddedToken(marker, normalized=False, special=True)
                    self._added_tokens_decoder[token_id] = token
                    self._added_tokens_encoder[marker] = token_id
                    self._extra_special_tokens.append(token)
                    break
        self._update_trie()
        self._update_total_vocab_size()

    def add_image_tokens(self, vocab_size: int) -> bool:
        """Add the chat markers and image tokens that are missing, if a model has room for exactly these.

        Args:
            vocab_size: Tokens that the model knows. It decides whether a `tokenizer.model` without further files
                belongs to an InternVL2 checkpoint: ids after the pieces of the file are then those of the release.

        Returns:
            Whether all of them are known now; when not, nothing was changed.
        """
        names = (*_RESERVED_PIECES, *SPECIAL_TOKENS)
        missing = [name for name in names if name not in self._added_tokens_encoder]
        if missing and len(self) + len(missing) == vocab_size:
            self.add_tokens([AddedToken(name, normalized=False, special=True) for name in missing], special_tokens=True)
            missing = []
        return not missing

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to text; added tokens stay as they are, without spaces around them."""
        text: list[str] = []
        pieces: list[str] = []
        for token in tokens:
            if token in self._added_tokens_encoder:
                text += [self.sp_model.decode_pieces(pieces), token]
                pieces = []
            else:
                pieces.append(token)
        return "".join([*text, self.sp_model.decode_pieces(pieces)])
