"""A real server in a thread, on the tiny model of the repository or on a random one that never stops by itself."""

import base64
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai
import pytest
import uvicorn
from PIL import Image

from internvl.infer.session import Session
from internvl.serve.app import build_app
from internvl.serve.options import ServerOptions
from tests.infer.conftest import write_checkpoint

TINY = Path(__file__).parents[2] / "pretrained/InternVL2-Tiny"


@contextmanager
def run_server(session: Session, **options: object) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a server that runs meanwhile."""
    app = build_app(session, ServerOptions(**options), model_name="tiny")
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    try:
        with openai.OpenAI(base_url=url, api_key=options.get("api_key", "none"), max_retries=0, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def tiny():
    return Session.from_pretrained(TINY, device="cpu", max_num=6, reuse_prefix=True)


@pytest.fixture(scope="session")
def endless(tmp_path_factory):
    """A model whose answers are as long as they may be."""
    return Session.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("serve") / "random"), device="cpu")


@pytest.fixture(scope="session")
def media_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("allowed")
    make_picture(seed=5).save(root / "a picture.png")
    outside = tmp_path_factory.mktemp("outside")
    make_picture(seed=6).save(outside / "secret.png")
    (root / "link.png").symlink_to(outside / "secret.png")
    return root


@pytest.fixture(scope="session")
def client(tiny, media_root):
    limits = {"max_pictures": 40, "max_prompt_tokens": 600, "max_pixels": 10**6, "max_body_mib": 1}
    with run_server(tiny, allowed_media_root=media_root, **limits) as client:
        yield client


def make_picture(width: int = 84, height: int = 56, *, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def to_data_url(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def show(picture: Image.Image | str) -> dict[str, object]:
    """The part of a message for a picture or URL."""
    url = picture if isinstance(picture, str) else to_data_url(picture)
    return {"type": "image_url", "image_url": {"url": url}}


def say(*parts: object) -> dict[str, object]:
    """A user's message of texts and of pictures."""
    return {
        "role": "user",
        "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts],
    }


def ask(client: openai.OpenAI, *messages: object, **options: object):
    return client.chat.completions.create(model="tiny", messages=list(messages), **{"max_tokens": 12, **options})


def read_metric(client: openai.OpenAI, name: str) -> float:
    """The sum of a metric over its labels."""
    text = client.get("/../metrics", cast_to=str)
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.partition("{")[0].split()[0] == name
    )
