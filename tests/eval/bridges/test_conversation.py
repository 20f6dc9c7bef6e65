"""Messages of other suites as questions to a session."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from eval.bridges.conversation import Message, Part, ask, build_question, join_parts
from internvl.data.video import VideoClip
from internvl.errors import ConfigError
from internvl.infer.flags import from_options
from internvl.infer.question import Question
from internvl.infer.settings import InferenceSettings
from internvl.model.scaling import parse_rope_scaling


def text(content):
    return Part("text", content)


def user(*parts):
    return Message("user", parts)


def test_pictures_stay_where_they_are_among_the_text():
    prompt, images, videos = join_parts(
        [text("First:"), Part("image", "a.png"), text("Second:"), Part("image", "b.png")]
    )
    assert prompt == "First:\n<image>\nSecond:\n<image>\n"
    assert images == [Path("a.png"), Path("b.png")]
    assert videos == []


def test_neighbouring_pictures_have_a_line_each():
    assert join_parts([Part("image", "a"), Part("image", "b"), text("q")])[0] == "<image>\n<image>\nq"


def test_a_text_that_places_its_pictures_keeps_them():
    prompt, images, _ = join_parts([Part("image", "a"), Part("image", "b"), text("<image> or <image>?")])
    assert prompt == "<image> or <image>?"
    assert len(images) == 2


@pytest.mark.parametrize("written", ["<image> <image>", "no <video> here", "<image>"])
def test_other_placeholders_in_a_text_are_only_text(written):
    parts = [text(written)] if written == "<image>" else [Part("image", "a"), text(written)]
    prompt, images, videos = join_parts(parts)
    assert prompt.count("<image>") == len(images)
    assert prompt.count("<video>") == len(videos) == 0
    assert written.replace("<", "").replace(">", "") in prompt


def test_videos_are_files_or_parts_of_them():
    clip = VideoClip("v.mp4", clip=(1.0, 2.0))
    prompt, _, videos = join_parts([Part("video", "file:///x/v.mp4"), Part("video", clip), text("q")])
    assert prompt == "<video>\n<video>\nq"
    assert videos == [VideoClip(Path("/x/v.mp4")), clip]


def test_a_picture_in_memory_is_taken_as_it_is():
    _, [image], _ = join_parts([Part("image", Image.new("L", (5, 4)))])
    assert (image.mode, image.size) == ("RGB", (5, 4))


@pytest.mark.parametrize("part", [Part("image", 5), Part("video", [1, 2]), Part("image", None)])
def test_what_cannot_be_opened_is_refused(part):
    with pytest.raises(ConfigError, match="must be a file"):
        join_parts([part])


def test_earlier_turns_become_the_history():
    messages = [
        Message("system", (text("Be brief."),)),
        user(Part("image", "a"), text("one?")),
        Message("assistant", (text("yes"),)),
        user(text("two?"), Part("image", "b")),
    ]
    assert build_question(messages) == Question(
        prompt="two?\n<image>\n",
        images=(Path("a"), Path("b")),
        history=(("<image>\none?", "yes"),),
        system_message="Be brief.",
    )


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [Message("system", (text("x"),))],
        [user(text("a")), user(text("b"))],
        [Message("assistant", (text("a"),))],
        [user(text("a")), Message("assistant", (text("Best option: ("),))],
        [Message("tool", (text("a"),))],
    ],
)
def test_conversations_that_do_not_end_in_a_question_are_refused(messages):
    with pytest.raises(ConfigError, match="message"):
        build_question(messages)


def test_options_may_be_text():
    options = {
        "rope_pos_id_version": "v2pe_fix",
        "rope_pos_id_stride": "1/4",
        "max_num": "2",
        "num_frames": 3,
        "rope_scaling": "yarn:4",
        "kv_cache": None,
    }
    settings = from_options(InferenceSettings, options)
    assert settings == InferenceSettings(
        "v2pe_fix", 0.25, max_num=2, num_frames=3, rope_scaling=parse_rope_scaling("yarn:4")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_pos_id_stride": "many"}, "expected a number"),
        ({"max_num": "0"}, "at least 1"),
        ({"num_frames": "x"}, "whole number"),
        ({"dtype": "int4"}, "--dtype is 'int4', expected one of float32"),
        ({"rope_scaling": "odd:4"}, "odd"),
        ({"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": "-1"}, "stride"),
        ({"strides": 4}, "unknown options strides; expected some of rope_pos_id_version"),
    ],
)
def test_malformed_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        from_options(InferenceSettings, options)


def test_too_little_memory_costs_one_answer(caplog):
    class Full:
        def ask(self, *args, **options):
            raise torch.OutOfMemoryError("no memory")

    assert ask(Full(), Question("q"), max_new_tokens=4) == ""
    assert "out of memory" in caplog.text
