import errno
import hashlib
import http.server
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import unquote

import fsspec
import numpy as np
import pytest
from PIL import Image

from internvl.data.encode import document_generator
from internvl.data.meta import SourceSpec
from internvl.data.records import parse_record
from internvl.data.storage import remote
from internvl.data.storage.media import load_image, read_image_size
from internvl.data.storage.outage import is_system_fault
from internvl.data.storage.remote import WebLimits, download, fetch_file
from internvl.data.video import load_frames, read_video_info
from internvl.errors import ConfigError, DataError, MissingDependencyError
from tests.data.conftest import conversation
from tests.data.numbered_videos import read_numbers, write_video


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0)
    return tmp_path / "cache" / "remote"


@pytest.fixture
def server():
    """A web server: `files` by path, `asked` paths in order, `failures` to give before a path is served.

    `answers` are functions that write what a path is answered with, whatever it is.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(self.path)
            server.asked.append(path)
            content = server.files.get(path)
            if path in server.answers:
                server.answers[path](self)
            elif server.failures.get(path, 0) > 0:
                server.failures[path] -= 1
                self.send_error(503)
            elif content is None:
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) + server.num_missing_bytes))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.failures, server.num_missing_bytes = {}, [], {}, 0
    server.answers = {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_picture_of_the_web_is_fetched_once(server, make_image, cache):
    path = make_image("a b ç.png", 31, 17)
    server.files["/in/a b ç.png"] = path.read_bytes()
    url = f"{server.url}/in/a b ç.png"
    assert read_image_size(url) == (31, 17)
    assert load_image(url).tobytes() == load_image(path).tobytes()
    assert server.asked == ["/in/a b ç.png"]
    assert [file.name for file in cache.iterdir()] == [hashlib.sha256(url.encode()).hexdigest()]


def test_the_cache_serves_as_http_root_elsewhere(server, make_image, cache):
    server.files["/a.png"] = make_image("a.png").read_bytes()
    read_image_size(f"{server.url}/a.png")
    spec = SourceSpec("web", annotation=cache, http_root=cache)
    record = parse_record({"conversations": conversation("q", "a"), "image": f"{server.url}/a.png"}, spec, row=0)
    assert record.image_paths == (cache / hashlib.sha256(f"{server.url}/a.png".encode()).hexdigest(),)


def test_a_failing_server_is_asked_again_and_a_missing_page_is_not(server, make_image):
    server.files["/a.png"] = make_image("a.png").read_bytes()
    server.failures["/a.png"] = 2
    assert read_image_size(f"{server.url}/a.png") == (40, 30)
    assert len(server.asked) == 3
    with pytest.raises(DataError, match=r"none\.png cannot be fetched: HTTP Error 404.* set http_root"):
        read_image_size(f"{server.url}/none.png")
    assert server.asked[3:] == ["/none.png"]


def test_a_connection_that_ends_early_leaves_nothing(server, make_image, cache):
    server.files["/a.png"] = make_image("a.png").read_bytes()
    server.num_missing_bytes = 10
    with pytest.raises(DataError, match="the connection ended 10 bytes early"):
        load_image(f"{server.url}/a.png")
    assert not list(cache.iterdir())
    server.num_missing_bytes = 0
    assert load_image(f"{server.url}/a.png").size == (40, 30)


def test_nobody_at_the_other_end_is_an_error_of_the_record(server):
    server.server_close()
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch_file(f"{server.url}/a.png")
    for url in ("http://", "http://[/a.png", "http://host:port/a.png"):
        with pytest.raises(DataError, match="cannot be fetched"):
            fetch_file(url)


def test_a_url_fetched_by_many_at_once_is_whole(server, cache):
    content = np.random.default_rng(0).bytes(3_000_000)
    server.files["/a.bin"] = content
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(fetch_file, [f"{server.url}/a.bin"] * 8))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == content
    assert len(list(cache.iterdir())) == 1


def test_videos_can_be_at_urls(server, tmp_path):
    film = write_video(tmp_path / "film.mp4", 30)
    server.files["/film.mp4"] = film.read_bytes()
    assert read_video_info(f"{server.url}/film.mp4") == read_video_info(film)
    assert read_numbers(load_frames(f"{server.url}/film.mp4", [2, 28])) == [2, 28]


def test_records_mix_stores_the_web_and_files(server, tmp_path, make_image, make_encoder):
    colours = {"web": (255, 0, 0), "store": (0, 255, 0), "file": (0, 0, 255)}
    for name, colour in colours.items():
        Image.new("RGB", (28, 28), colour).save(tmp_path / f"{name}.png")
    server.files["/web.png"] = (tmp_path / "web.png").read_bytes()
    fsspec.filesystem("memory").pipe("/bucket/in/store.png", (tmp_path / "store.png").read_bytes())
    spec = SourceSpec("mixed", annotation=tmp_path, root="memory://bucket")
    images = [f"{server.url}/web.png", "in/store.png", str(tmp_path / "file.png")]
    record = parse_record({"conversations": conversation("<image>" * 3, "a"), "image": images}, spec, row=0)
    document = make_encoder().encode(record, document_generator(0, epoch=0, source="mixed", row=0, repeat=0))
    assert document.pixel_values[:, :, 0, 0].tolist() == [list(colour) for colour in colours.values()]


def test_a_missing_object_is_an_error_of_the_record():
    with pytest.raises(DataError, match=r"memory://bucket/none\.png cannot be fetched: there is no such object"):
        load_image("memory://bucket/none.png")


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs")])
def test_a_store_without_its_package_names_the_pip_line(monkeypatch, scheme, package):
    def refuse(*_, **__):
        raise ImportError

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    with pytest.raises(MissingDependencyError, match=f"pip install fsspec {package}$"):
        read_image_size(f"{scheme}://bucket/a.png")


def drip(part: str):
    """Answer with a byte every 20 ms, in the head or in the body, for as long as somebody listens."""

    def answer(handler):
        if part == "body":
            handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n\x89PNG\r\n\x1a\n\0")
        with suppress(OSError):
            while True:
                handler.wfile.write(b"\0" if part == "body" else b"H")
                time.sleep(0.02)

    return answer


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_drips_bytes_costs_limited_time(server, cache, monkeypatch, part):
    monkeypatch.setattr(remote, "_LIMITS", WebLimits(total_s=0.3))
    server.answers["/a.png"] = drip(part)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"a\.png cannot be fetched: (no answer|it is not complete) after 0 s"):
        load_image(f"{server.url}/a.png")
    assert time.monotonic() - start < 3
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_that_is_too_large_is_refused(server, cache, monkeypatch, is_announced):
    monkeypatch.setattr(remote, "_LIMITS", WebLimits(max_bytes=3 << 20))

    def answer(handler):
        handler.send_response(200)
        if is_announced:
            handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        with suppress(OSError):
            while True:
                handler.wfile.write(bytes(1 << 20))

    server.answers["/a.png"] = answer
    with pytest.raises(DataError, match=r"it has more than 3,145,728 bytes"):
        load_image(f"{server.url}/a.png")
    assert not list(cache.iterdir())


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:1/a.png", "file:///etc/hostname", "data:image/png;base64,AA", "/"])
def test_a_redirect_leads_to_the_web_only(server, cache, target):
    server.answers["/first"] = lambda handler: redirect(handler, "/second")
    server.answers["/second"] = lambda handler: redirect(handler, target if target != "/" else "/first")
    with pytest.raises(DataError, match=r"/first cannot be fetched: .*(ftp|file|data|infinite loop)"):
        fetch_file(f"{server.url}/first")
    assert not cache.exists()


def redirect(handler, target: str) -> None:
    handler.send_response(302)
    handler.send_header("Location", target)
    handler.end_headers()


def test_a_redirect_to_another_page_of_the_web_is_followed(server, make_image):
    server.files["/real.png"] = make_image("a.png").read_bytes()
    server.answers["/a.png"] = lambda handler: redirect(handler, f"{server.url}/real.png")
    assert load_image(f"{server.url}/a.png").size == (40, 30)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"\n <!DOCTYPE html><html><body>Sign in \xe2\x80\x94 please</body></html>" * 20, "it is text .*DOCTYPE html"),
        ("<html>登录</html>".encode() * 100, "it is text"),
        (b'{"error": "quota exceeded"}', "it is text .*quota"),
        (b"Access denied", "it is text .*Access denied"),
        (b"", "it is empty"),
    ],
)
def test_a_page_in_place_of_a_picture_is_not_kept(server, cache, make_image, content, cause):
    server.files["/a.png"] = content
    with pytest.raises(DataError, match=rf"a\.png cannot be fetched: {cause}"):
        load_image(f"{server.url}/a.png")
    assert not list(cache.iterdir())
    server.files["/a.png"] = make_image("a.png").read_bytes()  # signed in by now
    assert load_image(f"{server.url}/a.png").size == (40, 30)


def test_running_out_of_files_is_no_fault_of_a_url(monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr("http.client.socket.create_connection", fail)
    with pytest.raises(DataError) as caught:
        fetch_file("http://127.0.0.1:9/a.png")
    assert is_system_fault(caught.value)


def test_a_cache_that_cannot_be_written_ends_the_run(server, tmp_path, monkeypatch, make_image):
    server.files["/a.png"] = make_image("a.png").read_bytes()
    (tmp_path / "no_folder").write_text("")
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "no_folder"))
    with pytest.raises(ConfigError, match="set INTERNVL_CACHE to a folder that can be written"):
        load_image(f"{server.url}/a.png")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "2130706433"])
def test_public_downloads_never_connect_to_this_machine(server, tmp_path, host):
    server.files["/a.png"] = b"\x89PNG\0"
    with (tmp_path / "a.png").open("wb") as file, pytest.raises(DataError, match="not an address of the public"):
        download(f"http://{host}:{server.server_port}/a.png", file, WebLimits(is_public=True))
    assert server.asked == []


@pytest.mark.parametrize(
    ("ip", "is_public"),
    [
        *((ip, True) for ip in ("8.8.8.8", "2001:4860:4860::8888")),
        *((ip, False) for ip in ("10.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "::")),
        *(
            (ip, False)
            for ip in ("fd00::1", "fe80::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "::7f00:1")
        ),
    ],
)
def test_addresses_that_lead_into_a_private_network_are_not_public(ip, is_public):
    assert remote._is_public(ip) is is_public


def test_public_downloads_use_no_proxy(server, tmp_path, monkeypatch):
    """A proxy of this machine would reach what this machine must not."""
    monkeypatch.setenv("http_proxy", server.url)
    with (tmp_path / "a.png").open("wb") as file, pytest.raises(DataError, match="not an address of the public"):
        download("http://127.0.0.1:1/a.png", file, WebLimits(is_public=True))
    assert server.asked == []


def test_downloads_are_not_kept_and_respect_their_own_limit(server, cache, tmp_path):
    server.files["/a.png"] = b"\x89PNG\0" + bytes(100)
    with (tmp_path / "a.png").open("wb") as file:
        download(f"{server.url}/a.png", file, WebLimits(max_bytes=200))
        with pytest.raises(DataError, match="more than 50 bytes"):
            download(f"{server.url}/a.png", file, WebLimits(max_bytes=50))
    assert (tmp_path / "a.png").read_bytes()[:105] == server.files["/a.png"]
    assert not cache.exists()


def test_public_downloads_follow_no_redirect_to_a_private_address(server, tmp_path, monkeypatch):
    """The first address passes as public here; the one that it leads to does not."""
    monkeypatch.setattr(remote, "_is_public", lambda ip: ip == "127.0.0.1")

    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", f"http://127.0.0.2:{server.server_port}/a.png")
        handler.end_headers()

    server.answers["/redirect"] = answer
    with (
        (tmp_path / "a.png").open("wb") as file,
        pytest.raises(DataError, match=r"127\.0\.0\.2, which"),
    ):
        download(f"{server.url}/redirect", file, WebLimits(is_public=True))
    assert server.asked == ["/redirect"]
