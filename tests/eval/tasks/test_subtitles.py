import codecs

import pytest

from eval.tasks.subtitles import read_subtitles
from internvl.errors import DataError

SRT = """1
00:00:01,000 --> 00:00:02,500
Hello <i>there</i>

2
00:00:03,000 --> 00:00:04,000
if x < 5 and y > 3 then

3
00:00:05,000 --> 00:00:06,000 X1:10 X2:20
last
"""
CUES = [(1.0, 2.5, "Hello there"), (3.0, 4.0, "if x < 5 and y > 3 then"), (5.0, 6.0, "last")]
TWO_CUES = [(1.0, 2.5, "one"), (3.0, 4.0, "two")]


@pytest.fixture
def read(tmp_path):
    def read_content(content: str | bytes):
        path = tmp_path / "film.srt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_subtitles(path)

    return read_content


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_line_ends_and_encodings_do_not_matter(read, ends, codec):
    assert read(SRT.replace("\n", ends).replace("last", "最后").encode(codec)) == [*CUES[:2], (5.0, 6.0, "最后")]


def test_big_endian_text_is_read(read):
    assert read(codecs.BOM_UTF16_BE + SRT.encode("utf-16-be")) == CUES


@pytest.mark.parametrize("codec", ["gbk", "big5", "utf-16-le"])
def test_other_encodings_are_refused_with_the_name(read, codec):
    with pytest.raises(DataError, match=r"film\.srt: .*; convert (it|the file), for example with `iconv"):
        read(SRT.replace("last", "最後一行中文字幕").encode(codec))


@pytest.mark.parametrize(
    "content",
    [
        "1\n00:00:01,000 --> 00:00:02,500\none\n2\n00:00:03,000 --> 00:00:04,000\ntwo",
        "00:00:01,000 --> 00:00:02,500\none\n00:00:03,000 --> 00:00:04,000\ntwo\n\n\n",
        "\n\n1\n0:0:1.0 --> 0:0:2.5\none\n\n \n2 \n 00:00:03,000  -->  00:00:04,000 \n\ntwo\n",
        "1\n00:01,000-->00:02,500\none\n\n2\n00:03 --> 00:04\ntwo",
        "WEBVTT\n\nNOTE no cue\n\n00:01.000 --> 00:02.500 align:start line:0\n<v Ann>one</v>\n\nNOTE two\nlines\n\n"
        "name\n00:03.000 --> 00:04.000\n<c.red>t<00:03.500>wo</c>\n",
    ],
    ids=["no blank lines", "no numbers", "blanks", "no hours", "WebVTT"],
)
def test_cues_begin_at_time_lines(read, content):
    assert read(content) == TWO_CUES


def test_blank_lines_and_numbers_belong_to_the_text(read):
    first, second = "00:00:01,000 --> 00:00:02,500", "01:00:03,000 --> 01:00:04,001"
    assert read(f"1\n{first}\nline one\n\nline two\n\n42\n2\n{second}\n7\n") == [
        (1.0, 2.5, "line one line two 42"),
        (3603.0, 3604.001, "7"),
    ]


def test_a_number_is_text_where_cues_have_none(read):
    assert read("00:01 --> 00:02\n42\n00:03 --> 00:04\ntwo\n") == [(1.0, 2.0, "42"), (3.0, 4.0, "two")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"{\an8}<b>a</b> <U>b</U><font color='#fff' size=3>c</font>{\pos(1,2)}<br>", "a bc<br>"),
        ("a < b > c, <3 and >_<", "a < b > c, <3 and >_<"),
        ("list<int> x; #include <stdio.h>", "list<int> x; #include <stdio.h>"),
        ("{not} a tag, <i and u>", "{not} a tag, <i and u>"),
        ("see 00:00:01,000 --> 00:00:02,000", "see 00:00:01,000 --> 00:00:02,000"),
        ("a <- b -> c --> d", "a <- b -> c --> d"),
        ("<i></i> \n", ""),
    ],
)
def test_only_tags_are_taken_out(read, text, expected):
    cues = read(f"1\n00:00:01,000 --> 00:00:02,000\n{text}\n")
    assert [cue.text for cue in cues] == ([expected] if expected else [])


@pytest.mark.parametrize("content", ["", "\n \n", "WEBVTT\n"])
def test_a_file_without_text_has_no_cues(read, content):
    assert read(content) == []


@pytest.mark.parametrize("content", ["<html>", "[Script Info]\nDialogue: 0,0:00:01.00,0:00:02.00,x", "{1}{25}text"])
def test_text_without_time_lines_is_refused(read, content):
    with pytest.raises(DataError, match=r"film\.srt: it has no line such as 00:00:01,000 --> 00:00:02,500"):
        read(content)
