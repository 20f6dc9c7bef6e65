"""Training of a small sentencepiece BPE tokenizer with InternLM2's conventions.

Unknown 0, `<s>` 1, `</s>` 2, byte fallback, no normalisation: any text comes back as it was. The text is what ships
with Python. Three strings are pieces of their own: the line break (so that role strings and answers never merge), the
system message of the chat template, and the sentence that evaluation puts after a question. Released checkpoints
spend about fifty tokens on the latter two, too many for the short contexts of a tiny model.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from internvl.errors import ConfigError
from internvl.model.constants import SPECIAL_TOKENS
from internvl.model.conversation import get_conversation
from internvl.model.tokenization_internlm2 import InternLM2Tokenizer
from internvl.synth.miniature.sentences import read_paragraphs
from internvl.synth.miniature.vocabulary import list_words
from internvl.synth.questions import SHORT_ANSWER_SENTENCE

# In the order of their ids in InternVL2-2B: the chat markers, then the image and grounding tokens.
ADDED_TOKENS = ("<|im_end|>", "<|im_start|>", *SPECIAL_TOKENS)
MAX_LENGTH = 1_000_000  # effectively none; the data pipeline has a limit
_ROLES = ("system", "user", "assistant")
_SPACE = "\u2581"  # how sentencepiece writes a space
_WORD_WEIGHT = 400  # times a needed word is repeated in the text, so that it becomes one piece
_NUM_PARAGRAPHS = 3000


def train_sentencepiece(vocab_size: int, words: Sequence[str], phrases: Sequence[str]) -> bytes:
    """Train a BPE model of `vocab_size` pieces; returns the serialised model.

    A word is one piece after a space and after a line break; a phrase is one piece whatever it holds.

    Raises ConfigError if `vocab_size` is too small for bytes, characters and phrases, or too large for the text.
    """
    repeated = [form for word in words for form in (word, f"\n{word}")] * _WORD_WEIGHT
    text = [*read_paragraphs()[:_NUM_PARAGRAPHS], *repeated]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            user_defined_symbols=[phrase.replace(" ", _SPACE) for phrase in phrases],
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(f"no tokenizer of {vocab_size} pieces can be trained ({error}); change vocab_size") from error
    return model.getvalue()


def train_tokenizer(folder: Path, *, vocab_size: int, template: str) -> InternLM2Tokenizer:
    """Train a tokenizer of `vocab_size` tokens, added ones included, and write `tokenizer.model` into a folder.

    The system message of the conversation template is one piece.
    """
    phrases = ("\n", get_conversation(template).system_message, SHORT_ANSWER_SENTENCE)
    path = folder / "tokenizer.model"
    path.write_bytes(train_sentencepiece(vocab_size - len(ADDED_TOKENS), [*_ROLES, *list_words()], phrases))
    return InternLM2Tokenizer(
        vocab_file=str(path),
        model_max_length=MAX_LENGTH,
        additional_special_tokens=list(ADDED_TOKENS),
    )
