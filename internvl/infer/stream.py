"""Text stream: from generated ids to text, at the end and while they come.

    ids     E4   BD   A0   _are   _here   <|im_end|>
    text     .    .   你   " are" " here"  (end)

A character that is spread over several byte tokens is written once it is whole. White space waits for what follows,
because an answer has none at its ends. The pieces add up to `decode_answer` of the same ids.
"""

from collections.abc import Callable, Collection, Sequence

from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

_REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character (yet)
_MAX_WINDOW, _MIN_WINDOW = 64, 16  # tokens that are decoded again when one comes


def decode_answer(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, stop_ids: Collection[int], stop_text: str
) -> str:
    """Text up to the first stop, without special tokens and white space around.

    Args:
        stop_ids: Ids that end an answer.
        stop_text: Ends an answer, too, when a model spells it.
    """
    length = next((place for place, token_id in enumerate(ids) if token_id in stop_ids), len(ids))
    return _decode(tokenizer, ids[:length]).split(stop_text)[0].strip()


class TextStream(BaseStreamer):
    """Streamer for `generate(streamer=...)` that hands on text as soon as it can no longer change.

    Args:
        on_text: Called with every new piece of text, never an empty one.
        stop_ids: Ids that end an answer.
        stop_text: Ends an answer, too, when a model spells it.
        more_stops: Further texts that end an answer, of which they are no part.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        on_text: Callable[[str], None],
        *,
        stop_ids: Collection[int],
        stop_text: str,
        more_stops: Sequence[str] = (),
    ):
        self._tokenizer, self._on_text = tokenizer, on_text
        self._stop_ids, self._stop_texts = stop_ids, (stop_text, *more_stops)
        self.has_stopped = False  # by one of the ids or texts
        self._num_written = 0
        # All text = the settled one + that of the window without its first characters, which are settled already.
        self._settled, self._num_shared = "", 0
        self._window: list[int] = []

    def put(self, value: Int64[Tensor, " new"] | Int64[Tensor, "1 length"]) -> None:
        """Take new ids of shape (1,); the prompt, which comes first in shape (1, length), is not text to show."""
        if value.ndim > 1:
            return
        for token_id in value.tolist():
            self.has_stopped = self.has_stopped or token_id in self._stop_ids
            if self.has_stopped:
                return
            self._window.append(token_id)
            text = self._text()
            self.has_stopped = any(stop in text for stop in self._stop_texts)
            self._write(text if self.has_stopped else _cut_unfinished(text, self._stop_texts))
            if len(self._window) > _MAX_WINDOW:
                self._shorten_window(text)

    def end(self) -> None:
        """Hand on what was held back."""
        self._write(self._text())

    def _text(self) -> str:
        return self._settled + _decode(self._tokenizer, self._window)[self._num_shared :]

    def _write(self, text: str) -> None:
        end = min(text.find(stop) % (len(text) + 1) for stop in self._stop_texts)  # -1, not found, is its length
        new = text[:end].strip()[self._num_written :]
        if new:
            self._num_written += len(new)
            self._on_text(new)

    def _shorten_window(self, text: str) -> None:
        """Settle the text so far, if the last tokens alone read the same as they do after the others."""
        tail = self._window[-_MIN_WINDOW:]
        shared = _decode(self._tokenizer, tail)
        if shared.strip() and text.endswith(shared) and not text.endswith(_REPLACEMENT):
            self._settled, self._num_shared, self._window = text, len(shared), tail


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _cut_unfinished(text: str, stop_texts: Sequence[str]) -> str:
    """Text without an end that may become another character or one of the stop texts."""
    text = text.rstrip(_REPLACEMENT)
    return text[: len(text) - max(_count_begun(text, stop) for stop in stop_texts)]


def _count_begun(text: str, stop_text: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop text."""
    lengths = range(min(len(stop_text) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop_text[:length])), 0)
