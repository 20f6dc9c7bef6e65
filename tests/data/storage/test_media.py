import hashlib
from pathlib import Path

import pytest
from PIL import Image

from internvl.data.storage.media import load_image, read_image_size, resolve_image_path
from internvl.errors import DataError


def test_relative_paths_are_below_the_root_and_absolute_ones_stay():
    assert resolve_image_path("a/b.png", root=Path("/r")) == Path("/r/a/b.png")
    assert resolve_image_path("/x/b.png", root=Path("/r")) == Path("/x/b.png")


def test_the_second_root_is_for_records_with_several_images():
    roots = {"root": Path("/r"), "root2": Path("/r2")}
    assert resolve_image_path("b.png", **roots, is_multi_image=True) == Path("/r2/b.png")
    assert resolve_image_path("b.png", **roots) == Path("/r/b.png")


def test_paths_that_lead_out_of_the_root_are_refused():
    for path in ("..", "../b.png", "a/../../b.png", "./../b.png"):
        with pytest.raises(DataError, match=r"leads out of its root /r; correct it"):
            resolve_image_path(path, root=Path("/r"))
    assert resolve_image_path("a/../b.png", root=Path("/r")) == Path("/r/a/../b.png")
    assert resolve_image_path("..b/c.png", root=Path("/r")) == Path("/r/..b/c.png")


def test_urls_are_kept_unless_their_file_is_stored():
    url = "https://example.org/b.png"
    assert resolve_image_path(url, root=Path("/r")) == url
    assert resolve_image_path("s3://bucket/b.png", root=Path("/r")) == "s3://bucket/b.png"


def test_a_stored_file_stands_for_its_url(tmp_path):
    url = "https://example.org/b.png"
    roots = {"root": Path("/r"), "http_root": tmp_path}
    assert resolve_image_path(url, **roots) == url
    stored = tmp_path / hashlib.sha256(url.encode()).hexdigest()
    stored.write_bytes(b"")
    assert resolve_image_path(url, **roots) == stored
    assert resolve_image_path("s3://bucket/b.png", **roots) == "s3://bucket/b.png"


def test_a_root_may_be_a_url():
    assert resolve_image_path("a//b.png", root="s3://bucket/x/") == "s3://bucket/x/a/b.png"
    assert resolve_image_path("/a/b.png", root="s3://bucket/x") == Path("/a/b.png")
    with pytest.raises(DataError, match="leads out of its root s3://bucket/x"):
        resolve_image_path("../b.png", root="s3://bucket/x")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host/b.png", "zip://a.png::s3://b/c.zip"])
def test_urls_of_other_kinds_are_refused(url):
    with pytest.raises(DataError, match="expected a path or one of http, https, s3"):
        resolve_image_path(url, root=Path("/r"))


def test_header_and_picture_agree_whatever_the_orientation_tag_says(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("L", (40, 30)).save(path, exif=exif)
    picture = load_image(path)
    assert read_image_size(path) == picture.size == (40, 30)
    assert picture.mode == "RGB"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_cut_short_is_an_error_with_its_path(make_image, suffix):
    path = make_image(f"whole.{suffix}", 200, 200)
    path.write_bytes(path.read_bytes()[:-2000])
    assert read_image_size(path) == (200, 200)
    with pytest.raises(DataError, match=f"whole.{suffix} cannot be read"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"no picture"], ids=["empty", "text"])
@pytest.mark.parametrize("read", [read_image_size, load_image])
def test_files_that_are_no_images_are_errors(tmp_path, content, read):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png cannot be read"):
        read(path)


@pytest.mark.parametrize("read", [read_image_size, load_image])
def test_a_missing_file_is_an_error_that_names_the_root(tmp_path, read):
    with pytest.raises(DataError, match="not found; check the data set's root"):
        read(tmp_path / "none.png")


def test_an_image_of_no_size_is_an_error(tmp_path):
    path = tmp_path / "flat.bmp"
    Image.new("RGB", (3, 3)).save(path)
    content = bytearray(path.read_bytes())
    content[18:22] = (0).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"flat\.bmp"):
        read_image_size(path)
