"""Pictures and videos of the web at inference: a URL is fetched once, and answers are those of the file."""

import functools
import http.server
import threading

import pytest

from eval.bridges.conversation import Message, Part, build_question
from internvl.data.storage import remote
from internvl.errors import DataError
from internvl.infer.chat import main as chat
from tests.data.numbered_videos import write_video


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path, make_image, monkeypatch):
    """A web server with `a.png`, `v.mp4` and `page.html`: (its address, the folder that it serves)."""
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0)
    folder = make_image("a.png").parent
    write_video(folder / "v.mp4", 4)
    (folder / "page.html").write_text("<html>sign in</html>")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_session_takes_urls_of_pictures_and_videos(session, web):
    address, folder = web
    for name, options in (("a.png", {}), ("v.mp4", {"num_frames": 2})):
        show = {"images": []} if options else {}
        prompt, kind = ("<video>\nq", "videos") if options else ("<image>\nq", "images")
        here, there = (
            session.answer(prompt, **{**show, kind: [f"{place}/{name}"]}, max_new_tokens=4, **options)
            for place in (folder, address)
        )
        assert there.text == here.text
        assert there.num_prompt_tokens == here.num_prompt_tokens


def test_chat_takes_urls(checkpoint, web, capsys):
    address, folder = web
    command = [
        "--checkpoint",
        str(checkpoint),
        "--device",
        "cpu",
        "--max_new_tokens",
        "4",
        "--num_frames",
        "2",
        "--image",
    ]
    answers = []
    for place in (folder, address):
        assert chat([*command, f"{place}/a.png", "what?", "--video", f"{place}/v.mp4"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["none.png", "page.html"])
def test_chat_refuses_what_is_no_picture_in_one_line(checkpoint, web, name, capsys):
    assert chat(["--checkpoint", str(checkpoint), "--device", "cpu", "--image", f"{web[0]}/{name}", "what?"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert f"{web[0]}/{name}" in error


def test_other_schemes_are_refused_in_one_line(session):
    with pytest.raises(DataError, match=r"ftp://host/a\.png"):
        session.answer("<image>\nq", ["ftp://host/a.png"], max_new_tokens=2)


def test_bridges_keep_urls_as_they_are(session, web):
    address, _ = web
    parts = (Part("image", f"{address}/a.png"), Part("video", f"{address}/v.mp4"), Part("text", "q"))
    question = build_question([Message("user", parts)])
    assert question.images == (f"{address}/a.png",)
    assert question.videos[0].path == f"{address}/v.mp4"
    assert session.ask(question, max_new_tokens=2).num_prompt_tokens > 0
