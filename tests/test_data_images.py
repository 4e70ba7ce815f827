"""The one decode function: every kind of file becomes the RGB a viewer shows, and damage is never silent."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from data.images import displayed_size, displayed_sizes, image_facts, read_image
from data.records import DataError
from tests.conftest import REAL_DATA, needs_real_data


def photo(height=48, width=64):
    """A smooth picture with a different colour in each corner, so JPEG keeps it and turning it shows."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (255 * np.stack([rows, columns, rows * (1 - columns)], axis=2)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied_as_pillow_does(tmp_path, orientation, suffix):
    path = tmp_path / f"image{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo()).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(path), expected)
    assert displayed_size(path) == expected.shape[1::-1]


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_makes_no_sense_is_ignored(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo()).save(tmp_path / "image.jpg", exif=exif)
    assert read_image(tmp_path / "image.jpg").shape == (48, 64, 3)
    Image.fromarray(photo()).save(tmp_path / "image.jpg", exif=b"Exif\0\0garbage")
    assert displayed_size(tmp_path / "image.jpg") == (64, 48)


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


def test_alpha_lies_over_white(tmp_path):
    Image.new("RGBA", (3, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (3, 2), (0, 100, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (3, 2), (0, 0)).save(tmp_path / "grey.png")
    palette = Image.new("P", (3, 2), 0)
    palette.putpalette([9, 9, 9])
    palette.save(tmp_path / "palette.png", transparency=0)
    for name, pixel in [("clear", [255] * 3), ("half", [127, 177, 127]), ("grey", [255] * 3), ("palette", [255] * 3)]:
        assert read_image(tmp_path / f"{name}.png")[0, 0].tolist() == pixel, name


@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.bmp", "image.tif", "image.webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_truncated_file_is_refused_by_name(tmp_path, name, share):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=name):
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
    for read in (read_image, displayed_size):
        with pytest.raises(DataError, match=r"text\.jpg: it is not an image of a known format"):
            read(tmp_path / "text.jpg")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif.*floats"):
        read_image(tmp_path / "float.tif")


def test_sizes_come_in_order_and_errors_together(tmp_path):
    paths = [tmp_path / f"{width}.png" for width in range(1, 30)]
    for width, path in enumerate(paths, start=1):
        Image.new("L", (width, 7)).save(path)
    assert displayed_sizes(paths) == [(width, 7) for width in range(1, 30)]
    paths[3].write_bytes(b"x")
    paths[9].write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 29 image files cannot be read:\n.*4\.png.*\n.*10\.png"):
        displayed_sizes(paths)


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
