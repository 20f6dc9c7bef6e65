"""A server that speaks OpenAI's chat completions, behaves as a test says, and remembers what it was asked."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """A server that speaks OpenAI's form; `behave` turns a request's body and number into (status, body)."""

    def __init__(self, model="tiny"):
        self.requests, self.headers = [], []
        self.behave = lambda body, number: (200, answer("blue"))
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def reply(self, status, content):
                text = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_GET(self):
                self.reply(200 if self.path == "/v1/models" else 404, {"data": [{"id": model}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append(body)
                    server.headers.append(dict(self.headers))
                    number = len(server.requests)
                self.reply(*server.behave(body, number))

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def answer(text, **others):
    return {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 42}, **others}
