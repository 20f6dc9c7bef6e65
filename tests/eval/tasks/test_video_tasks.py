"""MVBench and Video-MME."""

import av
import numpy as np
import pytest

from eval.tasks import mvbench
from eval.tasks.registry import find_task, select_tasks
from eval.tasks.videomme import read_subtitles
from internvl.data.video import choose_frames
from internvl.errors import DataError, EvalError

SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)


def write_video(path, num_frames=40, fps=10):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 6 * index % 256, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_mvbench(data_root, name, record, video="v.mp4"):
    folder = mvbench.VIDEO_FOLDERS[name]
    if video.endswith("mp4"):
        write_video(data_root.place(f"MVBench/video/{folder}/{video}"))
    else:
        for index in range(1, 31):
            data_root.write_image(f"MVBench/video/{folder}/{video}/{index:05d}.jpg")
    records = [{"video": video, "question": "What?", "candidates": ["cut", "run"], "answer": "run", **record}] * 2
    data_root.write_json(f"MVBench/json/{name}.json", records)


def test_mvbench_asks_with_labelled_options_behind_the_video(data_root):
    write_mvbench(data_root, "action_sequence", {"start": 1.0, "end": 3.0})
    first, _ = data_root.read("mvbench/action_sequence")
    assert first.prompt == (
        f"<video>\n{SYSTEM}\nQuestion: What?\nOptions:\n(A) cut\n(B) run\nOnly give the best option."
    )
    assert (first.answer, first.metadata["chance"]) == ("(B) run", 0.5)
    (clip,) = first.videos
    assert clip.clip == (1.0, 3.0)
    assert choose_frames(clip, num_frames=16)[0] == 10
    task = find_task("mvbench/action_sequence")
    assert (task.num_frames, task.max_num, task.max_new_tokens) == (16, 1, 1000)


def test_mvbench_frames_of_a_folder_follow_the_published_numbers(data_root):
    write_mvbench(data_root, "episodic_reasoning", {"start": 0.0, "end": 100.0}, video="clip")
    (clip,) = data_root.read("mvbench/episodic_reasoning")[0].videos
    segment = (30 - 1) / 16  # names run from 00001.jpg to 00030.jpg
    names = [int(1 + segment / 2 + round(segment * i)) for i in range(16)]
    assert [number + 1 for number in clip.frames] == names
    assert (names[0], names[-1]) == (1, 28)
    assert choose_frames(clip, num_frames=16) == list(clip.frames)


def test_mvbench_bounds_behind_the_end_stay_inside_the_folder(data_root):
    write_mvbench(data_root, "episodic_reasoning", {"start": 50.0, "end": 60.0}, video="clip")
    (clip,) = data_root.read("mvbench/episodic_reasoning")[0].videos
    assert choose_frames(clip, num_frames=16) == [29] * 16


def test_mvbench_scores_first_words(data_root):
    write_mvbench(data_root, "state_change", {})
    scores = data_root.evaluate("mvbench/state_change", ["(B) run", ""])
    assert scores["results"]["official"]["score"] == 0.5
    assert scores["results"]["upstream"]["score"] == 1.0  # an empty answer is right there


def test_mvbench_average_is_over_questions():
    results = {
        name: {"results": {p: {"score": float(i == 0), "stderr": 0.1, "count": n} for p in ("official", "upstream")}}
        for i, (name, n) in enumerate(zip(mvbench.VIDEO_FOLDERS, [3] + [1] * 19, strict=True))
    }
    table = mvbench.summarise(results)["official"]
    assert table["average"] == {
        "score": pytest.approx(3 / 22), "stderr": pytest.approx(0.1 * (9 + 19) ** 0.5 / 22), "count": 22,
    }  # fmt: skip
    assert table["task_average"] == {
        "score": pytest.approx(1 / 20), "stderr": pytest.approx(0.1 / 20**0.5), "count": 22,
    }  # fmt: skip
    results.popitem()
    assert mvbench.summarise(results) == {}
    assert len(select_tasks("mvbench")) == 20


def test_mvbench_refuses_missing_videos_and_answers(data_root):
    write_mvbench(data_root, "moving_count", {"answer": "fly"})
    with pytest.raises(DataError, match="'fly' is not among the candidates"):
        data_root.read("mvbench/moving_count")
    write_mvbench(data_root, "moving_count", {})
    (data_root.root / "MVBench/video/clevrer/video_validation/v.mp4").unlink()
    with pytest.raises(EvalError, match=r"video not found, expected at .*clevrer/video_validation/v\.mp4"):
        data_root.read("mvbench/moving_count")


