"""LongVideoBench, MLVU, LVBench, VNBench and Video-MME-v2: what is asked, how it is scored, and whole runs."""

import json

import pytest

from eval.check_data import main as check_data
from eval.core.sample import Prediction
from eval.core.task import Scored
from eval.metrics import videomme_v2, vnbench
from eval.run.__main__ import main
from eval.score import main as score
from eval.tasks import mlvu
from eval.tasks.longvideobench import Cue, choose_frames, interleave
from eval.tasks.registry import find_task, list_task_names, select_tasks
from eval.tasks.videos import label_duration, split_frames
from internvl.data.video import VideoInfo
from internvl.errors import ConfigError, DataError, EvalError
from internvl.infer.session import Session
from tests.eval import published
from tests.eval.run.chat_server_double import Server, answer

GROUPS = ("longvideobench", "mlvu", "lvbench", "vnbench", "videomme_v2")
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def published_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("long_videos")
    for group in GROUPS:
        getattr(published, f"write_{group}")(root)
    return root


@pytest.fixture
def videos(data_root):
    """A data root with one of these benchmarks."""

    def write(group):
        getattr(published, f"write_{group}")(data_root.root)
        return data_root

    return write


def change(path, **fields):
    """Change fields of the first record of a JSON list."""
    records = json.loads(path.read_text())
    records[0].update(fields)
    path.write_text(json.dumps(records))


# What they share ----------------------------------------------------------------------------------------------------


def test_a_name_says_how_many_frames_are_shown(published_root):
    task = find_task("lvbench/test-256frames")
    assert (task.name, task.num_frames) == ("lvbench/test-256frames", 256)
    assert find_task("lvbench/test").num_frames == 64
    assert split_frames("test-subtitles-8frames") == ("test-subtitles", 8)
    few, many = (find_task(f"videomme_v2/test-{n}frames").read_samples(published_root)[0] for n in (3, 5))
    assert [len(sample.videos[0].frames) for sample in (few, many)] == [3, 5]


@pytest.mark.parametrize("name", ["lvbench/test-0frames", "lvbench/val", "mlvu/plotQA-frames", "mlvu/-8frames"])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="unknown task"):
        find_task(name)


def test_a_group_is_asked_with_its_own_number_of_frames():
    names = [task.name for task in select_tasks(",".join(GROUPS))]
    assert names == list_task_names(GROUPS)
    assert not any("frames" in name for name in names)


def test_durations_have_a_bin_of_minutes():
    labels = [label_duration(60 * minutes) for minutes in (0.5, 1, 9.9, 29, 45, 60, 200)]
    assert labels == ["<1 min", "1-3 min", "3-10 min", "10-30 min", "30-60 min", "60+ min", "60+ min"]
    assert label_duration(None) == "unknown"


