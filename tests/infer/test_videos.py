"""Questions about videos: labels, frames, tiles, the feature cache."""

import pytest

from internvl.data import prompt
from internvl.data.video import VideoClip, load_frames, sample_segments
from internvl.errors import ConfigError, DataError
from internvl.infer.session import Session
from tests.data.numbered_videos import write_frames, write_gif, write_video


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "a.mp4", 40, gop=8)


@pytest.fixture
def decoded(monkeypatch):
    """The frames that were decoded, per call."""
    calls = []
    original = prompt.load_frames

    def recording(path, frames, **options):
        calls.append(list(frames))
        return original(path, frames, **options)

    monkeypatch.setattr(prompt, "load_frames", recording)
    return calls


def label(num_frames):
    return "\n".join(f"Frame{number}: <image>" for number in range(1, num_frames + 1))


def without_time(answer):
    return {name: value for name, value in vars(answer).items() if name not in ("seconds", "num_frames")}


def test_a_video_is_labelled_frames_of_one_tile_each(session, video):
    pictures = list(load_frames(video, sample_segments(0, 39, 4)))
    expected = session.answer(f"{label(4)}\nwhat?", pictures, max_num=1, max_new_tokens=8)
    answer = session.answer("<video>\nwhat?", videos=[video], num_frames=4, max_new_tokens=8)
    assert without_time(answer) == without_time(expected)
    assert (answer.num_frames, answer.num_tiles) == (4, 4)


def test_a_folder_a_gif_and_a_clip_are_videos(session, tmp_path):
    folder, gif = write_frames(tmp_path / "frames", 20), write_gif(tmp_path / "a.gif", 20)
    answers = {
        without_time(session.answer("<video>\nwhat?", videos=[video], num_frames=3, max_new_tokens=8))["text"]
        for video in (folder, gif, str(folder), VideoClip(folder, clip=(0, 100), fps=10))
    }
    assert len(answers) == 1
    part = session.answer("<video>", videos=[VideoClip(folder, frames=(4, 9))], max_new_tokens=4)
    pictures = list(load_frames(folder, [4, 9]))
    assert without_time(part) == without_time(session.answer(label(2), pictures, max_num=1, max_new_tokens=4))


def test_placeholders_take_images_and_videos_in_their_own_order(session, video, make_image, tmp_path):
    images = [make_image("a.png", 56, 28, seed=1), make_image("b.png", seed=2)]
    other = write_frames(tmp_path / "frames", 5)
    question = "<image> <video> <image> <video>?"
    answer = session.answer(question, images, videos=[video, other], num_frames=2, max_new_tokens=8)
    first, second = (
        [frame.resize((28, 28)) for frame in load_frames(path, sample_segments(0, last, 2))]  # one tile by its size
        for path, last in ((video, 39), (other, 4))
    )
    by_hand = [images[0], *first, images[1], *second]
    expected = session.answer(f"<image> {label(2)} <image> {label(2)}?", by_hand, max_new_tokens=8)
    assert without_time(answer) == without_time(expected)
    assert answer.num_tiles == 3 + 1 + 4


def test_a_video_of_an_earlier_question_stays(session, video):
    history = [("<video>\nwhat?", "nothing")]
    answer = session.answer("and then?", videos=[video], num_frames=2, history=history, max_new_tokens=8)
    pictures = list(load_frames(video, sample_segments(0, 39, 2)))
    by_hand = [(f"{label(2)}\nwhat?", "nothing")]
    expected = session.answer("and then?", pictures, max_num=1, history=by_hand, max_new_tokens=8)
    assert without_time(answer) == without_time(expected)


def test_frames_are_decoded_once_for_many_questions(session, video, decoded):
    for question in ("<video>\nwhat?", "<video>\nwhere?"):
        session.answer(question, videos=[video], num_frames=4, max_new_tokens=1)
    session.answer("<video>", videos=[VideoClip(video, frames=(4, 4, 5))], max_new_tokens=1)
    assert decoded == [[4, 14, 24, 33], [5]]


def test_frames_that_repeat_are_decoded_and_encoded_once(session, tmp_path, decoded):
    video = write_video(tmp_path / "short.mp4", 2)
    answer = session.answer("<video>", videos=[video], num_frames=8, max_new_tokens=1)
    assert (answer.num_frames, decoded) == (8, [[0, 1]])


def test_without_videos_a_video_tag_is_text(session):
    assert session.answer("What is a <video> tag?", max_new_tokens=2).num_frames == 0


def test_wrong_videos_are_refused(session, video, tmp_path):
    with pytest.raises(DataError, match="the prompt has 0 <video> for 1 videos"):
        session.answer("what?", videos=[video], max_new_tokens=1)
    with pytest.raises(DataError, match=r"video .*none\.mp4 not found"):
        session.answer("<video>", videos=[tmp_path / "none.mp4"], max_new_tokens=1)
    with pytest.raises(ConfigError, match="num_frames is 0, expected at least 1"):
        session.answer("<video>", videos=[video], num_frames=0, max_new_tokens=1)


def test_the_session_has_a_number_of_frames(checkpoint, video):
    session = Session.from_pretrained(checkpoint, device="cpu", num_frames=3)
    assert session.answer("<video>", videos=[video], max_new_tokens=1).num_frames == 3
