"""Damaged subtitles: cues with finite times, or a DataError that names the file."""

import math

import pytest

from eval.tasks.subtitles import read_subtitles
from internvl.errors import DataError
from tests.fuzz.mutations import list_damaged

CUE = "{0}\n00:0{0}:01,000 --> 00:0{0}:02,500 X1:10\n<i>Zeile</i> 图 {{\\an8}} x < 5\n\n"
SRT = "".join(CUE.format(number) for number in range(1, 8))
WEBVTT = "WEBVTT\n\nNOTE a\n\n" + SRT.replace(",", ".")


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("codec", ["utf-8", "utf-16"])
@pytest.mark.parametrize("text", [SRT, SRT.replace("\n", "\r\n"), WEBVTT], ids=["srt", "crlf", "webvtt"])
def test_damaged_subtitles_are_cues_or_errors(tmp_path, text, codec, count):
    path = tmp_path / "film.srt"
    num_cues, errors = 0, []
    for content in list_damaged(text.encode(codec), seed=1, count=count):
        path.write_bytes(content)
        try:
            cues = read_subtitles(path)
        except DataError as error:
            errors.append(str(error))
            continue
        num_cues += len(cues)
        assert all(math.isfinite(cue.start + cue.end) and cue.text.strip() and "\n" not in cue.text for cue in cues)
    assert num_cues > 0
    assert all("film.srt" in error for error in errors)
