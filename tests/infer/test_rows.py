"""Several answers at once, each with its own limit, stop texts, log-probabilities and cancellation."""

from dataclasses import replace

import pytest
import torch

from internvl.errors import ConfigError, DataError
from internvl.infer.question import Question
from internvl.infer.rows import Request
from internvl.infer.session import Session
from internvl.infer.settings import Sampling

QUESTIONS = [Question("who?"), Question("a much longer question about nothing"), Question("what is this, and why?")]


@pytest.fixture
def prompts(session):
    return [session.questions.encode(question) for question in QUESTIONS]


def test_rows_answer_like_ask_each_to_its_own_limit(session, prompts):
    limits = [3, 12, 7]
    rows = session.answer_rows([Request(p, n) for p, n in zip(prompts, limits, strict=True)])
    expected = [session.ask(q, max_new_tokens=n) for q, n in zip(QUESTIONS, limits, strict=True)]
    assert [row.text for row in rows] == [answer.text for answer in expected]
    assert [row.num_new_tokens for row in rows] == [answer.num_new_tokens for answer in expected]


def test_a_stop_text_ends_its_row_only_and_is_not_shown(session, prompts):
    whole = [row.text for row in session.answer_rows([Request(prompt, 12) for prompt in prompts])]
    stop = whole[1][3:5]
    pieces = []
    requests = [Request(p, 12) for p in prompts]
    requests[1] = replace(requests[1], stop=["never", stop], on_piece=lambda text, _: pieces.append(text))
    rows = session.answer_rows(requests)
    assert [row.text for row in rows] == [whole[0], whole[1][: whole[1].index(stop)].strip(), whole[2]]
    assert "".join(pieces) == rows[1].text
    assert rows[1].finish_reason == "stop"
    assert rows[1].num_new_tokens < 12


def test_a_cancelled_row_stops_at_the_next_token(session, prompts):
    asked = []
    requests = [
        Request(prompts[0], 12, is_cancelled=lambda: len(asked) == 4 or asked.append(1)),
        Request(prompts[1], 12),
    ]
    first, second = session.answer_rows(requests)
    assert (first.finish_reason, first.num_new_tokens) == ("cancelled", 5)
    assert second.text == session.ask(QUESTIONS[1], max_new_tokens=12).text


def test_log_probabilities_are_those_of_the_model_at_any_temperature(session, prompts):
    tokens = []
    request = Request(prompts[0], 6, num_top=3, on_piece=lambda _, logprobs: tokens.extend(logprobs))
    (row,) = session.answer_rows([request], sampling=Sampling(temperature=2.0, seed=5))
    assert len(tokens) == row.num_new_tokens
    ids = torch.tensor([[*prompts[0].input_ids[0].tolist(), *(token.token_id for token in tokens)]])
    with torch.inference_mode():
        logits = session.model(input_ids=ids, position_ids=session.model.build_positions(ids)).logits[0].float()
    expected = logits.log_softmax(-1)[prompts[0].length - 1 : -1]
    for token, logprobs in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(float(logprobs[token.token_id]), abs=1e-4)
        assert [value for _, value in token.top] == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-4)


def test_a_seed_repeats_all_rows_together(session, prompts):
    sampling = Sampling(temperature=1.0, seed=3)
    first, again = (
        [row.text for row in session.answer_rows([Request(prompts[0], 8)] * 3, sampling=sampling)] for _ in "ab"
    )
    assert first == again
    assert len(set(first)) > 1


def test_a_question_chooses_its_positions(checkpoint, make_image):
    picture = [make_image("a.png", 56, 28)]
    session = Session.from_pretrained(checkpoint, device="cpu")
    asked = session.questions.encode(Question("<image>?", picture, rope_pos_id_stride=0.25))
    own = Session.from_pretrained(checkpoint, device="cpu", rope_pos_id_stride=0.25)
    torch.testing.assert_close(asked.position_ids, own.questions.encode(Question("<image>?", picture)).position_ids)
    with pytest.raises(ConfigError, match="needs rope_pos_id_stride"):
        session.questions.encode(Question("?", rope_pos_id_version="v2pe_fix"))


def test_keys_of_other_positions_are_not_reused(checkpoint):
    """Without pictures all positions are equal numbers, which decoders may scale differently."""
    session = Session.from_pretrained(checkpoint, device="cpu", reuse_prefix=True)
    prompt = session.questions.encode(Question("who?"))
    session.answer_rows([Request(prompt, 1)])
    other = session.questions.encode(Question("who?", rope_pos_id_stride=4))
    cache = session._prefix.take(other.input_ids, other.position_ids, keys=[], tiles=[])
    assert cache.get_seq_length() == 0


def test_keys_that_another_version_rotated_are_not_reused(checkpoint):
    session = Session.from_pretrained(checkpoint, device="cpu", reuse_prefix=True)
    for version, num_reused in (("mrope", 0), ("mrope_interleaved", 0), ("mrope_interleaved", None)):
        prompt = session.questions.encode(Question("who?", rope_pos_id_version=version))
        names = {"keys": [], "tiles": [], "version": version}
        reused = session._prefix.take(prompt.input_ids, prompt.position_ids, **names).get_seq_length()
        assert reused == (prompt.length - 1 if num_reused is None else num_reused)
        session.answer_rows([Request(prompt, 1)])


def test_prompts_on_other_axes_are_refused_in_one_batch(checkpoint):
    session = Session.from_pretrained(checkpoint, device="cpu")
    prompts = [session.questions.encode(Question("who?", rope_pos_id_version=name)) for name in ("mrope", "default")]
    with pytest.raises(ConfigError, match="one batch asks for positions default, mrope"):
        session.answer_rows([Request(prompt, 1) for prompt in prompts])


def test_a_prompt_over_the_limit_is_refused_before_a_picture_is_decoded(session, make_image, monkeypatch):
    question = Question("<image> and <image>?", [make_image("a.png", 84, 28), make_image("b.png")])
    length = session.questions.encode(question, max_tokens=1000).length
    assert session.questions.encode(question, max_tokens=length).length == length
    monkeypatch.setattr(session.pictures, "encode", None)
    with pytest.raises(DataError, match=f"has {length} tokens, 5 tiles included, expected at most {length - 1}"):
        session.questions.encode(question, max_tokens=length - 1)