@pytest.mark.parametrize(("start", "message"), [([1], "'start' is a list"), ("soon", "could not convert")])
def test_mvbench_refuses_times_that_are_no_numbers(data_root, start, message):
    write_mvbench(data_root, "moving_count", {"start": start, "end": 2})
    with pytest.raises(DataError, match=message):
        data_root.read("mvbench/moving_count")


def test_mvbench_refuses_more_candidates_than_letters(data_root):
    write_mvbench(data_root, "moving_count", {"candidates": [f"{n} times" for n in range(27)], "answer": "1 times"})
    with pytest.raises(DataError, match="27 options, expected at most 26"):
        data_root.read("mvbench/moving_count")


@pytest.mark.parametrize(
    ("name", "file"),
    [("mvbench/moving_count", "MVBench/json/moving_count.json"), ("videomme/test", "Video-MME/videomme.json")],
)
def test_records_that_are_no_objects_are_refused(data_root, name, file):
    data_root.write_json(file, ["text"])
    with pytest.raises(DataError, match="the record is a JSON str, expected an object"):
        data_root.read(name)


QUESTION = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option.\nWho?\nA. a\nB. b\nC. c\nD. d\nThe best answer is:"
)


def write_videomme(data_root, **fields):
    write_video(data_root.place("Video-MME/data/001.mp4"))
    entry = {"task_type": "Counting", "question": "Who?", "options": ["A. a", "B. b", "C. c", "D. d"], "answer": "B"}
    questions = [{"question_id": f"001-{i}", **entry} for i in (1, 2, 3)]
    kinds = {"duration": "short", "domain": "Knowledge", "sub_category": "Biology"}
    data_root.write_json("Video-MME/videomme.json", [{"video_id": "001", **kinds, "questions": questions, **fields}])


def test_videomme_asks_about_the_video_without_subtitles(data_root):
    write_videomme(data_root)
    samples = data_root.read("videomme/test")
    assert [sample.id for sample in samples] == ["001-1", "001-2", "001-3"]
    assert samples[0].prompt == f"<video>\n{QUESTION}"
    assert samples[0].videos[0].path == data_root.root / "Video-MME/data/001.mp4"


def test_videomme_lists_subtitles_of_the_sampled_frames_only(data_root):
    write_videomme(data_root)
    srt = (
        "\ufeff1\r\n00:00:00,000 --> 00:00:01,000\r\n<i>Hello</i>\r\nthere\r\n\r\n"
        "2\n00:00:01,500 --> 00:00:02,000\nagain\n\n3\n00:00:09,000 --> 00:00:10,000\nlater\n\n4\nbroken\n"
    )
    data_root.place("Video-MME/subtitle/001.srt").write_text(srt, encoding="utf-8")
    assert read_subtitles(data_root.root / "Video-MME/subtitle/001.srt")[0] == (0.0, 1.0, "Hello there")
    (first, *_) = data_root.read("videomme/test-subtitles")
    lead = "This video's subtitles are listed below:\nHello there\nagain\n"
    assert first.prompt == f"<video>\n{lead}{QUESTION}"


def test_videomme_without_a_subtitle_file_asks_the_plain_question(data_root):
    write_videomme(data_root)
    data_root.place("Video-MME/subtitle/other.srt").touch()
    assert data_root.read("videomme/test-subtitles")[0].prompt == f"<video>\n{QUESTION}"


def test_videomme_counts_answers_without_a_letter_as_wrong(data_root):
    write_videomme(data_root)
    numbers = data_root.evaluate("videomme/test", ["B", "The answer is A", ""])["results"]["official"]
    assert numbers["score"] == pytest.approx(1 / 3)
    overall = numbers["by_duration"]["short"]["overall"]
    assert (overall["accuracy"], overall["official"]) == (pytest.approx(1 / 3), 0.5)
    assert (overall["count"], overall["num_without_letter"]) == (3, 1)
    assert overall["stderr"] == pytest.approx((2 / 9 / 3) ** 0.5)
    assert overall["official_stderr"] == pytest.approx((0.25 / 2) ** 0.5)


def test_videomme_prefers_the_name_of_the_video_file(data_root):
    write_videomme(data_root, videoID="abc")
    with pytest.raises(EvalError, match=r"video not found, expected at .*/Video-MME/data/abc\.mp4"):
        data_root.read("videomme/test")