def test_check_data_knows_the_published_layout(published_root, capsys):
    assert check_data([",".join(GROUPS), "--data-root", str(published_root), "--open"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["longvideobench/val-subtitles"].endswith("complete: 2 questions, 2 pictures or videos")
    assert lines["vnbench/test"].endswith("complete: 36 questions, 9 pictures or videos")


@pytest.mark.parametrize(
    ("group", "task", "video"),
    [
        ("longvideobench", "longvideobench/val-subtitles", "LongVideoBench/videos/v2.mp4"),
        ("mlvu", "mlvu/order", "MLVU/video/5_order/a.mp4"),
        ("lvbench", "lvbench/test", "LVBench/videos/Cm73ma6Ibcs.mp4"),
        ("vnbench", "vnbench/test", "VNBench/VNBench_new/v_cnt_insert.mp4"),
        ("videomme_v2", "videomme_v2/test-subtitles-interleaved", "Video-MME-v2/video/002.mp4"),
    ],
)
def test_a_missing_video_is_named_and_a_broken_one_does_not_end_the_others(videos, group, task, video):
    root = videos(group)
    (root.root / video).write_bytes(b"no video")
    assert root.read(task)
    (root.root / video).unlink()
    with pytest.raises(EvalError, match=rf"video not found, expected at .*{video.rsplit('/', 1)[1]}"):
        root.read(task)


# LongVideoBench -----------------------------------------------------------------------------------------------------


def test_longvideobench_asks_after_the_video(videos):
    first, second = videos("longvideobench").read("longvideobench/val")
    options = "A. He sits.\nB. He runs.\nC. Nothing.\nD. é\nE. It ends."
    assert first.prompt == f"<video>\nWhen 'hello' is said, what happens?\n{options}\n{LETTER}\n"
    assert (first.id, first.answer, first.videos[0].frames) == ("v1_0", "B", (0, 8, 16))
    assert (second.answer, second.metadata["chance"]) == ("A", 0.5)
    assert find_task("longvideobench/val").max_new_tokens == 32


def test_longvideobench_frames_and_subtitles_take_turns(videos):
    first, second = videos("longvideobench").read("longvideobench/val-subtitles")
    assert first.prompt.startswith("<image>\nhello\n<image>\n<image>\nWhen 'hello'")  # the other one is after the end
    assert [image.frame for image in first.images] == [0, 8, 16]
    assert first.videos == ()
    # Half a second is too short for a frame, but counts as a second around its middle.
    assert second.prompt.startswith("<image>\nshort\n<image>\n<image>\nWhen 'hello'")


def test_longvideobench_reads_both_forms_of_subtitles():
    cues = [Cue(0.4, 0.9, "short"), Cue(0.9, 3.5, "long"), Cue(2.2, 2.3, "nowhere near")]
    assert interleave([0.5, 1.0, 4.0], cues) == ["<image>", "short", "<image>", "long", "<image>"]


def test_longvideobench_shows_at_most_a_frame_per_second():
    info = VideoInfo(250, 25.0, 10.0, 32, 32)
    assert choose_frames(info, 10.0, 64) == [25 * second for second in range(10)]
    assert choose_frames(info, 10.0, 4) == [0, 62, 124, 186]


def test_longvideobench_test_split_is_written_for_its_server(videos):
    root = videos("longvideobench")
    assert root.evaluate("longvideobench/test", ["B", "The answer is A"])["results"]["official"]["score"] is None
    upload = json.loads((root.out / "longvideobench/test/upload.json").read_text())
    assert upload == {"v1_0": "B", "v2_3": "The answer is A"}


def test_longvideobench_reports_by_duration_and_category(videos):
    numbers = videos("longvideobench").evaluate("longvideobench/val", ["(B)", "no"])["results"]["official"]
    assert numbers["score"] == 0.5
    assert {name: entry["score"] for name, entry in numbers["by_duration"].items()} == {"15": 1.0, "600": 0.0}
    assert numbers["by_category"]["T2E"]["count"] == 2


@pytest.mark.parametrize(
    ("subtitle", "message"),
    [
        ({"timestamp": [1.0]}, r"timestamp is \[1.0\], expected \[start, end\]"),
        ({"timestamp": ["1", 2.0]}, "expected .start, end. in seconds"),
        ({"start": "one", "end": "00:00:01"}, "a time is 'one', expected a form such as 00:01:02.500"),
        ("text", "the record is a JSON str"),
    ],
)
def test_longvideobench_names_a_wrong_subtitle(videos, subtitle, message):
    root = videos("longvideobench")
    (root.root / "LongVideoBench/subtitles/v1_en.json").write_text(json.dumps([subtitle]))
    with pytest.raises(DataError, match=message) as error:
        root.read("longvideobench/val-subtitles")
    assert "v1_en.json" in str(error.value)


def test_longvideobench_refuses_an_answer_beyond_the_candidates(videos):
    root = videos("longvideobench")
    change(root.root / "LongVideoBench/lvb_val.json", correct_choice=5)
    with pytest.raises(DataError, match="correct_choice is 5, expected 0 to 4"):
        root.read("longvideobench/val")


# MLVU ---------------------------------------------------------------------------------------------------------------


def test_mlvu_asks_for_the_option_in_brackets(videos):
    first, *_ = videos("mlvu").read("mlvu/needle")
    assert first.prompt == (
        f"<video>\n{mlvu.SYSTEM}\nQuestion: What?\nOptions:\n(A) Red\n(B) Blue\n(C) 2\n(D) Both"
        "\nOnly give the best option.\nBest option: ("
    )
    assert (first.answer["letter"], first.metadata["duration"]) == ("B", "3-10 min")


def test_mlvu_takes_no_response_where_the_answer_is_no_candidate(videos):
    numbers = videos("mlvu").evaluate("mlvu/needle", ["B) Blue", "A.", "B"])["results"]["official"]
    assert (numbers["score"], numbers["vlmevalkit"]["score"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert numbers["by_duration"]["60+ min"]["score"] == 0


def test_mlvu_average_is_over_tasks():
    results = {
        f"{name}{ending}": {"results": {"official": {"score": float(i == 0), "stderr": 0.0, "count": 9 if i else 1}}}
        for i, name in enumerate(mlvu.CHOICE_FILES)
        for ending in ("", "-16frames")
    }
    summary = mlvu.FAMILY.summarise(results)
    assert list(summary) == ["m_avg", "m_avg-16frames"]
    assert summary["m_avg"]["official"]["score"] == pytest.approx(1 / 7)
    results.pop("order")
    assert list(mlvu.FAMILY.summarise(results)) == ["m_avg-16frames"]


def test_mlvu_test_set_is_written_for_its_server(videos):
    root = videos("mlvu")
    assert root.evaluate("mlvu/test", ["B) b", " f "])["results"]["official"]["score"] is None
    assert json.loads((root.out / "mlvu/test/upload.json").read_text()) == [
        {"question_id": "AR_0", "question_type": "anomaly_reco", "option": "B"},
        {"question_id": "AR_1", "question_type": "anomaly_reco", "option": "f"},
    ]


REPLY = 'Good. {"score_accuracy": 4, "score_relevance": 5, "total_score": 9}'


def test_mlvu_asks_a_judge_about_points_and_references(videos):
    root = videos("mlvu")
    scene, summary = (find_task(f"mlvu/{name}") for name in ("sub_scene", "summary"))
    (first, *_), (other, *_) = (root.read(task.name) for task in (scene, summary))
    assert first.prompt == f"<video>\n{mlvu.FREE_SYSTEM}\nPlease describe it."
    asked = [
        task.judge.write_prompt(Prediction(s.id, "He runs.", s.answer, s.metadata, 1, 1, 0.0, 0.0))
        for task, s in ((scene, first), (summary, other))
    ]
    assert asked == [
        "Question: Please describe it.\nPoints:\n- A man\n- runs\nAnswer: He runs.",
        "Reference summary: A man runs.\nSummary: He runs.",
    ]
    assert '{"score_accuracy": X, "score_relevance": Y, "total_score": Z}' in scene.judge.system
    assert scene.judge.read_verdict(REPLY, first.answer) == pytest.approx(0.9)


@pytest.mark.parametrize("reply", ["", "A fine answer.", REPLY.replace("4", "40"), REPLY.replace("4", "four")])
def test_mlvu_takes_no_verdict_from_other_replies(reply):
    with pytest.raises(ValueError, match=r"expected two scores|could not convert"):
        find_task("mlvu/sub_scene").judge.read_verdict(reply, {})


def test_mlvu_has_no_score_without_its_judge(videos):
    numbers = videos("mlvu").evaluate("mlvu/summary", ["x", "y"])["results"]["official"]
    assert (numbers["score"], numbers["needs_judge"]) == (None, "mlvu-summary")


def test_mlvu_judged_average_is_that_of_both_tasks():
    def judge(first):
        scores = {"sub_scene": first, "summary": 0.25}
        return {
            name: {"results": {"official": {"score": value, "stderr": value and 0.1, "count": 4}}}
            for name, value in scores.items()
        }

    assert mlvu.FAMILY.summarise(judge(0.75))["g_avg"]["official"]["score"] == 0.5
    assert mlvu.FAMILY.summarise(judge(None)) == {}


def test_mlvu_is_judged_through_the_command(checkpoint, published_root, tmp_path, monkeypatch):
    def say(_task, samples):
        return [Prediction(s.id, "He runs.", s.answer, s.metadata, 1, 1, 0.0, 0.0) for s in samples]

    monkeypatch.setattr("eval.run.__main__.load_answerer", lambda *_, **__: say)  # not 1024 tokens of a model
    server = Server(model="wise")
    server.behave = lambda body, number: (200, answer(REPLY))
    command = ["--checkpoint", str(checkpoint), "--tasks", "mlvu/sub_scene-2frames", "--data-root", str(published_root),
               "--device", "cpu", "--out", str(tmp_path), "--judge", server.url, "--judge_model", "wise"]  # fmt: skip
    assert main(command) == 0
    server.close()
    content = json.loads((tmp_path / "mlvu/sub_scene-2frames/scores.json").read_text())
    numbers = content["results"]["official"]
    assert (numbers["score"], numbers["out_of_ten"]) == (pytest.approx(0.9), pytest.approx(9))
    assert numbers["by_duration"]["60+ min"]["count"] == 2
    assert (content["judge"]["rule"], content["judge"]["version"]) == ("mlvu-sub-scene", 1)


def test_mlvu_refuses_a_scene_without_points(videos):
    root = videos("mlvu")
    change(root.root / "MLVU/json/8_sub_scene.json", scoring_points=[])
    with pytest.raises(DataError, match="scoring_points is missing or empty"):
        root.read("mlvu/sub_scene")


# LVBench, VNBench ---------------------------------------------------------------------------------------------------


def test_lvbench_counts_a_question_for_each_of_its_abilities(videos):
    root = videos("lvbench")
    first = root.read("lvbench/test")[0]
    assert first.prompt.endswith("(C) 1363\n(D) 1633\nAnswer the question with the option letter")
    numbers = root.evaluate("lvbench/test", ["D", "A", "A", "(A) 1636"])["results"]["official"]
    assert numbers["score"] == 0.75
    shares = {name: (entry["score"], entry["count"]) for name, entry in numbers["by_ability"].items()}
    assert shares == {
        "event understanding": (1.0, 2), "key information retrieval": (0.5, 2), "reasoning": (1.0, 2),
    }  # fmt: skip
    assert [*numbers["by_type"], *numbers["by_duration"]] == ["cartoon", "live", "30-60 min", "60+ min"]


def test_vnbench_counts_a_question_if_all_of_its_tries_are_right(videos):
    root = videos("vnbench")
    samples = root.read("vnbench/test")
    assert (samples[1].id, samples[1].answer) == ("v_ret_edit_1", "D")
    said = [sample.answer + "." for sample in samples]
    said[2] = "A"  # one try of ret_edit
    numbers = root.evaluate("vnbench/test", said)["results"]["official"]
    assert numbers["score"] == pytest.approx(8 / 9)
    assert numbers["by_kind"]["retrieval"]["score"] == pytest.approx(2 / 3)
    assert numbers["single_try"]["score"] == pytest.approx(35 / 36)
    assert numbers["by_video_length"]["30"]["score"] == 1
    assert numbers["chance"] == pytest.approx(1 / 256)
    assert max(numbers["floors"]["letters"].values()) == 0


def test_vnbench_lists_lengths_in_the_order_of_their_numbers():
    lengths = ("180", "9.5", "30")
    scored = [
        Scored(1.0, {"video": f"v{length}", "type": "ret_edit", "length": length, "chance": 0.25})
        for length in lengths
        for _ in range(4)
    ]
    assert list(find_task("vnbench/test").aggregate(scored, None)["by_video_length"]) == ["9.5", "30", "180"]


def test_a_task_beside_its_usual_number_of_frames_is_the_same_task_twice():
    for names in ("vnbench/test,vnbench/test-64frames", "vnbench/test-64frames,vnbench"):
        with pytest.raises(
            ConfigError, match="vnbench/test is asked for twice, with and without its usual number of fra"
        ):
            select_tasks(names)
    assert len(select_tasks("vnbench/test,vnbench/test-32frames,vnbench/test")) == 2


def test_vnbench_takes_a_question_with_too_few_tries_for_wrong():
    assert vnbench.merge_tries([("v", "ret_edit", 1.0)] * 3) == {("ret_edit", "v"): 0.0}


def test_vnbench_refuses_an_answer_that_is_no_option(videos):
    root = videos("vnbench")
    change(root.root / "VNBench/VNBench-main-4try.json", gt="cat")
    with pytest.raises(DataError, match="gt is 'cat', expected one of the options"):
        root.read("vnbench/test")


# Video-MME-v2 -------------------------------------------------------------------------------------------------------


def test_videomme_v2_asks_with_and_without_subtitles(videos):
    root = videos("videomme_v2")
    plain, *_ = root.read("videomme_v2/test")
    question = plain.prompt.partition("Question: ")[2]
    assert plain.prompt == f"<video>\nThese are the frames of a video.\nQuestion: {question}"
    assert question.startswith("Who?\nA. a\nB. b\n")
    assert question.endswith("\nH. h\n" + find_instruction())
    listed, *_, silent = root.read("videomme_v2/test-subtitles")
    lead = "<video>\nThese are the frames of a video. This video's subtitles are listed below:\n"
    assert listed.prompt == f"{lead}Hello there. Bye\n\nQuestion: {question}"
    assert silent.prompt == f"{lead}\n\nQuestion: {question}"
    mixed, *_ = root.read("videomme_v2/test-subtitles-interleaved-2frames")
    assert mixed.prompt.splitlines()[:3] == ["<image>", "<image>", "[Subtitle 2.50s - 2.90s]: Bye"]


def find_instruction():
    return (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, D, E, F, G, or H) of the correct option."
    )


def test_videomme_v2_scores_groups(videos):
    said = ["A", "x", "Final Answer: C", "H", "A", "B", "C", "no idea"]
    numbers = videos("videomme_v2").evaluate("videomme_v2/test", said)["results"]["official"]
    assert numbers["by_group_type"]["logic"]["score"] == pytest.approx(4 / 12)  # the second step may be the third one
    assert numbers["by_group_type"]["relevance"]["score"] == pytest.approx(9 / 16)
    assert numbers["score"] == pytest.approx((4 / 12 + 9 / 16) / 2)
    assert (numbers["linear"]["score"], numbers["accuracy"]["score"]) == (0.75, 0.75)
    assert list(numbers["by_level"]) == ["1", "2"]
    assert numbers["by_third_head"] == {}


def test_videomme_v2_takes_missing_questions_for_wrong():
    group = videomme_v2.Group((True,), "relevance", "", "1", "", "")
    assert group.score == 1 / 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_type": "other"}, "group_type is 'other', expected one of relevance, logic"),
        ({"group_structure": "[1, 2]"}, r"group_structure is '\[1, 2\]', expected one of \[1,2,3,4\]"),
    ],
)
def test_videomme_v2_refuses_groups_without_a_score(videos, fields, message):
    from pyarrow import parquet

    root = videos("videomme_v2")
    path = root.root / "Video-MME-v2/test.parquet"
    table = parquet.read_table(path)
    rows = [{**row, **fields} if index == 0 else row for index, row in enumerate(table.to_pylist())]
    parquet.write_table(table.from_pylist(rows), path)
    with pytest.raises(DataError, match=message):
        root.read("videomme_v2/test")


# Whole runs ---------------------------------------------------------------------------------------------------------


def test_tasks_of_every_kind_run_and_continue_when_they_were_killed(
    checkpoint, published_root, tmp_path, monkeypatch, capsys
):
    """All tasks run in tests/eval/test_scripts.py."""
    kinds = ("longvideobench/val-subtitles", "mlvu/needle", "lvbench/test", "vnbench/test",
             "videomme_v2/test-subtitles-interleaved")  # fmt: skip
    names = [f"{name}-2frames" for name in kinds]
    command = ["--checkpoint", str(checkpoint), "--tasks", ",".join(names), "--data-root", str(published_root),
               "--device", "cpu", "--limit", "2"]  # fmt: skip
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    ask, num_asked = Session.ask, 0

    def ask_some(*arguments, **options):
        nonlocal num_asked
        num_asked += 1
        if num_asked > 4:
            raise KeyboardInterrupt
        return ask(*arguments, **options)

    monkeypatch.setattr(Session, "ask", ask_some)
    assert main([*command, "--out", str(tmp_path / "broken")]) == 130
    monkeypatch.setattr(Session, "ask", ask)
    assert main([*command, "--out", str(tmp_path / "broken")]) == 0
    for name in names:
        one, other = (read_answers(tmp_path / run / name) for run in ("whole", "broken"))
        assert one == other
        assert len(one) == 2
        scores = json.loads((tmp_path / "broken" / name / "scores.json").read_text())
        assert scores["results"]["official"]["num_failed"] == 0
        assert scores["settings"]["num_frames"] == 2
    assert score([str(tmp_path / "broken")]) == 0
    assert "mlvu/needle-2frames" in capsys.readouterr().out


def read_answers(folder):
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert all(1 <= line["num_tiles"] <= 2 for line in lines)
    return [(line["id"], line["response"], line["last_position"]) for line in lines]
