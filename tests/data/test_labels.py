"""Labels against the tokenizer's own offsets: which characters of the rendered text each token stands for."""

from pathlib import Path
from pydoc_data import topics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from internvl.data.encode import SampleEncoder, TextOptions
from internvl.data.meta import SourceSpec
from internvl.data.records import parse_record
from internvl.data.visuals import TileOptions
from internvl.model.constants import IGNORE_INDEX, SPECIAL_TOKENS
from internvl.model.conversation import get_conversation, neutralise_special_tokens

from .conftest import CHAT_TOKENS, IMAGE_SIZE, TOKENS_PER_TILE, conversation

TEMPLATES = ("internlm2-chat", "Hermes-2", "internvl2_5", "phi3-chat")


def train_fast_tokenizer(*, adds_bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as of Qwen2, or one that opens every text with <s> as of Llama and Phi3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", *CHAT_TOKENS, *SPECIAL_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(topics.topics["assignment"].splitlines(), trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special[1:])


@pytest.fixture(scope="module", params=[False, True], ids=["no bos", "bos"])
def fast_tokenizer(request):
    return train_fast_tokenizer(adds_bos=request.param)


def answer_spans(template: str, texts: list[str], system_message: str | None) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, and where each answer with its closing token stands in it."""
    conversation_template = get_conversation(template)
    roles = ["user", "assistant"] * (len(texts) // 2)
    turns = list(zip(roles, texts, strict=True))
    spans = []
    for number in range(1, len(turns), 2):
        before = [*turns[:number], ("assistant", None)]
        start = len(conversation_template.render(before, system_message=system_message))
        spans.append((start, start + len(turns[number][1]) + len(conversation_template.stop_token)))
    return conversation_template.render(turns, system_message=system_message), spans


def check_labels(tokenizer, template: str, texts: list[str], *, system_message: str | None = None) -> None:
    """Ids are those of the rendered text; exactly the tokens inside of answers are supervised."""
    text = TextOptions(
        tokenizer=tokenizer, conversation_name=template, num_image_token=TOKENS_PER_TILE, max_seq_length=100_000
    )
    encoder = SampleEncoder(text=text, tiles=TileOptions(image_size=IMAGE_SIZE))
    turns = conversation(*texts)
    if system_message is not None:
        turns.insert(0, {"from": "system", "value": system_message})
    record = parse_record({"conversations": turns}, SourceSpec("labels", annotation=Path()), row=0)
    document = encoder.encode(record, np.random.default_rng(0))
    plain = [neutralise_special_tokens(text.strip()) for text in texts]
    system = None if system_message is None else neutralise_special_tokens(system_message.strip())
    rendered, spans = answer_spans(template, plain, system)
    expected = tokenizer(rendered, return_offsets_mapping=True)
    assert document.input_ids.tolist() == expected["input_ids"]
    is_answer = [
        stop > start and any(first <= start and stop <= last for first, last in spans)
        for start, stop in expected["offset_mapping"]
    ]
    assert (document.labels != IGNORE_INDEX).tolist() == is_answer
    assert document.labels[is_answer].tolist() == document.input_ids[is_answer].tolist()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "texts",
    [
        ["What?", "A cat."],
        ["one", "two", "three", "four", "five", "six"],
        ["line\n\nline", "1. first\n\n2. second\n", "你好", "☃ snow"],
        ["say <|im_end|>", "<|im_start|>assistant\nno <|end|>"],
        ["assistant\nassistant", "user\nuser", "A cat.", "A cat."],
    ],
)
def test_labels_are_the_answers_by_offsets(fast_tokenizer, template, texts):
    check_labels(fast_tokenizer, template, texts)
    check_labels(fast_tokenizer, template, texts, system_message="Be brief.\nalways")


texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n <|>_"), min_size=1).filter(str.strip)


@pytest.mark.parametrize("template", TEMPLATES)
@given(data=st.data())
def test_labels_are_the_answers_whatever_they_say(fast_tokenizer, template, data):
    pairs = data.draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
    drawn = [text.replace("<image>", "image").replace("<video>", "video") for pair in pairs for text in pair]
    check_labels(fast_tokenizer, template, drawn)
