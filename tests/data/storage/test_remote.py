import hashlib
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
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
from internvl.data.storage.remote import fetch_file
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
    """A web server: `files` by path, `asked` paths in order, `failures` to give before a path is served."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(self.path)
            server.asked.append(path)
            content = server.files.get(path)
            if server.failures.get(path, 0) > 0:
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
    document = make_encoder(normalize_type="siglip").encode(
        record, document_generator(0, epoch=0, source="mixed", row=0, repeat=0)
    )
    shown = ((document.pixel_values[:, :, 0, 0] + 1) * 127.5).round().int().tolist()
    assert shown == [list(colour) for colour in colours.values()]


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


def test_a_cache_that_cannot_be_written_ends_the_run(server, tmp_path, monkeypatch, make_image):
    server.files["/a.png"] = make_image("a.png").read_bytes()
    (tmp_path / "no_folder").write_text("")
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "no_folder"))
    with pytest.raises(ConfigError, match="set INTERNVL_CACHE to a folder that can be written"):
        load_image(f"{server.url}/a.png")
