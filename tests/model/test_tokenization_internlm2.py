"""Ids, round trips and chat template of the sentencepiece tokenizer."""

import io
import re
import shutil

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from internvl.model.constants import SPECIAL_TOKENS
from internvl.model.conversation import get_conversation
from internvl.model.registration import load_tokenizer
from internvl.model.tokenization_internlm2 import InternLM2Tokenizer, write_chat_template
from internvl.synth.miniature.tiny_tokenizer import ADDED_TOKENS, train_tokenizer

VOCAB_SIZE = 512
META_SPACE = "\u2581"  # sentencepiece's own sign for a space; it comes back as a space
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=META_SPACE), max_size=60)
PIECES = st.one_of(
    ANY_TEXT,
    st.text(st.sampled_from(" \t\n\r\v\f\u00a0\u2003\u3000"), max_size=12),
    st.text(st.sampled_from("".join(map(chr, [*range(32), *range(127, 160)]))), max_size=12),
    st.sampled_from(
        ["def f(x):\n    return {x: [1]}\n", "😀👩‍👩‍👧🇩🇪", "naïve 中文 עברית", "<0x0A>", "< s>", "#include <img.h>"]
    ),
)
KNOWN_TOKENS = (*ADDED_TOKENS, "<unk>", "<s>", "</s>")
KNOWN_PATTERN = re.compile("(" + "|".join(map(re.escape, KNOWN_TOKENS)) + ")")
TEXTS = st.lists(PIECES, max_size=4).map("".join).filter(lambda text: not KNOWN_PATTERN.search(text))
MARKED_TEXTS = st.lists(st.one_of(TEXTS, st.sampled_from(KNOWN_TOKENS)), max_size=8).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder, vocab_size=VOCAB_SIZE, template="internlm2-chat").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def processor(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@given(text=TEXTS)
@example(text="")
@example(text="  two  spaces ")
@example(text="\x00")
def test_text_has_sentencepieces_own_ids_behind_bos(tokenizer, processor, text):
    assert tokenizer(text)["input_ids"] == [1, *processor.encode(text)]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == processor.encode(text)


@given(text=MARKED_TEXTS)
@example(text=" <img> a</s>\n")
def test_added_tokens_split_the_text(tokenizer, processor, text):
    ids = [
        [tokenizer.convert_tokens_to_ids(part)] if part in KNOWN_TOKENS else processor.encode(part)
        for part in KNOWN_PATTERN.split(text)
    ]
    assert tokenizer(text)["input_ids"] == sum(ids, [1])


@given(text=MARKED_TEXTS)
def test_text_comes_back_as_it_was(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert text.count("<unk>") == ids.count(tokenizer.unk_token_id)


@given(text=TEXTS)
def test_special_tokens_can_be_skipped(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(ids) == "<s>" + text


# ------------------------------------------------------------------------------------------------------ chat template

CONTENT = st.text(
    st.one_of(st.sampled_from("{}%'\"\\\n <|im_end>"), st.characters(exclude_categories=["Cs"])), max_size=30
)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), CONTENT), min_size=1, max_size=5)


def as_messages(turns, system=None):
    messages = [{"role": role, "content": content} for role, content in turns]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


@given(turns=TURNS, system=st.none() | CONTENT, is_prompt=st.booleans())
@pytest.mark.parametrize("name", [None, "internlm2-chat", "internvl2_5", "phi3-chat"])
def test_the_chat_template_renders_the_conversation(tokenizer, name, turns, system, is_prompt):
    conversation = get_conversation(name or "internlm2-chat")
    template = None if name is None else write_chat_template(conversation)
    rendered = tokenizer.apply_chat_template(
        as_messages(turns, system), chat_template=template, tokenize=False, add_generation_prompt=is_prompt
    )
    tail = [("assistant", None)] if is_prompt else []
    assert rendered == conversation.render([*turns, *tail], system_message=system)


@pytest.mark.parametrize("role", ["tool", "system"])
def test_a_role_that_the_template_does_not_know_is_refused(tokenizer, role):
    with pytest.raises(Exception, match=f"got a turn of {role}, expected user or assistant"):
        tokenizer.apply_chat_template(as_messages([("user", "a"), (role, "b")]), tokenize=False)


def test_the_chat_template_is_saved_and_a_folders_own_one_wins(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "same")
    assert load_tokenizer(tmp_path / "same").chat_template == tokenizer.chat_template
    own = InternLM2Tokenizer(vocab_file=tokenizer.vocab_file, chat_template="own")
    own.save_pretrained(tmp_path / "own")
    assert load_tokenizer(tmp_path / "own").chat_template == "own"


# ---------------------------------------------------------------------------------------------- tokenizer.model alone


def train_model(path, symbols):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some plain words to learn from, and a few more of them"] * 10),
        model_writer=model, model_type="bpe", vocab_size=300, byte_fallback=True, user_defined_symbols=symbols,
        hard_vocab_limit=False, normalization_rule_name="identity", unk_id=0, bos_id=1, eos_id=2, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture
def alone(folder, tmp_path):
    shutil.copy(folder / "tokenizer.model", tmp_path)
    return load_tokenizer(tmp_path)


def test_the_model_file_alone_gives_the_text_part(tokenizer, alone):
    text = "def f():\n\treturn '中文'"
    assert alone(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert alone.chat_template == tokenizer.chat_template
    assert len(alone) == VOCAB_SIZE - len(ADDED_TOKENS)


def test_missing_tokens_take_the_released_ids_where_a_model_has_room_for_them(tokenizer, alone):
    assert alone.add_image_tokens(VOCAB_SIZE)
    assert alone.get_vocab() == tokenizer.get_vocab()
    assert alone("a<img><IMG_CONTEXT></img>b")["input_ids"] == tokenizer("a<img><IMG_CONTEXT></img>b")["input_ids"]
    assert alone.add_image_tokens(VOCAB_SIZE)
    assert len(alone) == VOCAB_SIZE


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE - 1, VOCAB_SIZE + 1, VOCAB_SIZE - len(ADDED_TOKENS)])
def test_no_tokens_are_added_where_their_ids_would_be_a_guess(alone, vocab_size):
    before = alone.get_vocab()
    assert not alone.add_image_tokens(vocab_size)
    assert alone.get_vocab() == before


@pytest.mark.parametrize(
    "names", [("[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"), ("<|im_end|>", "<|im_start|>")], ids=["reserved", "named"]
)
def test_chat_markers_among_the_pieces_are_found(tmp_path, names):
    path = train_model(tmp_path / "tokenizer.model", list(names))
    ids = sentencepiece.SentencePieceProcessor(model_file=str(path)).piece_to_id(list(names))
    tokenizer = load_tokenizer(tmp_path)
    num_pieces = len(tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"]) == ids
    assert tokenizer("a<|im_end|>", add_special_tokens=False)["input_ids"][-1] == ids[0]
    assert tokenizer.decode(ids) == "<|im_end|><|im_start|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""
    assert tokenizer.add_image_tokens(num_pieces + len(SPECIAL_TOKENS))
    image_ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert image_ids == list(range(num_pieces, num_pieces + len(SPECIAL_TOKENS)))
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    assert saved.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>", *SPECIAL_TOKENS]) == [*ids, *image_ids]
