from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvl.data import encode, prompt, visuals
from internvl.data.encode import document_generator
from internvl.data.meta import SourceSpec
from internvl.data.records import parse_record
from internvl.data.storage.media import load_image
from internvl.data.tiling import Tiling
from internvl.data.transform import build_transform
from internvl.errors import ConfigError, DataError
from internvl.model.constants import IGNORE_INDEX
from internvl.model.conversation import get_conversation, neutralise_special_tokens

from .conftest import IMAGE_SIZE, TOKENS_PER_TILE, conversation
from .numbered_videos import read_numbers, tile_pictures, write_frames, write_gif, write_video

TEMPLATES = ("internlm2-chat", "Hermes-2", "internvl2_5", "phi3-chat")
QUESTIONS = [
    ("What is this?", "A cat."),
    ("What is this?\n\nAnswer  with a word.", "The cat", "Sure? 你好 ☃", "Yes, the\n second one."),
]


@pytest.fixture
def make_record(tmp_path):
    def make(*texts, **options):
        spec_options = {key: options.pop(key) for key in ("data_augment", "max_dynamic_patch") if key in options}
        spec_options |= {"dynamic_image_size": options.pop("tiled")} if "tiled" in options else {}
        spec = SourceSpec("test", annotation=tmp_path / "x.jsonl", root=tmp_path / "images", **spec_options)
        return parse_record({"conversations": conversation(*texts), **options}, spec, row=3)

    return make


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def supervised_text(tokenizer, document) -> list[str]:
    """Decoded runs of supervised tokens."""
    runs: list[list[int]] = []
    was_supervised = False
    for token, label in zip(document.input_ids.tolist(), document.labels.tolist(), strict=True):
        if label != IGNORE_INDEX:
            assert label == token
            if not was_supervised:
                runs.append([])
            runs[-1].append(token)
        was_supervised = label != IGNORE_INDEX
    return [tokenizer.decode(run).strip() for run in runs]


