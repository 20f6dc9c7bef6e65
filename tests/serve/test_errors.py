"""What a request must not do: each time an error in OpenAI's form, and the next request is answered."""

import base64
import functools
import http.client
import http.server
import json
import threading
import time

import httpx2
import openai
import pytest
from PIL import Image

from tests.serve.conftest import ask, make_picture, read_metric, run_server, say, show, to_data_url


@pytest.fixture(autouse=True)
def the_server_goes_on(client):
    yield
    assert ask(client, say("still there?")).usage.completion_tokens > 0


def refuse(client, status, pattern, *messages, **options):
    """The error that a request gets."""
    with pytest.raises(openai.APIStatusError, match=pattern) as caught:
        ask(client, *messages, **options)
    assert caught.value.status_code == status
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    return caught.value


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("http://127.0.0.1:1/a.png", "not an address of the public internet"),
        ("http://localhost:1/a.png", "not an address of the public internet"),
        ("http://[::1]:1/a.png", "not an address of the public internet"),
        ("file:///etc/passwd", "no file below the folder"),
        ("ftp://127.0.0.1/a.png", "expected an http, https or data URL"),
        ("/etc/passwd", "expected an http, https or data URL"),
        ("memory://a.png", "expected an http, https or data URL"),
        ("data:image/png;base64,%%%", "no base64"),
        ("data:image/png,abc", "expected data:TYPE;base64,CONTENT"),
        ("data:image/png;base64," + base64.b64encode(b"no picture").decode(), "none of PNG"),
        ("", "expected an http, https or data URL"),
    ],
)
def test_urls_that_lead_nowhere_or_elsewhere(client, url, pattern):
    error = refuse(client, 400, pattern, say(show(url), "?"))
    assert error.param == "messages.0.content.0.image_url"
    assert "internvl-serve-" not in error.message  # where the server keeps files


@pytest.mark.parametrize("name", ["link.png", "../outside0/secret.png", ".", "missing.png", "a%00b.png"])
def test_files_outside_of_the_allowed_folder_are_never_read(client, media_root, name):
    """Links are followed before the place is compared, and no message says what is there."""
    refuse(client, 400, "no file below the folder", say(show(f"file://{media_root}/{name}"), "?"))


def test_files_are_refused_without_an_allowed_folder(tiny, media_root):
    with run_server(tiny) as client:
        url = f"file://{media_root}/a%20picture.png"
        refuse(client, 400, "files of the server are not allowed", say(show(url), "?"))


