"""The command: how it starts, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import pytest

from internvl.serve.__main__ import main
from tests.infer.conftest import write_checkpoint
from tests.serve.conftest import TINY
from tests.warm_python import warm_python


@pytest.mark.parametrize(("number", "grace", "is_finished"), [(signal.SIGTERM, 30, True), (signal.SIGINT, 1, False)])
def test_signals_let_requests_finish_for_a_while(tmp_path, number, grace, is_finished):
    """Within the grace time an answer is completed; after it, generation stops. The server ends in either case."""
    checkpoint = write_checkpoint(tmp_path / "random")
    limits = ["--grace_s", str(grace), "--max_new_tokens", "1000000", "--device", "cpu"]
    command = [warm_python(), "-m", "internvl.serve", str(checkpoint), "--port", "0", *limits]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        url = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+", line)))
        answers = []

        def ask():
            body = {"model": "random", "messages": [{"role": "user", "content": "?"}]}
            body["max_tokens"] = 300 if is_finished else 10**6
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request) as answer:
                    answers.append(json.load(answer))
            except OSError as error:
                answers.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        while b"v2pe_batch_size_sum 1.0" not in urllib.request.urlopen(f"{url}/metrics").read():
            time.sleep(0.02)
        server.send_signal(number)
        rest = server.stderr.read()
        assert server.wait(20) == 128 + number
    thread.join()
    assert re.search(r"(stopped by SIGTERM|interrupted); start the same command again", rest)
    assert "Traceback" not in rest
    assert isinstance(answers[0], dict) is is_finished


def test_a_port_that_is_taken_is_said_before_the_model_loads(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main([str(TINY), "--port", str(other.getsockname()[1])]) == 2
    assert "Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["missing"], "missing"),
        (["--port", "0", "--checkpoint", "missing"], "missing"),
        (["--checkpoint=missing"], "missing"),
        ([str(TINY), "--allowed_media_root", "missing"], "--allowed_media_root missing is no folder"),
        ([str(TINY), "--port", "80000"], "--port must be from 0 to 65535, got 80000"),
        ([str(TINY), "--max_batch", "0"], "--max_batch must be at least 1, got 0"),
        ([str(TINY), "--rope_pos_id_version", "v3"], "unknown rope_pos_id_version 'v3'"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, arguments, line):
    assert main(arguments) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert line in error