# Text and labels


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("texts", QUESTIONS, ids=["one pair", "two pairs"])
@pytest.mark.parametrize("kind", ["tokenizer", "prefixing_tokenizer"])
def test_ids_are_those_of_the_rendered_text(request, make_encoder, make_record, rng, kind, template, texts):
    tokenizer = request.getfixturevalue(kind)
    document = make_encoder(tokenizer=tokenizer, conversation_name=template).encode(make_record(*texts), rng)
    roles = ["user", "assistant"] * (len(texts) // 2)
    rendered = get_conversation(template).render(list(zip(roles, texts, strict=True)))
    assert document.input_ids.tolist() == tokenizer(rendered)["input_ids"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_answers_and_their_closing_tokens_are_supervised_and_nothing_else(
    tokenizer, make_encoder, make_record, rng, template
):
    document = make_encoder(conversation_name=template).encode(make_record(*QUESTIONS[1]), rng)
    stop = get_conversation(template).stop_token
    assert supervised_text(tokenizer, document) == [f"The cat{stop}", f"Yes, the\n second one.{stop}"]


def test_label_spans_of_internlm2_chat_token_by_token(tokenizer, make_encoder, make_record, rng):
    document = make_encoder().encode(make_record("q one", "a one", "q two", "a two"), rng)

    def num_tokens(text):  # as the public code counts: every piece on its own, without its <s>
        return len(tokenizer(text)["input_ids"]) - 1

    system = get_conversation("internlm2-chat").render([])
    masked = 1 + num_tokens(system + "<|im_start|>user\nq one<|im_end|><|im_start|>assistant\n")
    answer = num_tokens("a one<|im_end|>")
    between = num_tokens("<|im_start|>user\nq two<|im_end|><|im_start|>assistant\n")
    last = num_tokens("a two<|im_end|>")
    expected = [False] * masked + [True] * answer + [False] * between + [True] * last
    assert (document.labels != IGNORE_INDEX).tolist() == expected


def test_the_prompt_part_has_the_ids_of_a_prompt_at_inference(tokenizer, make_encoder, make_record, rng):
    document = make_encoder().encode(make_record("What?", "\u2581odd start"), rng)
    prompt = get_conversation("internlm2-chat").render([("user", "What?"), ("assistant", None)])
    first = int((document.labels != IGNORE_INDEX).nonzero()[0])
    assert document.input_ids[:first].tolist() == tokenizer(prompt)["input_ids"]


def test_an_answer_that_merges_with_its_role_string_is_tokenised_as_generated(make_encoder, make_record, rng):
    class Merging:
        """Words and lines are tokens, but a newline and a following z are one."""

        vocabulary: dict[str, int] = {}

        def convert_ids_to_tokens(self, ids):
            names = {number: text for text, number in self.vocabulary.items()}
            return [names[number] for number in ids]

        def __call__(self, text, add_special_tokens=True, verbose=True):
            pieces = text.replace("\nz", "|nz|").replace("\n", "|n|").replace("<", "|<").replace(">", ">|").split("|")
            merged = text.startswith("<|im_start|>assistant\nz")
            pieces = ["assistant", "\nz"] if merged else [text]
            ids = [self.vocabulary.setdefault(piece, len(self.vocabulary) + 1) for piece in pieces]
            return {"input_ids": ids if text else []}

    merging = Merging()
    document = make_encoder(tokenizer=merging).encode(make_record("q", "zebra"), rng)
    names = {number: text for text, number in merging.vocabulary.items()}
    assert [names[token] for token in document.input_ids.tolist()][-2:] == [
        "<|im_start|>assistant\n",
        "zebra<|im_end|>",
    ]


def test_a_system_turn_replaces_the_system_message(tokenizer, make_encoder, make_record, rng):
    record = make_record("q", "a")
    record = type(record)(**(vars(record) | {"system_message": "be brief <|im_end|>"}))
    text = tokenizer.decode(make_encoder().encode(record, rng).input_ids)
    assert "system\nbe brief < |im_end|><|im_end|>" in text


# Special strings


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>", "<|im_end|>", "</s>", "<s>"])
@pytest.mark.parametrize("place", ["question", "answer"])
def test_structural_tokens_in_text_are_not_obeyed(tokenizer, make_encoder, make_record, rng, token, place):
    token_id = tokenizer.convert_tokens_to_ids(token)
    texts = [f"see {token} here", "a"] if place == "question" else ["q", f"see {token} here"]

    def count(*texts):
        return make_encoder().encode(make_record(*texts), rng).input_ids.tolist().count(token_id)

    assert count(*texts) == count("q", "a")


def test_neutralising_is_readable_idempotent_and_leaves_other_markup():
    text = "<<img><image> a<b </img><box>1</box><|im_start|>"
    expected = "<< img><image> a<b < /img><box>1</box>< |im_start|>"
    assert neutralise_special_tokens(text) == expected
    assert neutralise_special_tokens(expected) == expected


# Images


def test_a_placeholder_becomes_a_span_of_visual_tokens(tokenizer, make_encoder, make_record, make_image, rng):
    make_image("wide.png", 90, 30)
    document = make_encoder().encode(make_record("look: <image>here", "a", image="wide.png"), rng)
    num_tiles = Tiling(1, 6, IMAGE_SIZE, use_thumbnail=True).count(90, 30)
    start, context, end = tokenizer.convert_tokens_to_ids(["<img>", "<IMG_CONTEXT>", "</img>"])
    ids = document.input_ids.tolist()
    first = ids.index(start)
    assert ids[first : ids.index(end) + 1] == [start, *[context] * (num_tiles * TOKENS_PER_TILE), end]
    assert num_tiles == 4
    assert document.tiles_per_image == (4,)
    assert document.image_flags.tolist() == [1] * 4
    assert document.pixel_values.shape == (4, 3, IMAGE_SIZE, IMAGE_SIZE)
    rendered = "look: <img>" + "<IMG_CONTEXT>" * (num_tiles * TOKENS_PER_TILE) + "</img>here"
    turns = [("user", rendered), ("assistant", "a")]
    assert ids == tokenizer(get_conversation("internlm2-chat").render(turns))["input_ids"]


def test_tiles_are_those_of_the_transform_in_order(make_encoder, make_record, make_image, rng):
    paths = [make_image("a.png", 60, 30, seed=1), make_image("b.png", 30, 30, seed=2)]
    document = make_encoder().encode(make_record("<image><image>", "a", image=["a.png", "b.png"]), rng)
    tiling = Tiling(1, 6, IMAGE_SIZE, use_thumbnail=True)
    expected = [build_transform(IMAGE_SIZE)(tiling.split(load_image(path))) for path in paths]
    assert torch.equal(document.pixel_values, torch.cat(expected))
    assert document.tiles_per_image == (3, 1)
    assert document.image_grids.tolist() == [[1, 2, 1, 0], [1, 1, 0, 0]]


def test_a_single_image_without_placeholder_opens_the_first_question(make_encoder, make_record, make_image, rng):
    make_image("a.png")
    encode = make_encoder().encode
    placed = encode(make_record("<image>\nq", "a", image="a.png"), np.random.default_rng(0))
    found = encode(make_record("q", "a", image="a.png"), rng)
    assert torch.equal(placed.input_ids, found.input_ids)


def test_a_single_image_may_stand_in_a_later_question(make_encoder, make_record, make_image):
    make_image("a.png")
    record = make_record("q", "a", "<image> r", "b", image="a.png")
    assert make_encoder().measure(record)[1] == 7


@pytest.mark.parametrize(
    ("texts", "images", "counts"),
    [
        (("q", "a"), ["a.png"], (0, 1)),
        (("<image><image>", "a"), ["a.png"], (2, 1)),
        (("<image><image>", "a"), "a.png", (2, 1)),
        (("<image>", "a", "<image>", "b"), ["a.png"] * 3, (2, 3)),
        (("<image>", "a"), None, (1, 0)),
        (("q", "<image>"), ["a.png"], (0, 1)),
    ],
)
def test_placeholders_and_images_must_agree(make_encoder, make_record, make_image, texts, images, counts):
    make_image("a.png")
    message = f"test, row 3: .* {counts[0]} <image> for {counts[1]} images"
    with pytest.raises(DataError, match=message):
        make_encoder().measure(make_record(*texts, image=images))


def test_a_placeholder_in_an_answer_stays_text(tokenizer, make_encoder, make_record, make_image, rng):
    make_image("a.png")
    document = make_encoder().encode(make_record("q", "the <image> tag", image="a.png"), rng)
    assert supervised_text(tokenizer, document) == ["the <image> tag<|im_end|>"]
    assert len(document.tiles_per_image) == 1


def test_an_empty_question_needs_an_image(make_encoder, make_record, make_image):
    make_image("a.png")
    assert make_encoder().measure(make_record("", "a", image="a.png"))[1] == 7
    with pytest.raises(DataError, match="turn 0 is an empty question"):
        make_encoder().measure(make_record("", "a"))


def test_text_only_documents_carry_no_tile(make_encoder, make_record, rng):
    document = make_encoder().encode(make_record("q", "a"), rng)
    assert document.pixel_values.shape == (0, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert len(document.image_flags) == len(document.image_strides) == 0
    assert document.image_strides.dtype == document.image_flags.dtype == torch.int64


def test_tiling_can_be_off_by_run_and_on_by_data_set(make_encoder, make_record, make_image):
    make_image("a.png", 90, 30)
    encoder = make_encoder(dynamic_image_size=False)
    assert encoder.measure(make_record("q", "a", image="a.png"))[1] == 1
    assert encoder.measure(make_record("q", "a", image="a.png", tiled=True))[1] == 4
    assert encoder.measure(make_record("q", "a", image="a.png", tiled=True, max_dynamic_patch=2))[1] == 3


def test_several_images_may_share_the_tile_limit(make_encoder, make_record, make_image):
    make_image("a.png", 170, 28)
    two = make_record("<image><image>", "a", image=["a.png"] * 2)
    ten = make_record("<image>" * 10, "a", image=["a.png"] * 10)
    assert make_encoder().measure(two)[1] == 2 * 7
    assert make_encoder(dynamic_max_patch=True).measure(two)[1] == 2 * 4
    assert make_encoder(dynamic_max_patch=True).measure(ten)[1] == 10


def test_augmented_tiles_follow_from_the_generator(make_encoder, make_record, make_image):
    make_image("a.png")
    record = make_record("q", "a", image="a.png", data_augment=True)

    def encode(seed):
        return make_encoder().encode(record, np.random.default_rng(seed)).pixel_values

    assert torch.equal(encode(0), encode(0))
    assert not torch.equal(encode(0), encode(1))


# Videos


@pytest.fixture
def make_video(tmp_path):
    def make(name, num_frames=30, **options):
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True)
        write = {".gif": write_gif, "": write_frames}.get(path.suffix, write_video)
        return write(path, num_frames, **options)

    return make


def test_a_video_becomes_labelled_frames(tokenizer, make_encoder, make_record, make_video, rng):
    make_video("a.mp4")
    encoder = make_encoder(min_num_frame=3, max_num_frame=3, frame_sampling="middle")
    document = encoder.encode(make_record("<video>\nWhat happens?", "a", video="a.mp4"), rng)
    frame = "<img>" + "<IMG_CONTEXT>" * TOKENS_PER_TILE + "</img>"
    question = f"Frame1: {frame}\nFrame2: {frame}\nFrame3: {frame}\nWhat happens?"
    rendered = get_conversation("internlm2-chat").render([("user", question), ("assistant", "a")])
    assert document.input_ids.tolist() == tokenizer(rendered)["input_ids"]
    assert document.tiles_per_image == (1, 1, 1)
    assert read_numbers(tile_pictures(document.pixel_values)) == [4, 14, 24]
    assert supervised_text(tokenizer, document) == ["a<|im_end|>"]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "folder"])
