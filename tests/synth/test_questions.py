from eval.tasks.mm_niah import SHORT_SENTENCE
from internvl.synth.questions import SHORT_ANSWER_SENTENCE, Question, write_answer, write_question


def test_short_answer_sentence_is_the_one_of_evaluation():
    assert SHORT_SENTENCE.strip() == SHORT_ANSWER_SENTENCE


def test_options_have_letters_and_images_a_placeholder():
    texts = Question("Which?", "b", (0,), ("a", "b"), right=1)
    assert write_question(texts).splitlines()[:3] == ["Which?", "A. a", "B. b"]
    assert (write_answer(texts), texts.gold) == ("B", 1)
    assert "A. <image>\nB. <image>" in write_question(Question("Which?", "card", (0,), (None, None)))


def test_counts_are_answered_as_a_list():
    counts = Question("How many?", [2, 5], (0, 1))
    assert (write_question(counts), write_answer(counts), counts.gold) == ("How many?", "[2, 5]", [2, 5])
