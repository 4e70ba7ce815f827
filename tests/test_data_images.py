"""The one decode function: every kind of file becomes the RGB a viewer shows, and damage is never silent."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data import images
from data.images import image_facts, read_image
from data.records import DataError
from tests.conftest import REAL_DATA, needs_real_data


def photo(height=48, width=64):
    """A smooth picture with a different colour in each corner, so JPEG keeps it and turning it shows."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (255 * np.stack([rows, columns, rows * (1 - columns)], axis=2)).astype(np.uint8)


def turned(pixels, orientation):
    """What the eight EXIF orientations mean, in words of arrays."""
    ways = {
        **{1: pixels, 2: pixels[:, ::-1], 3: np.rot90(pixels, 2), 4: pixels[::-1]},
        **{5: pixels.transpose(1, 0, 2), 6: np.rot90(pixels, -1)},
        **{7: np.rot90(pixels, 2).transpose(1, 0, 2), 8: np.rot90(pixels)},
    }
    return ways[orientation]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
def test_every_exif_orientation_is_applied_once(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    for orientation in range(1, 9):
        exif = Image.Exif()
        Image.fromarray(photo()).save(path)
        plain = read_image(path)
        exif[0x0112] = orientation
        Image.fromarray(photo()).save(path, exif=exif)
        expected = turned(plain, orientation)
        np.testing.assert_array_equal(read_image(path), expected)
        assert image_facts(path).orientation == orientation or (suffix, orientation) == (".avif", 1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_an_orientation_that_makes_no_sense_is_ignored(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    for orientation in (0, 9, 77, 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(photo()).save(path, exif=exif)
        assert read_image(path).shape == (48, 64, 3)


def test_a_broken_exif_block_says_nothing_and_warns_of_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    block = exif.tobytes()
    entry = block.index(b"\x12\x01", 14) if b"\x12\x01" in block[14:] else block.index(b"\x01\x12", 14)
    blocks = [b"Exif\0\0garbage", *(block[:length] for length in range(6, len(block), 3))]
    for start, value in [(entry - 2, b"\xff\xff"), (entry + 2, b"\x00\x63"), (entry + 4, b"\x0f\xff\xff\xff")]:
        blocks.append(block[:start] + value + block[start + len(value) :])
    path = tmp_path / "image.jpg"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        Image.fromarray(photo()).save(path, exif=blocks[-1])
        read_image(path)
        assert heard  # by Pillow itself
        heard.clear()
        images.ignore_warnings()
        for one in blocks:
            Image.fromarray(photo()).save(path, exif=one)
            assert read_image(path).shape == (48, 64, 3)
    assert heard == []


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 40}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_jpeg_path_gives_pillows_pixels(tmp_path, mode, options):
    noise = np.random.default_rng(0).integers(0, 40, (61, 83, 3), dtype=np.uint8)
    Image.fromarray(photo(61, 83) // 2 + noise).convert(mode).save(tmp_path / "image.jpg", **options)
    with Image.open(tmp_path / "image.jpg") as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "image.jpg"), expected)


def test_modes_become_rgb(tmp_path):
    def read(image, name="image.png", **options):
        image.save(tmp_path / name, **options)
        pixels = read_image(tmp_path / name)
        assert pixels.dtype == np.uint8 and pixels.shape == (2, 3, 3) and pixels.flags.c_contiguous
        return pixels[0, 0].tolist()

    assert read(Image.new("L", (3, 2), 130)) == [130] * 3
    assert read(Image.new("1", (3, 2), 1)) == [255] * 3
    assert read(Image.new("RGB", (3, 2), (10, 200, 30)).quantize(4)) == [10, 200, 30]
    assert read(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "image.tif") == [255, 0, 0]
    assert read(Image.fromarray(np.full((2, 3), 0x8123, np.uint16))) == [0x81] * 3  # Pillow's own "L" would be 255
    assert read(Image.fromarray(np.full((2, 3), 300, np.int32)), "image.tif") == [1] * 3


def test_16_bit_colour_is_scaled(tmp_path):
    for suffix in ("png", "tif"):
        path = tmp_path / f"image.{suffix}"
        cv2.imwrite(str(path), np.full((2, 3, 3), (0x1E80, 0xC8FF, 0x0A01), np.uint16))  # blue, green, red
        assert read_image(path)[0, 0].tolist() == [0x0A, 0xC8, 0x1E], suffix
        cv2.imwrite(str(path), np.full((2, 3, 4), (0x1E80, 0xC8FF, 0x0A01, 0x8000), np.uint16))
        assert read_image(path)[0, 0].tolist() == [132, 227, 142], suffix


def png(width, height, depth, kind, rows, *extra):
    """A PNG of raw rows, with (name, content) of further chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        *extra,
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        (b"IEND", b""),
    ]
    framed = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def grey_tiff(width, height, bits, photometric, pixels):
    """An uncompressed grey TIFF of raw pixels."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags[279] = len(pixels)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_grey_of_many_bits_is_scaled_from_its_own_range_and_never_upside_down(tmp_path):
    path = tmp_path / "image.tif"
    for bits, photometric, pixels, expected in [
        (16, 1, struct.pack("<4H", 0x8123, 0, 0xFFFF, 0x00FF), [0x81, 0, 255, 0]),
        (16, 0, struct.pack("<4H", 0x8123, 0, 0xFFFF, 0x00FF), [0x7E, 255, 0, 255]),  # white is zero
        (12, 1, bytes([0x81, 0x20, 0x00, 0xFF, 0xF0, 0x0F]), [0x81, 0, 255, 0]),
    ]:
        path.write_bytes(grey_tiff(2, 2, bits, photometric, pixels))
        assert read_image(path)[:, :, 0].ravel().tolist() == expected, (bits, photometric)
        assert f"{bits}-bit" in image_facts(path).kinds
    Image.fromarray(np.array([[70000, 5]], np.int32)).save(path)
    with pytest.raises(DataError, match=r"image\.tif: its pixels have a sign or more than 16 bits"):
        read_image(path)


def test_alpha_lies_over_white(tmp_path):
    def read(image, name="image.png", **options):
        image.save(tmp_path / name, **options)
        return read_image(tmp_path / name)[0, 0].tolist()

    half = Image.new("RGBA", (3, 2), (0, 100, 0, 128))
    assert read(Image.new("RGBA", (3, 2), (0, 0, 0, 0))) == [255] * 3
    assert read(half) == read(half, "image.tif") == read(half.convert("PA"), "image.tif") == [127, 177, 127]
    assert read(half, "image.webp", lossless=True) == [127, 177, 127]
    assert read(Image.new("LA", (3, 2), (0, 0))) == [255] * 3
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([9, 9, 9, 0, 100, 0])
    assert read(palette, transparency=1) == [255] * 3
    assert read(palette, transparency=bytes([0, 128])) == [127, 177, 127]
    assert read(palette, transparency=0) == [0, 100, 0]
    assert read(Image.new("RGB", (3, 2), (1, 2, 3)), transparency=(1, 2, 3)) == [255] * 3
    # One colour of 16 bits that is transparent, and its neighbour that is not.
    for kind, pixels in [(0, [0x8123, 0x9123]), (2, [0x0A01, 0xC802, 0x1E03, 0x0B01, 0xC802, 0x1E03])]:
        raw = struct.pack(f">{len(pixels)}H", *pixels)
        path = tmp_path / "image.png"
        path.write_bytes(png(2, 1, 16, kind, [raw], (b"tRNS", raw[: len(raw) // 2])))
        first, second = read_image(path)[0].tolist()
        assert (first, second) == ([255] * 3, [0x91] * 3 if kind == 0 else [0x0B, 0xC8, 0x1E])


def test_cmyk_and_ycck_jpegs(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path)
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]
    # Stored are 150, 128, 128 and 200 (inverted, as Adobe does), now to be read as Y, Cb, Cr and K: 150 of each ink.
    Image.new("CMYK", (16, 16), (255 - 150, 255 - 128, 255 - 128, 255 - 200)).save(path)
    data = path.read_bytes()
    transform = data.index(b"Adobe") + 11
    path.write_bytes(data[:transform] + b"\2" + data[transform + 1 :])
    np.testing.assert_allclose(read_image(path)[0, 0].astype(int), (255 - 150) * 200 / 255, atol=2)
    assert image_facts(path).kinds == ["CMYK"]


def test_lab_is_seen_as_its_colour(tmp_path):
    """L* 53.2, a* 80, b* 67 is pure red."""
    Image.new("LAB", (3, 2), (136, 80 + 128, 67 + 128)).save(tmp_path / "image.tif")
    np.testing.assert_allclose(read_image(tmp_path / "image.tif")[0, 0].astype(int), [255, 0, 0], atol=12)


@pytest.mark.parametrize("name", ["image.tif", "image.webp", "image.png", "image.gif", "image.mpo"])
def test_the_first_picture_of_many_counts(tmp_path, name):
    first, second = Image.fromarray(photo()), Image.new("RGB", (64, 48), "red")
    options = {"lossless": True} if name.endswith("webp") else {}
    first.save(tmp_path / f"one_{name}", **options)
    first.save(tmp_path / name, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(read_image(tmp_path / name), read_image(tmp_path / f"one_{name}"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_the_content_counts_not_the_suffix(tmp_path, form):
    for suffix in (".jpg", ".png", ".tif"):
        path = tmp_path / f"image{suffix}"
        Image.new("RGB", (5, 4), (250, 250, 250)).save(path, format=form)
        assert read_image(path).shape == (4, 5, 3) and (read_image(path) >= 248).all()
        of_suffix = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}[suffix]
        assert ("misnamed" in image_facts(path).kinds) == (form != of_suffix)


@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.bmp", "image.tif", "image.webp"])
def test_a_truncated_file_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for share in (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError, match=name):
            read_image(path)


@pytest.mark.parametrize("name", ["image.jpg", "image.png"])
def test_zeros_in_the_place_of_what_was_not_downloaded_are_no_picture(tmp_path, name):
    """Dark, easy pictures: few bytes of zeros decode to all the rest of them."""
    path = tmp_path / name
    image = Image.fromarray((photo(200, 300) // 8) + np.random.default_rng(0).integers(0, 4, (200, 300, 3), np.uint8))
    thumbnail = io.BytesIO()
    image.resize((30, 20)).save(thumbnail, "JPEG")  # has an end mark of its own
    image.save(path, quality=98, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(4) + thumbnail.getvalue())
    data = path.read_bytes()
    for share in (0.1, 0.4, 0.7, 0.95):
        kept = int(len(data) * share)
        path.write_bytes(data[:kept] + bytes(3 * len(data) - kept))
        with pytest.raises(DataError, match=name):
            read_image(path)


def test_a_flipped_bit_in_a_png_is_damage(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(photo()).save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"image\.png: it is damaged or truncated"):
        read_image(path)


def test_padding_behind_a_jpeg_is_no_damage(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(photo()).save(path)
    whole = read_image(path)
    for padding in (b"\0" * 100, b"trailer of a camera"):
        path.write_bytes(path.read_bytes() + padding)
        np.testing.assert_array_equal(read_image(path), whole)


def test_what_is_no_image_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jpg: No such file"):
        read_image(tmp_path / "nothing.jpg")
    (tmp_path / "text.jpg").write_text("text")
    for read in (read_image, image_facts):
        with pytest.raises(DataError, match=r"text\.jpg: it is not an image of a known format"):
            read(tmp_path / "text.jpg")
    (tmp_path / "page.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )  # no program is run for it
    with pytest.raises(DataError, match=r"page\.jpg: it is not an image of a known format"):
        read_image(tmp_path / "page.jpg")
    (tmp_path / "bomb.png").write_bytes(png(100_000, 100_000, 8, 2, [b""]))
    for read in (read_image, image_facts):
        with pytest.raises(DataError, match=r"bomb\.png: its header tells of more than 178,956,970 pixels; cut"):
            read(tmp_path / "bomb.png")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif.*floats"):
        read_image(tmp_path / "float.tif")


@pytest.mark.parametrize("read", [read_image, image_facts])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, reason in [
        (tmp_path, "a folder"),
        (tmp_path / "pipe.jpg", "a pipe"),
        ("/dev/zero", "a pipe or a device"),
    ]:
        with pytest.raises(DataError, match=reason):
            read(path)


@needs_real_data
def test_real_photos_equal_pillows():
    folders = ["bccd/BCCD/JPEGImages", "facemask/train2017"]
    for path in [path for folder in folders for path in sorted((Path(REAL_DATA) / folder).iterdir())[::40]]:
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


def test_facts_of_what_is_unusual(tmp_path):
    def facts(image, name="image.png", **options):
        image.save(tmp_path / name, **options)
        return image_facts(tmp_path / name)

    assert facts(Image.new("RGB", (3, 2)), "image.jpg").kinds == []
    kinds = {"L": ["greyscale"], "LA": ["greyscale", "alpha"], "P": ["palette"], "RGBA": ["alpha"]}
    kinds |= {"1": ["greyscale", "1-bit"], "I;16": ["greyscale", "16-bit"]}
    assert {mode: facts(Image.new(mode, (3, 2))).kinds for mode in kinds} == kinds
    kinds |= {"PA": ["alpha", "palette"], "CMYK": ["CMYK"], "LAB": ["Lab"], "YCbCr": ["YCbCr"]}
    kinds |= {"F": ["greyscale", "float"], "I": ["greyscale", "32-bit"]}
    assert {mode: facts(Image.new(mode, (3, 2)), "image.tif").kinds for mode in kinds} == kinds
    assert facts(Image.new("P", (3, 2)), transparency=0).kinds == ["alpha", "palette"]
    two = {"save_all": True, "append_images": [Image.new("RGB", (3, 2), "red")]}
    assert facts(Image.new("RGB", (3, 2)), "image.tif", **two).kinds == ["several frames"]
    lying = facts(Image.new("RGB", (3, 2)), "image.jpg", format="PNG")
    assert (lying.format, lying.mode, lying.kinds) == ("PNG", "RGB", ["misnamed"])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_facts_tell_16_bit_colour(tmp_path, suffix):
    cv2.imwrite(str(tmp_path / f"image{suffix}"), np.full((2, 3, 3), 300, np.uint16))
    assert image_facts(tmp_path / f"image{suffix}").kinds == ["16-bit"]


def test_facts_have_the_orientation_as_it_is_written(tmp_path):
    path = tmp_path / "image.jpg"
    for written in (None, 1, 6, 0, 9, 65535):
        exif = Image.Exif()
        if written is not None:
            exif[0x0112] = written
        Image.fromarray(photo()).save(path, exif=exif)
        assert (image_facts(path).orientation, image_facts(path).kinds) == (written, [])
    Image.fromarray(photo()).save(path, exif=b"Exif\0\0garbage")
    assert (image_facts(path).orientation, image_facts(path).kinds) == (None, ["damaged EXIF"])
    path.write_bytes(b"text")
    with pytest.raises(DataError, match=r"image\.jpg"):
        image_facts(path)