def test_frames_and_their_number_follow_from_the_generator(make_encoder, make_record, make_video, name):
    make_video(name)
    encoder = make_encoder(min_num_frame=2, max_num_frame=6)
    record = make_record("What happens?", "a", video=name)
    numbers = {}
    for seed in range(12):
        rng, same = np.random.default_rng(seed), np.random.default_rng(seed)
        document = encoder.encode(record, rng)
        assert encoder.measure(record, same) == (len(document.input_ids), len(document.tiles_per_image))
        numbers[seed] = read_numbers(tile_pictures(document.pixel_values))
        assert numbers[seed] == sorted(set(numbers[seed]))
        again = encoder.encode(record, np.random.default_rng(seed))
        assert torch.equal(again.pixel_values, document.pixel_values)
    assert {len(drawn) for drawn in numbers.values()} == {2, 3, 4, 5, 6}
    assert len({tuple(drawn) for drawn in numbers.values()}) == 12


def test_a_clip_shows_its_part_of_the_video(make_encoder, make_record, make_video, rng):
    make_video("a.mp4", 60)
    record = make_record("q", "a", video="a.mp4", clip=[2.0, 2.9])
    document = make_encoder(min_num_frame=5, max_num_frame=5, frame_sampling="middle").encode(record, rng)
    assert read_numbers(tile_pictures(document.pixel_values)) == [20, 22, 24, 26, 28]


