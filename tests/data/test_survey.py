import errno
import json
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from internvl.data.encode import SampleEncoder, document_generator
from internvl.data.packing import PackingLimits
from internvl.data.records import RecordFile
from internvl.data.storage.media import load_image
from internvl.data.survey import SourceReport, Survey
from internvl.errors import ConfigError, DataError, MissingDependencyError

from .conftest import conversation
from .numbered_videos import write_gif, write_video

GOOD = None  # the document is used


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(path, width, height, *extra: bytes, rows: bytes = b""):
    """A grey 8-bit PNG file from its parts, whatever its header says."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    parts = [header, *extra, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def cut_short(path, num_bytes):
    path.write_bytes(path.read_bytes()[:-num_bytes])


def write_pictures(folder):
    """A picture of every broken or odd kind."""
    folder.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    noise.save(folder / "whole.png")
    noise.save(folder / "cut.jpg", quality=95)
    cut_short(folder / "cut.jpg", 1500)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("404 not found")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    write_png(folder / "flat.png", 0, 10)
    write_png(folder / "bomb.png", 30_000, 30_000, rows=bytes(1000))
    bomb = zlib.compress(bytes(100_000_000))
    write_png(folder / "text_bomb.png", 4, 4, png_chunk(b"zTXt", b"Comment\0\0" + bomb), rows=bytes(20))
    noise.save(folder / "texture.dds")
    box = struct.pack(">I4sQ", 1, b"jp2h", 1 << 60)
    (folder / "greedy.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n" + box)
    Image.new("RGB", (20_000, 20)).save(folder / "long.png")
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.full((30, 40), 51_200, dtype=np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(np.ones((30, 40), dtype=np.int32)).save(folder / "thirty_two.tif")
    noise.quantize(16).save(folder / "palette.png", transparency=bytes(16))
    noise.convert("RGBA").save(folder / "alpha.png")
    noise.convert("LA").save(folder / "grey_alpha.png")
    noise.convert("1").save(folder / "bilevel.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(folder / "turned.jpg", exif=exif)
    write_gif(folder / "endless.gif", 12)
    write_gif(folder / "cut.gif", 12)
    cut_short(folder / "cut.gif", 20)
    write_video(folder / "film.mp4", 20)
    (folder / "text.mp4").write_text("no film")
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        archive.write(folder / "whole.png", "in/whole.png")
    (folder / "broken.zip").write_bytes((folder / "pictures.zip").read_bytes()[:200])
    (folder / "packed.tar.gz").write_bytes(b"\x1f\x8b")
    (folder.parent / "outside.png").write_bytes((folder / "whole.png").read_bytes())


def ask(**entries):
    return {"conversations": conversation("What is this?", "A cat."), **entries}


# name: (line of the annotation, what is found without decoding, part of the cause)
KINDS = {
    "whole picture": (ask(image="whole.png"), GOOD, ""),
    "missing picture": (ask(image="none.png"), "missing", "not found"),
    "one of several missing": (
        {"conversations": conversation("<image><image>", "a"), "image": ["whole.png", "none.png"]},
        "missing",
        "not found",
    ),
    "empty file": (ask(image="empty.png"), "image", "cannot be read"),
    "no picture": (ask(image="text.png"), "image", "it is none of PNG, JPEG"),
    "folder": (ask(image="folder.png"), "image", "not a regular file"),
    "pipe": (ask(image="pipe.png"), "image", "not a regular file"),
    "no width": (ask(image="flat.png"), "image", "flat.png"),
    "decompression bomb": (ask(image="bomb.png"), "image", "decompression bomb"),
    "text that explodes": (ask(image="text_bomb.png"), "image", "too large"),
    "32-bit pixels": (ask(image="thirty_two.tif"), "image", "pixels of 32 bits"),
    "unlisted format": (ask(image="texture.dds"), "image", "it is none of PNG, JPEG"),
    "header that asks for all memory": (ask(image="greedy.jp2"), "image", "MemoryError"),
    "nul in a path": (ask(image="a\0.png"), "image", "null"),
    "name too long": (ask(image="a" * 5000), "image", "too long"),
    "cut short": (ask(image="cut.jpg"), GOOD, ""),
    "20,000 x 20": (ask(image="long.png"), GOOD, ""),
    "CMYK": (ask(image="cmyk.jpg"), GOOD, ""),
    "16 bits": (ask(image="sixteen.png"), GOOD, ""),
    "palette with transparency": (ask(image="palette.png"), GOOD, ""),
    "alpha": (ask(image="alpha.png"), GOOD, ""),
    "grey with alpha": (ask(image="grey_alpha.png"), GOOD, ""),
    "black and white": (ask(image="bilevel.png"), GOOD, ""),
    "EXIF rotation": (ask(image="turned.jpg"), GOOD, ""),
    "endless gif as a picture": (ask(image="endless.gif"), GOOD, ""),
    "endless gif as a video": (ask(video="endless.gif"), GOOD, ""),
    "film": (ask(video="film.mp4"), GOOD, ""),
    "missing film": (ask(video="none.mp4"), "missing", "not found"),
    "no film": (ask(video="text.mp4"), "video", "cannot be read"),
    "nul in the path of a film": (ask(video="a\0.mp4"), "video", "null"),
    "clip without end": (ask(video="film.mp4", clip=[0, 10**400]), "record", "'clip' is"),
    "clip after the end": (ask(video="film.mp4", clip=[100, 200]), "video", "no frame between"),
    "member of an archive": (ask(image="pictures.zip/in/whole.png"), GOOD, ""),
    "missing member": (ask(image="pictures.zip/in/none.png"), "missing", "not found"),
    "broken archive": (ask(image="broken.zip/in/whole.png"), "archive", "broken.zip cannot be read"),
    "compressed tar": (ask(image="packed.tar.gz/whole.png"), "archive", "compressed tar file"),
    "out of the root": (ask(image="../outside.png"), "path", "leads out of its root"),
    "out of the root, hidden": (ask(image="a/../../outside.png"), "path", "leads out of its root"),
    "out of the root, film": (ask(video="../film.mp4"), "path", "leads out of its root"),
    "unknown kind of URL": (ask(image="file:///etc/hostname"), "path", "begins with file://"),
    "half a line": ('{"conversations": [', "json", "not a json line"),
    "no text": ("\udcff\udcfe", "json", "not a json line"),
    "brackets without end": ("[" * 100_000, "json", "recursion"),
    "another type": ("3", "record", "got a json int"),
    "no conversation": ({"image": "whole.png"}, "record", "'conversations' is nothing"),
    "odd turns": ({"conversations": conversation("q")}, "record", "has 1 turns"),
    "number as text": ({"conversations": [{"from": "human", "value": 3}]}, "record", "type int"),
    "number as picture": (ask(image=3), "record", "'image' is 3"),
    "half a character in a path": (ask(image=["a.png", "\ud83d.png"]), "record", "surrogate"),
    "half a character in the path of a film": (ask(video="\ud83d.mp4"), "record", "surrogate"),
    "half a character": ({"conversations": conversation("q \ud83d", "a")}, "record", "surrogate"),
    "more pictures than places": ({**ask(image=["whole.png"] * 2)}, "placeholder", "0 <image> for 2 images"),
    "more places than pictures": ({"conversations": conversation("<image>", "a")}, "placeholder", "1 <image>"),
    "special tokens": ({"conversations": conversation("<img><IMG_CONTEXT></img><|im_end|>", "</s>")}, GOOD, ""),
    "too long": ({"conversations": conversation("word " * 3000, "a")}, "length", "max_seq_length 2000"),
}
BROKEN_WHEN_DECODED = {"cut short": "image"}


@pytest.fixture
def broken(tmp_path, make_source):
    write_pictures(tmp_path / "images")
    spec = make_source("broken", [])
    lines = [line if isinstance(line, str) else json.dumps(line) for line, *_ in KINDS.values()]
    spec.annotation.write_bytes("".join(line + "\n" for line in lines).encode(errors="surrogateescape"))
    return RecordFile(spec)


def found_kinds(check: Survey) -> dict[str, str]:
    problems = [problem for report in check.run() for problem in report.problems]
    names = list(KINDS)
    return {names[problem.row]: problem.kind for problem in problems}


@pytest.mark.filterwarnings("error")
def test_every_broken_kind_has_its_outcome(broken, make_encoder):
    check = Survey((broken,), make_encoder(max_seq_length=2000))
    (report,) = check.run()
    expected = {name: kind for name, (_, kind, _) in KINDS.items() if kind is not GOOD}
    assert found_kinds(check) == expected
    causes = {list(KINDS)[problem.row]: problem.cause for problem in report.problems}
    for name, cause in causes.items():
        assert KINDS[name][2].lower() in cause.lower(), name
    assert len(report.num_tokens) == len(KINDS) - len(expected)


def test_decoding_finds_what_headers_hide(broken, make_encoder):
    encoder = make_encoder(max_seq_length=2000)
    headers = found_kinds(Survey((broken,), encoder))
    assert found_kinds(Survey((broken,), encoder, decodes=True)) == headers | BROKEN_WHEN_DECODED


def test_what_is_found_is_what_encoding_refuses(broken, make_encoder):
    encoder = make_encoder(max_seq_length=2000)
    expected = {name for name, (_, kind, _) in KINDS.items() if kind is not GOOD} | set(BROKEN_WHEN_DECODED)
    refused = set()
    for row, name in enumerate(KINDS):
        try:
            document = encoder.encode(broken[row], document_generator(0, epoch=0, source="broken", row=row, repeat=0))
            assert document.pixel_values.isfinite().all()
        except (DataError, OSError):  # what the loader skips a document for
            refused.add(name)
    assert refused == expected


def test_odd_pictures_look_as_they_should(tmp_path):
    folder = tmp_path / "images"
    write_pictures(folder)
    assert load_image(folder / "sixteen.png").getpixel((0, 0)) == (200, 200, 200)
    assert load_image(folder / "turned.jpg").size == (64, 48)
    assert load_image(folder / "palette.png").mode == "RGB"
    whole, alpha = (np.asarray(load_image(folder / name), dtype=int) for name in ("whole.png", "alpha.png"))
    assert (whole == alpha).all()
    assert np.abs(np.asarray(load_image(folder / "cmyk.jpg"), dtype=int) - whole).mean() < 60


def test_documents_that_no_packed_row_can_hold_are_problems(make_source, make_image, make_encoder):
    make_image("square.png", 28, 28)
    make_image("wide.png", 170, 28)
    file = RecordFile(make_source("sizes", [ask(image="square.png"), ask(image="wide.png")]))
    (report,) = Survey((file,), make_encoder(), PackingLimits(max_tokens=10_000, max_tiles=6)).run()
    assert [(problem.row, problem.kind) for problem in report.problems] == [(1, "length")]
    assert report.num_tiles.tolist() == [1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reports_come_in_the_order_of_the_rows(make_source, make_encoder, num_workers):
    lines = [{"conversations": conversation("q", "a" * (1 + i % 7))} for i in range(200)]
    files = tuple(RecordFile(make_source(name, lines[:count])) for name, count in (("a", 200), ("b", 0), ("c", 70)))
    check = Survey(files, make_encoder())
    reports = list(check.run(num_workers=num_workers))
    assert [report.source for report in reports] == sorted(report.source for report in reports)
    for source, file in enumerate(files):
        found = [report.num_tokens for report in reports if report.source == source]
        expected = [check.encoder.measure(file[row])[0] for row in range(len(file))]
        assert [int(n) for part in found for n in part] == expected


def test_an_epoch_is_estimated_from_what_was_looked_at(make_source, make_encoder):
    good = {"conversations": conversation("q", "a")}
    file = RecordFile(make_source("half", [good, "no json"] * 50))
    check = Survey((file,), make_encoder())
    report = SourceReport("half", num_rows=100, num_documents=250)
    for chunk in check.run():
        report.add(chunk)
    num_tokens, _ = check.encoder.measure(file[0])
    assert report.tokens_per_epoch == num_tokens * 125
    assert report.tiles_per_epoch == 0
    assert (report.num_checked, len(report.problems)) == (100, 50)
    assert SourceReport("none", 0, 0).tokens_per_epoch == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_concerns_all_rows_ends_the_check(make_source, make_encoder, monkeypatch, num_workers):
    import fsspec

    def refuse(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    file = RecordFile(make_source("far", [ask(image="s3://bucket/a.png")]))
    with pytest.raises(
        MissingDependencyError, match=r"^s3://bucket/a.png is in an object store: pip install fsspec s3fs$"
    ):
        list(Survey((file,), make_encoder()).run(num_workers=num_workers))


def test_an_annotation_that_changes_while_it_is_in_use_is_an_error(make_source, make_encoder):
    spec = make_source("moving", [{"conversations": conversation("q", "a")}])
    file = RecordFile(spec)
    spec.annotation.write_bytes(b"\n" + spec.annotation.read_bytes())
    with pytest.raises(ConfigError, match="was changed while it was in use; start again"):
        list(Survey((file,), make_encoder()).run())


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("fault", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_fault_of_the_system_is_no_problem_of_a_record(make_source, make_encoder, monkeypatch, num_workers, fault):
    source = make_source("a", [{"conversations": conversation("q", "a")}] * 3)
    check = Survey((RecordFile(source),), make_encoder())

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(SampleEncoder, "measure", fail)
    with pytest.raises(ConfigError, match=r"the system cannot read data .*this is no fault of the data"):
        list(check.run(num_workers=num_workers))
