"""Which files are opened as videos, which of their streams is shown, and what is an error of the file."""

import errno
import os
import resource
import select
import socket
import time

import av
import numpy as np
import pytest

from internvl.data.video import VideoInfo, load_frames, opening, read_video_info
from internvl.errors import DataError

from .numbered_videos import encode_frames, read_numbers, write_video

COVER = av.stream.Disposition.attached_pic
PIXEL_FORMATS = {"png": "rgb24", "mjpeg": "yuvj420p", "mpeg4": "yuv420p"}

# Streams


def write_streams(path, streams, rate=10):
    """Write a video of several streams: (codec, number of frames, size, disposition) of each."""
    with av.open(str(path), "w") as container:
        made = []
        for codec, num_frames, size, disposition in streams:
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height = size
            stream.pix_fmt = PIXEL_FORMATS[codec]
            stream.disposition = disposition
            made.append((stream, num_frames, size))
        for stream, num_frames, size in made:
            for packet in encode_frames(stream, range(num_frames), size=size):
                container.mux(packet)
    return path


STILL, FILM = ("mjpeg", 1, (16, 12), 0), ("mpeg4", 20, (64, 48), 0)
SMALL_FILM = ("mpeg4", 3, (16, 12), 0)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov", "avi", "ts"])
@pytest.mark.parametrize("streams", [(STILL, FILM), (FILM, STILL), (STILL, STILL, FILM)], ids=["1st", "2nd", "two"])
def test_a_film_is_shown_instead_of_a_still_beside_it(tmp_path, suffix, streams):
    path = write_streams(tmp_path / f"a.{suffix}", streams)
    info = read_video_info(path)
    assert (info.num_frames, info.width, info.height) == (20, 64, 48)
    assert read_numbers(load_frames(path, [0, 7, 19])) == [0, 7, 19]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_of_several_films_the_one_that_ffmpeg_rates_best_is_shown(tmp_path, suffix):
    path = write_streams(tmp_path / f"a.{suffix}", [SMALL_FILM, (*FILM[:3], av.stream.Disposition.default)])
    with av.open(str(path)) as container:
        best = container.streams.best("video").codec_context.width
    assert read_video_info(path).width == best


def test_of_stills_alone_one_is_shown(tmp_path):
    assert read_video_info(write_streams(tmp_path / "a.mkv", [STILL, STILL])).num_frames == 1


@pytest.mark.parametrize("codec", ["png", "mjpeg"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_cover_beside_a_film_is_left_out(tmp_path, codec, is_first):
    cover = (codec, 1, (128, 96), COVER)
    path = write_streams(tmp_path / "a.mp4", [cover, FILM] if is_first else [FILM, cover])
    assert read_numbers(load_frames(path, range(20))) == [*range(20)]


def write_sound(path, *, has_cover=False):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        if has_cover:
            cover = container.add_stream("png")
            cover.width = cover.height = 16
            cover.pix_fmt = "rgb24"
            cover.disposition = COVER
            for packet in encode_frames(cover, [0], size=(16, 16)):
                container.mux(packet)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    return path


@pytest.mark.parametrize(("has_cover", "kinds"), [(False, "audio"), (True, "audio, video")])
def test_sound_with_or_without_a_cover_is_no_video(tmp_path, has_cover, kinds):
    path = write_sound(tmp_path / "a.mp4", has_cover=has_cover)
    with pytest.raises(DataError, match=rf"no video stream \(streams: {kinds}\)"):
        read_video_info(path)


# Files that name others

PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{url}/a.ts\n#EXT-X-ENDLIST\n",
    "local m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\na.ts\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile a.ts\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT4S"><Period><AdaptationSet mimeType="video/mp2t"><Representation id="0" '
    'bandwidth="1"><BaseURL>{url}/a.ts</BaseURL></Representation></AdaptationSet></Period></MPD>\n',
    "xspf": "<playlist><trackList><track><location>{url}/a.ts</location></track></trackList></playlist>\n",
    "rtsp": "[Reference]\nRef1={url}/a.ts\n",
}


@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "sdp", "mpd"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_are_refused_at_once_and_nothing_else_is_read(tmp_path, kind, suffix):
    write_video(tmp_path / "a.ts", 5)
    path = tmp_path / f"list.{suffix}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        path.write_text(PLAYLISTS[kind].replace("{url}", f"http://127.0.0.1:{port}").replace("{port}", str(port)))
        start = time.monotonic()
        with pytest.raises(DataError, match=rf"list\.{suffix} cannot be read"):
            read_video_info(path)
        assert time.monotonic() - start < 1
        assert select.select([server], [], [], 0)[0] == []  # nobody asked


# Errors

RAISED_BY_LIBRARIES = [
    av.error.InvalidDataError(1, "Invalid data found"),
    av.error.OSError(errno.EIO, "Input/output error"),
    av.error.OSError(errno.EMFILE, "Too many open files"),
    av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"),
    av.error.EOFError(1, "End of file"),
    av.error.ExternalError(1, "Generic error in an external library"),
    ValueError("bad"),
    RuntimeError(),
    AssertionError(),
    OverflowError("value too large to convert to int"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ZeroDivisionError("Fraction(1, 0)"),
]


@pytest.mark.parametrize("error", RAISED_BY_LIBRARIES, ids=lambda error: type(error).__name__)
def test_whatever_a_decoder_raises_is_an_error_of_the_file(tmp_path, monkeypatch, error):
    path = write_video(tmp_path / "a.mp4", 3)
    frames = load_frames(path, [0, 2])
    assert read_numbers([next(frames)]) == [0]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(opening.av, "open", fail)
    with pytest.raises(DataError, match=r"a\.mp4 cannot be read: .+; replace the file or remove its record") as caught:
        list(load_frames(path, [1]))
    assert caught.value.__cause__ is error


def test_too_many_open_files_are_no_error_of_the_file(tmp_path):
    path = write_video(tmp_path / "a.mp4", 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            read_video_info(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    assert isinstance(read_video_info(path), VideoInfo)