def test_a_short_file_repeats_its_last_frame_and_a_folder_shows_what_it_has(make_encoder, make_record, make_video):
    encoder = make_encoder(min_num_frame=4, max_num_frame=4)
    numbers = {}
    for name in ("a.mp4", "a.gif", "folder"):
        make_video(name, 2)
        document = encoder.encode(make_record("q", "a", video=name), np.random.default_rng(0))
        numbers[name] = read_numbers(tile_pictures(document.pixel_values))
    assert numbers == {"a.mp4": [0, 1, 1, 1], "a.gif": [0, 1, 1, 1], "folder": [0, 1]}


def test_frames_are_numbered_and_take_no_steps_on_several_axes_without_a_stride(
    make_encoder, make_record, make_video, rng
):
    make_video("a.mp4", 6)
    encoder = make_encoder(rope_pos_id_version="mrope", min_num_frame=3, max_num_frame=3)
    document = encoder.encode(make_record("q", "a", video="a.mp4"), rng)
    assert document.image_grids.tolist() == [[1, 1, 0, number] for number in (1, 2, 3)]
    assert document.image_strides.tolist() == [0, 0, 0]


def test_every_frame_has_a_stride_of_its_own(make_encoder, make_record, make_video, rng):
    make_video("a.mp4", 40)
    encoder = make_encoder(
        rope_pos_id_version="v2pe_rnd", random_strides=(0.5, 1, 2), min_num_frame=30, max_num_frame=30
    )
    assert set(encoder.encode(make_record("q", "a", video="a.mp4"), rng).image_strides.tolist()) == {
        32768,
        65536,
        131072,
    }


@pytest.mark.parametrize(("tiled", "num_tiles"), [(None, 1), (False, 1), (True, 4)])
@pytest.mark.parametrize("name", ["a.mp4", "folder"])
def test_frames_are_tiled_only_if_their_data_set_says_so(
    make_encoder, make_record, make_video, rng, name, tiled, num_tiles
):
    make_video(name, size=(90, 30))
    encoder = make_encoder(min_num_frame=2, max_num_frame=2)
    options = {} if tiled is None else {"tiled": tiled}
    document = encoder.encode(make_record("q", "a", video=name, **options), rng)
    assert document.tiles_per_image == (num_tiles,) * 2
    assert document.pixel_values.shape == (2 * num_tiles, 3, IMAGE_SIZE, IMAGE_SIZE)
    sharing = make_encoder(min_num_frame=2, max_num_frame=2, dynamic_max_patch=True, max_dynamic_patch=4)
    assert sharing.measure(make_record("q", "a", video=name, tiled=True), rng)[1] == 2 * 3


