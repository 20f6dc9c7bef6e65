"""A double of the Hugging Face hub: what its client asks for when it pushes a model, on loopback and in memory."""

import base64
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

LARGE = (".safetensors", ".model")  # files that the hub keeps outside of git


@dataclass
class Repository:
    """A model on the hub: files by name; large ones by the hash of their content."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    num_commits: int = 0


class Hub:
    """State of the hub, and what it was asked.

    `faults` gives the status with which requests are answered whose `METHOD PATH` matches a pattern.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: dict[str, int] = {}
        self.asked: list[str] = []
        self.address = ""

    def answer(self, line: str, body: bytes, token: str | None) -> tuple[int, object]:
        self.asked.append(line)
        for pattern, status in self.faults.items():
            if re.search(pattern, line):
                return status, {"error": "as the test wants it"}
        if token is None and not line.startswith("PUT"):
            return 401, {"error": "Invalid credentials in Authorization header"}
        for pattern, method in self.routes.items():
            if found := re.fullmatch(pattern, line):
                return method(self, body, **found.groupdict())
        return 404, {"error": f"no such address: {line}"}

    def create(self, body):
        given = json.loads(body)
        repo = f"{given['organization']}/{given['name']}"
        if repo in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{repo}"}
        self.repositories[repo] = Repository(private=given.get("visibility") == "private")
        return 200, {"url": f"{self.address}/{repo}"}

    def describe(self, body, repo):
        if repo not in self.repositories:
            return 404, {"error": "Repository not found"}
        held = self.repositories[repo]
        siblings = [{"rfilename": name} for name in held.files]
        return 200, {"id": repo, "private": held.private, "sha": str(held.num_commits), "siblings": siblings}

    def validate(self, body):
        return 200, {"errors": [], "warnings": []}

    def preupload(self, body, repo):
        names = [entry["path"] for entry in json.loads(body)["files"]]
        modes = ["lfs" if name.endswith(LARGE) else "regular" for name in names]
        return 200, {
            "files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in zip(names, modes, strict=True)]
        }

    def batch(self, body, repo):
        def reply(entry):
            upload = {"actions": {"upload": {"href": f"{self.address}/large/{entry['oid']}"}}}
            return {**entry, **({} if entry["oid"] in self.large else upload)}

        return 200, {"transfer": "basic", "objects": [reply(entry) for entry in json.loads(body)["objects"]]}

    def upload(self, body, oid):
        self.large[oid] = body
        return 200, {}

    def commit(self, body, repo):
        held = self.repositories[repo]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                held.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                held.files[value["path"]] = self.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del held.files[value["path"]]
        held.num_commits += 1
        return 200, {"success": True, "commitUrl": f"{self.address}/{repo}/commit/1", "commitOid": "1"}

    routes = {
        r"POST /api/repos/create": create,
        r"POST /api/validate-yaml": validate,
        r"GET /api/models/(?P<repo>[^/]+/[^/]+)": describe,
        r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/main": preupload,
        r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch": batch,
        r"PUT /large/(?P<oid>\w+)": upload,
        r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/main": commit,
    }


@contextmanager
def start_hub():
    """A running hub."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def handle_request(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            status, answer = hub.answer(f"{self.command} {path}", body, self.headers.get("Authorization"))
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = handle_request

        def log_message(self, *unused):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