@pytest.mark.parametrize(
    ("message", "options", "status", "pattern"),
    [
        (say("long " * 700), {}, 400, r"the prompt has \d{3,} tokens, 0 tiles included, expected at most 600"),
        (say(show(make_picture(1001, 1000)), "?"), {}, 413, "more than 1 MiB"),
        (say(show(Image.new("L", (1001, 1000))), "?"), {}, 400, "1001 x 1000 pixels, expected at most 1,000,000"),
        (say("?"), {"model": "other"}, 404, "there is no model 'other', expected 'tiny'"),
        (say("?"), {"max_tokens": 10**6}, 400, "max_tokens is 1000000, expected at most 2048"),
        (say("?"), {"max_tokens": 0}, 400, "max_tokens"),
        (say("?"), {"temperature": -1}, 400, "temperature"),
        (say("?"), {"n": 1000}, 400, "n: "),
        (say("?"), {"stop": ["a"] * 5}, 400, "stop has 5 texts, expected at most 4"),
        (say("?"), {"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools: not supported"),
        (say("?"), {"frequency_penalty": 1}, 400, "frequency_penalty: not supported"),
        (say("?"), {"extra_body": {"rope_pos_id_stide": 1}}, 400, "rope_pos_id_stide: Extra inputs"),
        (say("?"), {"extra_body": {"rope_pos_id_stride": -1}}, 400, "must be a positive number, got -1"),
        (say("?"), {"extra_body": {"rope_pos_id_version": "v3"}}, 400, "unknown rope_pos_id_version 'v3'"),
        (say("?"), {"extra_body": {"rope_pos_id_version": "v2pe_fix"}}, 400, "needs rope_pos_id_stride"),
        ({"role": "tool", "content": "a", "tool_call_id": "1"}, {}, 400, "role"),
        ({"role": "assistant", "content": "a"}, {}, 400, "is an assistant's message, expected a user's first"),
        ({"role": "system", "content": "a"}, {}, 400, "no user's message at its end"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_requests_that_are_wrong(client, message, options, status, pattern):
    messages = options.pop("messages", [message])
    if "model" in options:
        with pytest.raises(openai.NotFoundError, match=pattern):
            client.chat.completions.create(messages=messages, **options)
        return
    refuse(client, status, pattern, *messages, **options)


def test_fields_that_change_nothing_are_taken(client):
    options = {"user": "me", "frequency_penalty": 0, "tool_choice": "none", "metadata": {"a": "b"}, "store": False}
    assert ask(client, say("?"), **options).choices


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b'{"model": "tiny', {}, 400),
        (b"[]", {}, 400),
        (b"", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"model": "tiny", "messages": []}', {}, 400),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "half \\ud800"}]}', {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Host": "evil.example"}, 400),
    ],
)
def test_bodies_that_are_no_request(client, content, headers, status):
    headers = {"Content-Type": "application/json"} | headers
    answer = httpx2.post(f"{client.base_url}chat/completions", content=content, headers=headers)
    assert answer.status_code == status
    if "Host" not in headers:
        assert answer.json()["error"]["message"]


def test_ten_thousand_pictures_are_counted_before_one_is_read(client):
    body = {"model": "tiny", "messages": [say(*[show("data:,")] * 10_000)]}
    answer = httpx2.post(f"{client.base_url}chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "10000 pictures and frames of videos, expected at most 40" in answer.json()["error"]["message"]


def test_a_body_of_a_gigabyte_is_refused_before_it_is_sent(client):
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert "more than 1 MiB" in json.load(answer)["error"]["message"]
    connection.close()


def test_a_body_without_an_announced_length_is_limited_too(client):
    pieces = (b" " * 2**18 for _ in range(20))
    headers = {"Content-Type": "application/json"}
    answer = httpx2.post(f"{client.base_url}chat/completions", content=pieces, headers=headers)
    assert answer.status_code == 413


def test_a_damaged_picture_fails_alone(client):
    """Its header is sound, so it shows only when it is decoded, beside another request."""
    url = to_data_url(make_picture())
    broken = base64.b64encode(base64.b64decode(url.partition(",")[2])[:-500]).decode()
    error = refuse(client, 400, "cannot be read", say(show(f"data:image/png;base64,{broken}"), "?"))
    assert "messages.0.content.0.image_url" in error.message
    assert "internvl-serve-" not in error.message


def test_other_paths_and_methods_have_errors_of_the_same_form(client):
    root = str(client.base_url)
    for answer in (httpx2.get(f"{root}nothing"), httpx2.get(f"{root}chat/completions"), httpx2.get(f"{root}models/x")):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["message"]


def test_a_key_is_asked_for(tiny):
    with run_server(tiny, api_key="secret") as client:
        assert ask(client, say("?")).choices
        with pytest.raises(openai.AuthenticationError, match="API key"):
            ask(client.with_options(api_key="guess"), say("?"))
        assert httpx2.get(f"{client.base_url}../metrics").status_code == 401


def test_requests_over_the_limit_get_429_and_late_ones_504(endless):
    with run_server(endless, max_requests=1, timeout_s=1.0, max_new_tokens=10**6) as client:
        late = []

        def wait_in_vain():
            late.append(refuse(client, 504, "after 1 s", say("?"), max_tokens=10**6))

        thread = threading.Thread(target=wait_in_vain)
        thread.start()
        wait_for(lambda: read_metric(client, "v2pe_open_requests") == 1)
        refuse(client, 429, "1 requests are open", say("?"))
        thread.join()
        assert late
        wait_for(lambda: read_metric(client, "v2pe_open_requests") == 0)
        assert ask(client, say("?"), max_tokens=2).choices


@pytest.mark.parametrize("is_stream", [True, False])
def test_generation_stops_when_the_client_leaves(endless, is_stream):
    with run_server(endless, max_new_tokens=10**6) as client:
        if is_stream:
            stream = ask(client, say("?"), stream=True, max_tokens=10**6)
            for _ in range(4):
                next(stream)
            stream.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                ask(client.with_options(timeout=0.5), say("?"), max_tokens=10**6)
        wait_for(lambda: read_metric(client, "v2pe_new_tokens_total") > 0)  # counted when the model stops
        assert read_metric(client, "v2pe_new_tokens_total") < 10**5
        assert read_metric(client, "v2pe_open_requests") == 0
        assert ask(client, say("?"), max_tokens=2).choices


def test_an_error_in_a_stream_is_an_event(endless):
    with run_server(endless, timeout_s=1.0, max_new_tokens=10**6) as client:
        stream = ask(client, say("?"), stream=True, max_tokens=10**6)
        with pytest.raises(openai.APIError, match="no answer after 1 s"):
            list(stream)


def test_an_error_of_the_model_is_an_answer_too(endless, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a defect")

    with run_server(endless) as client:
        monkeypatch.setattr(endless.model, "generate", fail)
        refuse(client, 500, r"internal error \(RuntimeError\)", say("?"))
        monkeypatch.undo()
        assert ask(client, say("?"), max_tokens=2).choices


def test_jobs_that_fail_together_are_answered_apart(endless, monkeypatch):
    original = endless.model.generate

    def fail_together(input_ids, **options):
        if len(input_ids) > 1:
            raise MemoryError
        return original(input_ids=input_ids, **options)

    monkeypatch.setattr("internvl.serve.engine._GATHERING_S", 0.5)
    monkeypatch.setattr(endless.model, "generate", fail_together)
    answers = []
    with run_server(endless, max_batch=2) as client:
        threads = [threading.Thread(target=lambda: answers.append(ask(client, say("?")))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 2


def wait_for(condition, *, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_pictures_at_http_urls_are_fetched_where_that_is_allowed(tiny, media_root):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=media_root))
    threading.Thread(target=server.serve_forever).start()
    try:
        with run_server(tiny, allow_private_addresses=True, max_media_mib=1) as client:
            url = f"http://127.0.0.1:{server.server_port}/a%20picture.png"
            answer = ask(client, say(show(url), "?"))
            same = ask(client, say(show(make_picture(seed=5)), "?"))
            assert answer.choices[0].message.content == same.choices[0].message.content
            (media_root / "large.png").write_bytes(b"\x89PNG\0" + bytes(2**20))
            refuse(client, 400, "more than 1,048,576 bytes", say(show(url.replace("a%20picture", "large")), "?"))
    finally:
        server.shutdown()
        server.server_close()


def test_errors_are_json(client):
    answer = httpx2.post(f"{client.base_url}chat/completions", json={"model": "tiny", "messages": "?"})
    assert json.loads(answer.text)["error"]["param"] == "messages"


def test_a_client_that_leaves_while_its_pictures_are_fetched_leaves_nothing(tiny):
    """The thread that fetches cannot be stopped; what it takes afterwards is given back."""
    release, asked = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.set()
            release.wait(10)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(base64.b64decode(to_data_url(make_picture()).partition(",")[2]))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    try:
        with run_server(tiny, allow_private_addresses=True) as client:
            url = f"http://127.0.0.1:{server.server_port}/a.png"
            with pytest.raises(openai.APITimeoutError):
                ask(client.with_options(timeout=0.5), say(show(url), "?"))
            assert asked.wait(5)
            assert read_metric(client, "v2pe_open_requests") == 1
            release.set()
            wait_for(lambda: read_metric(client, "v2pe_open_requests") == 0)
            assert read_metric(client, "v2pe_prompt_tokens_total") == 0
    finally:
        release.set()
        server.shutdown()
        server.server_close()
