"""Teacher forcing: the gold answer is the input, and what the model finds most probable at its places is noted.

    fed to the model      ... <assistant>   The   bird
    most probable next                 A    cat   .          -> said "A cat"... although it never saw its own "A"
                                      The   bird             <- the gold answer, fed whatever was said

Published long-context numbers of V2PE were made this way. Every token but the first is read with the right beginning
before it, so what is measured is at least what generation reaches.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from internvl.errors import EvalError
from internvl.infer.question import check_text, tokenizer_errors


class TeacherForcing(LogitsProcessor):
    """Makes `generate` write `gold`, and keeps the tokens that it would have written at every place.

    Raises EvalError if the text has no tokens, DataError if the tokenizer cannot take it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, gold: str):
        self._tokenizer = tokenizer
        # Answers stand behind a line break in every template; without one, a tokenizer may mark the start of a text.
        check_text(gold)
        with tokenizer_errors():
            lead, both = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", f"\n{gold}"))
        self._gold_ids: list[int] = both[len(lead) :]
        self._said_ids: list[int] = []
        if not self._gold_ids:
            raise EvalError(f"the gold answer {gold!r} has no tokens, teacher forcing needs at least one")

    @property
    def num_tokens(self) -> int:
        """Tokens of the text: the limit for `generate`."""
        return len(self._gold_ids)

    @property
    def as_list(self) -> LogitsProcessorList:
        """In the form that `generate` takes."""
        return LogitsProcessorList([self])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits, (1, vocabulary), that leave the next token of the text alone."""
        gold_id = self._gold_ids[len(self._said_ids)]
        self._said_ids.append(int(scores[0].argmax()))
        forced = torch.full_like(scores, -torch.inf)
        forced[0, gold_id] = 0
        return forced

    def read_response(self) -> str:
        """What was most probable at the places of the text, without special tokens."""
        return str(self._tokenizer.decode(self._said_ids, skip_special_tokens=True)).strip()
