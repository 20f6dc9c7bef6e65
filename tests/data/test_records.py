import pickle
from pathlib import Path

import pytest

from internvl.data.meta import SourceSpec
from internvl.data.records import RecordFile, parse_record
from internvl.data.video import VideoClip
from internvl.errors import DataError

from .conftest import conversation

SPEC = SourceSpec(name="things", annotation=Path("things.jsonl"), root=Path("/data"))


def test_rows_are_read_in_any_order(make_source):
    lines = [{"conversations": conversation(f"问题 {i}", f"a{i}"), "image": f"{i}.png"} for i in range(50)]
    file = RecordFile(make_source("many", lines))
    assert len(file) == 50
    for row in (49, 0, 17, 17):
        assert file[row].turns == (("user", f"问题 {row}"), ("assistant", f"a{row}"))
        assert file[row].image_paths == (file.spec.root / f"{row}.png",)


def test_blank_lines_are_no_rows_and_the_last_line_needs_no_newline(make_source):
    spec = make_source("blank", ["", {"conversations": conversation("q", "a")}, "  "])
    spec.annotation.write_bytes(spec.annotation.read_bytes() + b'{"conversations": []}')
    assert len(RecordFile(spec)) == 2


def test_a_file_survives_pickling_after_use(make_source):
    file = RecordFile(make_source("used", [{"conversations": conversation("q", "a")}]))
    assert pickle.loads(pickle.dumps((file[0], file)))[1][0] == file[0]


def test_a_broken_line_spoils_its_own_row_only(make_source):
    file = RecordFile(make_source("broken", ['{"conversations": [', {"conversations": conversation("q", "a")}]))
    with pytest.raises(DataError, match="broken, row 0: not a json line"):
        file[0]
    assert file[1].turns[0] == ("user", "q")


def test_bytes_that_are_no_utf8_spoil_their_own_row_only(make_source):
    spec = make_source("latin", [{"conversations": conversation("q", "a")}])
    spec.annotation.write_bytes(b'{"conversations": "\xe9"}\n' + spec.annotation.read_bytes())
    file = RecordFile(spec)
    with pytest.raises(DataError, match="latin, row 0"):
        file[0]
    assert file[1].turns[0] == ("user", "q")


def test_values_are_stripped_and_a_leading_answer_is_dropped():
    turns = [{"from": "gpt", "value": "hello"}, *conversation(" q \n", " a ")]
    assert parse_record({"conversations": turns}, SPEC, row=0).turns == (("user", "q"), ("assistant", "a"))


def test_a_leading_system_turn_is_the_system_message():
    turns = [{"from": "system", "value": "be brief"}, *conversation("q", "a")]
    assert parse_record({"conversations": turns}, SPEC, row=0).system_message == "be brief"


@pytest.mark.parametrize("image", [None, "", []])
def test_no_image_in_any_spelling_is_text_only(image):
    record = parse_record({"conversations": conversation("q", "a"), "image": image}, SPEC, row=0)
    assert record.image_paths == ()


def test_a_list_of_one_image_is_a_multi_image_record():
    one = parse_record({"conversations": conversation("q", "a"), "image": ["x.png"]}, SPEC, row=0)
    assert one.is_multi_image
    assert not parse_record({"conversations": conversation("q", "a"), "image": "x.png"}, SPEC, row=0).is_multi_image


@pytest.mark.parametrize(
    ("keys", "clip"), [({}, None), ({"clip": None}, None), ({"clip": [0, 2.5]}, (0.0, 2.5)), ({"image": None}, None)]
)
def test_a_video_is_found_below_the_root(keys, clip):
    record = parse_record({"conversations": conversation("q", "a"), "video": "x.mp4", **keys}, SPEC, row=0)
    assert record.video == VideoClip(Path("/data/x.mp4"), clip=clip)
    assert record.image_paths == ()


@pytest.mark.parametrize("video", [None, "", []])
def test_no_video_in_any_spelling_is_text_only(video):
    assert parse_record({"conversations": conversation("q", "a"), "video": video}, SPEC, row=0).video is None


