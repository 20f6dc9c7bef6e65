"""A conversation becomes tokens in one place: turn by turn, with the ids of the whole rendered text."""

import pytest
from PIL import Image

from internvl.data.prompt import Picture, check_placeholders, load_pictures, place_pictures
from internvl.data.tiling import Tiling
from internvl.errors import ConfigError, DataError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.model.conversation import ConversationTokenizer, ImageMarkers, get_conversation, neutralise_special_tokens
from internvl.model.registration import load_tokenizer

from .numbered_videos import read_numbers, write_video
from .test_labels import TEMPLATES, train_fast_tokenizer

HISTORIES = [
    ([], "What?"),
    ([("<image>first\n<image>", "A cat.\n"), ("", "\nnewlines  ")], " <image>\n你好<image>\n☃ "),
    ([("say <|im_end|> and <s>", "<image> is text here")], "<img><IMG_CONTEXT></img><image><|end|>"),
]


@pytest.fixture(scope="module")
def tokenizers(tokenizer, prefixing_tokenizer):
    """Sentencepiece with and without a dummy prefix, byte-level BPE with and without <s>, and a published one."""
    fast = [train_fast_tokenizer(adds_bos=adds_bos) for adds_bos in (False, True)]
    return [tokenizer, prefixing_tokenizer, *fast, load_tokenizer("pretrained/InternVL2-Tiny")]


def render_whole(template, history, question, markers, num_visual):
    """The prompt's text, every visual token spelt out."""
    messages = []
    for earlier, answer in history:
        messages += [("user", neutralise_special_tokens(earlier)), ("assistant", neutralise_special_tokens(answer))]
    messages += [("user", neutralise_special_tokens(question)), ("assistant", None)]
    numbers = iter(num_visual)

    def spell_out(role, text):
        first, *others = text.split(IMAGE_PLACEHOLDER) if role == "user" else [text]
        images = (markers.start + markers.context * next(numbers) + markers.end for _ in others)
        return first + "".join(image + other for image, other in zip(images, others, strict=True))

    spelt = [(role, text and spell_out(role, text)) for role, text in messages]
    return get_conversation(template).render(spelt)


@pytest.mark.parametrize("markers", [ImageMarkers(), ImageMarkers(start="<Image>", end="<box>")])
@pytest.mark.parametrize(("history", "question"), HISTORIES)
def test_turns_have_the_ids_of_the_whole_rendered_prompt(tokenizers, history, question, markers):
    num_images = sum(text.count(IMAGE_PLACEHOLDER) for text in [question, *(earlier for earlier, _ in history)])
    tiles_per_image = [1 + number % 3 for number in range(num_images)]
    for template in TEMPLATES:
        stop_token = get_conversation(template).stop_token
        for tokenizer in (tokenizer for tokenizer in tokenizers if stop_token in tokenizer.get_vocab()):
            conversation = ConversationTokenizer(tokenizer, template, markers=markers)
            pieces = conversation.encode_prompt(question, history=history)
            ids, labels = conversation.join(pieces, tiles_per_image, num_image_token=4)
            whole = render_whole(template, history, question, markers, [4 * tiles for tiles in tiles_per_image])
            assert ids.tolist() == tokenizer(whole)["input_ids"]
            assert set(labels.tolist()) == {-100}


def test_a_system_message_is_text_even_if_it_looks_like_more(tokenizer):
    conversation = ConversationTokenizer(tokenizer, "internvl2_5")
    [ids, *_] = conversation.encode_prompt("q", system_message="be brief <|im_end|> <image>")
    assert tokenizer.decode(ids.ids).endswith("system\nbe brief < |im_end|> <image><|im_end|>\n")


def test_images_must_be_as_many_as_placeholders(tokenizer):
    conversation = ConversationTokenizer(tokenizer, "internlm2-chat")
    with pytest.raises(ValueError, match="2 <image> placeholders for 1 images"):
        conversation.join(conversation.encode_prompt("<image><image>"), [3], num_image_token=4)


def test_a_marker_that_the_tokenizer_does_not_know_is_refused(tokenizer):
    conversation = ConversationTokenizer(tokenizer, "internlm2-chat", markers=ImageMarkers(context="<picture>"))
    with pytest.raises(ConfigError, match="does not know <picture>"):
        conversation.join(conversation.encode_prompt("q"), [], num_image_token=4)


def test_pictures_are_placed_in_the_order_of_their_placeholders():
    images = [Picture("a.png"), Picture("b.png")]
    videos = [[Picture("v.mp4", frame=3), Picture("v.mp4", frame=7)], [Picture("w.mp4", frame=0)]]
    questions, pictures = place_pictures(["<video> <image>?", "none", "<image><video>"], images, videos)
    assert questions == ["Frame1: <image>\nFrame2: <image> <image>?", "none", "<image>Frame1: <image>"]
    assert pictures == [*videos[0], *images, *videos[1]]
    assert place_pictures(["a <video> tag <image>"], images[:1]) == (["a <video> tag <image>"], images[:1])


@pytest.mark.parametrize(
    ("questions", "numbers", "message"),
    [
        (["<image>", "<image>"], (1, 0), "the 2 questions of the conversation have 2 <image> for 1 images"),
        (["<video>"], (0, 2), "the prompt has 1 <video> for 2 videos"),
    ],
)
def test_placeholders_must_match(questions, numbers, message):
    with pytest.raises(DataError, match=message):
        check_placeholders(questions, *numbers)
    check_placeholders(["a <video> tag"], 0)


def test_pictures_of_all_kinds_are_loaded_in_order(tmp_path):
    video = write_video(tmp_path / "a.mp4", 20)
    memory = Image.new("L", (30, 20))

    class Stored:
        def open(self):
            return memory

    pictures = [Picture(video, frame=12), Picture(memory), Picture(video, frame=4), Picture(Stored())]
    loaded = list(load_pictures(pictures))
    assert read_numbers([loaded[0], loaded[2]]) == [12, 4]
    assert all(image.mode == "RGB" for image in loaded)
    assert loaded[1].size == loaded[3].size == (30, 20)


def test_tiles_are_counted_from_headers(make_image):
    path = make_image("wide.png", 90, 30)
    assert Picture(path).count_tiles() == 1
    assert Picture(path, tiling=Tiling(1, 6, 30, use_thumbnail=True)).count_tiles() == 4
    assert Picture("missing.png", tiling=Tiling(1, 1, 30)).count_tiles() == 1  # needs no header
