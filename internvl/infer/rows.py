"""Rows: several answers that are generated at once, each followed token by token and ended by its own rules.

    generate --(scores)--> RecordLogprobs    what the model found probable, before temperature
             --(new ids)-> FollowRows --row by row--> Row: text as it comes, its limit, stop texts, cancellation

A row that has ended is padded until the last one ends; so a batch takes the time of its longest answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from internvl.errors import ConfigError
from internvl.infer.question import EncodedQuestion
from internvl.infer.stream import TextStream

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenLogprobs:
    """How probable a generated token was, and which ones were the most probable."""

    token_id: int
    logprob: float  # natural logarithm
    top: Sequence[tuple[int, float]]  # (token id, logprob), the most probable first


def _ignore(text: str, logprobs: Sequence[TokenLogprobs]) -> None:
    """Do nothing with a piece of an answer."""


@dataclass(frozen=True)
class Request:
    """A prompt and what is wanted of its answer.

    Raises:
        ConfigError: A limit out of range.
    """

    prompt: EncodedQuestion
    max_new_tokens: int
    stop: Sequence[str] = ()  # texts that end the answer, of which they are no part
    num_top: int | None = None  # log-probabilities of every token and of that many of the most probable; None: none
    # called with every piece of text, and the log-probabilities of the tokens since the piece before
    on_piece: Callable[[str, Sequence[TokenLogprobs]], None] = _ignore
    is_cancelled: Callable[[], bool] = field(default=lambda: False)  # asked after every token

    def __post_init__(self) -> None:
        """Refuse an empty answer."""
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")


class Row:
    """One answer while it is generated, and once it is finished."""

    def __init__(
        self, request: Request, tokenizer: PreTrainedTokenizerBase, *, stop_ids: Sequence[int], stop_text: str
    ):
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self.num_new_tokens = 0  # the closing one included
        self._request = request
        self._unsent: list[TokenLogprobs] = []
        self._stream = TextStream(
            tokenizer, self._hand_on, stop_ids=stop_ids, stop_text=stop_text, more_stops=request.stop
        )

    def take(self, token: Int64[Tensor, "1"], logprobs: Float[Tensor, " vocabulary"] | None) -> None:
        """Follow one more token."""
        self.num_new_tokens += 1
        if logprobs is not None and self._request.num_top is not None:
            self._unsent.append(_read_logprobs(int(token), logprobs, num_top=self._request.num_top))
        self._stream.put(token)
        if self._stream.has_stopped:
            self.finish_reason = "stop"
        elif self.num_new_tokens == self._request.max_new_tokens:
            self.finish_reason = "length"
        elif self._request.is_cancelled():
            self.finish_reason = "cancelled"
        if self.finish_reason is not None:
            self._stream.end()
            if self._unsent:
                self._hand_on("")

    def _hand_on(self, text: str) -> None:
        self.text += text
        logprobs, self._unsent = self._unsent, []
        self._request.on_piece(text, logprobs)


class FollowRows(StoppingCriteria):
    """Hands every new token to its row, and says which rows have ended."""

    def __init__(self, rows: Sequence[Row], logprobs: "RecordLogprobs | None"):
        self._rows, self._logprobs = rows, logprobs

    def __call__(self, input_ids: Int64[Tensor, "rows length"], scores: object, **_: object) -> Bool[Tensor, " rows"]:
        """Follow the last column."""
        for number, (row, token) in enumerate(zip(self._rows, input_ids[:, -1:].cpu(), strict=True)):
            if row.finish_reason is None:
                row.take(token, None if self._logprobs is None else self._logprobs.latest[number])
        return torch.tensor([row.finish_reason is not None for row in self._rows], device=input_ids.device)


class RecordLogprobs(LogitsProcessor):
    """Keeps the log-probabilities of the next token as the model gives them; scores pass as they are."""

    latest: Float[Tensor, "rows vocabulary"]

    def __call__(
        self, input_ids: Int64[Tensor, "rows length"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Record."""
        self.latest = scores.log_softmax(dim=-1)
        return scores


def _read_logprobs(token_id: int, logprobs: Float[Tensor, " vocabulary"], *, num_top: int) -> TokenLogprobs:
    values, ids = logprobs.topk(num_top)
    top = list(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(token_id, float(logprobs[token_id]), top)
