"""The chat command: composing questions, conversations, errors on one line."""

import io
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from internvl.errors import ConfigError
from internvl.infer import terminal
from internvl.infer.chat import main
from internvl.infer.flags import name_checkpoint
from internvl.infer.session import Session
from internvl.infer.settings import Sampling
from internvl.infer.terminal import Chat, Opening
from internvl.model.modeling_internvl_chat import InternVLChatModel
from tests.data.numbered_videos import write_video
from tests.warm_python import warm_python


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def asked(monkeypatch):
    """What `Session.answer` is called with, in order."""
    calls = []
    original = Session.answer

    def recording(self, prompt, images=(), **options):
        calls.append((prompt, [str(image) for image in images], list(options["history"]), options, self))
        return original(self, prompt, images, **options)

    monkeypatch.setattr(Session, "answer", recording)
    return calls


@pytest.fixture
def run(checkpoint, capsys):
    """Run the command in this process: (exit code, standard output, standard error)."""

    def run(*words):
        try:
            code = main(["--checkpoint", str(checkpoint), "--device", "cpu", "--max_new_tokens", "6", *map(str, words)])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_folder_of_the_checkpoint_may_be_the_first_word(checkpoint, capsys):
    assert main([str(checkpoint), "--device", "cpu", "--max_new_tokens", "2", "Who are you?"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["DIR", "why?"], ["--checkpoint", "DIR", "why?"]),
        (["DIR", "--checkpoint", "X"], ["DIR", "--checkpoint", "X"]),  # a question that is called like a folder
        (["DIR", "--checkpoint=X"], ["DIR", "--checkpoint=X"]),
        (["why " * 2000], ["why " * 2000]),
        ([], []),
    ],
)
def test_a_first_word_that_is_a_folder_is_the_checkpoint_unless_there_is_one(tmp_path, words, expected):
    folder = str(tmp_path)
    assert name_checkpoint([word.replace("DIR", folder) for word in words]) == [
        word.replace("DIR", folder) for word in expected
    ]


def talk(monkeypatch, *lines):
    monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))


@pytest.mark.parametrize(
    ("num_images", "text", "question", "expected"),
    [
        (0, None, "q", "q"),
        (2, None, "q", "<image>\n<image>\nq"),
        (2, None, "a <image> b <image>", "a <image> b <image>"),
        (1, "long <image> text", "q", "<image>\nlong < image> text\nq"),
        (1, "text", "in <image>", "text\nin <image>"),
    ],
)
def test_the_first_message_holds_images_text_and_question(num_images, text, question, expected):
    assert Opening((Path("x.png"),) * num_images, text).compose(question) == expected


@pytest.mark.parametrize(
    ("text", "question", "expected"),
    [
        (None, "q", "<image>\n<image>\n<video>\nq"),
        ("about <video> and <image>", "q", "<image>\n<image>\n<video>\nabout < video> and < image>\nq"),
        (None, "<video> q", "<image>\n<image>\n<video> q"),
        (None, "<image> or <image> q", "<video>\n<image> or <image> q"),
        ("text", "<video> before <image><image>", "text\n<video> before <image><image>"),
    ],
)
def test_images_stand_in_front_of_videos_unless_the_question_places_them(text, question, expected):
    assert Opening((Path("a.png"), Path("b.png")), text, videos=(Path("c.mp4"),)).compose(question) == expected


