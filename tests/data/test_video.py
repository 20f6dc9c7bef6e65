"""Video files made here, whose pictures tell the numbers of their frames."""

import struct
from dataclasses import replace

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from internvl.data.video import (
    VideoClip,
    VideoInfo,
    check_sampling,
    choose_frames,
    decoding,
    find_clip,
    headers,
    label_frames,
    list_frames,
    load_frames,
    read_video_info,
    sample_at_rate,
    sample_frames,
    sample_intervals,
    sample_segments,
)
from internvl.errors import ConfigError, DataError

from .numbered_videos import read_numbers, write_frames, write_gif, write_video

NUM_FRAMES = 40
WRITERS = {
    "mpeg4.mp4": {"codec": "mpeg4", "gop": 5},
    "bframes.mp4": {"codec": "mpeg4", "gop": 10, "max_b_frames": 2},
    "h264.mp4": {"codec": "libx264", "gop": 8},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 5},
    "mpeg4.ts": {"codec": "mpeg4", "gop": 6, "max_b_frames": 2},
    "vp8.webm": {"codec": "libvpx", "gop": 7},
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 12},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One video per container and codec; codecs that this FFmpeg cannot write are left out."""
    folder = tmp_path_factory.mktemp("videos")
    made = {
        name: write_video(folder / name, NUM_FRAMES, **options)
        for name, options in WRITERS.items()
        if options["codec"] in av.codecs_available
    }
    made["animated.gif"] = write_gif(folder / "animated.gif", NUM_FRAMES)
    made["folder"] = write_frames(folder / "folder", NUM_FRAMES)
    assert {"mpeg4.mp4", "animated.gif", "folder"} < set(made)
    return made


def seen(path, indices):
    return read_numbers(load_frames(path, indices))


# Which frames


def test_middle_frames_are_those_of_the_public_rule():
    # Borders of linspace(0, 10, 4) cut to whole numbers: 0 3 6 10.
    assert sample_intervals(10, 3) == [1, 4, 7]
    assert sample_intervals(8, 4) == [0, 2, 4, 6]


def test_a_short_video_repeats_its_last_frame_and_a_folder_does_not():
    options = {"method": "middle", "min_num": 5, "max_num": 5, "rng": np.random.default_rng(0)}
    assert sample_frames(3, **options) == [0, 1, 2, 2, 2]
    assert sample_frames(3, **options, is_padded=False) == [0, 1, 2]


def test_random_frames_come_from_all_frames_of_every_interval():
    rng = np.random.default_rng(0)
    drawn = np.array([sample_intervals(10, 3, rng=rng) for _ in range(200)])
    assert [set(column) for column in drawn.T.tolist()] == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8, 9}]


def test_segments_are_those_of_the_mvbench_evaluation():
    assert sample_segments(0, 31, 4) == [3, 11, 19, 26]  # segments of 7.75: 3.875 + 0, 8, 16 (15.5), 23
    assert sample_segments(5, 5, 3) == [5, 5, 5]


def test_frames_at_a_rate_stand_in_the_middle_of_their_gaps():
    assert sample_at_rate(100, fps=10, rate=2) == list(range(2, 100, 5))
    assert sample_at_rate(30, fps=30, rate=30) == list(range(30))
    assert sample_at_rate(30, fps=30, rate=90) == list(range(30))
    assert sample_at_rate(4, fps=10, rate=1) == []


def test_a_rate_is_held_within_the_limits_without_cutting_off_the_end():
    options = {"fps": 10.0, "min_num": 4, "max_num": 8, "rng": np.random.default_rng(0)}
    assert sample_frames(60, method="fps1", **options) == [5, 15, 25, 35, 45, 55]
    assert sample_frames(600, method="fps1", **options) == [37 + 75 * number for number in range(8)]
    assert sample_frames(8, method="fps1", **options) == [0, 2, 4, 6]
    with pytest.raises(DataError, match="no frame rate, which frame sampling fps1 needs"):
        sample_frames(8, method="fps1", **(options | {"fps": None}))


@given(
    num_frames=st.integers(1, 5000),
    limits=st.tuples(st.integers(1, 40), st.integers(0, 40)),
    method=st.sampled_from(["rand", "middle", "uniform", "fps0.5", "fps7"]),
    fps=st.sampled_from([0.3, 1.0, 23.976, 60.0]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_sampled_frames_exist_ascend_keep_the_limits_and_follow_from_the_seed(num_frames, limits, method, fps, seed):
    min_num, max_num = limits[0], sum(limits)

    def sample(is_padded):
        rng = np.random.default_rng(seed)
        options = {"min_num": min_num, "max_num": max_num, "fps": fps, "is_padded": is_padded}
        return sample_frames(num_frames, method=method, rng=rng, **options)

    indices = sample(True)
    assert indices == sample(True)
    assert all(0 <= index < num_frames for index in indices)
    assert indices == sorted(indices)
    assert min_num <= len(indices) <= max_num
    if method != "uniform":
        distinct = indices[: min(len(indices), num_frames)]
        assert len(set(distinct)) == len(distinct)
        assert set(indices[len(distinct) :]) <= {num_frames - 1}
        assert sample(False) == distinct


@given(num_frames=st.integers(1, 500), num_wanted=st.integers(1, 60), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_intervals_cover_a_video_evenly(num_frames, num_wanted, seed):
    length = num_frames / min(num_wanted, num_frames)
    for rng in (None, np.random.default_rng(seed)):
        indices = sample_intervals(num_frames, num_wanted, rng=rng)
        for number, index in enumerate(indices[:num_frames]):
            assert int(length * number) <= index < length * (number + 1)


def test_the_number_of_frames_is_drawn_from_both_limits():
    rng = np.random.default_rng(0)
    options = {"method": "rand", "min_num": 4, "max_num": 6, "rng": rng}
    assert {len(sample_frames(100, **options)) for _ in range(60)} == {4, 5, 6}


@pytest.mark.parametrize("method", ["random", "fps", "fps0", "fps-1", "fps1e3", ""])
def test_unknown_sampling_is_refused(method):
    with pytest.raises(ConfigError, match="expected rand, middle, uniform, or fps and a rate"):
        check_sampling(method)


def test_frames_are_labelled_line_by_line():
    assert label_frames(2) == "Frame1: <image>\nFrame2: <image>"


# Headers


@pytest.mark.parametrize("name", [*WRITERS, "animated.gif", "folder"])
def test_a_header_gives_frames_rate_duration_and_size(files, name):
    if name not in files:
        pytest.skip(f"this FFmpeg writes no {WRITERS[name]['codec']}")
    info = read_video_info(files[name])
    assert (info.num_frames, info.width, info.height) == (NUM_FRAMES, 64, 48)
    if name == "folder":
        assert info.fps is info.duration is None
    else:
        assert info.fps == pytest.approx(10)
        assert info.duration == pytest.approx(4, abs=0.06)


def test_an_unchanged_file_is_opened_once_and_a_changed_one_again(tmp_path, monkeypatch):
    opened = []
    original = av.open
    monkeypatch.setattr(headers.av, "open", lambda *words, **options: opened.append(1) or original(*words, **options))
    path = write_video(tmp_path / "a.mp4", 6)
    assert [read_video_info(path).num_frames for _ in range(3)] == [6, 6, 6]
    assert len(opened) == 2  # one of them wrote it
    write_video(path, 9)
    assert read_video_info(path).num_frames == 9


def test_a_folder_is_sorted_by_numbers(tmp_path):
    for name in ("f10.jpg", "f9.png", "F1.jpg", "notes.txt", "._f1.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="PNG")
    assert [path.name for path in list_frames(tmp_path)] == ["F1.jpg", "f9.png", "f10.jpg"]


# Pictures


@pytest.mark.parametrize("name", [*WRITERS, "animated.gif", "folder"])
@pytest.mark.parametrize(
    "indices",
    [range(NUM_FRAMES), [0, 3, 4, 21, 39], [17, 17, 17], [30, 7, 7, 39, 0]],
    ids=["all", "few", "same", "back"],
)
def test_pictures_are_those_of_the_wanted_frames(files, name, indices):
    if name not in files:
        pytest.skip(f"this FFmpeg writes no {WRITERS[name]['codec']}")
    assert seen(files[name], list(indices)) == list(indices)


def test_few_frames_of_a_long_video_are_sought_and_not_decoded_through(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", 600, gop=10)
    decoded = []
    original = decoding._find_frame

    def counting(frames, *rest):
        return original((decoded.append(1) or frame for frame in frames), *rest)

    monkeypatch.setattr(decoding, "_find_frame", counting)
    assert seen(path, [5, 295, 599]) == [5, 95, 99]
    assert len(decoded) <= 30


def test_one_frame_is_held_at_a_time(files):
    frames = load_frames(files["mpeg4.mp4"], list(range(NUM_FRAMES)))
    first = next(frames)
    assert read_numbers([first, next(frames)]) == [0, 1]
    frames.close()


def test_a_seek_that_leads_past_the_frame_starts_again(files, monkeypatch):
    original = decoding.read_index

    def misleading(*stamp):
        index = original(*stamp)
        return replace(index, key_seeks=np.where(index.key_times > 0, index.key_times[-1], 0))

    monkeypatch.setattr(decoding, "read_index", misleading)
    assert seen(files["mpeg4.mp4"], [2, 12, 39]) == [2, 12, 39]


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_clips_follow_the_clock_where_the_rate_varies(tmp_path, suffix):
    codec = {"mp4": "mpeg4", "webm": "libvpx"}[suffix]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg writes no {codec}")
    seconds = [0.1 * index for index in range(20)] + [2 + 0.5 * index for index in range(20)]
    path = write_video(tmp_path / f"vfr.{suffix}", 40, codec=codec, seconds=seconds)
    info = read_video_info(path)
    assert info.num_frames == 40
    assert not info.is_constant_rate
    assert find_clip(VideoClip(path, clip=(1.0, 3.0))) == (10, 22)
    assert seen(path, [10, 22, 39]) == [10, 22, 39]


@pytest.mark.parametrize(
    ("clip", "expected"),
    [(None, (0, 39)), ((1, 2), (10, 20)), ((0.26, 0.5), (3, 5)), ((3.5, 100), (35, 39)), ((3.9, 3.9), (39, 39))],
)
def test_clips_become_frame_numbers(files, clip, expected):
    assert find_clip(VideoClip(files["mpeg4.mp4"], clip=clip)) == expected
    assert find_clip(VideoClip(files["folder"], clip=clip, fps=10)) == expected


def test_an_answer_is_based_on_segments_of_the_clip_or_on_given_frames(files):
    assert choose_frames(VideoClip(files["mpeg4.mp4"]), num_frames=4) == sample_segments(0, 39, 4)
    clip = VideoClip(files["mpeg4.mp4"], clip=(1, 2))
    assert choose_frames(clip, num_frames=4) == sample_segments(10, 20, 4)
    assert choose_frames(VideoClip(files["folder"], frames=(7, 3)), num_frames=4) == [7, 3]
    for frames in ((7, 40), (-1,), ()):
        with pytest.raises(DataError, match="it has 40; expected 0 to 39"):
            choose_frames(VideoClip(files["folder"], frames=frames), num_frames=4)


# Bad files


def make_broken(kind, path):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no video\n" * 50)
    elif kind == "unknown codec":
        content = write_video(path, 5).read_bytes()
        path.write_bytes(content.replace(b"mp4v", b"none").replace(b"esds", b"none"))
    elif kind == "no folder content":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("missing", "not found"),
        ("empty", "no container that is read here"),
        ("text", "Invalid data found"),
        ("unknown codec", "of a kind that PyAV cannot decode"),
        ("no folder content", "folder without pictures"),
    ],
)
def test_files_that_are_no_video_are_refused_with_the_cause(tmp_path, kind, cause):
    path = tmp_path / "bad.mp4"
    make_broken(kind, path)
    with pytest.raises(DataError, match=cause) as caught:
        read_video_info(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=cause):
        list(load_frames(path, [0]))


def noisy_video(path, **options):
    """Frames of noise, which take so many bytes that a file can be cut anywhere."""
    return write_video(path, 40, noise=60, gop=5, **options)


def test_a_file_cut_in_half_is_refused_when_its_header_counts_frames(tmp_path):
    whole = noisy_video(tmp_path / "whole.mp4", options={"movflags": "faststart"})
    path = tmp_path / "half.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert read_video_info(path).num_frames == 40
    assert len(list(load_frames(path, [0, 15]))) == 2
    with pytest.raises(DataError, match="frame 39 is missing: its header announces 40 frames, it holds "):
        list(load_frames(path, [0, 39]))


def test_a_damaged_frame_is_refused_and_those_before_it_are_not(tmp_path):
    path = noisy_video(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    assert seen(path, range(15)) == list(range(15))
    with pytest.raises(DataError, match=r"a\.mp4 cannot be read: the frame at \d\.\d+ seconds is damaged"):
        seen(path, range(40))


def test_a_few_frames_missing_at_the_end_are_tolerated(files, monkeypatch):
    path = files["mpeg4.mp4"]
    original = headers._read_info

    def counting_more(*stamp):
        return replace(original(*stamp), num_frames=41)

    monkeypatch.setattr(headers, "_read_info", counting_more)
    assert seen(path, [20, 40]) == [20, 39]
    monkeypatch.setattr(headers, "_read_info", lambda *stamp: VideoInfo(60, 10.0, 6.0, 64, 48))
    with pytest.raises(DataError, match="header announces 60 frames, it holds 40"):
        seen(path, [59])


def test_frames_are_counted_where_packets_have_no_times(files, monkeypatch):
    original = decoding.read_index

    def without_times(*stamp):
        index = original(*stamp)
        return replace(index, times=index.times[:0])

    monkeypatch.setattr(decoding, "read_index", without_times)
    assert seen(files["mpeg4.mp4"], [3, 9, 9, 2, 39]) == [3, 9, 9, 2, 39]
    monkeypatch.setattr(headers, "_read_info", lambda *stamp: VideoInfo(60, 10.0, 6.0, 64, 48))
    with pytest.raises(DataError, match="header announces 60 frames, it holds 40"):
        seen(files["mpeg4.mp4"], [1, 59])


@pytest.mark.parametrize("index", [-1, 40])
def test_a_frame_that_does_not_exist_is_refused(files, index):
    for name in ("mpeg4.mp4", "folder"):
        with pytest.raises(DataError, match=f"frame {index} of video .* is wanted, expected 0 to 39"):
            list(load_frames(files[name], [0, index]))


def test_a_clip_after_the_end_is_refused(files, tmp_path):
    varying = write_video(tmp_path / "vfr.mp4", 6, seconds=[0, 0.1, 0.2, 0.3, 2, 4])
    for path in (varying, files["mpeg4.mp4"]):
        with pytest.raises(DataError, match=r"has no frame between 4\.5 and 6 seconds"):
            find_clip(VideoClip(path, clip=(4.5, 6)))


def test_a_folder_needs_a_rate_to_be_clipped(files):
    with pytest.raises(DataError, match="folder of frames without a rate"):
        find_clip(VideoClip(files["folder"], clip=(0, 1)))


# What players show


@pytest.mark.parametrize(("kind", "options"), [("webp", {"lossless": True}), ("avif", {"quality": 95})])
def test_animated_pictures_are_videos_of_all_their_frames(tmp_path, kind, options):
    frames = [Image.new("RGB", (64, 48), (40 * number, 0, 0)) for number in range(6)]
    path = tmp_path / f"a.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    info = read_video_info(path)
    assert (info.num_frames, info.fps, info.width, info.height) == (6, pytest.approx(10), 64, 48)
    reds = [picture.getpixel((5, 5))[0] for picture in load_frames(path, [0, 3, 5, 1])]
    assert reds == pytest.approx([0, 120, 200, 40], abs=6)


def write_turned(path, picture, matrix):
    """Write a video of one picture whose header turns it: a, b, c and d of the display matrix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = picture.size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for packet in [*stream.encode(av.VideoFrame.from_image(picture)), *stream.encode()]:
            container.mux(packet)
    content = path.read_bytes()
    place = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    path.write_bytes(content[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[place + 36 :])


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), None),
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),  # pillow turns counterclockwise, players clockwise by 90 degrees
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
        ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
        ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM),
        ((0, 1, 1, 0), Image.Transpose.TRANSPOSE),
        ((0, -1, -1, 0), Image.Transpose.TRANSVERSE),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else getattr(value, "name", "upright"),
)
def test_a_picture_that_its_header_turns_or_mirrors_is_shown_upright(tmp_path, matrix, turn):
    corners = Image.new("L", (2, 2))
    corners.putdata([20, 90, 160, 230])
    stored = corners.resize((64, 48), Image.Resampling.NEAREST)
    path = tmp_path / "a.mp4"
    write_turned(path, stored.convert("RGB"), matrix)
    expected = stored if turn is None else stored.transpose(turn)
    info = read_video_info(path)
    assert (info.width, info.height) == expected.size
    (shown,) = load_frames(path, [0])
    assert shown.size == expected.size
    right, bottom = shown.width - 6, shown.height - 6
    for place in ((5, 5), (right, 5), (5, bottom), (right, bottom)):
        assert shown.getpixel(place)[0] == pytest.approx(expected.getpixel(place), abs=8)
