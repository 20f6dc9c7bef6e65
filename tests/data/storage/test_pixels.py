"""Pictures of every bit depth, with transparency of every kind, by every way in: the same RGB."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from eval.bridges.conversation import Part, join_parts
from eval.core.sample import EnlargedImage, PackedImage
from internvl.data.prompt import Picture, load_pictures
from internvl.data.storage import pixels
from internvl.data.storage.media import load_image, read_image_size
from internvl.data.storage.pixels import PICTURE_FORMATS, picture_errors, to_rgb
from internvl.errors import ConfigError, DataError

WIDTH, HEIGHT = 8, 4
RAMP = np.linspace(300, 65_000, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
GREY = (RAMP >> 8).astype(np.uint8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)
GREY_TYPE, COLOUR_TYPE, PALETTE_TYPE, GREY_ALPHA_TYPE = 0, 2, 3, 4


def png(num_bits: int, kind: int, rows: np.ndarray, **chunks: bytes) -> bytes:
    """A PNG file from its parts; `rows` holds bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, num_bits, kind, 0, 0, 0)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(content), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name.encode(), part) for name, part in parts.items())


def tiff(num_bits: int, rows: np.ndarray, *, order: str = "<", photometric: int = 1, sample_format: int = 1) -> bytes:
    """A grey TIFF file from its parts; `rows` holds bytes."""
    content = rows.tobytes()
    entries = [
        (256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, num_bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 3, HEIGHT), (279, 4, len(content)), (339, 3, sample_format),
    ]  # fmt: skip
    packed = b"".join(
        struct.pack(
            f"{order}HHI" + ("HH" if kind == 3 else "I"), tag, kind, 1, *((value, 0) if kind == 3 else (value,))
        )
        for tag, kind, value in entries
    )
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(entries)) + packed + bytes(4)
    return mark + struct.pack(f"{order}I", 8 + len(content)) + content + directory


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """What is seen of colours of an opacity of 0 to 255."""
    share = opacity[..., None] / 255
    return np.round(colours * share + 255 * (1 - share)).astype(np.uint8)


