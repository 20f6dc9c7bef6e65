import pytest

from internvl.errors import ConfigError
from internvl.model.conversation import get_conversation
from internvl.model.registration import load_tokenizer
from internvl.synth.miniature.tiny_tokenizer import ADDED_TOKENS, train_sentencepiece
from internvl.synth.miniature.vocabulary import list_words
from internvl.synth.questions import SHORT_ANSWER_SENTENCE

TEXTS = (
    'Note "mango". Note "saw".',
    " two  spaces\tand a tab \n\n",
    "naïve 中文 😀 bytes",
    SHORT_ANSWER_SENTENCE,
)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_ids_follow_internlm2(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    first = len(tokenizer) - len(ADDED_TOKENS)
    assert tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)) == list(range(first, len(tokenizer)))
    assert ADDED_TOKENS[2:5] == ("<img>", "</img>", "<IMG_CONTEXT>")


def test_bos_stands_in_front_and_nothing_behind(tokenizer):
    ids = tokenizer("Which fruit?")["input_ids"]
    assert ids == [1, *encode(tokenizer, "Which fruit?")]
    assert ids[-1] != tokenizer.eos_token_id


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_was(tokenizer, text):
    ids = encode(tokenizer, text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("token", ADDED_TOKENS)
def test_added_token_is_one_token_in_the_middle_of_text(tokenizer, token):
    ids = encode(tokenizer, f"mango{token}plum")
    assert ids.count(tokenizer.convert_tokens_to_ids(token)) == 1
    assert tokenizer.decode(ids) == f"mango{token}plum"


def test_words_of_the_task_are_one_piece_each(tokenizer):
    words = [word for word in list_words() if not word.isdigit()]
    assert [word for word in words if len(encode(tokenizer, word)) != 1] == []
    line_break = encode(tokenizer, "a\n")[-1]
    answers = [encode(tokenizer, f"a\n{word}") for word in list_words()]
    assert all(ids[-2] == line_break for ids in answers)


def test_prompt_around_a_question_is_short(tokenizer):
    conversation = get_conversation("internlm2-chat")
    prompt = conversation.render([("user", f"Which fruit?\n{SHORT_ANSWER_SENTENCE}"), ("assistant", None)])
    assert len(encode(tokenizer, prompt)) <= 18
    assert len(encode(tokenizer, conversation.system_message)) <= 2


def test_training_is_deterministic():
    models = [train_sentencepiece(400, ["mango"], ["\n"]) for _ in range(2)]
    assert models[0] == models[1]


@pytest.mark.parametrize("vocab_size", [100, 1_000_000])
def test_impossible_vocabulary_size_is_a_clear_error(vocab_size):
    with pytest.raises(ConfigError, match="change vocab_size"):
        train_sentencepiece(vocab_size, ["mango"], ["\n"])
