"""A server for tests of the chat page: serves its files and answers as a test says, without a model."""

import json
import threading
import time
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import internvl.serve.page as page

TOKENS_PER_TILE = 256
_PAGE = Path(next(iter(page.__path__)))
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


@dataclass
class Reply:
    """What one question gets: an error status, or words one by one, which wait for `go_on` after the first word."""

    words: tuple[str, ...] = ("A ", "red ", "square.")
    status: int = 200
    message: str = ""
    break_off: str | None = None  # an error within the stream, after the words
    is_cut: bool = False  # the connection breaks after the words
    go_on: threading.Event | None = None


class ScriptedServer(ThreadingHTTPServer):
    """Answers with the `replies` in their order, then with plain ones; keeps what it was asked in `questions`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.replies: deque[Reply] = deque()
        self.questions: list[dict] = []
        self.key: str | None = None
        self.clients_that_left = threading.Event()


def describe_prompt(question: dict) -> dict:
    """The `v2pe` field of the answer: every picture has two tiles, stands between 10 and 20 tokens of text."""
    version, stride = question["rope_pos_id_version"], question["rope_pos_id_stride"]
    step = stride / TOKENS_PER_TILE if version == "v2pe_fix" else 1.0
    parts = [part for message in question["messages"] if message["role"] == "user" for part in message["content"]]
    num_pictures = sum(part["type"] != "text" for part in parts)
    spans, position = [{"kind": "text", "tokens": 10, "start": 0.0, "step": 1.0}], 9.0
    for _ in range(num_pictures):
        spans.append({"kind": "visual", "tokens": 2 * TOKENS_PER_TILE, "start": position + step, "step": step})
        position = -(-(position + 2 * TOKENS_PER_TILE * step) // 1) + 1
        spans.append({"kind": "text", "tokens": 20, "start": position, "step": 1.0})
        position += 19
    return {
        "rope_pos_id_version": version,
        "rope_pos_id_stride": stride,
        "prompt_tokens": sum(span["tokens"] for span in spans),
        "tiles": 2 * num_pictures,
        "frames": 0,
        "last_position": position,
        "seconds": 0.41,
        "spans": spans if question.get("return_positions") else None,
    }


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            v2pe = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 64.0, "tokens_per_tile": TOKENS_PER_TILE}
            v2pe |= {"max_tiles": 12, "versions": ["default", "v2pe_fix", "v2pe_rnd"]}
            if self._has_key():
                self._send(
                    200, "application/json", json.dumps({"data": [{"id": "Scripted-2B", "v2pe": v2pe}]}).encode()
                )
            return
        path = _PAGE / ("index.html" if self.path == "/" else self.path.removeprefix("/page/"))
        self._send(200, _TYPES[path.suffix], path.read_bytes())

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._has_key():
            return
        self.server.questions.append(question)
        reply = self.server.replies.popleft() if self.server.replies else Reply()
        if reply.status != 200:
            self._refuse(reply.status, reply.message)
            return
        try:
            self._stream(question, reply)
        except (BrokenPipeError, ConnectionResetError):
            self.server.clients_that_left.set()

    def _stream(self, question: dict, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        if reply.is_cut:
            self.send_header("Content-Length", "1000000")  # more than comes
        self.end_headers()
        for number, word in enumerate(reply.words):
            self._event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            while number == 0 and reply.go_on and not reply.go_on.wait(0.05):
                self.wfile.write(b": still here\n\n")
        if reply.break_off:
            self._event({"error": {"message": reply.break_off, "type": "server_error", "param": None, "code": None}})
            return
        if reply.is_cut:
            time.sleep(0.5)  # a browser that meets the end at once may throw the words away
            return
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "v2pe": describe_prompt(question)}
        self._event(end)
        self._event({"choices": [], "usage": {"completion_tokens": len(reply.words)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def _has_key(self) -> bool:
        allowed = self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}"
        if not allowed:
            self._refuse(401, "the API key is wrong or missing")
        return allowed

    def _refuse(self, status: int, message: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self._send_json(status, {"error": error})

    def _send_json(self, status: int, body: dict) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
