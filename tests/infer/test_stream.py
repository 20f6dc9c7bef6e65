"""What is streamed adds up to the answer and never shows half a character."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internvl.infer.stream import TextStream, decode_answer
from internvl.model.registration import load_tokenizer

STOP = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint)


def stops(tokenizer):
    return {"stop_ids": {tokenizer.convert_tokens_to_ids(STOP), tokenizer.eos_token_id}, "stop_text": STOP}


def stream(tokenizer, ids):
    pieces = []
    streamer = TextStream(tokenizer, pieces.append, **stops(tokenizer))
    streamer.put(torch.tensor([[5, 6, 7]]))  # a prompt
    for token_id in ids:
        streamer.put(torch.tensor([token_id]))
    streamer.end()
    return pieces


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@given(data=st.data())
def test_pieces_of_any_ids_add_up_to_the_answer(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=200))
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == decode_answer(tokenizer, ids, **stops(tokenizer))
    assert "" not in pieces


@given(text=st.text(st.sampled_from("a \n.<|im_end>你😀é"), max_size=120))
def test_text_comes_in_whole_characters(tokenizer, text):
    pieces = stream(tokenizer, encode(tokenizer, text))
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text.split(STOP)[0].strip()


def test_text_comes_before_the_end(tokenizer):
    pieces = []
    streamer = TextStream(tokenizer, pieces.append, **stops(tokenizer))
    for token_id in encode(tokenizer, "several plain words."):
        streamer.put(torch.tensor([token_id]))
    assert "".join(pieces) == "several plain words."
    assert len(pieces) > 1


def test_a_character_of_several_tokens_is_one_piece(tokenizer):
    ids = encode(tokenizer, "😀")
    assert len(ids) >= 4
    assert stream(tokenizer, ids) == ["😀"]


def test_long_answers_decode_a_window_only(tokenizer, monkeypatch):
    ids = encode(tokenizer, "Long answers, 你好, and 😀 too. " * 60)
    lengths = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **options: lengths.append(len(ids)) or decode(ids, **options))
    pieces = stream(tokenizer, ids)
    assert max(lengths) < 100 < len(ids)
    monkeypatch.undo()
    assert "".join(pieces) == decode_answer(tokenizer, ids, **stops(tokenizer))


def test_a_window_of_skipped_tokens_keeps_the_space_behind_it(tokenizer):
    skipped = [tokenizer.convert_tokens_to_ids("<box>")] * 90
    ids = [*encode(tokenizer, "Some words. " * 20), *skipped, *encode(tokenizer, "  more")]
    expected = decode_answer(tokenizer, ids, **stops(tokenizer))
    assert expected.endswith("words.    more")
    assert "".join(stream(tokenizer, ids)) == expected


def test_nothing_is_shown_behind_a_stop(tokenizer):
    ids = [*encode(tokenizer, "blue "), tokenizer.convert_tokens_to_ids(STOP), *encode(tokenizer, "more")]
    assert "".join(stream(tokenizer, ids)) == "blue"


def test_a_stop_text_spelled_in_pieces_is_not_shown(tokenizer):
    ids = tokenizer.sp_model.encode(f"blue{STOP}more")
    assert tokenizer.decode(ids) == f"blue{STOP}more"
    assert tokenizer.convert_tokens_to_ids(STOP) not in ids
    assert "".join(stream(tokenizer, ids)) == "blue"