def test_a_record_with_images_uses_its_video_only_when_a_question_places_it():
    raw = {"image": ["x.png"], "video": "x.mp4"}
    noted = parse_record({"conversations": conversation("<image>", "<video>"), **raw}, SPEC, row=0)
    placed = parse_record({"conversations": conversation("<image> <video>", "a"), **raw}, SPEC, row=0)
    assert (noted.video is None, placed.video is None) == (True, False)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "got a json list"),
        ({}, "'conversations' is nothing"),
        ({"conversations": "q"}, "'conversations' is a str"),
        ({"conversations": []}, "has 0 turns"),
        ({"conversations": ["q", "a"]}, "turn 0 is a str"),
        ({"conversations": conversation("q")}, "has 1 turns"),
        ({"conversations": conversation("q", "a", "q")}, "has 3 turns"),
        ({"conversations": [*conversation("q", "a"), *conversation("x", "b")][::-1][:2]}, "has 1 turns"),
        ({"conversations": [{"from": "human", "value": "q"}] * 2}, "turn 1 is from 'human', expected 'gpt'"),
        ({"conversations": [*conversation("q", "a"), {"from": "system", "value": "s"}]}, "turn 2 is from 'system'"),
        ({"conversations": [{"from": "bot", "value": "q"}]}, "turn 0 is from 'bot'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "turn 0 has a value of type int"),
        ({"conversations": conversation("q", " ")}, "turn 1 is an empty answer"),
        ({"conversations": conversation("q", "a"), "image": 3}, "'image' is 3"),
        ({"conversations": conversation("q", "a"), "image": ["x", None]}, "'image' is "),
        ({"conversations": conversation("q", "a"), "image": {"path": "x"}}, "'image' is "),
        ({"conversations": conversation("q", "a"), "image": "ftp://x/y"}, "begins with ftp://, expected a path"),
        ({"conversations": conversation("q", "a"), "video": "file:///x/y.mp4"}, "begins with file://"),
        ({"conversations": conversation("q", "a"), "video": ["x.mp4"]}, "'video' is .'x.mp4'., expected a path"),
        ({"conversations": conversation("q", "a"), "video": "x.mp4", "clip": [3, 1]}, "'clip' is .3, 1., expected"),
        ({"conversations": conversation("q", "a"), "video": "x.mp4", "clip": [-1, 1]}, "'clip' is "),
        ({"conversations": conversation("q", "a"), "video": "x.mp4", "clip": [0, True]}, "'clip' is "),
        ({"conversations": conversation("q", "a"), "video": "x.mp4", "clip": 5}, "'clip' is 5, expected .first second"),
    ],
)
def test_invalid_records_say_where_and_why(raw, message):
    with pytest.raises(DataError, match=f"things, row 7: .*{message}") as caught:
        parse_record(raw, SPEC, row=7)
    assert (caught.value.source, caught.value.row) == ("things", 7)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *((key, "image") for key in ("images", "Image", "IMAGE", "img", "imgs", "picture", "image_path", "imagePaths")),
        *((key, "image") for key in ("image1", "iamge", "imge", "photo_url", "image_file", "image-list", "pics")),
        *((key, "video") for key in ("videos", "Video", "video_path", "vedeo", "movie", "video_file")),
    ],
)
def test_a_key_that_looks_like_ours_is_a_problem(key, meant):
    raw = {"conversations": conversation("q", "a"), key: ["a.png"]}
    with pytest.raises(DataError, match=f"set, row 4: the key '{key}' is unknown, did you mean '{meant}'"):
        parse_record(raw, SourceSpec("set", annotation=Path()), row=4)


@pytest.mark.parametrize("key", ["conversation", "messages", "Conversations", "conversatoins", "dialog", "dialogue"])
def test_conversations_under_another_name_are_named(key):
    with pytest.raises(DataError, match=f"the key '{key}' is unknown, did you mean 'conversations'"):
        parse_record({key: conversation("q", "a")}, SourceSpec("set", annotation=Path()), row=0)


def test_a_clip_under_another_name_is_named():
    raw = {"conversations": conversation("<video> q", "a"), "video": "a.mp4", "clips": [0, 1]}
    with pytest.raises(DataError, match="the key 'clips' is unknown, did you mean 'clip'"):
        parse_record(raw, SourceSpec("set", annotation=Path()), row=0)


@pytest.mark.parametrize(
    "more",
    [
        {"id": "a", "source": "b", "width": 3, "meta": {"a": 1}, "text": "c", "question": "d", "answer": "e", "": "f"},
        {"image_id": "a", "image_size": [3, 4], "imageid": "b", "video_id": "c", "clip_score": "d", "conv_style": "e"},
        {"images": [], "Image": None, "videos": "", "num_images": [3], "image_count": 3, "img": False, "photos": 0},
        {"image": "a.png", "images": ["a.png"], "image_path": "/x/a.png", "video_path": "b.mp4"},
        {"video": "a.mp4", "images": ["frame.png"]},
    ],
)
def test_other_keys_are_allowed(more):
    question = "<video> q" if "video" in more else "q"
    record = parse_record({"conversations": conversation(question, "a")} | more, SourceSpec("s", Path()), row=0)
    assert len(record.image_paths) == ("image" in more)
