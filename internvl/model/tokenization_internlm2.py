"""The sentencepiece tokenizer of InternLM2.

`<s>` opens every call, nothing closes it; unknown 0, `<s>` 1, `</s>` 2 (also used for padding). Chat markers and
image tokens are added tokens: they are split off before sentencepiece sees the text between them.
"""

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend


class InternLM2Tokenizer(SentencePieceBackend):
    """Slow tokenizer over a `tokenizer.model` file.

    Args:
        vocab_file: Path of the sentencepiece model.
        unk_token: Unknown token.
        bos_token: Token in front of every sequence.
        eos_token: End of text.
        pad_token: Padding.
        add_bos_token: Put `bos_token` in front (only `add_special_tokens=False` in a call leaves it out otherwise).
        add_eos_token: Put `eos_token` behind.
        **kwargs: As of `PreTrainedTokenizer`.
    """

    model_input_names = ["input_ids", "attention_mask"]
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        vocab_file: str,
        unk_token: str = "<unk>",
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        pad_token: str = "</s>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        **kwargs,
    ):
        kwargs.pop("special_tokens_pattern", None)
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
            **kwargs,
        )

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to text; added tokens stand as they are, without spaces around them."""
        text: list[str] = []
        pieces: list[str] = []
        for token in tokens:
            if token in self._added_tokens_encoder:
                text += [self.sp_model.decode_pieces(pieces), token]
                pieces = []
            else:
                pieces.append(token)
        return "".join([*text, self.sp_model.decode_pieces(pieces)])
