"""Damaged videos: pictures of the announced size, or a DataError; in time, and nothing else."""

import logging

import pytest

from internvl.data.video.decoding import load_frames
from internvl.data.video.headers import read_video_info
from internvl.errors import DataError
from tests.data.numbered_videos import write_gif, write_video
from tests.fuzz.mutations import list_damaged, time_limit

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".gif", ".webp")
LONGEST_S = 20


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("libav").setLevel(logging.CRITICAL)


def _write(path):
    if path.suffix in (".gif", ".webp"):
        return write_gif(path, 8)
    return write_video(path, 8, codec="libvpx" if path.suffix == ".webm" else "mpeg4")


@pytest.mark.filterwarnings("ignore")  # about what is damaged
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_videos_are_pictures_or_errors(tmp_path, suffix, count):
    whole = _write(tmp_path / f"whole{suffix}").read_bytes()
    num_read, errors = 0, []
    for number, content in enumerate([whole, *list_damaged(whole, seed=2, count=count)]):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        try:
            with time_limit(LONGEST_S):
                info = read_video_info(str(path))
                pictures = list(load_frames(str(path), sorted({0, info.num_frames // 2, info.num_frames - 1})))
        except DataError as error:
            errors.append(str(error))
        else:
            num_read += 1
            assert all(picture.mode == "RGB" for picture in pictures), number
        path.unlink()
    assert num_read > 0
    assert errors
    assert all(f"{suffix}" in error for error in errors)