def test_images_and_a_video_stand_where_the_questions_place_them(
    make_encoder, make_record, make_image, make_video, rng
):
    make_video("a.mp4")
    make_image("wide.png", 90, 30)
    make_image("square.png", 30, 30)
    texts = ("<image> then <video>", "a", "and <image>", "b")
    record = make_record(*texts, image=["wide.png", "square.png"], video="a.mp4")
    encoder = make_encoder(min_num_frame=2, max_num_frame=2, frame_sampling="middle")
    document = encoder.encode(record, rng)
    assert document.tiles_per_image == (4, 1, 1, 1)
    assert read_numbers(tile_pictures(document.pixel_values[4:6])) == [7, 22]


def test_only_the_frames_of_the_wanted_tiles_are_decoded(make_encoder, make_record, make_video, monkeypatch):
    make_video("a.mp4", 40)
    asked = []
    original = prompt.load_frames
    monkeypatch.setattr(
        prompt,
        "load_frames",
        lambda path, frames, **options: asked.append(list(frames)) or original(path, frames, **options),
    )
    encoder = make_encoder(min_num_frame=8, max_num_frame=8, frame_sampling="middle")
    record = make_record("q", "a", video="a.mp4")
    whole = encoder.encode(record, np.random.default_rng(0))
    part = encoder.encode(record, np.random.default_rng(0), tiles=range(2, 5))
    assert asked == [[2, 7, 12, 17, 22, 27, 32, 37], [12, 17, 22]]
    assert torch.equal(part.pixel_values, whole.pixel_values[2:5])
    assert torch.equal(part.input_ids, whole.input_ids)
    monkeypatch.setattr(prompt, "load_frames", None)
    assert encoder.measure(record, np.random.default_rng(0))[1] == 8  # decodes nothing


@pytest.mark.parametrize("num_free", [5, 7, 9])
def test_tiles_are_written_into_the_room_that_is_there_for_them(make_encoder, make_record, make_image, rng, num_free):
    make_image("a.png", 84, 56)
    encoder = make_encoder()
    record = make_record("q", "a", image="a.png")
    room = torch.full((num_free, 3, IMAGE_SIZE, IMAGE_SIZE), 7.0)
    document = encoder.encode(record, rng, out=room)
    assert torch.equal(document.pixel_values, encoder.encode(record, rng).pixel_values)
    assert len(document.pixel_values) == 7
    assert (document.pixel_values.data_ptr() == room.data_ptr()) == (num_free >= 7)
    assert (room[7 if num_free >= 7 else 0 :] == 7).all()


@pytest.mark.parametrize(
    ("texts", "num_placeholders"), [(("<video><video>", "a"), 2), (("<video>", "a", "<video>", "b"), 2)]
)
def test_one_video_has_one_placeholder(make_encoder, make_record, make_video, rng, texts, num_placeholders):
    make_video("a.mp4")
    with pytest.raises(DataError, match=f"test, row 3: .* {num_placeholders} <video> for 1 videos"):
        make_encoder().measure(make_record(*texts, video="a.mp4"), rng)


def test_a_video_tag_is_text_where_there_is_no_video(tokenizer, make_encoder, make_record, rng):
    document = make_encoder().encode(make_record("What is a <video> tag?", "a"), rng)
    assert "What is a <video> tag?" in tokenizer.decode(document.input_ids)


@pytest.mark.parametrize("name", ["missing.mp4", "broken.mp4", "empty"])
def test_a_bad_video_is_an_error_of_its_record(make_encoder, make_record, tmp_path, rng, name):
    folder = tmp_path / "images"
    (folder / "empty").mkdir(parents=True)
    (folder / "broken.mp4").write_bytes(b"no video" * 99)
    with pytest.raises(DataError, match=f"test, row 3: video .*{name}"):
        make_encoder().measure(make_record("q", "a", video=name), rng)