def test_the_command_answers_in_a_process_of_its_own(checkpoint, make_image):
    images = [make_image("a.png", 112, 28, seed=1), make_image("b.png", seed=2)]
    command = [warm_python(), "-m", "internvl.infer.chat", "--checkpoint", checkpoint, "--device", "cpu", "--verbose",
               "--rope_pos_id_stride", "1/2", "--max_new_tokens", "6", "--image", *images, "Which digit?"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    session = Session.from_pretrained(checkpoint, device="cpu", rope_pos_id_version="v2pe_fix", rope_pos_id_stride=0.5)
    expected = session.answer("<image>\n<image>\nWhich digit?", images, max_new_tokens=6)
    assert done.stdout == expected.text + "\n"
    sizes = (
        f"{expected.num_prompt_tokens} tokens in the prompt, {expected.num_new_tokens} in the answer, 6 tiles, "
        f"last position {expected.last_position:g}, "
    )
    assert sizes in done.stderr


def test_options_reach_the_session(run, asked, make_image, tmp_path):
    path = make_image("a.png")
    (tmp_path / "long.txt").write_text("long context")
    code, _, err = run(
        "what?", "--image", path, "--text", tmp_path / "long.txt", "--rope_pos_id_stride", "1/16", "--max_num", 2,
        "--temperature", 0.5, "--top_p", 0.9, "--seed", 3,
    )  # fmt: skip
    assert code == 0, err
    prompt, images, _, options, session = asked[0]
    assert (prompt, images) == ("<image>\nlong context\nwhat?", [str(path)])
    assert (session.settings.rope_pos_id_version, session.settings.rope_pos_id_stride, session.settings.max_num) == (
        "v2pe_fix",
        1 / 16,
        2,
    )
    del options["history"], options["on_text"], options["videos"]
    assert options == {
        "max_new_tokens": 6,
        "sampling": Sampling(0.5, 0.9, 3),
        "rope_pos_id_version": "v2pe_fix",
        "rope_pos_id_stride": 1 / 16,
        "system_message": None,
    }


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_a_text(run, asked, tmp_path, codec):
    (tmp_path / "long.txt").write_bytes("é 图\r\ncontext".encode(codec))
    assert run("what?", "--text", tmp_path / "long.txt")[0] == 0
    assert asked[0][0] == "é 图\ncontext\nwhat?"


@pytest.mark.parametrize("name", [None, "static", "offloaded", "quantized"])
def test_the_cache_reaches_generation(run, monkeypatch, name):
    asked = []
    original = InternVLChatModel.generate

    def recording(self, **options):
        asked.append(options["kv_cache"])
        return original(self, **options)

    monkeypatch.setattr(InternVLChatModel, "generate", recording)
    code, out, err = run("what?", *(() if name is None else ("--kv_cache", name)))
    assert (code, err) == (0, "")
    assert asked == [name or "dynamic"]
    assert name == "quantized" or out == run("what?")[1]


def test_rope_scaling_reaches_the_model(run, asked):
    code, _, err = run(
        "what?", "--rope_scaling", '{"type": "yarn", "factor": 4, "original_max_position_embeddings": 64}'
    )
    assert (code, err) == (0, "")
    scaling = asked[0][-1].model.config.llm_config.rope_scaling
    assert scaling == {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "scale_v2pe": True}


def test_a_generation_config_names_the_cache(session):
    ask = partial(session.model.chat, session.tokenizer, None, "what?")
    common = {"max_new_tokens": 6, "do_sample": False}
    assert ask({**common, "kv_cache": "static"}) == ask(common)
    with pytest.raises(ConfigError, match="kv_cache is 'disk'"):
        ask({**common, "kv_cache": "disk"})
    with pytest.raises(ConfigError, match="--kv_cache is 'disk'"):
        Session(session.model, session.tokenizer, kv_cache="disk")


def test_a_dash_reads_the_question_from_standard_input(run, asked, monkeypatch, make_image):
    for words in (("-",), ("--image", make_image("a.png"), "-")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffwho are\r\nyou?\n".encode())))
        assert run(*words)[0] == 0
    assert [call[0] for call in asked] == ["who are\nyou?", "<image>\nwho are\nyou?"]


def test_images_and_a_video_are_asked_about_together(run, asked, make_image, tmp_path):
    image, video = make_image("a.png", 112, 28), str(write_video(tmp_path / "clip.mp4", 30))
    code, out, err = run("--image", image, "--video", video, "--num_frames", 3, "--verbose", "what?")
    assert code == 0, err
    prompt, images, _, options, session = asked[0]
    assert (prompt, images, options["videos"]) == ("<image>\n<video>\nwhat?", [str(image)], (video,))
    expected = session.answer(prompt, [image], videos=[video], num_frames=3, max_new_tokens=6, history=[])
    assert out == expected.text + "\n"
    assert f"3 frames, 8 tiles, last position {expected.last_position:g}, " in err  # 4 + thumbnail + 3


def test_a_conversation_keeps_its_video(run, asked, monkeypatch, tmp_path):
    video = str(write_video(tmp_path / "clip.mp4", 6))
    talk(monkeypatch, "first?", "second?")
    code, _, err = run("--video", video, "--num_frames", 2)
    assert (code, err) == (0, "")
    assert [(call[0], len(call[2]), call[3]["videos"]) for call in asked] == [
        ("<video>\nfirst?", 0, (video,)),
        ("second?", 1, (video,)),
    ]


def test_tokens_are_written_as_they_come(checkpoint, monkeypatch):
    written = []
    monkeypatch.setattr(terminal, "_write_answer", written.append)
    answer = Chat(Session.from_pretrained(checkpoint, device="cpu"), Opening(), max_new_tokens=30).ask("what?")
    assert "".join(written) == answer.text + "\n"
    assert len(written) > 3


def test_a_conversation_has_a_history_until_it_is_reset(run, asked, monkeypatch, make_image):
    path = make_image("a.png")
    talk(monkeypatch, "first?", "", "second?", "/clear", "third?", "/quit", "never?")
    code, _, err = run("--image", path)
    assert (code, err) == (0, "")
    assert [call[0] for call in asked] == ["<image>\nfirst?", "second?", "<image>\nthird?"]
    assert [len(call[2]) for call in asked] == [0, 1, 0]
    assert asked[1][2][0][0] == "<image>\nfirst?"
    assert all(call[1] == [str(path)] for call in asked)


def test_pictures_and_texts_may_come_with_later_questions(run, asked, monkeypatch, make_image, tmp_path):
    first, later = make_image("a.png"), make_image("b c.png")
    (tmp_path / "notes.txt").write_text("notes")
    commands = [f"/image '{later}'", f"/text {tmp_path / 'notes.txt'}"]
    talk(monkeypatch, "first?", *commands, "second?", "third?", "/quit")
    code, _, err = run("--image", first)
    assert (code, err) == (0, "")
    assert [call[0] for call in asked] == ["<image>\nfirst?", "<image>\nnotes\nsecond?", "third?"]
    assert [call[1] for call in asked] == [[str(first)], *[[str(first), str(later)]] * 2]


def test_a_question_that_fails_leaves_what_waits_for_it(run, asked, monkeypatch, make_image):
    talk(monkeypatch, f"/image {make_image('a.png')}", "<image> <image>?", "what?", "/quit")
    assert run()[0] == 0
    assert [call[0] for call in asked] == ["<image> <image>?", "<image>\nwhat?"]


def test_positions_change_between_two_questions(run, asked, monkeypatch, make_image):
    commands = ["/stride default", "one?", "/clear", "/stride 64", "one?", "/stride", "/stride x", "two?", "/quit"]
    talk(monkeypatch, *commands)
    code, _, err = run("--image", make_image("a.png"), "--verbose")
    assert code == 0
    ends = [float(end) for end in re.findall(r"last position ([\d.]+)", err)]
    assert [call[3].get("rope_pos_id_stride") for call in asked] == [None, 64, 64]
    assert ends[1] > ends[0]
    assert "positions v2pe_fix, stride 64" in err
    assert "expected a number such as 64, 0.25 or 1/16, got 'x'" in err


def test_a_conversation_is_saved_and_its_commands_explain_themselves(run, asked, monkeypatch, tmp_path):
    out = tmp_path / "talk.json"
    talk(monkeypatch, "/system Be brief.", "what?", f"/save {out}", "/help", "/sav x", "/image", "/quit")
    code, _, err = run()
    assert code == 0
    saved = json.loads(out.read_text())
    assert [turn["question"] for turn in saved["turns"]] == ["what?"]
    assert saved["system_message"] == asked[0][3]["system_message"] == "Be brief."
    assert "pictures of the next question" in err
    assert "error: no command /sav, did you mean 'save'?; /help lists them" in err
    assert "error: /image needs the name of a file" in err


def test_a_conversation_goes_on_after_an_error_and_ends_with_its_input(run, asked, monkeypatch):
    talk(monkeypatch, "what is <image>?", "what?")
    code, _, err = run()
    assert code == 0
    assert err.startswith("error: the prompt has 1 <image> for 0 images")
    assert [(call[0], len(call[2])) for call in asked] == [("what is <image>?", 0), ("what?", 0)]


def test_literal_image_tokens_are_answered(run, make_image):
    code, out, err = run("what are <img> and <IMG_CONTEXT>?", "--image", make_image("a.png"))
    assert (code, err) == (0, "")
    assert out.endswith("\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "IMAGE", "IMAGE", "<image><image><image>?"], "3 <image> for 2 images"),
        (["--image", "none.png", "what?"], "image none.png is no file"),
        (["--image", "IMAGE", "none.png"], "image none.png is no file"),
        (["what?", "--text", "none.txt"], "none.txt: the file cannot be read"),
        (["what?", "--text", "IMAGE"], "line 1 is not UTF-8"),
        (["what?", "--rope_pos_id_stride", "0"], "must be a positive number"),
        (["what?", "--rope_scaling", "yarn:0.5"], "--rope_scaling: factor is 0.5"),
        (["what?", "--rope_scaling", '{"type": "su"}'], "expected one of none, linear, dynamic, yarn"),
        (["what?", "--rope_scaling", "dynamic:2", "--rope_pos_id_stride", "2"], "follows the number of tokens"),
        (["what?", "--rope_pos_id_stride", "-4"], "must be a positive number"),
        (["what?", "--rope_pos_id_stride", "inf"], "expected a number such as 64"),
        (["what?", "--rope_pos_id_stride", "1/0"], "expected a number such as 64"),
        (["what?", "--rope_pos_id_version", "v3"], "v2pe_fix"),
        (["what?", "--rope_pos_id_version", "v2pe_fix"], "needs rope_pos_id_stride"),
        (["what?", "--max_num", "0"], "--max_num must be at least 1"),
        (["what?", "--video", "none.mp4"], "video none.mp4 not found"),
        (["what?", "--video", "VIDEO"], "cannot be read: Invalid data found"),
        (["<video><video>?", "--video", "FRAMES"], "the prompt has 2 <video> for 1 videos"),
        (["what?", "--video", "FRAMES", "--num_frames", "0"], "--num_frames must be at least 1"),
        (["what?", "--kv_cache", "disk"], "expected one of dynamic, static, offloaded, quantized"),
        (["what?", "--temperature", "-1"], "temperature is -1"),
        ([], "there is no question"),
        ([" "], "the question is empty"),
        (["bad \udcff bytes"], "no UTF-8"),
        (["what?", "--checkpoint", "nowhere"], "nowhere does not exist"),
    ],
)
def test_errors_are_one_line_and_exit_2(run, make_image, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    files = {"IMAGE": make_image("a.png"), "VIDEO": broken, "FRAMES": tmp_path}
    code, out, err = run(*(files.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_help_explains(run):
    code, out, _ = run("--help")
    assert code == 0
    named = ("--image", "--video", "--num_frames", "--text", "--rope_pos_id_stride", "1/16")
    assert all(word in out for word in (*named, "/clear", "/quit", "<image>", "<video>"))
