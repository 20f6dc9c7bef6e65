import re

from internvl.model.conversation import get_conversation
from internvl.synth.miniature import vocabulary


def test_every_value_belongs_to_one_category():
    values = vocabulary.list_values()
    assert len(values) == len(set(values)) == 80
    assert {len(words) for words in vocabulary.CATEGORIES.values()} == {10}
    assert not set(values) & set(vocabulary.CATEGORIES)


def test_questions_do_not_hold_answers():
    questions = [vocabulary.ask_category(category) for category in vocabulary.CATEGORIES]
    questions += [vocabulary.ask_digit(ordinal) for ordinal in vocabulary.ORDINALS]
    words = {word for question in questions for word in question.strip("?").split()}
    assert not words & {*vocabulary.list_values(), *"0123456789"}


def test_words_cover_needles_and_questions():
    texts = [
        vocabulary.write_needle("mango"),
        vocabulary.ask_category("metal"),
        vocabulary.ask_digit("second"),
    ]
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    assert words <= set(vocabulary.list_words())
    assert "mango" not in get_conversation("internlm2-chat").system_message