def test_checking_pictures_decodes_all_that_is_shown_and_nothing_else(
    make_encoder, make_record, make_image, make_video, monkeypatch
):
    make_image("a.png")
    make_video("a.mp4")
    texts = ("<image> <video>", "a", "<image>", "too long " * 400)
    record = make_record(*texts, image=["a.png", "none.png"], video="a.mp4")
    encoder = make_encoder(min_num_frame=2, max_num_frame=6, max_seq_length=600)
    with pytest.raises(DataError, match="not found"):
        encoder.check_pictures(record, np.random.default_rng(1))
    make_image("none.png")
    loaded = []
    load_pictures = prompt.load_pictures

    def note(pictures, **options):
        loaded.append([picture.frame for picture in pictures])
        return load_pictures(pictures, **options)

    monkeypatch.setattr(encode, "load_pictures", note)
    monkeypatch.setattr(visuals, "load_pictures", note)
    encoder.check_pictures(record, np.random.default_rng(1))
    encoder.encode(record, np.random.default_rng(1))
    assert loaded[0] == loaded[1]
    assert loaded[0][0] is None
    assert len(loaded[0]) == 1 + encoder.measure(record, np.random.default_rng(1))[1] - 7


def test_measuring_a_video_needs_the_generator(make_encoder, make_record, make_video):
    make_video("a.mp4")
    with pytest.raises(ValueError, match="pass rng="):
        make_encoder().measure(make_record("q", "a", video="a.mp4"))


# Length


def test_trailing_pairs_are_dropped_whole_with_their_images(make_encoder, make_record, make_image, rng):
    make_image("a.png")
    texts = ("<image> first", "one", "<image> second", "two")
    record = make_record(*texts, image=["a.png", "a.png"])
    num_tokens, num_tiles = make_encoder().measure(record)
    assert num_tiles == 14
    short = make_encoder(max_seq_length=num_tokens - 1)
    expected = make_encoder().encode(make_record(*texts[:2], image=["a.png"]), rng)
    document = short.encode(record, np.random.default_rng(0))
    assert torch.equal(document.input_ids, expected.input_ids)
    assert torch.equal(document.labels, expected.labels)
    assert document.tiles_per_image == (7,)
    assert short.measure(record) == (len(expected.input_ids), 7)
    assert make_encoder(max_seq_length=num_tokens).measure(record) == (num_tokens, 14)


def test_a_long_document_may_be_an_error_instead(make_encoder, make_record, make_image):
    make_image("a.png", 90, 30)
    record = make_record("<image>q", "a", "<image>r", "b", image=["a.png"] * 2)
    num_tokens, num_tiles = make_encoder().measure(record)
    assert make_encoder(max_seq_length=num_tokens, truncation="error").measure(record) == (num_tokens, num_tiles)
    assert make_encoder(max_seq_length=num_tokens - 1).measure(record)[1] == num_tiles // 2
    with pytest.raises(
        DataError, match=rf"test, row 3: its first turns need {num_tokens} tokens, .* \(truncation drop"
    ):
        make_encoder(max_seq_length=num_tokens - 1, truncation="error").measure(record)


def test_a_first_pair_that_is_too_long_is_an_error(make_encoder, make_record):
    record = make_record("q " * 50, "a")
    num_tokens, _ = make_encoder().measure(record)
    with pytest.raises(DataError, match=f"need {num_tokens} tokens, expected at most max_seq_length {num_tokens - 1}"):
        make_encoder(max_seq_length=num_tokens - 1).measure(record)


WORDS = st.text(alphabet="ab <>\n\u4f60|imgend_startIMGCONTEXT/", max_size=20)


@given(
    texts=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3),
    num_images=st.integers(0, 3),
    max_seq_length=st.integers(60, 400),
    template=st.sampled_from(TEMPLATES),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_measuring_agrees_with_encoding(
    make_encoder, make_record, make_image, texts, num_images, max_seq_length, template
):
    sizes = [(30, 30), (100, 40), (20, 90)]
    names = [make_image(f"{width}.png", width, height).name for width, height in sizes[:num_images]]
    pairs = [
        text
        for index, (q, a) in enumerate(texts)
        for text in ("<image>" * (num_images * (index == 0)) + q + ".", a + ".")
    ]
    record = make_record(*pairs, image=names)
    encoder = make_encoder(conversation_name=template, max_seq_length=max_seq_length)
    try:
        num_tokens, num_tiles = encoder.measure(record)
    except DataError:
        with pytest.raises(DataError):
            encoder.encode(record, np.random.default_rng(0))
        return
    document = encoder.encode(record, np.random.default_rng(0))
    assert len(document.input_ids) == len(document.labels) == num_tokens <= max_seq_length
    assert sum(document.tiles_per_image) == len(document.pixel_values) == len(document.image_flags) == num_tiles
    context = encoder.text.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert int((document.input_ids == context).sum()) == num_tiles * TOKENS_PER_TILE
    assert bool((document.labels != IGNORE_INDEX).any())


