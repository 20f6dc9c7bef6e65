"""Evaluation through a server: what is sent, what is asked again, what is refused, and that nothing is lost."""

import base64
import io
import json
from types import SimpleNamespace

import pytest
from PIL import Image

from eval.core.sample import Sample
from eval.run import chat_server
from eval.run.__main__ import main
from eval.run.endpoint import write_message
from internvl.data.video import VideoClip, choose_frames
from tests.eval.run.chat_server_double import Server, answer


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(chat_server, "FIRST_PAUSE_S", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Server()
    yield made
    made.close()


@pytest.fixture
def arguments(server, benchmark_root, record, tmp_path):
    """A working command line with a task of 6 questions."""
    benchmark_root.write("retrieval-text", [record(i, num_images=1 + i % 2) for i in range(6)])
    return [
        "--endpoint", server.url, "--model", "tiny", "--tasks", "mm_niah/retrieval-text-test",
        "--data-root", str(benchmark_root.root), "--out", str(tmp_path / "out"),
    ]  # fmt: skip


@pytest.mark.parametrize("ablation", ["no_image", "text_only", "shuffled_images"])
def test_a_server_is_asked_without_what_pictures_show(server, arguments, benchmark_root, record, ablation):
    images = benchmark_root.root / "MM-NIAH" / "mm_niah_test" / "images"
    benchmark_root.write("retrieval-text", [{**record(i), "images_list": [f"{i}.png"]} for i in range(2)])
    assert main([*arguments, "--limit", "1", "--ablate", ablation]) == 0
    *pictures, text = server.requests[0]["messages"][0]["content"]
    contents = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in pictures]
    if ablation == "text_only":
        assert contents == []
        assert "<image>" not in text["text"]
    elif ablation == "no_image":
        assert Image.open(io.BytesIO(contents[0])).getcolors() == [(28 * 28, (128, 128, 128))]
    else:
        assert contents == [(images / "1.png").read_bytes()]


def read_predictions(tmp_path):
    path = tmp_path / "out" / "mm_niah" / "retrieval-text-test" / "predictions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_has_the_files_of_any_other(server, arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    server.behave = lambda body, number: (200, answer(" blue ", v2pe={"tiles": 3, "last_position": 17.5}))
    assert main([*arguments, "--rope_pos_id_stride", "1/4", "--temperature", "0.5"]) == 0
    lines = read_predictions(tmp_path)
    assert [line["response"] for line in lines] == ["blue"] * 6
    assert {(line["num_prompt_tokens"], line["num_tiles"], line["last_position"]) for line in lines} == {(42, 3, 17.5)}
    folder = tmp_path / "out" / "mm_niah" / "retrieval-text-test"
    assert json.loads((folder / "scores.json").read_text())["results"]["official"]["score"] == 1.0
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["settings"]["model"] == "tiny"
    assert settings["settings"]["rope_pos_id_stride"] == 0.25
    assert all(headers["Authorization"] == "Bearer secret-key" for headers in server.headers)
    assert not any("secret-key" in path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["rope_pos_id_stride"]) == ("tiny", 0.5, 0.25)
    assert "max_tiles" not in body  # nobody asked for it


def test_pictures_are_sent_as_they_are_and_the_text_says_where_they_stand(server, arguments, benchmark_root):
    assert main(arguments) == 0
    body = next(body for body in server.requests if len(body["messages"][0]["content"]) == 3)
    first, second, text = body["messages"][0]["content"]
    sent = base64.b64decode(first["image_url"]["url"].partition("base64,")[2])
    assert sent == (benchmark_root.root / "MM-NIAH/mm_niah_test/images/0.png").read_bytes()
    assert second["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["text"].count("<image>") == 2
    assert {"rope_pos_id_version", "rope_pos_id_stride", "max_tiles"}.isdisjoint(body)


def test_frames_of_a_video_are_labelled_pictures(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for number, colour in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (8, 8), colour).save(folder / f"{number}.png")
    sample = Sample("1", "<video>\nWhich colour is last?", (), "blue", videos=(VideoClip(folder),))
    *pictures, text = write_message(SimpleNamespace(num_frames=3), sample)
    assert text["text"] == "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\nWhich colour is last?"
    last = base64.b64decode(pictures[-1]["image_url"]["url"].partition("base64,")[2])
    shown = folder / f"{choose_frames(VideoClip(folder), num_frames=3)[-1]}.png"
    assert last == shown.read_bytes()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, arguments, tmp_path, status):
    server.behave = lambda body, number: (
        (status, {"error": {"message": "busy"}}) if number % 2 else (200, answer("blue"))
    )
    assert main(arguments) == 0
    assert [line["failure"] for line in read_predictions(tmp_path)] == [None] * 6


def test_a_question_that_the_server_refuses_fails_alone(server, arguments, tmp_path):
    def behave(body, number):
        if "secret 3" in body["messages"][0]["content"][-1]["text"]:
            return 400, {"error": {"message": "the prompt is too long"}}
        return 200, answer("blue")

    server.behave = behave
    assert main(arguments) == 0
    failures = [line["failure"] for line in read_predictions(tmp_path)]
    assert failures[3] == "the server refused it: status 400, the prompt is too long"
    assert failures.count(None) == 5


def test_answers_are_kept_when_the_server_goes_away(server, arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(chat_server, "NUM_TRIES", 2)
    server.behave = lambda body, number: (200, answer("blue")) if number <= 4 else (503, b"down")
    assert main([*arguments, "--endpoint_requests", "2"]) == 2
    assert "2 requests in a row got no answer, the last one status 503, down" in capsys.readouterr().err
    server.requests.clear()
    server.behave = lambda body, number: (200, answer("green"))
    assert main(arguments) == 0
    assert len(server.requests) == 2
    assert sorted(line["response"] for line in read_predictions(tmp_path)) == ["blue"] * 4 + ["green"] * 2


def test_an_answer_in_another_form_is_a_failure(server, arguments, tmp_path):
    server.behave = lambda body, number: (200, {"choices": []})
    assert main(arguments) == 3
    assert all("not a chat completion" in line["failure"] for line in read_predictions(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "tinny"}, "--model 'tinny' is not served there, did you mean 'tiny'?"),
        ({"--endpoint": "http://127.0.0.1:1"}, "no server answers"),
        ({"--endpoint": "nonsense"}, "--endpoint nonsense: no server answers"),
        ({"--rope_scaling": "yarn:4"}, "a server takes no --rope_scaling"),
        ({"--batch_size": "4"}, "how the server computes is its own affair"),
        ({"--checkpoint": "x"}, "give either --checkpoint, or --endpoint and --model"),
    ],
)
def test_what_cannot_work_is_said_before_questions_are_sent(server, arguments, changes, message, capsys):
    for name, value in changes.items():
        arguments = [*arguments, name, value]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert server.requests == []


def test_a_wrong_key_ends_the_run(server, arguments, capsys):
    server.behave = lambda body, number: (401, {"error": {"message": "wrong key"}})
    assert main(arguments) == 2
    assert "put the server's key into the environment variable OPENAI_API_KEY" in capsys.readouterr().err