def in_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def packed_bits(levels: np.ndarray, num_bits: int) -> np.ndarray:
    bits = (levels[..., None] >> np.arange(num_bits - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(HEIGHT, -1).astype(np.uint8), axis=1)


LEVELS = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
OPACITY = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
PHOTO = (COLOURS >> 8).astype(np.uint8)
PHOTO_ALPHA = Image.fromarray(np.dstack([PHOTO, OPACITY]))
PALETTE = np.stack([LEVELS[0] * 30, 255 - LEVELS[0] * 30, LEVELS[0] * 7], axis=-1).astype(np.uint8)
INDICES = (LEVELS % WIDTH).astype(np.uint8)
GREY_OPACITY = np.dstack([GREY, OPACITY])


def one_level_clear(num_bits: int, level: int) -> tuple[bytes, np.ndarray]:
    """A grey PNG file in which one level is transparent, and what is seen."""
    levels = LEVELS % (1 << num_bits)
    grey = levels * (255 // ((1 << num_bits) - 1))
    clear = struct.pack(">H", level)
    return png(num_bits, GREY_TYPE, packed_bits(levels, num_bits), tRNS=clear), np.where(levels == level, 255, grey)


# name: (file, what is seen, largest difference)
KINDS = {
    "16-bit PNG": (png(16, GREY_TYPE, RAMP.astype(">u2")), in_rgb(GREY), 0),
    "16-bit TIFF": (tiff(16, RAMP), in_rgb(GREY), 0),
    "16-bit TIFF of Motorola": (tiff(16, RAMP.astype(">u2"), order=">"), in_rgb(GREY), 0),
    "16-bit TIFF, 0 is white": (tiff(16, 65_535 - RAMP, photometric=0), in_rgb(GREY), 0),
    "8-bit TIFF, 0 is white": (tiff(8, 255 - GREY, photometric=0), in_rgb(GREY), 0),
    "12-bit TIFF": (tiff(12, packed_bits(RAMP >> 4, 12)), in_rgb(GREY), 0),
    "signed 16-bit TIFF": (tiff(16, RAMP // 2, sample_format=2), in_rgb((RAMP // 2 >> 8).astype(np.uint8)), 0),
    "16-bit PGM": (b"P5 8 4 65535\n" + RAMP.astype(">u2").tobytes(), in_rgb(GREY), 0),
    "dark 16-bit PGM": (b"P5 8 4 65535\n" + (RAMP // 300).astype(">u2").tobytes(), in_rgb(GREY * 0), 0),
    "10-bit PGM": (b"P5 8 4 1023\n" + (RAMP >> 6).astype(">u2").tobytes(), in_rgb(GREY), 1),
    "16-bit JPEG 2000": (saved(Image.fromarray(RAMP), "JPEG2000", irreversible=False), in_rgb(GREY), 0),
    "16-bit colours": (png(16, COLOUR_TYPE, COLOURS.astype(">u2")), PHOTO, 0),
    "16-bit grey with alpha": (
        png(16, GREY_ALPHA_TYPE, np.dstack([RAMP, OPACITY.astype(np.uint16) * 257]).astype(">u2")),
        on_white(in_rgb(GREY), OPACITY),
        1,
    ),
    "1 bit": (png(1, GREY_TYPE, packed_bits(LEVELS % 2, 1)), in_rgb(LEVELS % 2 * 255), 0),
    "2 bits": (png(2, GREY_TYPE, packed_bits(LEVELS % 4, 2)), in_rgb(LEVELS % 4 * 85), 0),
    "4 bits": (png(4, GREY_TYPE, packed_bits(LEVELS % 16, 4)), in_rgb(LEVELS % 16 * 17), 0),
    "RGBA": (saved(PHOTO_ALPHA, "PNG"), on_white(PHOTO, OPACITY), 1),
    "grey with alpha": (saved(Image.fromarray(GREY_OPACITY), "PNG"), on_white(in_rgb(GREY), OPACITY), 1),
    "WebP with alpha": (saved(PHOTO_ALPHA, "WEBP", lossless=True, exact=True), on_white(PHOTO, OPACITY), 1),
    "TIFF with alpha": (saved(PHOTO_ALPHA, "TIFF"), on_white(PHOTO, OPACITY), 1),
    "JPEG 2000 with alpha": (saved(PHOTO_ALPHA, "JPEG2000", irreversible=False), on_white(PHOTO, OPACITY), 1),
    "palette with opacities": (
        png(8, PALETTE_TYPE, INDICES, PLTE=PALETTE.tobytes(), tRNS=bytes([0, 50, 100, 200])),
        on_white(PALETTE[INDICES], np.array([0, 50, 100, 200, 255, 255, 255, 255])[INDICES]),
        1,
    ),
    "palette with a clear colour": (
        png(8, PALETTE_TYPE, INDICES, PLTE=PALETTE.tobytes(), tRNS=bytes([255, 255, 0])),
        np.where(in_rgb(INDICES) == 2, 255, PALETTE[INDICES]),
        0,
    ),
    "clear black": (one_level_clear(1, 0)[0], in_rgb(one_level_clear(1, 0)[1]), 0),
    "clear white": (one_level_clear(1, 1)[0], in_rgb(one_level_clear(1, 1)[1]), 0),
    "clear level of 2 bits": (one_level_clear(2, 2)[0], in_rgb(one_level_clear(2, 2)[1]), 0),
    "clear level of 4 bits": (one_level_clear(4, 9)[0], in_rgb(one_level_clear(4, 9)[1]), 0),
    "clear level of 8 bits": (one_level_clear(8, 11)[0], in_rgb(one_level_clear(8, 11)[1]), 0),
    "clear level of 16 bits": (
        png(16, GREY_TYPE, RAMP.astype(">u2"), tRNS=struct.pack(">H", RAMP[1, 2])),
        in_rgb(np.where(RAMP[1, 2] == RAMP, 255, GREY)),
        0,
    ),
    "clear colour": (
        png(8, COLOUR_TYPE, PHOTO, tRNS=struct.pack(">HHH", *PHOTO[2, 3])),
        np.where((PHOTO[2, 3] == PHOTO).all(axis=-1, keepdims=True), 255, PHOTO),
        0,
    ),
    "clear 16-bit colour": (
        png(16, COLOUR_TYPE, COLOURS.astype(">u2"), tRNS=struct.pack(">HHH", *COLOURS[2, 3])),
        np.where((COLOURS[2, 3] == COLOURS).all(axis=-1, keepdims=True), 255, PHOTO),
        0,
    ),
    "CMYK TIFF": (
        saved(Image.fromarray(255 - np.dstack([PHOTO, PHOTO[..., 0] * 0 + 255]), mode="CMYK"), "TIFF"),
        PHOTO,
        1,
    ),
}

WAYS = {
    "file": lambda path: load_image(path),
    "picture in memory": lambda path: next(load_pictures([Picture(Image.open(path))])),
    "base64": lambda path: PackedImage("t.tsv, row 3", base64.b64encode(path.read_bytes()).decode()).open(),
    "bridge": lambda path: join_parts([Part("image", Image.open(path))])[1][0],
    "enlarged": lambda path: EnlargedImage(path, 1).open(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_looks_the_same_by_every_way(tmp_path, kind, way):
    content, expected, tolerance = KINDS[kind]
    path = tmp_path / "a"
    path.write_bytes(content)
    assert read_image_size(path) == (WIDTH, HEIGHT)
    image = WAYS[way](path)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "<i4")])
def test_sixteen_bits_in_memory_keep_their_upper_eight(mode, dtype):
    image = Image.frombytes(mode, (WIDTH, HEIGHT), RAMP.astype(dtype).tobytes())
    assert (np.asarray(to_rgb(image)) == in_rgb(GREY)).all()
    assert image.mode == mode  # the caller's picture is as it was


def test_alpha_that_is_multiplied_into_the_colours_is_divided_out():
    expected = np.asarray(to_rgb(PHOTO_ALPHA)).astype(int)
    for image in (PHOTO_ALPHA.convert("RGBa"), PHOTO_ALPHA.convert("LA").convert("La")):
        shown = np.asarray(to_rgb(image)).astype(int)
        reference = expected if image.mode == "RGBa" else np.asarray(to_rgb(PHOTO_ALPHA.convert("LA"))).astype(int)
        assert np.abs(shown - reference).max() <= 2


def test_palettes_with_alpha_are_shown_on_white():
    with_alpha = Image.fromarray(INDICES, mode="P")
    with_alpha.putpalette(np.dstack([PALETTE[None], np.full((1, WIDTH, 1), 100, np.uint8)]).tobytes(), "RGBA")
    expected = on_white(PALETTE[INDICES], np.full_like(INDICES, 100))
    assert np.abs(np.asarray(to_rgb(with_alpha)).astype(int) - expected).max() <= 1
    plane = Image.fromarray(INDICES, mode="P")
    plane.putpalette(PALETTE.tobytes())
    plane.putalpha(Image.fromarray(OPACITY))
    assert plane.mode == "PA"
    assert np.abs(np.asarray(to_rgb(plane)).astype(int) - on_white(PALETTE[INDICES], OPACITY)).max() <= 1


def test_alpha_may_be_dropped_as_in_the_public_code(tmp_path):
    PHOTO_ALPHA.save(tmp_path / "a.png")
    content = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    for image in (
        load_image(tmp_path / "a.png", alpha="drop"),
        next(load_pictures([Picture(PHOTO_ALPHA)], alpha="drop")),
        PackedImage("row", content, alpha="drop").open(),
        EnlargedImage(tmp_path / "a.png", 1, alpha="drop").open(),
        join_parts([Part("image", PHOTO_ALPHA)], alpha="drop")[1][0],
    ):
        assert (np.asarray(image) == PHOTO).all()


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RAMP.astype(np.float32)),
        Image.fromarray(RAMP.astype(np.int32) * 2),
        Image.fromarray(-RAMP.astype(np.int32)),
        Image.fromarray(GREY.astype(np.int32)),  # of 8 or 16 bits?
        Image.new("RGB", (0, 4)),
    ],
    ids=["floats", "32 bits", "negative", "ambiguous", "no width"],
)
def test_pixels_without_a_known_white_are_refused_in_memory(image):
    with pytest.raises(DataError, match="image in memory cannot be read: "):
        next(load_pictures([Picture(image)]))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused_by_the_header_of_a_file(tmp_path, dtype):
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "a.tif")
    for read in (read_image_size, load_image, lambda path: next(load_pictures([Picture(Image.open(path))]))):
        with pytest.raises(DataError, match="pixels of 32 bits"):
            read(tmp_path / "a.tif")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 4\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("way", WAYS)
def test_formats_that_start_programs_are_refused(tmp_path, monkeypatch, way):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "eps.jpg"
    path.write_bytes(EPS)
    assert Image.open(path).format == "EPS"  # pillow would read it
    with pytest.raises((DataError, ConfigError), match=r"(expected one|is none) of PNG, JPEG"):
        WAYS[way](path)


def test_unlisted_formats_are_refused_and_listed_ones_are_taken():
    image = Image.fromarray(PHOTO)
    for kind in ("TGA", "PCX", "SGI", "PSD", "DDS", "ICNS"):
        assert kind not in PICTURE_FORMATS
    for kind in set(PICTURE_FORMATS) & set(Image.SAVE):
        content = saved(image.resize((32, 32)), kind)
        assert to_rgb(pixels.open_picture(io.BytesIO(content))).size == (32, 32), kind


@pytest.mark.parametrize(
    "kind", [OverflowError, SyntaxError, struct.error, zlib.error, RecursionError, KeyError, UnicodeError, TypeError]
)
def test_whatever_a_reader_raises_is_the_fault_of_one_picture(kind):
    with pytest.raises(DataError, match=r"image a\.png cannot be read"), picture_errors("a.png"):
        raise kind("x")


@pytest.mark.parametrize("error", [OSError(24, "too many open files"), OSError(5, "I/O error"), MemoryError()])
def test_faults_of_the_system_stay_what_they_are(error):
    with pytest.raises(type(error)), picture_errors("a.png"):
        raise error
