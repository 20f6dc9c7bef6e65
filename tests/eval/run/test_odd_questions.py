"""Questions that a tokenizer cannot take, and models whose output is NaN: failed answers, and the run goes on."""

from dataclasses import replace

import pytest
import torch

from eval.core.sample import Sample
from eval.run.answering import _Answerer
from eval.run.teacher_forcing import TeacherForcing
from internvl.errors import CheckpointError, DataError
from internvl.infer.question import Question
from internvl.infer.session import Session
from internvl.infer.settings import GREEDY
from tests.eval.run.test_answering import TASK

QUESTION = Question("what?")


@pytest.fixture
def session(checkpoint):
    return Session.from_pretrained(checkpoint, dtype="float32", device="cpu")


@pytest.fixture
def broken(session):
    """A session whose model gives NaN."""
    with torch.no_grad():
        session.model.language_model.model.norm.weight.fill_(float("nan"))
    return session


def answer(session, *prompts, task=TASK):
    answerer = _Answerer(session, None, sampling=GREEDY, max_num=None)
    samples = [Sample(f"s{number}", prompt, (), "x") for number, prompt in enumerate(prompts)]
    return [prediction.failure for prediction in answerer(task, samples)]


@pytest.mark.parametrize("error", [ValueError("odd text"), OverflowError("too long"), TypeError("no text")])
def test_a_text_that_the_tokenizer_refuses_is_a_failed_answer(session, monkeypatch, error):
    conversation = session.questions.conversation
    original = conversation.encode_prompt

    def encode_prompt(question, **options):
        if "odd" in question:
            raise error
        return original(question, **options)

    monkeypatch.setattr(conversation, "encode_prompt", encode_prompt)
    first, second, third = answer(session, "what?", "odd?", "what?")
    assert (first, third) == (None, None)
    assert second == f"the tokenizer cannot take the text ({type(error).__name__}: {error})"


def test_odd_texts_are_answered_or_failed(session):
    failures = answer(session, "a\0b", "\0", "a\ud83d", "\ufffe\uffff", "\U0010ffff", "é" * 300, "")
    assert [failure is not None for failure in failures] == [False, False, True, False, False, False, False]


def test_a_gold_answer_that_the_tokenizer_refuses_is_an_error_of_its_sample():
    def refuse(text, **_):
        raise ValueError("odd text")

    with pytest.raises(DataError, match=r"the tokenizer cannot take the text \(ValueError: odd text\)"):
        TeacherForcing(refuse, "blue")


@pytest.mark.parametrize(
    "ask",
    [
        lambda session: session.answer("what?", max_new_tokens=2),
        lambda session: session.ask(QUESTION, max_new_tokens=2, on_text=str),
        lambda session: session.answer_batch([QUESTION, QUESTION], max_new_tokens=2),
        lambda session: session.ask(
            QUESTION,
            max_new_tokens=2,
            sampling=replace(GREEDY, logits_processor=TeacherForcing(session.tokenizer, "blue").as_list),
        ),
    ],
    ids=["answer", "stream", "batch", "teacher_forcing"],
)
def test_nan_is_an_error_on_every_way_to_an_answer(broken, ask):
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        ask(broken)


def test_nan_is_a_failed_answer(broken):
    failures = answer(broken, "what?", "who?", task=replace(TASK, write_gold=str))
    assert all("NaN or infinite" in failure for failure in failures)
    assert all("NaN or infinite" in failure for failure in answer(broken, "what?", "who?"))
