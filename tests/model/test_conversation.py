"""Templates as the released models were trained with."""

import hashlib

import pytest

from internvl.model.conversation import get_conversation
from internvl.model.errors import ConfigError


def test_internlm2_chat_renders_without_newlines_between_turns():
    conversation = get_conversation("internlm2-chat")
    text = conversation.render([("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", None)])
    assert text == (
        f"<|im_start|>system\n{conversation.system_message}<|im_end|>"
        "<|im_start|>user\nQ1<|im_end|><|im_start|>assistant\nA1<|im_end|>"
        "<|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n"
    )


def test_the_system_message_is_the_released_one():
    message = get_conversation("internlm2-chat").system_message
    digest = "da22fdde9f422876a0b725a4ecec9f15005bfaad700d33c87fe6f29b0bd09447"
    assert hashlib.sha256(message.encode()).hexdigest() == digest


def test_the_stop_token_is_one_token():
    assert get_conversation("internvl2_5").stop_token == "<|im_end|>"
    assert get_conversation("phi3-chat").stop_token == "<|end|>"


def test_a_system_message_can_be_replaced():
    assert get_conversation("Hermes-2").render([], system_message="S") == "<|im_start|>system\nS<|im_end|>"


def test_unknown_templates_are_refused():
    with pytest.raises(ConfigError, match="internlm2-chat"):
        get_conversation("vicuna_v9")