# Strides


def strides(encoder, record, seed=0):
    return encoder.encode(record, np.random.default_rng(seed)).image_strides.tolist()


@pytest.fixture
def many_images(make_record, make_image):
    make_image("a.png")
    return make_record("<image>" * 40, "a", image=["a.png"] * 40)


def test_default_positions_have_the_stride_of_the_tokens_of_a_tile(make_encoder, many_images):
    assert strides(make_encoder(), many_images) == [TOKENS_PER_TILE * 65536] * 40


@pytest.mark.parametrize("stride", [1, 16, 0.25, Fraction(1, 64)])
def test_a_fixed_stride_is_carried_in_units(make_encoder, many_images, stride):
    encoder = make_encoder(rope_pos_id_version="v2pe_fix", rope_pos_id_stride=stride)
    assert strides(encoder, many_images) == [int(stride * 65536)] * 40


def test_random_strides_are_drawn_per_image_and_reproducible(make_encoder, many_images):
    encoder = make_encoder(rope_pos_id_version="v2pe_rnd", random_strides=(0.5, 1, 2))
    drawn = strides(encoder, many_images)
    assert set(drawn) == {32768, 65536, 131072}
    assert drawn == strides(encoder, many_images)
    assert drawn != strides(encoder, many_images, seed=1)


def test_random_strides_can_be_drawn_once_per_sample(make_encoder, many_images):
    encoder = make_encoder(rope_pos_id_version="v2pe_rnd", rope_pos_id_rnd_scope="sample")
    drawn = [strides(encoder, many_images, seed=seed) for seed in range(20)]
    assert all(len(set(of_sample)) == 1 for of_sample in drawn)
    assert len({of_sample[0] for of_sample in drawn}) > 3


def test_the_generator_of_a_document_depends_on_everything_that_names_it():
    base = {"epoch": 0, "source": "a", "row": 5, "repeat": 0}

    def draw(seed=0, **change):
        return document_generator(seed, **(base | change)).integers(2**62)

    assert draw() == draw()
    others = {draw(1), draw(epoch=1), draw(source="b"), draw(row=6), draw(repeat=1)}
    assert len(others | {draw()}) == 6


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_pos_id_version": "v2pe"}, "unknown rope_pos_id_version 'v2pe'"),
        ({"rope_pos_id_version": "v2pe_fix"}, "needs rope_pos_id_stride"),
        ({"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0}, "positive"),
        ({"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": -4}, "positive"),
        ({"rope_pos_id_version": "v2pe_rnd", "random_strides": ()}, "random_strides is empty"),
        ({"rope_pos_id_version": "v2pe_rnd", "random_strides": (1, 1 / 3)}, "multiple of 1/65536"),
        ({"truncation": "cut"}, "truncation is 'cut', expected 'drop_turns' or 'error'"),
        ({"rope_pos_id_rnd_scope": "row"}, "rope_pos_id_rnd_scope is 'row'"),
        ({"min_dynamic_patch": 7}, "min_dynamic_patch and max_dynamic_patch are 7 and 6"),
        ({"min_num_frame": 21}, "min_num_frame and max_num_frame are 21 and 20"),
        ({"min_num_frame": 0}, "min_num_frame and max_num_frame are 0 and 20"),
        ({"frame_sampling": "all"}, "frame sampling is 'all'"),
        ({"normalize_type": "none"}, "normalize_type is 'none'"),
        ({"conversation_name": "vicuna"}, "unknown conversation template 'vicuna'"),
    ],
)
def test_wrong_options_are_refused_at_once(make_encoder, options, message):
    with pytest.raises(ConfigError, match=message):
        make_encoder(**options)


def test_a_tokenizer_without_image_tokens_is_refused(make_encoder, tokenizer):
    bare = type(tokenizer)(tokenizer.vocab_file)
    with pytest.raises(ConfigError, match="does not know <img>"):
        make_encoder(tokenizer=bare)
